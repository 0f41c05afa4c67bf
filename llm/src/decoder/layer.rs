//! One layer of a decoder.

use super::feed_forward::Network;
use crate::config::{Block, DecoderConfig, Mixer};
use candle_core::{D, Tensor};
use vela_nn::{Error, Linear, Norm, Result, Weights};

/// One layer; its parts are open, because an action expert runs beside it.
#[derive(Clone, Debug)]
pub struct Layer {
    block: Block,
    head_dim: usize,
    norm1: Norm,
    qkv: Projections,
    qk_norm: Option<[Norm; 2]>,
    o: Linear,
    norm1_after: Option<Norm>,
    cross: Option<Cross>,
    norm2: Option<Norm>,
    network: Network,
    norm2_after: Option<Norm>,
}

/// Queries, keys and values.
#[derive(Clone, Debug)]
enum Projections {
    Apart([Linear; 3]),
    /// One projection for all three, and where each ends.
    Fused(Linear, [usize; 3]),
}

impl Projections {
    fn one(&self, x: &Tensor, which: usize) -> Result<Tensor> {
        match self {
            Self::Apart(all) => all[which].forward(x),
            Self::Fused(all, widths) => part(&all.forward(x)?, widths, which),
        }
    }

    fn all(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        match self {
            Self::Apart([q, k, v]) => {
                let all = Linear::forward_all(&[q, k, v], x)?;
                <[Tensor; 3]>::try_from(all)
                    .map_err(|_| Error::invalid("attention: expected three projections"))
            }
            Self::Fused(all, widths) => {
                let y = all.forward(x)?;
                Ok([part(&y, widths, 0)?, part(&y, widths, 1)?, part(&y, widths, 2)?])
            }
        }
    }
}

fn part(all: &Tensor, widths: &[usize; 3], which: usize) -> Result<Tensor> {
    let start = widths[..which].iter().sum();
    Ok(all.narrow(D::Minus1, start, widths[which])?.contiguous()?)
}

/// Attention to a memory: what an encoder read.
#[derive(Clone, Debug)]
pub(super) struct Cross {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

impl Cross {
    /// Queries `[b, t, heads * d]` of the residual stream.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.q.forward(&self.norm.forward(x)?)
    }

    /// The residual stream with what was found added.
    pub fn add(&self, x: &Tensor, found: &Tensor) -> Result<Tensor> {
        Ok((x + self.o.forward(found)?)?)
    }

    /// Keys and values of a memory `[b, s, memory_width]`.
    pub fn remember(&self, memory: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.k.forward(memory)?, self.v.forward(memory)?))
    }
}

/// A projection; `transposed` matrices are stored `[input, output]`.
pub(super) fn linear(
    weights: &Weights,
    transposed: bool,
    input: usize,
    output: usize,
    bias: bool,
) -> Result<Linear> {
    if !transposed {
        return Linear::new(weights, input, output, bias);
    }
    let weight = weights.get((input, output), "weight")?;
    let bias = if bias { Some(weights.get(output, "bias")?) } else { None };
    if weight.track_op() {
        return Err(Error::invalid(format!(
            "{}: a matrix that is stored [input, output] cannot be trained",
            weights.prefix()
        )));
    }
    Linear::from_tensors(weight.t()?.contiguous()?, bias)
}

impl Layer {
    /// Reads layer 0 of `config`, or any, if all its layers are alike: see [`Layer::at`].
    pub fn new(weights: &Weights, config: &DecoderConfig, key_width: usize) -> Result<Self> {
        Self::at(weights, config, 0, key_width)
    }

