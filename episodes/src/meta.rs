//! The tables of `meta/`: tasks and episodes, with each episode's statistics.

use crate::columns::batch_of;
use crate::info::{Feature, Info};
use crate::layout::{FileId, Layout, refuse};
use crate::stats::{FeatureStats, NAMES};
use crate::table;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::Result;

/// Our own column of the episodes' table: JSON text of whatever the recorder noted.
const EXTRA: &str = "vela/extra";

/// One row of the episodes' table.
#[derive(Clone, Debug, PartialEq)]
pub struct EpisodeEntry {
    /// Its number in the dataset.
    pub index: usize,
    /// What the robot was asked to do, mostly one sentence.
    pub tasks: Vec<String>,
    /// Number of frames.
    pub length: usize,
    /// What the recorder noted (task, seed, outcome, ...); null when it noted nothing.
    pub extra: serde_json::Value,
    /// Number of its first frame in the whole dataset.
    pub(crate) first_index: usize,
    pub(crate) data_file: FileId,
    pub(crate) meta_file: FileId,
    /// Where it is in the video files, by the columns' names.
    pub(crate) films: BTreeMap<String, FilmPlace>,
}

/// A part of a video file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FilmPlace {
    pub(crate) file: FileId,
    /// From where to where, s from the file's first picture.
    pub(crate) from_secs: f64,
    pub(crate) to_secs: f64,
}

impl EpisodeEntry {
    /// The (first) sentence that the robot was asked; empty when there is none.
    pub fn task(&self) -> &str {
        self.tasks.first().map_or("", String::as_str)
    }
}

fn one_integer(value: usize) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value as i64]))
}

/// A list of one row around `values`.
fn one_list(values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("element", values.data_type().clone(), true));
    let lengths = OffsetBuffer::from_lengths([values.len()]);
    Arc::new(ListArray::new(field, lengths, values, None))
}

/// A list of lists of one entry each.
fn each_in_a_list(values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("element", values.data_type().clone(), true));
    let lengths = OffsetBuffer::from_lengths(vec![1; values.len()]);
    Arc::new(ListArray::new(field, lengths, values, None))
}

/// An episode's row of the episodes' table.
pub(crate) fn episode_batch(
    entry: &EpisodeEntry,
    stats: &[(String, FeatureStats)],
    info: &Info,
) -> Result<RecordBatch> {
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("episode_index".into(), one_integer(entry.index)),
        ("tasks".into(), one_list(Arc::new(StringArray::from_iter_values(&entry.tasks)))),
        ("length".into(), one_integer(entry.length)),
        ("data/chunk_index".into(), one_integer(entry.data_file.chunk as usize)),
        ("data/file_index".into(), one_integer(entry.data_file.file as usize)),
        ("dataset_from_index".into(), one_integer(entry.first_index)),
        ("dataset_to_index".into(), one_integer(entry.first_index + entry.length)),
    ];
    for (key, film) in &entry.films {
        let secs = |secs: f64| -> ArrayRef { Arc::new(Float64Array::from(vec![secs])) };
        columns.push((format!("videos/{key}/chunk_index"), one_integer(film.file.chunk as usize)));
        columns.push((format!("videos/{key}/file_index"), one_integer(film.file.file as usize)));
        columns.push((format!("videos/{key}/from_timestamp"), secs(film.from_secs)));
        columns.push((format!("videos/{key}/to_timestamp"), secs(film.to_secs)));
    }
    for (feature, stats) in stats {
        for (name, values) in stats.named() {
            let numbers: ArrayRef = Arc::new(Float64Array::from(values.clone()));
            let column = if info.features.get(feature).is_some_and(Feature::is_picture) {
                one_list(each_in_a_list(each_in_a_list(numbers)))
            } else {
                one_list(numbers)
            };
            columns.push((format!("stats/{feature}/{name}"), column));
        }
        let count: ArrayRef = Arc::new(Int64Array::from(vec![stats.count as i64]));
        columns.push((format!("stats/{feature}/count"), one_list(count)));
    }
    columns.push(("meta/episodes/chunk_index".into(), one_integer(entry.meta_file.chunk as usize)));
    columns.push(("meta/episodes/file_index".into(), one_integer(entry.meta_file.file as usize)));
    let extra: ArrayRef = Arc::new(StringArray::from(vec![entry.extra.to_string()]));
    columns.push((EXTRA.into(), extra));
    batch_of(columns)
}

