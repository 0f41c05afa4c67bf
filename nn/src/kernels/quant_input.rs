//! What [`super::quant`] multiplies weights with: activations in eight bits per block of 32, without those that stand out.
//!
//! A few activations of a language model are a hundred times larger than their neighbours and would take all eight bits for
//! themselves. They are set apart and multiplied in float32 (Dettmers et al., arXiv:2208.07339, decide by column; here each
//! row decides for itself, so that it gives the same in any batch).

use super::data::{Shared, written};
use super::norm::Inside;
use super::quant::{
    BLOCK, FLOAT_TILE, HEIGHTS, Level, NARROW_TILE, PAIRED_TILE, SHORT_TILE, TILE, best, has_pairs,
};
use super::quant_pack::Packed;
use crate::quant::Format;
use crate::threads;
use std::borrow::Cow;
use std::mem::MaybeUninit;

/// How many times its block's mean magnitude an activation has when it is set apart. In SmolLM2-135M one in 200 is: the
/// logits' error halves.
const STANDS_OUT: f32 = 8.0;

/// 32 activations in eight bits, `x ≈ scale · q`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Cell {
    pub q: [i8; BLOCK],
    /// `scale`, `scale · Σq`, `Σq` of both halves, of the first, of the second.
    pub facts: [f32; 5],
    /// `Σq`.
    pub sum: i32,
}

const EMPTY: Cell = Cell { q: [0; BLOCK], facts: [0.0; 5], sum: 0 };

/// An activation that is multiplied by itself.
#[derive(Clone, Copy)]
pub struct Outlier {
    pub column: usize,
    /// Row in the tile.
    pub row: usize,
    pub value: f32,
}

/// Rows that are multiplied together.
pub struct Tile {
    /// The first of them.
    pub start: usize,
    /// How many they are.
    pub count: usize,
    /// By column, then row.
    pub outliers: Vec<Outlier>,
}

/// Rows of activations as they come, and the norm that they go through on their way to a product.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub values: &'a [f32],
    pub norm: Option<&'a Inside<'a>>,
}

impl<'a> From<&'a [f32]> for Input<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { values, norm: None }
    }
}

impl<'a> Input<'a> {
    /// All of them, normalised.
    pub fn all(self) -> Cow<'a, [f32]> {
        self.some(0, self.values.len())
    }

    /// `len` values of whole rows from `start` on, normalised.
    fn some(self, start: usize, len: usize) -> Cow<'a, [f32]> {
        let values = &self.values[start..start + len];
        self.norm.map_or(Cow::Borrowed(values), |norm| Cow::Owned(norm.apply(values)))
    }
}

/// Rows of activations in the order in which tiles read them: tile, block or column, row.
pub struct Activations {
    /// In eight bits, for quantised weights.
    pub cells: Vec<Cell>,
    /// As they are, for weights in floating point.
    pub floats: Vec<f32>,
    /// Rounded to bfloat16, two columns in the place of a float, for weights in it ([`has_pairs`]).
    pub pairs: Vec<f32>,
    pub tiles: Vec<Tile>,
    pub rows: usize,
    pub columns: usize,
}

