//! Feed-forward networks: plain and gated (Shazeer, 2020).

use crate::{Activation, Error, Linear, Result, Weights, kernels};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// The shape of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlpConfig {
    /// Width of the input.
    pub input: usize,
    /// Width inside.
    pub hidden: usize,
    /// Width of the output.
    pub output: usize,
    /// The activation inside.
    pub activation: Activation,
    /// Whether a second projection of the input gates the first.
    pub gated: bool,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// `down(act(up(x)))`, or `down(act(gate(x)) * up(x))` if gated.
#[derive(Clone, Debug)]
pub struct Mlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// With the usual names: `gate_proj`, `up_proj`, `down_proj` if gated, else `fc1`, `fc2`.
    pub fn new(weights: &Weights, config: MlpConfig) -> Result<Self> {
        if config.gated {
            Self::with_names(weights, config, ["gate_proj", "up_proj", "down_proj"])
        } else {
            Self::with_names(weights, config, ["", "fc1", "fc2"])
        }
    }

    /// With the names of the gate (unused if not gated), the first and the last projection.
    pub fn with_names(weights: &Weights, config: MlpConfig, [gate, up, down]: [&str; 3]) -> Result<Self> {
        let MlpConfig { input, hidden, output, activation, gated, bias } = config;
        Ok(Self {
            gate: if gated { Some(Linear::new(&weights.pp(gate), input, hidden, bias)?) } else { None },
            up: Linear::new(&weights.pp(up), input, hidden, bias)?,
            down: Linear::new(&weights.pp(down), hidden, output, bias)?,
            activation,
        })
    }

    /// `x [.., input]` to `[.., output]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = self.up.weight().dim(1)?;
        if x.rank() < 2 || x.dims().last() != Some(&input) {
            return Err(Error::shape("input of a feed-forward network", format!("[.., {input}]"), x.dims()));
        }
        kernels::mlp::mlp(x, self.gate.as_ref(), &self.up, &self.down, self.activation)
    }
}
