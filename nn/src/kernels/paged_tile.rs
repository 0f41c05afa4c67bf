//! What [`super::paged`] does with one tile, sixteen positions of one head, for up to four queries at a time.
//!
//! `ahead` is a tile that is worked on soon: its memory is asked for line by line along the way, since the processor reads
//! ahead neither from one tile to another that lies elsewhere, nor fast enough from one that two threads read.

use super::simd::{self, ask, dispatch, exp, fma, tanh};
use crate::paged::BLOCK;

dispatch!(
    /// Whole numbers as floats.
    pub fn widen(from: &[i8], to: &mut [f32]) = widen_body
);
#[inline(always)]
fn widen_body<const FMA: bool>(from: &[i8], to: &mut [f32]) {
    from.iter().zip(to).for_each(|(from, to)| *to = f32::from(*from));
}

dispatch!(
    /// The scores of all queries `[n, d]` with a tile of keys `[d][16]`, into sixteen columns of rows `stride` apart.
    pub fn score_tile(
        queries: &[f32],
        d: usize,
        tile: &[f32],
        scores: &mut [f32],
        stride: usize,
        ahead: &[u8],
    ) = score_tile_body
);
#[inline(always)]
fn score_tile_body<const FMA: bool>(
    queries: &[f32],
    d: usize,
    tile: &[f32],
    scores: &mut [f32],
    stride: usize,
    ahead: &[u8],
) {
    let n = queries.len() / d.max(1);
    let mut i = 0;
    while i < n {
        let (queries, scores) = (&queries[i * d..], &mut scores[i * stride..]);
        i += match n - i {
            1 => score_rows::<FMA, 1>(queries, d, tile, scores, stride, ahead),
            2 => score_rows::<FMA, 2>(queries, d, tile, scores, stride, ahead),
            3 => score_rows::<FMA, 3>(queries, d, tile, scores, stride, ahead),
            _ => score_rows::<FMA, 4>(queries, d, tile, scores, stride, ahead),
        };
    }
}

#[inline(always)]
fn score_rows<const FMA: bool, const N: usize>(
    queries: &[f32],
    d: usize,
    tile: &[f32],
    scores: &mut [f32],
    stride: usize,
    ahead: &[u8],
) -> usize {
    let queries: [&[f32]; N] = std::array::from_fn(|i| &queries[i * d..(i + 1) * d]);
    // Two sums per query, of even and of odd elements, so that an addition need not wait for the one before. They must
    // stay in registers: no index into them but constants.
    let (mut even, mut odd) = ([[0f32; BLOCK]; N], [[0f32; BLOCK]; N]);
    let (columns, _) = tile.as_chunks::<BLOCK>();
    let (pairs, rest) = columns[..d].as_chunks::<2>();
    let step = ahead.len() / d.max(1);
    for (j, [a, b]) in pairs.iter().enumerate() {
        ask(ahead, 2 * j * step);
        ask(ahead, (2 * j + 1) * step);
        for i in 0..N {
            let (x, y) = (queries[i][2 * j], queries[i][2 * j + 1]);
            for l in 0..BLOCK {
                even[i][l] = fma::<FMA>(x, a[l], even[i][l]);
                odd[i][l] = fma::<FMA>(y, b[l], odd[i][l]);
            }
        }
    }
    for column in rest {
        for i in 0..N {
            for l in 0..BLOCK {
                even[i][l] = fma::<FMA>(queries[i][d - 1], column[l], even[i][l]);
            }
        }
    }
    for i in 0..N {
        let to = &mut scores[i * stride..i * stride + BLOCK];
        to.iter_mut().zip(even[i].iter().zip(&odd[i])).for_each(|(to, (a, b))| *to = a + b);
    }
    N
}

