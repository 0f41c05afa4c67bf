//! Moments to the tensors of one shard.

use crate::auxiliary::Labels;
use crate::data::{grounding, patch_classes, patch_offsets};
use crate::error::{Error, Result};
use crate::lesson::Example;
use rand_chacha::ChaCha8Rng;
use vela_llm::Tokenizer;
use vela_nn::{Device, Tensor};
use vela_policy::vla::signed_planes;
use vela_policy::{VlaConfig, VlaInputs};

/// What one shard of a step reads.
pub struct Lot {
    /// What the network sees.
    pub inputs: VlaInputs,
    /// What the expert did, normalised, `[b, horizon, dims]`.
    pub actions: Tensor,
    /// `[b * draws, horizon, dims]`
    pub noise: Tensor,
    /// `[b * draws]`
    pub times: Tensor,
    /// What the auxiliary heads are asked.
    pub labels: Labels,
}

/// The expert's targets relative to the measured joints, `[horizon][joints]`, rad or m.
pub fn deltas(example: &Example) -> Vec<Vec<f32>> {
    let joints = example.state.len();
    let row = |targets: &[f32]| targets.iter().zip(&example.state).map(|(a, q)| a - q).collect();
    example.actions.chunks_exact(joints.max(1)).map(row).collect()
}

/// Puts `moments` together and draws noise and flow times for each.
///
/// # Errors
/// An unknown word, or lessons of another size than the network.
pub fn lot(
    config: &VlaConfig,
    tokenizer: &Tokenizer,
    moments: &[(&str, &Example)],
    draws: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Lot> {
    let (b, size, cameras) = (moments.len(), config.vision.image_size, config.cameras.len());
    let (horizon, dims) = (config.horizon, config.expert.action_dims);
    let sentences: Vec<Vec<u32>> = moments
        .iter()
        .map(|(sentence, _)| Ok(tokenizer.encode(&format!("{sentence}{}", config.prompt_suffix))?))
        .collect::<Result<_>>()?;
    let words = sentences.iter().map(Vec::len).max().unwrap_or(0);
    let (mut pixels, mut ids, mut word_valid) = (Vec::new(), Vec::new(), Vec::new());
    let (mut state, mut actions) = (Vec::new(), Vec::new());
    let (mut patches, mut cells) = (Vec::new(), Vec::new());
    let (mut offsets, mut offset_mask) = (Vec::new(), Vec::new());
    let (mut positions, mut position_mask) = (Vec::new(), Vec::new());
    let cell = config.vision.patch_size * config.projector.shuffle;
    for ((_, example), sentence) in moments.iter().zip(&sentences) {
        if example.frames.len() != cameras * size * size * 3
            || example.actions.len() != horizon * example.state.len()
        {
            return Err(Error::Parse {
                what: "lesson".into(),
                why: format!("expected {cameras} pictures of {size} x {size} and {horizon} actions"),
            });
        }
        for picture in example.frames.chunks_exact(size * size * 3) {
            signed_planes(picture, &mut pixels);
        }
        ids.extend(sentence.iter().copied().chain(std::iter::repeat_n(0, words - sentence.len())));
        word_valid.extend((0..words).map(|k| k < sentence.len()));
        let mut joints = config.state.normalise(&example.state)?;
        joints.resize(config.state_dims, 0.0);
        state.extend(joints);
        for row in deltas(example) {
            let mut row = config.action.normalise(&row)?;
            row.resize(dims, 0.0);
            actions.extend(row);
        }
        patches.extend(patch_classes(&example.labels, size, config.vision.patch_size));
        for (offset, counts) in patch_offsets(&example.labels, size, config.vision.patch_size) {
            offsets.extend(offset);
            offset_mask.extend([counts; 2]);
        }
        let [first, second] = grounding(&example.labels, size, cell);
        cells.extend(first.into_iter().zip(second).flat_map(|(a, b)| [a, b]));
        positions.extend_from_slice(&example.truth[..6]);
        let there = example.truth[6];
        position_mask.extend([1.0, 1.0, 1.0, there, there, there]);
    }
    let cpu = &Device::Cpu;
    let tokens = cells.len() / (2 * b.max(1));
    let (count, per_picture) = (patches.len(), config.vision.patches());
    let noise = config.flow.draw_noise(b * draws * horizon * dims, rng);
    let times = config.flow.draw_times(b * draws, rng)?;
    Ok(Lot {
        inputs: VlaInputs {
            frames: Tensor::from_vec(pixels, vec![b, cameras, 3, size, size], cpu)?,
            words: Tensor::from_vec(ids, (b, words), cpu)?,
            word_valid,
            state: Tensor::from_vec(state, (b, config.state_dims), cpu)?,
        },
        actions: Tensor::from_vec(actions, (b, horizon, dims), cpu)?,
        noise: Tensor::from_vec(noise, (b * draws, horizon, dims), cpu)?,
        times: Tensor::from_vec(times, b * draws, cpu)?,
        labels: Labels {
            patches: Tensor::from_vec(patches, count, cpu)?,
            offsets: Tensor::from_vec(offsets, (b * cameras, per_picture, 2), cpu)?,
            offset_mask: Tensor::from_vec(offset_mask, (b * cameras, per_picture, 2), cpu)?,
            grounding: Tensor::from_vec(cells, (b, tokens, 2), cpu)?,
            positions: Tensor::from_vec(positions, (b, 6), cpu)?,
            position_mask: Tensor::from_vec(position_mask, (b, 6), cpu)?,
        },
    })
}
