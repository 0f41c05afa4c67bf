//! The vision transformer: patches to tokens, blocks, and a pooled vector where the family has one.

use crate::{Encoder, EncoderConfig, Pooling, Tap, VisionConfig};
use candle_core::Tensor;
use vela_nn::{Error, Heads, Init, Linear, Mask, Mlp, Norm, Result, Weights, attention_packed};

/// A vision transformer.
#[derive(Clone, Debug)]
pub struct Vit {
    config: VisionConfig,
    patch: Linear,
    positions: Tensor,
    encoder: Encoder,
    final_norm: Option<Norm>,
    probe: Option<Probe>,
}

impl Vit {
    /// Reads `embeddings.*`, `encoder.*`, `post_layernorm.*` and, if the config pools, `head.*`.
    pub fn new(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        config.check()?;
        let (width, patch, channels) = (config.width, config.patch_size, config.channels);
        let embeddings = weights.pp("embeddings");
        // A convolution whose stride is its size is a linear map of patches.
        let conv = embeddings.pp("patch_embedding");
        let kernel = conv.get_init((width, channels, patch, patch), "weight", Init::XavierUniform)?;
        let kernel = kernel.reshape((width, channels * patch * patch))?;
        let encoder = EncoderConfig {
            width,
            inner_width: config.inner_width,
            layers: config.layers,
            heads: config.heads,
            norm: config.norm,
            activation: config.activation,
        };
        let probe = match config.pooling {
            Pooling::None => None,
            Pooling::Probe => Some(Probe::new(&weights.pp("head"), encoder)?),
        };
        let final_norm =
            config.final_norm.then(|| Norm::new(&weights.pp("post_layernorm"), width, config.norm));
        Ok(Self {
            patch: Linear::from_tensors(kernel, Some(conv.get_init(width, "bias", Init::Zeros)?))?,
            positions: embeddings.pp("position_embedding").get((config.patches(), width), "weight")?,
            encoder: Encoder::new(&weights.pp("encoder"), encoder)?,
            final_norm: final_norm.transpose()?,
            probe,
            config: config.clone(),
        })
    }

    /// What it is.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `pixels [b, channels, image_size, image_size]`, normalised as the family does, to tokens
    /// `[b, patches, width]`, row by row from the top left. Differentiable in the weights.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_tapped(pixels, &mut |_, _| {})
    }

    /// The same; taps `patch_embeddings`, `embeddings`, `hidden.{i}`, `last_hidden_state`.
    pub fn forward_tapped(&self, pixels: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let x = self.patch.forward(&self.patchify(pixels)?)?;
        tap("patch_embeddings", &x);
        let x = x.broadcast_add(&self.positions)?;
        tap("embeddings", &x);
        let mut x = self.encoder.forward(&x, &Mask::None, tap)?;
        if let Some(norm) = &self.final_norm {
            x = norm.forward(&x)?;
        }
        tap("last_hidden_state", &x);
        Ok(x)
    }

    /// `[b, patches, width]` from [`Vit::forward`] to one vector each, `[b, width]`.
    ///
    /// # Errors
    /// The model does not pool.
    pub fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.probe {
            Some(probe) => probe.forward(tokens),
            None => Err(Error::invalid("this vision tower has no pooling head")),
        }
    }

    /// `[b, c, h, w]` to patches `[b, n, c * p * p]`, the layout of a convolution's kernel.
    fn patchify(&self, pixels: &Tensor) -> Result<Tensor> {
        let VisionConfig { image_size, patch_size: p, channels, .. } = self.config;
        let (b, c, height, width) = pixels.dims4()?;
        if (c, height, width) != (channels, image_size, image_size) {
            let expected = format!("[b, {channels}, {image_size}, {image_size}]");
            return Err(Error::shape("pixels", expected, pixels.dims()));
        }
        let grid = self.config.grid();
        let pixels = pixels.narrow(2, 0, grid * p)?.narrow(3, 0, grid * p)?.contiguous()?;
        let patches = pixels.reshape(vec![b, c, grid, p, grid, p])?.permute(vec![0, 2, 4, 1, 3, 5])?;
        Ok(patches.reshape((b, grid * grid, c * p * p))?)
    }
}

/// SigLIP's pooling: a learned query attends to all tokens, then a feed-forward network with a residual.
#[derive(Clone, Debug)]
struct Probe {
    config: EncoderConfig,
    probe: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm: Norm,
    mlp: Mlp,
}

impl Probe {
    fn new(weights: &Weights, config: EncoderConfig) -> Result<Self> {
        let w = config.width;
        let attention = weights.pp("attention");
        let weight = attention.get_init((3 * w, w), "in_proj_weight", Init::XavierUniform)?;
        let bias = attention.get_init(3 * w, "in_proj_bias", Init::Zeros)?;
        let part = |i: usize| {
            Linear::from_tensors(
                weight.narrow(0, i * w, w)?.contiguous()?,
                Some(bias.narrow(0, i * w, w)?.contiguous()?),
            )
        };
        Ok(Self {
            config,
            probe: weights.get((1, 1, w), "probe")?,
            q: part(0)?,
            k: part(1)?,
            v: part(2)?,
            out: Linear::new(&attention.pp("out_proj"), w, w, true)?,
            norm: Norm::new(&weights.pp("layernorm"), w, config.norm)?,
            mlp: Mlp::new(&weights.pp("mlp"), config.mlp())?,
        })
    }

    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (b, _, w) = tokens.dims3()?;
        let probe = self.probe.broadcast_as((b, 1, w))?.contiguous()?;
        let heads = Heads { query: self.config.heads, key: self.config.heads };
        let (q, k, v) = (self.q.forward(&probe)?, self.k.forward(tokens)?, self.v.forward(tokens)?);
        let y = self.out.forward(&attention_packed(&q, &k, &v, heads, &Mask::None, self.config.scale())?)?;
        Ok((&y + self.mlp.forward(&self.norm.forward(&y)?)?)?.squeeze(1)?)
    }
}