dispatch!(
    /// Scores to `exp(score - max)` within `low..high` and zeros outside; gives the inverse of their sum. `cap` bounds the
    /// scores first, unless it is zero.
    pub fn weigh(scores: &mut [f32], low: usize, high: usize, cap: f32) -> f32 = weigh_body
);
#[inline(always)]
fn weigh_body<const FMA: bool>(scores: &mut [f32], low: usize, high: usize, cap: f32) -> f32 {
    scores[..low].fill(0.0);
    scores[high..].fill(0.0);
    let seen = &mut scores[low..high];
    if cap != 0.0 {
        seen.iter_mut().for_each(|v| *v = cap * tanh::<FMA>(*v / cap));
    }
    let max = simd::max(seen);
    seen.iter_mut().for_each(|v| *v = exp::<FMA>(*v - max));
    1.0 / simd::sum::<FMA>(seen)
}

dispatch!(
    /// Adds a tile of values `[up to 16][dv]`, weighed by as many columns of rows `stride` apart, to the sums `[n, dv]`.
    pub fn gather_tile(
        weights: &[f32],
        stride: usize,
        tile: &[f32],
        dv: usize,
        sums: &mut [f32],
        ahead: &[u8],
    ) = gather_tile_body
);
#[inline(always)]
fn gather_tile_body<const FMA: bool>(
    weights: &[f32],
    stride: usize,
    tile: &[f32],
    dv: usize,
    sums: &mut [f32],
    ahead: &[u8],
) {
    let n = sums.len() / dv.max(1);
    let mut i = 0;
    while i < n {
        let (weights, sums) = (&weights[i * stride..], &mut sums[i * dv..]);
        i += match n - i {
            1 => gather_rows::<FMA, 1>(weights, stride, tile, dv, sums, ahead),
            2 => gather_rows::<FMA, 2>(weights, stride, tile, dv, sums, ahead),
            3 => gather_rows::<FMA, 3>(weights, stride, tile, dv, sums, ahead),
            _ => gather_rows::<FMA, 4>(weights, stride, tile, dv, sums, ahead),
        };
    }
}

#[inline(always)]
fn gather_rows<const FMA: bool, const N: usize>(
    weights: &[f32],
    stride: usize,
    tile: &[f32],
    dv: usize,
    sums: &mut [f32],
    ahead: &[u8],
) -> usize {
    // Position by position, the weights of all queries.
    let mut turned = [[0f32; N]; BLOCK];
    for i in 0..N {
        let row = &weights[i * stride..i * stride + BLOCK];
        turned.iter_mut().zip(row).for_each(|(turned, w)| turned[i] = *w);
    }
    // Two blocks of columns at a time, so that an addition need not wait for the one before.
    let even = dv / BLOCK * BLOCK;
    let mut column = 0;
    while column + 2 * BLOCK <= even {
        gather_columns::<FMA, N, 2>(&turned, tile, dv, column, sums, ahead);
        column += 2 * BLOCK;
    }
    if column < even {
        gather_columns::<FMA, N, 1>(&turned, tile, dv, column, sums, ahead);
    }
    for (weights, row) in turned.iter().zip(tile.chunks_exact(dv)) {
        for i in 0..N {
            for column in even..dv {
                sums[i * dv + column] = fma::<FMA>(weights[i], row[column], sums[i * dv + column]);
            }
        }
    }
    N
}

#[inline(always)]
fn gather_columns<const FMA: bool, const N: usize, const C: usize>(
    turned: &[[f32; N]; BLOCK],
    tile: &[f32],
    dv: usize,
    column: usize,
    sums: &mut [f32],
    ahead: &[u8],
) {
    let step = ahead.len() / (BLOCK * (dv / BLOCK));
    let mut line = column / BLOCK * step;
    let mut sum = [[[0f32; BLOCK]; C]; N];
    for (weights, row) in turned.iter().zip(tile.chunks_exact(dv)) {
        let (parts, _) = row[column..column + C * BLOCK].as_chunks::<BLOCK>();
        for c in 0..C {
            ask(ahead, line + c * step);
            for i in 0..N {
                for l in 0..BLOCK {
                    sum[i][c][l] = fma::<FMA>(weights[i], parts[c][l], sum[i][c][l]);
                }
            }
        }
        line += dv / BLOCK * step;
    }
    for i in 0..N {
        let to = &mut sums[i * dv + column..i * dv + column + C * BLOCK];
        to.iter_mut().zip(sum[i].as_flattened()).for_each(|(to, x)| *to += x);
    }
}
