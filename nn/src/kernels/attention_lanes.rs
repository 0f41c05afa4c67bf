//! The products of attention with sixteen queries as lanes: keys are the rows of a tile where scores are made, elements of a
//! value where values are summed, so that both are the products of packed weights ([`super::quant_float`]), and neither they
//! nor the softmax between them add across lanes. A query's numbers do not depend on which others are beside it.

use super::quant::{self, FLOAT_TILE, Level, TILE};
use super::quant_float;
use super::quant_simd::{Portable, Simd};
use super::quant_tile::Ahead;
use super::simd::{dispatch, exp};
use crate::quant::Format;
use std::ops::Range;

/// Queries side by side.
pub const LANES: usize = quant::ROWS;
/// Keys whose values are summed at once: their probabilities (8 KiB) stay in the first-level cache.
const SPAN: usize = 128;

/// Sixteens of queries that are worked on together: with 32 vector registers two.
pub fn abreast() -> usize {
    match level().0 {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => 2,
        _ => 1,
    }
}

/// One value of each query.
pub type Lanes = [f32; LANES];

/// The keys and values of one head as the products read them.
pub struct Head<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    s: usize,
    d: usize,
    dv: usize,
}

/// The instruction set, and the rows of a tile with it.
fn level() -> (Level, usize) {
    match quant::best() {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => (Level::Vnni, TILE),
        level => (level, FLOAT_TILE),
    }
}

/// Lays out `to.len() / d` keys, `stride` apart: tiles of rows, their elements side by side.
pub fn lay_keys(keys: &[f32], stride: usize, d: usize, to: &mut [f32]) {
    let height = level().1;
    for (i, tile) in to.chunks_mut((height * d).max(1)).enumerate() {
        let rows = tile.len() / d;
        for t in 0..rows {
            let key = &keys[(i * height + t) * stride..][..d];
            key.iter().zip(tile[t..].iter_mut().step_by(rows)).for_each(|(x, to)| *to = *x);
        }
    }
}

/// Lays out `to.len() / dv` values, `stride` apart: spans of rows, in each tiles of elements.
pub fn lay_values(values: &[f32], stride: usize, dv: usize, to: &mut [f32]) {
    let height = level().1;
    for (i, span) in to.chunks_mut((SPAN * dv).max(1)).enumerate() {
        let rows = span.len() / dv;
        for (j, tile) in span.chunks_mut(height * rows).enumerate() {
            let width = tile.len() / rows;
            for (row, to) in tile.chunks_exact_mut(width).enumerate() {
                to.copy_from_slice(&values[(i * SPAN + row) * stride + j * height..][..width]);
            }
        }
    }
}

impl<'a> Head<'a> {
    /// The head whose `s` keys of `d` elements and values of `dv` [`lay_keys`] and [`lay_values`] wrote.
    pub fn new(keys: &'a [f32], values: &'a [f32], (s, d, dv): (usize, usize, usize)) -> Self {
        assert!(keys.len() == s * d && values.len() == s * dv, "attention: keys or values are missing");
        Self { keys, values, s, d, dv }
    }

    /// `keys`, widened to whole tiles.
    pub fn whole_tiles(&self, keys: &Range<usize>) -> Range<usize> {
        let height = level().1;
        keys.start / height * height..keys.end.next_multiple_of(height).min(self.s)
    }

    /// The scores of the queries, one or two times `[d]`, with `keys`, which are whole tiles.
    pub fn scores(&self, queries: &[Vec<Lanes>], keys: &Range<usize>, scores: &mut [Vec<Lanes>]) {
        assert!(queries.iter().all(|q| q.len() == self.d) && keys.start.is_multiple_of(level().1));
        let tiles = &self.keys[keys.start * self.d..];
        product::<false>(queries, 0..self.d, tiles, (level().1 * self.d, 0), scores);
    }

    /// The sums, one or two times `[dv]`, of the values of `keys`, each as often as its weights say.
    pub fn sums(&self, weights: &[Vec<Lanes>], keys: &Range<usize>, sums: &mut [Vec<Lanes>]) {
        assert!(weights.iter().all(|w| w.len() == keys.len()) && sums.iter().all(|s| s.len() == self.dv));
        sums.iter_mut().for_each(|sums| sums.fill([0.0; LANES]));
        for start in (keys.start / SPAN * SPAN..keys.end).step_by(SPAN) {
            let rows = SPAN.min(self.s - start);
            let within = keys.start.max(start)..keys.end.min(start + rows);
            let some = within.start - keys.start..within.end - keys.start;
            let tiles = &self.values[start * self.dv..];
            product::<true>(weights, some, tiles, (level().1 * rows, within.start - start), sums);
        }
    }
}

