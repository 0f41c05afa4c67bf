//! A VLM as data, and how the families' `config.json` say it.

use crate::{Packing, Projection, ProjectorConfig, QFormerConfig};
use serde_json::{Value, json};
use vela_llm::{DecoderConfig, EncoderDecoderConfig};
use vela_nn::{Activation, Error, NormConfig, Result};
use vela_vision::{NativeConfig, VisionConfig};

/// A VLM as data.
#[derive(Clone, Debug, PartialEq)]
pub struct VlmConfig {
    /// Its `model_type`.
    pub kind: String,
    /// `model_type` of the vision tower, which decides what its tensors are called.
    pub vision_kind: String,
    /// The vision tower.
    pub tower: TowerConfig,
    /// What is taken from it.
    pub features: Features,
    /// Learned queries between tower and projector.
    pub qformer: Option<QFormerConfig>,
    /// From there to the decoder's width.
    pub projector: ProjectorConfig,
    /// How the parts of one picture become one row of tokens.
    pub packing: Packing,
    /// The decoder.
    pub decoder: DecoderConfig,
    /// Where an encoder reads first and the decoder reads the encoder: both.
    pub encoder_decoder: Option<EncoderDecoderConfig>,
    /// The token that a picture's token replaces.
    pub image_token: u32,
    /// The token that a video's token replaces.
    pub video_token: Option<u32>,
    /// Whom the prompt's tokens see.
    pub reading: Reading,
    /// How the prompt's tokens are counted.
    pub counting: Counting,
}

/// A vision tower as data.
#[derive(Clone, Debug, PartialEq)]
pub enum TowerConfig {
    /// Pictures of one size.
    Fixed(VisionConfig),
    /// Pictures and videos at their own size.
    Native(NativeConfig),
}

impl TowerConfig {
    /// The tower for pictures of one size.
    ///
    /// # Errors
    /// It is another one.
    pub fn fixed(&self) -> Result<&VisionConfig> {
        match self {
            Self::Fixed(config) => Ok(config),
            Self::Native(_) => Err(Error::invalid("this vision tower has no fixed picture size")),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Fixed(config) => config.width,
            Self::Native(config) => config.encoder.width,
        }
    }
}

/// What is taken from a vision tower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The output of this many blocks, before any final norm; the tower's own last tokens if absent.
    pub blocks: Option<usize>,
    /// Whether the class token is left out.
    pub drop_class: bool,
}

/// Whom the prompt's tokens see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// What is before them.
    Causal,
    /// All of the prompt; only the answer is causal (PaliGemma).
    Prefix,
}

/// How tokens are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Counting {
    /// One after the other from this number on.
    Line(u32),
    /// Along time, rows and columns (Qwen2-VL's M-RoPE); a second of video takes so many steps, or each frame one.
    Axes {
        /// Steps of a second.
        per_second: Option<f64>,
    },
}

const KNOWN: &str = "blip-2, idefics3, internvl, llava, llava_next, llava_onevision, paligemma, qwen2_vl, qwen2_5_vl, smolvlm";

