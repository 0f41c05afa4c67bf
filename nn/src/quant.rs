//! Block formats of GGUF files and what they mean: a block of quantised weights to float32, exactly as llama.cpp's reference
//! defines it (ggml-quants; the K formats are Kawrakow's, 2023).

use crate::kernels::mapped::MappedFile;
use crate::kernels::quant::{Level, best};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// How a layer is to keep a matrix that is stored otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In this format.
    As(Format),
    /// In [`Format::Q8_0`] with numbers of at most 63 in place of 127, a reduced range as ONNX Runtime calls it: half as exact,
    /// and on processors without dot products of eight bits half as fast again, since two products fit into sixteen bits.
    Reduced,
}

impl Keep {
    /// Whether [`Keep::Reduced`] is faster than all eight bits on this processor. One with AVX-512 VNNI multiplies those as
    /// fast.
    pub fn reduced_is_faster() -> bool {
        match best() {
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => false,
            _ => true,
        }
    }

    /// The format.
    pub fn format(self) -> Format {
        match self {
            Self::As(format) => format,
            Self::Reduced => Format::Q8_0,
        }
    }
}

impl From<Format> for Keep {
    fn from(format: Format) -> Self {
        Self::As(format)
    }
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The number that GGUF gives it, its name there, values in a block and bytes of a block.
    const fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
            Self::Bf16 => (30, "BF16", 1, 2),
        }
    }

    /// The format of a GGUF type number, if it is one of these.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.facts().0 == number)
    }

    /// The number that GGUF gives it.
    pub fn number(self) -> u32 {
        self.facts().0
    }

    /// Its name in GGUF.
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// Values in a block; the length of a row is a multiple of it.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// Bytes of a row of `columns` values, a multiple of [`Format::block_len`].
    pub fn row_bytes(self, columns: usize) -> usize {
        columns / self.block_len() * self.block_bytes()
    }

    /// Whole blocks to float32. `out` holds as many values as `bytes` has; what is over in the longer one is left alone.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => each(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
            Self::F16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = half(b[0], b[1])),
            Self::Bf16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
                o[0] = half::bf16::from_le_bytes(*b).to_f32();
            }),
            Self::Q4_0 => each(bytes, out, q4_0),
            Self::Q4_1 => each(bytes, out, q4_1),
            Self::Q5_0 => each(bytes, out, q5_0),
            Self::Q5_1 => each(bytes, out, q5_1),
            Self::Q8_0 => each(bytes, out, q8_0),
            Self::Q4K => each(bytes, out, q4_k),
            Self::Q5K => each(bytes, out, q5_k),
            Self::Q6K => each(bytes, out, q6_k),
        }
    }
}

fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        block(b, o);
    }
}

fn half(low: u8, high: u8) -> f32 {
    half::f16::from_le_bytes([low, high]).to_f32()
}

fn nibbles(byte: u8) -> (u8, u8) {
    (byte & 15, byte >> 4)
}

fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for (i, q) in b[2..].iter().enumerate() {
        let (low, high) = nibbles(*q);
        out[i] = d * (f32::from(low) - 8.0);
        out[i + 16] = d * (f32::from(high) - 8.0);
    }
}

fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    for (i, q) in b[4..].iter().enumerate() {
        let (low, high) = nibbles(*q);
        out[i] = d * f32::from(low) + m;
        out[i + 16] = d * f32::from(high) + m;
    }
}

/// The 32 five-bit numbers of a block: nibbles and a word of fifth bits.
fn fives(high: [u8; 4], low: &[u8]) -> [u8; 32] {
    let bits = u32::from_le_bytes(high);
    let mut out = [0; 32];
    for (i, q) in low.iter().enumerate() {
        let (a, b) = nibbles(*q);
        out[i] = a | ((bits >> i & 1) as u8) << 4;
        out[i + 16] = b | ((bits >> (i + 16) & 1) as u8) << 4;
    }
    out
}

fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for (o, q) in out.iter_mut().zip(fives([b[2], b[3], b[4], b[5]], &b[6..])) {
        *o = d * (f32::from(q) - 16.0);
    }
}

fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    for (o, q) in out.iter_mut().zip(fives([b[4], b[5], b[6], b[7]], &b[8..])) {
        *o = d * f32::from(q) + m;
    }
}

fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(b[0], b[1]);
    for (o, q) in out.iter_mut().zip(&b[2..]) {
        *o = d * f32::from(q.cast_signed());
    }
}

/// The eight six-bit scales and the eight six-bit minimums of a block of Q4_K or Q5_K, from twelve bytes.
pub(crate) fn sixes(b: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = b[i] & 63;
        mins[i] = b[i + 4] & 63;
        scales[i + 4] = (b[i + 8] & 15) | (b[i] >> 6) << 4;
        mins[i + 4] = (b[i + 8] >> 4) | (b[i + 4] >> 6) << 4;
    }
    (scales, mins)
}

/// The part of a K block from byte `start` on, as an array.
fn part<const N: usize>(b: &[u8], start: usize) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(&b[start..]).for_each(|(o, b)| *o = *b);
    out
}

fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, least) = (half(b[0], b[1]), half(b[2], b[3]));
    let (scales, mins) = sixes(&part(b, 4));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[group]), least * f32::from(mins[group]));
        for (o, q) in out.iter_mut().zip(&b[16 + group / 2 * 32..]) {
            *o = d * f32::from(q >> (group % 2 * 4) & 15) - m;
        }
    }
}

fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, least) = (half(b[0], b[1]), half(b[2], b[3]));
    let (scales, mins) = sixes(&part(b, 4));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = (d * f32::from(scales[group]), least * f32::from(mins[group]));
        for (i, o) in out.iter_mut().enumerate() {
            let low = b[48 + group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            *o = d * f32::from(low | (b[16 + i] >> group & 1) << 4) - m;
        }
    }
}

fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(b[208], b[209]);
    for (i, o) in out.iter_mut().enumerate() {
        *o = d * f32::from(b[192 + i / 16].cast_signed()) * f32::from(six(b, i));
    }
}

/// The signed six-bit number `i` of a block of Q6_K.
pub(crate) fn six(b: &[u8; 210], i: usize) -> i8 {
    // Each half of 128 has four groups of 32: low four bits in two runs of 32 bytes, high two bits in one.
    let (half, group, at) = (i / 128, i / 32 % 4, i % 32);
    let low = b[half * 64 + group % 2 * 32 + at] >> (group / 2 * 4) & 15;
    let high = b[128 + half * 32 + at] >> (group * 2) & 3;
    (low | high << 4).cast_signed() - 32
}

/// How products with a quantised weight are worked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Float32 activations on the weights that the file means: for comparisons.
    #[default]
    Exact,
    /// Weights packed once at load. Quantised ones meet activations in eight bits per block of 32: integer products, float32
    /// sums. Weights in floating point (16 bits stay 16 bits) are multiplied in float32, but for bfloat16 where the processor
    /// multiplies it in pairs (AVX-512 BF16): there activations are rounded to it too.
    Fast,
}

/// The bytes of a tensor, a range of those of a mapped file, or of owned ones.
#[derive(Clone)]
enum Bytes {
    Mapped(Arc<MappedFile>, usize, usize),
    Owned(Arc<Vec<u8>>, usize, usize),
}

/// A tensor as a file stores it, rows of whole blocks. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    format: Format,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.format.name(), self.shape)
    }
}

impl Blocks {
    /// Of bytes held in memory, `shape` with the last dimension along a row.
    ///
    /// # Errors
    /// The shape does not fit the blocks or the bytes.
    pub fn new(format: Format, shape: &[usize], bytes: Vec<u8>) -> Result<Self> {
        let expected = size_of(format, shape)?;
        if bytes.len() != expected {
            let (name, got) = (format.name(), bytes.len());
            return Err(Error::invalid(format!("{name} {shape:?}: expected {expected} bytes, got {got}")));
        }
        Ok(Self { format, shape: shape.to_vec(), bytes: Bytes::Owned(Arc::new(bytes), 0, expected) })
    }

