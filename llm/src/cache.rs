//! The door between a decoder and the keys and values of what it has read: [`KeyValues`], and the plain [`Cache`].

use crate::decoder::RelativeBias;
use candle_core::Tensor;
use std::sync::Arc;
use vela_nn::attention::{attention_packed_biased, attention_packed_soft_capped};
use vela_nn::{Error, Heads, Mask, Result};

/// How the queries of a layer look at its keys. The same for every store of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    /// Heads of the queries and of the keys.
    pub heads: Heads,
    /// Factor on `q · k`.
    pub scale: f32,
    /// Scores are bounded by `cap · tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Only the last so many positions are seen, the query's own included (Mistral).
    pub window: Option<usize>,
    /// What is added to the scores by distance (T5).
    pub bias: Option<&'a RelativeBias>,
    /// Which keys a query sees, over all stored and new positions of its sequence. A store that holds several
    /// sequences side by side knows their bounds itself and takes `Causal` to mean: within its own.
    pub mask: &'a Mask,
}

impl Attend<'_> {
    /// Attends whole tensors: queries `[b, t, heads * d]` to keys and values `[b, s, kv_heads * d]`, giving
    /// `[b, t, heads * d]`. Differentiable.
    pub fn apply(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let windowed = self.window.map(|size| self.mask.windowed(size));
        let mask = windowed.as_ref().unwrap_or(self.mask);
        if let Some(bias) = self.bias {
            if self.soft_cap.is_some() {
                return Err(Error::invalid("attention: scores with a bias and a bound are not supported"));
            }
            let bias = bias.at(q.dim(1)?, keys.dim(1)?)?;
            return attention_packed_biased(q, keys, values, self.heads, mask, self.scale, &bias);
        }
        attention_packed_soft_capped(q, keys, values, self.heads, mask, self.scale, self.soft_cap)
    }
}

/// A store of keys and values, layer by layer. The decoder hands each layer's new ones over and gets back what its
/// queries found; how they are kept (whole tensors, pages, int8, several sequences of unequal length side by side in
/// one `[1, tokens, width]`) is the store's own affair.
pub trait KeyValues {
    /// Keeps the new keys and values `[b, t, kv_heads * d]` (keys after the rotary embedding) of a layer, and lets
    /// the queries `[b, t, heads * d]` (likewise) attend to all of its sequence: `[b, t, heads * d]`. Layers come in
    /// order.
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &Attend,
    ) -> Result<Tensor>;

    /// Keeps the new keys and values of a layer that nobody asks now.
    fn store(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<()>;

    /// Lets the queries `[b, t, heads * d]` of a layer's cross-attention attend to the memory of their sequence:
    /// `[b, t, heads * d]`. The rule's mask and window do not apply; the memory has its own mask.
    ///
    /// # Errors
    /// The store was given no memory.
    fn recall(&self, layer: usize, _q: &Tensor, _rule: &Attend) -> Result<Tensor> {
        Err(Error::invalid(format!("layer {layer} reads a memory, and the cache was given none")))
    }

    /// Positions held; of several sequences, the longest one's.
    fn len(&self) -> usize;

    /// Whether nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keys and values per layer as whole tensors, `[b, positions, kv_heads * head_dim]`. Differentiable.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    memory: Option<Arc<Memory>>,
}

/// Keys and values of a memory, one pair per layer, `[b, s, kv_heads * d]`; made by `Decoder::remember`.
#[derive(Clone, Debug)]
pub struct Memory {
    layers: Vec<(Tensor, Tensor)>,
    mask: Mask,
}

impl Memory {
    pub(crate) fn new(layers: Vec<(Tensor, Tensor)>, mask: Mask) -> Self {
        Self { layers, mask }
    }
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache of a sequence that reads `memory` by cross-attention.
    pub fn with_memory(memory: Arc<Memory>) -> Self {
        Self { layers: Vec::new(), memory: Some(memory) }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.dims().get(1).copied().unwrap_or(0))
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys and values of a layer, if it has been run.
    pub fn layer(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        self.layers.get(layer).map(|(keys, values)| (keys, values))
    }

    /// Forgets all but the first `length` positions: a guess that was refused. Fewer are left as they are.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        for (keys, values) in &mut self.layers {
            if keys.dim(1)? > length {
                *keys = keys.narrow(1, 0, length)?.contiguous()?;
                *values = values.narrow(1, 0, length)?.contiguous()?;
            }
        }
        Ok(())
    }

    /// The cache whose row `i` is this one's row `rows[i]` (u32): beams that split and end.
    ///
    /// # Errors
    /// Rows that read memories of their own: only one memory for all can be shared out.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        if let Some((keys, _)) = self.memory.as_ref().and_then(|memory| memory.layers.first())
            && keys.dim(0)? > 1
        {
            return Err(Error::invalid("cache: rows with memories of their own cannot be selected"));
        }
        let pick = |(keys, values): &(Tensor, Tensor)| -> Result<(Tensor, Tensor)> {
            Ok((keys.index_select(rows, 0)?, values.index_select(rows, 0)?))
        };
        let layers = self.layers.iter().map(pick).collect::<Result<_>>()?;
        Ok(Self { layers, memory: self.memory.clone() })
    }

    /// Adds positions to a layer (layers come in order the first time) and gives all of them. Differentiable.
    ///
    /// # Errors
    /// A layer before this one has not been run.
    pub fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let count = self.layers.len();
        let both = match self.layers.get_mut(layer) {
            Some(slot) => {
                *slot = (Tensor::cat(&[&slot.0, &keys], 1)?, Tensor::cat(&[&slot.1, &values], 1)?);
                return Ok(slot.clone());
            }
            None => (keys, values),
        };
        if layer != count {
            return Err(Error::invalid(format!("cache: expected layer {count} next, got layer {layer}")));
        }
        self.layers.push(both.clone());
        Ok(both)
    }
}

impl KeyValues for Cache {
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &Attend,
    ) -> Result<Tensor> {
        let (keys, values) = self.append(layer, keys, values)?;
        rule.apply(q, &keys, &values)
    }

    fn store(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<()> {
        self.append(layer, keys, values).map(|_| ())
    }

    fn recall(&self, layer: usize, q: &Tensor, rule: &Attend) -> Result<Tensor> {
        let memory = self.memory.as_ref().and_then(|memory| Some((memory.layers.get(layer)?, &memory.mask)));
        let Some(((keys, values), mask)) = memory else {
            return Err(Error::invalid(format!(
                "layer {layer} reads a memory, and the cache was given none"
            )));
        };
        let rule = Attend { mask, window: None, ..*rule };
        let (b, one) = (q.dim(0)?, keys.dim(0)?);
        if one != 1 || b == 1 {
            return rule.apply(q, keys, values);
        }
        // One memory for all rows.
        let shared = |x: &Tensor| x.broadcast_as((b, x.dim(1)?, x.dim(2)?));
        rule.apply(q, &shared(keys)?, &shared(values)?)
    }

    fn len(&self) -> usize {
        Cache::len(self)
    }
}
