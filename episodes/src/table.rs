//! Parquet files as lists of row groups: appended whole, cut back, read by rows.

use crate::layout::{guarded, io, refuse, write_whole};
use arrow::array::AsArray;
use arrow::array::{Array, ArrayRef, FixedSizeListArray, LargeListArray, ListArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriter, compute_leaves};
use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::{Error, Result};

/// Writes `path` anew: its first `keep` row groups as they are, then `batch` as one row group more. The old file
/// stays until the new one is complete.
pub(crate) fn append(path: &Path, keep: usize, batch: &RecordBatch) -> Result<()> {
    let old = if keep > 0 { Some(open(path)?) } else { None };
    // pandas finds its notes only when they are in the Arrow schema and in the file's own metadata.
    let schema = batch.schema();
    let notes =
        schema.metadata().iter().map(|(key, text)| KeyValue::new(key.clone(), text.clone())).collect();
    write_whole(path, |file| {
        let write = |file: &mut File| -> parquet::errors::Result<()> {
            let arrow = ArrowWriter::try_new(file, schema.clone(), Some(properties(notes)))?;
            let (mut writer, factory) = arrow.into_serialized_writer()?;
            if let Some((old, metadata)) = &old {
                splice(&mut writer, old, metadata, keep)?;
            }
            row_group(&mut writer, &factory, keep, batch)?;
            writer.close()?;
            Ok(())
        };
        write(file).map_err(|e| refuse(path, e.to_string()))
    })
}

/// Cuts a file back to its first `keep` row groups.
pub(crate) fn cut(path: &Path, keep: usize) -> Result<()> {
    let (old, metadata) = open(path)?;
    let described = metadata.file_metadata();
    let notes = described.key_value_metadata().cloned().unwrap_or_default();
    write_whole(path, |file| {
        let write = |file: &mut File| -> parquet::errors::Result<()> {
            let schema = described.schema_descr().root_schema_ptr();
            let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties(notes)))?;
            splice(&mut writer, &old, &metadata, keep)?;
            writer.close()?;
            Ok(())
        };
        write(file).map_err(|e| refuse(path, e.to_string()))
    })
}

fn properties(notes: Vec<KeyValue>) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_key_value_metadata((!notes.is_empty()).then_some(notes))
        .build()
}

/// Copies row groups byte by byte, without decoding them.
fn splice<W: std::io::Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    old: &File,
    metadata: &ParquetMetaData,
    keep: usize,
) -> parquet::errors::Result<()> {
    for group in metadata.row_groups().iter().take(keep) {
        let mut copy = writer.next_row_group()?;
        for column in group.columns() {
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size() as u64,
                rows_written: group.num_rows() as u64,
                metadata: column.clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            copy.append_column(old, close)?;
        }
        copy.close()?;
    }
    Ok(())
}

fn row_group<W: std::io::Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    factory: &ArrowRowGroupWriterFactory,
    place: usize,
    batch: &RecordBatch,
) -> parquet::errors::Result<()> {
    let mut columns = factory.create_column_writers(place)?.into_iter();
    let mut chunks = Vec::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        for leaf in compute_leaves(field, array)? {
            let mut column =
                columns.next().ok_or_else(|| ParquetError::General("more leaves than columns".into()))?;
            column.write(&leaf)?;
            chunks.push(column.close()?);
        }
    }
    let mut group = writer.next_row_group()?;
    for chunk in chunks {
        chunk.append_to_row_group(&mut group)?;
    }
    group.close()?;
    Ok(())
}

fn open(path: &Path) -> Result<(File, ParquetMetaData)> {
    guarded(path, || {
        let file = File::open(path).map_err(io(path))?;
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file);
        Ok((file, metadata.map_err(|e| torn(path, &e))?))
    })
}

fn torn(path: &Path, cause: &dyn std::fmt::Display) -> Error {
    refuse(path, format!("torn or not a parquet file: {cause}"))
}

/// How many row groups, from the front, make up exactly `rows` rows.
///
/// # Errors
/// No number of row groups does: the file is not what the episodes' table says.
pub(crate) fn groups_of_rows(path: &Path, rows: usize) -> Result<usize> {
    if rows == 0 {
        return Ok(0);
    }
    let (_, metadata) = open(path)?;
    let mut seen = 0;
    for (k, group) in metadata.row_groups().iter().enumerate() {
        seen += group.num_rows() as usize;
        if seen == rows {
            return Ok(k + 1);
        }
    }
    Err(refuse(path, format!("expected row groups that end after {rows} rows, the file has {seen} rows")))
}

/// How many rows a file has.
pub(crate) fn rows(path: &Path) -> Result<usize> {
    let (_, metadata) = open(path)?;
    Ok(metadata.row_groups().iter().map(|group| group.num_rows().max(0) as usize).sum())
}

/// Reads `rows` (all when `None`) of the named columns, touching only the row groups that hold them. Columns that
/// are not there are refused.
pub(crate) fn read(path: &Path, columns: &[&str], rows: Option<Range<usize>>) -> Result<RecordBatch> {
    guarded(path, || read_rows(path, columns, rows))
}

