//! PyTorch's `.pt`, `.pth` and `.ckpt` files, read as data: a zip archive of one pickle and the tensors' bytes. Nothing in
//! it is run.

use crate::pickle::{Pickle, Value};
use candle_core::{Device, Tensor};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use vela_nn::{Error, Result};

/// Dictionaries inside dictionaries go no deeper.
const DEEPEST: usize = 32;

/// Entries of all dictionaries together, each counted as often as it is reached.
const MOST: usize = 1_000_000;

/// The tensors of a file by their path through its dictionaries (`state_dicts.ema_model.obs_encoder.weight`), as float32.
///
/// # Errors
/// Not such a file, a compressed or torn one; a pickle that names or does what is not on the lists; a tensor that reaches
/// outside its bytes.
pub fn tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    tensors_of(&bytes).map_err(|e| Error::parse(path.display(), e))
}

/// The same from the file's contents.
pub fn tensors_of(bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let entries = zip_entries(bytes)?;
    let name = entries.keys().find(|name| name.ends_with("/data.pkl") || *name == "data.pkl");
    let name = name.ok_or_else(|| Error::invalid("no data.pkl in the archive: not a PyTorch file"))?;
    let root = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    if let Some(order) = entries.get(&format!("{root}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        return Err(Error::invalid("a big-endian PyTorch file"));
    }
    let pickle = Pickle::read(&bytes[entries[name].clone()])?;
    let file = File { bytes, entries: &entries, root: &root, pickle: &pickle, visits: Cell::new(0) };
    let mut found = HashMap::new();
    file.walk(pickle.root, String::new(), 0, &mut found)?;
    Ok(found)
}

struct File<'a> {
    bytes: &'a [u8],
    entries: &'a BTreeMap<String, Range<usize>>,
    root: &'a str,
    pickle: &'a Pickle,
    visits: Cell<usize>,
}

impl File<'_> {
    fn walk(&self, at: usize, path: String, depth: usize, found: &mut HashMap<String, Tensor>) -> Result<()> {
        if let Some(tensor) = self.tensor(at, &path)? {
            found.insert(path, tensor);
            return Ok(());
        }
        let Some(entries) = self.pickle.entries(at) else { return Ok(()) };
        // One dictionary may stand in many places, and those in many others.
        self.visits.set(self.visits.get() + entries.len());
        if depth == DEEPEST || self.visits.get() > MOST {
            return Err(Error::invalid(format!("{path}: dictionaries too deep or too many")));
        }
        for (key, value) in entries {
            let key = match self.pickle.value(*key) {
                Value::Text(text) => text.clone(),
                Value::Int(number) => number.to_string(),
                _ => continue,
            };
            let path = if path.is_empty() { key } else { format!("{path}.{key}") };
            self.walk(*value, path, depth + 1, found)?;
        }
        Ok(())
    }

    /// A tensor if the value is one: `_rebuild_tensor_v2(storage, offset, size, stride, ..)`, or a parameter around it.
    fn tensor(&self, at: usize, path: &str) -> Result<Option<Tensor>> {
        let Value::Made { global, arguments, .. } = self.pickle.value(at) else { return Ok(None) };
        let arguments = self.pickle.list(*arguments).unwrap_or_default();
        match global.as_str() {
            "torch._utils._rebuild_parameter" => {
                // A parameter holds a tensor and not another parameter: no way round in circles.
                let inner = arguments.first().copied().unwrap_or(at);
                match self.pickle.value(inner) {
                    Value::Made { global, .. } if global == "torch._utils._rebuild_tensor_v2" => {
                        self.tensor(inner, path)
                    }
                    _ => Err(Error::invalid(format!("{path}: a parameter without a tensor"))),
                }
            }
            "torch._utils._rebuild_tensor_v2" => self.rebuild(arguments, path).map(Some),
            _ => Ok(None),
        }
    }

    fn rebuild(&self, arguments: &[usize], path: &str) -> Result<Tensor> {
        let bad = |what: &str| Error::invalid(format!("tensor {path}: {what}"));
        let [storage, offset, size, stride, ..] = arguments else { return Err(bad("too few arguments")) };
        let Value::Outside(id) = self.pickle.value(*storage) else { return Err(bad("no storage")) };
        let [_, kind, key, ..] = self.pickle.list(*id).unwrap_or_default() else {
            return Err(bad("a storage without a key"));
        };
        let Value::Global(kind) = self.pickle.value(*kind) else {
            return Err(bad("a storage without a type"));
        };
        let key = self.pickle.text(*key).ok_or_else(|| bad("a storage without a key"))?;
        let name = format!("{}data/{key}", self.root);
        let range = self.entries.get(&name).ok_or_else(|| bad(&format!("no entry {name}")))?;
        let values =
            numbers(&self.bytes[range.clone()], kind).ok_or_else(|| bad(&format!("of type {kind}")))?;
        let counts = |at: usize| -> Option<Vec<usize>> {
            self.pickle.list(at)?.iter().map(|part| self.pickle.count(*part)).collect()
        };
        let (shape, strides) = (counts(*size), counts(*stride));
        let (Some(shape), Some(strides), Some(offset)) = (shape, strides, self.pickle.count(*offset)) else {
            return Err(bad("sizes that are no counts"));
        };
        if shape.len() != strides.len() {
            return Err(bad("as many strides as sizes were expected"));
        }
        let count = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).unwrap_or(usize::MAX);
        let reach = shape.iter().zip(&strides).try_fold(offset, |reach, (size, stride)| {
            reach.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
        });
        if count > values.len() || (count > 0 && reach.is_none_or(|reach| reach >= values.len())) {
            return Err(bad("reaches outside its storage"));
        }
        let mut gathered = Vec::with_capacity(count);
        let mut place = vec![0usize; shape.len()];
        for _ in 0..count {
            gathered.push(values[offset + place.iter().zip(&strides).map(|(p, s)| p * s).sum::<usize>()]);
            for axis in (0..shape.len()).rev() {
                place[axis] += 1;
                if place[axis] < shape[axis] {
                    break;
                }
                place[axis] = 0;
            }
        }
        Ok(Tensor::from_vec(gathered, shape, &Device::Cpu)?)
    }
}

