//! What may happen at the matrices of a decoder's layers beside their own products: adapters add to what comes out,
//! calibration looks at what goes in.

use candle_core::Tensor;
use vela_nn::{Linear, Result};

/// A matrix in the course of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Its layer.
    pub layer: usize,
    /// Its name in the checkpoint, relative to the layer.
    pub name: &'a str,
    /// Which rows of the pass (of its `b * t`) it reads, if not all: an expert's tokens.
    pub rows: Option<&'a [u32]>,
}

/// Something beside the matrices of a pass.
pub trait Beside {
    /// The matrix at `site` read `x [.., input]` and gave `y [.., output]`: what the pass goes on with, of the same
    /// shape.
    fn at(&self, site: Site, x: &Tensor, y: Tensor) -> Result<Tensor>;
}

/// [`Beside`], if there is any, at one layer.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    beside: Option<&'a dyn Beside>,
    layer: usize,
    rows: Option<&'a [u32]>,
}

impl<'a> Side<'a> {
    /// At layer `layer`.
    pub fn of(beside: Option<&'a dyn Beside>, layer: usize) -> Self {
        Self { beside, layer, rows: None }
    }

    /// Whether there is nothing beside.
    pub fn is_empty(&self) -> bool {
        self.beside.is_none()
    }

    /// The same for some of the rows.
    pub fn of_rows(self, rows: &'a [u32]) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// The product `y` of the matrix `name` with `x`, and what is beside it.
    pub fn after(&self, name: &str, x: &Tensor, y: Tensor) -> Result<Tensor> {
        match self.beside {
            Some(beside) => beside.at(Site { layer: self.layer, name, rows: self.rows }, x, y),
            None => Ok(y),
        }
    }

    /// `x [.., input]` through the matrix `name`, to `[.., output]`.
    pub fn through(&self, name: &str, matrix: &Linear, x: &Tensor) -> Result<Tensor> {
        self.after(name, x, matrix.forward(x)?)
    }
}
