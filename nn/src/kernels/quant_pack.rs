//! Weights laid out for [`super::quant`]: groups of sixteen rows, blocks of 32 columns, no value changed.
//!
//! Of a block the numbers come first: low nibbles in 256 bytes, where byte `64 j + 4 row + i` holds columns `4 j + i` (low)
//! and `16 + 4 j + i` (high); then, of five bits, 64 bytes in which bit `64 step + 4 row + i` belongs to column
//! `4 step + i`; of six, two bits each at `64 (step / 4) + 4 row + i`, shifted by `2 (step % 4)`. Numbers of eight bits take
//! 512 bytes, raised by 128, or by 64 if all of the weight's lie within 63 of zero ([`Packed::is_narrow`]). Behind the numbers
//! of one or two of the file's blocks, a [`Layout::chunk`], lie their scales, sixteen of a kind together: a weight is read from
//! end to end, and the next one behind it. Weights in floating point lie column by column; in bfloat16 two by two, the two of a row
//! beside each other, the last beside zeros if their number is odd.

use super::data::Shared;
use super::pages::Pages;
use super::quant::{BLOCK, ROWS};
use crate::quant::{Blocks, Format, six, sixes};
use crate::threads;
use std::ops::Range;

/// Sizes of one format's layout.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of the numbers of a block (in floating point: of a column, in bfloat16 of two) of sixteen rows.
    pub quant_bytes: usize,
    /// Bytes of the scales of one of the file's blocks, of sixteen rows.
    pub scale_bytes: usize,
    /// Whether the weights are in floating point.
    pub float: bool,
}

impl Layout {
    /// The layout of a format.
    pub const fn of(format: Format) -> Self {
        let (quant_bytes, scale_bytes) = match format {
            Format::Q4_0 => (256, 32),
            Format::Q4_1 => (256, 64),
            Format::Q5_0 => (320, 32),
            Format::Q5_1 => (320, 64),
            Format::Q8_0 => (512, 32),
            Format::Q4K => (256, 64 + 8 * 32),
            Format::Q5K => (320, 64 + 8 * 32),
            Format::Q6K => (384, 32 + 8 * 32),
            Format::F32 | Format::Bf16 => (64, 0),
            Format::F16 => (32, 0),
        };
        Self { quant_bytes, scale_bytes, float: scale_bytes == 0 }
    }

    /// The file's blocks whose numbers, and then their scales, lie together, so that numbers begin at a line of the cache.
    const fn together(self, format: Format) -> usize {
        let bytes = format.block_len() / BLOCK * self.quant_bytes + self.scale_bytes;
        if bytes.is_multiple_of(64) { 1 } else { 2 }
    }

    /// Blocks of 32 columns of so many of the file's blocks, bytes of their numbers, and of numbers and scales.
    pub const fn chunk(self, format: Format) -> (usize, usize, usize) {
        let together = self.together(format);
        let blocks = together * (format.block_len() / BLOCK);
        let numbers = blocks * self.quant_bytes;
        (blocks, numbers, numbers + together * self.scale_bytes)
    }

    /// Columns whose numbers lie together.
    pub fn step(format: Format) -> usize {
        match format {
            Format::F32 | Format::F16 => 1,
            Format::Bf16 => 2,
            _ => BLOCK,
        }
    }
}

/// Numbers of the largest float32 weight that is packed beside its tensor: the copy of a whole vocabulary would be large.
pub const MOST: usize = 1 << 22;

/// Packed bytes after which what they were made of is given back.
const SWEEP: usize = 16 << 20;

/// A packed weight.
pub struct Packed {
    format: Format,
    layout: Layout,
    rows: usize,
    columns: usize,
    narrow: bool,
    bytes: Pages<u8>,
    /// Bytes of one group.
    stride: usize,
}

impl Packed {
    /// Packs `[rows, columns]`. Mapped pages that were read are given back on the way: file and copy are never both in memory
    /// as a whole.
    pub fn new(blocks: &Blocks) -> Self {
        let (rows, columns) = blocks.rows();
        let done = |rows: Range<usize>| blocks.forget_rows(rows);
        let packed = Self::made(blocks.format(), rows, columns, |row| blocks.row(row, 1), done);
        blocks.forget();
        packed
    }

    /// Packs the float32 `values [rows, columns]`.
    pub fn dense(values: &[f32], rows: usize, columns: usize) -> Self {
        // Values in memory are in the machine's byte order; the kernels of a big-endian one would have to turn them.
        const { assert!(cfg!(target_endian = "little")) };
        let row = |row: usize| bytemuck::cast_slice(&values[row * columns..(row + 1) * columns]);
        Self::made(Format::F32, rows, columns, row, |_| {})
    }

