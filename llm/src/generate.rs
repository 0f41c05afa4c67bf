//! Text, token by token.

use crate::{Cache, Decoder};
use candle_core::{Device, Tensor};
use vela_nn::{Error, Mask, Result};

/// Reads `embeds [1, t, width]` and goes on greedily for `count` tokens, or until one of `stop`, which is the last
/// token then. Returns the new tokens.
///
/// # Errors
/// Nothing to read; logits that are not finite.
pub fn greedy(decoder: &Decoder, embeds: &Tensor, count: usize, stop: &[u32]) -> Result<Vec<u32>> {
    let mut cache = Cache::new();
    let mut embeds = embeds.clone();
    let mut made = Vec::with_capacity(count);
    while made.len() < count {
        let (_, length, _) = embeds.dims3()?;
        let start = cache.len() as u32;
        let positions = Tensor::arange(start, start + length as u32, &Device::Cpu)?;
        let hidden = decoder.forward(&embeds, &positions, &Mask::Causal, &mut cache)?;
        let last = hidden.narrow(1, length - 1, 1)?.contiguous()?;
        let logits = decoder.logits(&decoder.normalise(&last)?)?.flatten_all()?.to_vec1::<f32>()?;
        let next = best(&logits)?;
        made.push(next);
        if stop.contains(&next) {
            break;
        }
        embeds = decoder.embed(&Tensor::new(&[[next]], &Device::Cpu)?)?;
    }
    Ok(made)
}

/// The index of the largest logit; the first of equals.
pub fn best(logits: &[f32]) -> Result<u32> {
    if logits.iter().any(|x| !x.is_finite()) {
        return Err(Error::invalid("logits: expected finite numbers, got a NaN or an infinity"));
    }
    let first_best = |best: Option<(usize, f32)>, (i, &x): (usize, &f32)| match best {
        Some((_, y)) if x <= y => best,
        _ => Some((i, x)),
    };
    let best = logits.iter().enumerate().fold(None, first_best);
    best.map(|(i, _)| i as u32).ok_or_else(|| Error::invalid("logits: expected at least one, got none"))
}
