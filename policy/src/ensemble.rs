//! Temporal ensembling (ACT, Zhao et al. 2023, <https://arxiv.org/abs/2304.13705>): every tick asks for a chunk, and what
//! is carried out is the weighted mean of all chunks' predictions for that tick.

use candle_core::Tensor;
use vela_nn::{Error, Result};

/// The running mean of the predictions for the coming ticks. A prediction weighs `exp(-decay i)`, where `i = 0` is the
/// OLDEST one.
#[derive(Clone, Debug)]
pub struct TemporalEnsemble {
    decay: f64,
    /// Means for the coming ticks, `[b, ticks, dims]`.
    mean: Option<Tensor>,
    /// Predictions in each tick's mean.
    counts: Vec<usize>,
}

impl TemporalEnsemble {
    /// `decay` 0: all weigh alike; ACT's own is 0.01.
    pub fn new(decay: f64) -> Self {
        Self { decay, mean: None, counts: Vec::new() }
    }

    /// Forgets the last episode.
    pub fn reset(&mut self) {
        (self.mean, self.counts) = (None, Vec::new());
    }

    /// Lets `ticks` pass without a chunk: what was predicted for them is forgotten.
    pub fn skip(&mut self, ticks: usize) -> Result<()> {
        let left = self.counts.len().saturating_sub(ticks);
        self.counts.drain(..self.counts.len() - left);
        self.mean = match (&self.mean, left) {
            (Some(mean), 1..) => Some(mean.narrow(1, ticks, left)?.contiguous()?),
            _ => None,
        };
        Ok(())
    }

    /// What is predicted for the ticks after the last one that was asked for, `[b, ticks, dims]`.
    pub fn rest(&self) -> Option<&Tensor> {
        self.mean.as_ref()
    }

    /// Takes in a chunk `[b, horizon, dims]`, whose first action is for now; gives the action for now, `[b, dims]`.
    ///
    /// # Errors
    /// A chunk of another size than the last, or an empty one.
    pub fn update(&mut self, chunk: &Tensor) -> Result<Tensor> {
        let (b, horizon, dims) = chunk.dims3()?;
        if horizon == 0 {
            return Err(Error::invalid("temporal ensemble: expected a chunk, got no actions"));
        }
        let weight = |i: usize| (-self.decay * i as f64).exp();
        let mut all = chunk.flatten_all()?.to_vec1::<f32>()?;
        if let Some(mean) = &self.mean {
            let (old_b, old, old_dims) = mean.dims3()?;
            if (old_b, old_dims) != (b, dims) || old > horizon {
                let expected = format!("[{old_b}, {}, {old_dims}]", old + 1);
                return Err(Error::shape("chunk of a temporal ensemble", expected, chunk.dims()));
            }
            let mean = mean.flatten_all()?.to_vec1::<f32>()?;
            for (tick, count) in self.counts.iter().enumerate() {
                let before: f64 = (0..*count).map(weight).sum();
                let (new, total) = (weight(*count), before + weight(*count));
                for row in 0..b {
                    for d in 0..dims {
                        let at = (row * horizon + tick) * dims + d;
                        let old = f64::from(mean[(row * old + tick) * dims + d]);
                        all[at] = ((old * before + f64::from(all[at]) * new) / total) as f32;
                    }
                }
            }
        }
        let all = Tensor::from_vec(all, (b, horizon, dims), chunk.device())?;
        self.counts.iter_mut().for_each(|count| *count += 1);
        self.counts.resize(horizon, 1);
        self.counts.remove(0);
        self.mean = (horizon > 1).then(|| all.narrow(1, 1, horizon - 1)?.contiguous()).transpose()?;
        Ok(all.narrow(1, 0, 1)?.squeeze(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_oldest_prediction_weighs_most() -> Result<()> {
        let mut ensemble = TemporalEnsemble::new(1.0);
        let chunk = |values: &[f32]| Tensor::from_vec(values.to_vec(), (1, values.len(), 1), &Device::Cpu);
        ensemble.update(&chunk(&[0.0, 0.0])?)?;
        let got = ensemble.update(&chunk(&[1.0, 1.0])?)?.to_vec2::<f32>()?[0][0];
        let fresh = (-1f64).exp();
        assert!((f64::from(got) - fresh / (1.0 + fresh)).abs() < 1e-6 && got < 0.5, "{got}");
        // Two ticks on, nothing is left of the old predictions.
        ensemble.update(&chunk(&[1.0, 1.0])?)?;
        ensemble.skip(2)?;
        assert!(ensemble.rest().is_none());
        assert_eq!(ensemble.update(&chunk(&[8.0, 9.0])?)?.to_vec2::<f32>()?[0][0], 8.0);
        assert_eq!(ensemble.rest().map(Tensor::dims), Some(&[1, 1, 1][..]));
        ensemble.reset();
        assert_eq!(ensemble.update(&chunk(&[3.0, 3.0])?)?.to_vec2::<f32>()?[0][0], 3.0);
        assert!(ensemble.update(&Tensor::zeros((1, 2, 5), candle_core::DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
