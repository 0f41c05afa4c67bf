//! One tile of a product with packed weights: some rows of activations against sixteen or thirty-two rows of weights, written
//! once for every instruction set.
#![expect(
    clippy::needless_range_loop,
    reason = "loops that the compiler unrolls into registers, which iterators over arrays prevent"
)]

use super::quant::{BLOCK, Product, ROWS};
use super::quant_float;
use super::quant_input::{Activations, Cell, Outlier, Tile};
use super::quant_pack::{Layout, Packed};
use super::quant_simd::Simd;
use crate::quant::Format;
use std::array::from_fn;
use std::ops::Range;

/// Memory that the next groups of weights lie in, asked for while a tile is at work: the first tile to read it would wait.
#[derive(Clone, Copy)]
pub struct Ahead {
    at: *const u8,
    /// Lines for each part of a tile's work: a block of columns, or [`quant_float::PART`] steps.
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self { at: std::ptr::null(), lines: 0 };

    /// The share of tile `i` of so many in the numbers of `groups`, as far as the weight has them.
    #[inline(always)]
    pub fn of<const FORMAT: u32>(weight: &Packed, groups: Range<usize>, i: usize, tiles: usize) -> Self {
        let groups = groups.start..groups.end.min(weight.groups());
        let Some(group) = groups.clone().next() else { return Self::NONE };
        let numbers = weight.group(group);
        let parts = match is_float(FORMAT) {
            true => numbers.len().div_ceil(weight.layout().quant_bytes * quant_float::PART),
            false => weight.columns() / BLOCK,
        };
        let lines = (groups.len() * numbers.len()).div_ceil(64 * parts.max(1) * tiles);
        Self { at: numbers.as_ptr().wrapping_add(64 * lines * parts * i), lines }
    }

    /// Asks for the lines of part `part`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    pub unsafe fn ask<S: Simd>(self, part: usize) {
        for line in 0..self.lines {
            // SAFETY: the caller's promise; any address will do.
            unsafe { S::prefetch(self.at.wrapping_add(64 * (part * self.lines + line))) };
        }
    }
}

