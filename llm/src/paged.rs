//! Several sequences of unequal length through one forward pass: the decoder's door onto a paged store.

use crate::{Attend, KeyValues};
use candle_core::Tensor;
use vela_nn::paged::{PagedRule, PagedStore, Span};
use vela_nn::{Error, Mask, Result};

/// The rows of one step, `[1, tokens, width]`: spans of sequences side by side, each attending within its own.
#[derive(Debug)]
pub struct PagedBatch<'a> {
    store: &'a mut PagedStore,
    spans: &'a [Span<'a>],
}

impl<'a> PagedBatch<'a> {
    /// A step of these spans.
    pub fn new(store: &'a mut PagedStore, spans: &'a [Span<'a>]) -> Self {
        Self { store, spans }
    }
}

impl KeyValues for PagedBatch<'_> {
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &Attend,
    ) -> Result<Tensor> {
        let heads = self.store.shape().heads;
        if !matches!(rule.mask, Mask::Causal) || rule.heads != heads || rule.bias.is_some() {
            return Err(Error::invalid(format!(
                "paged cache: expected a causal mask, no bias and {heads:?}, got {rule:?}"
            )));
        }
        self.store.write(layer, &keys, &values, self.spans)?;
        let rule = PagedRule { scale: rule.scale, soft_cap: rule.soft_cap, window: rule.window };
        self.store.attend(layer, q, self.spans, rule)
    }

    fn store(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<()> {
        self.store.write(layer, &keys, &values, self.spans)
    }

    fn len(&self) -> usize {
        self.spans.iter().map(|span| span.start + span.rows).max().unwrap_or(0)
    }
}
