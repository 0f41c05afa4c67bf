//! Products with quantised weights: activations in eight bits per block of 32 ([`super::quant_input`]), integer dot
//! products, float32 sums.
//!
//! A weight is packed once ([`super::quant_pack`]) into groups of sixteen rows, so that one vector holds four columns of
//! each. The loop below is written once over [`Simd`] and compiled for AVX-512 with VNNI, AVX2 and plain arrays.

use super::data::{Shared, written};
use super::quant_float;
pub use super::quant_input::Activations;
use super::quant_input::{Cell, Outlier, Tile};
use super::quant_pack::Packed;
use super::quant_simd::{Portable, Simd};
use crate::quant::Format;
use crate::threads;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Rows of a group.
pub const ROWS: usize = 16;
/// Columns of a block.
pub const BLOCK: usize = 32;
/// Rows of activations that a full tile holds where there are 32 vector registers.
pub const TILE: usize = 12;
/// The same where there are 16, for weights in up to eight bits.
pub const SHORT_TILE: usize = 8;
/// The same for eight bits in the reduced range.
pub const NARROW_TILE: usize = 4;
/// Rows that tiles of weights in up to eight bits may have.
pub const HEIGHTS: [usize; 7] = [TILE, SHORT_TILE, 6, NARROW_TILE, 3, 2, 1];
/// The same where there are 16, for weights in floating point: twelve sums, as many as have a register.
pub const FLOAT_TILE: usize = 6;

/// The instruction sets of the quantised products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

/// Those that this processor has, the best last.
pub fn levels() -> &'static [Level] {
    static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
    LEVELS.get_or_init(|| {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Level::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    levels.push(Level::Vnni);
                }
            }
        }
        levels
    })
}

/// `x · weightᵀ` for several weights of equal width, in one parallel sweep: for each, `[rows of x, rows of weight]`.
pub fn products(x: &Activations, weights: &[&Packed]) -> Vec<Vec<f32>> {
    products_at(x, weights, levels()[levels().len() - 1])
}

/// As [`products`] with a given instruction set, one of [`levels`].
pub fn products_at(x: &Activations, weights: &[&Packed], level: Level) -> Vec<Vec<f32>> {
    assert!(levels().contains(&level), "the processor lacks {level:?}");
    assert!(weights.iter().all(|w| w.columns() == x.columns), "packed product: widths differ");
    let tiles = &x.tiles;
    let cost_of = |w: &Packed| if w.layout().float { x.columns / 8 } else { x.columns / BLOCK };
    let blocks = weights.iter().map(|w| cost_of(w)).max().unwrap_or(1).max(1);
    // Tiles that stay in the second-level cache while the weights stream past them.
    let height = tiles.first().map_or(1, |tile| tile.count);
    let row_bytes = if x.cells.is_empty() { x.columns * 4 } else { x.columns / BLOCK * size_of::<Cell>() };
    let batch = (192 * 1024 / (row_bytes * height)).max(1);
    let batches = tiles.len().div_ceil(batch);
    // Groups per task: enough work to be worth a hand-over, small enough to share out evenly.
    let cost = blocks * x.rows.min(batch * height).max(4);
    let groups = (12_000 / cost.max(1)).clamp(1, 64);
    let mut tasks = Vec::new();
    for batch in 0..batches {
        for (which, weight) in weights.iter().enumerate() {
            tasks.extend((0..weight.groups()).step_by(groups).map(|group| (which, batch, group)));
        }
    }
    let write = |outs: &[Shared<MaybeUninit<f32>>]| {
        let run = |task: usize| {
            let (which, at, group) = tasks[task];
            let weight = weights[which];
            let tiles = &tiles[at * batch..tiles.len().min((at + 1) * batch)];
            for group in group..(group + groups).min(weight.groups()) {
                sweep(level, weight, group, x, tiles, &outs[which]);
            }
        };
        // A few microseconds of work are done before another thread has woken up.
        let total: usize = weights.iter().map(|w| w.groups() * cost_of(w)).sum::<usize>() * x.rows.max(2);
        if total < 2_000 { (0..tasks.len()).for_each(run) } else { threads::for_each(tasks.len(), run) }
    };
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| Vec::with_capacity(x.rows * w.rows())).collect();
    {
        let lend = |(out, w): (&mut Vec<f32>, &&Packed)| {
            let len = x.rows * w.rows();
            Shared::new(&mut out.spare_capacity_mut()[..len])
        };
        let shared: Vec<_> = outs.iter_mut().zip(weights).map(lend).collect();
        write(&shared);
    }
    for (out, w) in outs.iter_mut().zip(weights) {
        // SAFETY: every group wrote its rows' values for every tile, which together are all of them.
        unsafe { out.set_len(x.rows * w.rows()) };
    }
    outs
}