    fn made<'a>(
        format: Format,
        rows: usize,
        columns: usize,
        row_bytes: impl Fn(usize) -> &'a [u8] + Sync,
        done: impl Fn(Range<usize>),
    ) -> Self {
        let layout = Layout::of(format);
        let groups = rows.div_ceil(ROWS);
        let stride = match layout.float {
            true => columns.div_ceil(Layout::step(format)) * layout.quant_bytes,
            false => {
                let (blocks, _, bytes) = layout.chunk(format);
                (columns / BLOCK).div_ceil(blocks) * bytes
            }
        };
        let narrow = format == Format::Q8_0 && (0..rows).all(|row| is_narrow(row_bytes(row)));
        let mut bytes = zeros(groups * stride);
        {
            let bytes = Shared::new(&mut bytes[..]);
            let pack = |group: usize| {
                // SAFETY: groups lie one behind the other, and each is packed by one task.
                let to = unsafe { bytes.range(group * stride, stride) };
                for row in 0..ROWS.min(rows - group * ROWS) {
                    pack_row((format, layout), row_bytes(group * ROWS + row), row, to);
                }
                if narrow {
                    let (_, numbers, chunk) = layout.chunk(format);
                    let numbers = to.chunks_exact_mut(chunk).flat_map(|chunk| &mut chunk[..numbers]);
                    numbers.for_each(|q| *q = q.wrapping_sub(64));
                }
            };
            let together = (SWEEP / stride.max(1)).max(1);
            for first in (0..groups).step_by(together) {
                let count = together.min(groups - first);
                threads::for_each(count, |group| pack(first + group));
                done(first * ROWS..rows.min((first + count) * ROWS));
            }
        }
        Self { format, layout, rows, columns, narrow, bytes, stride }
    }

    /// Whether all its numbers of eight bits lie within 63 of zero: two products with eight bits then fit into sixteen.
    pub fn is_narrow(&self) -> bool {
        self.narrow
    }

    /// How the weight was stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Sizes of the layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Groups of sixteen rows.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The values of a row, to the bit what [`Format::dequantise`] makes of the stored ones.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let (group, row) = (self.group(row / ROWS), row % ROWS);
        if self.layout.float {
            return match self.format {
                Format::F32 => unpack_floats(group, row, out, f32::from_le_bytes),
                Format::Bf16 => {
                    let pairs = group.as_chunks::<4>().0;
                    for (out, pairs) in out.chunks_mut(2).zip(pairs.chunks_exact(ROWS)) {
                        let [a, b, c, d] = pairs[row];
                        let both = [[a, b], [c, d]].map(|v| half::bf16::from_le_bytes(v).to_f32());
                        out.copy_from_slice(&both[..out.len()]);
                    }
                }
                _ => unpack_floats(group, row, out, |v| half::f16::from_le_bytes(v).to_f32()),
            };
        }
        let (blocks, numbers_end, chunk) = self.layout.chunk(self.format);
        let parts = self.format.block_len() / BLOCK;
        for (i, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (quants, scales) = group[i / blocks * chunk..][..chunk].split_at(numbers_end);
            let quants = &quants[i % blocks * self.layout.quant_bytes..][..self.layout.quant_bytes];
            let scales = &scales[i % blocks / parts * self.layout.scale_bytes..][..self.layout.scale_bytes];
            let (zero, factors, add) = unpack_scales(self.format, i % parts, row, scales);
            let zero = if self.narrow { zero - 64.0 } else { zero };
            for (column, out) in out.iter_mut().enumerate() {
                let q = f32::from(unpack_number(self.format, column, row, quants));
                *out = factors[column / 16] * (q - zero) + add;
            }
        }
    }

    /// Numbers and scales of a group.
    pub fn group(&self, group: usize) -> &[u8] {
        &self.bytes[group * self.stride..(group + 1) * self.stride]
    }
}

fn zeros(bytes: usize) -> Pages<u8> {
    // Without memory there is no going on, as with any vector.
    Pages::zeroed(bytes).unwrap_or_else(|_| {
        std::alloc::handle_alloc_error(
            std::alloc::Layout::array::<u8>(bytes).unwrap_or(std::alloc::Layout::new::<u8>()),
        )
    })
}

/// Whether the numbers of a row of Q8_0 lie within 63 of zero.
fn is_narrow(bytes: &[u8]) -> bool {
    let small = |q: &u8| q.wrapping_add(63) <= 126;
    bytes.chunks_exact(Format::Q8_0.block_bytes()).all(|block| block[2..].iter().all(small))
}

