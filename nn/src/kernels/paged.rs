//! Attention over keys and values that lie in blocks of sixteen positions (Kwon et al., arXiv:2309.06180).
//!
//! Keys of a block and head lie element by element (`[d][16]`), so that one query element meets sixteen keys at once and
//! nothing is summed across lanes; values lie position by position (`[16][dv]`). A few queries (decoding) read the blocks
//! in place; many (a prompt) gather them once per head and multiply matrices.

use super::data::Shared;
use super::matmul::{View, matmul_over, raw};
use super::paged_tile::{gather_tile, score_tile, weigh, widen};
use super::pages::Pages;
use crate::paged::{BLOCK, Span};
use crate::{Heads, threads};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use std::ops::Range;

/// Fewer queries than this in a span read the blocks in place.
const FEW: usize = 8;
/// Where a few queries read blocks in place, the memory of a tile is asked for so many tiles before.
const AHEAD: usize = 2;
/// Query rows per block of scores, when there are many.
const ROWS: usize = 64;

/// The keys or the values of a layer: tiles of sixteen positions of one head.
pub enum Plane {
    F32(Pages<f32>),
    /// Bits of float16.
    F16(Pages<u16>),
    /// Each position of each head divided by its own scale, `[tile][16]`.
    Int8(Pages<i8>, Pages<f32>),
}

/// Where the elements of a tile lie.
#[derive(Clone, Copy)]
pub enum Order {
    /// `[width][16]`: keys.
    ByElement,
    /// `[16][width]`: values.
    ByPosition,
}

impl Plane {
    /// Puts a row of `width` values into a slot of a tile.
    pub fn set(&mut self, tile: usize, slot: usize, row: &[f32], order: Order) {
        let (start, (from, step)) = (tile * BLOCK * row.len(), order.place(slot, row.len()));
        let at = start + from;
        match self {
            Self::F32(to) => row.iter().enumerate().for_each(|(j, x)| to[at + j * step] = *x),
            Self::F16(to) => {
                row.iter().enumerate().for_each(|(j, x)| to[at + j * step] = f16::from_f32(*x).to_bits());
            }
            Self::Int8(to, scales) => {
                let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
                let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
                scales[tile * BLOCK + slot] = most / 127.0;
                row.iter().enumerate().for_each(|(j, x)| to[at + j * step] = (x * inverse).round() as i8);
            }
        }
    }

    /// The first `rows` slots of the tile `from` to the tile `to`, of `width` values each.
    pub fn copy(&mut self, from: usize, to: usize, rows: usize, width: usize, order: Order) {
        fn one<T: Copy>(values: &mut [T], from: usize, to: usize, rows: usize, width: usize, order: Order) {
            let (from, to) = (from * BLOCK * width, to * BLOCK * width);
            match order {
                Order::ByPosition => values.copy_within(from..from + rows * width, to),
                Order::ByElement => (0..width * BLOCK)
                    .step_by(BLOCK)
                    .for_each(|j| values.copy_within(from + j..from + j + rows, to + j)),
            }
        }
        match self {
            Self::F32(values) => one(values, from, to, rows, width, order),
            Self::F16(values) => one(values, from, to, rows, width, order),
            Self::Int8(values, scales) => {
                one(values, from, to, rows, width, order);
                one(scales, from, to, rows, 1, Order::ByPosition);
            }
        }
    }

    /// The memory of a tile of `size` values.
    fn bytes(&self, tile: usize, size: usize) -> &[u8] {
        let range = tile * size..(tile + 1) * size;
        match self {
            Self::F32(values) => bytemuck::cast_slice(&values[range]),
            Self::F16(bits) => bytemuck::cast_slice(&bits[range]),
            Self::Int8(values, _) => bytemuck::cast_slice(&values[range]),
        }
    }

    /// A tile of `size` values, without the scales.
    fn tile<'a>(&'a self, tile: usize, size: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let range = tile * size..(tile + 1) * size;
        scratch.resize(size, 0.0);
        match self {
            Self::F32(values) => return &values[range],
            Self::F16(bits) => bits[range].reinterpret_cast::<f16>().convert_to_f32_slice(scratch),
            Self::Int8(values, _) => widen(&values[range], scratch),
        }
        scratch
    }

    /// The scales of a tile's positions, if it has any.
    fn scales(&self, tile: usize) -> Option<&[f32]> {
        match self {
            Self::Int8(_, scales) => Some(&scales[tile * BLOCK..(tile + 1) * BLOCK]),
            _ => None,
        }
    }
}

impl Order {
    /// Where a slot's first element is in its tile, and the distance to the next.
    fn place(self, slot: usize, width: usize) -> (usize, usize) {
        match self {
            Self::ByElement => (slot, BLOCK),
            Self::ByPosition => (slot * width, 1),
        }
    }
}

