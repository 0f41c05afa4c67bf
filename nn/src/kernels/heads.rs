//! Heads side by side, and heads apart: copies whose backward is the other.

use super::attention::swap;
use super::data::{Values, tensor};
use super::node::node;
use crate::Result;
use candle_core::Tensor;

/// `[b, t, heads * d]` to `[b, heads, t, d]`.
pub fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    let d = width / heads.max(1);
    let values = swap(&Values::of(x)?, (b, t, heads, d));
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(tensor(swap(&Values::of(grad)?, (b, heads, t, d)), args[0].shape())?)])
    };
    node("split heads", &[x], values, (b, heads, t, d), backward)
}

/// `[b, heads, t, d]` to `[b, t, heads * d]`.
pub fn merge(x: &Tensor) -> Result<Tensor> {
    let (b, heads, t, d) = x.dims4()?;
    // The result of attention is a view of this very layout: nothing to copy.
    let view = x.transpose(1, 2)?;
    if view.is_contiguous() {
        return Ok(view.reshape((b, t, heads * d))?);
    }
    let values = swap(&Values::of(x)?, (b, heads, t, d));
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(tensor(swap(&Values::of(grad)?, (b, t, heads, d)), args[0].shape())?)])
    };
    node("merge heads", &[x], values, (b, t, heads * d), backward)
}
