//! Feed-forward networks: plain and gated (Shazeer, 2020).

use crate::{Activation, D, Error, Linear, Norm, Result, Weights, kernels};
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

    /// From its projections, the gate first if there is one.
    pub fn from_layers(gate: Option<Linear>, up: Linear, down: Linear, activation: Activation) -> Self {
        Self { gate, up, down, activation }
    }

    /// Gate (if there is one), first and last projection, and the activation inside.
    pub fn parts(&self) -> (Option<&Linear>, &Linear, &Linear, Activation) {
        (self.gate.as_ref(), &self.up, &self.down, self.activation)
    }

    /// [`Mlp::forward`] on `norm` of `x`, as [`Linear::forward_normed`] has it.
    pub fn forward_normed(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        let plain = !self.down.is_adapted() && !self.down.is_trained();
        if x.track_op() || norm.is_trained() || !plain || !self.first().all(Linear::takes_rows) {
            return self.forward(&norm.forward(x)?);
        }
        self.check(x)?;
        kernels::mlp::normed(x, &norm.inside(x)?, self.gate.as_ref(), &self.up, &self.down, self.activation)
    }

    /// What reads the input.
    fn first(&self) -> impl Iterator<Item = &Linear> {
        [&self.up].into_iter().chain(&self.gate)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let (_, input) = self.up.dims();
        if x.rank() < 2 || x.dims().last() != Some(&input) {
            return Err(Error::shape("input of a feed-forward network", format!("[.., {input}]"), x.dims()));
        }
        Ok(())
    }

    /// `x [.., input]` to `[.., output]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        let layers = || self.first().chain([&self.down]);
        let learns = x.track_op() || layers().any(Linear::is_trained);
        if layers().any(|layer| layer.is_adapted() || learns && !layer.is_plain()) {
            let up = self.up.forward(x)?;
            let inside = match &self.gate {
                Some(gate) => self.activation.gated(&gate.forward(x)?, &up)?,
                None => self.activation.forward(&up)?,
            };
            return self.down.forward(&inside);
        }
        kernels::mlp::mlp(x, self.gate.as_ref(), &self.up, &self.down, self.activation)
    }
}

/// A gated network whose gate and first projection are stored as one, `[2 * hidden, input]`, the gate first (Phi-3).
#[derive(Clone, Debug)]
pub struct FusedMlp {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl FusedMlp {
    /// Reads `gate_up` and `down` under `weights`.
    pub fn new(weights: &Weights, config: MlpConfig, [gate_up, down]: [&str; 2]) -> Result<Self> {
        let MlpConfig { input, hidden, output, activation, bias, .. } = config;
        Ok(Self {
            gate_up: Linear::new(&weights.pp(gate_up), input, 2 * hidden, bias)?,
            down: Linear::new(&weights.pp(down), hidden, output, bias)?,
            activation,
        })
    }

    /// The projection to gate and up, and the last one.
    pub fn parts(&self) -> (&Linear, &Linear) {
        (&self.gate_up, &self.down)
    }

    /// What the first projection gives, `[.., 2 * hidden]`, to what the last one reads, `[.., hidden]`.
    pub fn activate(&self, both: &Tensor) -> Result<Tensor> {
        let hidden = both.dim(D::Minus1)? / 2;
        let (gate, up) = (both.narrow(D::Minus1, 0, hidden)?, both.narrow(D::Minus1, hidden, hidden)?);
        self.activation.gated(&gate, &up)
    }

    /// `x [.., input]` to `[.., output]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.activate(&self.gate_up.forward(x)?)?)
    }
}
