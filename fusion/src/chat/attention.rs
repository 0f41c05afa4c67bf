//! What an answer looked at: the attention with which its tokens were chosen, as a map over each picture.
//!
//! The finished conversation is read once more, past the engine and its caches, and the softmax of the decoder's own
//! queries and keys is worked out where the answer's tokens were chosen: at the last position of the prompt for the
//! first of them, at each token of the answer for the next. The mean over those positions, all layers and all query
//! heads is what is told; cross-attention is no part of it.

use super::{ChatModel, ChatPrompt};
use crate::Sight;
use crate::chat::places::Area;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use vela_llm::engine::PromptItem;
use vela_llm::{Attend, KeyValues, Lora};
use vela_nn::attention::split_heads;
use vela_nn::{Error, Mask, Result};

/// Queries whose scores are held at once.
const BLOCK: usize = 64;

/// What an answer looked at in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureAttention {
    /// How much of its attention the picture's tokens had, of 1.
    pub share: f32,
    /// Rows and columns of `weights`.
    pub grid: [usize; 2],
    /// What of the picture the grid covers.
    pub area: Area,
    /// How much each cell had, row by row. They add up to `share`, but for tokens that only end a row.
    pub weights: Vec<f32>,
}

impl ChatModel {
    /// What the answer `answer` to `prompt` looked at in each of the prompt's pictures, in order. Costs as much as
    /// reading both without any cache.
    ///
    /// # Errors
    /// Image tokens that have no places in the picture (a Q-Former's).
    pub fn attention(
        &self,
        prompt: &ChatPrompt,
        answer: &[u32],
        adapter: Option<&Lora>,
    ) -> Result<Vec<PictureAttention>> {
        // The last token chose nothing any more.
        let chosen = answer.split_last().map_or(answer, |(_, before)| before);
        let means = self.means(prompt, chosen, adapter)?;
        let (mut rows, mut told) = (picture_rows(prompt).into_iter().flatten(), Vec::new());
        for seen in &prompt.pictures {
            let weights: Vec<f32> = rows.by_ref().take(seen.room.tokens).map(|at| means[at]).collect();
            let Some(places) = &seen.places else {
                return Err(Error::invalid("this model's image tokens have no places in the picture"));
            };
            let (share, grid, area) = (weights.iter().sum(), places.grid, places.area);
            told.push(PictureAttention { share, grid, area, weights: places.spread(&weights) });
        }
        Ok(told)
    }

    /// The mean attention that each position has from the last of the prompt and all of `after`; they add up to 1.
    fn means(&self, prompt: &ChatPrompt, after: &[u32], adapter: Option<&Lora>) -> Result<Vec<f32>> {
        let decoder = self.decoder();
        let mut parts = Vec::new();
        let embedded = |ids: &[u32]| decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?);
        let mut ids: Vec<u32> = Vec::new();
        for item in &prompt.items {
            match item {
                PromptItem::Token(id) => ids.push(*id),
                PromptItem::Embeds { rows, .. } => {
                    if !ids.is_empty() {
                        parts.push(embedded(&std::mem::take(&mut ids))?);
                    }
                    parts.push(rows.unsqueeze(0)?);
                }
            }
        }
        ids.extend(after);
        if !ids.is_empty() {
            parts.push(embedded(&ids)?);
        }
        let embeds = Tensor::cat(&parts, 1)?;
        let all = embeds.dim(1)?;
        let Some(first) = all.checked_sub(after.len() + 1) else {
            return Err(Error::invalid("prompt: expected at least one token, got none"));
        };
        let read: Vec<bool> = (0..all).map(|at| at < prompt.whole).collect();
        let mask = if prompt.whole > 0 { Sight::prefix(&read, None)?.full } else { Mask::Causal };
        let positions = positions(prompt, all)?;
        let mut watch = Watch { first, sums: vec![0.0; all], rows: 0 };
        match adapter {
            Some(adapter) => decoder.forward_beside(&embeds, &positions, &mask, &mut watch, adapter)?,
            None => decoder.forward(&embeds, &positions, &mask, &mut watch)?,
        };
        let rows = watch.rows.max(1) as f64;
        Ok(watch.sums.iter().map(|sum| (sum / rows) as f32).collect())
    }
}

/// The positions of each stretch of picture rows.
fn picture_rows(prompt: &ChatPrompt) -> Vec<Range<usize>> {
    let (mut at, mut stretches) = (0, Vec::new());
    for item in &prompt.items {
        match item {
            PromptItem::Token(_) => at += 1,
            PromptItem::Embeds { rows, .. } => {
                let count = rows.dims().first().copied().unwrap_or(0);
                stretches.push(at..at + count);
                at += count;
            }
        }
    }
    stretches
}