impl Activations {
    /// Prepares `x`, rows of the width of `weights`, for their formats and this processor.
    pub fn of<'a>(x: impl Into<Input<'a>>, weights: &[&Packed]) -> Self {
        Self::at(best(), x, weights)
    }

    /// The same for a given instruction set.
    pub fn at<'a>(level: Level, x: impl Into<Input<'a>>, weights: &[&Packed]) -> Self {
        let x = x.into();
        let columns = weights.first().map_or(1, |w| w.columns()).max(1);
        let rows = x.values.len() / columns;
        let paired = |w: &Packed| w.format() == Format::Bf16 && has_pairs(level);
        let quantised = weights.iter().any(|w| !w.layout().float);
        let mut tiles = tiles(rows, height(level, weights, rows), !quantised);
        let each = |fill: &(dyn Fn(usize) + Sync), count: usize| match rows * columns < 1 << 15 {
            true => (0..count).for_each(fill),
            false => threads::for_each(count, fill),
        };
        let mut cells = Vec::new();
        if quantised {
            let (blocks, count, most) = (columns / BLOCK, tiles.len(), most(level, weights));
            cells = vec![EMPTY; rows * blocks];
            let (cells, tiles) = (Shared::new(&mut cells), Shared::new(&mut tiles));
            let fill = |tile: usize| {
                // SAFETY: each tile is one task's.
                let Some(Tile { start, count, outliers }) = unsafe { tiles.range(tile, 1) }.first_mut()
                else {
                    return;
                };
                // SAFETY: tiles lie one behind the other, and each is filled by one task.
                let cells = unsafe { cells.range(*start * blocks, *count * blocks) };
                let x = x.some(*start * columns, *count * columns);
                for (row, values) in x.chunks_exact(columns).enumerate() {
                    quantise(values, &mut cells[row..], (*count, most), row, outliers);
                }
                outliers.sort_unstable_by_key(|o| (o.column, o.row));
            };
            each(&fill, count);
        }
        // The rows of each tile side by side: numbers, or pairs of rounded ones.
        let laid = |paired: bool| {
            let steps = if paired { columns.div_ceil(2) } else { columns };
            let write = |to: &mut [MaybeUninit<f32>]| {
                let to = Shared::new(to);
                let fill = |tile: usize| {
                    let Tile { start, count, .. } = tiles[tile];
                    // SAFETY: tiles lie one behind the other, and each is filled by one task.
                    let to = unsafe { to.range(start * steps, count * steps) };
                    let x = x.some(start * columns, count * columns);
                    if !paired {
                        return interleave(&x, count, to);
                    }
                    let mut rounded = vec![0.0; count * steps];
                    for (values, to) in x.chunks_exact(columns).zip(rounded.chunks_exact_mut(steps)) {
                        pair(values, to);
                    }
                    interleave(&rounded, count, to);
                };
                each(&fill, tiles.len());
            };
            // SAFETY: the tiles hold every row, and each is filled.
            unsafe { written(rows * steps, write) }
        };
        let lay = |paired: bool, any: bool| if any { laid(paired) } else { Vec::new() };
        let floats = lay(false, weights.iter().any(|w| w.layout().float && !paired(w)));
        let pairs = lay(true, weights.iter().any(|w| paired(w)));
        Self { cells, floats, pairs, tiles, rows, columns }
    }
}

/// `count` rows of equal length, one after the other, to their columns.
fn interleave(rows: &[f32], count: usize, to: &mut [MaybeUninit<f32>]) {
    /// Columns of all rows after which the next are begun: they stay in the first-level cache.
    const SPAN: usize = 64;
    let columns = rows.len() / count;
    for start in (0..columns).step_by(SPAN) {
        let len = SPAN.min(columns - start);
        let to = &mut to[start * count..(start + len) * count];
        let part = |row: usize| &rows[row * columns + start..][..len];
        for row in (0..count).step_by(4) {
            let to = &mut to[row..];
            match count - row {
                1 => interleave_some([part(row)], count, to),
                2 => interleave_some([part(row), part(row + 1)], count, to),
                3 => interleave_some([part(row), part(row + 1), part(row + 2)], count, to),
                _ => interleave_four([part(row), part(row + 1), part(row + 2), part(row + 3)], count, to),
            }
        }
    }
}

/// The same of rows that are some of `count`.
#[inline(always)]
fn interleave_some<const N: usize>(rows: [&[f32]; N], count: usize, to: &mut [MaybeUninit<f32>]) {
    for column in 0..rows[0].len() {
        let to = &mut to[column * count..][..N];
        for i in 0..N {
            to[i].write(rows[i][column]);
        }
    }
}

