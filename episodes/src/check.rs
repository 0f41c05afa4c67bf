//! What is wrong with a dataset, all of it, and the repair of what a kill leaves.

use crate::columns::{count_pictures, read_vectors};
use crate::info::{ACTION, STATE};
use crate::layout::{Version, io};
use crate::stats::{FeatureStats, PictureCounts};
use crate::store::Store;
use crate::{Dataset, DatasetWriter, table};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vela_embodiment::Result;

/// How far a timestamp may be from its frame's number over the rate, s: LeRobot's own tolerance.
const TIME_TOLERANCE_SECS: f64 = 1e-4;

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Episodes.
    pub episodes: usize,
    /// Their frames.
    pub frames: usize,
    /// One sentence each; empty when all is well.
    pub problems: Vec<String>,
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Frames of an interrupted episode that are an episode now.
    pub recovered_frames: usize,
    /// Rows that no episode claimed and that were cut off.
    pub cut_rows: usize,
    /// Half-written files, and videos of no episode, that were removed.
    pub removed_files: usize,
}

/// Reads every row and decodes every picture. `watch` is called after each episode.
///
/// # Errors
/// The dataset cannot be opened at all.
pub fn check(dataset: &Dataset, watch: &mut dyn FnMut()) -> Result<Findings> {
    let mut found =
        Findings { episodes: dataset.len(), frames: dataset.total_frames(), problems: Vec::new() };
    let problems = &mut found.problems;
    if dataset.has_leftover() {
        problems
            .push("a recording was killed: its frames wait in meta/.pending (repair brings them in)".into());
    }
    for path in half_written(dataset.folder())? {
        problems.push(format!("{}: half-written file of a killed process", path.display()));
    }
    for path in leftover_films(dataset) {
        problems.push(format!("{}: a video of no episode", path.display()));
    }
    match dataset.rulings() {
        Err(error) => problems.push(error.to_string()),
        Ok(rulings) => {
            for (episode, frames) in rulings {
                let length = dataset.entries()[episode].length;
                if let Some(frame) = frames.into_keys().find(|frame| *frame >= length) {
                    problems.push(format!(
                        "meta/vela_verdicts.jsonl: frame {frame} of episode {episode}, which has {length}"
                    ));
                }
            }
        }
    }
    let info = dataset.info();
    let claimed = [
        ("total_episodes", info.total_episodes, dataset.len()),
        ("total_frames", info.total_frames, dataset.total_frames()),
        ("total_tasks", info.total_tasks, dataset.tasks().len()),
    ];
    for (name, says, is) in claimed {
        if says != is {
            problems.push(format!("meta/info.json: {name} is {says}, but there are {is}"));
        }
    }
    let mut rows_in_files: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut seen: BTreeMap<&str, FeatureStats> = BTreeMap::new();
    for entry in dataset.entries() {
        *rows_in_files.entry(dataset.layout().data(entry.data_file)).or_default() += entry.length;
        if let Err(error) = check_episode(dataset, entry.index, &mut seen, problems) {
            problems.push(format!("episode {}: {error}", entry.index));
        }
        watch();
    }
    for (path, claimed) in rows_in_files {
        match table::rows(&path) {
            Ok(rows) if rows != claimed => problems
                .push(format!("{}: {rows} rows, but the episodes there have {claimed}", path.display())),
            // A torn file has been reported with its episodes.
            _ => {}
        }
    }
    if dataset.version() == Version::V30 && !dataset.is_empty() {
        check_stats(dataset, &seen, problems);
    }
    Ok(found)
}

fn check_episode<'a>(
    dataset: &'a Dataset,
    index: usize,
    seen: &mut BTreeMap<&'a str, FeatureStats>,
    problems: &mut Vec<String>,
) -> Result<()> {
    let features = &dataset.info().features;
    let stored = features.iter().filter(|(_, feature)| !feature.is_video());
    let keys: Vec<&str> = stored.clone().map(|(key, _)| key.as_str()).collect();
    let (rows, path) = dataset.rows(index, &keys)?;
    let first = dataset.entries()[index].first_index;
    for (name, from) in [("frame_index", 0), ("index", first)] {
        let numbers = table::integers(&rows, name, &path)?;
        if let Some(k) = (0..numbers.len()).find(|k| numbers[*k] != (from + k) as i64) {
            problems.push(format!(
                "episode {index}: {name} of frame {k} is {}, not {}",
                numbers[k],
                from + k
            ));
        }
    }
    for (k, secs) in read_vectors(&rows, "timestamp", 1, &path)?.iter().enumerate() {
        let expected = k as f64 / dataset.fps();
        if (secs[0] - expected).abs() > TIME_TOLERANCE_SECS {
            problems.push(format!("episode {index}: frame {k} is at {} s, not {expected:.4} s", secs[0]));
            break;
        }
    }
    for number in table::integers(&rows, "task_index", &path)? {
        dataset.task(number, &path)?;
    }
    for key in dataset.info().videos() {
        let (pictures, camera) = (dataset.film(index, key)?, dataset.camera(key)?);
        for frame in 0..rows.num_rows() {
            pictures.rgb(frame, &camera, &format!("'{key}', frame {frame}"))?;
        }
    }
    for (key, feature) in stored {
        if feature.is_picture() {
            count_pictures(&rows, key, feature, &path, &mut PictureCounts::new())?;
        } else if feature.is_numeric() {
            let numbers = read_vectors(&rows, key, feature.width(), &path)?;
            if let Some(k) = numbers.iter().position(|row| row.iter().any(|x| !x.is_finite())) {
                problems.push(format!("episode {index}: '{key}' of frame {k} is not finite"));
            }
            if key == STATE || key == ACTION {
                seen.entry(key).or_default().merge(&FeatureStats::of_rows(&numbers))?;
            }
        }
    }
    Ok(())
}

