//! Actions as words: a decoder goes on from a prompt with the last tokens of its vocabulary, one per number (RT-2,
//! <https://arxiv.org/abs/2307.15818>; OpenVLA, <https://arxiv.org/abs/2406.09246>). Any VLM of ours can be trained so: the
//! conditioning is its prompt, pictures spliced in, as embeddings.

use crate::head::Head;
use crate::tokens::{TailBins, draw};
use candle_core::{Device, Tensor};
use rand::RngCore;
use vela_llm::{Cache, Decoder};
use vela_nn::{Error, Mask, Result, cross_entropy};

/// A decoder that says actions.
#[derive(Clone, Debug)]
pub struct Rt2Head {
    decoder: Decoder,
    bins: TailBins,
    horizon: usize,
    dims: usize,
    temperature: f64,
}

impl Rt2Head {
    /// Chunks of `horizon` actions of `dims` numbers. Temperature 0 takes the likeliest token.
    ///
    /// # Errors
    /// Action tokens outside the decoder's vocabulary.
    pub fn new(
        decoder: Decoder,
        bins: TailBins,
        horizon: usize,
        dims: usize,
        temperature: f64,
    ) -> Result<Self> {
        if bins.vocab as usize > decoder.config().vocab || horizon * dims == 0 {
            let (needed, vocab) = (bins.vocab, decoder.config().vocab);
            return Err(Error::invalid(format!("action tokens up to {needed} of a vocabulary of {vocab}")));
        }
        Ok(Self { decoder, bins, horizon, dims, temperature })
    }

    /// Logits after each of `embeds [b, t, width]`, whose first is at position `start`.
    fn logits(&self, embeds: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let start = cache.len() as u32;
        let positions = Tensor::arange(start, start + embeds.dim(1)? as u32, &Device::Cpu)?;
        let hidden = self.decoder.forward(embeds, &positions, &Mask::Causal, cache)?;
        self.decoder.logits(&self.decoder.normalise(&hidden)?)
    }
}

impl Head for Rt2Head {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        let (b, prompt, _) = conditioning.dims3()?;
        let count = self.horizon * self.dims;
        let values = actions.flatten_all()?.to_vec1::<f32>()?;
        if values.len() != b * count {
            return Err(Error::shape(
                "actions",
                format!("[{b}, {}, {}]", self.horizon, self.dims),
                actions.dims(),
            ));
        }
        let tokens: Vec<u32> = values.iter().map(|x| self.bins.token(*x)).collect();
        let tokens = Tensor::from_vec(tokens, (b, count), &Device::Cpu)?;
        // What has been said is read; the last token is only to be guessed.
        let said = self.decoder.embed(&tokens.narrow(1, 0, count - 1)?.contiguous()?)?;
        let embeds = if count > 1 { Tensor::cat(&[conditioning, &said], 1)? } else { conditioning.clone() };
        let logits = self.logits(&embeds, &mut Cache::new())?;
        cross_entropy(&logits.narrow(1, prompt - 1, count)?.contiguous()?, &tokens, None)
    }

    /// Only action tokens are said.
    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let (b, count) = (conditioning.dim(0)?, self.horizon * self.dims);
        let first = (self.bins.vocab - self.bins.edges) as usize;
        let mut values = Vec::with_capacity(b * count);
        for row in 0..b {
            let mut cache = Cache::new();
            let mut embeds = conditioning.narrow(0, row, 1)?.contiguous()?;
            for _ in 0..count {
                let last = self.logits(&embeds, &mut cache)?.get(0)?.get(embeds.dim(1)? - 1)?;
                let logits = last.narrow(0, first, self.bins.edges as usize)?.to_vec1::<f32>()?;
                let token = (first + draw(&logits, self.temperature, rng)) as u32;
                values.push(self.bins.value(token));
                embeds = self.decoder.embed(&Tensor::new(&[[token]], &Device::Cpu)?)?;
            }
        }
        Ok(Tensor::from_vec(values, (b, self.horizon, self.dims), &Device::Cpu)?)
    }
}