/// A column of texts.
fn strings(array: &ArrayRef, what: &str, path: &Path) -> Result<Vec<String>> {
    let wrong = || refuse(path, format!("{what}: expected text, got {}", array.data_type()));
    let texts = arrow::compute::cast(array, &DataType::Utf8).map_err(|_| wrong())?;
    let texts = texts.as_string_opt::<i32>().ok_or_else(wrong)?;
    Ok(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
}

/// Every episode of the dataset, in order.
///
/// # Errors
/// A file is torn, a column is missing, or the episodes do not follow one another.
pub(crate) fn read_episodes(layout: &Layout, info: &Info) -> Result<Vec<EpisodeEntry>> {
    const COUNTED: [&str; 6] = [
        "episode_index",
        "length",
        "data/chunk_index",
        "data/file_index",
        "dataset_from_index",
        "dataset_to_index",
    ];
    let mut entries = Vec::new();
    for meta_file in layout.episode_files() {
        let path = &layout.episodes(meta_file);
        let has_extra = table::columns(path)?.iter().any(|name| name == EXTRA);
        let mut wanted = COUNTED.to_vec();
        wanted.push("tasks");
        wanted.extend(has_extra.then_some(EXTRA));
        let batch = table::read(path, &wanted, None)?;
        let numbers =
            COUNTED.iter().map(|name| table::integers(&batch, name, path)).collect::<Result<Vec<_>>>()?;
        let tasks = table::column(&batch, "tasks", path)?;
        let tasks = tasks.as_list_opt::<i32>().ok_or_else(|| {
            refuse(path, format!("column 'tasks': expected lists, got {}", tasks.data_type()))
        })?;
        let extras = match has_extra {
            true => strings(table::column(&batch, EXTRA, path)?, EXTRA, path)?,
            false => vec!["null".to_owned(); batch.num_rows()],
        };
        for row in 0..batch.num_rows() {
            let number = |k: usize| -> Result<usize> {
                usize::try_from(numbers[k][row])
                    .map_err(|_| refuse(path, format!("row {row}: {} is {}", COUNTED[k], numbers[k][row])))
            };
            let entry = EpisodeEntry {
                index: number(0)?,
                tasks: strings(&tasks.value(row), "column 'tasks'", path)?,
                length: number(1)?,
                extra: serde_json::from_str(&extras[row])
                    .map_err(|e| refuse(path, format!("row {row}: column '{EXTRA}': {e}")))?,
                first_index: number(4)?,
                data_file: FileId { chunk: numbers[2][row], file: numbers[3][row] },
                meta_file,
                films: BTreeMap::new(),
            };
            if Some(number(5)?) != entry.first_index.checked_add(entry.length) {
                return Err(refuse(path, format!("row {row}: length and dataset indices do not agree")));
            }
            entries.push(entry);
        }
    }
    read_films(layout, info, &mut entries)?;
    for (k, entry) in entries.iter().enumerate() {
        let expected = if k == 0 { 0 } else { entries[k - 1].first_index + entries[k - 1].length };
        if entry.index != k || entry.first_index != expected {
            return Err(refuse(
                &layout.episodes(entry.meta_file),
                format!(
                    "expected episode {k} from frame {expected} on, got episode {} from frame {} on",
                    entry.index, entry.first_index
                ),
            ));
        }
    }
    Ok(entries)
}

/// Where the episodes are in the video files.
fn read_films(layout: &Layout, info: &Info, entries: &mut [EpisodeEntry]) -> Result<()> {
    for key in info.videos() {
        let mut rest = &mut *entries;
        for meta_file in layout.episode_files() {
            let path = &layout.episodes(meta_file);
            let names = ["chunk_index", "file_index", "from_timestamp", "to_timestamp"]
                .map(|name| format!("videos/{key}/{name}"));
            let batch = table::read(path, &names.each_ref().map(String::as_str), None)?;
            let whole = |k: usize| table::integers(&batch, &names[k], path);
            let real = |k: usize| table::flatten(table::column(&batch, &names[k], path)?, &names[k], path);
            let (chunks, files, from, to) = (whole(0)?, whole(1)?, real(2)?, real(3)?);
            let count = batch.num_rows().min(rest.len());
            let (these, after) = std::mem::take(&mut rest).split_at_mut(count);
            for (row, entry) in these.iter_mut().enumerate() {
                let file = FileId { chunk: chunks[row], file: files[row] };
                let film = FilmPlace { file, from_secs: from[row], to_secs: to[row] };
                entry.films.insert(key.to_owned(), film);
            }
            rest = after;
        }
    }
    Ok(())
}

/// The statistics of one feature over all episodes of a dataset that vela wrote.
pub(crate) fn read_stats(layout: &Layout, feature: &str) -> Result<FeatureStats> {
    let mut merged = FeatureStats::default();
    for file in layout.episode_files() {
        let path = &layout.episodes(file);
        let names: Vec<String> =
            NAMES.iter().chain(&["count"]).map(|name| format!("stats/{feature}/{name}")).collect();
        let batch = table::read(path, &names.iter().map(String::as_str).collect::<Vec<_>>(), None)?;
        for row in 0..batch.num_rows() {
            let get = |name: &str| -> Result<Vec<f64>> {
                let column = format!("stats/{feature}/{name}");
                table::flatten(&table::column(&batch, &column, path)?.slice(row, 1), &column, path)
            };
            let count = get("count")?.first().copied().unwrap_or_default() as u64;
            merged.merge(&FeatureStats::from_named(count, get)?)?;
        }
    }
    Ok(merged)
}

/// The tasks of a dataset, by their index.
pub(crate) fn read_tasks(layout: &Layout) -> Result<Vec<Arc<str>>> {
    let path = &layout.meta("tasks.parquet");
    // pandas calls an index without a name `__index_level_0__`.
    let names = table::columns(path)?;
    let name =
        if names.iter().any(|name| name == "__index_level_0__") { "__index_level_0__" } else { "task" };
    let batch = table::read(path, &["task_index", name], None)?;
    let indices = table::integers(&batch, "task_index", path)?;
    let texts = strings(table::column(&batch, name, path)?, name, path)?;
    let mut tasks: Vec<Arc<str>> = vec!["".into(); texts.len()];
    for (index, text) in indices.into_iter().zip(texts) {
        let count = tasks.len();
        let slot = usize::try_from(index).ok().and_then(|k| tasks.get_mut(k));
        *slot
            .ok_or_else(|| refuse(path, format!("task_index: expected 0 to {}, got {index}", count - 1)))? =
            text.into();
    }
    Ok(tasks)
}

/// Writes `tasks.parquet` the way pandas does, with `task` as the index: LeRobot looks tasks up by it.
pub(crate) fn write_tasks(layout: &Layout, tasks: &[String]) -> Result<()> {
    let indices: ArrayRef = Arc::new(Int64Array::from_iter_values(0..tasks.len() as i64));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(tasks));
    let batch = batch_of(vec![("task_index".into(), indices), ("task".into(), texts)])?;
    let column = |name: &str, pandas: &str, numpy: &str| {
        serde_json::json!({
            "name": name, "field_name": name, "pandas_type": pandas, "numpy_type": numpy, "metadata": null
        })
    };
    let pandas = serde_json::json!({
        "index_columns": ["task"],
        "column_indexes": [{
            "name": null, "field_name": null, "pandas_type": "unicode", "numpy_type": "object",
            "metadata": { "encoding": "UTF-8" }
        }],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "attributes": {},
        "creator": { "library": "vela", "version": env!("CARGO_PKG_VERSION") },
        "pandas_version": "2.2.0"
    });
    let notes = HashMap::from([("pandas".to_owned(), pandas.to_string())]);
    let schema = batch.schema().as_ref().clone().with_metadata(notes);
    let path = layout.meta("tasks.parquet");
    let batch = batch.with_schema(Arc::new(schema)).map_err(|e| refuse(&path, e.to_string()))?;
    table::append(&path, 0, &batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// pandas must find `task` as the index: LeRobot looks tasks up by it. Seen to fail in pandas 3.1 when the note
    /// was in the file's metadata alone.
    #[test]
    fn the_tasks_table_tells_pandas_its_index_in_both_places() -> Result<()> {
        let root = std::env::temp_dir().join(format!("vela-tasks-{}", std::process::id()));
        let layout = Layout::new(&root, crate::layout::Version::V30);
        write_tasks(&layout, &["touch the red cube".to_owned(), "pick".to_owned()])?;
        let path = layout.meta("tasks.parquet");
        let (schema, in_file) = table::notes(&path, "pandas")?;
        let tasks = read_tasks(&layout)?;
        std::fs::remove_dir_all(&root).map_err(crate::layout::io(&root))?;
        assert_eq!(tasks.iter().map(|task| &**task).collect::<Vec<_>>(), ["touch the red cube", "pick"]);
        assert!(schema.is_some_and(|note| note.contains("\"index_columns\":[\"task\"]")));
        assert!(in_file.is_some());
        Ok(())
    }
}
