//! SigLIP (Zhai et al. 2023, <https://arxiv.org/abs/2303.15343>): a picture tower and a text tower that agree.

use crate::config::{activation, count, number};
use crate::{Encoder, EncoderConfig, Tap, VisionConfig, Vit};
use candle_core::{D, Tensor};
use serde_json::Value;
use vela_nn::{Embedding, Init, Linear, Mask, Norm, NormConfig, Result, Weights};

/// Both towers and the scale on which they are compared.
#[derive(Clone, Debug)]
pub struct Siglip {
    vision: Vit,
    tokens: Embedding,
    positions: Tensor,
    encoder: Encoder,
    final_norm: Norm,
    head: Linear,
    logit_scale: Tensor,
    logit_bias: Tensor,
}

impl Siglip {
    /// Reads a whole SigLIP checkpoint by its `config.json`.
    pub fn new(weights: &Weights, config: &Value) -> Result<Self> {
        let vision = VisionConfig::from_hf(config.get("vision_config").unwrap_or(&Value::Null))?;
        let nothing = Value::Null;
        let text = config.get("text_config").unwrap_or(&nothing);
        let width = count(text, "hidden_size", 768)?;
        let norm = NormConfig::LayerNorm { eps: number(text, "layer_norm_eps", 1e-6)? as f32, bias: true };
        let encoder = EncoderConfig {
            width,
            inner_width: count(text, "intermediate_size", 3072)?,
            layers: count(text, "num_hidden_layers", 12)?,
            heads: count(text, "num_attention_heads", 12)?,
            norm,
            activation: activation(text, "gelu_pytorch_tanh")?,
        };
        let (vocab, length) =
            (count(text, "vocab_size", 32_000)?, count(text, "max_position_embeddings", 64)?);
        let projection = count(text, "projection_size", width)?;
        let tower = weights.pp("text_model");
        let embeddings = tower.pp("embeddings");
        Ok(Self {
            vision: Vit::new(&weights.pp("vision_model"), &vision)?,
            tokens: Embedding::new(&embeddings.pp("token_embedding"), vocab, width)?,
            positions: embeddings.pp("position_embedding").get((length, width), "weight")?,
            encoder: Encoder::new(&tower.pp("encoder"), encoder)?,
            final_norm: Norm::new(&tower.pp("final_layer_norm"), width, norm)?,
            head: Linear::new(&tower.pp("head"), width, projection, true)?,
            logit_scale: weights.get_init(1, "logit_scale", Init::Constant(10f32.ln()))?,
            logit_bias: weights.get_init(1, "logit_bias", Init::Constant(-10.0))?,
        })
    }

    /// The picture tower.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// `pixels [b, 3, h, w]` to vectors of length one, `[b, width]`. Taps the tower's stages and `pooled`.
    pub fn embed_pictures(&self, pixels: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let pooled = self.vision.pool(&self.vision.forward_tapped(pixels, tap)?)?;
        tap("pooled", &pooled);
        unit(&pooled)
    }

    /// `ids [b, t]` (u32, padded as in training) to vectors of length one, `[b, width]`. There is no causal
    /// mask, and the last position stands for the text. Taps as the other tower.
    pub fn embed_texts(&self, ids: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let (_, length) = ids.dims2()?;
        let x = self.tokens.forward(ids)?.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        tap("embeddings", &x);
        let x = self.final_norm.forward(&self.encoder.forward(&x, &Mask::None, tap)?)?;
        tap("last_hidden_state", &x);
        let last = x.narrow(1, length - 1, 1)?.squeeze(1)?.contiguous()?;
        let pooled = self.head.forward(&last)?;
        tap("pooled", &pooled);
        unit(&pooled)
    }

    /// How well each picture `[b, width]` fits each text `[c, width]`: `[b, c]`, before the sigmoid.
    pub fn logits(&self, pictures: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let scale = self.logit_scale.exp()?;
        let dots = pictures.matmul(&texts.t()?.contiguous()?)?;
        Ok(dots.broadcast_mul(&scale)?.broadcast_add(&self.logit_bias)?)
    }
}

fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}
