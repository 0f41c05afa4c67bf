//! Scaled dot-product attention (Vaswani et al., 2017) with grouped heads (Ainslie et al., 2023) and structured masks.

use crate::kernels::attention::{After, distances};
use crate::{Error, Result, kernels};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// Which keys a query may attend to. Masks are the same for all heads.
#[derive(Clone, Debug, Default)]
pub enum Mask {
    /// All of them.
    #[default]
    None,
    /// Queries are the last `t` of `s` positions, and see themselves and what is before.
    Causal,
    /// Causal, and only the last `size` positions (itself included).
    Window {
        /// Positions seen.
        size: usize,
    },
    /// A query sees a key if the key is valid and its block is not later: `key_valid && key_block <= query_block`.
    /// Blocks of equal number see each other wholly (prefix images and text 0, state 1, actions 2; or counting up: causal).
    Blocks {
        /// Block of each query: `[t]`, or `[b * t]` for one per batch element.
        query_block: Arc<[u32]>,
        /// Block of each key: `[s]` or `[b * s]`.
        key_block: Arc<[u32]>,
        /// Whether each key exists (is not padding): `[b * s]`, `[s]`, or empty for all.
        key_valid: Arc<[bool]>,
    },
    /// 1 where query may see key: u8 `[b, t, s]`, `[1, t, s]`.
    Dense(Tensor),
    /// What another mask shows, but only the last `size` positions (itself included). Made by [`Mask::windowed`].
    Near {
        /// Positions seen.
        size: usize,
        /// The other mask.
        of: Arc<Mask>,
    },
}

impl Mask {
    /// Block-causal mask from plain lists (see [`Mask::Blocks`]).
    pub fn blocks(query_block: Vec<u32>, key_block: Vec<u32>, key_valid: Vec<bool>) -> Self {
        Self::Blocks {
            query_block: query_block.into(),
            key_block: key_block.into(),
            key_valid: key_valid.into(),
        }
    }

    /// This mask, and only the last `size` positions (itself included); later positions are as this mask says.
    pub fn windowed(&self, size: usize) -> Self {
        match self {
            Self::Causal => Self::Window { size },
            Self::Window { size: other } => Self::Window { size: size.min(*other) },
            other => Self::Near { size, of: Arc::new(other.clone()) },
        }
    }

    /// The mask written out: 1 where query may see key, `[b, t, s]`.
    pub fn dense(&self, b: usize, t: usize, s: usize) -> Result<Vec<u8>> {
        let visible = self.visible(b, t, s)?;
        let mut out = Vec::with_capacity(b * t * s);
        let mut scores = vec![0f32; s];
        for batch in 0..b {
            for row in 0..t {
                let keys = visible.keys(row, 1);
                scores.fill(f32::NEG_INFINITY);
                scores[keys.clone()].fill(0.0);
                visible.hide(batch, row, keys.start, &mut scores[keys]);
                out.extend(scores.iter().map(|score| u8::from(*score == 0.0)));
            }
        }
        Ok(out)
    }

    /// The mask made ready for `b` batch elements, `t` queries and `s` keys.
    pub(crate) fn visible(&self, b: usize, t: usize, s: usize) -> Result<Visible> {
        self.check(b, t, s)?;
        let dense = match self {
            Self::Dense(mask) => mask.flatten_all()?.to_vec1::<u8>()?,
            Self::Near { size, of } => {
                let inner = of.visible(b, t, s)?;
                return Ok(Visible { near: inner.near.min(*size), ..inner });
            }
            _ => Vec::new(),
        };
        Ok(Visible { mask: self.clone(), dense: dense.into(), near: usize::MAX, t, s })
    }