fn pack_row((format, layout): (Format, Layout), bytes: &[u8], row: usize, to: &mut [u8]) {
    if layout.float {
        return match format {
            Format::F32 => pack_floats::<4, 1>(bytes, row, to),
            Format::Bf16 => pack_floats::<2, 2>(bytes, row, to),
            _ => pack_floats::<2, 1>(bytes, row, to),
        };
    }
    let (together, parts) = (layout.together(format), format.block_len() / BLOCK);
    let (_, numbers_end, chunk) = layout.chunk(format);
    let stored = bytes.chunks(together * format.block_bytes());
    for (stored, to) in stored.zip(to.chunks_exact_mut(chunk)) {
        let (quants, scales) = to.split_at_mut(numbers_end);
        let places = quants
            .chunks_exact_mut(parts * layout.quant_bytes)
            .zip(scales.chunks_exact_mut(layout.scale_bytes));
        for (b, (quants, scales)) in stored.chunks_exact(format.block_bytes()).zip(places) {
            pack_scales(format, b, row, scales);
            if let Some(nibbles) = nibbles(format, b) {
                pack_nibbles(nibbles, row, quants);
                continue;
            }
            for (part, quants) in quants.chunks_exact_mut(layout.quant_bytes).enumerate() {
                pack_numbers(format, &numbers(format, b, part), row, quants);
            }
        }
    }
}

fn pack_floats<const SIZE: usize, const STEP: usize>(bytes: &[u8], row: usize, quants: &mut [u8]) {
    let steps = quants.as_chunks_mut::<SIZE>().0.chunks_exact_mut(STEP * ROWS);
    for (values, to) in bytes.as_chunks::<SIZE>().0.chunks(STEP).zip(steps) {
        to[STEP * row..][..values.len()].copy_from_slice(values);
    }
}

/// The bytes that hold columns `i` and `16 + i` of a block, of the formats that have nothing but such.
fn nibbles(format: Format, b: &[u8]) -> Option<&[u8; BLOCK / 2]> {
    match format {
        Format::Q4_0 => b[2..].first_chunk(),
        Format::Q4_1 => b[4..].first_chunk(),
        _ => None,
    }
}

/// As [`pack_numbers`] for bytes that are paired as the layout pairs them.
fn pack_nibbles(nibbles: &[u8; BLOCK / 2], row: usize, quants: &mut [u8]) {
    for (to, nibbles) in quants.as_chunks_mut::<64>().0.iter_mut().zip(nibbles.as_chunks::<4>().0) {
        to[4 * row..4 * row + 4].copy_from_slice(nibbles);
    }
}

/// The 32 numbers of a part of one of the file's blocks, without sign.
fn numbers(format: Format, b: &[u8], part: usize) -> [u8; BLOCK] {
    let nibble = |from: usize, i: usize| b[from + i % 16] >> (i / 16 * 4) & 15;
    let bit = |from: usize, i: usize| b[from + i / 8] >> (i % 8) & 1;
    let k_nibble = |from: usize, i: usize| b[from + part / 2 * 32 + i] >> (part % 2 * 4) & 15;
    use std::array::from_fn;
    match format {
        Format::Q5_0 => from_fn(|i| nibble(6, i) | bit(2, i) << 4),
        Format::Q5_1 => from_fn(|i| nibble(8, i) | bit(4, i) << 4),
        Format::Q8_0 => from_fn(|i| b[2 + i] ^ 0x80),
        Format::Q4K => from_fn(|i| k_nibble(16, i)),
        Format::Q5K => from_fn(|i| k_nibble(48, i) | (b[16 + i] >> part & 1) << 4),
        Format::Q6K => match b.first_chunk() {
            Some(b) => from_fn(|i| (six(b, part * 32 + i) + 32).cast_unsigned()),
            None => [0; BLOCK],
        },
        Format::Q4_0 | Format::Q4_1 | Format::F32 | Format::F16 | Format::Bf16 => [0; BLOCK],
    }
}

fn pack_numbers(format: Format, numbers: &[u8; BLOCK], row: usize, quants: &mut [u8]) {
    let (steps, lane) = (numbers.as_chunks::<4>().0, 4 * row);
    if format == Format::Q8_0 {
        for (to, q) in quants.as_chunks_mut::<64>().0.iter_mut().zip(steps) {
            to[lane..lane + 4].copy_from_slice(q);
        }
        return;
    }
    let (low, high) = quants.split_at_mut(256);
    for (step, to) in low.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        for (i, to) in to[lane..lane + 4].iter_mut().enumerate() {
            *to = (steps[step][i] & 15) | steps[step + 4][i] << 4;
        }
    }
    match format {
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => {
            for (to, q) in high.as_chunks_mut::<8>().0.iter_mut().zip(steps) {
                let bits = q.iter().enumerate().fold(0, |bits, (i, q)| bits | (q >> 4) << i);
                to[row / 2] |= bits << (row % 2 * 4);
            }
        }
        Format::Q6K => {
            for (to, steps) in high.as_chunks_mut::<64>().0.iter_mut().zip(steps.as_chunks::<4>().0) {
                for (i, to) in to[lane..lane + 4].iter_mut().enumerate() {
                    *to = steps.iter().enumerate().fold(0, |bits, (t, q)| bits | (q[i] >> 4) << (2 * t));
                }
            }
        }
        _ => {}
    }
}

