//! A policy for another robot, begun with one that was trained: eyes and language stay, what meets the robot is new.

use super::{Moments, statistics};
use crate::error::{Error, Result, at};
use std::collections::BTreeSet;
use std::path::Path;
use vela_embodiment::Embodiment;
use vela_llm::{Tokenizer, trace::config_json};
use vela_nn::{Device, Tensor, Weights};
use vela_policy::{Vla, VlaConfig, folder};

/// Tensors between the robot's numbers and the network's.
const OF_THE_ROBOT: [&str; 3] = ["state_proj", "action_in_proj", "action_out_proj"];

/// Writes the folder `out`, whole or not at all: the policy of the folder `base` (vela_vla) for another robot: its cameras, the widths and statistics of
/// its joints, the words of the sentences that it is told. Tensors that keep their shapes keep their numbers, those of joints
/// and actions are drawn anew by `seed`; words and cameras keep the rows that there were.
///
/// # Errors
/// Another kind of policy; cameras that are not of the network's size; no moments; a folder that cannot be written.
pub fn embody(
    base: &Path,
    robot: &Embodiment,
    moments: &dyn Moments,
    sentences: &BTreeSet<String>,
    seed: u64,
    out: &Path,
) -> Result<()> {
    let refuse = |why: String| Error::Parse { what: base.display().to_string(), why };
    let mut config: VlaConfig =
        serde_json::from_value(config_json(base)?).map_err(|e| refuse(format!("config.json: {e}")))?;
    if config.kind != "vela_vla" {
        return Err(refuse(format!("expected a policy of vela's own (vela_vla), got '{}'", config.kind)));
    }
    let size = config.vision.image_size as u32;
    let other = |(w, h): (u32, u32)| (w, h) != (size, size);
    if let Some(camera) = robot.cameras.iter().find(|camera| other((camera.width, camera.height))) {
        let (name, width, height) = (&camera.name, camera.width, camera.height);
        return Err(refuse(format!(
            "camera '{name}': expected {size} x {size} pixels, got {width} x {height}"
        )));
    }
    let tokenizer = with_words(&Tokenizer::load(&base.join("tokenizer.json"))?, sentences)?;
    config.decoder.vocab = tokenizer.vocab_size();
    config.cameras = robot.cameras.iter().map(|camera| camera.name.clone()).collect();
    (config.state_dims, config.expert.action_dims) = (robot.joints.len(), robot.joints.len());
    let own = statistics(moments, &config.space, config.horizon)?;
    config.state = own.normaliser("observation.state", config.state.scaling, config.state.eps)?;
    config.action = own.normaliser("action", config.action.scaling, config.action.eps)?;

    let mut tensors = candle_core::safetensors::load(base.join("model.safetensors"), &Device::Cpu)?;
    let weights = Weights::fresh(seed);
    Vla::new(&weights, &config)?;
    for (name, var) in weights.trainable() {
        let fresh = var.as_tensor();
        let kept = match tensors.get(&name) {
            Some(own) if !OF_THE_ROBOT.iter().any(|of| name.starts_with(of)) => rows_of(own, fresh)?,
            _ => fresh.clone(),
        };
        tensors.insert(name, kept);
    }
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    let half = out.with_extension("half");
    folder::save(&half, &config, &tokenizer, robot, &tensors)?;
    std::fs::rename(&half, out).map_err(at(out))
}

/// `own` in the shape of `fresh`, whose rows follow where there are more of them.
fn rows_of(own: &Tensor, fresh: &Tensor) -> Result<Tensor> {
    let own = own.to_dtype(fresh.dtype())?;
    if own.shape() == fresh.shape() {
        return Ok(own);
    }
    let (had, has) = (own.dim(0)?, fresh.dim(0)?);
    Ok(match had < has {
        true => Tensor::cat(&[&own, &fresh.narrow(0, had, has - had)?], 0)?,
        false => own.narrow(0, 0, has)?,
    })
}

/// The tokenizer with the words of `sentences` behind its own; itself, if it knows them all.
fn with_words(own: &Tokenizer, sentences: &BTreeSet<String>) -> Result<Tokenizer> {
    let mut words: Vec<String> =
        (0..own.vocab_size() as u32).filter_map(|id| own.token(id)).skip(2).collect();
    let had = words.len();
    for sentence in sentences.iter().map(|sentence| sentence.to_lowercase()) {
        for word in sentence.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            if !word.is_empty() && !words.iter().any(|known| known == word) {
                words.push(word.to_owned());
            }
        }
    }
    if words.len() == had {
        return Ok(own.clone());
    }
    let grown = Tokenizer::word_level(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    if let Some(word) = words.iter().take(had).find(|word| grown.id(word) != own.id(word)) {
        let why =
            format!("expected a vocabulary of whole words behind two special ones, but '{word}' would move");
        return Err(Error::Parse { what: "tokenizer.json".into(), why });
    }
    Ok(grown)
}
