//! MessagePack with NumPy arrays, as openpi's client packs them: read within bounds, written.
//!
//! An array is a map with the byte-string keys `__ndarray__` (true), `data` (its bytes), `dtype` (NumPy's string, as
//! `<f4`) and `shape`; a NumPy scalar is one with `__npgeneric__`, `data` (a plain number) and `dtype`.

use crate::Fault;
use rmp::Marker;
use rmp::{decode, encode};

/// Values of one message, arrays counted as one each.
const MOST_VALUES: usize = 4096;
/// Maps and lists inside one another.
const DEEPEST: usize = 8;
/// Numbers of a shape.
const MOST_AXES: usize = 8;

/// What a message may hold; texts and arrays are borrowed from it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    Nil,
    /// A truth value.
    Bool(bool),
    /// Any number, also one of NumPy's.
    Number(f64),
    /// Words.
    Text(&'a str),
    /// Plain bytes.
    Bytes(&'a [u8]),
    /// Values in order.
    List(Vec<Value<'a>>),
    /// Values by name, in the order in which they came.
    Map(Vec<(&'a str, Value<'a>)>),
    /// A NumPy array.
    Array(Array<'a>),
}

impl Value<'_> {
    /// What it is, for a message.
    pub fn kind(&self) -> String {
        match self {
            Self::Nil => "None".into(),
            Self::Bool(_) => "a bool".into(),
            Self::Number(_) => "a number".into(),
            Self::Text(_) => "a str".into(),
            Self::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Self::List(list) => format!("a list of {}", list.len()),
            Self::Map(map) => format!("a dict of {}", map.len()),
            Self::Array(array) => format!("an array {:?} of {}", array.shape, array.dtype.name()),
        }
    }
}

/// What the numbers of an array are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// A truth value, one byte.
    Bool,
    /// Unsigned, of so many bytes.
    Unsigned(usize),
    /// Signed, of so many bytes.
    Signed(usize),
    /// IEEE, of four or eight bytes.
    Float(usize),
}

impl Dtype {
    /// Of NumPy's string: byte order, kind, bytes. Only little endian has a place here, as everywhere today.
    fn of(text: &str) -> Result<Self, Fault> {
        let (order, rest) = text.split_at_checked(1).unwrap_or_default();
        let (kind, bytes) = rest.split_at_checked(1).unwrap_or_default();
        let bytes = bytes.parse().unwrap_or(0);
        Ok(match (order, kind, bytes) {
            ("|", "b", 1) => Self::Bool,
            ("|" | "<", "u", 1) | ("<", "u", 2 | 4 | 8) => Self::Unsigned(bytes),
            ("|" | "<", "i", 1) | ("<", "i", 2 | 4 | 8) => Self::Signed(bytes),
            ("<", "f", 4 | 8) => Self::Float(bytes),
            _ => {
                let text: String = text.chars().take(20).collect();
                let known = "|b1, |u1, |i1, <u2, <u4, <u8, <i2, <i4, <i8, <f4 or <f8";
                return Err(bad(format!("expected an array of dtype {known}, got '{text}'")));
            }
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Unsigned(bytes) | Self::Signed(bytes) | Self::Float(bytes) => bytes,
        }
    }

    /// As NumPy says it.
    pub fn name(self) -> String {
        match self {
            Self::Bool => "bool".into(),
            Self::Unsigned(bytes) => format!("uint{}", bytes * 8),
            Self::Signed(bytes) => format!("int{}", bytes * 8),
            Self::Float(bytes) => format!("float{}", bytes * 8),
        }
    }
}

/// A NumPy array: its bytes fit its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    /// What it holds.
    pub dtype: Dtype,
    /// Its axes, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers, row by row, little endian.
    pub data: &'a [u8],
}

impl Array<'_> {
    /// Its numbers, row by row.
    pub fn numbers(&self) -> impl Iterator<Item = f64> {
        self.data.chunks_exact(self.dtype.bytes()).map(|bytes| number(self.dtype, bytes))
    }
}

fn number(dtype: Dtype, bytes: &[u8]) -> f64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    match dtype {
        Dtype::Bool | Dtype::Unsigned(_) => raw as f64,
        Dtype::Signed(bytes) => {
            let unused = 64 - 8 * bytes as u32;
            ((raw << unused) as i64 >> unused) as f64
        }
        Dtype::Float(4) => f64::from(f32::from_bits(raw as u32)),
        Dtype::Float(_) => f64::from_bits(raw),
    }
}