/// `out[row] = Σ lanes[column] · tiles[row][column]` over some of the lanes, or `+=` if `ADD`, of one or two sixteens of
/// queries. The tiles are `stride` apart; of each, `skip` columns are passed over.
fn product<const ADD: bool>(
    lanes: &[Vec<Lanes>],
    some: Range<usize>,
    tiles: &[f32],
    (stride, skip): (usize, usize),
    out: &mut [Vec<Lanes>],
) {
    let (level, height) = level();
    let (rows, columns) = (out[0].len(), some.len());
    let last = rows % height;
    let end = match rows / height {
        0 => 0,
        whole if last == 0 => (whole - 1) * stride + (skip + columns) * height,
        whole => whole * stride,
    };
    let tail = if last == 0 { 0 } else { rows / height * stride + (skip + columns) * last };
    assert!(end.max(tail) <= tiles.len(), "attention: a tile is missing");
    let tile = |i: usize, rows: usize| Columns {
        // SAFETY: the tile's columns lie within `tiles`, as was asserted.
        x: unsafe { tiles.as_ptr().add(i * stride + skip * rows) },
        count: columns,
    };
    for (i, start) in (0..rows).step_by(height).enumerate() {
        let rows = start..rows.min(start + height);
        // SAFETY: `level` is the processor's, and the tile is there.
        unsafe {
            match (lanes, &mut *out) {
                ([a, b], [to_a, to_b]) => {
                    let from = [&a[some.clone()], &b[some.clone()]].map(|lanes| lanes.as_ptr().cast());
                    let to = [&mut to_a[rows.clone()], &mut to_b[rows.clone()]];
                    step::<ADD, 2>(level, from, tile(i, rows.len()), to);
                }
                (lanes, out) => {
                    for (lanes, out) in lanes.iter().zip(out) {
                        let from = [lanes[some.clone()].as_ptr().cast()];
                        step::<ADD, 1>(level, from, tile(i, rows.len()), [&mut out[rows.clone()]]);
                    }
                }
            }
        }
    }
}

/// The columns of a tile.
#[derive(Clone, Copy)]
struct Columns {
    x: *const f32,
    count: usize,
}

/// # Safety
/// As [`step_by_height`].
unsafe fn step<const ADD: bool, const G: usize>(
    level: Level,
    from: [*const u8; G],
    tile: Columns,
    out: [&mut [Lanes]; G],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match level {
            Level::Portable => step_by_height::<Portable, ADD, G>(from, tile, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => step_avx2::<ADD, G>(from, tile, out),
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => step_vnni::<ADD, G>(from, tile, out),
        }
    }
}

/// # Safety
/// As [`step_by_height`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn step_avx2<const ADD: bool, const G: usize>(
    from: [*const u8; G],
    tile: Columns,
    out: [&mut [Lanes]; G],
) {
    // SAFETY: the caller's promise; this function has the features.
    unsafe { step_by_height::<super::quant_x86::Avx2, ADD, G>(from, tile, out) }
}

/// # Safety
/// As [`step_by_height`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
unsafe fn step_vnni<const ADD: bool, const G: usize>(
    from: [*const u8; G],
    tile: Columns,
    out: [&mut [Lanes]; G],
) {
    // SAFETY: the caller's promise; this function has the features.
    unsafe { step_by_height::<super::quant_x86::Vnni, ADD, G>(from, tile, out) }
}

/// One tile of as many rows as each of `out` has.
///
/// # Safety
/// As many columns of lanes are at each of `from` as the tile has; the processor has the instruction set.
#[inline(always)]
unsafe fn step_by_height<S: Simd, const ADD: bool, const G: usize>(
    from: [*const u8; G],
    tile: Columns,
    mut out: [&mut [Lanes]; G],
) {
    macro_rules! heights {
        ($($height:literal),*) => {
            match out[0].len() {
                $($height => {
                    // SAFETY: the caller's promise; each of `out` has a place for each row.
                    unsafe {
                        let (x, count) = (tile.x, tile.count);
                        let rows =
                            quant_float::tile::<S, { Format::F32 as u32 }, $height, G>(from, x, count, Ahead::NONE);
                        for (t, row) in rows.into_iter().enumerate() {
                            for (out, sum) in out.iter_mut().zip(row) {
                                let out = &mut out[t];
                                let sum = if ADD { S::add(S::load(out.as_ptr().cast()), sum) } else { sum };
                                S::store(out.as_mut_ptr(), sum);
                            }
                        }
                    }
                })*
                _ => {}
            }
        };
    }
    heights!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
}

dispatch!(
    /// Scores to `exp(score - max)`; gives the sum and the maximum of each query. Where a query sees nothing, everything is
    /// zero, with a maximum of minus infinity.
    pub fn softmax(scores: &mut [Lanes], sums: &mut Lanes, maxima: &mut Lanes) = softmax_body
);
#[inline(always)]
fn softmax_body<const FMA: bool>(scores: &mut [Lanes], sums: &mut Lanes, maxima: &mut Lanes) {
    let mut max = [f32::NEG_INFINITY; LANES];
    for row in scores.iter() {
        for i in 0..LANES {
            max[i] = if row[i] > max[i] { row[i] } else { max[i] };
        }
    }
    let from = max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { max });
    let mut total = [0f32; LANES];
    for span in scores.chunks_mut(SPAN) {
        let mut sum = [0f32; LANES];
        for row in span {
            for i in 0..LANES {
                row[i] = exp::<FMA>(row[i] - from[i]);
                sum[i] += row[i];
            }
        }
        for i in 0..LANES {
            total[i] += sum[i];
        }
    }
    (*sums, *maxima) = (total, max);
}
