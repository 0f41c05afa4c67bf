//! Products with quantised weights: activations in eight bits per block of 32 ([`super::quant_input`]), integer dot
//! products, float32 sums.
//!
//! A weight is packed once ([`super::quant_pack`]) into groups of sixteen rows, so that one vector holds four columns of
//! each. A tile ([`super::quant_tile`]) is written once over [`Simd`] and compiled for AVX-512 with VNNI, AVX2 and plain
//! arrays.

use super::data::{Shared, written};
pub use super::quant_input::{Activations, Input};
use super::quant_input::{Cell, Tile};
use super::quant_pack::Packed;
use super::quant_simd::{Portable, Simd};
use super::quant_tile::{Ahead, PAIRS, SEVEN, is_float, tile};
use crate::quant::Format;
use crate::threads;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of a group.
pub const ROWS: usize = 16;
/// Columns of a block.
pub const BLOCK: usize = 32;
/// Rows of activations that a full tile holds where there are 32 vector registers.
pub const TILE: usize = 12;
/// The same of two groups of quantised weights at once: so many integers, and the floats they are added to, have a register.
pub const PAIRED_TILE: usize = 6;
/// The same where there are 16, for weights in up to eight bits.
pub const SHORT_TILE: usize = 8;
/// The same for eight bits in the reduced range.
pub const NARROW_TILE: usize = 4;
/// Rows that tiles of weights in up to eight bits may have.
pub const HEIGHTS: [usize; 7] = [TILE, SHORT_TILE, PAIRED_TILE, NARROW_TILE, 3, 2, 1];
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

/// Whether pairs of bfloat16 are multiplied at this level of this processor (AVX-512 BF16): twice as many as in float32.
/// Weights in bfloat16 then meet activations that are rounded to it.
pub fn has_pairs(level: Level) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

/// The best of [`levels`].
pub fn best() -> Level {
    levels()[levels().len() - 1]
}

/// What is made of some activations `x`: `x · weightᵀ + bias` in `out`, `[rows of x, rows of weight]`.
pub struct Product<'a> {
    pub x: &'a Activations,
    pub weight: &'a Packed,
    /// One number for each row of the weight, if any.
    pub bias: Option<&'a [f32]>,
    pub out: Shared<MaybeUninit<f32>>,
}

/// `x · weightᵀ`, and its bias if it has one, for several weights of equal width in one parallel sweep: for each,
/// `[rows of x, rows of weight]`.
pub fn products(x: &Activations, weights: &[(&Packed, Option<&[f32]>)]) -> Vec<Vec<f32>> {
    products_at(x, weights, best())
}

/// As [`products`] with a given instruction set, one of [`levels`], for which the activations were prepared.
pub fn products_at(x: &Activations, weights: &[(&Packed, Option<&[f32]>)], level: Level) -> Vec<Vec<f32>> {
    assert!(levels().contains(&level), "the processor lacks {level:?}");
    for (weight, bias) in weights {
        assert!(weight.columns() == x.columns, "packed product: widths differ");
        assert!(
            bias.is_none_or(|bias| bias.len() == weight.rows()),
            "packed product: a bias of another length"
        );
    }
    let tiles = &x.tiles;
    let cost_of = |w: &Packed| if w.layout().float { x.columns / 8 } else { x.columns / BLOCK };
    let blocks = weights.iter().map(|(w, _)| cost_of(w)).max().unwrap_or(1).max(1);
    // Tiles that stay in the second-level cache, of which processors with AVX-512 have more, while the weights stream past.
    let cached = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => 512 << 10,
        _ => 192 << 10,
    };
    let height = tiles.first().map_or(1, |tile| tile.count);
    let row_bytes = match x.cells.is_empty() {
        true => (x.floats.len().max(x.pairs.len()) / x.rows.max(1)).max(1) * size_of::<f32>(),
        false => x.columns / BLOCK * size_of::<Cell>(),
    };
    let batch = (cached / (row_bytes * height)).max(1);
    let batches = tiles.len().div_ceil(batch);
    // Groups per task: enough work to be worth a hand-over, small enough to share out evenly.
    let cost = blocks * x.rows.min(batch * height).max(4);
    let groups = (12_000 / cost.max(1)).clamp(1, 64).next_multiple_of(2);
    let mut tasks = Vec::new();
    for batch in 0..batches {
        for (which, (weight, _)) in weights.iter().enumerate() {
            tasks.extend((0..weight.groups()).step_by(groups).map(|group| (which, batch, group)));
        }
    }
    let mut outs: Vec<Vec<f32>> =
        weights.iter().map(|(w, _)| Vec::with_capacity(x.rows * w.rows())).collect();
    {
        let mut products = Vec::with_capacity(weights.len());
        for (out, &(weight, bias)) in outs.iter_mut().zip(weights) {
            let out = Shared::new(&mut out.spare_capacity_mut()[..x.rows * weight.rows()]);
            products.push(Product { x, weight, bias, out });
        }
        let run = |task: usize| {
            let (which, at, group) = tasks[task];
            let product = &products[which];
            let tiles = &tiles[at * batch..tiles.len().min((at + 1) * batch)];
            sweep(level, product, group..(group + groups).min(product.weight.groups()), tiles);
        };
        // A few microseconds of work are done before another thread has woken up.
        let total: usize =
            weights.iter().map(|(w, _)| w.groups() * cost_of(w)).sum::<usize>() * x.rows.max(2);
        if total < 2_000 { (0..tasks.len()).for_each(run) } else { threads::for_each(tasks.len(), run) }
    }
    for (out, (weight, _)) in outs.iter_mut().zip(weights) {
        // SAFETY: every group wrote its rows' values for every tile, which together are all of them.
        unsafe { out.set_len(x.rows * weight.rows()) };
    }
    outs
}