/// The same of four, as many columns at a time.
#[inline(always)]
fn interleave_four(rows: [&[f32]; 4], count: usize, to: &mut [MaybeUninit<f32>]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
        let len = rows[0].len() / 4 * 4;
        assert!(rows.iter().all(|row| row.len() >= len) && (len == 0 || to.len() >= (len - 1) * count + 4));
        while done < len {
            // SAFETY: every x86-64 processor has SSE; the columns from `done` are there to be read and written.
            unsafe {
                let mut four = rows.map(|row| _mm_loadu_ps(row.as_ptr().add(done)));
                let [a, b, c, d] = &mut four;
                _MM_TRANSPOSE4_PS(a, b, c, d);
                for column in four {
                    _mm_storeu_ps(to.as_mut_ptr().add(done * count).cast(), column);
                    done += 1;
                }
            }
        }
    }
    if done < rows[0].len() {
        interleave_some(rows.map(|row| &row[done..]), count, &mut to[done * count..]);
    }
}

/// The largest number of an activation: 127, or 63 where four products with weights of seven bits are added in sixteen.
pub fn most(level: Level, weights: &[&Packed]) -> f32 {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if weights.iter().any(|w| w.is_narrow()) => 63.0,
        _ => 127.0,
    }
}

/// Rows of a full tile, of so many.
fn height(level: Level, weights: &[&Packed], rows: usize) -> usize {
    let is_float = weights.iter().all(|w| w.layout().float);
    match level {
        #[cfg(target_arch = "x86_64")]
        // Rows that fit into one tile let the weights pass once.
        Level::Vnni if is_float || rows <= TILE => TILE,
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => PAIRED_TILE,
        _ if is_float => FLOAT_TILE,
        _ if weights.iter().any(|w| w.is_narrow()) => NARROW_TILE,
        _ => SHORT_TILE,
    }
}

/// Splits rows into tiles of at most `most`: for weights in floating point into as few as can be, of equal size but for one
/// row; else as [`HEIGHTS`] has them, so that none is left with a single row if there are more.
fn tiles(rows: usize, most: usize, float: bool) -> Vec<Tile> {
    let mut tiles = Vec::with_capacity(rows / 4 + 4);
    let mut start = 0;
    while start < rows {
        let left = rows - start;
        let fits = |count: &usize| *count <= most && (*count == left || *count + 1 < left);
        let count = match float {
            true => left.div_ceil(left.div_ceil(most)),
            false => HEIGHTS.into_iter().find(fits).unwrap_or(1),
        };
        tiles.push(Tile { start, count, outliers: Vec::new() });
        start += count;
    }
    tiles
}

super::simd::dispatch!(
    /// Rounds a row to bfloat16, two numbers in the place of one.
    fn pair(values: &[f32], to: &mut [f32]) = pair_body
);
#[inline(always)]
fn pair_body<const FMA: bool>(values: &[f32], to: &mut [f32]) {
    /// To the nearest, ties to even; a NaN stays one.
    #[inline(always)]
    fn upper_half(v: f32) -> u32 {
        let bits = v.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        if v.is_nan() { 0x7fc0 } else { rounded }
    }
    let (two, last) = values.as_chunks::<2>();
    for ([a, b], to) in two.iter().zip(to.iter_mut()) {
        *to = f32::from_bits(upper_half(*a) | upper_half(*b) << 16);
    }
    if let ([v], Some(to)) = (last, to.last_mut()) {
        *to = f32::from_bits(upper_half(*v));
    }
}

super::simd::dispatch!(
    /// Quantises a row, number `row` of its tile, into every so many-th cell, to numbers of at most so much.
    fn quantise(values: &[f32], cells: &mut [Cell], form: (usize, f32), row: usize, outliers: &mut Vec<Outlier>) = quantise_body
);
#[inline(always)]
fn quantise_body<const FMA: bool>(
    values: &[f32],
    cells: &mut [Cell],
    (stride, most): (usize, f32),
    row: usize,
    outliers: &mut Vec<Outlier>,
) {
    for (i, (values, cell)) in
        values.as_chunks::<BLOCK>().0.iter().zip(cells.iter_mut().step_by(stride)).enumerate()
    {
        let (largest, sum) = magnitudes(values);
        // False if there is a NaN or an infinity.
        if largest * BLOCK as f32 > STANDS_OUT * sum {
            let mut rest = *values;
            for (j, v) in rest.iter_mut().enumerate() {
                if v.abs() * BLOCK as f32 > STANDS_OUT * sum {
                    outliers.push(Outlier { column: i * BLOCK + j, row, value: *v });
                    *v = 0.0;
                }
            }
            quantise_block(&rest, magnitudes(&rest), most, cell);
        } else {
            quantise_block(values, (largest, sum), most, cell);
        }
    }
}

