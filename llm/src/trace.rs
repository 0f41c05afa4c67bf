//! A text model's stages on given inputs, to be compared with a reference run.

use crate::{Cache, Decoder, DecoderConfig, generate};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::{Error, Mask, Result, Weights};

/// Reads a Hugging Face folder's decoder (`config.json`, `*.safetensors`).
pub fn load(dir: &Path) -> Result<Decoder> {
    let config = DecoderConfig::from_hf(&config_json(dir)?)?;
    let weights = Weights::load_dir(dir)?;
    let decoder = Decoder::new(Some(&weights), &weights.pp("model"), &config)?;
    weights.finish()?;
    Ok(decoder)
}

/// A folder's `config.json`.
pub fn config_json(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|e| Error::parse(path.display(), e))
}

/// A tensor of a reference run.
pub fn input<'a>(golden: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    golden.get(name).ok_or_else(|| Error::invalid(format!("the reference run has no tensor '{name}'")))
}

/// Every stage of a text model on `in.input_ids`. Of the `out.*` only the length of `out.generated` is read.
pub fn trace(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let decoder = load(dir)?;
    let ids = input(golden, "in.input_ids")?.to_dtype(DType::U32)?;
    let embeds = decoder.embed(&ids)?;
    let mut stages = BTreeMap::new();
    stages_of(&decoder, &embeds, "out.", golden, &mut stages)?;
    Ok(stages)
}

/// The stages from the embeddings `[1, t, width]` on, put under `prefix`.
pub fn stages_of(
    decoder: &Decoder,
    embeds: &Tensor,
    prefix: &str,
    golden: &HashMap<String, Tensor>,
    stages: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let length = embeds.dim(1)? as u32;
    let positions = Tensor::arange(0, length, &Device::Cpu)?;
    stages.insert(format!("{prefix}embeddings"), embeds.clone());
    let mut tap = |name: &str, x: &Tensor| {
        stages.insert(format!("{prefix}{name}"), x.clone());
    };
    let hidden = decoder.forward_tapped(embeds, &positions, &Mask::Causal, &mut Cache::new(), &mut tap)?;
    let normalised = decoder.normalise(&hidden)?;
    stages.insert(format!("{prefix}logits"), decoder.logits(&normalised)?);
    stages.insert(format!("{prefix}final_norm"), normalised);
    let generated = format!("{prefix}generated");
    if let Some(reference) = golden.get(&generated) {
        let made = generate::greedy(decoder, embeds, reference.elem_count(), &[])?;
        stages.insert(
            generated,
            Tensor::new(made.as_slice(), &Device::Cpu)?.unsqueeze(0)?.to_dtype(DType::I64)?,
        );
    }
    Ok(())
}
