//! Products with packed weights in floating point. The numbers of [`SPAN`] columns are summed in their order, then the sums
//! of the spans in theirs: the same bytes for one row as for many, whatever the instruction set's tiles.

use super::quant_simd::Simd;
use crate::quant::Format;

/// Columns of a span.
const SPAN: usize = 128;

/// `T` rows of activations, as a tile has them at `x`, against the sixteen rows of weights at `from`.
///
/// # Safety
/// `columns` columns of both are there, and the processor has the instruction set.
#[inline(always)]
pub unsafe fn tile<S: Simd, const FORMAT: u32, const T: usize>(
    from: *const u8,
    x: *const f32,
    columns: usize,
) -> [S::Floats; T] {
    // SAFETY: the caller's promise.
    unsafe {
        if T == 1 {
            return [one_row::<S, FORMAT>(from, x, columns); T];
        }
        let mut total = [S::splat(0.0); T];
        for start in (0..columns).step_by(SPAN) {
            let mut sums = [S::splat(0.0); T];
            for c in start..columns.min(start + SPAN) {
                let w = column::<S, FORMAT>(from, c);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(w, S::splat(*x.add(c * T + t)), *sum);
                }
            }
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total = S::add(*total, sum));
        }
        total
    }
}

/// As [`tile`] of one row: its spans are summed side by side, since one alone would wait for each multiply-add before the
/// next.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn one_row<S: Simd, const FORMAT: u32>(from: *const u8, x: *const f32, columns: usize) -> S::Floats {
    // SAFETY: the caller's promise; no span reaches beyond the columns.
    unsafe {
        let (mut total, mut start) = (S::splat(0.0), 0);
        while start + 4 * SPAN <= columns {
            abreast::<S, FORMAT, 4>(&mut total, from, x, start, SPAN);
            start += 4 * SPAN;
        }
        while start + 2 * SPAN <= columns {
            abreast::<S, FORMAT, 2>(&mut total, from, x, start, SPAN);
            start += 2 * SPAN;
        }
        while start < columns {
            abreast::<S, FORMAT, 1>(&mut total, from, x, start, SPAN.min(columns - start));
            start += SPAN;
        }
        total
    }
}

/// Adds the sums of `N` spans of `count` columns.
///
/// # Safety
/// As [`tile`]; they lie within the columns.
#[inline(always)]
unsafe fn abreast<S: Simd, const FORMAT: u32, const N: usize>(
    total: &mut S::Floats,
    from: *const u8,
    x: *const f32,
    start: usize,
    count: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for c in start..start + count {
            for (i, sum) in sums.iter_mut().enumerate() {
                let c = c + i * SPAN;
                *sum = S::fma(column::<S, FORMAT>(from, c), S::splat(*x.add(c)), *sum);
            }
        }
        sums.into_iter().for_each(|sum| *total = S::add(*total, sum));
    }
}

/// Sixteen weights of column `c`.
///
/// # Safety
/// They are there, and the processor has the instruction set.
#[inline(always)]
unsafe fn column<S: Simd, const FORMAT: u32>(from: *const u8, c: usize) -> S::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        match FORMAT {
            f if f == Format::F32 as u32 => S::load(from.add(c * 64)),
            f if f == Format::F16 as u32 => S::halves(from.add(c * 32)),
            _ => S::brains(from.add(c * 32)),
        }
    }
}
