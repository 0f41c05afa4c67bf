//! How the matrices of a loaded network are kept: in float32, or in fewer bits where that does little harm.

use serde::{Deserialize, Serialize};
use vela_nn::quant::Format;
use vela_nn::{Error, Result, Weights};

/// How matrices are kept. Norms, biases and convolutions are float32 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// Float32 as Candle keeps it, beside a packed copy from the first use on: for comparisons and training.
    #[default]
    Plain,
    /// Float32, packed once: half the memory of [`Self::Plain`].
    #[serde(rename = "f32")]
    Float32,
    /// The upper 16 bits, multiplied in float32.
    #[serde(rename = "bf16")]
    Bf16,
    /// Eight bits and a factor per 32 numbers, against activations in the same form. Tables of words are kept in bf16.
    #[serde(rename = "int8")]
    Int8,
}

/// What stands between a network and the world of numbers: small, and every error in it is one of the action. Tables of
/// positions are read whole.
const EXACT: [&str; 7] = [
    "state_proj.",
    "action_in_proj.",
    "action_out_proj.",
    "time_mlp_",
    "action_head.",
    "_input_proj.",
    "pos_embed.",
];

impl Storage {
    /// By the names that the command line has for them: `f32`, `bf16`, `int8`.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::Float32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            other => Err(Error::invalid(format!("dtype: expected f32, bf16 or int8, got '{other}'"))),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain | Self::Float32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    fn format(self, name: &str) -> Option<Format> {
        let exact = EXACT.iter().any(|part| name.contains(part));
        match self {
            Self::Plain => None,
            Self::Float32 => Some(Format::F32),
            _ if exact => Some(Format::F32),
            Self::Int8 if !name.contains("embed_tokens.") => Some(Format::Q8_0),
            Self::Int8 | Self::Bf16 => Some(Format::Bf16),
        }
    }

    /// The same weights, kept so by the layers that are made of them.
    ///
    /// # Errors
    /// A layer has been made of them already.
    pub fn of(self, weights: Weights) -> Result<Weights> {
        if self == Self::Plain {
            return Ok(weights);
        }
        weights.kept(move |name| self.format(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_numbers_of_the_world_stays_exact() -> Result<()> {
        for storage in [Storage::Bf16, Storage::Int8] {
            assert_eq!(storage.format("model.state_proj.weight"), Some(Format::F32));
            assert_eq!(storage.format("model.action_time_mlp_in.weight"), Some(Format::F32));
            assert_eq!(Storage::from_name(storage.name())?, storage);
        }
        let layer = "vlm_with_expert.lm_expert.layers.0.mlp.up_proj.weight";
        assert_eq!(Storage::Int8.format(layer), Some(Format::Q8_0));
        assert_eq!(Storage::Int8.format("text_model.embed_tokens.weight"), Some(Format::Bf16));
        assert_eq!(Storage::Plain.format(layer), None);
        assert!(Storage::from_name("int4").is_err_and(|e| e.to_string().contains("bf16 or int8")));
        Ok(())
    }
}
