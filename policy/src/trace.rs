//! The stages of any checkpoint that we know on the inputs of a reference run.

use crate::act::Act;
use crate::diffusion_policy::DiffusionPolicy;
use crate::lerobot::Folder;
use crate::moment::statistics;
use crate::normalise::Normaliser;
use crate::openvla::OpenVla;
use crate::pi0::{self, Pi0};
use crate::rtc::{Guidance, Pull, Schedule};
use crate::smolvla::{self, SmolVla};
use crate::storage::Storage;
use crate::vla::{Vla, VlaConfig, VlaInputs, prefix_blocks};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_llm::trace::{config_json, input};
use vela_nn::{Error, Result};
use vela_vision::{PadSide, Planes};

const POLICIES: [&str; 6] = ["act", "diffusion", "openvla", "pi0", "pi05", "smolvla"];
const VLMS: [&str; 10] = vela_fusion::trace::KNOWN;
const TOWERS: [&str; 6] = ["clip", "dinov2", "dinov2_with_registers", "siglip", "siglip2", "vit"];

/// What was worked out, by the names of a reference run.
type Stages = BTreeMap<String, Tensor>;

/// Works out the `out.*` tensors of a reference run from its `in.*` tensors with the checkpoint in `dir`, by the
/// `type` or `model_type` of its `config.json`. Of the `out.*` in `golden` only the lengths of texts are read.
///
/// # Errors
/// An unknown kind of checkpoint, a checkpoint that does not load, an input that is missing.
pub fn trace(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    match policy(dir, golden, Storage::Plain)? {
        Some(stages) => Ok(stages),
        None => model(dir, golden),
    }
}

/// The same of a policy folder, its matrices kept as `storage` says; nothing for checkpoints of other kinds.
///
/// # Errors
/// A policy that does not load, an input that is missing.
pub fn policy(
    dir: &Path,
    golden: &HashMap<String, Tensor>,
    storage: Storage,
) -> Result<Option<BTreeMap<String, Tensor>>> {
    if vela_vision::trace::is_preprocessor(dir) {
        return Ok(None);
    }
    let config = config_json(dir)?;
    let kind = config.get("type").or(config.get("model_type")).and_then(serde_json::Value::as_str);
    Ok(Some(match kind.unwrap_or("absent") {
        "act" => act(dir, golden, storage)?,
        "diffusion" => diffusion(dir, golden, storage)?,
        "openvla" => openvla(dir, golden, storage)?,
        "pi0" | "pi05" => pi0(dir, golden, storage)?,
        "smolvla" => smolvla(dir, golden, storage)?,
        _ => return Ok(None),
    }))
}

fn model(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    if vela_vision::trace::is_preprocessor(dir) {
        return vela_vision::trace::preprocessing(dir, golden);
    }
    let config = config_json(dir)?;
    let kind = config.get("type").or(config.get("model_type")).and_then(serde_json::Value::as_str);
    match kind.unwrap_or("absent") {
        kind if VLMS.contains(&kind) => vela_fusion::trace::trace(dir, golden),
        kind if TOWERS.contains(&kind) => vela_vision::trace::trace(dir, &config, golden),
        kind if vela_llm::trace::known().any(|known| known == kind) => vela_llm::trace::trace(dir, golden),
        other => {
            let mut known = [&POLICIES[..], &VLMS[..], &TOWERS[..]].concat();
            known.extend(vela_llm::trace::known());
            known.sort_unstable();
            let known = known.join(", ");
            Err(Error::invalid(format!(
                "no reference comparison for checkpoints of type '{other}'; known: {known}"
            )))
        }
    }
}

/// The pictures of a reference run, one tensor per camera.
fn pictures(folder: &Folder, golden: &HashMap<String, Tensor>) -> Result<Vec<Tensor>> {
    folder.cameras()?.iter().map(|camera| input(golden, &format!("in.{}", camera.feature)).cloned()).collect()
}

/// Normalised actions `[1, t, dims]` and the same in physical units, under the names of a reference run.
fn actions(stages: &mut Stages, normalised: Tensor, scaling: &Normaliser) -> Result<()> {
    let rows = normalised.flatten(0, 1)?.to_vec2::<f32>()?;
    let physical: Vec<f32> =
        rows.iter().map(|row| scaling.unnormalise(row)).collect::<Result<Vec<_>>>()?.concat();
    stages.insert("out.actions".into(), Tensor::from_vec(physical, normalised.shape(), &Device::Cpu)?);
    stages.insert("out.actions_normalised".into(), normalised);
    Ok(())
}

