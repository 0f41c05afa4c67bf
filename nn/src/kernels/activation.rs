//! Activations and their gated forms, forward and backward, one pass each.

use super::data::{Values, tensor};
use super::node::node;
use super::simd::{dispatch, exp, fma, sigmoid};
use crate::activation::Activation;
use crate::{Result, threads};
use candle_core::Tensor;

/// Elements per task when a large pass is spread over threads.
const BLOCK: usize = 1 << 14;

/// The activation of `x`, any shape.
pub fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let mut values = Values::of(x)?.to_vec();
    forward(&mut values, None, kind);
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let mut dx = Values::of(grad)?.to_vec();
        scale_by_slope(kind, &Values::of(args[0])?, &mut dx);
        Ok(vec![Some(tensor(dx, args[0].shape())?)])
    };
    node("activation", &[x], values, x.shape(), backward)
}

/// `activation(gate) * up`, of one shape.
pub fn gated(gate: &Tensor, up: &Tensor, kind: Activation) -> Result<Tensor> {
    let mut values = Values::of(gate)?.to_vec();
    forward(&mut values, Some(&Values::of(up)?), kind);
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let (gate, up) = (Values::of(args[0])?, Values::of(args[1])?);
        let mut d_gate = Values::of(grad)?.to_vec();
        let mut d_up = vec![0.0; d_gate.len()];
        gated_backward(kind, &gate, &up, &mut d_gate, &mut d_up, &mut []);
        let keep =
            |t: &Tensor, d: Vec<f32>| if t.track_op() { tensor(d, t.shape()).map(Some) } else { Ok(None) };
        Ok(vec![keep(args[0], d_gate)?, keep(args[1], d_up)?])
    };
    node("gated activation", &[gate, up], values, gate.shape(), backward)
}

/// The activation of each value, in its place; where there is a gate, `values` hold it, and are multiplied by `up` besides.
pub fn forward(values: &mut [f32], up: Option<&[f32]>, kind: Activation) {
    let count = values.len();
    let block = if threads::current() > 1 && count > 2 * BLOCK { BLOCK } else { count.max(1) };
    let shared = super::data::Shared::new(values);
    threads::for_each(count.div_ceil(block), |i| {
        let (start, len) = (i * block, block.min(count - i * block));
        // SAFETY: blocks of different tasks do not overlap, and `values` outlive the loop.
        let values = unsafe { shared.range(start, len) };
        match up {
            Some(up) => apply_gated(kind, values, &up[start..start + len]),
            None => apply(kind, values),
        }
    });
}

/// Calls `$body` with the value function of each kind, so that each loop is compiled for its own.
macro_rules! by_kind {
    ($kind:expr, $name:ident, $body:expr) => {
        match $kind {
            Activation::Gelu => {
                let $name = gelu::<FMA>;
                $body
            }
            Activation::GeluTanh => {
                let $name = gelu_tanh::<FMA>;
                $body
            }
            Activation::Relu => {
                let $name = relu;
                $body
            }
            Activation::Silu => {
                let $name = |x: f32| swish::<FMA>(x, 1.0);
                $body
            }
            Activation::QuickGelu => {
                let $name = |x: f32| swish::<FMA>(x, 1.702);
                $body
            }
        }
    };
}

dispatch!(fn apply(kind: Activation, values: &mut [f32]) = apply_body);
#[inline(always)]
fn apply_body<const FMA: bool>(kind: Activation, values: &mut [f32]) {
    by_kind!(kind, f, values.iter_mut().for_each(|v| *v = f(*v).0));
}

dispatch!(fn apply_gated(kind: Activation, gate: &mut [f32], up: &[f32]) = apply_gated_body);
#[inline(always)]
fn apply_gated_body<const FMA: bool>(kind: Activation, gate: &mut [f32], up: &[f32]) {
    by_kind!(kind, f, gate.iter_mut().zip(up).for_each(|(g, u)| *g = f(*g).0 * u));
}

dispatch!(
    /// `d *= activation'(x)`.
    pub fn scale_by_slope(kind: Activation, x: &[f32], d: &mut [f32]) = scale_by_slope_body
);
#[inline(always)]
fn scale_by_slope_body<const FMA: bool>(kind: Activation, x: &[f32], d: &mut [f32]) {
    by_kind!(kind, f, d.iter_mut().zip(x).for_each(|(d, x)| *d *= f(*x).1));
}

dispatch!(
    /// `d *= activation'(x)` and `out = activation(x)`.
    pub fn apply_and_scale(kind: Activation, x: &[f32], d: &mut [f32], out: &mut [f32]) = apply_and_scale_body
);
#[inline(always)]
fn apply_and_scale_body<const FMA: bool>(kind: Activation, x: &[f32], d: &mut [f32], out: &mut [f32]) {
    by_kind!(kind, f, {
        for ((d, x), out) in d.iter_mut().zip(x).zip(out) {
            let (value, slope) = f(*x);
            *out = value;
            *d *= slope;
        }
    });
}

dispatch!(
    /// From the gradient of `activation(gate) * up` in `d_gate` to those of gate (in place) and up; `out`, unless empty,
    /// gets the product itself.
    pub fn gated_backward(
        kind: Activation,
        gate: &[f32],
        up: &[f32],
        d_gate: &mut [f32],
        d_up: &mut [f32],
        out: &mut [f32],
    ) = gated_backward_body
);
#[inline(always)]
fn gated_backward_body<const FMA: bool>(
    kind: Activation,
    gate: &[f32],
    up: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
    out: &mut [f32],
) {
    by_kind!(kind, f, {
        let with_out = !out.is_empty();
        if with_out {
            for ((((g, u), d_gate), d_up), out) in gate.iter().zip(up).zip(d_gate).zip(d_up).zip(out) {
                let (value, slope) = f(*g);
                *out = value * u;
                *d_up = *d_gate * value;
                *d_gate *= slope * u;
            }
        } else {
            for (((g, u), d_gate), d_up) in gate.iter().zip(up).zip(d_gate).zip(d_up) {
                let (value, slope) = f(*g);
                *d_up = *d_gate * value;
                *d_gate *= slope * u;
            }
        }
    });
}

// Each gives the value and the slope at x.

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
}

/// `x σ(a x)`: slope `σ (1 + a x (1 - σ))`.
#[inline(always)]
fn swish<const FMA: bool>(x: f32, a: f32) -> (f32, f32) {
    let s = sigmoid::<FMA>(a * x);
    (x * s, s * (1.0 + a * x * (1.0 - s)))
}

/// `x (1 + tanh u) / 2 = x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    const A: f32 = 2.0 * 0.797_884_6;
    const B: f32 = 0.044_715 * A;
    let square = x * x;
    let s = sigmoid::<FMA>(x * fma::<FMA>(B, square, A));
    let du = fma::<FMA>(3.0 * B, square, A);
    (x * s, s * (1.0 + x * (1.0 - s) * du))
}

/// `x Φ(x)` with the error function of Abramowitz and Stegun 7.1.26 (1.5e-7 absolute): slope `Φ + x φ`.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FMA>(0.327_591_1, z, 1.0);
    let gauss = exp::<FMA>(-0.5 * x * x);
    let p = fma::<FMA>(t, 1.061_405_4, -1.453_152);
    let p = fma::<FMA>(t, p, 1.421_413_7);
    let p = fma::<FMA>(t, p, -0.284_496_74);
    let p = fma::<FMA>(t, p, 0.254_829_6);
    // The upper tail, and the distribution from it on the side of x.
    let tail = 0.5 * p * t * gauss;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    (x * phi, fma::<FMA>(x * 0.398_942_3, gauss, phi))
}
