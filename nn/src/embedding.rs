//! Rows of a table by number.

use crate::kernels::quant_pack::Packed;
use crate::quant::{Blocks, Precision};
use crate::weights::Matrix;
use crate::{Error, Init, Linear, Result, Weights, kernels};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// A table of `[count, width]`, float32 or quantised.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Table,
}

#[derive(Clone)]
enum Table {
    Dense(Tensor),
    Blocks(Blocks, Precision),
    /// The weight of the output projection, whose rows are read back.
    Packed(Arc<Packed>),
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense(table) => table.fmt(f),
            Self::Blocks(blocks, _) => blocks.fmt(f),
            Self::Packed(packed) => {
                write!(f, "{} [{}, {}]", packed.format().name(), packed.rows(), packed.columns())
            }
        }
    }
}

impl Embedding {
    /// Reads `weight [count, width]`; a fresh one starts as `Normal(0.02)`.
    pub fn new(weights: &Weights, count: usize, width: usize) -> Result<Self> {
        let table = match weights.matrix((count, width), "weight", Init::Normal(0.02))? {
            Matrix::Dense(table) => Table::Dense(table),
            Matrix::Blocks(blocks, _) if blocks.rows().1 != width => {
                let (block, name) = (blocks.format().block_len(), blocks.format().name());
                return Err(Error::invalid(format!(
                    "a table of {width} columns cannot be kept as {name}: expected a multiple of {block}"
                )));
            }
            Matrix::Blocks(blocks, precision) => Table::Blocks(blocks, precision),
        };
        Ok(Self { table })
    }

    /// From a table `[count, width]`.
    pub fn from_tensor(table: Tensor) -> Result<Self> {
        table.dims2()?;
        Ok(Self { table: Table::Dense(table) })
    }

    /// The output projection of a model with tied embeddings: this table as a linear layer without bias. Where that packs the
    /// table, this embedding reads its rows from the packed one from now on.
    pub fn projection(&mut self) -> Result<Linear> {
        let (blocks, precision) = match &self.table {
            Table::Dense(table) => return Linear::from_tensors(table.clone(), None),
            Table::Blocks(blocks, precision) => (blocks, *precision),
            Table::Packed(packed) => return Ok(Linear::from_packed(packed.clone())),
        };
        if precision == Precision::Exact {
            return Linear::from_blocks(blocks.clone(), precision, None);
        }
        let packed = Arc::new(Packed::new(blocks));
        self.table = Table::Packed(packed.clone());
        Ok(Linear::from_packed(packed))
    }

    /// The table as float32, `[count, width]`; of a quantised one, a copy.
    pub fn table(&self) -> Result<Tensor> {
        match &self.table {
            Table::Dense(table) => Ok(table.clone()),
            Table::Blocks(blocks, _) => blocks.tensor(),
            Table::Packed(packed) => {
                let mut out = vec![0.0; packed.rows() * packed.columns()];
                for (row, out) in out.chunks_exact_mut(packed.columns().max(1)).enumerate() {
                    packed.row(row, out);
                }
                kernels::data::tensor(out, (packed.rows(), packed.columns()))
            }
        }
    }

    /// `ids [..]` (u32) to `[.., width]`. An id outside the table is an error.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.dtype() != DType::U32 {
            return Err(Error::invalid(format!("embedding: expected u32 ids, got {:?}", ids.dtype())));
        }
        match &self.table {
            Table::Dense(table) => kernels::embedding::embedding(table, ids),
            Table::Blocks(blocks, _) => {
                read(ids, blocks.rows(), |row, out| blocks.format().dequantise(blocks.row(row, 1), out))
            }
            Table::Packed(packed) => {
                read(ids, (packed.rows(), packed.columns()), |row, out| packed.row(row, out))
            }
        }
    }
}

/// The rows `ids` of a table of `count` rows of `width`, each as `row` gives it.
fn read(ids: &Tensor, (count, width): (usize, usize), row: impl Fn(usize, &mut [f32])) -> Result<Tensor> {
    let numbers = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(bad) = numbers.iter().find(|id| **id as usize >= count) {
        return Err(Error::invalid(format!("embedding: expected ids below {count}, got {bad}")));
    }
    let mut out = vec![0.0; numbers.len() * width];
    for (out, id) in out.chunks_exact_mut(width.max(1)).zip(&numbers) {
        row(*id as usize, out);
    }
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    kernels::data::tensor(out, shape)
}
