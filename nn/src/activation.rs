//! Activations.

use crate::{Error, Result, kernels};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// An activation, applied element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` by the error function (Hendrycks and Gimpel, 2016).
    Gelu,
    /// The same by its tanh approximation (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x σ(x)`.
    Silu,
    /// `x σ(1.702 x)` (CLIP).
    QuickGelu,
}

impl Activation {
    /// The activation that a Hugging Face `config.json` calls `name`.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "quick_gelu" => Self::QuickGelu,
            _ => {
                let known = "gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, relu, silu, swish, quick_gelu";
                return Err(Error::invalid(format!("activation '{name}' is not known; known: {known}")));
            }
        })
    }

    /// `x` of any shape to the same shape.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        kernels::activation::activate(x, self)
    }

    /// `activation(gate) * up`, the two of one shape (SwiGLU and its kin; Shazeer, 2020).
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if gate.dims() != up.dims() {
            return Err(Error::shape("gate of a gated activation", format!("{:?}", up.dims()), gate.dims()));
        }
        kernels::activation::gated(gate, up, self)
    }
}
