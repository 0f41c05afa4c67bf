//! Pre-norm transformer blocks that see each other wholly or in parts: the body of every tower here.

use crate::Tap;
use candle_core::Tensor;
use vela_nn::rope::RopeAngles;
use vela_nn::{
    Activation, Error, Heads, Init, Linear, Mask, Mlp, MlpConfig, Norm, NormConfig, Result, Weights,
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
    /// Whether the feed-forward network is gated.
    pub gated: bool,
    /// Whether what a block adds is scaled per channel.
    pub layer_scale: bool,
}

impl EncoderConfig {
    /// Factor on `q · k`.
    pub fn scale(&self) -> f32 {
        1.0 / ((self.width / self.heads.max(1)) as f32).sqrt()
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.heads, key: self.heads }
    }

    pub(crate) fn mlp(&self) -> MlpConfig {
        MlpConfig {
            input: self.width,
            hidden: self.inner_width,
            output: self.width,
            activation: self.activation,
            gated: self.gated,
            bias: true,
        }
    }
}

/// Whom the tokens of a block see.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// Whom a mask allows.
    Mask(&'a Mask),
    /// The tokens of their own run; runs have these lengths, one after the other, and the batch is 1.
    Runs(&'a [usize]),
}

/// How tokens go through the blocks.
pub struct Path<'a> {
    /// Whom they see in each block.
    pub sight: &'a dyn Fn(usize) -> Sight<'a>,
    /// How positions turn queries and keys, if they do.
    pub angles: Option<&'a RopeAngles>,
    /// Blocks to go through, from the first on.
    pub blocks: usize,
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
    qkv: [Linear; 3],
    out: Linear,
    scale1: Option<Tensor>,
    norm2: Norm,
    mlp: Mlp,
    scale2: Option<Tensor>,
}

/// Queries, keys and values of `width` from one fused map, `[3 * width, width]`.
pub(crate) fn fused(weights: &Weights, [weight, bias]: [&str; 2], width: usize) -> Result<[Linear; 3]> {
    let weight = weights.get_init((3 * width, width), weight, Init::XavierUniform)?;
    let bias = weights.get_init(3 * width, bias, Init::Zeros)?;
    let part = |i: usize| {
        let bias = bias.narrow(0, i * width, width)?.contiguous()?;
        Linear::from_tensors(weight.narrow(0, i * width, width)?.contiguous()?, Some(bias))
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

impl Encoder {
    /// Reads `layers.{i}.{layer_norm1,self_attn.{q,k,v,out}_proj,layer_norm2,mlp.{fc1,fc2}}`; where a checkpoint has
    /// `self_attn.qkv` it reads that, a gated network is `mlp.{gate,up,down}_proj`, and scales are `scale1`, `scale2`.
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
            let linear = |name: &str| Linear::new(&attention.pp(name), w, w, true);
            let scale =
                |name: &str| config.layer_scale.then(|| weights.get_init(w, name, Init::Ones)).transpose();
            Ok(Block {
                norm1: Norm::new(&weights.pp("layer_norm1"), w, config.norm)?,
                qkv: if attention.contains("qkv.weight") {
                    fused(&attention, ["qkv.weight", "qkv.bias"], w)?
                } else {
                    [linear("q_proj")?, linear("k_proj")?, linear("v_proj")?]
                },
                out: linear("out_proj")?,
                scale1: scale("scale1")?,
                norm2: Norm::new(&weights.pp("layer_norm2"), w, config.norm)?,
                mlp: Mlp::new(&weights.pp("mlp"), config.mlp())?,
                scale2: scale("scale2")?,
            })
        };
        Ok(Self { config, blocks: (0..config.layers).map(block).collect::<Result<_>>()? })
    }

    /// `x [b, n, width]` to the same shape; taps `hidden.{i}`.
    pub fn forward(&self, x: &Tensor, mask: &Mask, tap: &mut Tap) -> Result<Tensor> {
        let path = Path { sight: &|_| Sight::Mask(mask), angles: None, blocks: self.blocks.len() };
        self.forward_along(x, &path, tap)
    }

    /// The same along a path of one's own.
    pub fn forward_along(&self, x: &Tensor, path: &Path, tap: &mut Tap) -> Result<Tensor> {
        // The buffers of one picture serve the next.
        vela_nn::keep_freed();
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().take(path.blocks).enumerate() {
            let mut qkv = Linear::forward_normed(&block.qkv.each_ref(), &block.norm1, &x)?;
            if let Some(angles) = path.angles {
                for turned in &mut qkv[..2] {
                    *turned = angles.apply_packed(turned, self.config.heads)?;
                }
            }
            let y = self.attend(&qkv[0], &qkv[1], &qkv[2], (path.sight)(i))?;
            x = add(&x, block.out.forward(&y)?, block.scale1.as_ref())?;
            x = add(&x, block.mlp.forward_normed(&block.norm2, &x)?, block.scale2.as_ref())?;
            tap(&format!("hidden.{i}"), &x);
        }
        Ok(x)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, sight: Sight) -> Result<Tensor> {
        let (heads, scale) = (self.config.heads(), self.config.scale());
        let runs = match sight {
            Sight::Mask(mask) => return attention_packed(q, k, v, heads, mask, scale),
            Sight::Runs(runs) => runs,
        };
        let (b, n, width) = q.dims3()?;
        if b != 1 || runs.iter().sum::<usize>() != n {
            let expected = format!("[1, {}, width]", runs.iter().sum::<usize>());
            return Err(Error::shape("tokens in runs", expected, q.dims()));
        }
        // Neighbouring runs of one length are a batch.
        let (mut found, mut start) = (Vec::new(), 0);
        for equal in runs.chunk_by(|a, b| a == b) {
            let (count, length) = (equal.len(), equal[0]);
            let part = |x: &Tensor| -> Result<Tensor> {
                Ok(x.narrow(1, start, count * length)?.contiguous()?.reshape((count, length, width))?)
            };
            let y = attention_packed(&part(q)?, &part(k)?, &part(v)?, heads, &Mask::None, scale)?;
            found.push(y.reshape((1, count * length, width))?);
            start += count * length;
        }
        Ok(Tensor::cat(&found, 1)?)
    }
}

fn add(x: &Tensor, found: Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    Ok(match scale {
        Some(scale) => (x + found.broadcast_mul(scale)?)?,
        None => (x + found)?,
    })
}
