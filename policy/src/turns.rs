//! A chunk's numbers as tokens, one after another: each bin is said knowing those before it (RT-2,
//! <https://arxiv.org/abs/2307.15818>; OpenVLA, <https://arxiv.org/abs/2406.09246>), so that of two good ways one is taken.

use crate::head::{BodyConfig, BodyKind, Head, Layers};
use crate::tokens::{Bins, draw};
use candle_core::{Device, Tensor};
use rand::RngCore;
use vela_nn::{Embedding, Error, Init, Linear, Mask, Result, Weights, cross_entropy};

/// A head that says the bins of a chunk in turn, action by action.
#[derive(Clone, Debug)]
pub struct TurnHead {
    embedding: Embedding,
    places: Tensor,
    layers: Layers,
    output: Linear,
    bins: Bins,
    horizon: usize,
    dims: usize,
}

impl TurnHead {
    /// Reads `embedding`, `places`, its layers and `output`; chunks of `horizon` actions of `dims` numbers.
    pub fn new(
        weights: &Weights,
        body: &BodyConfig,
        bins: Bins,
        horizon: usize,
        dims: usize,
    ) -> Result<Self> {
        let count = bins.check()?.count;
        if body.kind != BodyKind::Transformer || horizon * dims == 0 {
            return Err(Error::invalid("tokens in turn: expected a transformer body and positive sizes"));
        }
        Ok(Self {
            // One more than there are bins: the start.
            embedding: Embedding::new(&weights.pp("embedding"), count + 1, body.width)?,
            places: weights.get_init((horizon * dims, body.width), "places", Init::Normal(0.02))?,
            layers: Layers::new(weights, body)?,
            output: Linear::new(&weights.pp("output"), body.width, count, true)?,
            bins,
            horizon,
            dims,
        })
    }
}

impl Head for TurnHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        let (b, size) = (actions.dim(0)?, self.horizon * self.dims);
        let said: Vec<u32> =
            actions.flatten_all()?.to_vec1::<f32>()?.iter().map(|x| self.bins.of(*x)).collect();
        if said.len() != b * size {
            let expected = format!("[{b}, {}, {}]", self.horizon, self.dims);
            return Err(Error::shape("actions", expected, actions.dims()));
        }
        let start = self.bins.count as u32;
        let heard: Vec<u32> = said
            .chunks_exact(size)
            .flat_map(|row| std::iter::once(start).chain(row[..size - 1].iter().copied()))
            .collect();
        let heard = Tensor::from_vec(heard, (b, size), &Device::Cpu)?;
        let x = self.embedding.forward(&heard)?.broadcast_add(&self.places)?;
        let memory = self.layers.remember(conditioning)?;
        let logits = self.output.forward(&self.layers.forward(&x, &memory, &Mask::Causal)?)?;
        let logits = logits.reshape((b * size, self.bins.count))?;
        cross_entropy(&logits, &Tensor::new(said, &Device::Cpu)?, None)
    }

    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let (b, size) = (conditioning.dim(0)?, self.horizon * self.dims);
        let mut so_far = self.layers.begin(&self.layers.remember(conditioning)?)?;
        let mut last = vec![self.bins.count as u32; b];
        let mut values = vec![0.0; b * size];
        for place in 0..size {
            let ids = Tensor::from_vec(last.clone(), (b, 1), &Device::Cpu)?;
            let x = self.embedding.forward(&ids)?.broadcast_add(&self.places.narrow(0, place, 1)?)?;
            let logits = self.output.forward(&self.layers.next(&x, &mut so_far)?)?;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            for (row, logits) in logits.chunks_exact(self.bins.count).enumerate() {
                let bin = draw(logits, self.bins.temperature, rng);
                last[row] = bin as u32;
                values[row * size + place] = self.bins.centre(bin);
            }
        }
        Ok(Tensor::from_vec(values, (b, self.horizon, self.dims), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_nn::random;

    #[test]
    fn token_by_token_is_the_whole_under_a_causal_mask() -> Result<()> {
        let body =
            BodyConfig { kind: BodyKind::Transformer, conditioning: 3, width: 16, layers: 2, heads: 2 };
        let bins = Bins { count: 8, temperature: 0.0 };
        let head = TurnHead::new(&Weights::fresh(1), &body, bins, 3, 2)?;
        let x = random::normal(2, "x", (2, 6, 16))?;
        let memory = head.layers.remember(&random::normal(3, "memory", (2, 5, 3))?)?;
        let whole = head.layers.forward(&x, &memory, &Mask::Causal)?;
        let mut so_far = head.layers.begin(&memory)?;
        for place in 0..6 {
            let one = head.layers.next(&x.narrow(1, place, 1)?.contiguous()?, &mut so_far)?;
            let off = (one - whole.narrow(1, place, 1)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(off < 1e-5, "place {place}: {off}");
        }
        assert!(TurnHead::new(&Weights::fresh(1), &body, Bins { count: 1, ..bins }, 3, 2).is_err());
        Ok(())
    }
}
