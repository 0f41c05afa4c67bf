//! Actions as discrete tokens: uniform bins on the tail of a vocabulary (RT-2, <https://arxiv.org/abs/2307.15818>;
//! OpenVLA, <https://arxiv.org/abs/2406.09246>), bins per dimension (RT-1, <https://arxiv.org/abs/2212.06817>), and a head
//! that says all bins of a chunk at once.

use crate::head::{Body, BodyConfig, Head};
use candle_core::{Device, Tensor};
use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result, Weights, cross_entropy};

/// Normalised numbers in [-1, 1] as the last tokens of a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailBins {
    /// One past the last token: the vocabulary without its padding.
    pub vocab: u32,
    /// Edges of the bins over [-1, 1], both ends included: OpenVLA's 256 edges make 255 bins.
    pub edges: u32,
}

impl TailBins {
    /// Refuses a vocabulary that is smaller than its bins.
    pub fn new(vocab: u32, edges: u32) -> Result<Self> {
        if edges < 2 || vocab < edges {
            return Err(Error::invalid(format!("action tokens: {edges} edges in a vocabulary of {vocab}")));
        }
        Ok(Self { vocab, edges })
    }

    fn edge(&self, i: u32) -> f64 {
        -1.0 + 2.0 * f64::from(i) / f64::from(self.edges - 1)
    }

    /// The token of a number: one less for each edge that it has passed.
    pub fn token(&self, x: f32) -> u32 {
        let x = f64::from(x).clamp(-1.0, 1.0);
        self.vocab - (0..self.edges).filter(|i| self.edge(*i) <= x).count().max(1) as u32
    }

    /// The centre of a token's bin; tokens outside the tail stand for the nearest bin.
    pub fn value(&self, token: u32) -> f32 {
        let bin = self.vocab.saturating_sub(token).saturating_sub(1).min(self.edges - 2);
        ((self.edge(bin) + self.edge(bin + 1)) / 2.0) as f32
    }

    /// Whether a token is one of the tail's.
    pub fn holds(&self, token: u32) -> bool {
        token < self.vocab && token >= self.vocab - self.edges
    }
}

/// Physical numbers as bins of their dimension's range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DimensionBins {
    /// Low end per dimension.
    pub low: Vec<f32>,
    /// High end per dimension.
    pub high: Vec<f32>,
    /// Bins per dimension.
    pub bins: u32,
}

impl DimensionBins {
    /// Refuses ranges without width.
    pub fn new(low: Vec<f32>, high: Vec<f32>, bins: u32) -> Result<Self> {
        let wide = low.iter().zip(&high).all(|(l, h)| l.is_finite() && h.is_finite() && l < h);
        if bins < 2 || low.len() != high.len() || !wide {
            return Err(Error::invalid(format!("action bins: {bins} bins from {low:?} to {high:?}")));
        }
        Ok(Self { low, high, bins })
    }

    /// The bin of each number; what is outside goes to the nearest.
    pub fn bins_of(&self, values: &[f32]) -> Result<Vec<u32>> {
        self.fits(values.len())?;
        let last = (self.bins - 1) as f32;
        let one = |(d, x): (usize, &f32)| {
            let part = (x - self.low[d]) / (self.high[d] - self.low[d]);
            (part.clamp(0.0, 1.0) * last) as u32
        };
        Ok(values.iter().enumerate().map(one).collect())
    }

    /// The number that each bin stands for.
    pub fn values_of(&self, bins: &[u32]) -> Result<Vec<f32>> {
        self.fits(bins.len())?;
        let last = (self.bins - 1) as f32;
        let one = |(d, bin): (usize, &u32)| {
            self.low[d] + (*bin).min(self.bins - 1) as f32 / last * (self.high[d] - self.low[d])
        };
        Ok(bins.iter().enumerate().map(one).collect())
    }

    fn fits(&self, got: usize) -> Result<()> {
        if got != self.low.len() {
            let expected = self.low.len();
            return Err(Error::invalid(format!("action bins: expected {expected} numbers, got {got}")));
        }
        Ok(())
    }
}

/// Even bins over [-1, 1], and how one of them is drawn: temperature 0 takes the likeliest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bins {
    /// How many.
    pub count: usize,
    /// How evenly they are drawn.
    pub temperature: f64,
}

