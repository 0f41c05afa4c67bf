//! Text, token by token: one sequence and its cache ([`Session`]), the loop over it ([`run`]), and what a person reads
//! ([`write`]). Many sequences at once are [`crate::engine`]'s business.

mod best;
mod session;
mod steps;
mod stop;
mod text;

pub use crate::sampling::best;
pub use best::{best_of, vote};
pub use session::Session;
pub use steps::{Finish, Options, Steps, run};
pub use stop::StopStrings;
pub use text::{Written, write};

use crate::{Cache, Decoder};
use candle_core::{Device, Tensor};
use vela_nn::{Mask, Result};

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
