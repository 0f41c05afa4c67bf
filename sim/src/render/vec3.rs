//! Three numbers, or three packs of eight numbers: plain operators in a fixed order, so that every machine
//! computes the same bits.

use std::ops::{Add, Mul, Sub};
use wide::f32x8;

/// x, y, z or red, green, blue.
pub(super) type V3<T = f32> = [T; 3];

#[inline(always)]
pub(super) fn add<T: Copy + Add<Output = T>>(a: V3<T>, b: V3<T>) -> V3<T> {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

#[inline(always)]
pub(super) fn sub<T: Copy + Sub<Output = T>>(a: V3<T>, b: V3<T>) -> V3<T> {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

#[inline(always)]
pub(super) fn scale<T: Copy + Mul<Output = T>>(a: V3<T>, by: T) -> V3<T> {
    [a[0] * by, a[1] * by, a[2] * by]
}

#[inline(always)]
pub(super) fn dot<T: Copy + Add<Output = T> + Mul<Output = T>>(a: V3<T>, b: V3<T>) -> T {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Row by row.
#[inline(always)]
pub(super) fn matvec<T: Copy + Add<Output = T> + Mul<Output = T>>(rows: [V3<T>; 3], v: V3<T>) -> V3<T> {
    [dot(rows[0], v), dot(rows[1], v), dot(rows[2], v)]
}

/// Eight times the same.
#[inline(always)]
pub(super) fn splat(v: V3) -> V3<f32x8> {
    v.map(f32x8::splat)
}

pub(super) fn cross(a: V3, b: V3) -> V3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// At length one; `None` when there is no direction to keep.
pub(super) fn unit(v: V3) -> Option<V3> {
    let length = dot(v, v).sqrt();
    (length > 1e-9 && length.is_finite()).then(|| scale(v, 1.0 / length))
}

/// The lesser of each pair.
#[inline(always)]
pub(super) fn low(a: f32x8, b: f32x8) -> f32x8 {
    a.fast_min(b)
}

/// The greater of each pair.
#[inline(always)]
pub(super) fn high(a: f32x8, b: f32x8) -> f32x8 {
    a.fast_max(b)
}

/// Where the mask is set the first, elsewhere the second.
#[inline(always)]
pub(super) fn pick(mask: f32x8, yes: f32x8, no: f32x8) -> f32x8 {
    mask.bitselect(yes, no)
}
