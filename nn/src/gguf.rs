//! GGUF files, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): metadata and tensors, over a memory map.
//!
//! The header is hostile until proven otherwise: every count is held against the bytes that are left before anything is
//! allocated for it, every tensor must lie inside the file and apart from the others.

mod write;

use crate::kernels::mapped::MappedFile;
use crate::quant::{Blocks, Format, size_of};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use write::write;

/// A metadata value. Widths of numbers are not kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number.
    Unsigned(u64),
    /// A signed number.
    Signed(i64),
    /// A floating-point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Unsigned numbers.
    UnsignedList(Vec<u64>),
    /// Signed numbers.
    SignedList(Vec<i64>),
    /// Floating-point numbers.
    FloatList(Vec<f64>),
    /// Truth values.
    BoolList(Vec<bool>),
    /// Texts.
    TextList(Vec<String>),
    /// Lists of lists.
    Lists(Vec<Value>),
}

impl Value {
    /// A number that is whole and not negative.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// Text.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// Texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        if let Self::TextList(texts) = self { Some(texts) } else { None }
    }

    /// A list of numbers of any kind.
    pub fn as_numbers(&self) -> Option<Vec<f64>> {
        match self {
            Self::UnsignedList(list) => Some(list.iter().map(|n| *n as f64).collect()),
            Self::SignedList(list) => Some(list.iter().map(|n| *n as f64).collect()),
            Self::FloatList(list) => Some(list.clone()),
            Self::BoolList(list) => Some(list.iter().map(|b| f64::from(u8::from(*b))).collect()),
            _ => None,
        }
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Blocks>,
    /// Names in the file's order.
    order: Vec<String>,
}

impl Gguf {
    /// Opens `path` and checks the whole header. Tensor data stay in the file until they are read.
    ///
    /// # Errors
    /// The file cannot be read, is no GGUF of version 2 or 3, or its header is not sound.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path).map_err(|e| Error::io(path, e))?;
        Self::read(Arc::new(file)).map_err(|reason| Error::parse(path.display(), printable(&reason)))
    }

    /// The version of the file.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// A metadata value.
    ///
    /// # Errors
    /// It is absent.
    pub fn value(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).ok_or_else(|| Error::invalid(format!("GGUF: metadata {key} is missing")))
    }

    /// A metadata text.
    ///
    /// # Errors
    /// It is absent or no text.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.value(key)?.as_text().ok_or_else(|| Error::invalid(format!("GGUF: metadata {key} is no text")))
    }

    /// The tensors by name; a shape is row-major (the reverse of the file's).
    pub fn tensors(&self) -> &BTreeMap<String, Blocks> {
        &self.tensors
    }

    /// Tensor names in the file's order.
    pub fn names(&self) -> &[String] {
        &self.order
    }

    /// A tensor.
    ///
    /// # Errors
    /// The file has none of that name.
    pub fn tensor(&self, name: &str) -> Result<&Blocks> {
        self.tensors.get(name).ok_or_else(|| Error::invalid(format!("GGUF: tensor {name} is missing")))
    }

    fn read(file: Arc<MappedFile>) -> Found<Self> {
        let bytes = file.bytes();
        let mut r = Reader { bytes, at: 0 };
        let magic = r.take(4, "magic")?;
        if magic != b"GGUF" {
            return Err(format!("not a GGUF file: expected it to begin with \"GGUF\", got {magic:?}"));
        }
        let version = r.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(format!("expected GGUF version 2 or 3, got {version}"));
        }
        // A tensor takes at least 32 bytes of header, a value 13.
        let tensor_count = r.count("number of tensors", 32)?;
        let value_count = r.count("number of metadata values", 13)?;
        let mut metadata = BTreeMap::new();
        for i in 0..value_count {
            let key = r.text(&format!("key of metadata value {i}"))?;
            let kind = r.u32(&key)?;
            let value = r.value(kind, &key, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata {key} is there twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(value) => match value.as_count() {
                Some(n) if n.is_power_of_two() && n <= 1 << 20 => n as usize,
                _ => return Err(format!("general.alignment: expected a power of two, got {value:?}")),
            },
        };
        let infos = (0..tensor_count).map(|i| r.info(i)).collect::<Found<Vec<_>>>()?;
        let start = r.at.next_multiple_of(alignment);
        let mut ranges = Vec::with_capacity(infos.len());
        let (mut tensors, mut order) = (BTreeMap::new(), Vec::with_capacity(infos.len()));
        for Info { name, format, shape, offset } in infos {
            let size = size_of(format, &shape).map_err(|e| format!("tensor {name}: {e}"))?;
            let end = offset.checked_add(start).and_then(|from| from.checked_add(size));
            let Some(end) = end.filter(|end| *end <= bytes.len() && offset.is_multiple_of(alignment)) else {
                return Err(format!(
                    "tensor {name}: {size} bytes at offset {offset} of {} bytes of data, alignment {alignment}: they do not fit",
                    bytes.len().saturating_sub(start)
                ));
            };
            ranges.push((end - size, end, name.clone()));
            let blocks = Blocks::mapped(format, shape, file.clone(), end - size..end);
            if tensors.insert(name.clone(), blocks).is_some() {
                return Err(format!("tensor {name} is there twice"));
            }
            order.push(name);
        }
        ranges.sort();
        if let Some([a, b]) = ranges.array_windows().find(|[a, b]| b.0 < a.1) {
            return Err(format!("tensors {} and {} overlap", a.2, b.2));
        }
        Ok(Self { version, metadata, tensors, order })
    }
}

