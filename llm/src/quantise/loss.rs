//! How well a decoder foresees a text.

use crate::decoder::Beside;
use crate::sampling::log_softmax;
use crate::{Cache, Decoder, Tokenizer};
use candle_core::{Device, Tensor};
use vela_nn::{Error, Mask, Result};

/// Positions whose logits are worked out at once: bounds the memory that a large vocabulary takes.
const AT_ONCE: usize = 64;

/// A text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What the tokenizer begins every text with.
    pub start: Vec<u32>,
    /// The text itself.
    pub ids: Vec<u32>,
}

impl Sample {
    /// A text through a model's tokenizer.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn read(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        Ok(Self { start: tokenizer.encode("")?, ids: tokenizer.encode_rendered(text)? })
    }
}

/// A text cut into windows, each read by itself.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    pub all: Vec<Vec<u32>>,
}

impl Windows {
    /// Windows of at most `length` tokens; one with nothing to foresee is left out.
    pub fn new(start: &[u32], ids: &[u32], length: usize) -> Self {
        let room = length.saturating_sub(start.len()).max(2);
        let window = |part: &[u32]| [start, part].concat();
        Self { all: ids.chunks(room).filter(|part| part.len() > 1).map(window).collect() }
    }

    pub fn tokens(&self) -> usize {
        self.all.iter().map(Vec::len).sum()
    }
}

/// One window through a decoder: the last layer's output, `[1, t, width]`.
pub(super) fn pass(decoder: &Decoder, ids: &[u32], beside: Option<&dyn Beside>) -> Result<Tensor> {
    let positions = Tensor::arange(0, ids.len() as u32, &Device::Cpu)?;
    let embeds = decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
    let mut cache = Cache::new();
    match beside {
        Some(beside) => decoder.forward_beside(&embeds, &positions, &Mask::Causal, &mut cache, beside),
        None => decoder.forward(&embeds, &positions, &Mask::Causal, &mut cache),
    }
}

/// The mean negative log-likelihood of a token given those before it in its window, in nats.
///
/// # Errors
/// No window; logits that are not finite.
pub(super) fn mean_nll(
    decoder: &Decoder,
    windows: &Windows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for (done, window) in windows.all.iter().enumerate() {
        progress(done, windows.all.len());
        let hidden = pass(decoder, window, None)?;
        let foreseen = window.len().saturating_sub(1);
        for start in (0..foreseen).step_by(AT_ONCE) {
            let part = hidden.narrow(1, start, AT_ONCE.min(foreseen - start))?.contiguous()?;
            let logits = decoder.logits(&decoder.normalise(&part)?)?.squeeze(0)?.to_vec2::<f32>()?;
            for (logits, next) in logits.iter().zip(window.iter().skip(start + 1)) {
                let next = log_softmax(logits)?.get(*next as usize).copied();
                sum -= f64::from(next.ok_or_else(|| Error::invalid("a token of the text is out of range"))?);
                count += 1;
            }
        }
    }
    if count == 0 {
        return Err(Error::invalid("the text is too short to tell how well the model foresees it"));
    }
    Ok(sum / count as f64)
}