fn bad(why: String) -> Fault {
    Fault::refused(400, "bad_message", why)
}

/// The value in these bytes; nothing may follow it.
pub fn read(bytes: &[u8]) -> Result<Value<'_>, Fault> {
    let mut reader = Reader { rest: bytes, left: MOST_VALUES };
    let value = reader.value(0)?;
    match reader.rest.len() {
        0 => Ok(value),
        more => Err(bad(format!("expected one MessagePack value, got {more} bytes after it"))),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Reader<'a> {
    fn torn(&self) -> Fault {
        bad("the MessagePack is torn: it ends in the middle of a value".into())
    }

    fn marker(&mut self) -> Result<Marker, Fault> {
        decode::read_marker(&mut self.rest).map_err(|_| self.torn())
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], Fault> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| self.torn())?;
        self.rest = rest;
        Ok(taken)
    }

    /// A big-endian number of so many bytes.
    fn raw(&mut self, bytes: usize) -> Result<u64, Fault> {
        Ok(self.take(bytes as u64)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn text(&mut self, bytes: u64) -> Result<&'a str, Fault> {
        let text = self.take(bytes)?;
        std::str::from_utf8(text).map_err(|_| bad("expected text in UTF-8, got other bytes".into()))
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, Fault> {
        if self.left == 0 {
            return Err(bad(format!("expected at most {MOST_VALUES} values in a message, got more")));
        }
        self.left -= 1;
        let signed = |raw: u64, bytes: u32| ((raw << (64 - 8 * bytes)) as i64 >> (64 - 8 * bytes)) as f64;
        Ok(match self.marker()? {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(number) => Value::Number(f64::from(number)),
            Marker::FixNeg(number) => Value::Number(f64::from(number)),
            Marker::U8 => Value::Number(self.raw(1)? as f64),
            Marker::U16 => Value::Number(self.raw(2)? as f64),
            Marker::U32 => Value::Number(self.raw(4)? as f64),
            Marker::U64 => Value::Number(self.raw(8)? as f64),
            Marker::I8 => Value::Number(signed(self.raw(1)?, 1)),
            Marker::I16 => Value::Number(signed(self.raw(2)?, 2)),
            Marker::I32 => Value::Number(signed(self.raw(4)?, 4)),
            Marker::I64 => Value::Number(signed(self.raw(8)?, 8)),
            Marker::F32 => Value::Number(f64::from(f32::from_bits(self.raw(4)? as u32))),
            Marker::F64 => Value::Number(f64::from_bits(self.raw(8)?)),
            Marker::FixStr(bytes) => Value::Text(self.text(u64::from(bytes))?),
            Marker::Str8 => self.raw(1).and_then(|bytes| self.text(bytes)).map(Value::Text)?,
            Marker::Str16 => self.raw(2).and_then(|bytes| self.text(bytes)).map(Value::Text)?,
            Marker::Str32 => self.raw(4).and_then(|bytes| self.text(bytes)).map(Value::Text)?,
            Marker::Bin8 => self.raw(1).and_then(|bytes| self.take(bytes)).map(Value::Bytes)?,
            Marker::Bin16 => self.raw(2).and_then(|bytes| self.take(bytes)).map(Value::Bytes)?,
            Marker::Bin32 => self.raw(4).and_then(|bytes| self.take(bytes)).map(Value::Bytes)?,
            Marker::FixArray(items) => self.list(u64::from(items), depth)?,
            Marker::Array16 => self.raw(2).and_then(|items| self.list(items, depth))?,
            Marker::Array32 => self.raw(4).and_then(|items| self.list(items, depth))?,
            Marker::FixMap(items) => self.map(u64::from(items), depth)?,
            Marker::Map16 => self.raw(2).and_then(|items| self.map(items, depth))?,
            Marker::Map32 => self.raw(4).and_then(|items| self.map(items, depth))?,
            other => return Err(bad(format!("expected no MessagePack extension, got {other:?}"))),
        })
    }

    fn deeper(&self, depth: usize) -> Result<usize, Fault> {
        if depth == DEEPEST {
            return Err(bad(format!("expected at most {DEEPEST} dicts and lists in one another, got more")));
        }
        Ok(depth + 1)
    }

    // What a length claims is not believed: memory grows with what really comes.
    fn list(&mut self, items: u64, depth: usize) -> Result<Value<'a>, Fault> {
        let depth = self.deeper(depth)?;
        (0..items).map(|_| self.value(depth)).collect::<Result<_, _>>().map(Value::List)
    }

    fn map(&mut self, items: u64, depth: usize) -> Result<Value<'a>, Fault> {
        let depth = self.deeper(depth)?;
        let mut map: Vec<(&'a str, Value<'a>)> = Vec::new();
        for _ in 0..items {
            let key = match self.value(depth)? {
                Value::Text(key) => key,
                // NumPy's own keys, and whoever packs as older versions did.
                Value::Bytes(key) => {
                    std::str::from_utf8(key).map_err(|_| bad("expected names as text, got bytes".into()))?
                }
                other => return Err(bad(format!("expected names as text, got {}", other.kind()))),
            };
            if map.iter().any(|(known, _)| *known == key) {
                return Err(bad(format!("expected each name once, got '{}' twice", short(key))));
            }
            map.push((key, self.value(depth)?));
        }
        let has = |name| map.iter().any(|(key, _)| *key == name);
        if has("__ndarray__") {
            return array(&map).map(Value::Array);
        }
        if has("__npgeneric__") {
            return match map.iter().find(|(key, _)| *key == "data") {
                Some((_, Value::Number(number))) => Ok(Value::Number(*number)),
                Some((_, Value::Bool(truth))) => Ok(Value::Bool(*truth)),
                Some((_, Value::Text(text))) => Ok(Value::Text(text)),
                _ => Err(bad("expected a number or a text in a NumPy scalar, got something else".into())),
            };
        }
        Ok(Value::Map(map))
    }
}