impl VlmConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// An unknown `model_type`, fields that are missing or of the wrong kind, something that we cannot do.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let c = Fields(config);
        let kind = c.text("model_type").unwrap_or("absent");
        if !KNOWN.split(", ").any(|known| known == kind) {
            return Err(Error::invalid(format!("VLM model_type '{kind}' is not known; known: {KNOWN}")));
        }
        let seen = c.part("vision_config")?;
        let vision_kind = Fields(seen).text("model_type").unwrap_or(kind).to_owned();
        let native = kind.starts_with("qwen2");
        let tower = if native {
            TowerConfig::Native(NativeConfig::from_hf(&typed(seen, &vision_kind))?)
        } else {
            TowerConfig::Fixed(VisionConfig::from_hf(&typed(seen, &vision_kind))?)
        };
        let text = text_config(config, kind);
        let encoder_decoder = (Fields(&text).text("model_type") == Some("t5"))
            .then(|| EncoderDecoderConfig::from_hf(&text))
            .transpose()?;
        let mut decoder = match &encoder_decoder {
            Some(both) => both.decoder.clone(),
            None => DecoderConfig::from_hf(&text)?,
        };
        // The outer flag decides: it is the outer model that owns the output projection.
        if let Some(tied) = config.get("tie_word_embeddings").and_then(Value::as_bool) {
            decoder.tied = tied;
        }
        let width = decoder.width;
        let mlp = |act: &str| -> Result<Projection> {
            let name = c.text("projector_hidden_act").unwrap_or(act);
            Ok(Projection::Mlp { hidden: width, activation: Activation::from_name(name)? })
        };
        let normed = |hidden: usize, norm: NormConfig, norm_first: bool| Projection::NormedMlp {
            hidden,
            activation: Activation::Gelu,
            norm,
            norm_first,
        };
        let layer_norm = |eps: f32| NormConfig::LayerNorm { eps, bias: true };
        let mut made = Self {
            kind: kind.to_owned(),
            vision_kind,
            features: Features::default(),
            qformer: None,
            projector: ProjectorConfig {
                input: tower.width(),
                output: width,
                shuffle: 1,
                projection: Projection::Linear { bias: true },
            },
            tower,
            packing: Packing::Each,
            decoder,
            encoder_decoder,
            image_token: match c.count("image_token_id") {
                Ok(id) => id,
                Err(_) => c.count("image_token_index")?,
            } as u32,
            video_token: None,
            reading: Reading::Causal,
            counting: Counting::Line(0),
        };
        match kind {
            "idefics3" | "smolvlm" => {
                made.projector.shuffle = c.count("scale_factor")?;
                made.projector.projection = Projection::Linear { bias: false };
            }
            "llava" | "llava_next" | "llava_onevision" => {
                made.projector.projection = mlp("gelu")?;
                made.features = made.llava_features(&c)?;
                if kind != "llava" {
                    made.packing = Packing::canvases(config)?;
                }
                made.video_token = (kind == "llava_onevision")
                    .then(|| c.count("video_token_index"))
                    .transpose()?
                    .map(|x| x as u32);
            }
            "internvl" => {
                made.features = made.llava_features(&c)?;
                let ratio = config.get("downsample_ratio").and_then(Value::as_f64).unwrap_or(0.5);
                made.projector.shuffle = (1.0 / ratio).round() as usize;
                made.projector.projection = normed(width, layer_norm(1e-5), false);
            }
            "paligemma" => {
                made.reading = Reading::Prefix;
                made.counting = Counting::Line(1);
            }
            "qwen2_vl" | "qwen2_5_vl" => {
                let TowerConfig::Native(tower) = &made.tower else {
                    return Err(Error::invalid(format!("config.json: vision_config: no tower of {kind}")));
                };
                made.projector.shuffle = tower.merge;
                let hidden = tower.encoder.width * tower.merge * tower.merge;
                made.projector.projection = normed(hidden, tower.encoder.norm, true);
                let later = kind == "qwen2_5_vl";
                let steps = Fields(seen).count("tokens_per_second").unwrap_or(4) as f64;
                made.counting = Counting::Axes { per_second: later.then_some(steps) };
                made.video_token = Some(c.count("video_token_id").unwrap_or(151_656) as u32);
            }
            _ => {
                let qformer =
                    QFormerConfig::from_hf(c.part("qformer_config")?, c.count("num_query_tokens")?)?;
                made.projector.input = qformer.width;
                made.qformer = Some(qformer);
            }
        }
        Ok(made)
    }

    /// `vision_feature_layer` counts the input of the first block as 0, and from the end if negative.
    fn llava_features(&self, c: &Fields) -> Result<Features> {
        let layers = self.tower.fixed()?.layers as i64;
        let layer = match c.0.get("vision_feature_layer") {
            None | Some(Value::Null) => -2,
            Some(value) => value.as_i64().ok_or_else(|| {
                Error::invalid(format!("config.json: vision_feature_layer: expected one number, got {value}"))
            })?,
        };
        let blocks = if layer < 0 { layers + 1 + layer } else { layer };
        if !(0..=layers).contains(&blocks) {
            return Err(Error::invalid(format!(
                "config.json: vision_feature_layer: {layer} of a tower of {layers} blocks"
            )));
        }
        let drop_class = match c.text("vision_feature_select_strategy").unwrap_or("default") {
            "default" => true,
            "full" => false,
            other => {
                return Err(Error::invalid(format!(
                    "config.json: vision_feature_select_strategy: expected default or full, got {other}"
                )));
            }
        };
        Ok(Features { blocks: Some(blocks as usize), drop_class })
    }
}

/// A config with its `model_type` said.
fn typed(config: &Value, kind: &str) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.insert("model_type".into(), kind.into());
    }
    config
}

/// The text model's config: `text_config`, or for Qwen2-VL's first checkpoints the whole; what the older writers left out,
/// because it was the default, is filled in.
fn text_config(config: &Value, kind: &str) -> Value {
    let text = match config.get("text_config") {
        Some(text) => text.clone(),
        None => typed(config, &format!("{kind}_text")),
    };
    let model = Fields(&text).text("model_type").unwrap_or("llama").to_owned();
    let mut text = typed(&text, &model);
    if let (Some(fields), "paligemma") = (text.as_object_mut(), kind) {
        // Whom the prompt sees is not the text model's affair but [`Reading`]'s.
        fields.remove("use_bidirectional_attention");
    }
    let defaults = match model.as_str() {
        "llama" => json!({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 32000}),
        "mistral" => json!({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}),
        "gemma" => json!({"head_dim": 256}),
        _ => json!({}),
    };
    if let (Some(text), Some(defaults)) = (text.as_object_mut(), defaults.as_object()) {
        for (field, value) in defaults {
            text.entry(field).or_insert_with(|| value.clone());
        }
    }
    text
}

struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn text(&self, field: &str) -> Option<&'a str> {
        self.0.get(field).and_then(Value::as_str)
    }

    fn part(&self, field: &str) -> Result<&'a Value> {
        self.0.get(field).ok_or_else(|| Error::invalid(format!("config.json: {field} is missing")))
    }

    fn count(&self, field: &str) -> Result<usize> {
        let value = self.part(field)?;
        let count = value.as_u64().and_then(|x| usize::try_from(x).ok());
        count.ok_or_else(|| Error::invalid(format!("config.json: {field}: expected a count, got {value}")))
    }
}
