//! Rows of different requests, with different adapters, in one pass.

use super::Lora;
use crate::decoder::{Beside, Site};
use candle_core::{D, Device, Tensor};
use vela_nn::Result;

/// Which adapter each row of a pass goes through.
#[derive(Clone, Debug, Default)]
pub struct LoraRows<'a> {
    adapters: Vec<&'a Lora>,
    /// By row of the pass (of its `b * t`), the number of its adapter.
    of: Vec<Option<usize>>,
}

impl<'a> LoraRows<'a> {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// So many more rows, of one adapter or of none.
    pub fn push(&mut self, rows: usize, adapter: Option<&'a Lora>) {
        let number = adapter.map(|adapter| {
            let known = self.adapters.iter().position(|other| std::ptr::eq(*other, adapter));
            known.unwrap_or_else(|| {
                self.adapters.push(adapter);
                self.adapters.len() - 1
            })
        });
        self.of.extend(std::iter::repeat_n(number, rows));
    }
}

impl Beside for LoraRows<'_> {
    fn at(&self, site: Site, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (input, output) = (x.dim(D::Minus1)?, y.dim(D::Minus1)?);
        let count = x.elem_count() / input.max(1);
        let row = |i: usize| site.rows.map_or(Some(i), |rows| rows.get(i).map(|row| *row as usize));
        let number = |i: usize| row(i).and_then(|row| self.of.get(row).copied().flatten());
        let mut y = y;
        for (k, adapter) in self.adapters.iter().enumerate() {
            let Some(low) = adapter.layers.get(site.layer).and_then(|layer| layer.get(site.name)) else {
                continue;
            };
            let mine: Vec<u32> = (0..count).filter(|i| number(*i) == Some(k)).map(|i| i as u32).collect();
            if mine.len() == count {
                return Ok((y + low.forward(x)?)?);
            }
            if !mine.is_empty() {
                let (shape, mine) = (y.shape().clone(), Tensor::new(mine, &Device::Cpu)?);
                let added = low.forward(&x.reshape((count, input))?.index_select(&mine, 0)?)?;
                y = y.reshape((count, output))?.index_add(&mine, &added, 0)?.reshape(shape)?;
            }
        }
        Ok(y)
    }
}
