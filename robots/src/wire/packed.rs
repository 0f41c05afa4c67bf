//! Byte strings inside MessagePack: pixels and f64 rows, one to one with memory.

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;

/// Bytes as a MessagePack byte string.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bytes(pub(super) Arc<[u8]>);

/// Numbers as a byte string of little-endian f64; any NaN stays what it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers(pub(super) Vec<f64>);

/// Rows of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rows {
    width: u32,
    numbers: Numbers,
}

impl Rows {
    /// Row by row; `None` when the rows differ in width.
    pub(super) fn pack(rows: &[Vec<f64>]) -> Option<Self> {
        let width = rows.first().map_or(0, Vec::len);
        let same = rows.iter().all(|row| row.len() == width) && (width > 0 || rows.is_empty());
        same.then(|| Self { width: width as u32, numbers: Numbers(rows.concat()) })
    }

    /// The rows; `None` when the numbers do not fill them.
    pub(super) fn unpack(self) -> Option<Vec<Vec<f64>>> {
        let numbers = self.numbers.0;
        if numbers.is_empty() {
            return Some(Vec::new());
        }
        let width = self.width as usize;
        (width > 0 && numbers.len().is_multiple_of(width))
            .then(|| numbers.chunks(width).map(<[f64]>::to_vec).collect())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Shared).map(Self)
    }
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|x| x.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(Raw)?;
        let (numbers, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(D::Error::custom(format!("{} bytes are no whole number of f64", bytes.len())));
        }
        Ok(Self(numbers.iter().map(|x| f64::from_le_bytes(*x)).collect()))
    }
}

struct Raw;

impl Visitor<'_> for Raw {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(bytes.to_vec())
    }
}

struct Shared;

impl Visitor<'_> for Shared {
    type Value = Arc<[u8]>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(bytes.into())
    }
}
