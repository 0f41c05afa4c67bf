//! Group normalisation and the Mish activation, forward and backward. The channels of a group lie side by side.

use super::data::{Shared, Values, tensor};
use super::node::{node, tracked};
use super::simd::{LANES, dispatch, exp, fma, reduce, sum};
use crate::{Result, threads};
use candle_core::Tensor;

/// `(batch elements, channels, values per channel, groups)`.
pub type Size = (usize, usize, usize, usize);

dispatch!(
    /// One group: normalised and scaled, `weight` and `bias` per channel of the group. Gives mean and inverse deviation.
    fn one_group(x: &[f32], y: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) -> (f32, f32) = one_group_body
);
#[inline(always)]
fn one_group_body<const FMA: bool>(
    x: &[f32],
    y: &mut [f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum::<FMA>(x) / count;
    let variance = reduce(x, |lane, v| fma::<FMA>(v - mean, v - mean, lane)) / count;
    let inverse = 1.0 / (variance + eps).sqrt();
    let n = x.len() / weight.len().max(1);
    for (((x, y), w), b) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(weight).zip(bias) {
        let (scale, shift) = (w * inverse, b - mean * inverse * w);
        x.iter().zip(y).for_each(|(x, y)| *y = fma::<FMA>(*x, scale, shift));
    }
    (mean, inverse)
}

dispatch!(
    /// `Σ grad (x - mean)` and `Σ grad`, in lanes.
    fn sums_along(grad: &[f32], x: &[f32], mean: f32) -> (f32, f32) = sums_along_body
);
#[inline(always)]
fn sums_along_body<const FMA: bool>(grad: &[f32], x: &[f32], mean: f32) -> (f32, f32) {
    let mut lanes = [0f32; LANES];
    let ((grads, grads_rest), (xs, xs_rest)) = (grad.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (g, x) in grads.iter().zip(xs) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(g[i], x[i] - mean, lanes[i]);
        }
    }
    for (i, (g, x)) in grads_rest.iter().zip(xs_rest).enumerate() {
        lanes[i] = fma::<FMA>(*g, *x - mean, lanes[i]);
    }
    (lanes.iter().sum(), sum::<FMA>(grad))
}

/// Group normalisation (Wu and He, 2018) of `x [b, c, ..]`. Shapes were checked by the caller.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, size: Size, eps: f32) -> Result<Tensor> {
    let (b, c, n, groups) = size;
    let per = c / groups;
    let mut out = vec![0.0; b * c * n];
    let mut moments = vec![(0f32, 0f32); b * groups];
    {
        let (x, weight, bias) = (Values::of(x)?, Values::of(weight)?, Values::of(bias)?);
        let (x, weight, bias): (&[f32], &[f32], &[f32]) = (&x, &weight, &bias);
        let (out, moments) = (Shared::new(&mut out), Shared::new(&mut moments));
        let each = |task: usize| {
            let (at, first) = (task * per * n, task % groups * per);
            // SAFETY: each task has a group of its own in both.
            let (y, moment) = unsafe { (out.range(at, per * n), moments.range(task, 1)) };
            let (w, b) = (&weight[first..first + per], &bias[first..first + per]);
            moment[0] = one_group(&x[at..at + per * n], y, w, b, eps);
        };
        // Small ones are over before another thread would have begun.
        if b * c * n < 1 << 16 { (0..b * groups).for_each(each) } else { threads::for_each(b * groups, each) }
    }
    if !tracked(&[x, weight, bias]) {
        return tensor(out, x.shape());
    }
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let (x, weight, grad) = (Values::of(args[0])?, Values::of(args[1])?, Values::of(grad)?);
        let (mut dx, mut dw, mut db) = (vec![0f32; b * c * n], vec![0f32; c], vec![0f32; c]);
        let count = (per * n) as f32;
        for (task, (mean, inverse)) in moments.iter().enumerate() {
            let (mut along, mut plain) = (0f32, 0f32);
            for channel in 0..per {
                let (at, c) = ((task * per + channel) * n, task % groups * per + channel);
                let (dot, total) = sums_along(&grad[at..at + n], &x[at..at + n], *mean);
                let dot = dot * inverse;
                dw[c] += dot;
                db[c] += total;
                along += dot * weight[c];
                plain += total * weight[c];
            }
            for channel in 0..per {
                let (at, c) = ((task * per + channel) * n, task % groups * per + channel);
                for i in at..at + n {
                    let normal = (x[i] - mean) * inverse;
                    dx[i] = inverse * (grad[i] * weight[c] - (plain + normal * along) / count);
                }
            }
        }
        let of = |i: usize, values: Vec<f32>| match args[i].track_op() {
            true => tensor(values, args[i].shape()).map(Some),
            false => Ok(None),
        };
        Ok(vec![of(0, dx)?, of(1, dw)?, of(2, db)?])
    };
    node("group norm", &[x, weight, bias], out, x.shape(), backward)
}

/// `tanh(softplus(x))` as a fraction of exponentials, and the sigmoid.
#[inline(always)]
fn parts<const FMA: bool>(x: f32) -> (f32, f32) {
    // Beyond 20 the value is 1 to the last bit.
    let e = exp::<FMA>(x.min(20.0));
    let n = e * (e + 2.0);
    (n / (n + 2.0), e / (1.0 + e))
}

dispatch!(fn mish_values(x: &[f32], y: &mut [f32]) = mish_body);
#[inline(always)]
fn mish_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    x.iter().zip(y).for_each(|(x, y)| *y = x * parts::<FMA>(*x).0);
}

dispatch!(fn mish_slopes(x: &[f32], grad: &mut [f32]) = mish_slopes_body);
#[inline(always)]
fn mish_slopes_body<const FMA: bool>(x: &[f32], grad: &mut [f32]) {
    for (x, g) in x.iter().zip(grad) {
        let (tanh, sigmoid) = parts::<FMA>(*x);
        *g *= fma::<FMA>(x * (1.0 - tanh * tanh), sigmoid, tanh);
    }
}

/// `x tanh(ln(1 + e^x))` (Misra 2019, <https://arxiv.org/abs/1908.08681>).
pub fn mish(x: &Tensor) -> Result<Tensor> {
    let mut out = vec![0.0; x.elem_count()];
    mish_values(&Values::of(x)?, &mut out);
    let backward = |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let mut slopes = Values::of(grad)?.to_vec();
        mish_slopes(&Values::of(args[0])?, &mut slopes);
        Ok(vec![Some(tensor(slopes, args[0].shape())?)])
    };
    node("mish", &[x], out, x.shape(), backward)
}