/// `meta/stats.json` against the frames.
fn check_stats(dataset: &Dataset, seen: &BTreeMap<&str, FeatureStats>, problems: &mut Vec<String>) {
    let stats = match dataset.stats() {
        Ok(stats) => stats,
        Err(error) => return problems.push(error.to_string()),
    };
    for (key, own) in seen {
        for (name, values) in own.named().into_iter().take(4) {
            let said: Option<Vec<f64>> =
                stats[*key][name].as_array().map(|list| list.iter().filter_map(|x| x.as_f64()).collect());
            let near = |a: &f64, b: &f64| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
            let agrees = said.as_ref().is_some_and(|said| {
                said.len() == values.len() && said.iter().zip(values).all(|(a, b)| near(a, b))
            });
            if !agrees {
                let said = said.unwrap_or_default();
                problems.push(format!(
                    "meta/stats.json: {name} of '{key}' is {said:?}, the frames have {values:?}"
                ));
            }
        }
    }
}

/// Video files behind the last that belong to an episode.
fn leftover_films(dataset: &Dataset) -> Vec<PathBuf> {
    if dataset.version() != Version::V30 {
        return Vec::new();
    }
    let next = |key: &str| {
        let files = dataset.entries().iter().filter_map(|entry| entry.films.get(key));
        files.map(|film| film.file.next()).max().unwrap_or_default()
    };
    let keys = dataset.info().videos();
    let paths = keys.into_iter().map(|key| dataset.layout().video(key, next(key)));
    paths.filter(|path| path.exists()).collect()
}

/// Files that a killed process had not finished.
fn half_written(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for part in ["meta", "data", "videos"] {
        let part = folder.join(part);
        if part.is_dir() {
            search(&part, &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn search(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if path.is_dir() {
            search(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "new") {
            found.push(path);
        }
    }
    Ok(())
}

/// Mends what a kill leaves in a v3.0 dataset: an interrupted episode is brought in, rows beyond the last commit are
/// cut off, half-written files go, totals and statistics are made again from the tables. Nothing that was recorded is
/// lost.
///
/// # Errors
/// The dataset is not v3.0, is torn beyond this, or is being written by another process.
pub fn repair(folder: &Path) -> Result<Repaired> {
    let mut done = Repaired::default();
    let ours = folder.join("meta/embodiment.json").exists();
    let (mut writer, mut foreign);
    let store = if ours {
        writer = DatasetWriter::repair(folder)?;
        done.recovered_frames = writer.recovered_frames();
        writer.store_mut()
    } else {
        foreign = Store::resume(folder)?;
        &mut foreign
    };
    done.cut_rows = store.cut_leftovers()?;
    done.removed_files = store.remove_leftover_films()?;
    for path in half_written(folder)? {
        std::fs::remove_file(&path).map_err(io(&path))?;
        done.removed_files += 1;
    }
    store.write_totals()?;
    Ok(done)
}

/// The statistics of every column over all frames, quantiles exact (those of `meta/stats.json` are, as LeRobot's, means
/// of the episodes'). Pictures are decoded. `watch` is called after each episode.
///
/// # Errors
/// An episode is torn or a picture cannot be decoded.
pub fn exact_stats(dataset: &Dataset, watch: &mut dyn FnMut()) -> Result<Vec<(String, FeatureStats)>> {
    let features: Vec<_> = dataset.info().features.iter().collect();
    let stored = features.iter().filter(|(_, feature)| !feature.is_video());
    let keys: Vec<&str> = stored.map(|(key, _)| key.as_str()).collect();
    let mut numbers: Vec<Vec<Vec<f64>>> = vec![Vec::new(); features.len()];
    let mut counts = vec![PictureCounts::new(); features.len()];
    for index in 0..dataset.len() {
        let (rows, path) = dataset.rows(index, &keys)?;
        for (k, (key, feature)) in features.iter().enumerate() {
            if feature.is_video() {
                let (pictures, camera) = (dataset.film(index, key)?, dataset.camera(key)?);
                for frame in 0..rows.num_rows() {
                    let what = format!("episode {index}, '{key}', frame {frame}");
                    counts[k].add(&pictures.rgb(frame, &camera, &what)?);
                }
            } else if feature.is_picture() {
                count_pictures(&rows, key, feature, &path, &mut counts[k])?;
            } else if feature.is_numeric() {
                numbers[k].extend(read_vectors(&rows, key, feature.width(), &path)?);
            }
        }
        watch();
    }
    let all =
        features.iter().zip(numbers).zip(counts).filter(|(((_, f), _), _)| f.is_picture() || f.is_numeric());
    Ok(all
        .map(|(((key, feature), numbers), counts)| {
            let stats = if feature.is_picture() { counts.stats() } else { FeatureStats::of_rows(&numbers) };
            ((*key).clone(), stats)
        })
        .collect())
}
