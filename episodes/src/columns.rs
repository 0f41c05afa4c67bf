//! Columns of frames: joint vectors, flags and pictures as arrow arrays, and the statistics of each.

use crate::info::{Feature, Info};
use crate::layout::refuse;
use crate::picture::decode;
use crate::stats::{FeatureStats, PictureCounts};
use crate::table;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, FixedSizeListArray, RecordBatch, StringArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::{Camera, Error, Result};

/// A batch of columns with their names; every column may hold nulls, as LeRobot's do.
pub(crate) fn batch_of(columns: Vec<(String, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|e| Error::Parse { what: "rows of an episode".into(), why: e.to_string() })
}

/// Values laid out one after another as rows of `wide`; rows of one as the values themselves, as LeRobot has it.
pub(crate) fn rows_of(values: ArrayRef, wide: usize) -> Result<ArrayRef> {
    if wide == 1 {
        return Ok(values);
    }
    let field = Arc::new(Field::new("element", values.data_type().clone(), true));
    let list = FixedSizeListArray::try_new(field, wide as i32, values, None);
    Ok(Arc::new(list.map_err(|e| Error::Parse { what: "rows of an episode".into(), why: e.to_string() })?))
}

/// Encoded pictures and their names.
pub(crate) fn picture_column(pictures: &[&[u8]], extension: &str) -> ArrayRef {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pictures));
    let paths = (0..pictures.len()).map(|k| format!("frame-{k:06}.{extension}"));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(paths));
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

/// Reads a column of vectors, each `wide` long.
pub(crate) fn read_vectors(
    batch: &RecordBatch,
    name: &str,
    wide: usize,
    path: &Path,
) -> Result<Vec<Vec<f64>>> {
    let numbers = table::flatten(table::column(batch, name, path)?, &format!("column '{name}'"), path)?;
    if numbers.len() != wide * batch.num_rows() || wide == 0 {
        return Err(Error::Shape {
            what: format!("column '{name}' of {}", path.display()),
            expected: format!("{} rows of {wide} numbers", batch.num_rows()),
            got: format!("{} numbers", numbers.len()),
        });
    }
    Ok(numbers.chunks(wide).map(<[f64]>::to_vec).collect())
}

/// Reads a column of pictures as encoded bytes.
pub(crate) fn read_pictures(batch: &RecordBatch, name: &str, path: &Path) -> Result<Vec<Vec<u8>>> {
    let array = table::column(batch, name, path)?;
    let wrong =
        || refuse(path, format!("column '{name}': expected pictures in bytes, got {}", array.data_type()));
    let bytes = array.as_struct_opt().and_then(|s| s.column_by_name("bytes")).ok_or_else(wrong)?;
    let bytes = cast(bytes, &DataType::Binary).map_err(|_| wrong())?;
    let bytes = bytes.as_binary_opt::<i32>().ok_or_else(wrong)?;
    (0..bytes.len())
        .map(|k| {
            let missing =
                || refuse(path, format!("column '{name}': row {k} has no bytes (a path alone is not read)"));
            if bytes.is_null(k) { Err(missing()) } else { Ok(bytes.value(k).to_vec()) }
        })
        .collect()
}

/// The arrow type that LeRobot writes for a dtype of `info.json`.
fn arrow_type(dtype: &str) -> Option<DataType> {
    Some(match dtype {
        "float32" => DataType::Float32,
        "float64" => DataType::Float64,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "bool" => DataType::Boolean,
        "string" => DataType::Utf8,
        _ => return None,
    })
}

/// A column in the form that LeRobot's own writer gives it, whichever list type it came in.
///
/// # Errors
/// The feature's dtype or shape cannot be written, or the column does not fit it.
pub(crate) fn canonical(key: &str, feature: &Feature, array: &ArrayRef, path: &Path) -> Result<ArrayRef> {
    let what = format!("column '{key}'");
    if feature.is_picture() {
        let wrong = || refuse(path, format!("{what}: expected pictures in bytes, got {}", array.data_type()));
        let parts = array.as_struct_opt().ok_or_else(wrong)?;
        let part = |name: &str, kind: DataType| -> Result<(Arc<Field>, ArrayRef)> {
            let part = parts.column_by_name(name).ok_or_else(wrong)?;
            let part = cast(part, &kind).map_err(|_| wrong())?;
            Ok((Arc::new(Field::new(name, kind, true)), part))
        };
        let parts = vec![part("bytes", DataType::Binary)?, part("path", DataType::Utf8)?];
        return Ok(Arc::new(StructArray::from(parts)));
    }
    let kind = arrow_type(&feature.dtype).filter(|_| feature.shape.len() == 1);
    let kind = kind.ok_or_else(|| Error::Shape {
        what: format!("feature '{key}' of meta/info.json"),
        expected: "numbers, flags or text in a shape of one dimension".into(),
        got: format!("{} of {:?}", feature.dtype, feature.shape),
    })?;
    let values =
        cast(&table::leaves(array, &what, path)?, &kind).map_err(|e| refuse(path, format!("{what}: {e}")))?;
    let wide = feature.width();
    if values.len() != wide * array.len() {
        return Err(Error::Shape {
            what: format!("{what} of {}", path.display()),
            expected: format!("{} rows of {wide} values", array.len()),
            got: format!("{} values", values.len()),
        });
    }
    rows_of(values, wide)
}

/// The statistics of every feature that has some, by its name. `seen` holds those of pictures that are known already;
/// other pictures are decoded.
pub(crate) fn stats_of(
    batch: &RecordBatch,
    info: &Info,
    seen: &BTreeMap<String, FeatureStats>,
    path: &Path,
) -> Result<Vec<(String, FeatureStats)>> {
    let mut stats = Vec::new();
    for (key, feature) in &info.features {
        if let Some(known) = seen.get(key) {
            stats.push((key.clone(), known.clone()));
        } else if feature.is_picture() && !feature.is_video() {
            let mut counts = PictureCounts::new();
            count_pictures(batch, key, feature, path, &mut counts)?;
            stats.push((key.clone(), counts.stats()));
        } else if feature.is_numeric() {
            stats.push((
                key.clone(),
                FeatureStats::of_rows(&read_vectors(batch, key, feature.width(), path)?),
            ));
        }
    }
    Ok(stats)
}

/// Adds the pictures of one column to the counts.
pub(crate) fn count_pictures(
    batch: &RecordBatch,
    key: &str,
    feature: &Feature,
    path: &Path,
    counts: &mut PictureCounts,
) -> Result<()> {
    let (width, height) = feature.picture_size(key)?;
    let camera = Camera { name: key.to_owned(), width, height };
    for (row, bytes) in read_pictures(batch, key, path)?.iter().enumerate() {
        let what = format!("{}: picture '{key}' of row {row}", path.display());
        counts.add(&decode(bytes, &camera, &what)?);
    }
    Ok(())
}