    /// Whether the mask fits `b` batch elements, `t` queries and `s` keys.
    fn check(&self, b: usize, t: usize, s: usize) -> Result<()> {
        let fits = |len: usize, n: usize| len == n || len == b * n;
        match self {
            Self::None => Ok(()),
            Self::Near { of, .. } => of.check(b, t, s),
            Self::Causal | Self::Window { .. } if t <= s => Ok(()),
            Self::Causal | Self::Window { .. } => {
                Err(Error::invalid(format!("causal attention of {t} queries over only {s} keys")))
            }
            Self::Blocks { query_block, key_block, key_valid } => {
                if fits(query_block.len(), t)
                    && fits(key_block.len(), s)
                    && (key_valid.is_empty() || fits(key_valid.len(), s))
                {
                    return Ok(());
                }
                let got = [query_block.len(), key_block.len(), key_valid.len()];
                let expected = format!(
                    "query blocks [{t}], key blocks [{s}], validity [{s}], each once or for all of {b}"
                );
                Err(Error::shape("block mask", expected, &got))
            }
            Self::Dense(mask) => match mask.dims() {
                [mb, mt, ms]
                    if (*mb == b || *mb == 1) && *mt == t && *ms == s && mask.dtype() == DType::U8 =>
                {
                    Ok(())
                }
                other => Err(Error::shape("dense mask (u8)", format!("[{b} or 1, {t}, {s}]"), other)),
            },
        }
    }
}

/// A mask that fits its sizes, as the kernels read it.
#[derive(Clone)]
pub(crate) struct Visible {
    mask: Mask,
    dense: Arc<[u8]>,
    /// Positions seen up to the query's own, whatever the mask.
    near: usize,
    t: usize,
    s: usize,
}

impl Visible {
    /// A range of keys outside which none of the `rows` queries from `row` on sees anything.
    pub fn keys(&self, row: usize, rows: usize) -> std::ops::Range<usize> {
        // Queries are the last `t` of `s` positions.
        let end = || (row + rows + self.s).saturating_sub(self.t).min(self.s);
        let start = |size: usize| (row + self.s + 1).saturating_sub(self.t.saturating_add(size));
        match self.mask {
            Mask::Causal => 0..end(),
            Mask::Window { size } => start(size).min(end())..end(),
            _ => start(self.near).min(self.s)..self.s,
        }
    }

    /// Whether every query sees every key.
    pub fn is_everything(&self) -> bool {
        matches!(self.mask, Mask::None) && self.near == usize::MAX
    }

    /// Sets the scores of the keys from `start` on that the query `row` may not see to minus infinity.
    pub fn hide(&self, batch: usize, row: usize, start: usize, scores: &mut [f32]) {
        let hidden = f32::NEG_INFINITY;
        let place = |len: usize, n: usize| if len == n { 0 } else { batch * n };
        let position = (row + self.s).saturating_sub(self.t);
        let before =
            |size: usize| (position + 1).saturating_sub(size.saturating_add(start)).min(scores.len());
        let far = before(self.near);
        match &self.mask {
            Mask::None | Mask::Near { .. } => {}
            Mask::Causal | Mask::Window { .. } => {
                let seen = before(0);
                let left = if let Mask::Window { size } = self.mask { before(size) } else { 0 };
                scores[seen..].fill(hidden);
                scores[..left].fill(hidden);
            }
            Mask::Blocks { query_block, key_block, key_valid } => {
                let query = query_block[place(query_block.len(), self.t) + row];
                let blocks = &key_block[place(key_block.len(), self.s) + start..];
                for (score, block) in scores.iter_mut().zip(blocks) {
                    *score = if *block <= query { *score } else { hidden };
                }
                if !key_valid.is_empty() {
                    let valid = &key_valid[place(key_valid.len(), self.s) + start..];
                    for (score, valid) in scores.iter_mut().zip(valid) {
                        *score = if *valid { *score } else { hidden };
                    }
                }
            }
            Mask::Dense(_) => {
                let row = place(self.dense.len(), self.t * self.s) + row * self.s + start;
                for (score, seen) in scores.iter_mut().zip(&self.dense[row..]) {
                    *score = if *seen != 0 { *score } else { hidden };
                }
            }
        }
        scores[..far].fill(hidden);
    }
}

/// Heads of the queries and of the keys and values; the first a multiple of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads.
    pub key: usize,
}

