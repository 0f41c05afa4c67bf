//! A picture tower and a text tower that agree: CLIP (Radford et al. 2021, <https://arxiv.org/abs/2103.00020>), SigLIP
//! (Zhai et al. 2023, <https://arxiv.org/abs/2303.15343>) and SigLIP 2 (<https://arxiv.org/abs/2502.14786>).

use crate::config::{activation, count, number};
use crate::names::{renamed, table};
use crate::{Encoder, EncoderConfig, Tap, VisionConfig, Vit};
use candle_core::{D, Tensor};
use serde_json::Value;
use vela_nn::{Embedding, Error, Init, Linear, Mask, Norm, NormConfig, Result, Weights};

/// Both towers and the scale on which they are compared.
#[derive(Clone, Debug)]
pub struct Towers {
    vision: Vit,
    vision_head: Option<Linear>,
    tokens: Embedding,
    positions: Tensor,
    encoder: Encoder,
    mask: Mask,
    final_norm: Norm,
    stands: Stands,
    text_head: Linear,
    logit_scale: Tensor,
    logit_bias: Option<Tensor>,
}

/// Which token stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// The last one.
    Last,
    /// The first one with this id.
    First(u32),
    /// The one with the largest id.
    Largest,
}

impl Towers {
    /// Reads a whole checkpoint by its `config.json`.
    ///
    /// # Errors
    /// A `model_type` other than clip, siglip and siglip2, tensors that are missing, left over or of another shape.
    pub fn new(weights: &Weights, config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        let clip = match kind {
            "clip" => true,
            "siglip" | "siglip2" => false,
            other => {
                return Err(Error::invalid(format!(
                    "model_type '{other}' is no pair of towers; known: clip, siglip, siglip2"
                )));
            }
        };
        let nothing = Value::Null;
        let seen = config.get("vision_config").unwrap_or(&nothing);
        let vision_kind = seen.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        let weights = renamed(weights, "vision_model.", table(vision_kind))?;
        let vision = VisionConfig::from_hf(seen)?;

        let text = config.get("text_config").unwrap_or(&nothing);
        // Default sizes as in the reference's configuration classes.
        let (width, inner, heads, vocab, length) =
            if clip { (512, 2048, 8, 49_408, 77) } else { (768, 3072, 12, 32_000, 64) };
        let (eps, act) = if clip { (1e-5, "quick_gelu") } else { (1e-6, "gelu_pytorch_tanh") };
        let width = count(text, "hidden_size", width)?;
        let norm = NormConfig::LayerNorm { eps: number(text, "layer_norm_eps", eps)? as f32, bias: true };
        let encoder = EncoderConfig {
            width,
            inner_width: count(text, "intermediate_size", inner)?,
            layers: count(text, "num_hidden_layers", 12)?,
            heads: count(text, "num_attention_heads", heads)?,
            norm,
            activation: activation(text, act)?,
            gated: false,
            layer_scale: false,
        };
        let vocab = count(text, "vocab_size", vocab)?;
        let length = count(text, "max_position_embeddings", length)?;
        let common = count(config, "projection_dim", 512)?;
        let tower = weights.pp("text_model");
        let embeddings = tower.pp("embeddings");
        let head = |name: &str, input: usize| Linear::new(&weights.pp(name), input, common, false);
        let one = |name: &str, value: f32| -> Result<Tensor> {
            let init = Init::Constant(value);
            // CLIP stores a number, SigLIP a list of one.
            let stored =
                if clip { weights.get_init((), name, init)? } else { weights.get_init(1, name, init)? };
            Ok(stored.reshape(1)?)
        };
        Ok(Self {
            vision_head: clip.then(|| head("visual_projection", vision.width)).transpose()?,
            vision: Vit::new(&weights.pp("vision_model"), &vision)?,
            tokens: Embedding::new(&embeddings.pp("token_embedding"), vocab, width)?,
            positions: embeddings.pp("position_embedding").get((length, width), "weight")?,
            encoder: Encoder::new(&tower.pp("encoder"), encoder)?,
            mask: if clip { Mask::Causal } else { Mask::None },
            final_norm: Norm::new(&tower.pp("final_layer_norm"), width, norm)?,
            stands: match (clip, count(text, "eos_token_id", 49_407)?) {
                (false, _) => Stands::Last,
                // Checkpoints older than the fix say 2 and mean the largest id.
                (true, 2) => Stands::Largest,
                (true, id) => Stands::First(id as u32),
            },
            text_head: if clip {
                head("text_projection", width)?
            } else {
                let projection = count(text, "projection_size", width)?;
                Linear::new(&tower.pp("head"), width, projection, true)?
            },
            logit_scale: one("logit_scale", if clip { 2.6592 } else { 10f32.ln() })?,
            logit_bias: if clip { None } else { Some(one("logit_bias", -10.0)?) },
        })
        .and_then(|made: Self| weights.finish().map(|()| made))
    }

