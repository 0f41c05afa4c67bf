//! What a policy folder is, in a few lines, without running it: for `vela inspect`.

use crate::lerobot::Folder;
use crate::moment::{joint_names, statistics};
use crate::normalise::Normaliser;
use crate::openvla_oft;
use crate::storage::{FILE, Storage, form_of};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use vela_embodiment::ActionSpace;
use vela_llm::trace::config_json;
use vela_nn::{Error, Result};

/// A policy, described.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Its kind: `act`, `diffusion`, `smolvla`, `pi0`, `pi05`, `pi0_fast`, `openvla`, `openvla_oft` or
    /// `vela_vla`.
    pub kind: String,
    /// Its cameras in the network's order.
    pub cameras: Vec<CameraSummary>,
    /// Its joints in order, if the folder names them.
    pub joints: Option<Vec<String>>,
    /// Numbers in the state, if it reads one.
    pub state_dims: Option<usize>,
    /// Numbers per action.
    pub action_dims: usize,
    /// What they mean; absent where the folder does not say.
    pub action_space: Option<ActionSpace>,
    /// Actions per second, if the folder says.
    pub rate_hz: Option<f64>,
    /// Observations that it reads.
    pub history: usize,
    /// Actions per chunk.
    pub horizon: usize,
    /// Actions to carry out before the next chunk.
    pub execute: usize,
    /// How the head decodes, in words.
    pub head: String,
    /// Statistics of joints and actions, in words.
    pub statistics: Vec<String>,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Whether a reference run of this kind is compared in our tests.
    pub compared: bool,
    /// What the folder leaves open, and what is missing, in words.
    pub remarks: Vec<String>,
}

/// One camera of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CameraSummary {
    /// Its name.
    pub name: String,
    /// Pixels from left to right, as trained.
    pub width: usize,
    /// Pixels from top to bottom, as trained.
    pub height: usize,
}

/// Kinds of policy that a reference run of the published implementation is compared with in our tests.
const COMPARED: [&str; 6] = ["act", "diffusion", "openvla", "smolvla", "pi0", "pi05"];

impl Summary {
    /// A line that says how far it may be trusted.
    pub fn trust(&self) -> &'static str {
        if self.compared {
            "compared with a reference run, stage by stage"
        } else {
            "structure only, never compared"
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let open = |x: Option<String>| x.unwrap_or_else(|| "not said".to_owned());
        let cameras: Vec<String> =
            self.cameras.iter().map(|c| format!("{} {}x{}", c.name, c.width, c.height)).collect();
        writeln!(f, "policy      {} ({})", self.kind, self.trust())?;
        writeln!(
            f,
            "cameras     {}",
            if cameras.is_empty() { "none".to_owned() } else { cameras.join(", ") }
        )?;
        writeln!(f, "joints      {}", open(self.joints.as_ref().map(|names| names.join(", "))))?;
        writeln!(f, "state       {} numbers", open(self.state_dims.map(|n| n.to_string())))?;
        let space = open(self.action_space.as_ref().map(|space| format!("{space:?}")));
        writeln!(f, "actions     {} numbers; space: {space}", self.action_dims)?;
        writeln!(f, "rate        {}", open(self.rate_hz.map(|hz| format!("{hz} Hz"))))?;
        writeln!(
            f,
            "chunk       {} actions, {} carried out; {} observations",
            self.horizon, self.execute, self.history
        )?;
        writeln!(f, "head        {}", self.head)?;
        writeln!(f, "weights     {:.1} MB", self.weight_bytes as f64 / 1e6)?;
        for line in &self.statistics {
            writeln!(f, "statistics  {line}")?;
        }
        self.remarks.iter().try_for_each(|line| writeln!(f, "remark      {line}"))
    }
}

/// Whether a folder's `config.json` is one of a policy: only then [`describe`] can say something.
pub fn is_policy(dir: &Path) -> bool {
    let policies = ["act", "diffusion", "smolvla", "pi0", "pi05", "pi0_fast", "vela_vla", "openvla"];
    config_json(dir).is_ok_and(|config| policies.contains(&kind_of(&config)))
}

