//! One layer of a decoder.

use super::beside::Side;
use super::feed_forward::Network;
use crate::config::{Block, DecoderConfig, Mixer, Names};
use candle_core::{D, Tensor};
use vela_nn::{Error, Linear, Norm, Result, Weights};

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    block: Block,
    names: Names,
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
    fn one(&self, x: &Tensor, which: usize, names: &Names, side: Side) -> Result<Tensor> {
        match self {
            Self::Apart(all) => side.through([names.q, names.k, names.v][which], &all[which], x),
            Self::Fused(all, widths) => part(&side.through(names.qkv, all, x)?, widths, which),
        }
    }

    /// All three of `norm` of `x`.
    fn all(&self, norm: &Norm, x: &Tensor, names: &Names, side: Side) -> Result<[Tensor; 3]> {
        let (layers, names) = match self {
            Self::Apart([q, k, v]) => (vec![q, k, v], vec![names.q, names.k, names.v]),
            Self::Fused(all, _) => (vec![all], vec![names.qkv]),
        };
        let all = match side.is_empty() {
            true => Linear::forward_normed(&layers, norm, x)?,
            false => {
                let x = norm.forward(x)?;
                let all = Linear::forward_all(&layers, &x)?;
                all.into_iter().zip(names).map(|(y, name)| side.after(name, &x, y)).collect::<Result<_>>()?
            }
        };
        match (self, &all[..]) {
            (Self::Apart(_), [q, k, v]) => Ok([q.clone(), k.clone(), v.clone()]),
            (Self::Fused(_, widths), [y]) => {
                Ok([part(y, widths, 0)?, part(y, widths, 1)?, part(y, widths, 2)?])
            }
            _ => Err(Error::invalid("attention: expected three projections")),
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
    pub fn queries(&self, x: &Tensor, names: &Names, side: Side) -> Result<Tensor> {
        side.through(names.cross[0], &self.q, &self.norm.forward(x)?)
    }

    /// The residual stream with what was found added.
    pub fn add(&self, x: &Tensor, found: &Tensor, names: &Names, side: Side) -> Result<Tensor> {
        Ok((x + side.through(names.cross[3], &self.o, found)?)?)
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
    /// Reads layer `index`, under the names of its family.
    pub fn at(weights: &Weights, config: &DecoderConfig, index: usize) -> Result<Self> {
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
                linear(names.k, width, keys, config.qkv_bias)?,
                linear(names.v, width, keys, config.qkv_bias)?,
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
            names,
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

    /// Keys `[b, t, kv_heads * head_dim]`, before the rotary embedding.
    pub(super) fn keys(&self, x: &Tensor, side: Side) -> Result<Tensor> {
        self.normalised(self.qkv.one(x, 1, &self.names, side)?, 1)
    }

    /// Values `[b, t, kv_heads * head_dim]`.
    pub(super) fn values(&self, x: &Tensor, side: Side) -> Result<Tensor> {
        self.qkv.one(x, 2, &self.names, side)
    }

    /// Queries, keys and values of the residual stream, before the rotary embedding.
    pub(super) fn projections(&self, x: &Tensor, side: Side) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.qkv.all(&self.norm1, x, &self.names, side)?;
        Ok([self.normalised(q, 0)?, self.normalised(k, 1)?, v])
    }

    /// Heads side by side, each normalised by itself.
    fn normalised(&self, x: Tensor, which: usize) -> Result<Tensor> {
        let Some(norms) = &self.qk_norm else { return Ok(x) };
        let heads = x.reshape(((), self.head_dim))?;
        Ok(norms[which].forward(&heads)?.reshape(x.shape())?)
    }

    /// The residual stream `x [b, t, width]` after what attention found (`[b, t, heads * head_dim]`), what `recall`
    /// finds in a memory for its queries, and the feed-forward network have been added.
    pub(super) fn add(
        &self,
        x: &Tensor,
        attended: &Tensor,
        side: Side,
        recall: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let found = side.through(self.names.o, &self.o, attended)?;
        let attended = (x + after(&self.norm1_after, found)?)?;
        if self.block == Block::Parallel {
            return Ok((attended + self.network.forward(Some(&self.norm1), x, &self.names, side)?)?);
        }
        let x = match &self.cross {
            None => attended,
            Some(cross) => {
                let found = recall(&cross.queries(&attended, &self.names, side)?)?;
                cross.add(&attended, &found, &self.names, side)?
            }
        };
        let y = self.network.forward(self.norm2.as_ref(), &x, &self.names, side)?;
        Ok((x + after(&self.norm2_after, y)?)?)
    }

    /// Attention to a memory, if the layer has it.
    pub(super) fn cross(&self) -> Option<&Cross> {
        self.cross.as_ref()
    }
}

fn after(norm: &Option<Norm>, x: Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
}