impl Bins {
    /// Refuses bins that cannot be told apart or drawn.
    pub fn check(self) -> Result<Self> {
        let Self { count, temperature } = self;
        if !(2..=1 << 16).contains(&count) || !temperature.is_finite() || temperature < 0.0 {
            return Err(Error::invalid(format!("token head: {count} bins at temperature {temperature}")));
        }
        Ok(self)
    }

    /// The bin of a number; what is outside goes to the nearest.
    pub fn of(self, x: f32) -> u32 {
        let count = self.count as f64;
        ((f64::from(x).clamp(-1.0, 1.0) + 1.0) / 2.0 * count).min(count - 1.0) as u32
    }

    /// The middle of a bin.
    pub fn centre(self, bin: usize) -> f32 {
        ((bin as f64 + 0.5) / self.count as f64 * 2.0 - 1.0) as f32
    }
}

/// A head that says the bin of every number of a chunk at once, each for itself.
#[derive(Clone, Debug)]
pub struct TokenHead {
    body: Body,
    bins: Bins,
}

impl TokenHead {
    /// Reads its body.
    pub fn new(
        weights: &Weights,
        body: &BodyConfig,
        bins: Bins,
        horizon: usize,
        dims: usize,
    ) -> Result<Self> {
        let outputs = dims * bins.check()?.count;
        Ok(Self { body: Body::new(weights, body, (horizon, dims, outputs), false)?, bins })
    }
}

/// The place of a draw by the softmax of `logits`, or of the greatest at temperature 0.
pub fn draw(logits: &[f32], temperature: f64, rng: &mut dyn RngCore) -> usize {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    if temperature == 0.0 {
        return best;
    }
    let top = logits.get(best).copied().unwrap_or(0.0);
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(l - top) / temperature).exp()).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return i;
        }
    }
    best
}

impl Head for TokenHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        let logits = self.body.forward(None, conditioning)?;
        let targets: Vec<u32> =
            actions.flatten_all()?.to_vec1::<f32>()?.iter().map(|x| self.bins.of(*x)).collect();
        let logits = logits.reshape((targets.len(), self.bins.count))?;
        cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?, None)
    }

    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let logits = self.body.forward(None, conditioning)?;
        let rows = logits.flatten_all()?.to_vec1::<f32>()?;
        let values: Vec<f32> = rows
            .chunks_exact(self.bins.count)
            .map(|row| self.bins.centre(draw(row, self.bins.temperature, rng)))
            .collect();
        let shape = (conditioning.dim(0)?, self.body.horizon(), self.body.dims());
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openvla_has_256_edges_and_255_centres_on_the_vocabulary_s_tail() -> Result<()> {
        let bins = TailBins::new(32_000, 256)?;
        assert_eq!((bins.token(-1.0), bins.token(1.0)), (31_999, 31_744));
        // The last edge has a token of its own, which stands for the last of 255 bins.
        assert_eq!(bins.value(31_744), bins.value(31_745));
        assert!((bins.value(31_999) - (-1.0 + 1.0 / 255.0)).abs() < 1e-6);
        assert!(bins.holds(31_744) && !bins.holds(31_743) && !bins.holds(32_000));
        for i in 0..=1000 {
            let x = -1.0 + 2.0 * i as f32 / 1000.0;
            assert!((bins.value(bins.token(x)) - x).abs() <= 1.0 / 255.0 + 1e-6, "{x}");
        }
        assert_eq!((bins.token(-7.0), bins.token(7.0)), (31_999, 31_744));
        assert!(TailBins::new(100, 256).is_err());
        Ok(())
    }

    #[test]
    fn bins_per_dimension_come_back_within_one_bin() -> Result<()> {
        let bins = DimensionBins::new(vec![-2.0, 0.0], vec![3.0, 0.5], 256)?;
        let back = bins.values_of(&bins.bins_of(&[1.234, 0.321])?)?;
        assert!((back[0] - 1.234).abs() < 5.0 / 255.0 && (back[1] - 0.321).abs() < 0.5 / 255.0);
        assert_eq!(bins.bins_of(&[-9.0, 9.0])?, [0, 255]);
        assert!(bins.bins_of(&[1.0]).is_err() && DimensionBins::new(vec![1.0], vec![1.0], 256).is_err());
        Ok(())
    }
}