/// One group of rows against some tiles of activations.
fn sweep(
    level: Level,
    weight: &Packed,
    group: usize,
    x: &Activations,
    tiles: &[Tile],
    out: &Shared<MaybeUninit<f32>>,
) {
    match level {
        // SAFETY: plain arrays run everywhere.
        Level::Portable => unsafe { sweep_by_format::<Portable>(weight, group, x, tiles, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `levels` saw the features, and `products_at` asks it.
        Level::Avx2 => unsafe { sweep_avx2(weight, group, x, tiles, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Vnni => unsafe { sweep_vnni(weight, group, x, tiles, out) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn sweep_avx2(
    weight: &Packed,
    group: usize,
    x: &Activations,
    tiles: &[Tile],
    out: &Shared<MaybeUninit<f32>>,
) {
    // SAFETY: this function has the features.
    unsafe { sweep_by_format::<super::quant_simd::Avx2>(weight, group, x, tiles, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn sweep_vnni(
    weight: &Packed,
    group: usize,
    x: &Activations,
    tiles: &[Tile],
    out: &Shared<MaybeUninit<f32>>,
) {
    // SAFETY: this function has the features.
    unsafe { sweep_by_format::<super::quant_simd::Vnni>(weight, group, x, tiles, out) }
}

/// # Safety
/// The processor has the instruction set.
#[inline(always)]
unsafe fn sweep_by_format<S: Simd>(
    weight: &Packed,
    group: usize,
    x: &Activations,
    tiles: &[Tile],
    out: &Shared<MaybeUninit<f32>>,
) {
    macro_rules! sweep {
        ($format:expr) => {{
            const FORMAT: u32 = $format;
            let float = const { is(FORMAT, &FLOAT) };
            for to in tiles {
                // SAFETY: the caller's promise.
                unsafe {
                    match to.count {
                        12 => tile::<S, FORMAT, 12>(weight, group, x, to, out),
                        11 if float => tile::<S, FORMAT, 11>(weight, group, x, to, out),
                        10 if float => tile::<S, FORMAT, 10>(weight, group, x, to, out),
                        9 if float => tile::<S, FORMAT, 9>(weight, group, x, to, out),
                        8 => tile::<S, FORMAT, 8>(weight, group, x, to, out),
                        7 if float => tile::<S, FORMAT, 7>(weight, group, x, to, out),
                        6 => tile::<S, FORMAT, 6>(weight, group, x, to, out),
                        5 if float => tile::<S, FORMAT, 5>(weight, group, x, to, out),
                        3 => tile::<S, FORMAT, 3>(weight, group, x, to, out),
                        2 => tile::<S, FORMAT, 2>(weight, group, x, to, out),
                        4 => tile::<S, FORMAT, 4>(weight, group, x, to, out),
                        _ => tile::<S, FORMAT, 1>(weight, group, x, to, out),
                    }
                }
            }
        }};
    }
    macro_rules! formats {
        ($($format:ident),*) => {
            match weight.format() {
                _ if weight.is_narrow() => sweep!(SEVEN),
                $(Format::$format => sweep!(Format::$format as u32),)*
            }
        };
    }
    formats!(F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K);
}

/// The `T` rows of activations of a tile against sixteen rows of weights.
///
/// # Safety
/// The processor has the instruction set; `FORMAT` is the weight's.
#[inline(always)]
unsafe fn tile<S: Simd, const FORMAT: u32, const T: usize>(
    weight: &Packed,
    group: usize,
    x: &Activations,
    Tile { start, outliers, .. }: &Tile,
    out: &Shared<MaybeUninit<f32>>,
) {
    // SAFETY: the caller's promise.
    let sums = unsafe {
        if is(FORMAT, &FLOAT) {
            let (values, _) = weight.group(group);
            assert!(values.len() == x.columns * weight.layout().quant_bytes);
            let x = &x.floats[start * x.columns..(start + T) * x.columns];
            quant_float::tile::<S, FORMAT, T>(values.as_ptr(), x.as_ptr(), x.len() / T)
        } else {
            let mut sums = quantised_tile::<S, FORMAT, T>(weight, group, x, *start);
            add_outliers::<S, FORMAT, T>(weight, group, outliers, &mut sums);
            sums
        }
    };
    let (rows, first) = (weight.rows(), group * ROWS);
    for (t, sum) in sums.into_iter().enumerate() {
        let at = (*start + t) * rows + first;
        let mut last = [0.0; ROWS];
        // SAFETY: this task alone writes these rows' values; the set is the caller's promise.
        unsafe {
            if first + ROWS <= rows {
                S::store(out.range(at, ROWS).as_mut_ptr().cast(), sum);
            } else {
                S::store(last.as_mut_ptr(), sum);
                out.range(at, rows - first).write_copy_of_slice(&last[..rows - first]);
            }
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn quantised_tile<S: Simd, const FORMAT: u32, const T: usize>(
    weight: &Packed,
    group: usize,
    x: &Activations,
    start: usize,
) -> [S::Floats; T] {
    /// Blocks ahead of the one in work whose memory is asked for, when each is used only once.
    const AHEAD: usize = 14;
    let (blocks, once) = (x.columns / BLOCK, x.tiles.len() == 1);
    let (quants, scales) = weight.group(group);
    let layout = weight.layout();
    assert!(quants.len() == blocks * layout.quant_bytes);
    let (quants, scales) = (quants.as_ptr(), scales.as_ptr());
    let cells = x.cells[start * blocks..(start + T) * blocks].as_ptr();
    // SAFETY: `group` holds `blocks` blocks of this format's layout, and `cells` that many for each of `T` rows; the set is
    // the caller's promise.
    unsafe {
        let mut sums = [S::splat(0.0); T];
        for block in 0..blocks {
            let from = quants.add(block * layout.quant_bytes);
            if T == 1 || once {
                for line in 0..layout.quant_bytes / 64 {
                    S::prefetch(from.wrapping_add(AHEAD * layout.quant_bytes + 64 * line));
                }
                S::prefetch(scales.wrapping_add(
                    (block + AHEAD) * BLOCK / weight.format().block_len() * layout.scale_bytes,
                ));
            }
            let cells = cells.add(block * T);
            let dots = dots::<S, FORMAT, T>(from, cells);
            let scales = factors::<S, FORMAT>(scales, block, layout.scale_bytes);
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = add::<S, FORMAT>(*sum, dots[t], &scales, cells.add(t));
            }
        }
        sums
    }
}

/// Adds the products of the activations that were set apart.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_outliers<S: Simd, const FORMAT: u32, const T: usize>(
    weight: &Packed,
    group: usize,
    outliers: &[Outlier],
    sums: &mut [S::Floats; T],
) {
    let (quants, scales) = weight.group(group);
    let layout = weight.layout();
    for same in outliers.chunk_by(|a, b| a.column == b.column) {
        let (block, column) = (same[0].column / BLOCK, same[0].column % BLOCK);
        // SAFETY: an activation's column is one of the weight's; the set is the caller's promise.
        unsafe {
            let numbers =
                numbers::<S, FORMAT>(quants[block * layout.quant_bytes..].as_ptr(), column % 16 / 4);
            let factors = factors::<S, FORMAT>(scales.as_ptr(), block, layout.scale_bytes);
            let q = S::column(numbers[column / 16], column % 4);
            let (scale, zero) = match FORMAT {
                f if f == Format::Q6K as u32 => (factors[column / 16], S::splat(-32.0)),
                f if f == Format::Q5_0 as u32 => (factors[0], S::splat(-16.0)),
                f if f == Format::Q4_0 as u32 => (factors[0], S::splat(-8.0)),
                f if f == Format::Q8_0 as u32 => (factors[0], S::splat(-128.0)),
                SEVEN => (factors[0], S::splat(-64.0)),
                _ => (factors[0], S::splat(0.0)),
            };
            let mut w = S::mul(scale, S::add(q, zero));
            if is(FORMAT, &WITH_MINIMUM) {
                w = S::add(w, factors[1]);
            }
            for outlier in same {
                sums[outlier.row] = S::fma(w, S::splat(outlier.value), sums[outlier.row]);
            }
        }
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

/// Q8_0 of numbers within 63 of zero ([`Packed::is_narrow`]), which are raised by 64.
const SEVEN: u32 = 1 << 8;
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

/// Lines after which narrow sums are full.
const fn full<S: Simd, const FORMAT: u32>() -> usize {
    match () {
        () if !S::NARROW => 4,
        () if is(FORMAT, &SIX) || is(FORMAT, &FIVE) => 2,
        () => 4,
    }
}

/// The products of a block with each of `T` cells, summed: one sum, of Q6_K one of each half.
///
/// # Safety
/// A whole block of `FORMAT` lies at `from` and `T` cells at `cells`, and the processor has the instruction set.
#[inline(always)]
unsafe fn dots<S: Simd, const FORMAT: u32, const T: usize>(
    from: *const u8,
    cells: *const Cell,
) -> [[S::Ints; 2]; T] {
    let second = usize::from(is(FORMAT, &SIX));
    // SAFETY: the caller's promise: block and cells are there.
    unsafe {
        let mut sums = [[S::zero(); 2]; T];
        if S::NARROW && is(FORMAT, &EIGHT) {
            // One half of a line after the other: the sums of both would not fit into the registers.
            for line in 0..4 {
                for (half, w) in numbers::<S, FORMAT>(from, line).into_iter().enumerate() {
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let x = (&raw const (*cells.add(t)).q).cast::<i8>().add(4 * line + 16 * half);
                        sums[0] = S::widen(sums[0], S::dot::<true>(S::no_pairs(), w, x));
                    }
                }
            }
            return sums;
        }
        if S::NARROW && FORMAT == SEVEN {
            // Four products of 127 times 63 fit into sixteen bits.
            for (t, sums) in sums.iter_mut().enumerate() {
                sums[0] = S::whole(-64 * (*cells.add(t)).sum);
            }
            for line in 0..4 {
                let w = numbers::<S, FORMAT>(from, line);
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = (&raw const (*cells.add(t)).q).cast::<i8>().add(4 * line);
                    let pairs = S::dot::<false>(S::no_pairs(), w[0], x);
                    let pairs = S::dot::<false>(pairs, w[1], x.add(16));
                    sums[0] = S::settled(S::widen(sums[0], pairs));
                }
            }
            return sums;
        }
        let full = const { full::<S, FORMAT>() };
        for part in (0..4).step_by(full) {
            let mut pairs = [[S::no_pairs(); 2]; T];
            for line in part..part + full {
                let w = numbers::<S, FORMAT>(from, line);
                for (t, pairs) in pairs.iter_mut().enumerate() {
                    let x = (&raw const (*cells.add(t)).q).cast::<i8>().add(4 * line);
                    if is(FORMAT, &EIGHT) {
                        pairs[0] = S::dot::<true>(pairs[0], w[0], x);
                        pairs[second] = S::dot::<true>(pairs[second], w[1], x.add(16));
                    } else {
                        pairs[0] = S::dot::<false>(pairs[0], w[0], x);
                        pairs[second] = S::dot::<false>(pairs[second], w[1], x.add(16));
                    }
                    pairs[0] = S::settled_pairs(pairs[0]);
                    if second == 1 {
                        pairs[1] = S::settled_pairs(pairs[1]);
                    }
                }
            }
            for (sums, pairs) in sums.iter_mut().zip(pairs) {
                sums[0] = S::widen(sums[0], pairs[0]);
                if second == 1 {
                    sums[1] = S::widen(sums[1], pairs[1]);
                }
            }
        }
        sums
    }
}

/// The two numbers by which a block's products and sums are multiplied: scale and minimum; of Q6_K, the scales of its halves.
///
/// # Safety
/// The group's scales lie at `scales`, and the processor has the instruction set.
#[inline(always)]
unsafe fn factors<S: Simd, const FORMAT: u32>(
    scales: *const u8,
    block: usize,
    bytes: usize,
) -> [S::Floats; 2] {
    // SAFETY: the caller's promise: the group's scales are there.
    unsafe {
        if is(FORMAT, &[Format::Q4K, Format::Q5K, Format::Q6K]) {
            let big = scales.add(block / 8 * bytes);
            let d = S::halves(big);
            if is(FORMAT, &SIX) {
                let small = big.add(32 + block % 8 * 32);
                return [S::mul(d, S::signed(small)), S::mul(d, S::signed(small.add(16)))];
            }
            let small = big.add(64 + block % 8 * 32);
            let least = S::mul(S::halves(big.add(32)), S::splat(-1.0));
            return [S::mul(d, S::unsigned(small)), S::mul(least, S::unsigned(small.add(16)))];
        }
        let from = scales.add(block * bytes);
        let d = S::halves(from);
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
            let zero = S::splat(-32.0);
            let (first, second) = (S::fma(zero, fact(3), first), S::fma(zero, fact(4), second));
            let both = S::fma(second, factors[1], S::mul(first, factors[0]));
            return S::fma(both, fact(0), sum);
        }
        let mut dot = S::floats(dots[0]);
        if is(FORMAT, &WITH_MINIMUM) {
            let sum = S::fma(factors[1], fact(1), sum);
            return S::fma(S::mul(dot, fact(0)), factors[0], sum);
        }
        let zero = match FORMAT {
            f if f == Format::Q4_0 as u32 => 8.0,
            f if f == Format::Q5_0 as u32 => 16.0,
            SEVEN if S::NARROW => 0.0,
            SEVEN => 64.0,
            _ => S::EIGHT_BIT_ZERO,
        };
        if zero != 0.0 {
            dot = S::fma(S::splat(-zero), fact(2), dot);
        }
        S::fma(S::mul(dot, fact(0)), factors[0], sum)
    }
}

/// Rows of a product that are worked out in float32 on weights dequantised on the way: `x [m, columns] · weightᵀ`.
pub fn exact(x: &[f32], weight: &crate::quant::Blocks) -> Vec<f32> {
    let (rows, columns) = weight.rows();
    let m = x.len() / columns.max(1);
    const STRIP: usize = 64;
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let out = Shared::new(out);
        threads::for_each(rows.div_ceil(STRIP), |strip| {
            let first = strip * STRIP;
            let count = STRIP.min(rows - first);
            let mut values = vec![0.0; count * columns];
            weight.format().dequantise(weight.row(first, count), &mut values);
            let (a, b) =
                (super::matmul::View::rows(x, columns), super::matmul::View::rows(&values, columns).t());
            // SAFETY: this strip alone writes these columns of the result, which has `m` rows of `rows`.
            unsafe {
                super::matmul::raw(out.pointer(first).cast(), rows, false, (m, count, columns), a, b, 1.0)
            };
        });
    };
    // SAFETY: the strips cover every column of every row.
    unsafe { written(m * rows, fill) }
}
