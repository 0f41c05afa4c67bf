//! `vela inspect`: what a checkpoint is, without running it.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use vela_llm::{ChatTemplate, DecoderConfig, Tokenizer, gguf, model};
use vela_nn::Gguf;
use vela_policy::describe;

/// Say what a checkpoint is: a model or policy folder, or a GGUF file.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face or LeRobot folder, or a GGUF file.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Families that a reference run of the published implementation is compared with in `tests/golden`.
const COMPARED: [&str; 16] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smolvlm",
    "t5",
];

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.path.is_dir() && describe::is_policy(&args.path) {
        let policy = describe::describe(&args.path)?;
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&policy)?),
            false => print!("{policy}"),
        }
        return Ok(());
    }
    let summary = match gguf::find(&args.path) {
        Some(file) => of_gguf(&file)?,
        None if args.path.is_dir() => of_folder(&args.path)?,
        None => bail!("{}: expected a GGUF file or a model folder", args.path.display()),
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&summary)?),
        false => print!("{summary}"),
    }
    Ok(())
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    kind: &'static str,
    format: String,
    family: String,
    name: Option<String>,
    /// How far it may be trusted.
    parity: &'static str,
    parameters: u64,
    bytes: u64,
    /// Parameters by how they are stored.
    stored: BTreeMap<String, u64>,
    sizes: Option<Sizes>,
    context: Option<u64>,
    tokens: Option<Tokens>,
    /// Characters of the chat template.
    template: Option<usize>,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Sizes {
    layers: usize,
    width: usize,
    inner_width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

#[derive(Debug, Serialize)]
struct Tokens {
    count: usize,
    stop: Vec<String>,
}

impl From<&DecoderConfig> for Sizes {
    fn from(config: &DecoderConfig) -> Self {
        Self {
            layers: config.layers,
            width: config.width,
            inner_width: config.inner_width,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let name = self.name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
        writeln!(f, "what        {}, {}{name}, {}", self.kind, self.family, self.format)?;
        writeln!(f, "parity      {}", self.parity)?;
        let stored: Vec<String> = self
            .stored
            .iter()
            .map(|(kind, count)| format!("{kind} {:.1} %", *count as f64 / self.parameters as f64 * 100.0))
            .collect();
        let (count, size) = (self.parameters as f64 / 1e6, self.bytes as f64 / 1e6);
        writeln!(f, "weights     {count:.1} M parameters in {size:.1} MB: {}", stored.join(", "))?;
        if let Some(s) = &self.sizes {
            writeln!(
                f,
                "sizes       {} layers, width {} (inner {}), {} heads over {} of {}, {} token ids",
                s.layers, s.width, s.inner_width, s.heads, s.kv_heads, s.head_dim, s.vocab
            )?;
        }
        if let Some(context) = self.context {
            writeln!(f, "context     {context}")?;
        }
        if let Some(tokens) = &self.tokens {
            let stop = if tokens.stop.is_empty() { "nothing".to_owned() } else { tokens.stop.join(" or ") };
            writeln!(f, "tokens      {}; an answer ends at {stop}", tokens.count)?;
        }
        match self.template {
            Some(length) => writeln!(f, "template    {length} characters")?,
            None => writeln!(f, "template    none: it continues texts")?,
        }
        self.remarks.iter().try_for_each(|line| writeln!(f, "remark      {line}"))
    }
}

/// What a part says, or why it cannot be read.
fn noted<T>(part: vela_nn::Result<T>, remarks: &mut Vec<String>) -> Option<T> {
    part.map_err(|error| remarks.push(format!("it will not load: {error}"))).ok()
}

fn parity(family: &str) -> &'static str {
    match COMPARED.contains(&family) {
        true => "compared with a reference run, stage by stage",
        false => "structure only, never compared",
    }
}

fn tokens(tokenizer: &Tokenizer, stop: &[u32]) -> Tokens {
    let name = |id: &u32| tokenizer.token(*id).unwrap_or_else(|| format!("id {id}"));
    Tokens { count: tokenizer.vocab_size(), stop: stop.iter().map(name).collect() }
}

impl Summary {
    /// Adds the parameters of a file, by type.
    fn count(&mut self, file: &Gguf) {
        for blocks in file.tensors().values() {
            let count = blocks.shape().iter().product::<usize>() as u64;
            self.parameters += count;
            *self.stored.entry(blocks.format().name().to_owned()).or_default() += count;
        }
    }
}

fn of_gguf(path: &Path) -> Result<Summary> {
    let file = Gguf::open(path)?;
    let text = |key: &str| file.text(key).map(str::to_owned);
    let architecture = text("general.architecture")?;
    let reads = gguf::is_encoder_decoder(&file);
    let mut out = Summary {
        kind: if reads { "text model, encoder and decoder" } else { "text model" },
        format: format!("GGUF version {}", file.version()),
        name: text("general.name").ok(),
        parity: match architecture.as_str() {
            "gemma3" => parity("gemma3_text"),
            other => parity(other),
        },
        bytes: std::fs::metadata(path)?.len(),
        ..Summary::default()
    };
    out.count(&file);
    let config = match reads {
        true => gguf::reader_config(&file).map(|config| config.encoder),
        false => gguf::config(&file),
    };
    out.sizes = noted(config, &mut out.remarks).as_ref().map(Sizes::from);
    let context = file.metadata().get(&format!("{architecture}.context_length"));
    out.context = context.and_then(vela_nn::gguf::Value::as_count);
    if let Some(tokenizer) = noted(Tokenizer::from_gguf(file.metadata()), &mut out.remarks) {
        out.tokens = Some(tokens(&tokenizer, &model::gguf_stop(&file, &tokenizer)));
    }
    let template = noted(ChatTemplate::from_gguf(file.metadata()), &mut out.remarks).flatten();
    out.template = template.map(|t| t.source().chars().count());
    out.family = architecture;
    Ok(out)
}

fn of_folder(dir: &Path) -> Result<Summary> {
    let config = vela_llm::trace::config_json(dir)?;
    let family = config["model_type"].as_str().unwrap_or("unknown").to_owned();
    let text = config.get("text_config").unwrap_or(&config);
    let sees = config.get("vision_config").is_some();
    let known = vela_llm::config::known().any(|name| name == family);
    let mut out = Summary {
        kind: match (sees, known, family.as_str()) {
            (true, ..) => "vision-language model",
            (_, true, _) => "text model",
            (_, _, "t5") => "text model, encoder and decoder",
            _ => "a model that is not known",
        },
        format: "Hugging Face folder".to_owned(),
        parity: parity(&family),
        context: text["max_position_embeddings"].as_u64().or(text["n_positions"].as_u64()),
        ..Summary::default()
    };
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") && !path.ends_with("golden.safetensors") {
            out.bytes += std::fs::metadata(&path)?.len();
            for (kind, count) in stored(&path).with_context(|| path.display().to_string())? {
                out.parameters += count;
                *out.stored.entry(kind).or_default() += count;
            }
        }
    }
    let quantised = dir.join(vela_llm::quantise::FILE);
    if quantised.is_file() {
        out.format = "folder written by vela quantize".to_owned();
        out.bytes += std::fs::metadata(&quantised)?.len();
        out.count(&Gguf::open(&quantised)?);
    }
    if known {
        out.sizes = noted(DecoderConfig::from_hf(&config), &mut out.remarks).as_ref().map(Sizes::from);
    }
    let file = dir.join("tokenizer.json");
    let template = noted(ChatTemplate::from_dir(dir), &mut out.remarks).flatten();
    if !file.is_file() {
        out.remarks.push("there is no tokenizer.json: it reads and writes token ids only".to_owned());
    } else if let Some(tokenizer) = noted(Tokenizer::load(&file), &mut out.remarks) {
        let stop = model::folder_stop(dir, &config, template.as_ref(), &tokenizer)?;
        out.tokens = Some(tokens(&tokenizer, &stop));
    }
    out.template = template.map(|t| t.source().chars().count());
    out.family = family;
    Ok(out)
}

/// Parameters by type, from the header of a safetensors file.
fn stored(path: &Path) -> Result<BTreeMap<String, u64>> {
    let mut file = std::fs::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let (length, most) = (u64::from_le_bytes(length), file.metadata()?.len());
    if length > most {
        bail!("not a safetensors file: its header would have {length} of {most} bytes");
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: BTreeMap<String, Json> = serde_json::from_slice(&header)?;
    let mut found = BTreeMap::new();
    for (name, tensor) in &header {
        if name != "__metadata__" {
            let shape = tensor["shape"].as_array().into_iter().flatten();
            let count = shape.filter_map(Json::as_u64).fold(1, u64::saturating_mul);
            *found.entry(tensor["dtype"].as_str().unwrap_or("?").to_owned()).or_default() += count;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_compared_has_a_reference_run() {
        for family in COMPARED {
            let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family);
            assert!(case.join("golden.safetensors").is_file(), "{family} has no reference run");
        }
        assert_eq!(parity("teapot"), "structure only, never compared");
    }
}