/// Attention: `q [b, h, t, d]`, `k [b, hk, s, d]`, `v [b, hk, s, dv]` to `[b, h, t, dv]`. Query head `i` reads key head
/// `i / (h / hk)`. A query that may see no key gives zeros. The arguments may be strided views.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scale: f32) -> Result<Tensor> {
    attention_soft_capped(q, k, v, mask, scale, None)
}

/// As [`attention`], with scores bounded by `cap · tanh(score / cap)` before the mask (Gemma 2).
pub fn attention_soft_capped(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f32,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    let (b, h, t, d) = q.dims4()?;
    let (_, hk, s, dv) = v.dims4()?;
    if k.dims() != [b, hk, s, d] || v.dims() != [b, hk, s, dv] || hk == 0 || h % hk != 0 {
        let expected = format!(
            "keys [{b}, hk, s, {d}], values [{b}, hk, s, dv], hk a divisor of {h}; values {:?}",
            v.dims()
        );
        return Err(Error::shape("keys of attention", expected, k.dims()));
    }
    let size = kernels::attention::Size { b, h, hk, t, s, d, dv };
    let after = soft_cap.map_or(After::Nothing, After::Cap);
    Ok(kernels::attention::attention(q, k, v, size, mask, scale, after)?.transpose(1, 2)?)
}

/// Attention on projections as they come, heads side by side: `q [b, t, h * d]`, `k [b, s, hk * d]`, `v [b, s, hk * dv]`
/// to `[b, t, h * dv]`. No transposition: the fast form in training.
pub fn attention_packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    mask: &Mask,
    scale: f32,
) -> Result<Tensor> {
    attention_packed_soft_capped(q, k, v, heads, mask, scale, None)
}

/// As [`attention_packed`], with scores bounded by `cap · tanh(score / cap)` before the mask (Gemma 2).
pub fn attention_packed_soft_capped(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    mask: &Mask,
    scale: f32,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    packed(q, k, v, heads, mask, scale, soft_cap.map_or(After::Nothing, After::Cap))
}

/// As [`attention_packed`], with `bias [h, t + s - 1]` added to the scaled scores by distance (Raffel et al., 2020): the
/// entry `s - 1 + i - j` to that of query `i` with key `j`. Differentiable in the bias too.
pub fn attention_packed_biased(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    mask: &Mask,
    scale: f32,
    bias: &Tensor,
) -> Result<Tensor> {
    packed(q, k, v, heads, mask, scale, After::Bias(bias))
}

fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    mask: &Mask,
    scale: f32,
    after: After,
) -> Result<Tensor> {
    let (b, t, query_width) = q.dims3()?;
    let (_, s, value_width) = v.dims3()?;
    let Heads { query: h, key: hk } = heads;
    if hk == 0 || h == 0 || h % hk != 0 || query_width % h != 0 || value_width % hk != 0 {
        let expected =
            format!("[b, t, multiple of {h}], values [b, s, multiple of {hk}]; values {:?}", v.dims());
        return Err(Error::shape("queries of attention", expected, q.dims()));
    }
    let (d, dv) = (query_width / h, value_width / hk);
    if k.dims() != [b, s, hk * d] || v.dim(0)? != b {
        let expected = format!("[{b}, {s}, {}], values {:?}", hk * d, v.dims());
        return Err(Error::shape("keys of attention", expected, k.dims()));
    }
    if let After::Bias(bias) = after
        && bias.dims() != [h, distances(t, s)]
    {
        let expected = format!("[{h}, {}]: heads, distances of {t} queries and {s} keys", distances(t, s));
        return Err(Error::shape("bias of attention", expected, bias.dims()));
    }
    let size = kernels::attention::Size { b, h, hk, t, s, d, dv };
    kernels::attention::attention(q, k, v, size, mask, scale, after)
}

/// `[b, t, heads * d]` to `[b, heads, t, d]`.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, _, width) = x.dims3()?;
    if heads == 0 || width % heads != 0 {
        return Err(Error::shape("input of split_heads", format!("[b, t, multiple of {heads}]"), x.dims()));
    }
    kernels::heads::split(x, heads)
}

/// `[b, heads, t, d]` to `[b, t, heads * d]`.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    kernels::heads::merge(x)
}
