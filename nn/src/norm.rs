//! Layer normalisation (Ba et al., 2016) and RMS normalisation (Zhang and Sennrich, 2019).

use crate::{Error, Init, Result, Weights, kernels};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormConfig {
    /// Mean removed, divided by the standard deviation.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
        /// Whether there is a bias.
        bias: bool,
    },
    /// Divided by the root mean square.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
        /// Whether the scale is `1 + weight` (Gemma).
        one_plus: bool,
    },
}

/// A normalisation over the last dimension, with its scale and bias.
#[derive(Clone, Debug)]
pub struct Norm {
    config: NormConfig,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Norm {
    /// Reads `weight [width]` and, for a layer norm with bias, `bias [width]`. Fresh ones start as the identity.
    pub fn new(weights: &Weights, width: usize, config: NormConfig) -> Result<Self> {
        let init = match config {
            NormConfig::RmsNorm { one_plus: true, .. } => Init::Zeros,
            _ => Init::Ones,
        };
        let weight = Some(weights.get_init(width, "weight", init)?);
        let bias = match config {
            NormConfig::LayerNorm { bias: true, .. } => Some(weights.get_init(width, "bias", Init::Zeros)?),
            _ => None,
        };
        Ok(Self { config, weight, bias })
    }

    /// From tensors called `weight` and `bias`.
    pub fn from_tensors(config: NormConfig, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let width = tensors.get("weight").map_or(0, Tensor::elem_count);
        let weights = Weights::from_tensors(tensors);
        let norm = Self::new(&weights, width, config)?;
        weights.finish()?;
        Ok(norm)
    }

    /// Without scale or bias, as under an adaptive modulation.
    pub fn plain(config: NormConfig) -> Self {
        Self { config, weight: None, bias: None }
    }

    /// The kind and its epsilon.
    pub fn config(&self) -> NormConfig {
        self.config
    }

    /// `[width]`, if this norm has a scale.
    pub fn weight(&self) -> Option<&Tensor> {
        self.weight.as_ref()
    }

    /// `[width]`, if this norm has a bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x [.., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        kernels::norm::norm(x, self.config, self.weight.as_ref(), self.bias.as_ref())
    }

    /// This norm for whatever reads the rows of `x [.., width]`, where no gradient is wanted for it.
    pub(crate) fn inside(&self, x: &Tensor) -> Result<kernels::norm::Inside<'_>> {
        self.check(x)?;
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        kernels::norm::Inside::new(self.config, width, self.weight.as_ref(), self.bias.as_ref())
    }

    /// Whether a gradient is wanted for the scale or the bias.
    pub(crate) fn is_trained(&self) -> bool {
        [&self.weight, &self.bias].into_iter().flatten().any(Tensor::track_op)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if let Some(weight) = &self.weight
            && x.dims().last() != weight.dims().first()
        {
            return Err(Error::shape("input of a norm", format!("[.., {}]", weight.elem_count()), x.dims()));
        }
        Ok(())
    }
}
