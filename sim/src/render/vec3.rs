//! Three numbers. Plain arrays and plain operators, because the loops over rays must vectorise and must give
//! the same bits everywhere.

/// x, y, z or red, green, blue.
pub(super) type V3 = [f32; 3];

#[inline(always)]
pub(super) fn add(a: V3, b: V3) -> V3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

#[inline(always)]
pub(super) fn sub(a: V3, b: V3) -> V3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

#[inline(always)]
pub(super) fn scale(a: V3, by: f32) -> V3 {
    [a[0] * by, a[1] * by, a[2] * by]
}

#[inline(always)]
pub(super) fn dot(a: V3, b: V3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

#[inline(always)]
pub(super) fn cross(a: V3, b: V3) -> V3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// Row by row.
#[inline(always)]
pub(super) fn matvec(rows: &[V3; 3], v: V3) -> V3 {
    [dot(rows[0], v), dot(rows[1], v), dot(rows[2], v)]
}

/// At length one; `None` when there is no direction to keep.
pub(super) fn unit(v: V3) -> Option<V3> {
    let length = dot(v, v).sqrt();
    (length > 1e-9 && length.is_finite()).then(|| scale(v, 1.0 / length))
}

/// The lesser: one instruction, unlike `f32::min`, which looks for NaN.
#[inline(always)]
pub(super) fn low(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The greater.
#[inline(always)]
pub(super) fn high(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
