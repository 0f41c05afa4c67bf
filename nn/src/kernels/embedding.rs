//! Rows of a table by number, and the gradient added back to those rows.

use super::data::{Values, tensor, written};
use super::node::node;
use crate::{Error, Result};
use candle_core::Tensor;

/// Rows of `table [count, width]` by `ids [..]` (u32): `[.., width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (count, width) = table.dims2()?;
    let numbers = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(bad) = numbers.iter().find(|id| **id as usize >= count) {
        return Err(Error::invalid(format!("embedding: expected ids below {count}, got {bad}")));
    }
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    let values = {
        let table = Values::of(table)?;
        let gather = |out: &mut [std::mem::MaybeUninit<f32>]| {
            for (out, id) in out.chunks_exact_mut(width.max(1)).zip(&numbers) {
                out.write_copy_of_slice(&table[*id as usize * width..][..width]);
            }
        };
        // SAFETY: there is one chunk of `width` for each id, and each is written.
        unsafe { written(numbers.len() * width, gather) }
    };
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let mut sums = vec![0.0; count * width];
        let grad = Values::of(grad)?;
        for (grad, id) in grad.chunks_exact(width.max(1)).zip(&numbers) {
            sums[*id as usize * width..][..width].iter_mut().zip(grad).for_each(|(s, g)| *s += g);
        }
        Ok(vec![Some(tensor(sums, args[0].shape())?)])
    };
    node("embedding", &[table], values, shape, backward)
}
