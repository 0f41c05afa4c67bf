//! The affine map.

use crate::{Error, Init, Result, Weights, kernels};
use candle_core::Tensor;
use std::sync::{Arc, OnceLock};

/// `y = x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// The transpose `[input, output]` of a constant weight, made at its first use: short inputs are up to three times
    /// faster with it. A variable has none, since it changes.
    transposed: Arc<OnceLock<Vec<f32>>>,
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
        Ok(Self { weight, bias, transposed: Arc::default() })
    }

    /// From tensors: `weight [output, input]` (may be tied to an embedding), `bias [output]`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (output, _) = weight.dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [output]
        {
            return Err(Error::shape("bias of a linear layer", format!("[{output}]"), bias.dims()));
        }
        Ok(Self { weight, bias, transposed: Arc::default() })
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
        if x.track_op() || self.is_trained() {
            return linear(x, &self.weight, self.bias.as_ref());
        }
        let (output, input) = self.weight.dims2()?;
        check(x, input)?;
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(output);
        kernels::data::tensor(self.project(&kernels::data::Values::of(x)?)?, shape)
    }

    fn is_trained(&self) -> bool {
        self.weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op)
    }

    /// Rows of `input` values to rows of `output` values.
    pub(crate) fn project(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (output, input) = self.weight.dims2()?;
        let m = x.len() / input.max(1);
        let bias = self.bias.as_ref().map(kernels::data::Values::of).transpose()?;
        let weight = kernels::data::Values::of(&self.weight)?;
        // A single row gains nothing, and the copy of a whole vocabulary would be large.
        if m < 2 || weight.len() > 1 << 22 || self.weight.track_op() {
            return Ok(kernels::linear::forward(x, &weight, bias.as_deref(), (m, output, input)));
        }
        let transposed = self.transposed.get_or_init(|| kernels::linear::transpose(&weight, input));
        Ok(kernels::linear::forward_transposed(x, transposed, bias.as_deref(), (m, output, input)))
    }
}

/// `x [.., input] · weightᵀ + bias` with `weight [output, input]`, `bias [output]`: `[.., output]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, input) = weight.dims2()?;
    check(x, input)?;
    kernels::linear::linear(x, weight, bias)
}

fn check(x: &Tensor, input: usize) -> Result<()> {
    if x.rank() < 2 || x.dims().last() != Some(&input) {
        return Err(Error::shape("input of a linear layer", format!("[.., {input}]"), x.dims()));
    }
    Ok(())
}