/// The `T` rows of activations of a tile against the rows of `G` groups of weights.
///
/// # Safety
/// The processor has the instruction set; `FORMAT` is the weight's.
#[inline(always)]
pub unsafe fn tile<S: Simd, const FORMAT: u32, const T: usize, const G: usize>(
    Product { x, weight, bias, out }: &Product,
    group: usize,
    Tile { start, outliers, .. }: &Tile,
    ahead: Ahead,
) {
    let (rows, x_rows) = (weight.rows(), x.rows.max(1));
    // SAFETY: the caller's promise.
    let sums = unsafe {
        if const { is_float(FORMAT) } {
            let values = from_fn(|g| {
                let values = weight.group(group + g);
                assert!(
                    values.len()
                        == x.columns.div_ceil(Layout::step(weight.format())) * weight.layout().quant_bytes
                );
                values.as_ptr()
            });
            let x = if FORMAT == PAIRS { &x.pairs } else { &x.floats };
            let steps = x.len() / x_rows;
            let x = &x[start * steps..(start + T) * steps];
            quant_float::tile::<S, FORMAT, T, G>(values, x.as_ptr(), steps, ahead)
        } else {
            let mut sums = quantised_tile::<S, FORMAT, T, G>(weight, group, x, *start, ahead);
            for g in 0..G {
                add_outliers::<S, FORMAT, T, G>(weight, group + g, outliers, &mut sums, g);
            }
            sums
        }
    };
    let (first, end) = (group * ROWS, rows.min((group + G) * ROWS));
    assert!((start + T) * rows <= out.len());
    let to = out.pointer(start * rows + first).cast::<f32>();
    // SAFETY: this task alone writes these rows' values; of a group that is not whole no more than there are; the set is the
    // caller's promise.
    unsafe {
        if end == (group + G) * ROWS {
            let mut added = [S::splat(0.0); G];
            if let Some(bias) = bias {
                let bias = bias[first..end].as_ptr();
                for g in 0..G {
                    added[g] = S::load(bias.add(g * ROWS).cast());
                }
            }
            for t in 0..T {
                for g in 0..G {
                    S::store(to.add(t * rows + g * ROWS), S::add(sums[t][g], added[g]));
                }
            }
            return;
        }
        let mut some = [[[0.0f32; ROWS]; G]; T];
        for t in 0..T {
            for g in 0..G {
                S::store(some[t][g].as_mut_ptr(), sums[t][g]);
            }
        }
        for (t, sums) in some.iter().enumerate() {
            for (i, sum) in sums.as_flattened()[..end - first].iter().enumerate() {
                to.add(t * rows + i).write(sum + bias.map_or(0.0, |bias| bias[first + i]));
            }
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn quantised_tile<S: Simd, const FORMAT: u32, const T: usize, const G: usize>(
    weight: &Packed,
    group: usize,
    x: &Activations,
    start: usize,
    ahead: Ahead,
) -> [[S::Floats; G]; T] {
    /// How far ahead of the block in work, in bytes, memory is asked for when each is used only once.
    const AHEAD: usize = 7 << 10;
    let (blocks, once) = (x.columns / BLOCK, x.tiles.len() == 1);
    let place = const { Place::of(FORMAT) };
    let groups: [_; G] = from_fn(|g| {
        let bytes = weight.group(group + g);
        assert!(bytes.len() == blocks.div_ceil(place.blocks) * place.chunk);
        bytes.as_ptr()
    });
    let cells = x.cells[start * blocks..(start + T) * blocks].as_ptr();
    // SAFETY: each group holds `blocks` blocks of this format's layout, and `cells` that many for each of `T` rows; the set
    // is the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); G]; T];
        for block in 0..blocks {
            let mut from = [std::ptr::null(); G];
            for g in 0..G {
                from[g] = groups[g].add(place.numbers(block));
            }
            if T == 1 || once {
                // The lines of a chunk, shared out among its blocks.
                let lines = place.chunk / 64;
                let next = groups[0].wrapping_add(AHEAD + block * lines / place.blocks * 64);
                for line in 0..lines.div_ceil(place.blocks) {
                    S::prefetch(next.wrapping_add(64 * line));
                }
            } else {
                ahead.ask::<S>(block);
            }
            let cells = cells.add(block * T);
            let dots = dots::<S, FORMAT, T, G>(from, cells);
            for g in 0..G {
                let factors = factors::<S, FORMAT>(groups[g].add(place.scales(block)), block);
                for t in 0..T {
                    sums[t][g] = add::<S, FORMAT>(sums[t][g], dots[t][g], &factors, cells.add(t));
                }
            }
        }
        sums
    }
}

/// Adds the products of the activations that were set apart to the sums of group `g` of the tile's.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_outliers<S: Simd, const FORMAT: u32, const T: usize, const G: usize>(
    weight: &Packed,
    group: usize,
    outliers: &[Outlier],
    sums: &mut [[S::Floats; G]; T],
    g: usize,
) {
    let (bytes, place) = (weight.group(group), const { Place::of(FORMAT) });
    for same in outliers.chunk_by(|a, b| a.column == b.column) {
        let (block, column) = (same[0].column / BLOCK, same[0].column % BLOCK);
        // SAFETY: an activation's column is one of the weight's; the set is the caller's promise.
        unsafe {
            let numbers = numbers::<S, FORMAT>(bytes[place.numbers(block)..].as_ptr(), column % 16 / 4);
            let factors = factors::<S, FORMAT>(bytes[place.scales(block)..].as_ptr(), block);
            let q = S::column(numbers[column / 16], column % 4);
            let scale = if is(FORMAT, &SIX) { factors[column / 16] } else { factors[0] };
            let mut w = S::mul(scale, S::add(q, S::splat(-const { zero::<FORMAT>() } as f32)));
            if is(FORMAT, &WITH_MINIMUM) {
                w = S::add(w, factors[1]);
            }
            for outlier in same {
                let sum = &mut sums[outlier.row][g];
                *sum = S::fma(w, S::splat(outlier.value), *sum);
            }
        }
    }
}

/// Where the numbers and scales of a group lie ([`Layout::chunk`]).
#[derive(Clone, Copy)]
struct Place {
    layout: Layout,
    /// Blocks of 32 columns in one of the file's.
    parts: usize,
    /// In a chunk: blocks, bytes of their numbers, bytes of all.
    blocks: usize,
    numbers: usize,
    chunk: usize,
}

impl Place {
    /// Of weights in floating point, whose tiles are compiled too and never run, it means nothing.
    const fn of(format: u32) -> Self {
        let format = match format {
            SEVEN => Format::Q8_0,
            PAIRS => Format::Bf16,
            format => Format::ALL[format as usize],
        };
        let layout = Layout::of(format);
        let (blocks, numbers, chunk) = layout.chunk(format);
        Self { layout, parts: format.block_len() / BLOCK, blocks, numbers, chunk }
    }

    /// The first byte of a block's numbers.
    #[inline(always)]
    fn numbers(self, block: usize) -> usize {
        block / self.blocks * self.chunk + block % self.blocks * self.layout.quant_bytes
    }

    /// The first byte of the scales of the file's block that it is in.
    #[inline(always)]
    fn scales(self, block: usize) -> usize {
        let within = block % self.blocks / self.parts * self.layout.scale_bytes;
        block / self.blocks * self.chunk + self.numbers + within
    }
}

const fn is(format: u32, these: &[Format]) -> bool {
    let mut i = 0;
    while i < these.len() {
        if these[i] as u32 == format {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether weights of this format are multiplied in floating point.
pub const fn is_float(format: u32) -> bool {
    format == PAIRS || is(format, &FLOAT)
}

/// Bf16 against activations that were rounded to it, two columns at once.
pub const PAIRS: u32 = 1 << 9;
/// Q8_0 of numbers within 63 of zero ([`Packed::is_narrow`]), which are raised by 64.
pub const SEVEN: u32 = 1 << 8;
const FLOAT: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];
const EIGHT: [Format; 1] = [Format::Q8_0];
const FIVE: [Format; 3] = [Format::Q5_0, Format::Q5_1, Format::Q5K];
const SIX: [Format; 1] = [Format::Q6K];
const WITH_MINIMUM: [Format; 4] = [Format::Q4_1, Format::Q5_1, Format::Q4K, Format::Q5K];

/// Columns `4 line..` and `16 + 4 line..` of a block, four each, as unsigned numbers.
///
/// # Safety
/// A whole block of `FORMAT` lies at `from`, and the processor has the instruction set.
#[inline(always)]
unsafe fn numbers<S: Simd, const FORMAT: u32>(from: *const u8, line: usize) -> [S::Bytes; 2] {
    // SAFETY: the caller's promise: a whole block is there.
    unsafe {
        if is(FORMAT, &EIGHT) || FORMAT == SEVEN {
            return [S::bytes(from.add(64 * line)), S::bytes(from.add(64 * (line + 4)))];
        }
        let q = S::bytes(from.add(64 * line));
        let w = [S::low_nibbles(q), S::high_nibbles(q)];
        if is(FORMAT, &FIVE) {
            let bits = from.add(256);
            return [S::with_fifth(w[0], bits.add(8 * line)), S::with_fifth(w[1], bits.add(8 * (line + 4)))];
        }
        if is(FORMAT, &SIX) {
            let (first, second) = (S::bytes(from.add(256)), S::bytes(from.add(320)));
            return [S::with_sixth(w[0], first, line), S::with_sixth(w[1], second, line)];
        }
        w
    }
}

/// By how much the numbers of a format are raised.
const fn zero<const FORMAT: u32>() -> i32 {
    match FORMAT {
        SEVEN => 64,
        f if is(f, &EIGHT) => 128,
        f if is(f, &SIX) => 32,
        f if f == Format::Q5_0 as u32 => 16,
        f if f == Format::Q4_0 as u32 => 8,
        _ => 0,
    }
}

/// Whether [`dots`] has taken that off its sums already: by beginning them there, or (of eight bits in narrow sums) by making
/// the numbers signed.
const fn is_taken_off<S: Simd, const FORMAT: u32>() -> bool {
    !is(FORMAT, &SIX) && (!S::NARROW || FORMAT == SEVEN || is(FORMAT, &EIGHT))
}

/// Lines after which narrow sums are full.
const fn full<S: Simd, const FORMAT: u32>() -> usize {
    match () {
        () if !S::NARROW => 4,
        () if is(FORMAT, &SIX) || is(FORMAT, &FIVE) => 2,
        () => 4,
    }
}

/// The products of a block of each of `G` groups with each of `T` cells, summed: one sum, of Q6_K one of each half.
///
/// # Safety
/// A whole block of `FORMAT` lies at each of `from` and `T` cells at `cells`, and the processor has the instruction set.
#[inline(always)]
unsafe fn dots<S: Simd, const FORMAT: u32, const T: usize, const G: usize>(
    from: [*const u8; G],
    cells: *const Cell,
) -> [[[S::Ints; 2]; G]; T] {
    let second = usize::from(is(FORMAT, &SIX));
    // SAFETY: the caller's promise: blocks and cells are there.
    unsafe {
        let mut sums = [[[S::zero(); 2]; G]; T];
        let x = |t: usize, column: usize| (&raw const (*cells.add(t)).q).cast::<i8>().add(column);
        if S::NARROW && is(FORMAT, &EIGHT) {
            // One half of a line after the other: the sums of both would not fit into the registers.
            for line in 0..4 {
                for half in 0..2 {
                    for g in 0..G {
                        let w = numbers::<S, FORMAT>(from[g], line)[half];
                        for t in 0..T {
                            let pairs = S::dot::<true>(S::no_pairs(), w, x(t, 4 * line + 16 * half));
                            sums[t][g][0] = S::widen(sums[t][g][0], pairs);
                        }
                    }
                }
            }
            return sums;
        }
        if const { is_taken_off::<S, FORMAT>() && zero::<FORMAT>() != 0 } {
            for t in 0..T {
                for g in 0..G {
                    sums[t][g][0] = S::whole(-zero::<FORMAT>() * (*cells.add(t)).sum);
                }
            }
        }
        if S::NARROW && FORMAT == SEVEN {
            // Four products of 127 times 63 fit into sixteen bits.
            for line in 0..4 {
                for g in 0..G {
                    let w = numbers::<S, FORMAT>(from[g], line);
                    for t in 0..T {
                        let pairs = S::dot::<false>(S::no_pairs(), w[0], x(t, 4 * line));
                        let pairs = S::dot::<false>(pairs, w[1], x(t, 4 * line + 16));
                        sums[t][g][0] = S::settled(S::widen(sums[t][g][0], pairs));
                    }
                }
            }
            return sums;
        }
        let full = const { full::<S, FORMAT>() };
        for part in (0..4).step_by(full) {
            let mut pairs = [[[S::no_pairs(); 2]; G]; T];
            for line in part..part + full {
                let mut w = [numbers::<S, FORMAT>(from[0], line); G];
                for g in 1..G {
                    w[g] = numbers::<S, FORMAT>(from[g], line);
                }
                for t in 0..T {
                    for g in 0..G {
                        let (first, last) = (x(t, 4 * line), x(t, 4 * line + 16));
                        let pairs = &mut pairs[t][g];
                        if is(FORMAT, &EIGHT) {
                            pairs[0] = S::dot::<true>(pairs[0], w[g][0], first);
                            pairs[second] = S::dot::<true>(pairs[second], w[g][1], last);
                        } else {
                            pairs[0] = S::dot::<false>(pairs[0], w[g][0], first);
                            pairs[second] = S::dot::<false>(pairs[second], w[g][1], last);
                        }
                        pairs[0] = S::settled_pairs(pairs[0]);
                        if second == 1 {
                            pairs[1] = S::settled_pairs(pairs[1]);
                        }
                    }
                }
            }
            for t in 0..T {
                for g in 0..G {
                    sums[t][g][0] = S::widen(sums[t][g][0], pairs[t][g][0]);
                    if second == 1 {
                        sums[t][g][1] = S::widen(sums[t][g][1], pairs[t][g][1]);
                    }
                }
            }
        }
        sums
    }
}

/// The two numbers by which a block's products and sums are multiplied: scale and minimum; of Q6_K, the scales of its halves.
///
/// # Safety
/// The scales of the file's block that it is in lie at `from`, and the processor has the instruction set.
#[inline(always)]
unsafe fn factors<S: Simd, const FORMAT: u32>(from: *const u8, block: usize) -> [S::Floats; 2] {
    // SAFETY: the caller's promise: the scales are there.
    unsafe {
        let d = S::halves(from);
        if is(FORMAT, &[Format::Q4K, Format::Q5K, Format::Q6K]) {
            if is(FORMAT, &SIX) {
                let small = from.add(32 + block % 8 * 32);
                return [S::mul(d, S::signed(small)), S::mul(d, S::signed(small.add(16)))];
            }
            let small = from.add(64 + block % 8 * 32);
            let least = S::mul(S::halves(from.add(32)), S::splat(-1.0));
            return [S::mul(d, S::unsigned(small)), S::mul(least, S::unsigned(small.add(16)))];
        }
        if is(FORMAT, &WITH_MINIMUM) { [d, S::halves(from.add(32))] } else { [d, d] }
    }
}

/// Adds a block's contribution: `Σ (scale q_w + minimum) · scale_x q_x`, the sums over `q_w q_x` in integers.
///
/// # Safety
/// `cell` may be read, and the processor has the instruction set.
#[inline(always)]
unsafe fn add<S: Simd, const FORMAT: u32>(
    sum: S::Floats,
    dots: [S::Ints; 2],
    factors: &[S::Floats; 2],
    cell: *const Cell,
) -> S::Floats {
    // SAFETY: the caller's promise: the cell is there.
    unsafe {
        let fact = |i: usize| S::splat((*cell).facts[i]);
        if is(FORMAT, &SIX) {
            let (first, second) = (S::floats(dots[0]), S::floats(dots[1]));
            let zero = S::splat(-zero::<FORMAT>() as f32);
            let (first, second) = (S::fma(zero, fact(3), first), S::fma(zero, fact(4), second));
            let both = S::fma(second, factors[1], S::mul(first, factors[0]));
            return S::fma(both, fact(0), sum);
        }
        let mut dot = S::floats(dots[0]);
        if is(FORMAT, &WITH_MINIMUM) {
            let sum = S::fma(factors[1], fact(1), sum);
            return S::fma(S::mul(dot, fact(0)), factors[0], sum);
        }
        if const { !is_taken_off::<S, FORMAT>() && zero::<FORMAT>() != 0 } {
            dot = S::fma(S::splat(-zero::<FORMAT>() as f32), fact(2), dot);
        }
        S::fma(S::mul(dot, fact(0)), factors[0], sum)
    }
}
