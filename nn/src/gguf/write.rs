//! The other direction: a GGUF file of version 3, whole or not at all.

use super::Value;
use crate::quant::Blocks;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Where tensors begin, and what `general.alignment` says.
const ALIGNMENT: usize = 32;

/// Writes metadata and tensors, both in the order of their names: equal content gives equal bytes. The file appears
/// under its name only when all of it is written.
///
/// # Errors
/// The system refuses; a tensor with more than four dimensions.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, Value>,
    tensors: &BTreeMap<String, Blocks>,
) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.partial", std::process::id()));
    let header = header(metadata, tensors)?;
    let written = std::fs::File::create(&temporary)
        .and_then(|file| content(&mut BufWriter::new(file), &header, tensors))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        // What is left of it is of no use; the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, source)
    })
}

fn content(out: &mut impl Write, header: &[u8], tensors: &BTreeMap<String, Blocks>) -> std::io::Result<()> {
    let aligned = |out: &mut dyn Write, length: usize| {
        out.write_all(&[0; ALIGNMENT][..length.next_multiple_of(ALIGNMENT) - length])
    };
    out.write_all(header)?;
    aligned(out, header.len())?;
    for blocks in tensors.values() {
        out.write_all(blocks.bytes())?;
        aligned(out, blocks.bytes().len())?;
    }
    out.flush()
}

fn header(metadata: &BTreeMap<String, Value>, tensors: &BTreeMap<String, Blocks>) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    count(&mut out, tensors.len());
    let alignment = Value::Unsigned(ALIGNMENT as u64);
    let own = ("general.alignment", &alignment);
    let others = metadata.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| *key != own.0);
    let values: Vec<(&str, &Value)> = std::iter::once(own).chain(others).collect();
    count(&mut out, values.len());
    for (key, value) in values {
        text(&mut out, key);
        out.extend(kind(value).to_le_bytes());
        payload(&mut out, value);
    }
    let mut offset = 0;
    for (name, blocks) in tensors {
        let shape = blocks.shape();
        if !(1..=4).contains(&shape.len()) {
            return Err(Error::shape(name, "one to four dimensions", shape));
        }
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| count(&mut out, *size));
        out.extend(blocks.format().number().to_le_bytes());
        count(&mut out, offset);
        offset += blocks.bytes().len().next_multiple_of(ALIGNMENT);
    }
    Ok(out)
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend((count as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    count(out, text.len());
    out.extend(text.as_bytes());
}

/// The number of a value's type; numbers are written in their widest form.
fn kind(value: &Value) -> u32 {
    match value {
        Value::Bool(_) => 7,
        Value::Text(_) => 8,
        Value::Unsigned(_) => 10,
        Value::Signed(_) => 11,
        Value::Float(_) => 12,
        _ => 9,
    }
}

fn payload(out: &mut Vec<u8>, value: &Value) {
    let list = |out: &mut Vec<u8>, kind: u32, length: usize| {
        out.extend(kind.to_le_bytes());
        count(out, length);
    };
    match value {
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::Text(t) => text(out, t),
        Value::Unsigned(n) => out.extend(n.to_le_bytes()),
        Value::Signed(n) => out.extend(n.to_le_bytes()),
        Value::Float(x) => out.extend(x.to_le_bytes()),
        Value::BoolList(all) => {
            list(out, 7, all.len());
            out.extend(all.iter().map(|b| u8::from(*b)));
        }
        Value::TextList(all) => {
            list(out, 8, all.len());
            all.iter().for_each(|t| text(out, t));
        }
        Value::UnsignedList(all) => {
            list(out, 10, all.len());
            all.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::SignedList(all) => {
            list(out, 11, all.len());
            all.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::FloatList(all) => {
            list(out, 12, all.len());
            all.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Lists(all) => {
            list(out, 9, all.len());
            all.iter().for_each(|value| payload(out, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gguf;
    use crate::quant::Format;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let path = std::env::temp_dir().join(format!("vela-gguf-write-{}.gguf", std::process::id()));
        let lists = Value::Lists(vec![Value::SignedList(vec![-3, 4]), Value::SignedList(vec![5])]);
        let values = [
            ("a.bool", Value::Bool(true)),
            ("a.text", Value::Text("ü".into())),
            ("a.unsigned", Value::Unsigned(u64::MAX)),
            ("a.signed", Value::Signed(-7)),
            ("a.float", Value::Float(0.25)),
            ("b.bools", Value::BoolList(vec![true, false])),
            ("b.texts", Value::TextList(vec!["x".into(), String::new()])),
            ("b.unsigned", Value::UnsignedList(vec![1, 2, 3])),
            ("b.floats", Value::FloatList(vec![-0.5])),
            ("b.lists", lists),
        ];
        let metadata: BTreeMap<String, Value> =
            values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let tensors = BTreeMap::from([
            ("b".to_owned(), Blocks::new(Format::Q8_0, &[3, 32], (0..102).collect())?),
            ("a".to_owned(), Blocks::new(Format::F16, &[2, 1, 5], (0..20).collect())?),
        ]);
        write(&path, &metadata, &tensors)?;
        let file = Gguf::open(&path)?;
        for (key, value) in &metadata {
            assert_eq!(file.value(key)?, value);
        }
        assert_eq!(file.metadata().len(), metadata.len() + 1);
        assert_eq!(file.names(), ["a", "b"]);
        for (name, blocks) in &tensors {
            let got = file.tensor(name)?;
            assert_eq!((got.format(), got.shape()), (blocks.format(), blocks.shape()));
            assert_eq!(got.bytes(), blocks.bytes());
        }
        drop(file);
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))
    }
}
