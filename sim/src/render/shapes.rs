//! The four shapes in their own frames, eight rays at a time: where a ray enters and leaves, and the normals.
//!
//! Each function here takes a shape's measures and returns a closure, so that what is the same for all rays is
//! computed once. `o` is a ray's origin, `d` its direction, of any length; distances are in units of `d`.

use super::vec3::{V3, dot, high, low, pick, sub};
use wide::f32x8;

/// From where a ray enters to where it leaves; empty when the end comes first.
type Span = [f32x8; 2];

/// Two pieces of a ray, in order.
pub(super) type Spans = [Span; 2];

/// Edges are rounded for the eye only: the normal turns over this width, m.
const BEVEL: f32 = 0.0015;

#[inline(always)]
fn nothing() -> Span {
    [f32x8::splat(f32::INFINITY), f32x8::splat(f32::NEG_INFINITY)]
}

/// A box of these half edges.
#[inline(always)]
pub(super) fn block(half: V3) -> impl Fn(V3<f32x8>, V3<f32x8>) -> Spans {
    move |o, d| {
        let side = |k: usize| slab(o[k], d[k], [-half[k], half[k]]);
        [overlap(side(0), overlap(side(1), side(2))), nothing()]
    }
}

/// A ball of this radius.
#[inline(always)]
pub(super) fn ball(radius: f32) -> impl Fn(V3<f32x8>, V3<f32x8>) -> Spans {
    move |o, d| {
        let c = dot(o, o) - f32x8::splat(radius * radius);
        [roots(dot(d, d), dot(o, d), c), nothing()]
    }
}

/// A round bar along z.
#[inline(always)]
pub(super) fn cylinder(radius: f32, half_length: f32) -> impl Fn(V3<f32x8>, V3<f32x8>) -> Spans {
    move |o, d| [bar(o, d, radius, [-half_length, half_length]), nothing()]
}

/// A bar without its hollow: the piece before the hollow and the piece after it.
#[inline(always)]
pub(super) fn bowl(radius: f32, half_height: f32, wall: f32) -> impl Fn(V3<f32x8>, V3<f32x8>) -> Spans {
    move |o, d| {
        let whole = bar(o, d, radius, [-half_height, half_height]);
        let hollow = bar(o, d, radius - wall, [wall - half_height, 3.0 * half_height]);
        // A ray that misses the hollow keeps the bar in one piece.
        let through = hollow[0].simd_lt(hollow[1]);
        let end = pick(through, low(whole[1], hollow[0]), whole[1]);
        let start = pick(through, high(whole[0], hollow[1]), f32x8::splat(f32::INFINITY));
        [[whole[0], end], [start, whole[1]]]
    }
}

/// Of any length, at a point of the surface.
#[inline(always)]
pub(super) fn block_normal(half: V3) -> impl Fn(V3<f32x8>) -> V3<f32x8> {
    let bevel = BEVEL.min(0.3 * half[0].min(half[1]).min(half[2]));
    let inner = sub(half, [bevel; 3]);
    move |p| [beyond(p[0], inner[0]), beyond(p[1], inner[1]), beyond(p[2], inner[2])]
}

/// Of any length, at a point of the surface.
#[inline(always)]
pub(super) fn cylinder_normal(radius: f32, half_length: f32) -> impl Fn(V3<f32x8>) -> V3<f32x8> {
    let bevel = BEVEL.min(0.3 * radius.min(half_length));
    move |p| {
        let r = (p[0] * p[0] + p[1] * p[1]).sqrt();
        let out = beyond(r, radius - bevel) / high(r, f32x8::splat(1e-6));
        [p[0] * out, p[1] * out, beyond(p[2], half_length - bevel)]
    }
}

/// The normal of the part of the surface that is nearest to a point.
#[inline(always)]
pub(super) fn bowl_normal(radius: f32, half_height: f32, wall: f32) -> impl Fn(V3<f32x8>) -> V3<f32x8> {
    let [radius, inner, rim, floor] =
        [radius, radius - wall, half_height, wall - half_height].map(f32x8::splat);
    let (zero, one, far) = (f32x8::ZERO, f32x8::ONE, f32x8::splat(1.0));
    move |p| {
        let r = (p[0] * p[0] + p[1] * p[1]).sqrt();
        let out = one / high(r, f32x8::splat(1e-6));
        let mut best = (r - radius).abs();
        let mut normal = [p[0] * out, p[1] * out, zero];
        let mut offer = |distance: f32x8, n: V3<f32x8>| {
            let nearer = distance.simd_lt(best);
            best = pick(nearer, distance, best);
            for k in 0..3 {
                normal[k] = pick(nearer, n[k], normal[k]);
            }
        };
        let inside = r.simd_lt(inner + f32x8::splat(1e-4));
        offer((p[2] - rim).abs(), [zero, zero, one]);
        offer((p[2] + rim).abs(), [zero, zero, -one]);
        let inwards = [-p[0] * out, -p[1] * out, zero];
        offer(pick(p[2].simd_gt(floor), (r - inner).abs(), far), inwards);
        offer(pick(inside, (p[2] - floor).abs(), far), [zero, zero, one]);
        normal
    }
}

/// How far `x` lies outside of `-limit..limit`, with its sign.
#[inline(always)]
fn beyond(x: f32x8, limit: f32) -> f32x8 {
    let limit = f32x8::splat(limit);
    high(x - limit, f32x8::ZERO) + low(x + limit, f32x8::ZERO)
}

/// A round bar along z of this radius, between two heights.
#[inline(always)]
fn bar(o: V3<f32x8>, d: V3<f32x8>, radius: f32, heights: [f32; 2]) -> Span {
    // A ray along the axis has no `a`: a trace of it puts both roots far away instead of nowhere.
    let a = high(d[0] * d[0] + d[1] * d[1], f32x8::splat(1e-12));
    let c = o[0] * o[0] + o[1] * o[1] - f32x8::splat(radius * radius);
    overlap(roots(a, o[0] * d[0] + o[1] * d[1], c), slab(o[2], d[2], heights))
}

/// Between two planes.
#[inline(always)]
fn slab(o: f32x8, d: f32x8, planes: [f32; 2]) -> Span {
    let inverse = f32x8::ONE / d;
    let a = (f32x8::splat(planes[0]) - o) * inverse;
    let b = (f32x8::splat(planes[1]) - o) * inverse;
    [low(a, b), high(a, b)]
}

#[inline(always)]
fn overlap(a: Span, b: Span) -> Span {
    [high(a[0], b[0]), low(a[1], b[1])]
}

/// Between the roots of `a t^2 + 2 b t + c`, `a` positive; empty when there are none.
#[inline(always)]
fn roots(a: f32x8, b: f32x8, c: f32x8) -> Span {
    let square = b * b - a * c;
    let root = high(square, f32x8::ZERO).sqrt();
    let inverse = f32x8::ONE / a;
    let real = square.simd_gt(f32x8::ZERO);
    let [never, neither] = nothing();
    [pick(real, (-b - root) * inverse, never), pick(real, (root - b) * inverse, neither)]
}