fn pack_scales(format: Format, b: &[u8], row: usize, scales: &mut [u8]) {
    let mut half = |to: usize, from: usize| scales[to + 2 * row..][..2].copy_from_slice(&b[from..from + 2]);
    match format {
        Format::Q6K => {
            half(0, 208);
            for (j, scale) in b[192..208].iter().enumerate() {
                scales[32 + 16 * j + row] = *scale;
            }
        }
        Format::Q4K | Format::Q5K => {
            half(0, 0);
            half(32, 2);
            let Some(packed) = b[4..].first_chunk::<12>() else { return };
            let (factors, least) = sixes(packed);
            for j in 0..8 {
                scales[64 + 32 * j + row] = factors[j];
                scales[64 + 32 * j + 16 + row] = least[j];
            }
        }
        Format::Q4_1 | Format::Q5_1 => {
            half(0, 0);
            half(32, 2);
        }
        _ => half(0, 0),
    }
}

fn unpack_floats<const SIZE: usize>(
    group: &[u8],
    row: usize,
    out: &mut [f32],
    value: impl Fn([u8; SIZE]) -> f32,
) {
    for (out, column) in out.iter_mut().zip(group.as_chunks::<SIZE>().0.chunks_exact(ROWS)) {
        *out = value(column[row]);
    }
}

/// The number of a column of a block, without sign: the inverse of [`pack_numbers`] and [`pack_nibbles`].
fn unpack_number(format: Format, column: usize, row: usize, quants: &[u8]) -> u8 {
    let (lane, i) = (4 * row, column % 4);
    if format == Format::Q8_0 {
        return quants[64 * (column / 4) + lane + i];
    }
    let low = quants[64 * (column % 16 / 4) + lane + i] >> (column / 16 * 4) & 15;
    let high = match format {
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => {
            quants[256 + 8 * (column / 4) + row / 2] >> (row % 2 * 4 + i) & 1
        }
        Format::Q6K => quants[256 + 64 * (column / 16) + lane + i] >> (column / 4 % 4 * 2) & 3,
        _ => 0,
    };
    low | high << 4
}

/// The number that stands for zero in a part of a block, the factors of its halves, and what is added in the end.
fn unpack_scales(format: Format, part: usize, row: usize, scales: &[u8]) -> (f32, [f32; 2], f32) {
    let half = |from: usize| half::f16::from_le_bytes([scales[from + 2 * row], scales[from + 2 * row + 1]]);
    let d = half(0).to_f32();
    // The zero that changes no number it is added to, not even a negative zero.
    let nothing = -0.0;
    match format {
        Format::Q4_1 | Format::Q5_1 => (0.0, [d; 2], half(32).to_f32()),
        Format::Q4K | Format::Q5K => {
            let [factor, least] = [0, 16].map(|kind| f32::from(scales[64 + 32 * part + kind + row]));
            (0.0, [d * factor; 2], -(half(32).to_f32() * least))
        }
        Format::Q6K => {
            let factor = |half: usize| d * f32::from(scales[32 + 16 * (2 * part + half) + row].cast_signed());
            (32.0, [factor(0), factor(1)], nothing)
        }
        Format::Q8_0 => (128.0, [d; 2], nothing),
        Format::Q5_0 => (16.0, [d; 2], nothing),
        _ => (8.0, [d; 2], nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, Result};
    use candle_core::Shape;

    #[test]
    fn rows_come_back_to_the_bit() -> Result<()> {
        let noise = Init::Normal(1.0).values(5, "packed rows", &Shape::from(1 << 18));
        for format in Format::ALL {
            for narrow in [false, true] {
                // Rows that fill no group, blocks that fill no chunk, an odd number of floats.
                let columns = if Layout::of(format).float { 77 } else { 3 * format.block_len() };
                let rows = 37;
                let size = rows * format.row_bytes(columns);
                let byte = |v: &f32| (v.to_bits() >> 7) as u8 & if narrow { 31 } else { 255 };
                let blocks = Blocks::new(format, &[rows, columns], noise[..size].iter().map(byte).collect())?;
                let packed = Packed::new(&blocks);
                assert_eq!(packed.is_narrow(), narrow && format == Format::Q8_0);
                let (mut want, mut got) = (vec![0.0; columns], vec![1.0; columns]);
                for row in 0..rows {
                    format.dequantise(blocks.row(row, 1), &mut want);
                    packed.row(row, &mut got);
                    for (column, (a, b)) in want.iter().zip(&got).enumerate() {
                        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                        assert!(same, "{} row {row} column {column}: {a} {b}", format.name());
                    }
                }
            }
        }
        Ok(())
    }
}