fn kind_of(config: &Value) -> &str {
    config.get("type").or(config.get("model_type")).and_then(Value::as_str).unwrap_or("absent")
}

/// Reads what a policy folder says of itself.
///
/// # Errors
/// Not a policy folder that we know; files that are missing or not understood.
pub fn describe(dir: &Path) -> Result<Summary> {
    let config = config_json(dir)?;
    let mut made = match kind_of(&config) {
        "vela_vla" => ours(dir)?,
        "openvla" => openvla(dir, &config)?,
        kind @ ("act" | "diffusion" | "smolvla" | "pi0" | "pi05" | "pi0_fast") => lerobot(dir, kind)?,
        other => {
            return Err(Error::invalid(format!(
                "{}: '{other}' is no policy that is known; known: act, diffusion, openvla, pi0, pi05, pi0_fast, smolvla, vela_vla",
                dir.display()
            )));
        }
    };
    if let Some(form) = form_of(dir)? {
        made.remarks
            .push(format!("its weights are in fewer bits ({form}); quantised.json has what that cost"));
    }
    Ok(made)
}

fn weight_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let of = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_weight = name == FILE || (name.starts_with("model") && name.ends_with(".safetensors"));
        entry.metadata().ok().filter(|_| is_weight).map(|meta| meta.len())
    };
    entries.flatten().filter_map(of).sum()
}

fn numbers(what: &str, normaliser: &Normaliser) -> String {
    let Some([low, high]) = normaliser.scaling.statistics() else { return format!("{what}: as it is") };
    let list = |values: &[f32]| {
        let shown: Vec<String> = values.iter().map(|x| format!("{x:.4}")).collect();
        shown.join(", ")
    };
    format!("{what}: {low} [{}], {high} [{}]", list(&normaliser.first), list(&normaliser.second))
}

fn count(config: &Value, name: &str) -> Option<usize> {
    config.get(name)?.as_u64().map(|n| n as usize)
}

fn lerobot(dir: &Path, kind: &str) -> Result<Summary> {
    let known = [
        "pi0_new_line_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "pi0_fast_prepare_state_tokenizer_processor_step",
        "action_tokenizer_processor",
        "smolvla_new_line_processor",
        "tokenizer_processor",
        "relative_actions_processor",
        "absolute_actions_processor",
    ];
    let folder = Folder::read(dir, &known)?;
    let weights = Storage::Plain.stored(dir)?;
    let config = &folder.config;
    let cameras = folder.cameras()?;
    let mut remarks = Vec::new();
    let found = match statistics(&folder, &weights) {
        Ok((state, action)) => vec![numbers("state", &state), numbers("actions", &action)],
        Err(error) => {
            remarks.push(format!("it will not load: {error}"));
            Vec::new()
        }
    };
    let joints = joint_names(&folder);
    if joints.is_none() {
        remarks.push(
            "joint names and order are not in the folder: the robot's must be those it was trained on".into(),
        );
    }
    remarks.push("the rate is not in the folder: it is that of the dataset".into());
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
    let steps = |name: &str, default: usize| count(config, name).unwrap_or(default);
    let head = match kind {
        "act" => match config.get("temporal_ensemble_coeff").and_then(Value::as_f64) {
            Some(decay) => format!("regression of a chunk; temporal ensembling, decay {decay}"),
            None => "regression of a chunk".into(),
        },
        "diffusion" => format!(
            "diffusion, {}, predicts {}, {} of {} steps",
            text("noise_scheduler_type"),
            text("prediction_type"),
            steps("num_inference_steps", steps("num_train_timesteps", 0)),
            steps("num_train_timesteps", 0)
        ),
        "pi0_fast" => format!("FAST tokens, at most {}", steps("max_decoding_steps", 256)),
        _ => format!("flow, {} steps", steps("num_steps", steps("num_inference_steps", 0))),
    };
    let execute = steps("n_action_steps", 1);
    // A diffusion chunk begins at the oldest observation; what comes out begins now.
    let horizon = if kind == "diffusion" { execute } else { steps("chunk_size", execute) };
    Ok(Summary {
        kind: kind.to_owned(),
        cameras: cameras
            .into_iter()
            .map(|c| CameraSummary { name: c.name, width: c.width, height: c.height })
            .collect(),
        joints,
        state_dims: folder.inputs.width("STATE").ok(),
        action_dims: folder.outputs.width("ACTION")?,
        action_space: Some(ActionSpace::JointPositions),
        rate_hz: None,
        history: steps("n_obs_steps", 1),
        horizon,
        execute,
        head,
        statistics: found,
        weight_bytes: weight_bytes(dir),
        compared: COMPARED.contains(&kind),
        remarks,
    })
}

