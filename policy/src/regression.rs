//! Regression: the whole chunk at once by absolute error (OpenVLA-OFT, <https://arxiv.org/abs/2502.19645>); with a horizon
//! of 1, the single-step head. Of two good ways it gives the average.

use crate::head::{Body, BodyConfig, Head};
use candle_core::Tensor;
use rand::RngCore;
use vela_nn::{Result, Weights};

/// A regression head on a trunk's hidden states.
#[derive(Clone, Debug)]
pub struct RegressionHead {
    body: Body,
}

impl RegressionHead {
    /// Reads its body; chunks of `horizon` actions of `dims` numbers.
    pub fn new(weights: &Weights, body: &BodyConfig, horizon: usize, dims: usize) -> Result<Self> {
        Ok(Self { body: Body::new(weights, body, (horizon, dims, dims), false)? })
    }
}

impl Head for RegressionHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        Ok((self.body.forward(None, conditioning)? - actions)?.abs()?.mean_all()?)
    }

    fn sample(&self, conditioning: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        self.body.forward(None, conditioning)
    }
}
