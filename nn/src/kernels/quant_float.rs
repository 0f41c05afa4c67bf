//! Products with packed weights in floating point. The numbers of [`SPAN`] steps (columns, or pairs of them) are summed in
//! their order, then the sums of the spans in theirs: the same bytes for one row as for many, whatever the instruction set's
//! tiles.
#![expect(
    clippy::needless_range_loop,
    reason = "loops that the compiler unrolls into registers, which iterators over arrays prevent"
)]

use super::quant_simd::Simd;
use super::quant_tile::{Ahead, PAIRS};
use crate::quant::Format;

/// Steps of a span.
const SPAN: usize = 128;
/// Steps between which memory is asked for.
pub const PART: usize = 8;

/// `T` rows of activations, as a tile has them at `x`, against the sixteen rows of weights at each of `from`.
///
/// # Safety
/// `steps` steps of both are there, and the processor has the instruction set.
#[inline(always)]
pub unsafe fn tile<S: Simd, const FORMAT: u32, const T: usize, const G: usize>(
    from: [*const u8; G],
    x: *const f32,
    steps: usize,
    ahead: Ahead,
) -> [[S::Floats; G]; T] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut total = [[S::splat(0.0); G]; T];
        for start in (0..steps).step_by(SPAN) {
            let mut sums = [[S::splat(0.0); G]; T];
            for c in start..steps.min(start + SPAN) {
                if c % PART == 0 {
                    ahead.ask::<S>(c / PART);
                }
                let mut w = [S::splat(0.0); G];
                for g in 0..G {
                    w[g] = step::<S, FORMAT>(from[g], c);
                }
                for t in 0..T {
                    let x = S::splat(*x.add(c * T + t));
                    for g in 0..G {
                        sums[t][g] = add::<S, FORMAT>(sums[t][g], w[g], x);
                    }
                }
            }
            for t in 0..T {
                for g in 0..G {
                    total[t][g] = S::add(total[t][g], sums[t][g]);
                }
            }
        }
        total
    }
}

/// Sixteen weights of column `c`, or of pair `c` of columns.
///
/// # Safety
/// They are there, and the processor has the instruction set.
#[inline(always)]
unsafe fn step<S: Simd, const FORMAT: u32>(from: *const u8, c: usize) -> S::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        match FORMAT {
            f if f == Format::F16 as u32 => S::halves(from.add(c * 32)),
            f if f == Format::Bf16 as u32 => S::brains(S::load(from.add(c / 2 * 64)), c % 2 == 1),
            _ => S::load(from.add(c * 64)),
        }
    }
}

/// Adds what a step brings.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
unsafe fn add<S: Simd, const FORMAT: u32>(sum: S::Floats, w: S::Floats, x: S::Floats) -> S::Floats {
    // SAFETY: the caller's promise.
    unsafe { if FORMAT == PAIRS { S::dot_pairs(sum, w, x) } else { S::fma(w, x, sum) } }
}
