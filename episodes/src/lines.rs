//! The tables of v2.1: `meta/episodes.jsonl` and `meta/tasks.jsonl`, one JSON object a line.

use crate::EpisodeEntry;
use crate::info::Info;
use crate::layout::{FileId, Layout, io, refuse};
use crate::meta::FilmPlace;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::Result;

#[derive(Deserialize)]
struct EpisodeLine {
    episode_index: usize,
    tasks: Vec<String>,
    length: usize,
}

#[derive(Deserialize)]
struct TaskLine {
    task_index: usize,
    task: String,
}

fn lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    let filled = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(k, line)| serde_json::from_str(line).map_err(|e| refuse(path, format!("line {}: {e}", k + 1))))
        .collect()
}

/// Every episode, in order.
///
/// # Errors
/// The table is not JSON lines, or the episodes do not follow one another.
pub(crate) fn read_episodes(layout: &Layout, info: &Info) -> Result<Vec<EpisodeEntry>> {
    let path = &layout.meta("episodes.jsonl");
    let mut found: Vec<EpisodeLine> = lines(path)?;
    found.sort_by_key(|line| line.episode_index);
    let mut first_index = 0usize;
    let mut entries = Vec::with_capacity(found.len());
    for (k, line) in found.into_iter().enumerate() {
        if line.episode_index != k {
            return Err(refuse(path, format!("expected episode {k}, got {}", line.episode_index)));
        }
        let file = FileId { chunk: k as i64 / info.chunks_size, file: k as i64 };
        entries.push(EpisodeEntry {
            index: k,
            tasks: line.tasks,
            length: line.length,
            extra: serde_json::Value::Null,
            first_index,
            data_file: file,
            meta_file: FileId::default(),
            films: info
                .videos()
                .into_iter()
                .map(|key| {
                    let to_secs = line.length as f64 / info.fps();
                    (key.to_owned(), FilmPlace { file, from_secs: 0.0, to_secs })
                })
                .collect(),
        });
        first_index = first_index
            .checked_add(line.length)
            .ok_or_else(|| refuse(path, format!("episode {k}: length {} is too long", line.length)))?;
    }
    Ok(entries)
}

/// The tasks, by their index.
///
/// # Errors
/// The table is not JSON lines, or an index is missing.
pub(crate) fn read_tasks(layout: &Layout) -> Result<Vec<Arc<str>>> {
    let path = &layout.meta("tasks.jsonl");
    let mut found: Vec<TaskLine> = lines(path)?;
    found.sort_by_key(|line| line.task_index);
    match found.iter().enumerate().find(|(k, line)| line.task_index != *k) {
        Some((k, line)) => Err(refuse(path, format!("expected task_index {k}, got {}", line.task_index))),
        None => Ok(found.into_iter().map(|line| line.task.into()).collect()),
    }
}
