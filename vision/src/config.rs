//! A vision transformer as data, and how the families' `config.json` say it.

use crate::Interpolation;
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
    /// How tokens know where they are.
    #[serde(default)]
    pub positions: Positions,
    /// What the tower reads.
    #[serde(default)]
    pub reads: Reads,
    /// Whether a learned token stands before the patches.
    #[serde(default)]
    pub class_token: bool,
    /// Learned tokens after the class token that have no position (Darcet et al. 2023,
    /// <https://arxiv.org/abs/2309.16588>).
    #[serde(default)]
    pub registers: usize,
    /// Whether the patch embedding has a bias.
    #[serde(default = "yes")]
    pub patch_bias: bool,
    /// Whether the tokens are normalised before the first block (CLIP).
    #[serde(default)]
    pub first_norm: bool,
    /// Whether what a block adds is scaled per channel (Touvron et al. 2021, <https://arxiv.org/abs/2103.17239>).
    #[serde(default)]
    pub layer_scale: bool,
}

fn yes() -> bool {
    true
}

/// How patch tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// They do not.
    None,
    /// One learned query attends to them (SigLIP).
    Probe,
    /// The class token as it stands at the end (DINOv2).
    ClassToken,
    /// The class token, normalised; the other tokens are not (CLIP).
    ClassTokenNormed,
    /// The class token through a linear map and a tanh (ViT).
    ClassTokenTanh,
}

/// How tokens know where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned table for one size of picture.
    #[default]
    Fixed,
    /// A learned table, resized to each picture's grid.
    Resized(Interpolation),
    /// A learned table, read at each patch's fraction of the filled part of the canvas (Idefics3, SmolVLM).
    Fractions,
}

/// What a tower reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// Square pictures of a fixed size, or of others where the positions are resized.
    #[default]
    Pictures,
    /// Patches of pictures of any aspect, padded to one number (SigLIP 2, NaFlex).
    Patches,
}

