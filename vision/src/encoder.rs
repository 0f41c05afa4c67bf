//! Pre-norm transformer blocks that see each other wholly: the body of every tower here.

use crate::Tap;
use candle_core::Tensor;
use vela_nn::{
    Activation, Error, Heads, Linear, Mask, Mlp, MlpConfig, Norm, NormConfig, Result, Weights,
    attention_packed,
};

/// What the blocks of one encoder share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderConfig {
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
}

impl EncoderConfig {
    /// Factor on `q · k`.
    pub fn scale(&self) -> f32 {
        1.0 / ((self.width / self.heads.max(1)) as f32).sqrt()
    }

    fn heads(&self) -> Heads {
        Heads { query: self.heads, key: self.heads }
    }

    pub(crate) fn mlp(&self) -> MlpConfig {
        MlpConfig {
            input: self.width,
            hidden: self.inner_width,
            output: self.width,
            activation: self.activation,
            gated: false,
            bias: true,
        }
    }
}

/// A stack of blocks, named as SigLIP and CLIP name them.
#[derive(Clone, Debug)]
pub struct Encoder {
    config: EncoderConfig,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    mlp: Mlp,
}

impl Encoder {
    /// Reads `layers.{i}.{layer_norm1,self_attn.{q,k,v,out}_proj,layer_norm2,mlp.{fc1,fc2}}`.
    pub fn new(weights: &Weights, config: EncoderConfig) -> Result<Self> {
        let w = config.width;
        if config.heads == 0 || !w.is_multiple_of(config.heads) {
            return Err(Error::invalid(format!(
                "encoder: width {w} is no multiple of {} heads",
                config.heads
            )));
        }
        let block = |i: usize| {
            let weights = weights.pp("layers").pp(i);
            let attention = weights.pp("self_attn");
            Ok(Block {
                norm1: Norm::new(&weights.pp("layer_norm1"), w, config.norm)?,
                q: Linear::new(&attention.pp("q_proj"), w, w, true)?,
                k: Linear::new(&attention.pp("k_proj"), w, w, true)?,
                v: Linear::new(&attention.pp("v_proj"), w, w, true)?,
                out: Linear::new(&attention.pp("out_proj"), w, w, true)?,
                norm2: Norm::new(&weights.pp("layer_norm2"), w, config.norm)?,
                mlp: Mlp::new(&weights.pp("mlp"), config.mlp())?,
            })
        };
        Ok(Self { config, blocks: (0..config.layers).map(block).collect::<Result<_>>()? })
    }

    /// `x [b, n, width]` to the same shape; taps `hidden.{i}`.
    pub fn forward(&self, x: &Tensor, mask: &Mask, tap: &mut Tap) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let y = block.norm1.forward(&x)?;
            let (q, k, v) = (block.q.forward(&y)?, block.k.forward(&y)?, block.v.forward(&y)?);
            let y = attention_packed(&q, &k, &v, self.config.heads(), mask, self.config.scale())?;
            x = (x + block.out.forward(&y)?)?;
            x = (&x + block.mlp.forward(&block.norm2.forward(&x)?)?)?;
            tap(&format!("hidden.{i}"), &x);
        }
        Ok(x)
    }
}
