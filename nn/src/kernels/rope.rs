//! Rotary embedding, forward and backward (which turns the other way).

use super::data::{Values, tensor};
use super::node::node;
use super::simd::{dispatch, fma};
use crate::Result;
use crate::rope::{Angles, RopeStyle};
use candle_core::Tensor;
use std::sync::Arc;

/// How the heads lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Batch elements.
    pub b: usize,
    /// Positions.
    pub t: usize,
    /// Heads.
    pub h: usize,
    /// Elements of a head.
    pub d: usize,
    /// Whether heads lie inside positions (`[b, t, h, d]`) or positions inside heads (`[b, h, t, d]`).
    pub packed: bool,
}

/// Turns the heads of `x`, laid out as `layout` says.
pub fn rope(x: &Tensor, angles: &Arc<Angles>, layout: Layout) -> Result<Tensor> {
    let mut values = Values::of(x)?.to_vec();
    turn_all(&mut values, angles, layout, 1.0);
    let angles = angles.clone();
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let mut dx = Values::of(grad)?.to_vec();
        turn_all(&mut dx, &angles, layout, -1.0);
        Ok(vec![Some(tensor(dx, args[0].shape())?)])
    };
    node("rope", &[x], values, x.shape(), backward)
}

/// Turns every head in place, forwards (`sign` 1) or back (-1).
pub fn turn_all(values: &mut [f32], angles: &Angles, layout: Layout, sign: f32) {
    let Layout { b, t, h, d, packed } = layout;
    let half = angles.half;
    if d == 0 {
        return;
    }
    for (row, head) in values.chunks_exact_mut(d).enumerate() {
        let (batch, position) = if packed { (row / (t * h), row / h % t) } else { (row / (t * h), row % t) };
        debug_assert!(batch < b);
        let at = ((if angles.batch == 1 { 0 } else { batch }) * t + position) * half;
        let (cos, sin) = (&angles.cos[at..at + half], &angles.sin[at..at + half]);
        turn(angles.style, &mut head[..2 * half], cos, sin, sign);
    }
}

dispatch!(fn turn(style: RopeStyle, head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) = turn_body);
#[inline(always)]
fn turn_body<const FMA: bool>(style: RopeStyle, head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    match style {
        RopeStyle::HalfSplit => {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let s = s * sign;
                (*a, *b) = (fma::<FMA>(*a, *c, -*b * s), fma::<FMA>(*b, *c, *a * s));
            }
        }
        RopeStyle::Interleaved => {
            for (([a, b], c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let s = s * sign;
                (*a, *b) = (fma::<FMA>(*a, *c, -*b * s), fma::<FMA>(*b, *c, *a * s));
            }
        }
    }
}