    /// The picture tower.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// `pixels [b, 3, h, w]` to vectors of length one, `[b, width]`. Taps the tower's stages and `pooled`.
    pub fn embed_pictures(&self, pixels: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let tokens = self.vision.forward_tapped(pixels, tap)?;
        self.project(self.vision.pool(&tokens)?, tap)
    }

    /// The same for rows of patches `[b, n, values]` of pictures of these grids (SigLIP 2).
    pub fn embed_patches(&self, patches: &Tensor, grids: &[(usize, usize)], tap: &mut Tap) -> Result<Tensor> {
        let tokens = self.vision.forward_patches(patches, grids, tap)?;
        self.project(self.vision.pool_patches(&tokens, grids)?, tap)
    }

    fn project(&self, pooled: Tensor, tap: &mut Tap) -> Result<Tensor> {
        let pooled = match &self.vision_head {
            Some(head) => head.forward(&pooled)?,
            None => pooled,
        };
        tap("pooled", &pooled);
        unit(&pooled)
    }

    /// `ids [b, t]` (u32) to vectors of length one, `[b, width]`. SigLIP's texts are padded to the tower's length, and the
    /// last position stands for the text. Taps as the other tower.
    pub fn embed_texts(&self, ids: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let (b, length) = ids.dims2()?;
        if length == 0 || length > self.positions.dim(0)? {
            let expected = format!("[b, 1 to {}]", self.positions.dim(0)?);
            return Err(Error::shape("text ids", expected, ids.dims()));
        }
        let x = self.tokens.forward(ids)?.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        tap("embeddings", &x);
        let x = self.final_norm.forward(&self.encoder.forward(&x, &self.mask, tap)?)?;
        tap("last_hidden_state", &x);
        let mut stand = Vec::with_capacity(b);
        for (i, row) in ids.to_vec2::<u32>()?.iter().enumerate() {
            let at = match self.stands {
                Stands::Last => Some(length - 1),
                Stands::First(id) => row.iter().position(|x| *x == id),
                Stands::Largest => {
                    let largest = row.iter().max();
                    row.iter().position(|x| Some(x) == largest)
                }
            };
            let at = at.ok_or_else(|| Error::invalid(format!("text {i} has no end token")))?;
            stand.push(x.narrow(0, i, 1)?.narrow(1, at, 1)?.squeeze(1)?);
        }
        let pooled = self.text_head.forward(&Tensor::cat(&stand, 0)?)?;
        tap("pooled", &pooled);
        unit(&pooled)
    }

    /// How well each picture `[b, width]` fits each text `[c, width]`: `[b, c]`, before the sigmoid or softmax.
    pub fn logits(&self, pictures: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let scale = self.logit_scale.exp()?;
        let logits = pictures.matmul(&texts.t()?.contiguous()?)?.broadcast_mul(&scale)?;
        Ok(match &self.logit_bias {
            Some(bias) => logits.broadcast_add(bias)?,
            None => logits,
        })
    }
}

fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}