    /// Reads layer `index`, under the names of its family, for hidden states of `width`; keys and values are projected
    /// from `key_width` numbers (the width itself, or, where they come from another model's cache,
    /// `kv_heads * head_dim`).
    pub fn at(weights: &Weights, config: &DecoderConfig, index: usize, key_width: usize) -> Result<Self> {
        let Mixer::Attention = config.mixer;
        let (width, names) = (config.width, config.names.table());
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let norm = |name: &str| Norm::new(&weights.pp(name), width, config.norm);
        let linear = |name: &str, input: usize, output: usize, bias: bool| {
            linear(&weights.pp(name), names.transposed, input, output, bias)
        };
        let qkv = match names.qkv {
            "" => Projections::Apart([
                linear(names.q, width, queries, config.qkv_bias)?,
                linear(names.k, key_width, keys, config.qkv_bias)?,
                linear(names.v, key_width, keys, config.qkv_bias)?,
            ]),
            name => Projections::Fused(
                linear(name, width, queries + 2 * keys, config.qkv_bias)?,
                [queries, keys, keys],
            ),
        };
        let head_norm = |name: &str| Norm::new(&weights.pp(name), config.head_dim, config.norm);
        let cross = |memory: usize| -> Result<Cross> {
            let [q, k, v, o] = names.cross;
            Ok(Cross {
                norm: norm(names.cross_norm)?,
                q: linear(q, width, queries, config.qkv_bias)?,
                k: linear(k, memory, keys, config.qkv_bias)?,
                v: linear(v, memory, keys, config.qkv_bias)?,
                o: linear(o, queries, width, config.output_bias)?,
            })
        };
        let when = |is: bool, name: &str| if is { norm(name).map(Some) } else { Ok(None) };
        let sandwich = config.block == Block::Sandwich;
        Ok(Self {
            block: config.block,
            head_dim: config.head_dim,
            norm1: norm(names.norm1)?,
            qkv,
            qk_norm: if config.qk_norm {
                Some([head_norm(names.q_norm)?, head_norm(names.k_norm)?])
            } else {
                None
            },
            o: linear(names.o, queries, width, config.output_bias)?,
            norm1_after: when(sandwich, names.norm1_after)?,
            cross: config.memory_width.map(cross).transpose()?,
            norm2: when(config.block != Block::Parallel, names.norm2)?,
            network: Network::new(weights, config, index)?,
            norm2_after: when(sandwich, names.norm2_after)?,
        })
    }

    /// The normalised input of attention, `[b, t, width]`.
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.norm1.forward(x)
    }

    /// Queries `[b, t, heads * head_dim]`, before the rotary embedding.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.normalised(self.qkv.one(x, 0)?, 0)
    }

    /// Keys `[b, t, kv_heads * head_dim]`, before the rotary embedding.
    pub fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.normalised(self.qkv.one(x, 1)?, 1)
    }

    /// Values `[b, t, kv_heads * head_dim]`.
    pub fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.qkv.one(x, 2)
    }

    /// All three.
    pub fn projections(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.qkv.all(x)?;
        Ok([self.normalised(q, 0)?, self.normalised(k, 1)?, v])
    }

    /// Heads side by side, each normalised by itself.
    fn normalised(&self, x: Tensor, which: usize) -> Result<Tensor> {
        let Some(norms) = &self.qk_norm else { return Ok(x) };
        let heads = x.reshape(((), self.head_dim))?;
        Ok(norms[which].forward(&heads)?.reshape(x.shape())?)
    }

    /// The residual stream `x [b, t, width]` after what attention found (`[b, t, heads * head_dim]`) and the
    /// feed-forward network have been added.
    pub fn add(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        if self.block == Block::Parallel {
            let fed = self.network.forward(&self.norm1.forward(x)?)?;
            return Ok((self.add_attended(x, attended)? + fed)?);
        }
        self.add_fed(&self.add_attended(x, attended)?)
    }

    /// The residual stream with what attention found added.
    pub(super) fn add_attended(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let found = self.o.forward(attended)?;
        Ok((x + after(&self.norm1_after, found)?)?)
    }

    /// The residual stream with what the feed-forward network makes of it added.
    pub(super) fn add_fed(&self, x: &Tensor) -> Result<Tensor> {
        let y = after(&self.norm2, x.clone())?;
        Ok((x + after(&self.norm2_after, self.network.forward(&y)?)?)?)
    }

    /// Attention to a memory, if the layer has it.
    pub(super) fn cross(&self) -> Option<&Cross> {
        self.cross.as_ref()
    }
}

fn after(norm: &Option<Norm>, x: Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
}
