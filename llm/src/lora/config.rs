//! `adapter_config.json`: which matrices an adapter is for and how strong it is there; what we cannot do is refused
//! by name.

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;

type Found<T> = std::result::Result<T, String>;

/// Fields that say how the adapter was trained or kept, not what it computes.
const SILENT: [&str; 18] = [
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Ways to start an adapter that change the base's own weights as well.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Names, or one regular expression over whole names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Text(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Many(Vec<usize>),
}

#[derive(Debug, Deserialize)]
struct Stated {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    use_rslora: Option<bool>,
    /// Of how the base stores its matrices. The adapter's own are `[rank, input]` and `[output, rank]` either way.
    #[serde(rename = "fan_in_fan_out")]
    _fan_in_fan_out: Option<bool>,
    use_dora: Option<bool>,
    bias: Option<String>,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    layers_to_transform: Option<Layers>,
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    init_lora_weights: Option<Json>,
    #[serde(flatten)]
    others: BTreeMap<String, Json>,
}

/// What a config says, its expressions made ready.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    stated: Stated,
    targets: Matcher,
    excluded: Option<Matcher>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

#[derive(Debug)]
enum Matcher {
    /// A name, or its last levels.
    Names(Vec<String>),
    /// The whole name.
    Whole(Regex),
    All,
}

impl Matcher {
    fn of(names: &Names) -> Found<Self> {
        Ok(match names {
            Names::List(list) => Self::Names(list.clone()),
            Names::Text(text) if text == "all-linear" => Self::All,
            Names::Text(text) => Self::Whole(regex(&format!("^(?:{text})$"))?),
        })
    }

    fn matches(&self, name: &str) -> Found<bool> {
        let ends = |target: &String| {
            name.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match self {
            Self::Names(list) => Ok(list.iter().any(ends)),
            Self::Whole(regex) => tried(regex, name),
            Self::All => Ok(true),
        }
    }
}

fn regex(text: &str) -> Found<Regex> {
    Regex::new(text).map_err(|e| format!("'{text}': not a regular expression that we can read: {e}"))
}

fn tried(regex: &Regex, name: &str) -> Found<bool> {
    regex.is_match(name).map_err(|e| format!("'{}' on {name}: {e}", regex.as_str()))
}

/// The value of the pattern that a name ends with.
fn pattern<T: Copy + PartialEq>(patterns: &[(Regex, T)], name: &str) -> Found<Option<T>> {
    let mut found = None;
    for (regex, value) in patterns {
        if tried(regex, name)? {
            if found.is_some_and(|other| other != *value) {
                return Err(format!("two patterns with different values match {name}"));
            }
            found = Some(*value);
        }
    }
    Ok(found)
}

fn patterns<T: Copy>(stated: Option<&BTreeMap<String, T>>) -> Found<Vec<(Regex, T)>> {
    let one = |(key, value): (&String, &T)| Ok((regex(&format!(r"^(?:.*\.)?(?:{key})$"))?, *value));
    stated.into_iter().flatten().map(one).collect()
}

impl AdapterConfig {
    /// Reads the file's bytes.
    pub fn read(bytes: &[u8]) -> Found<Self> {
        let stated: Stated = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        stated.check()?;
        let Some(targets) = &stated.target_modules else {
            return Err("target_modules: expected a list or a regular expression, got none".into());
        };
        Ok(Self {
            targets: Matcher::of(targets)?,
            excluded: stated.exclude_modules.as_ref().map(Matcher::of).transpose()?,
            ranks: patterns(stated.rank_pattern.as_ref())?,
            alphas: patterns(stated.alpha_pattern.as_ref())?,
            stated,
        })
    }

    /// Rank and scale at the matrix `name` (without PEFT's prefix) of a layer, if the adapter is for it.
    pub fn of(&self, name: &str, layer: usize) -> Found<Option<(usize, f64)>> {
        let here = match &self.stated.layers_to_transform {
            None => true,
            Some(Layers::One(one)) => *one == layer,
            Some(Layers::Many(many)) => many.contains(&layer),
        };
        let excluded = self.excluded.as_ref().map(|names| names.matches(name)).transpose()?.unwrap_or(false);
        if !here || excluded || !self.targets.matches(name)? {
            return Ok(None);
        }
        let rank = pattern(&self.ranks, name)?.unwrap_or(self.stated.r);
        let alpha = pattern(&self.alphas, name)?.unwrap_or(self.stated.lora_alpha);
        if !(1..=1 << 16).contains(&rank) || !alpha.is_finite() {
            return Err(format!("{name}: a rank of {rank} and an alpha of {alpha} cannot be"));
        }
        let root = if self.stated.use_rslora == Some(true) { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Some((rank, alpha / root)))
    }
}

impl Stated {
    /// Refuses what would compute something else than is done here.
    fn check(&self) -> Found<()> {
        if self.peft_type != "LORA" {
            return Err(format!("peft_type: only LORA is supported, got {}", self.peft_type));
        }
        if self.use_dora == Some(true) {
            return Err("use_dora: DoRA adapters are not supported".into());
        }
        if let Some(saved) = self.modules_to_save.as_ref().filter(|saved| !saved.is_empty()) {
            return Err(format!("modules_to_save: whole modules ({}) are not supported", saved.join(", ")));
        }
        if let Some(bias) = self.bias.as_deref().filter(|bias| *bias != "none") {
            return Err(format!("bias: only none is supported, got {bias}"));
        }
        let start = self.init_lora_weights.as_ref().and_then(Json::as_str).unwrap_or_default();
        if CHANGES_BASE.iter().any(|name| start.to_lowercase().starts_with(name)) {
            return Err(format!(
                "init_lora_weights: {start} changes the base's weights, which are not in here"
            ));
        }
        let says = |value: &Json| match value {
            Json::Null | Json::Bool(false) => false,
            Json::Array(list) => !list.is_empty(),
            Json::Object(map) => !map.is_empty(),
            _ => true,
        };
        let unknown = |(name, value): &(&String, &Json)| !SILENT.contains(&name.as_str()) && says(value);
        match self.others.iter().find(unknown) {
            Some((name, value)) => Err(format!("{name}: not supported, got {value}")),
            None => Ok(()),
        }
    }
}
