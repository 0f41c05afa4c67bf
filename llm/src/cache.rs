//! Keys and values of what a decoder has read, layer by layer.

use candle_core::Tensor;
use vela_nn::Result;

/// Keys and values per layer, `[b, positions, kv_heads * head_dim]`, keys after the rotary embedding.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
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

    /// Adds positions to a layer (layers come in order the first time) and gives all of them. Differentiable.
    pub fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = match self.layers.get(layer) {
            Some((old_keys, old_values)) => {
                (Tensor::cat(&[old_keys, &keys], 1)?, Tensor::cat(&[old_values, &values], 1)?)
            }
            None => (keys, values),
        };
        let both = (keys, values);
        match self.layers.get_mut(layer) {
            Some(slot) => *slot = both.clone(),
            None => self.layers.push(both.clone()),
        }
        Ok(both)
    }
}