fn read_rows(path: &Path, columns: &[&str], rows: Option<Range<usize>>) -> Result<RecordBatch> {
    let file = File::open(path).map_err(io(path))?;
    // The Arrow schema that writers leave beside parquet's own is not needed, and a broken one makes the crate panic.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder =
        ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|e| torn(path, &e))?;
    let names: Vec<&str> =
        builder.parquet_schema().root_schema().get_fields().iter().map(|f| f.name()).collect();
    let mut roots = Vec::with_capacity(columns.len());
    for column in columns {
        let root = names.iter().position(|name| name == column).ok_or_else(|| Error::Unknown {
            kind: "column (missing from the parquet file)",
            name: format!("{column} of {}", path.display()),
            known: names.join(", "),
        })?;
        roots.push(root);
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let metadata = builder.metadata().clone();
    let total: usize = metadata.row_groups().iter().map(|group| group.num_rows() as usize).sum();
    let rows = rows.unwrap_or(0..total);
    if rows.end > total {
        return Err(refuse(path, format!("expected at least {} rows, got {total}", rows.end)));
    }
    let (mut groups, mut first, mut offset) = (Vec::new(), 0, 0);
    for (k, group) in metadata.row_groups().iter().enumerate() {
        let next = first + group.num_rows() as usize;
        if first < rows.end && next > rows.start {
            if groups.is_empty() {
                offset = rows.start - first;
            }
            groups.push(k);
        }
        first = next;
    }
    let reader = builder
        .with_projection(mask)
        .with_row_groups(groups)
        .with_offset(offset)
        .with_limit(rows.len())
        .with_batch_size(rows.len().max(1))
        .build()
        .map_err(|e| torn(path, &e))?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| torn(path, &e))?;
    let batch = arrow::compute::concat_batches(&schema, &batches).map_err(|e| torn(path, &e))?;
    if batch.num_rows() != rows.len() {
        return Err(refuse(path, format!("expected {} rows, got {}", rows.len(), batch.num_rows())));
    }
    Ok(batch)
}

/// Column names of a parquet file.
pub(crate) fn columns(path: &Path) -> Result<Vec<String>> {
    let (_, metadata) = open(path)?;
    let fields = metadata.file_metadata().schema_descr().root_schema().get_fields();
    Ok(fields.iter().map(|field| field.name().to_owned()).collect())
}

/// A column of a batch, or an error that names it.
pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str, path: &Path) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| refuse(path, format!("column '{name}' is missing")))
}

/// A column of whole numbers.
pub(crate) fn integers(batch: &RecordBatch, name: &str, path: &Path) -> Result<Vec<i64>> {
    let array = column(batch, name, path)?;
    let numbers = array.as_primitive_opt::<Int64Type>().filter(|_| array.null_count() == 0);
    let numbers = numbers
        .ok_or_else(|| refuse(path, format!("column '{name}': expected int64, got {}", array.data_type())))?;
    Ok(numbers.values().to_vec())
}

/// The innermost values of an array, lists inside lists laid out one after another.
pub(crate) fn leaves(array: &ArrayRef, what: &str, path: &Path) -> Result<ArrayRef> {
    let wrong = || refuse(path, format!("{what}: expected a list, got {}", array.data_type()));
    if array.null_count() > 0 {
        return Err(refuse(path, format!("{what}: expected a value in every row, got a null")));
    }
    match array.data_type() {
        DataType::List(_) => {
            let list: &ListArray = array.as_list_opt().ok_or_else(wrong)?;
            let (from, to) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            leaves(&list.values().slice(from as usize, (to - from) as usize), what, path)
        }
        DataType::LargeList(_) => {
            let list: &LargeListArray = array.as_list_opt().ok_or_else(wrong)?;
            let (from, to) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            leaves(&list.values().slice(from as usize, (to - from) as usize), what, path)
        }
        DataType::FixedSizeList(_, _) => {
            let list: &FixedSizeListArray = array.as_fixed_size_list_opt().ok_or_else(wrong)?;
            let wide = list.value_length() as usize;
            leaves(&list.values().slice(list.value_offset(0) as usize, wide * list.len()), what, path)
        }
        _ => Ok(array.clone()),
    }
}

/// Every number of an array, lists inside lists laid out one after another; true is 1.
pub(crate) fn flatten(array: &ArrayRef, what: &str, path: &Path) -> Result<Vec<f64>> {
    let leaves = leaves(array, what, path)?;
    let wrong = || refuse(path, format!("{what}: expected numbers, got {}", array.data_type()));
    if !leaves.data_type().is_numeric() && *leaves.data_type() != DataType::Boolean {
        return Err(wrong());
    }
    let numbers =
        arrow::compute::cast(&leaves, &DataType::Float64).map_err(|e| refuse(path, e.to_string()))?;
    Ok(numbers.as_primitive_opt::<Float64Type>().ok_or_else(wrong)?.values().to_vec())
}

/// A note of a file: from the Arrow schema inside it, and from its own metadata.
#[cfg(test)]
pub(crate) fn notes(path: &Path, key: &str) -> Result<(Option<String>, Option<String>)> {
    let file = File::open(path).map_err(io(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| torn(path, &e))?;
    let own = builder.metadata().file_metadata().key_value_metadata();
    let own = own.into_iter().flatten().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    Ok((builder.schema().metadata().get(key).cloned(), own))
}