impl Default for VisionConfig {
    /// SigLIP-B/16 at 224 pixels, without its head.
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            channels: 3,
            width: 768,
            inner_width: 3072,
            layers: 12,
            heads: 12,
            norm: NormConfig::LayerNorm { eps: 1e-6, bias: true },
            activation: Activation::GeluTanh,
            final_norm: true,
            pooling: Pooling::None,
            positions: Positions::Fixed,
            reads: Reads::Pictures,
            class_token: false,
            registers: 0,
            patch_bias: true,
            first_norm: false,
            layer_scale: false,
        }
    }
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

    /// Tokens before the patches: the class token and the registers.
    pub fn prefix(&self) -> usize {
        usize::from(self.class_token) + self.registers
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
        let needs_class =
            [Pooling::ClassToken, Pooling::ClassTokenNormed, Pooling::ClassTokenTanh].contains(&self.pooling);
        if needs_class && !self.class_token {
            return Err(Error::invalid(format!("vision config: {:?} needs a class token", self.pooling)));
        }
        Ok(())
    }

    /// Reads the `vision_config` of a Hugging Face `config.json`; what is absent has the family's own default.
    ///
    /// # Errors
    /// An unknown `model_type`, a field of the wrong kind, sizes that cannot work.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        let layer_norm = |eps: f32| NormConfig::LayerNorm { eps, bias: true };
        let flag = |field: &str, default: bool| config.get(field).and_then(Value::as_bool).unwrap_or(default);
        let base = Self::default();
        let classed = Self { class_token: true, activation: Activation::Gelu, ..base.clone() };
        let idefics = || Self {
            patch_size: 32,
            heads: 16,
            width: 1152,
            positions: Positions::Fractions,
            ..base.clone()
        };
        // Defaults as in the reference's configuration classes.
        let family = match kind {
            "siglip_vision_model" => Self { pooling: Pooling::Probe, ..base.clone() },
            "siglip2_vision_model" => Self {
                pooling: Pooling::Probe,
                reads: Reads::Patches,
                positions: Positions::Resized(Interpolation::BilinearAntialiased),
                ..base.clone()
            },
            "smolvlm_vision" | "idefics3_vision" | "idefics3" | "smolvlm" => idefics(),
            "clip_vision_model" => Self {
                patch_size: 32,
                norm: layer_norm(1e-5),
                activation: Activation::QuickGelu,
                final_norm: false,
                pooling: Pooling::ClassTokenNormed,
                patch_bias: false,
                first_norm: true,
                ..classed
            },
            "vit" => Self {
                norm: layer_norm(1e-12),
                pooling: Pooling::ClassTokenTanh,
                patch_bias: true,
                ..classed
            },
            "dinov2" | "dinov2_with_registers" => {
                let registers = kind == "dinov2_with_registers";
                let how = if registers { Interpolation::BicubicAntialiased } else { Interpolation::Bicubic };
                Self {
                    patch_size: 14,
                    pooling: Pooling::ClassToken,
                    positions: Positions::Resized(how),
                    registers: if registers { count(config, "num_register_tokens", 4)? } else { 0 },
                    layer_scale: true,
                    ..classed
                }
            }
            "internvl_vision" => Self {
                image_size: 448,
                patch_size: 14,
                width: 1024,
                inner_width: 4096,
                layers: 24,
                heads: 16,
                final_norm: !flag("use_mean_pooling", true),
                layer_scale: true,
                ..classed
            },
            "blip_2_vision_model" | "instructblip_vision_model" => {
                Self { patch_size: 14, width: 1408, inner_width: 6144, layers: 39, heads: 16, ..classed }
            }
            other => {
                let known = "blip_2_vision_model, clip_vision_model, dinov2, dinov2_with_registers, idefics3_vision, \
                             instructblip_vision_model, internvl_vision, siglip_vision_model, siglip2_vision_model, \
                             smolvlm_vision, vit";
                return Err(Error::invalid(format!(
                    "vision model_type '{other}' is not known; known: {known}"
                )));
            }
        };
        // What no reference run covers is refused, not guessed.
        let refused = [
            ("use_swiglu_ffn", flag("use_swiglu_ffn", false)),
            ("use_qk_norm", flag("use_qk_norm", false)),
            ("qkv_bias", !flag("qkv_bias", true)),
            ("attention_bias", !flag("attention_bias", true)),
            ("norm_type", config.get("norm_type").is_some_and(|norm| norm != "layer_norm")),
        ];
        if let Some((field, _)) = refused.iter().find(|(_, refused)| *refused) {
            let got = config.get(field).cloned().unwrap_or_default();
            return Err(Error::invalid(format!(
                "config.json: {field}: {got} is not known in a vision tower"
            )));
        }
        let width = count(config, "hidden_size", family.width)?;
        let eps = match family.norm {
            NormConfig::LayerNorm { eps, .. } | NormConfig::RmsNorm { eps, .. } => f64::from(eps),
        };
        let mut made = Self {
            image_size: edge(config, "image_size", family.image_size)?,
            patch_size: edge(config, "patch_size", family.patch_size)?,
            channels: count(config, "num_channels", family.channels)?,
            width,
            inner_width: match config.get("mlp_ratio") {
                Some(_) => (number(config, "mlp_ratio", 4.0)? * width as f64) as usize,
                None => count(config, "intermediate_size", family.inner_width.max(1))?,
            },
            layers: count(config, "num_hidden_layers", family.layers)?,
            heads: count(config, "num_attention_heads", family.heads)?,
            norm: layer_norm(number(config, "layer_norm_eps", eps)? as f32),
            activation: match config.get("hidden_act") {
                None | Some(Value::Null) => family.activation,
                Some(_) => activation(config, "gelu")?,
            },
            ..family
        };
        if made.pooling == Pooling::Probe && !flag("vision_use_head", true) {
            made.pooling = Pooling::None;
        }
        if made.reads == Reads::Patches {
            // The table is a square of patches; there is no picture size.
            made.image_size = count(config, "num_patches", 256)?.isqrt() * made.patch_size;
        }
        made.check()?;
        Ok(made)
    }
}

/// A count, or a pair of equal counts.
fn edge(config: &Value, field: &str, default: usize) -> Result<usize> {
    match config.get(field).and_then(Value::as_array).map(Vec::as_slice) {
        Some([a, b]) if a == b => count(&serde_json::json!({ field: a }), field, default),
        Some(other) => Err(Error::invalid(format!(
            "config.json: {field}: expected one edge or two equal ones, got {other:?}"
        ))),
        None => count(config, field, default),
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