/// Some groups of rows against some tiles of activations.
fn sweep(level: Level, product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    macro_rules! formats {
        ($($format:ident),*) => {
            match product.weight.format() {
                Format::Bf16 if !product.x.pairs.is_empty() => sweep_at::<PAIRS>(level, product, groups, tiles),
                _ if product.weight.is_narrow() => sweep_at::<SEVEN>(level, product, groups, tiles),
                $(Format::$format => {
                    sweep_at::<{ Format::$format as u32 }>(level, product, groups, tiles);
                })*
            }
        };
    }
    formats!(F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K);
}

/// [`sweep`] with weights in `FORMAT`.
fn sweep_at<const FORMAT: u32>(level: Level, product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    match level {
        // SAFETY: plain arrays run everywhere.
        Level::Portable => unsafe { sweep_with::<Portable, FORMAT>(product, groups, tiles) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `levels` saw the features, and `products_at` asks it.
        Level::Avx2 => unsafe { sweep_avx2::<FORMAT>(product, groups, tiles) },
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => {
            if const { FORMAT == PAIRS } {
                // SAFETY: as above; and there are pairs only where `has_pairs` saw the features.
                unsafe { sweep_pairs(product, groups, tiles) }
            } else {
                // SAFETY: as above.
                unsafe { sweep_vnni::<FORMAT>(product, groups, tiles) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn sweep_avx2<const FORMAT: u32>(product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    // SAFETY: this function has the features.
    unsafe { sweep_with::<super::quant_x86::Avx2, FORMAT>(product, groups, tiles) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn sweep_vnni<const FORMAT: u32>(product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    // SAFETY: this function has the features.
    unsafe { sweep_with::<super::quant_x86::Vnni, FORMAT>(product, groups, tiles) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx2,fma,f16c")]
fn sweep_pairs(product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    // SAFETY: this function has the features.
    unsafe { sweep_with::<super::quant_x86::Vnni, PAIRS>(product, groups, tiles) }
}

/// # Safety
/// The processor has the instruction set; `FORMAT` is the weight's.
#[inline(always)]
unsafe fn sweep_with<S: Simd, const FORMAT: u32>(product: &Product, groups: Range<usize>, tiles: &[Tile]) {
    macro_rules! heights {
        ($to:expr, $some:expr, $ahead:expr, $($height:literal),*) => {
            match $to.count {
                // SAFETY: the caller's promise.
                $($height if const { has_tile(FORMAT, $height) } => unsafe {
                    tiles_of::<S, FORMAT, $height>(product, $some, $to, $ahead);
                },)*
                // SAFETY: as above.
                _ => unsafe { tiles_of::<S, FORMAT, 1>(product, $some, $to, $ahead) },
            }
        };
    }
    for first in groups.clone().step_by(S::GROUPS) {
        let some = first..groups.end.min(first + S::GROUPS);
        for (i, to) in tiles.iter().enumerate() {
            let ahead = Ahead::of::<FORMAT>(product.weight, some.end..some.end + S::GROUPS, i, tiles.len());
            heights!(to, some.clone(), ahead, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2);
        }
    }
}

/// Whether tiles of so many rows occur: of weights in floating point all, else those of [`HEIGHTS`].
const fn has_tile(format: u32, rows: usize) -> bool {
    let mut i = 0;
    while i < HEIGHTS.len() {
        if HEIGHTS[i] == rows {
            return true;
        }
        i += 1;
    }
    is_float(format)
}

/// Whether a tile of so many rows takes two groups of weights at once.
const fn pairs_up(format: u32, rows: usize) -> bool {
    rows > 1 && (is_float(format) || rows <= PAIRED_TILE)
}

/// The `T` rows of activations of a tile against some groups of rows of weights: two at once where they have the registers.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn tiles_of<S: Simd, const FORMAT: u32, const T: usize>(
    product: &Product,
    groups: Range<usize>,
    to: &Tile,
    ahead: Ahead,
) {
    // Weights that pass but once are bound by memory, which is read best in one stream. In floating point more rows are bound
    // by arithmetic.
    let once = (!is_float(FORMAT) || T <= 3) && product.x.tiles.len() == 1;
    let ahead = if once { Ahead::NONE } else { ahead };
    // SAFETY: the caller's promise.
    unsafe {
        if const { S::GROUPS == 2 && pairs_up(FORMAT, T) } && groups.len() == 2 && !once {
            return tile::<S, FORMAT, T, 2>(product, groups.start, to, ahead);
        }
        for group in groups {
            tile::<S, FORMAT, T, 1>(product, group, to, ahead);
        }
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