fn act(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Stages> {
    let (folder, weights, network) = Act::open(dir, storage)?;
    let (_, scaling) = statistics(&folder, &weights)?;
    let mut stages = Stages::new();
    let pictures = pictures(&folder, golden)?;
    let state = input(golden, "in.observation.state")?;
    let normalised = network.forward(&pictures, Some(state), &mut |name, x| {
        // The reference keeps tokens before the batch.
        let tokens = ["encoder_in", "encoder_out", "decoder_out"].contains(&name);
        if let Ok(x) = if tokens { x.transpose(0, 1) } else { Ok(x.clone()) } {
            stages.insert(format!("out.{name}"), x);
        }
    })?;
    actions(&mut stages, normalised, &scaling)?;
    Ok(stages)
}

fn diffusion(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Stages> {
    let (folder, weights, network) = DiffusionPolicy::open(dir, storage)?;
    let (_, scaling) = statistics(&folder, &weights)?;
    let mut stages = Stages::new();
    let conditioning =
        network.condition(&pictures(&folder, golden)?, input(golden, "in.observation.state")?)?;
    let mut step_noise = |step: usize| Ok(input(golden, "in.step_noise")?.get(step)?);
    let chunk =
        network.sample(&conditioning, input(golden, "in.noise")?, &mut step_noise, &mut |k, said, x| {
            stages.insert(format!("out.model_output.{k}"), said.clone());
            stages.insert(format!("out.denoised.{k}"), x.clone());
        })?;
    stages.insert("out.global_cond".into(), conditioning);
    actions(&mut stages, network.from_now(&chunk)?, &scaling)?;
    Ok(stages)
}

fn openvla(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Stages> {
    let model = OpenVla::load(dir, storage)?;
    let mut stages = Stages::new();
    let pixels = input(golden, "in.pixel_values")?;
    model.towers_tapped(pixels, &mut |stage, x| {
        stages.insert(format!("out.{stage}"), x.clone());
    })?;
    let seen = model.see(pixels)?;
    let features = model.project(&seen)?;
    let ids = input(golden, "in.input_ids")?.to_dtype(DType::U32)?;
    let embeds = model.embed(&ids, &features)?;
    vela_llm::trace::stages_of(model.decoder(), &embeds, "out.", golden, &mut stages)?;
    stages.insert("out.merged_embeddings".into(), embeds);
    stages.insert("out.vision_hidden".into(), seen);
    stages.insert("out.image_features".into(), features);
    if let Some(said) = stages.get("out.generated") {
        let tokens = said.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        let values = model.values(&tokens);
        let dataset = model.datasets().next().unwrap_or_default().to_owned();
        let physical: Vec<f32> =
            model.ranges(&dataset)?.physical(&values).iter().map(|x| *x as f32).collect();
        stages.insert("out.actions_normalised".into(), Tensor::new(values, &Device::Cpu)?);
        stages.insert("out.actions".into(), Tensor::new(physical, &Device::Cpu)?);
    }
    Ok(stages)
}

/// A VLA with a flow head: its parts, where it pads, and numbers per action before padding.
struct Parts<'a> {
    vla: &'a Vla,
    config: &'a VlaConfig,
    pad: PadSide,
    actions: usize,
}

fn smolvla(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Stages> {
    let model = SmolVla::load(dir, storage)?;
    flow(&Parts { vla: &model.vla, config: &model.config, pad: smolvla::PAD, actions: model.actions }, golden)
}

fn pi0(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Stages> {
    let model = Pi0::load(dir, storage)?;
    flow(&Parts { vla: &model.vla, config: &model.config, pad: pi0::PAD, actions: model.actions }, golden)
}

fn flow(model: &Parts, golden: &HashMap<String, Tensor>) -> Result<Stages> {
    let size = model.config.vision.image_size;
    let mut pictures = Vec::new();
    for camera in &model.config.cameras {
        let seen = input(golden, &format!("in.observation.images.{camera}"))?.squeeze(0)?;
        let mut planes = Planes::from_tensor(&seen)?.resize_with_pad(size, size, model.pad, 0.0);
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
    let blocks = prefix_blocks(length, model.vla.state_place()).into_iter().map(i64::from).collect();
    stages.insert("out.prefix_att_mask".into(), integers(blocks)?);
    stages.extend(embeddings.map(|x| ("out.prefix_embeddings".to_owned(), x)));

    let noise = input(golden, "in.noise")?;
    let start = Tensor::ones(1, DType::F32, &Device::Cpu)?;
    let mut suffix = model.vla.expert().embed(noise, &start)?;
    if let Some(state) = prefix.state_token() {
        suffix = Tensor::cat(&[state, &suffix], 1)?;
    }
    stages.insert("out.suffix_embeddings".into(), suffix);
    stages.extend(model.vla.expert().condition(&start)?.map(|x| ("out.suffix_cond".to_owned(), x)));
    let sampled = model.vla.sample(&prefix, noise, &mut |step, x, velocity| {
        stages.insert(format!("out.x.{step}"), x.clone());
        stages.insert(format!("out.velocity.{step}"), velocity.clone());
    })?;
    actions(&mut stages, sampled.narrow(2, 0, model.actions)?.contiguous()?, &model.config.action)?;

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
            pull: Pull::Straight,
        };
        let guided = model.vla.sample_guided(&prefix, noise, Some(&guidance), &mut |_, _, _| {})?;
        let guided = guided.narrow(2, 0, model.actions)?.contiguous()?;
        stages.insert("out.rtc.actions_normalised".into(), guided);
    }
    Ok(stages)
}
