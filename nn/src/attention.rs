//! Scaled dot-product attention (Vaswani et al., 2017) with grouped heads (Ainslie et al., 2023) and structured masks.

use crate::{Error, Result, oracle};
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

    /// The mask written out: 1 where query may see key, `[b, t, s]`.
    pub fn dense(&self, b: usize, t: usize, s: usize) -> Result<Vec<u8>> {
        self.check(b, t, s)?;
        let mut out = vec![1u8; b * t * s];
        if let Self::Dense(mask) = self {
            let values = mask.flatten_all()?.to_vec1::<u8>()?;
            let per_batch = values.len() / (t * s).max(1) == b;
            for (i, o) in out.iter_mut().enumerate() {
                *o = u8::from(values[if per_batch { i } else { i % (t * s) }] != 0);
            }
            return Ok(out);
        }
        for (row, keys) in out.chunks_mut(s.max(1)).enumerate() {
            let (batch, query) = (row / t, row % t);
            for (key, o) in keys.iter_mut().enumerate() {
                *o = u8::from(self.sees(batch, query, key, t, s));
            }
        }
        Ok(out)
    }

    /// Whether a query may see a key, for every kind but `Dense`.
    fn sees(&self, batch: usize, query: usize, key: usize, t: usize, s: usize) -> bool {
        let position = query + s - t.min(s);
        match self {
            Self::None | Self::Dense(_) => true,
            Self::Causal => key <= position,
            Self::Window { size } => key <= position && position < key + size,
            Self::Blocks { query_block, key_block, key_valid } => {
                let at = |len: usize, i: usize, n: usize| if len == n { i } else { batch * n + i };
                let valid = key_valid.is_empty() || key_valid[at(key_valid.len(), key, s)];
                valid
                    && key_block[at(key_block.len(), key, s)] <= query_block[at(query_block.len(), query, t)]
            }
        }
    }

    /// Whether the mask fits `b` batch elements, `t` queries and `s` keys.
    fn check(&self, b: usize, t: usize, s: usize) -> Result<()> {
        let fits = |len: usize, n: usize| len == n || len == b * n;
        match self {
            Self::None => Ok(()),
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
    mask.check(b, t, s)?;
    oracle::attention(q, k, v, mask, scale, soft_cap)
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
    let (q, k, v) = (split_heads(q, heads.query)?, split_heads(k, heads.key)?, split_heads(v, heads.key)?);
    merge_heads(&attention(&q, &k, &v, mask, scale)?)
}

/// `[b, t, heads * d]` to `[b, heads, t, d]`.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    if heads == 0 || width % heads != 0 {
        return Err(Error::shape("input of split_heads", format!("[b, t, multiple of {heads}]"), x.dims()));
    }
    Ok(x.reshape((b, t, heads, width / heads))?.transpose(1, 2)?)
}

/// `[b, heads, t, d]` to `[b, t, heads * d]`.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (b, h, t, d) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((b, t, h * d))?)
}