    /// Of a range of a mapped file; sizes were checked.
    pub(crate) fn mapped(
        format: Format,
        shape: Vec<usize>,
        file: Arc<MappedFile>,
        range: std::ops::Range<usize>,
    ) -> Self {
        Self { format, shape, bytes: Bytes::Mapped(file, range.start, range.end) }
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Row-major, the last dimension along a row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file, start, end) => file.bytes().get(*start..*end).unwrap_or(&[]),
            Bytes::Owned(bytes, start, end) => bytes.get(*start..*end).unwrap_or(&[]),
        }
    }

    /// Values of a row, and how many rows there are.
    pub fn rows(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), columns)
    }

    /// The stored bytes of rows `start..start + count`.
    pub fn row(&self, start: usize, count: usize) -> &[u8] {
        let size = self.format.row_bytes(self.rows().1);
        self.bytes().get(start * size..(start + count) * size).unwrap_or(&[])
    }

    /// The part `index` of the first dimension, on the same bytes: one matrix of a stack.
    ///
    /// # Errors
    /// Fewer than two dimensions, or no such part.
    pub fn matrix(&self, index: usize) -> Result<Self> {
        let shape = match self.shape.split_first() {
            Some((count, rest)) if index < *count && !rest.is_empty() => rest.to_vec(),
            _ => {
                let expected = format!("two dimensions or more, the first over {index}");
                return Err(Error::shape("stack of matrices", expected, &self.shape));
            }
        };
        let size = size_of(self.format, &shape)?;
        let range = |start: usize| (start + index * size, start + (index + 1) * size);
        let bytes = match &self.bytes {
            Bytes::Mapped(file, start, _) => {
                let (start, end) = range(*start);
                Bytes::Mapped(file.clone(), start, end)
            }
            Bytes::Owned(bytes, start, _) => {
                let (start, end) = range(*start);
                Bytes::Owned(bytes.clone(), start, end)
            }
        };
        Ok(Self { format: self.format, shape, bytes })
    }

    /// Everything as a float32 tensor of this shape.
    pub fn tensor(&self) -> Result<Tensor> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.format.dequantise(self.bytes(), &mut out);
        Ok(Tensor::from_vec(out, self.shape.as_slice(), &Device::Cpu)?)
    }

    /// Lets the system take back the memory of the mapped pages; they come back from the file when they are read again.
    pub(crate) fn forget(&self) {
        self.forget_rows(0..self.rows().0);
    }

    /// The same of some rows.
    pub(crate) fn forget_rows(&self, rows: std::ops::Range<usize>) {
        if let Bytes::Mapped(file, start, end) = &self.bytes {
            let size = self.format.row_bytes(self.rows().1);
            file.forget(start + rows.start * size..(start + rows.end * size).min(*end));
        }
    }
}

/// Bytes of a tensor.
///
/// # Errors
/// No dimensions, a row that is no multiple of the block, a size that overflows.
pub fn size_of(format: Format, shape: &[usize]) -> Result<usize> {
    let wrong = |reason: String| Error::invalid(format!("{} {shape:?}: {reason}", format.name()));
    let Some((columns, rows)) = shape.split_last() else { return Err(wrong("no dimensions".into())) };
    let (len, bytes) = (format.block_len(), format.block_bytes());
    if shape.contains(&0) || !columns.is_multiple_of(len) {
        return Err(wrong(format!("expected sizes above 0 and rows of a multiple of {len}")));
    }
    let total = rows.iter().try_fold(columns / len, |total, n| total.checked_mul(*n));
    let total = total.and_then(|blocks| blocks.checked_mul(bytes.max(len * 4)).map(|_| blocks * bytes));
    total.ok_or_else(|| wrong("the size overflows".into()))
}