/// As the engine counts: `[all]`, or `[3, 1, all]` if the prompt has axes, on which an answer goes on from the furthest.
fn positions(prompt: &ChatPrompt, all: usize) -> Result<Tensor> {
    let Some(axes) = &prompt.axes else { return Ok(Tensor::arange(0, all as u32, &Device::Cpu)?) };
    let next = axes.iter().flatten().max().map_or(0, |most| most + 1);
    let more = (0..all.saturating_sub(axes.len()) as u32).map(|at| [next + at; 3]);
    let places: Vec<[u32; 3]> = axes.iter().copied().chain(more).collect();
    let flat = (0..3).flat_map(|axis| places.iter().map(move |place| place[axis])).collect();
    Ok(Tensor::from_vec(flat, (3, 1, places.len()), &Device::Cpu)?)
}

/// A whole sequence read at once, nothing kept but how its last queries attended.
struct Watch {
    /// The first position that is watched.
    first: usize,
    /// By position, over layers, heads and watched queries.
    sums: Vec<f64>,
    /// So many of these.
    rows: usize,
}

impl KeyValues for Watch {
    fn attend(
        &mut self,
        _layer: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &Attend,
    ) -> Result<Tensor> {
        let (all, heads) = (q.dim(1)?, rule.heads.query);
        for from in (self.first..all).step_by(BLOCK) {
            let rows = BLOCK.min(all - from);
            let found = probabilities(&q.narrow(1, from, rows)?.contiguous()?, &keys, rule, from)?;
            for row in found.chunks(all) {
                self.sums.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
            }
            self.rows += rows * heads;
        }
        rule.apply(q, &keys, &values)
    }

    fn store(&mut self, _layer: usize, _keys: Tensor, _values: Tensor) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> usize {
        0
    }
}

/// The softmax with which queries `[1, rows, heads * d]` at the positions from `first` on look at keys
/// `[1, s, kv_heads * d]`: `[heads, rows, s]`, each row adding up to 1. What comes after a query is not seen: these are
/// the last of a prompt and its answer, which is causal whatever the prompt's mask is.
fn probabilities(q: &Tensor, keys: &Tensor, rule: &Attend, first: usize) -> Result<Vec<f32>> {
    if rule.bias.is_some() {
        return Err(Error::invalid("attention maps: scores with a bias are not supported"));
    }
    let float = |x: &Tensor, heads: usize| -> Result<Tensor> {
        Ok(split_heads(&x.to_dtype(DType::F32)?, heads)?.squeeze(0)?.contiguous()?)
    };
    let (q, keys) = (float(q, rule.heads.query)?, float(keys, rule.heads.key)?);
    let ((heads, rows, d), (kv_heads, s, _)) = (q.dims3()?, keys.dims3()?);
    let grouped = q.reshape((kv_heads, heads / kv_heads.max(1) * rows, d))?;
    let mut scores: Vec<f32> = grouped.matmul(&keys.t()?.contiguous()?)?.flatten_all()?.to_vec1()?;
    for (at, row) in scores.chunks_mut(s).enumerate() {
        let end = (first + at % rows + 1).min(s);
        let start = rule.window.map_or(0, |size| end.saturating_sub(size));
        let bounded = |score: f32| match rule.soft_cap {
            Some(cap) => cap * (score * rule.scale / cap).tanh(),
            None => score * rule.scale,
        };
        row[..start].fill(0.0);
        row[end..].fill(0.0);
        let seen = &mut row[start..end];
        seen.iter_mut().for_each(|score| *score = bounded(*score));
        let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        seen.iter_mut().for_each(|score| *score = (*score - most).exp());
        let sum: f32 = seen.iter().sum();
        seen.iter_mut().for_each(|p| *p /= sum);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_nn::{Heads, oracle};

    fn draw(seed: u64, shape: (usize, usize, usize)) -> Result<Tensor> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..shape.0 * shape.1 * shape.2).map(|_| next()).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    #[test]
    fn each_row_is_the_softmax_of_queries_and_keys_and_adds_up_to_one() -> Result<()> {
        let (s, rows, heads) = (9, 4, Heads { query: 6, key: 2 });
        let (q, keys) = (draw(1, (1, rows, 6 * 5))?, draw(2, (1, s, 2 * 5))?);
        for (soft_cap, window) in [(None, None), (Some(0.3), None), (None, Some(3))] {
            let mask = Mask::Causal;
            let rule = Attend { heads, scale: 1.7, soft_cap, window, bias: None, mask: &mask };
            let got = probabilities(&q, &keys, &rule, s - rows)?;
            assert_eq!(got.len(), 6 * rows * s);
            assert!(got.chunks(s).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
            // Attention over the unit vectors gives the probabilities themselves.
            let unit = Tensor::eye(s, DType::F32, &Device::Cpu)?.expand((1, 2, s, s))?.contiguous()?;
            let mask = window.map_or(Mask::Causal, |size| Mask::Window { size });
            let (q, keys) = (split_heads(&q, 6)?, split_heads(&keys, 2)?);
            let want = oracle::attention(&q, &keys, &unit, &mask, 1.7, soft_cap)?;
            let want: Vec<f32> = want.flatten_all()?.to_vec1()?;
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{soft_cap:?} {window:?}: {worst}");
        }
        Ok(())
    }
}
