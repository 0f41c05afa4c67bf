//! Which head: a way to decode actions as data, made from weights.

use crate::diffusion::{DiffusionConfig, DiffusionHead};
use crate::fast::{Fast, FastHead};
use crate::flow::{FlowConfig, FlowHead};
use crate::head::{BodyConfig, Head};
use crate::regression::RegressionHead;
use crate::tokens::{Bins, TokenHead};
use crate::turns::TurnHead;
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result, Weights};

/// A way to decode actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// Bins, one number after another (RT-2, OpenVLA).
    Tokens(Bins),
    /// Bins, all numbers at once, each for itself.
    TokensAtOnce(Bins),
    /// FAST's tokens, one after another.
    Fast {
        /// Chunks to tokens and back.
        codec: Fast,
        /// 0 takes the likeliest token.
        temperature: f64,
    },
    /// The numbers at once, by absolute error.
    Regression,
    /// Denoising diffusion.
    Diffusion(DiffusionConfig),
    /// Flow matching.
    Flow(FlowConfig),
}

impl HeadKind {
    /// Its name in tables and files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "tokens",
            Self::TokensAtOnce(_) => "tokens_at_once",
            Self::Fast { .. } => "fast",
            Self::Regression => "regression",
            Self::Diffusion(_) => "diffusion",
            Self::Flow(_) => "flow",
        }
    }
}

/// A head as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// How it decodes.
    pub kind: HeadKind,
    /// Its layers.
    pub body: BodyConfig,
    /// Actions per chunk.
    pub horizon: usize,
    /// Numbers per action.
    pub dims: usize,
}

impl HeadConfig {
    /// The head itself.
    ///
    /// # Errors
    /// Sizes that cannot work; a FAST tokenizer for chunks of another size.
    pub fn build(&self, weights: &Weights) -> Result<Box<dyn Head + Send + Sync>> {
        let (body, horizon, dims) = (&self.body, self.horizon, self.dims);
        Ok(match &self.kind {
            HeadKind::Tokens(bins) => Box::new(TurnHead::new(weights, body, *bins, horizon, dims)?),
            HeadKind::TokensAtOnce(bins) => Box::new(TokenHead::new(weights, body, *bins, horizon, dims)?),
            HeadKind::Fast { codec, temperature } => {
                if (codec.horizon, codec.dims) != (horizon, dims) {
                    let got = format!("[{}, {}]", codec.horizon, codec.dims);
                    return Err(Error::invalid(format!(
                        "FAST tokenizer: expected one for chunks [{horizon}, {dims}], got {got}"
                    )));
                }
                Box::new(FastHead::new(weights, body, codec.clone(), *temperature)?)
            }
            HeadKind::Regression => Box::new(RegressionHead::new(weights, body, horizon, dims)?),
            HeadKind::Diffusion(config) => {
                Box::new(DiffusionHead::new(weights, body, config.clone(), horizon, dims)?)
            }
            HeadKind::Flow(config) => Box::new(FlowHead::new(weights, body, config.clone(), horizon, dims)?),
        })
    }
}