/// One attention over blocks.
pub struct Paged<'a> {
    pub keys: &'a Plane,
    pub values: &'a Plane,
    pub heads: Heads,
    pub d: usize,
    pub dv: usize,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// Positions seen, the query's own included.
    pub window: usize,
}

impl Paged<'_> {
    /// Queries `[rows of all spans, h * d]` to `out [rows, h * dv]`. The caller checked sizes and block numbers.
    pub fn attend(&self, q: &[f32], spans: &[Span<'_>], out: &mut [f32]) {
        // A task is a span, its first row, and key heads (few rows) or a query head (many). The key heads of a block lie side
        // by side: as many as leave work for every thread there is are read together, so that the processor reads ahead.
        let threads = if super::pool::is_alone() { 1 } else { threads::current() };
        let parts = threads.div_ceil(spans.len().max(1)).clamp(1, self.heads.key.max(1));
        let key_heads = self.heads.key.div_ceil(parts).max(1);
        let mut tasks = Vec::new();
        let mut first = 0;
        for span in spans {
            let (heads, at_once) =
                if span.rows < FEW { (self.heads.key, key_heads) } else { (self.heads.query, 1) };
            tasks.extend(
                (0..heads).step_by(at_once).map(|from| (span, first, from..heads.min(from + at_once))),
            );
            first += span.rows;
        }
        let out = Shared::new(out);
        threads::for_each(tasks.len(), |task| {
            let (span, first, heads) = &tasks[task];
            if span.rows < FEW {
                self.few(q, span, *first, heads.clone(), &out);
            } else {
                self.many(q, span, *first, heads.start, &out);
            }
        });
    }

    /// The keys that the query at a position sees.
    fn seen(&self, span: &Span<'_>, position: usize) -> Range<usize> {
        let end = if position < span.whole { span.whole } else { position + 1 };
        (position + 1).saturating_sub(self.window)..end.min(span.start + span.rows)
    }

    /// All queries of a span that read some key heads.
    fn few(&self, q: &[f32], span: &Span<'_>, first: usize, key_heads: Range<usize>, out: &Shared<f32>) {
        let Self { d, dv, heads, .. } = *self;
        let group = heads.query / heads.key;
        // Queries of a key head: of each row, each query head of its group.
        let n = span.rows * group;
        let mut queries = Vec::with_capacity(key_heads.len() * n * d);
        for key_head in key_heads.clone() {
            for row in first..first + span.rows {
                let from = (row * heads.query + key_head * group) * d;
                queries.extend(q[from..from + group * d].iter().map(|x| x * self.scale));
            }
        }
        let blocks = self.seen(span, span.start).start / BLOCK..(span.start + span.rows).div_ceil(BLOCK);
        let (s, skipped) = (blocks.len() * BLOCK, blocks.start * BLOCK);
        // Tiles in the order in which they lie, with the block's and the head's number.
        let tiles = span.blocks[blocks].iter().enumerate().flat_map(|(k, block)| {
            let tile = *block as usize * heads.key;
            key_heads.clone().enumerate().map(move |(h, head)| (k, h, tile + head))
        });
        let tiles: Vec<(usize, usize, usize)> = tiles.collect();
        // All keys are read, then all values.
        let ahead = |i: usize| match (tiles.get(i), i.checked_sub(tiles.len()).and_then(|i| tiles.get(i))) {
            (Some((_, _, tile)), _) => self.keys.bytes(*tile, d * BLOCK),
            (_, Some((_, _, tile))) => self.values.bytes(*tile, dv * BLOCK),
            _ => &[],
        };
        let mut scores = vec![0.0; key_heads.len() * n * s];
        let mut scratch = Vec::new();
        for (i, &(k, h, tile)) in tiles.iter().enumerate() {
            let scores = &mut scores[h * n * s + k * BLOCK..(h + 1) * n * s];
            let keys = self.keys.tile(tile, d * BLOCK, &mut scratch);
            score_tile(&queries[h * n * d..(h + 1) * n * d], d, keys, scores, s, ahead(i + AHEAD));
            if let Some(scales) = self.keys.scales(tile) {
                scale_columns(scores, s, scales);
            }
        }
        let mut inverses = Vec::with_capacity(key_heads.len() * n);
        for (i, scores) in scores.chunks_exact_mut(s.max(1)).enumerate() {
            let seen = self.seen(span, span.start + i % n / group);
            let (low, high) = (seen.start - skipped, seen.end - skipped);
            inverses.push(weigh(scores, low, high, self.soft_cap.unwrap_or(0.0)));
        }
        let mut sums = vec![0.0; key_heads.len() * n * dv];
        for (i, &(k, h, tile)) in tiles.iter().enumerate() {
            let scores = &mut scores[h * n * s + k * BLOCK..(h + 1) * n * s];
            if let Some(scales) = self.values.scales(tile) {
                scale_columns(scores, s, scales);
            }
            // What lies behind the sequence's end is another's leavings: not even zero times that.
            let there = BLOCK.min(span.start + span.rows - skipped - k * BLOCK);
            let values = self.values.tile(tile, dv * BLOCK, &mut scratch);
            let sums = &mut sums[h * n * dv..(h + 1) * n * dv];
            gather_tile(scores, s, &values[..there * dv], dv, sums, ahead(tiles.len() + i + AHEAD));
        }
        for (h, key_head) in key_heads.enumerate() {
            for row in 0..span.rows {
                let at = ((first + row) * heads.query + key_head * group) * dv;
                // SAFETY: this task alone writes these rows of the heads of this group, and `out` outlives the loop.
                let to = unsafe { out.range(at, group * dv) };
                let from = h * n + row * group;
                let scaled = sums[from * dv..].chunks_exact(dv.max(1)).zip(&inverses[from..]);
                for (to, (from, inverse)) in to.chunks_exact_mut(dv.max(1)).zip(scaled) {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = from * inverse);
                }
            }
        }
    }

    /// All queries of a span and one query head.
    fn many(&self, q: &[f32], span: &Span<'_>, first: usize, head: usize, out: &Shared<f32>) {
        let Self { d, dv, heads, .. } = *self;
        let key_head = head / (heads.query / heads.key);
        let start = self.seen(span, span.start).start / BLOCK;
        let blocks = &span.blocks[start..(span.start + span.rows).div_ceil(BLOCK)];
        let (s, skipped) = (blocks.len() * BLOCK, start * BLOCK);
        let (mut keys, mut values) = (vec![0.0; d * s], Vec::with_capacity(s * dv));
        let mut scratch = Vec::new();
        for (k, block) in blocks.iter().enumerate() {
            let tile = *block as usize * heads.key + key_head;
            let columns = self.keys.tile(tile, d * BLOCK, &mut scratch).chunks_exact(BLOCK);
            for (to, from) in keys.chunks_exact_mut(s).zip(columns) {
                to[k * BLOCK..(k + 1) * BLOCK].copy_from_slice(from);
            }
            if let Some(scales) = self.keys.scales(tile) {
                scale_columns(&mut keys[k * BLOCK..], s, scales);
            }
            values.extend_from_slice(self.values.tile(tile, dv * BLOCK, &mut scratch));
            if let Some(scales) = self.values.scales(tile) {
                let rows = values[k * BLOCK * dv..].chunks_exact_mut(dv.max(1));
                rows.zip(scales).for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
            }
        }
        let mut scores = Vec::new();
        for row in (0..span.rows).step_by(ROWS) {
            let rows = ROWS.min(span.rows - row);
            let position = span.start + row;
            let (from, to) = (self.seen(span, position).start, self.seen(span, position + rows - 1).end);
            let (from, n) = (from - skipped, to - from);
            scores.clear();
            scores.resize(rows * n, 0.0);
            let queries = View::rows(&q[((first + row) * heads.query + head) * d..], heads.query * d);
            matmul_over(&mut scores, n, (rows, n, d), queries, View::rows(&keys[from..], s), self.scale);
            let mut inverses = [0f32; ROWS];
            for (i, (scores, inverse)) in scores.chunks_exact_mut(n).zip(&mut inverses).enumerate() {
                let seen = self.seen(span, position + i);
                let (low, high) = (seen.start - skipped - from, seen.end - skipped - from);
                *inverse = weigh(scores, low, high, self.soft_cap.unwrap_or(0.0));
            }
            let place = |i: usize| ((first + row + i) * heads.query + head) * dv;
            let (a, b) = (View::rows(&scores, n), View::rows(&values[from * dv..], dv));
            // SAFETY: this task alone writes these rows of this head, which `out` holds.
            unsafe { raw(out.pointer(place(0)), heads.query * dv, false, (rows, dv, n), a, b, 1.0) };
            for (i, inverse) in inverses[..rows].iter().enumerate() {
                // SAFETY: as above.
                unsafe { out.range(place(i), dv) }.iter_mut().for_each(|o| *o *= inverse);
            }
        }
    }
}

/// Multiplies sixteen columns of rows `stride` apart, each by its own scale.
fn scale_columns(rows: &mut [f32], stride: usize, scales: &[f32]) {
    for row in rows.chunks_mut(stride) {
        row.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
    }
}