/// The largest magnitude of a block, and the sum of all. With a NaN among them the sum is one.
#[inline(always)]
fn magnitudes(values: &[f32; BLOCK]) -> (f32, f32) {
    const HALF: usize = BLOCK / 2;
    let (mut largest, mut sum) = ([0f32; HALF], [0f32; HALF]);
    for i in 0..HALF {
        let (a, b) = (values[i].abs(), values[i + HALF].abs());
        largest[i] = if a > b { a } else { b };
        sum[i] = a + b;
    }
    let mut width = HALF / 2;
    while width > 0 {
        for i in 0..width {
            largest[i] = if largest[i] > largest[i + width] { largest[i] } else { largest[i + width] };
            sum[i] += sum[i + width];
        }
        width /= 2;
    }
    (largest[0], sum[0])
}

#[inline(always)]
fn quantise_block(values: &[f32; BLOCK], (largest, sum): (f32, f32), most: f32, cell: &mut Cell) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest whole number, ties to even
    let (scale, inverse) = (largest / most, most / largest);
    // A NaN or an infinity anywhere must come out: it is carried by the scale.
    if !sum.is_finite() && values.iter().any(|v| !v.is_finite()) {
        *cell = Cell { facts: [f32::NAN; 5], ..EMPTY };
        return;
    }
    // Zeros, or numbers so small that no scale makes eight bits of them.
    if !inverse.is_finite() {
        *cell = EMPTY;
        return;
    }
    let mut rounded = [0i32; BLOCK];
    for (rounded, v) in rounded.iter_mut().zip(values) {
        *rounded = (v * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    }
    cell.q.iter_mut().zip(&rounded).for_each(|(q, rounded)| *q = *rounded as i8);
    let sums = [0, BLOCK / 2].map(|start| rounded[start..start + BLOCK / 2].iter().sum::<i32>());
    cell.sum = sums[0] + sums[1];
    let [first, second] = sums.map(|s| s as f32);
    cell.facts = [scale, scale * (first + second), first + second, first, second];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_laid_out_column_by_column() {
        for count in 1..=TILE {
            for columns in [1, 3, 4, 5, 63, 64, 66, 131] {
                let rows: Vec<f32> = (0..count * columns).map(|i| i as f32).collect();
                // SAFETY: `interleave` writes as many as there are.
                let got = unsafe { written(rows.len(), |to| interleave(&rows, count, to)) };
                let want: Vec<f32> = (0..columns)
                    .flat_map(|column| (0..count).map(move |row| (row * columns + column) as f32))
                    .collect();
                assert_eq!(got, want, "{count} rows of {columns}");
            }
        }
    }

    #[test]
    fn numbers_that_no_scale_fits_are_zeros_and_what_is_not_finite_stays_so() {
        let quantised = |values: [f32; BLOCK]| {
            let mut cell = Cell { q: [1; BLOCK], facts: [1.0; 5], sum: 1 };
            quantise_block(&values, magnitudes(&values), 127.0, &mut cell);
            cell
        };
        for tiny in [0.0, f32::from_bits(1), 1e-40, 3e-37] {
            let cell = quantised([tiny; BLOCK]);
            assert_eq!((cell.q, cell.facts, cell.sum), ([0; BLOCK], [0.0; 5], 0), "{tiny:e}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[7] = bad;
            let cell = quantised(values);
            assert!(
                cell.facts.iter().all(|fact| fact.is_nan()) && (cell.q, cell.sum) == ([0; BLOCK], 0),
                "{bad}"
            );
        }
        // Their magnitudes add up to an infinity, and each is finite.
        let cell = quantised([f32::MAX; BLOCK]);
        assert_eq!((cell.q, cell.sum), ([127; BLOCK], 127 * BLOCK as i32));
    }
}
