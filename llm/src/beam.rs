//! Beam search with a length penalty (Wu et al., arXiv:1609.08144, in Hugging Face's form: score = log-probability /
//! length^penalty).

use crate::sampling::{largest, log_softmax};
use crate::{Cache, Decoder};
use candle_core::{Device, Tensor};
use vela_nn::{Error, Mask, Result};

/// How to search.
#[derive(Clone, Debug, PartialEq)]
pub struct BeamOptions {
    /// Hypotheses kept.
    pub beams: usize,
    /// At most so many new tokens.
    pub max_tokens: usize,
    /// Power of the length that log-probabilities are divided by: above 0 favours longer texts.
    pub length_penalty: f32,
    /// Tokens that end a hypothesis; they count for its score and are not given out.
    pub stop_tokens: Vec<u32>,
}

/// A text that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The sum of their log-probabilities, that of the stop token included.
    pub logprob: f32,
    /// What it is ranked by.
    pub score: f32,
}

/// The best hypotheses after `prompt`, best first, at most `beams`. Ends when no running hypothesis can still beat the
/// finished ones, or at `max_tokens`.
///
/// # Errors
/// No prompt, no beams, no tokens; an id out of range; logits that are not finite.
pub fn search(decoder: &Decoder, prompt: &[u32], options: &BeamOptions) -> Result<Vec<Hypothesis>> {
    search_from(decoder, Cache::new(), prompt, options)
}

/// The same after what `cache` holds, which may be the memory of what an encoder read.
///
/// # Errors
/// As [`search`].
pub fn search_from(
    decoder: &Decoder,
    mut cache: Cache,
    prompt: &[u32],
    options: &BeamOptions,
) -> Result<Vec<Hypothesis>> {
    let BeamOptions { beams, max_tokens, .. } = *options;
    if prompt.is_empty() || beams == 0 || max_tokens == 0 {
        let length = prompt.len();
        return Err(Error::invalid(format!(
            "beam search: expected a prompt, beams and tokens to make, got {length}, {beams} and {max_tokens}"
        )));
    }
    let vocab = decoder.config().vocab;
    if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::invalid(format!("token id {id} is out of range; the model has {vocab}")));
    }
    let score = |logprob: f32, length: usize| logprob / (length as f32).powf(options.length_penalty);
    let mut rows = read(decoder, &mut cache, &Tensor::new(prompt, &Device::Cpu)?.unsqueeze(0)?)?;
    let mut running = vec![Hypothesis { tokens: Vec::new(), logprob: 0.0, score: 0.0 }];
    let mut finished: Vec<Hypothesis> = Vec::new();
    for length in 1..=max_tokens {
        let mut next: Vec<(usize, u32, f32)> = Vec::new();
        for (parent, logits) in rows.iter().enumerate() {
            let so_far = running.get(parent).map_or(0.0, |h| h.logprob);
            // Stop tokens must not push out the ones that go on.
            let enough = beams + options.stop_tokens.len();
            for (token, logprob) in largest(&log_softmax(logits)?, enough) {
                next.push((parent, token, so_far + logprob));
            }
        }
        next.sort_by(|a, b| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1))));
        let mut kept: Vec<(usize, Hypothesis)> = Vec::with_capacity(beams);
        for (rank, (parent, token, logprob)) in next.into_iter().enumerate() {
            let mut tokens = running.get(parent).map(|h| h.tokens.clone()).unwrap_or_default();
            let stops = options.stop_tokens.contains(&token);
            if !stops {
                tokens.push(token);
            }
            let made = Hypothesis { tokens, logprob, score: score(logprob, length) };
            if !stops {
                kept.push((parent, made));
            } else if rank < beams {
                finished.push(made);
            }
            if kept.len() == beams {
                break;
            }
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams);
        let parents: Vec<u32> = kept.iter().map(|(parent, _)| *parent as u32).collect();
        running = kept.into_iter().map(|(_, made)| made).collect();
        // A running hypothesis only loses probability; its score is best now or, with a penalty above 0, at full length.
        let longest = if options.length_penalty > 0.0 { max_tokens } else { length };
        let hope = running.first().map_or(f32::NEG_INFINITY, |h| score(h.logprob, longest));
        let done = finished.len() == beams && finished.last().is_some_and(|worst| worst.score >= hope);
        if length == max_tokens || done || running.is_empty() {
            break;
        }
        cache = cache.select(&Tensor::new(parents, &Device::Cpu)?)?;
        let newest: Vec<u32> = running.iter().filter_map(|h| h.tokens.last().copied()).collect();
        rows = read(decoder, &mut cache, &Tensor::new(newest, &Device::Cpu)?.unsqueeze(1)?)?;
    }
    finished.extend(running);
    finished.sort_by(|a, b| b.score.total_cmp(&a.score));
    finished.truncate(beams);
    Ok(finished)
}

/// Reads `ids [b, t]` on; logits `[vocab]` after the last, per row.
fn read(decoder: &Decoder, cache: &mut Cache, ids: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, length) = ids.dims2()?;
    let start = cache.len() as u32;
    let positions = Tensor::arange(start, start + length as u32, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(ids)?, &positions, &Mask::Causal, cache)?;
    let last = hidden.narrow(1, length - 1, 1)?.contiguous()?;
    Ok(decoder.logits(&decoder.normalise(&last)?)?.squeeze(1)?.to_vec2::<f32>()?)
}
