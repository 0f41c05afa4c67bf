//! The affine map, forward and backward; on constant weights in blocks too.

use super::data::{Shared, Values, tensor, written};
use super::matmul::{View, matmul, matmul_add};
use super::node::node;
use super::quant::exact;
use super::simd::{dispatch, dot};
use crate::quant::Blocks;
use crate::{Result, threads};
use candle_core::Tensor;
use std::mem::MaybeUninit;

/// `x [.., k] · weightᵀ + bias`, `weight [n, k]`, `bias [n]`: `[.., n]`. Shapes were checked by the caller.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    let m = x.elem_count() / k.max(1);
    let values = {
        let bias = bias.map(Values::of).transpose()?;
        forward(&Values::of(x)?, &Values::of(weight)?, bias.as_deref(), (m, n, k))
    };
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let grad = Values::of(grad)?;
        let (x, weight) = (args[0], args[1]);
        let mut grads = Vec::with_capacity(3);
        grads.push(match x.track_op() {
            true => Some(tensor(backward_input(&grad, &Values::of(weight)?, (m, n, k)), x.shape())?),
            false => None,
        });
        grads.push(match weight.track_op() {
            true => Some(tensor(backward_weight(&grad, &Values::of(x)?, (m, n, k)), weight.shape())?),
            false => None,
        });
        if let Some(bias) = args.get(2) {
            grads.push(if bias.track_op() { Some(tensor(column_sums(&grad, n), n)?) } else { None });
        }
        Ok(grads)
    };
    match bias {
        Some(bias) => node("linear", &[x, weight, bias], values, shape, backward),
        None => node("linear", &[x, weight], values, shape, backward),
    }
}

/// The same on a constant weight `[n, k]` in blocks, dequantised at each use: a gradient for `x` and the bias alone.
pub fn linear_on_blocks(x: &Tensor, weight: &Blocks, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.rows();
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    let m = x.elem_count() / k.max(1);
    let mut values = exact(&Values::of(x)?, weight);
    if let Some(bias) = bias {
        let bias = Values::of(bias)?;
        for row in values.chunks_exact_mut(n.max(1)) {
            row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
        }
    }
    let weight = weight.clone();
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let grad = Values::of(grad)?;
        let mut grads = Vec::with_capacity(2);
        grads.push(match args[0].track_op() {
            true => Some(tensor(backward_on_blocks(&grad, &weight, m), args[0].shape())?),
            false => None,
        });
        if let Some(bias) = args.get(1) {
            grads.push(if bias.track_op() { Some(tensor(column_sums(&grad, n), n)?) } else { None });
        }
        Ok(grads)
    };
    match bias {
        Some(bias) => node("linear", &[x, bias], values, shape, backward),
        None => node("linear", &[x], values, shape, backward),
    }
}

/// `grad [m, n] · weight [n, k]`, some rows of the weight after the other.
fn backward_on_blocks(grad: &[f32], weight: &Blocks, m: usize) -> Vec<f32> {
    const STRIP: usize = 256;
    let (n, k) = weight.rows();
    let mut out = vec![0.0; m * k];
    let mut values = vec![0.0; STRIP.min(n) * k];
    for first in (0..n).step_by(STRIP) {
        let count = STRIP.min(n - first);
        let values = &mut values[..count * k];
        weight.format().dequantise(weight.row(first, count), values);
        let (a, b) = (View::rows(grad.get(first..).unwrap_or_default(), n), View::rows(values, k));
        matmul_add(&mut out, k, (m, k, count), a, b, 1.0);
    }
    out
}

/// `x [m, k] · weightᵀ + bias`.
pub fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, size: (usize, usize, usize)) -> Vec<f32> {
    let (m, n, k) = size;
    // A weight larger than the caches is bound by memory, which `gemm` does not read from end to end.
    if m == 1 && n * k > 1 << 22 {
        return one_row(x, weight, bias, n);
    }
    product(View::rows(x, size.2), View::rows(weight, size.2).t(), bias, size)
}