fn ours(dir: &Path) -> Result<Summary> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|source| Error::Io { path, source })
    };
    let config: crate::VlaConfig =
        serde_json::from_slice(&read("config.json")?).map_err(|e| Error::parse("config.json", e))?;
    let embodiment: vela_embodiment::Embodiment =
        serde_json::from_slice(&read("embodiment.json")?).map_err(|e| Error::parse("embodiment.json", e))?;
    let size = config.vision.image_size;
    Ok(Summary {
        kind: config.kind,
        cameras: config
            .cameras
            .into_iter()
            .map(|name| CameraSummary { name, width: size, height: size })
            .collect(),
        joints: Some(embodiment.joints.iter().map(|joint| joint.name.clone()).collect()),
        state_dims: Some(embodiment.joints.len()),
        action_dims: embodiment.joints.len(),
        action_space: Some(config.space),
        rate_hz: Some(embodiment.control_hz),
        history: 1,
        horizon: config.horizon,
        execute: config.execute,
        head: format!("flow, {} steps", config.flow.steps),
        statistics: vec![numbers("state", &config.state), numbers("actions", &config.action)],
        weight_bytes: weight_bytes(dir),
        // Nobody else runs this format.
        compared: false,
        remarks: vec![
            "the network is SmolVLA's with other sizes; SmolVLA is compared with a reference run".into(),
        ],
    })
}

fn openvla(dir: &Path, config: &Value) -> Result<Summary> {
    let oft = openvla_oft::is_oft(dir);
    let read = || -> Option<Value> {
        serde_json::from_slice(&std::fs::read(dir.join("dataset_statistics.json")).ok()?).ok()
    };
    let sets = if oft { read() } else { config.get("norm_stats").cloned() };
    let mut action_dims = 0;
    let mut found = Vec::new();
    for (name, set) in sets.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let low = set.pointer("/action/q01").and_then(Value::as_array).map_or(0, Vec::len);
        action_dims = action_dims.max(low);
        found.push(format!("{name}: quantiles of {low} numbers"));
    }
    let size = config.get("image_sizes").and_then(Value::as_array).and_then(|s| s.first()?.as_u64());
    let size = size.unwrap_or(224) as usize;
    let camera = CameraSummary { name: "image".into(), width: size, height: size };
    let mut made = Summary {
        kind: "openvla".into(),
        cameras: vec![camera],
        joints: None,
        state_dims: None,
        action_dims,
        action_space: Some(ActionSpace::EndEffectorDeltas),
        rate_hz: None,
        history: 1,
        horizon: 1,
        execute: 1,
        head: format!("tokens, {} bin edges", count(config, "n_action_bins").unwrap_or(256)),
        statistics: found,
        weight_bytes: weight_bytes(dir),
        compared: COMPARED.contains(&"openvla"),
        remarks: Vec::new(),
    };
    if oft {
        made.kind = "openvla_oft".into();
        made.compared = false;
        made.head = "regression of a chunk, decoded in parallel".into();
        made.horizon = if action_dims == 14 { 25 } else { 8 };
        made.execute = made.horizon;
        made.action_space = Some(match action_dims {
            14 => ActionSpace::JointPositions,
            _ => ActionSpace::EndEffectorDeltas,
        });
        made.remarks = vec![
            "how many cameras it was trained with is not in the folder: those that are chosen, in their order".into(),
            "actions per chunk are not in the folder: 8 of 7 numbers (LIBERO), 25 of 14 (ALOHA)".into(),
        ];
    }
    Ok(made)
}
