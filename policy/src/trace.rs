//! The stages of any checkpoint that we know on the inputs of a reference run.

use crate::rtc::{Guidance, Schedule};
use crate::smolvla::{PAD, SmolVla};
use crate::vla::{VlaInputs, prefix_blocks};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_llm::trace::{config_json, input};
use vela_nn::{Error, Result};
use vela_vision::Planes;

/// Works out the `out.*` tensors of a reference run from its `in.*` tensors with the checkpoint in `dir`, by the
/// `type` or `model_type` of its `config.json`. Of the `out.*` in `golden` only the lengths of texts are read.
///
/// # Errors
/// An unknown kind of checkpoint, a checkpoint that does not load, an input that is missing.
pub fn trace(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let config = config_json(dir)?;
    let kind = config.get("type").or(config.get("model_type")).and_then(serde_json::Value::as_str);
    match kind.unwrap_or("absent") {
        "siglip" => vela_vision::trace::trace(dir, &config, golden),
        "llama" => vela_llm::trace::trace(dir, golden),
        "smolvlm" | "idefics3" => vela_fusion::trace::trace(dir, golden),
        "smolvla" => smolvla(dir, golden),
        other => {
            let known = "idefics3, llama, siglip, smolvla, smolvlm";
            Err(Error::invalid(format!(
                "no reference comparison for checkpoints of type '{other}'; known: {known}"
            )))
        }
    }
}

fn smolvla(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let model = SmolVla::load(dir)?;
    let size = model.config.vision.image_size;
    let mut pictures = Vec::new();
    for camera in &model.config.cameras {
        let seen = input(golden, &format!("in.observation.images.{camera}"))?.squeeze(0)?;
        let mut planes = Planes::from_tensor(&seen)?.resize_with_pad(size, size, PAD, 0.0);
        planes.to_signed_range();
        pictures.push(planes);
    }
    let real =
        input(golden, "in.observation.language.attention_mask")?.flatten_all()?.to_dtype(DType::U32)?;
    let state = input(golden, "in.observation.state")?;
    let pad = model.config.state_dims.saturating_sub(state.dim(1)?);
    let inputs = VlaInputs {
        frames: Planes::stack(&pictures, &Device::Cpu)?.unsqueeze(0)?,
        words: input(golden, "in.observation.language.tokens")?.to_dtype(DType::U32)?,
        word_valid: real.to_vec1::<u32>()?.iter().map(|real| *real != 0).collect(),
        state: state.pad_with_zeros(1, 0, pad)?,
    };
    let mut stages = BTreeMap::new();
    let mut embeddings = None;
    let prefix = model.vla.prefix_tapped(&inputs, &mut |name, x| {
        if name == "prefix_embeddings" {
            embeddings = Some(x.clone());
        } else if let Ok(first) = x.narrow(0, 0, 1) {
            // References keep those of the first camera.
            stages.insert(format!("out.{name}"), first);
        }
    })?;
    let length = prefix.valid().len();
    let integers =
        |values: Vec<i64>| -> Result<Tensor> { Ok(Tensor::from_vec(values, (1, length), &Device::Cpu)?) };
    stages.insert(
        "out.prefix_pad_mask".into(),
        integers(prefix.valid().iter().map(|v| i64::from(*v)).collect())?,
    );
    let blocks = prefix_blocks(length).into_iter().map(i64::from).collect();
    stages.insert("out.prefix_att_mask".into(), integers(blocks)?);
    stages.extend(embeddings.map(|x| ("out.prefix_embeddings".to_owned(), x)));

    let noise = input(golden, "in.noise")?;
    let start = Tensor::ones(1, DType::F32, &Device::Cpu)?;
    stages.insert("out.suffix_embeddings".into(), model.vla.expert().embed(noise, &start)?);
    let actions = model.vla.sample(&prefix, noise, &mut |step, x, velocity| {
        stages.insert(format!("out.x.{step}"), x.clone());
        stages.insert(format!("out.velocity.{step}"), velocity.clone());
    })?;
    let actions = actions.narrow(2, 0, model.actions)?.contiguous()?;
    let rows = actions.flatten(0, 1)?.to_vec2::<f32>()?;
    let physical: Vec<f32> =
        rows.iter().map(|row| model.config.action.unnormalise(row)).collect::<Result<Vec<_>>>()?.concat();
    stages.insert("out.actions".into(), Tensor::from_vec(physical, actions.shape(), &Device::Cpu)?);
    stages.insert("out.actions_normalised".into(), actions);

    if let Some(left_over) = golden.get("in.rtc.prev_chunk_left_over") {
        let number = |name: &str| -> Result<f64> {
            Ok(input(golden, name)?.flatten_all()?.to_dtype(DType::F64)?.get(0)?.to_scalar()?)
        };
        let guidance = Guidance {
            left_over: left_over.clone(),
            delay: number("in.rtc.inference_delay")? as usize,
            execution_horizon: number("in.rtc.execution_horizon")? as usize,
            schedule: Schedule::Exp,
            max_weight: number("in.rtc.max_guidance_weight")?,
        };
        let guided = model.vla.sample_guided(&prefix, noise, Some(&guidance), &mut |_, _, _| {})?;
        let guided = guided.narrow(2, 0, model.actions)?.contiguous()?;
        stages.insert("out.rtc.actions_normalised".into(), guided);
    }
    Ok(stages)
}