/// As [`forward`] of one row, a weight's row after the other.
fn one_row(x: &[f32], weight: &[f32], bias: Option<&[f32]>, n: usize) -> Vec<f32> {
    /// Rows of the weight for each task.
    const STRIP: usize = 64;
    let k = x.len();
    let mut out = bias.map_or_else(|| vec![0.0; n], <[f32]>::to_vec);
    let to = Shared::new(&mut out);
    threads::for_each(n.div_ceil(STRIP), |strip| {
        let start = strip * STRIP;
        let count = STRIP.min(n - start);
        // SAFETY: strips of different tasks do not overlap, and `out` outlives the loop.
        let to = unsafe { to.range(start, count) };
        add_dots(x, &weight[start * k..(start + count) * k], to);
    });
    out
}

dispatch!(
    /// Adds the product of `x` with each row to a value of its own.
    fn add_dots(x: &[f32], rows: &[f32], out: &mut [f32]) = add_dots_body
);
#[inline(always)]
fn add_dots_body<const FMA: bool>(x: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len().max(1)).zip(out) {
        *out += dot::<FMA>(x, row);
    }
}

fn product(a: View<'_>, b: View<'_>, bias: Option<&[f32]>, (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    if let Some(bias) = bias {
        let mut out = repeated(bias, m);
        matmul_add(&mut out, n, (m, n, k), a, b, 1.0);
        return out;
    }
    // SAFETY: `matmul` writes all m rows of n columns.
    unsafe { written(m * n, |out| matmul(out, n, (m, n, k), a, b, 1.0)) }
}

/// `grad [m, n] · weight [n, k]`.
pub fn backward_input(grad: &[f32], weight: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    // SAFETY: `matmul` writes all m rows of k columns.
    unsafe {
        written(m * k, |out| matmul(out, k, (m, k, n), View::rows(grad, n), View::rows(weight, k), 1.0))
    }
}

/// `gradᵀ [n, m] · x [m, k]`.
pub fn backward_weight(grad: &[f32], x: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    // SAFETY: `matmul` writes all n rows of k columns.
    unsafe { written(n * k, |out| matmul(out, k, (n, k, m), View::rows(grad, n).t(), View::rows(x, k), 1.0)) }
}

/// `row`, `count` times.
pub fn repeated(row: &[f32], count: usize) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        for out in out.chunks_exact_mut(row.len().max(1)) {
            out.write_copy_of_slice(row);
        }
    };
    // SAFETY: `count * row.len()` values are `count` whole chunks, and each is written.
    unsafe { written(count * row.len(), fill) }
}

/// The sum of the rows of `values [m, n]`.
pub fn column_sums(values: &[f32], n: usize) -> Vec<f32> {
    let mut sums = vec![0.0; n];
    add_rows(values, &mut sums);
    sums
}

dispatch!(fn add_rows(values: &[f32], sums: &mut [f32]) = add_rows_body);
#[inline(always)]
fn add_rows_body<const FMA: bool>(values: &[f32], sums: &mut [f32]) {
    let n = sums.len().max(1);
    // Four rows at a time, so that the sums are loaded and stored a quarter as often.
    let mut quads = values.chunks_exact(4 * n);
    for quad in &mut quads {
        let (a, rest) = quad.split_at(n);
        let (b, rest) = rest.split_at(n);
        let (c, d) = rest.split_at(n);
        for ((((s, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *s += (a + b) + (c + d);
        }
    }
    for row in quads.remainder().chunks_exact(n) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_gives_what_many_do() {
        let (n, k) = (130, 37);
        let number = |i: usize| (i * 7 % 19) as f32 * 0.1 - 0.9;
        let x: Vec<f32> = (0..k).map(number).collect();
        let weight: Vec<f32> = (0..n * k).map(number).collect();
        let bias: Vec<f32> = (0..n).map(number).collect();
        for bias in [None, Some(&bias[..])] {
            let want = forward(&x, &weight, bias, (1, n, k));
            for count in [1, 3] {
                let got = threads::with_threads(count, || one_row(&x, &weight, bias, n));
                assert_eq!(got.len(), n);
                assert!(
                    got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-5),
                    "{count} threads"
                );
            }
        }
    }
}
