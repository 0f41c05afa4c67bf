//! Encoder and decoder (T5; Raffel et al., 2020): two stacks of the one decoder, the second reading the first as memory.

use crate::config::{Block, DecoderConfig, FeedForward, Fields, Naming, Positions};
use crate::{Cache, Decoder, Tap, generate::best};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use vela_nn::{Activation, Embedding, Error, Mask, NormConfig, Result, Weights};

/// An encoder-decoder as data.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderDecoderConfig {
    /// The stack that reads.
    pub encoder: DecoderConfig,
    /// The stack that writes.
    pub decoder: DecoderConfig,
    /// The token that every answer starts with.
    pub start: u32,
}

impl EncoderDecoderConfig {
    /// Reads a Hugging Face `config.json` of T5, first or later version.
    ///
    /// # Errors
    /// Another `model_type`, a missing size, an unknown activation.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let f = Fields(config);
        let kind = f.text("model_type")?.unwrap_or("absent");
        if kind != "t5" {
            return Err(Error::invalid(format!(
                "encoder-decoder model_type '{kind}' is not known; known: t5"
            )));
        }
        let activation = f.text("feed_forward_proj")?.unwrap_or("relu");
        let (gated, activation) = match activation.strip_prefix("gated-") {
            // The gated form was always trained with the tanh form.
            Some("gelu") => (true, Activation::GeluTanh),
            Some(name) => (true, Activation::from_name(name)?),
            None => (false, Activation::from_name(activation)?),
        };
        let (heads, width) = (f.count("num_heads")?, f.count("d_model")?);
        let tied = f.flag("tie_word_embeddings", true)?;
        let scaled = f.flag("scale_decoder_outputs", tied)?;
        let layers = f.count("num_layers")?;
        let positions = |both_ways: bool| -> Result<Positions> {
            Ok(Positions::Relative {
                buckets: f.optional_count("relative_attention_num_buckets")?.unwrap_or(32),
                max_distance: f.optional_count("relative_attention_max_distance")?.unwrap_or(128),
                both_ways,
            })
        };
        let encoder = DecoderConfig {
            vocab: f.count("vocab_size")?,
            width,
            inner_width: f.count("d_ff")?,
            layers,
            heads,
            kv_heads: heads,
            head_dim: f.count("d_kv")?,
            norm: NormConfig::RmsNorm {
                eps: f.optional_number("layer_norm_epsilon")?.unwrap_or(1e-6) as f32,
                one_plus: false,
            },
            activation,
            tied,
            names: Naming::T5Encoder,
            positions: positions(true)?,
            block: Block::Sequential,
            feed_forward: if gated { FeedForward::Gated } else { FeedForward::Plain },
            attention_scale: Some(1.0),
            ..DecoderConfig::default()
        };
        let decoder = DecoderConfig {
            layers: f.optional_count("num_decoder_layers")?.unwrap_or(layers),
            names: Naming::T5Decoder,
            positions: positions(false)?,
            logit_scale: if scaled { Some(1.0 / (width as f32).sqrt()) } else { None },
            memory_width: Some(width),
            ..encoder.clone()
        };
        encoder.check()?;
        decoder.check()?;
        let start = f.optional_count("decoder_start_token_id")?.unwrap_or(0) as u32;
        Ok(Self { encoder, decoder, start })
    }
}

/// An encoder-decoder.
#[derive(Clone, Debug)]
pub struct EncoderDecoder {
    encoder: Decoder,
    decoder: Decoder,
    start: u32,
}

impl EncoderDecoder {
    /// Reads `shared`, `encoder`, `decoder` and, unless the embeddings are tied, `lm_head` under `weights`.
    pub fn new(weights: &Weights, config: &EncoderDecoderConfig) -> Result<Self> {
        config.encoder.check()?;
        let embedding = Embedding::new(&weights.pp("shared"), config.encoder.vocab, config.encoder.width)?;
        let stack = |config: &DecoderConfig, root: Option<&Weights>| {
            let body = weights.pp(config.names.table().body);
            Decoder::with_embedding(embedding.clone(), root, &body, config)
        };
        Ok(Self {
            encoder: stack(&config.encoder, None)?,
            decoder: stack(&config.decoder, Some(weights))?,
            start: config.start,
        })
    }

    /// Reads a Hugging Face folder. The model is only asked: its matrices have no gradient.
    ///
    /// # Errors
    /// What the readers refuse; every missing, unused or mis-shaped tensor, in one error.
    pub fn load(dir: &Path) -> Result<Self> {
        let config = EncoderDecoderConfig::from_hf(&crate::trace::config_json(dir)?)?;
        let weights = Weights::load_dir(dir)?.packed()?;
        let model = Self::new(&weights, &config)?;
        // Copies of the one table.
        let copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
        weights
            .finish_allowing(|name| copies.contains(&name) && (config.encoder.tied || name != copies[2]))?;
        Ok(model)
    }

    /// The stack that reads.
    pub fn encoder(&self) -> &Decoder {
        &self.encoder
    }

    /// The stack that writes.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Embeddings `[b, s, width]` (text, pictures, what you have) to what the encoder makes of them, the same shape;
    /// taps `embeddings` and `hidden.{i}`. `mask` leaves padding out.
    pub fn encode(&self, embeds: &Tensor, mask: &Mask, tap: &mut Tap) -> Result<Tensor> {
        let positions = Tensor::arange(0, embeds.dim(1)? as u32, &Device::Cpu)?;
        let hidden = self.encoder.forward_tapped(embeds, &positions, mask, &mut Cache::new(), tap)?;
        self.encoder.normalise(&hidden)
    }

    /// The token that every answer starts with.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Reads a text's tokens; a cache for writing about it.
    ///
    /// # Errors
    /// No tokens; an id out of range.
    pub fn read(&self, ids: &[u32]) -> Result<Cache> {
        let vocab = self.encoder.config().vocab;
        if ids.is_empty() {
            return Err(Error::invalid("prompt: expected at least one token, got none"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::invalid(format!("token id {id} is out of range; the model has {vocab}")));
        }
        let embeds = self.encoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        self.cache(&self.encode(&embeds, &Mask::None, &mut |_, _| {})?, Mask::None)
    }

    /// A cache for writing about what was encoded, `[b, s, width]`.
    pub fn cache(&self, encoded: &Tensor, mask: Mask) -> Result<Cache> {
        Ok(Cache::with_memory(Arc::new(self.decoder.remember(encoded, mask)?)))
    }

    /// The greedy answer to what was encoded, `[1, s, width]`: `count` tokens, or fewer that end with one of `stop`.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn greedy(&self, encoded: &Tensor, count: usize, stop: &[u32]) -> Result<Vec<u32>> {
        let mut cache = self.cache(encoded, Mask::None)?;
        let (mut made, mut last) = (Vec::with_capacity(count.min(1 << 16)), self.start);
        while made.len() < count && !made.last().is_some_and(|last| stop.contains(last)) {
            let embeds = self.decoder.embed(&Tensor::new(&[[last]], &Device::Cpu)?)?;
            let positions = Tensor::new(&[cache.len() as u32], &Device::Cpu)?;
            let hidden = self.decoder.forward(&embeds, &positions, &Mask::Causal, &mut cache)?;
            let logits = self.decoder.logits(&self.decoder.normalise(&hidden)?)?;
            last = best(&logits.flatten_all()?.to_vec1::<f32>()?)?;
            made.push(last);
        }
        Ok(made)
    }
}