/// Little-endian values of a storage type as float32.
fn numbers(bytes: &[u8], kind: &str) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| one(*chunk)).collect()
    }
    Some(match kind {
        "torch.FloatStorage" => each(bytes, f32::from_le_bytes),
        "torch.DoubleStorage" => each(bytes, |b| f64::from_le_bytes(b) as f32),
        "torch.HalfStorage" => each(bytes, half),
        "torch.BFloat16Storage" => each(bytes, |b: [u8; 2]| f32::from_le_bytes([0, 0, b[0], b[1]])),
        "torch.LongStorage" => each(bytes, |b| i64::from_le_bytes(b) as f32),
        "torch.IntStorage" => each(bytes, |b| i32::from_le_bytes(b) as f32),
        "torch.ShortStorage" => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
        "torch.CharStorage" => each(bytes, |b: [u8; 1]| f32::from(b[0] as i8)),
        "torch.ByteStorage" | "torch.BoolStorage" => each(bytes, |b: [u8; 1]| f32::from(b[0])),
        _ => return None,
    })
}

/// A half-precision number (IEEE 754 binary16).
fn half(bytes: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bytes);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// The entries of a zip archive that are stored as they are, by name (PKWARE's APPNOTE 6.3.10; 64-bit sizes included).
fn zip_entries(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>> {
    let bad = |what: &str| Error::invalid(format!("zip archive: {what}"));
    let number = |at: usize, count: usize| -> Result<u64> {
        let slice = at.checked_add(count).and_then(|end| bytes.get(at..end)).ok_or_else(|| bad("torn"))?;
        Ok(slice.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    };
    let place = |value: u64| usize::try_from(value).map_err(|_| bad("too large"));
    if !bytes.starts_with(b"PK\x03\x04") {
        return Err(bad("not one; PyTorch files from before 1.6 are not supported"));
    }
    let last = bytes.len().checked_sub(22).ok_or_else(|| bad("torn"))?;
    let end = (last.saturating_sub(65_535)..=last).rev().find(|at| bytes[*at..].starts_with(b"PK\x05\x06"));
    let end = end.ok_or_else(|| bad("torn: no end record"))?;
    let (mut count, mut at) = (number(end + 10, 2)?, place(number(end + 16, 4)?)?);
    if end >= 20 && bytes[end - 20..].starts_with(b"PK\x06\x07") {
        let wide = place(number(end - 12, 8)?)?;
        number(wide, 4)?;
        (count, at) = (number(wide + 32, 8)?, place(number(wide + 48, 8)?)?);
    }
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        if number(at, 4)? != 0x0201_4b50 {
            return Err(bad("torn: no directory entry"));
        }
        let method = number(at + 10, 2)?;
        let [packed, size] = [number(at + 20, 4)?, number(at + 24, 4)?];
        let lengths = [place(number(at + 28, 2)?)?, place(number(at + 30, 2)?)?, place(number(at + 32, 2)?)?];
        let [name_length, extra_length, comment_length] = lengths;
        let mut wide = [size, packed, number(at + 42, 4)?];
        let name = bytes.get(at + 46..at + 46 + name_length).ok_or_else(|| bad("torn"))?;
        let name = String::from_utf8_lossy(name).into_owned();
        // Sizes of 32 ones are in the extra field, in this order, 64 bits each.
        let (mut extra, stop) = (at + 46 + name_length, at + 46 + name_length + extra_length);
        while extra + 4 <= stop {
            let (kind, length) = (number(extra, 2)?, place(number(extra + 2, 2)?)?);
            if kind == 1 {
                let mut from = extra + 4;
                for value in wide.iter_mut().filter(|value| **value == 0xffff_ffff) {
                    *value = number(from, 8)?;
                    from += 8;
                }
            }
            extra += 4 + length;
        }
        if method != 0 || wide[0] != wide[1] {
            return Err(bad(&format!("entry {name} is compressed, which PyTorch never does")));
        }
        let local = place(wide[2])?;
        if number(local, 4)? != 0x0403_4b50 {
            return Err(bad(&format!("torn: entry {name} is not where it should be")));
        }
        let skipped = 30 + place(number(local + 26, 2)?)? + place(number(local + 28, 2)?)?;
        let start = local.checked_add(skipped).ok_or_else(|| bad("too large"))?;
        let range = start..start.checked_add(place(wide[0])?).ok_or_else(|| bad("too large"))?;
        if range.end > bytes.len() {
            return Err(bad(&format!("torn: entry {name} ends outside")));
        }
        entries.insert(name, range);
        at = stop + comment_length;
    }
    Ok(entries)
}