/// Names in a hostile file may hold line breaks and escape sequences: they are spelt out.
fn printable(reason: &str) -> String {
    reason.chars().fold(String::new(), |mut out, c| {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
}

/// An error is the reason in words; the file's name comes to it outside.
type Found<T> = std::result::Result<T, String>;

struct Info {
    name: String,
    format: Format,
    shape: Vec<usize>,
    offset: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &str) -> Found<&'a [u8]> {
        let Some(taken) = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(format!(
                "{what}: expected {count} bytes at {}, the file has {}",
                self.at,
                self.left()
            ));
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Found<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Found<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Found<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `size` bytes each.
    fn count(&mut self, what: &str, size: usize) -> Found<usize> {
        let count = self.u64(what)?;
        let most = self.left() / size.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!("{what}: {count} cannot fit into the {} bytes that are left", self.left())),
        }
    }

    fn text(&mut self, what: &str) -> Found<String> {
        let len = self.count(what, 1)?;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(format!("{what}: not UTF-8: {e}")),
        }
    }

    /// Bytes of a value of a fixed size, by type number.
    fn width(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Found<Value> {
        if let Some(width) = Self::width(kind) {
            let bytes = self.take(width, key)?;
            return match kind {
                7 => truth(bytes, key).map(Value::Bool),
                6 | 12 => Ok(Value::Float(float(bytes))),
                0 | 2 | 4 | 10 => Ok(Value::Unsigned(unsigned(bytes))),
                _ => Ok(Value::Signed(signed(bytes))),
            };
        }
        match kind {
            8 => self.text(key).map(Value::Text),
            9 if depth < 4 => self.list(key, depth),
            9 => Err(format!("{key}: lists nested over four deep")),
            _ => Err(format!("{key}: metadata type {kind} is not known")),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Found<Value> {
        let kind = self.u32(key)?;
        let Some(width) = Self::width(kind) else {
            // A text takes at least 8 bytes, a list 12.
            let count = self.count(key, if kind == 8 { 8 } else { 12 })?;
            return match kind {
                8 => (0..count).map(|_| self.text(key)).collect::<Found<_>>().map(Value::TextList),
                _ => (0..count)
                    .map(|_| self.value(kind, key, depth + 1))
                    .collect::<Found<_>>()
                    .map(Value::Lists),
            };
        };
        let count = self.count(key, width)?;
        let bytes = self.take(count * width, key)?.chunks_exact(width);
        match kind {
            7 => bytes.map(|b| truth(b, key)).collect::<Found<_>>().map(Value::BoolList),
            6 | 12 => Ok(Value::FloatList(bytes.map(float).collect())),
            0 | 2 | 4 | 10 => Ok(Value::UnsignedList(bytes.map(unsigned).collect())),
            _ => Ok(Value::SignedList(bytes.map(signed).collect())),
        }
    }

    fn info(&mut self, i: usize) -> Found<Info> {
        let name = self.text(&format!("name of tensor {i}"))?;
        let what = format!("tensor {name}");
        let dims = self.u32(&what)?;
        if !(1..=4).contains(&dims) {
            return Err(format!("{what}: expected 1 to 4 dimensions, got {dims}"));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dims {
            let size = self.u64(&what)?;
            // Candle counts bytes of float32 in an isize.
            let size = usize::try_from(size).ok().filter(|n| *n <= 1 << 40);
            shape.push(size.ok_or_else(|| format!("{what}: a dimension is over 2^40"))?);
        }
        shape.reverse();
        let kind = self.u32(&what)?;
        let Some(format) = Format::from_number(kind) else {
            let known: Vec<&str> = Format::ALL.iter().map(|f| f.name()).collect();
            return Err(format!("{what}: type number {kind} is not known; known: {}", known.join(", ")));
        };
        let offset = self.u64(&what)?;
        let offset =
            usize::try_from(offset).map_err(|_| format!("{what}: offset {offset} is over the file's end"))?;
        Ok(Info { name, format, shape, offset })
    }
}

fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn signed(bytes: &[u8]) -> i64 {
    // The sign is spread by shifting the number up to the top and back.
    let unused = 64 - 8 * bytes.len() as u32;
    (unsigned(bytes) << unused).cast_signed() >> unused
}

fn float(bytes: &[u8]) -> f64 {
    match bytes {
        [a, b, c, d] => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
        _ => f64::from_bits(unsigned(bytes)),
    }
}

fn truth(bytes: &[u8], key: &str) -> Found<bool> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        other => Err(format!("{key}: expected 0 or 1 for a truth value, got {other:?}")),
    }
}