fn array<'a>(map: &[(&'a str, Value<'a>)]) -> Result<Array<'a>, Fault> {
    let get = |name: &str| map.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let (Some(Value::Bytes(data)), Some(Value::Text(dtype)), Some(Value::List(axes))) =
        (get("data"), get("dtype"), get("shape"))
    else {
        return Err(bad("expected an array with data (bytes), dtype (str) and shape (list)".into()));
    };
    let dtype = Dtype::of(dtype)?;
    let axis = |value: &Value| match value {
        Value::Number(n) if *n >= 0.0 && *n < 1e9 && n.fract() == 0.0 => Some(*n as usize),
        _ => None,
    };
    let shape: Option<Vec<usize>> = axes.iter().map(axis).collect();
    let shape = shape.filter(|shape| shape.len() <= MOST_AXES);
    let shape = shape.ok_or_else(|| bad(format!("expected a shape of at most {MOST_AXES} lengths")))?;
    let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, axis| bytes.checked_mul(*axis));
    if bytes != Some(data.len()) {
        let (name, got) = (dtype.name(), data.len());
        return Err(bad(format!("expected the bytes of {shape:?} of {name}, got {got} bytes")));
    }
    Ok(Array { dtype, shape, data })
}

/// A name from outside, short enough for a message.
pub fn short(name: &str) -> String {
    name.chars().take(60).collect()
}

/// A message on its way out; writing into memory cannot fail.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// So many pairs follow.
    pub fn map(&mut self, pairs: u32) -> &mut Self {
        let _ = encode::write_map_len(&mut self.0, pairs);
        self
    }

    /// So many values follow.
    pub fn list(&mut self, items: u32) -> &mut Self {
        let _ = encode::write_array_len(&mut self.0, items);
        self
    }

    /// Words, or a name.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let _ = encode::write_str(&mut self.0, text);
        self
    }

    /// A whole number.
    pub fn count(&mut self, count: u64) -> &mut Self {
        let _ = encode::write_uint(&mut self.0, count);
        self
    }

    /// A number.
    pub fn number(&mut self, number: f64) -> &mut Self {
        let _ = encode::write_f64(&mut self.0, number);
        self
    }

    /// Rows of equal width as a NumPy array of float64, `[rows, width]`.
    pub fn rows(&mut self, rows: &[Vec<f64>]) -> &mut Self {
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
        self.map(4);
        let _ = encode::write_bin(&mut self.0, b"__ndarray__");
        let _ = encode::write_bool(&mut self.0, true);
        let _ = encode::write_bin(&mut self.0, b"data");
        let _ = encode::write_bin(&mut self.0, &bytes);
        let _ = encode::write_bin(&mut self.0, b"dtype");
        self.text("<f8");
        let _ = encode::write_bin(&mut self.0, b"shape");
        self.list(2).count(rows.len() as u64).count(rows.first().map_or(0, Vec::len) as u64)
    }

    /// The bytes.
    pub fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests;
