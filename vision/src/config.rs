//! A vision transformer as data, and how the families' `config.json` say it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_nn::{Activation, Error, NormConfig, Result};

/// A vision transformer (Dosovitskiy et al. 2020, <https://arxiv.org/abs/2010.11929>) as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Edge of the square picture, pixels.
    pub image_size: usize,
    /// Edge of a patch, pixels; what does not fill a patch is dropped.
    pub patch_size: usize,
    /// Colour planes.
    pub channels: usize,
    /// Width of a token.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub inner_width: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Every normalisation.
    pub norm: NormConfig,
    /// Of the feed-forward network.
    pub activation: Activation,
    /// Whether the last tokens are normalised.
    pub final_norm: bool,
    /// How the tokens become one vector, if they do.
    pub pooling: Pooling,
}

/// How patch tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// They do not.
    None,
    /// One learned query attends to them (SigLIP).
    Probe,
}

impl VisionConfig {
    /// Patches along one edge.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Patches per picture.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Refuses sizes that cannot work.
    pub fn check(&self) -> Result<()> {
        if self.patch_size == 0
            || self.grid() == 0
            || self.width == 0
            || self.heads == 0
            || self.channels == 0
        {
            return Err(Error::invalid(format!("vision config: sizes must be positive: {self:?}")));
        }
        if !self.width.is_multiple_of(self.heads) {
            let (width, heads) = (self.width, self.heads);
            return Err(Error::invalid(format!(
                "vision config: width {width} is not a multiple of {heads} heads"
            )));
        }
        Ok(())
    }

    /// Reads the `vision_config` of a Hugging Face `config.json`; what is absent has the family's own default.
    ///
    /// # Errors
    /// An unknown `model_type`, a field of the wrong kind, sizes that cannot work.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        // Default sizes as in the reference's configuration classes.
        let (image, patch, layers, heads, width, inner, head) = match kind {
            "siglip_vision_model" => (224, 16, 12, 12, 768, 3072, true),
            "smolvlm_vision" | "idefics3_vision" => (224, 32, 12, 16, 1152, 3072, false),
            "idefics3" | "smolvlm" => (224, 32, 12, 16, 1152, 3072, false),
            other => {
                let known = "siglip_vision_model, smolvlm_vision, idefics3_vision";
                return Err(Error::invalid(format!(
                    "vision model_type '{other}' is not known; known: {known}"
                )));
            }
        };
        let head = config.get("vision_use_head").and_then(Value::as_bool).unwrap_or(head);
        let made = Self {
            image_size: count(config, "image_size", image)?,
            patch_size: count(config, "patch_size", patch)?,
            channels: count(config, "num_channels", 3)?,
            width: count(config, "hidden_size", width)?,
            inner_width: count(config, "intermediate_size", inner)?,
            layers: count(config, "num_hidden_layers", layers)?,
            heads: count(config, "num_attention_heads", heads)?,
            norm: NormConfig::LayerNorm { eps: number(config, "layer_norm_eps", 1e-6)? as f32, bias: true },
            activation: activation(config, "gelu_pytorch_tanh")?,
            final_norm: true,
            pooling: if head { Pooling::Probe } else { Pooling::None },
        };
        made.check()?;
        Ok(made)
    }
}

pub(crate) fn count(config: &Value, field: &str, default: usize) -> Result<usize> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .map(|x| x as usize)
            .ok_or_else(|| Error::invalid(format!("config.json: {field}: expected a count, got {value}"))),
    }
}

pub(crate) fn number(config: &Value, field: &str, default: f64) -> Result<f64> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .ok_or_else(|| Error::invalid(format!("config.json: {field}: expected a number, got {value}"))),
    }
}

pub(crate) fn activation(config: &Value, default: &str) -> Result<Activation> {
    match config.get("hidden_act") {
        None | Some(Value::Null) => Activation::from_name(default),
        Some(Value::String(name)) => Activation::from_name(name),
        Some(other) => Err(Error::invalid(format!("config.json: hidden_act: expected a name, got {other}"))),
    }
}
