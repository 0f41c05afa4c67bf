//! Rows of a table by number.

use crate::{Error, Init, Result, Weights, kernels};
use candle_core::{DType, Tensor};

/// A table of `[count, width]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Tensor,
}

impl Embedding {
    /// Reads `weight [count, width]`; a fresh one starts as `Normal(0.02)`.
    pub fn new(weights: &Weights, count: usize, width: usize) -> Result<Self> {
        Ok(Self { table: weights.get_init((count, width), "weight", Init::Normal(0.02))? })
    }

    /// From a table `[count, width]`.
    pub fn from_tensor(table: Tensor) -> Result<Self> {
        table.dims2()?;
        Ok(Self { table })
    }

    /// `[count, width]`; the output projection of a model with tied embeddings is `Linear::from_tensors(table, None)`.
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// `ids [..]` (u32) to `[.., width]`. An id outside the table is an error.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.dtype() != DType::U32 {
            return Err(Error::invalid(format!("embedding: expected u32 ids, got {:?}", ids.dtype())));
        }
        kernels::embedding::embedding(&self.table, ids)
    }
}
