//! The affine map.

use crate::{Error, Init, Result, Weights, kernels};
use candle_core::Tensor;

/// `y = x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight [output, input]` and, if `bias`, `bias [output]`. Fresh ones start Xavier-uniform and zero.
    pub fn new(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        Self::with_init(weights, input, output, bias, Init::XavierUniform)
    }

    /// As [`Linear::new`] with a fresh weight started by `init`.
    pub fn with_init(weights: &Weights, input: usize, output: usize, bias: bool, init: Init) -> Result<Self> {
        let weight = weights.get_init((output, input), "weight", init)?;
        let bias = if bias { Some(weights.get_init(output, "bias", Init::Zeros)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// From tensors: `weight [output, input]` (may be tied to an embedding), `bias [output]`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (output, _) = weight.dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [output]
        {
            return Err(Error::shape("bias of a linear layer", format!("[{output}]"), bias.dims()));
        }
        Ok(Self { weight, bias })
    }

    /// `[output, input]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[output]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x [.., input]` to `[.., output]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `x [.., input] · weightᵀ + bias` with `weight [output, input]`, `bias [output]`: `[.., output]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, input) = weight.dims2()?;
    if x.rank() < 2 || x.dims().last() != Some(&input) {
        return Err(Error::shape("input of a linear layer", format!("[.., {input}]"), x.dims()));
    }
    kernels::linear::linear(x, weight, bias)
}
