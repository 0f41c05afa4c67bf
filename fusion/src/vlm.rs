//! The assembled VLM: a vision tower, a projector and a decoder (Idefics3 and SmolVLM).

use crate::{Projection, Projector, ProjectorConfig, splice};
use candle_core::Tensor;
use serde_json::Value;
use std::path::Path;
use vela_llm::{Decoder, DecoderConfig, generate, trace::config_json};
use vela_nn::{Error, Result, Weights};
use vela_vision::{VisionConfig, Vit};

/// A VLM as data.
#[derive(Clone, Debug, PartialEq)]
pub struct VlmConfig {
    /// The vision tower.
    pub vision: VisionConfig,
    /// From its tokens to the decoder's width.
    pub projector: ProjectorConfig,
    /// The decoder.
    pub decoder: DecoderConfig,
    /// The token that an image token replaces.
    pub image_token: u32,
}

/// A VLM.
#[derive(Clone, Debug)]
pub struct Vlm {
    vision: Vit,
    projector: Projector,
    decoder: Decoder,
    image_token: u32,
}

impl VlmConfig {
    /// Reads a Hugging Face `config.json` of Idefics3 or SmolVLM.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        if !["idefics3", "smolvlm"].contains(&kind) {
            return Err(Error::invalid(format!(
                "VLM model_type '{kind}' is not known; known: idefics3, smolvlm"
            )));
        }
        let part = |name: &str| {
            config.get(name).ok_or_else(|| Error::invalid(format!("config.json: {name} is missing")))
        };
        let number = |name: &str| -> Result<usize> {
            let value = part(name)?.as_u64();
            value
                .map(|x| x as usize)
                .ok_or_else(|| Error::invalid(format!("config.json: {name}: expected a count")))
        };
        let vision = VisionConfig::from_hf(part("vision_config")?)?;
        let mut decoder = DecoderConfig::from_hf(part("text_config")?)?;
        // The outer flag decides: it is the outer model that owns the output projection.
        if let Some(tied) = config.get("tie_word_embeddings").and_then(Value::as_bool) {
            decoder.tied = tied;
        }
        let projector = ProjectorConfig {
            input: vision.width,
            output: decoder.width,
            shuffle: number("scale_factor")?,
            projection: Projection::Linear { bias: false },
        };
        Ok(Self { vision, projector, decoder, image_token: number("image_token_id")? as u32 })
    }
}

impl Vlm {
    /// Reads `model.{vision_model,connector,text_model}` and `lm_head` under `weights`.
    pub fn new(weights: &Weights, config: &VlmConfig) -> Result<Self> {
        let model = weights.pp("model");
        Ok(Self {
            vision: Vit::new(&model.pp("vision_model"), &config.vision)?,
            projector: Projector::new(&model.pp("connector"), &config.projector)?,
            decoder: Decoder::new(Some(weights), &model.pp("text_model"), &config.decoder)?,
            image_token: config.image_token,
        })
    }

    /// Reads a Hugging Face folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let config = VlmConfig::from_hf(&config_json(dir)?)?;
        let weights = Weights::load_dir(dir)?;
        let vlm = Self::new(&weights, &config)?;
        weights.finish()?;
        Ok(vlm)
    }

    /// The vision tower.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// The projector.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Pictures `[n, 3, h, w]`, each one tile, to image tokens `[n, k, width]`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.projector.forward(&self.vision.forward(pixels)?)
    }

    /// `ids [b, t]` (u32) with `features [n, k, width]` at the placeholders: `[b, t, width]`.
    pub fn embed(&self, ids: &Tensor, features: Option<&Tensor>) -> Result<Tensor> {
        let text = self.decoder.embed(ids)?;
        match features {
            Some(features) => splice(&text, ids, self.image_token, features),
            None => Ok(text),
        }
    }

    /// Greedy answer to a prompt `[1, t]` with pictures, at most `count` tokens, ending with one of `stop`.
    pub fn answer(
        &self,
        ids: &Tensor,
        pixels: Option<&Tensor>,
        count: usize,
        stop: &[u32],
    ) -> Result<Vec<u32>> {
        let features = pixels.map(|pixels| self.image_features(pixels)).transpose()?;
        generate::greedy(&self.decoder, &self.embed(ids, features.as_ref())?, count, stop)
    }
}
