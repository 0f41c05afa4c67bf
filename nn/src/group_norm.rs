//! Group normalisation (Wu and He 2018, <https://arxiv.org/abs/1803.08494>), fixed batch normalisation, and Mish.

use crate::{Error, Init, Result, Weights, kernels};
use candle_core::Tensor;

/// A normalisation over groups of channels of `[b, c, ..]`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// Reads `weight [channels]` and `bias [channels]`.
    ///
    /// # Errors
    /// The channels are no multiple of the groups.
    pub fn new(weights: &Weights, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        let weight = weights.get_init(channels, "weight", Init::Ones)?;
        Self::from_tensors(weight, weights.get_init(channels, "bias", Init::Zeros)?, groups, eps)
    }

    /// From `weight [channels]` and `bias [channels]`.
    pub fn from_tensors(weight: Tensor, bias: Tensor, groups: usize, eps: f32) -> Result<Self> {
        let channels = weight.dims1()?;
        if groups == 0 || !channels.is_multiple_of(groups) || bias.dims() != [channels] {
            return Err(Error::shape(format!("group norm of {groups} groups"), "[multiple]", weight.dims()));
        }
        Ok(Self { weight, bias, groups, eps })
    }

    /// `x [b, c, ..]` to the same shape. Differentiable.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.weight.elem_count();
        let (b, c) = match x.dims() {
            [b, c, _, ..] => (*b, *c),
            _ => (0, 0),
        };
        if c != channels || x.elem_count() == 0 {
            return Err(Error::shape("input of a group norm", format!("[b, {channels}, ..]"), x.dims()));
        }
        let size = (b, c, x.elem_count() / (b * c), self.groups);
        kernels::group_norm::group_norm(x, &self.weight, &self.bias, size, self.eps)
    }
}

/// A batch norm whose statistics are fixed, as one factor and one summand per channel: reads `weight`, `bias`,
/// `running_mean` and `running_var`, all `[channels]`. In torch's convention eps is 1e-5.
pub fn fixed_batch_norm(weights: &Weights, channels: usize, eps: f32) -> Result<(Vec<f32>, Vec<f32>)> {
    let get = |name: &str, init: Init| -> Result<Vec<f32>> {
        Ok(weights.get_init(channels, name, init)?.to_vec1::<f32>()?)
    };
    let (weight, bias) = (get("weight", Init::Ones)?, get("bias", Init::Zeros)?);
    let (mean, variance) = (get("running_mean", Init::Zeros)?, get("running_var", Init::Ones)?);
    let factor: Vec<f32> = weight.iter().zip(&variance).map(|(w, v)| w / (v + eps).sqrt()).collect();
    let summand = bias.iter().zip(&mean).zip(&factor).map(|((b, m), f)| b - m * f).collect();
    Ok((factor, summand))
}

/// `x tanh(ln(1 + e^x))`. Differentiable.
pub fn mish(x: &Tensor) -> Result<Tensor> {
    kernels::group_norm::mish(x)
}
