//! Episodes of one dataset or several, copied into a new one: conversion, merging and splitting are all this.

use crate::columns::{batch_of, canonical, picture_column, stats_of};
use crate::info::{Feature, Info};
use crate::layout::{FileId, io, refuse, write_whole};
use crate::meta::FilmPlace;
use crate::picture::{Coder, PictureFormat, unencoded};
use crate::rows::Pictures;
use crate::rulings::Rulings;
use crate::stats::{FeatureStats, PictureCounts};
use crate::store::{Said, Store};
use crate::video::av1;
use crate::{Dataset, table};
use arrow::array::{ArrayRef, Int64Array};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::{Camera, Embodiment, Error, Result};

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Episodes.
    pub episodes: usize,
    /// Their frames.
    pub frames: usize,
}

/// Copies episodes, in the order in which they are named, into a new v3.0 dataset in `out`: every column, statistics
/// made from the frames; vela's description of the robot where all have it; the gate's rulings under their episodes' new
/// numbers. Pictures and video files are copied
/// untouched, or coded anew when `pictures` says how. `watch` is called after each episode.
///
/// # Errors
/// The datasets differ in robot, rate or columns (every difference is named), an episode is not there or torn, a
/// column's form cannot be written, pictures cannot be stored as asked, or there is a dataset in `out` already.
pub fn copy(
    sources: &[(&Dataset, Vec<usize>)],
    out: &Path,
    pictures: Option<PictureFormat>,
    watch: &mut dyn FnMut(),
) -> Result<Copied> {
    let Some((first, _)) = sources.first() else {
        return Err(refuse(out, "expected at least one dataset to copy from, got none"));
    };
    let differences: Vec<String> =
        sources[1..].iter().flat_map(|(other, _)| differences(first, other)).collect();
    if !differences.is_empty() {
        return Err(Error::Mismatch(differences));
    }
    let info = first.info();
    let mut features = info.features.clone();
    if let Some(format) = pictures {
        format.check(first.cameras())?;
        for (key, Camera { width, height, .. }) in info.cameras()? {
            features.insert(key, Feature::pictures(width, height, info.fps(), format));
        }
    }
    let info = Info::new(info.robot_type.clone(), info.fps.clone(), features);
    let robots: Option<Vec<&Embodiment>> = sources.iter().map(|(dataset, _)| dataset.embodiment()).collect();
    let robot = robots.and_then(|robots| robots.first().copied());
    let mut store = Store::begin(out, info, robot)?;
    let mut films = Films::default();
    for (dataset, episodes) in sources {
        let rulings = dataset.rulings()?;
        for index in episodes {
            let rulings = rulings.get(index).cloned().unwrap_or_default();
            copy_episode(dataset, *index, &mut store, &mut films, pictures, rulings)?;
            watch();
        }
    }
    Ok(Copied { episodes: store.episodes(), frames: store.frames() })
}

fn copy_episode(
    dataset: &Dataset,
    index: usize,
    store: &mut Store,
    copied: &mut Films,
    pictures: Option<PictureFormat>,
    rulings: Rulings,
) -> Result<()> {
    let stored = dataset.info().features.iter().filter(|(_, feature)| !feature.is_video());
    let keys: Vec<String> = stored.map(|(key, _)| key.clone()).collect();
    let (rows, path) = dataset.rows(index, &keys.iter().map(String::as_str).collect::<Vec<_>>())?;
    // The sentences of this episode in the order in which they are used.
    let (mut tasks, mut used) = (Vec::<String>::new(), Vec::with_capacity(rows.num_rows()));
    for number in table::integers(&rows, "task_index", &path)? {
        let task = dataset.task(number, &path)?;
        used.push(tasks.iter().position(|known| **known == **task).unwrap_or_else(|| {
            tasks.push(task.to_string());
            tasks.len() - 1
        }));
    }
    let place = store.place(&tasks)?;
    let mut columns: Vec<(String, ArrayRef)> = Vec::with_capacity(keys.len());
    for key in keys {
        let whole = |values: &mut dyn Iterator<Item = usize>| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(values.map(|value| value as i64)))
        };
        let n = rows.num_rows();
        let column = match key.as_str() {
            "episode_index" => whole(&mut (0..n).map(|_| place.episode)),
            "index" => whole(&mut (0..n).map(|k| place.first_index + k)),
            "task_index" => whole(&mut used.iter().map(|task| place.tasks[*task])),
            _ => {
                let array = table::column(&rows, &key, &path)?;
                match store.info().features.get(&key) {
                    Some(feature) if !(pictures.is_some() && feature.is_picture()) => {
                        canonical(&key, feature, array, &path)?
                    }
                    _ => continue,
                }
            }
        };
        columns.push((key, column));
    }
    let entry = &dataset.entries()[index];
    let mut said = Said { tasks, extra: entry.extra.clone(), films: BTreeMap::new(), rulings };
    let mut seen = BTreeMap::new();
    if let Some(format) = pictures {
        for (key, camera) in dataset.info().cameras()? {
            let shown = dataset.pictures(index, &key, &rows, &path)?;
            let what = format!("episode {index}, '{key}'");
            let (coded, stats) = recode(&shown, rows.num_rows(), dataset.fps(), &camera, format, &what)?;
            let coded: Vec<&[u8]> = coded.iter().map(Vec::as_slice).collect();
            if format.is_video() {
                said.films.insert(key.clone(), store.write_film(&key, &camera, format, &coded)?);
            } else {
                columns.push((key.clone(), picture_column(&coded, format.extension())));
            }
            seen.insert(key, stats);
        }
    }
    let rows = batch_of(columns)?;
    for (key, film) in entry.films.iter().filter(|_| pictures.is_none()) {
        let file = copied.take(dataset, key, film.file, store)?;
        said.films.insert(key.clone(), FilmPlace { file, ..*film });
        seen.insert(key.clone(), film_stats(dataset, index, key)?);
    }
    let stats = stats_of(&rows, store.info(), &seen, &path)?;
    store.commit(&rows, said, stats).map(|_| ())
}

/// All pictures of a camera in an episode, coded anew, and their statistics.
fn recode(
    shown: &Pictures,
    frames: usize,
    fps: f64,
    camera: &Camera,
    format: PictureFormat,
    what: &str,
) -> Result<(Vec<Vec<u8>>, FeatureStats)> {
    let mut counts = PictureCounts::new();
    let mut pictures = (0..frames).map(|frame| {
        let rgb = shown.rgb(frame, camera, &format!("{what}, frame {frame}"))?;
        counts.add(&rgb);
        Ok(rgb)
    });
    let coded = match format {
        PictureFormat::Av1 { crf } => {
            let wrong = |why| unencoded(&camera.name, why);
            let mut coder = av1::Encoder::new(crf, fps, camera.width, camera.height).map_err(wrong)?;
            pictures.try_for_each(|rgb| coder.push(&rgb?).map_err(wrong))?;
            coder.finish().map_err(wrong)?
        }
        _ => {
            let mut coder = Coder::new(format, camera)?;
            pictures.map(|rgb| coder.encode(&rgb?, camera)).collect::<Result<_>>()?
        }
    };
    Ok((coded, counts.stats()))
}

/// The video files that have been copied: each whole, once, whichever of its episodes are wanted.
#[derive(Default)]
struct Films {
    copied: BTreeMap<(PathBuf, String), FileId>,
}

impl Films {
    /// The new number of a file of `dataset`.
    fn take(&mut self, dataset: &Dataset, key: &str, file: FileId, store: &Store) -> Result<FileId> {
        let from = dataset.layout().video(key, file);
        let known = (from.clone(), key.to_owned());
        if let Some(file) = self.copied.get(&known) {
            return Ok(*file);
        }
        let file = store.next_film(key);
        let target = store.layout().video(key, file);
        write_whole(&target, |new| {
            let mut old = std::fs::File::open(&from).map_err(io(&from))?;
            std::io::copy(&mut old, new).map(|_| ()).map_err(io(&target))
        })?;
        self.copied.insert(known, file);
        Ok(file)
    }
}

/// Pictures of an episode that its statistics are made from, evenly spread, as LeRobot samples them.
const SAMPLED: usize = 100;

/// The statistics of an episode's part of a video file.
fn film_stats(dataset: &Dataset, index: usize, key: &str) -> Result<FeatureStats> {
    let pictures = dataset.film(index, key)?;
    let camera = dataset.camera(key)?;
    let length = dataset.entries()[index].length;
    let mut counts = PictureCounts::new();
    for k in 0..length.min(SAMPLED) {
        let frame = k * length / length.min(SAMPLED);
        counts.add(&pictures.rgb(frame, &camera, &format!("episode {index}, '{key}', frame {frame}"))?);
    }
    Ok(counts.stats())
}

/// Why the frames of two datasets cannot stand in one.
fn differences(first: &Dataset, other: &Dataset) -> Vec<String> {
    let (a, b) = (first.info(), other.info());
    let place = other.folder().display();
    let mut found = Vec::new();
    if a.fps() != b.fps() {
        found.push(format!("{place}: {} frames per second against {}", b.fps(), a.fps()));
    }
    if a.robot_type != b.robot_type {
        let name = |robot: &Option<String>| robot.clone().unwrap_or_else(|| "nobody".into());
        found.push(format!("{place}: robot {} against {}", name(&b.robot_type), name(&a.robot_type)));
    }
    if let (Some(a), Some(b)) = (a.units(), b.units())
        && a != b
    {
        found.push(format!("{place}: joints in {b} against {a}"));
    }
    for (key, feature) in &a.features {
        match b.features.get(key) {
            None => found.push(format!("{place}: no column '{key}'")),
            Some(own)
                if (&own.dtype, &own.shape, &own.names)
                    != (&feature.dtype, &feature.shape, &feature.names) =>
            {
                let say = |f: &crate::info::Feature| format!("{} {:?} {}", f.dtype, f.shape, f.names);
                found.push(format!("{place}: column '{key}' is {} against {}", say(own), say(feature)));
            }
            Some(_) => {}
        }
    }
    let more = b.features.keys().filter(|key| !a.features.contains_key(*key));
    found.extend(more.map(|key| format!("{place}: column '{key}' is too many")));
    if let (Some(a), Some(b)) = (first.embodiment(), other.embodiment())
        && let Err(Error::Mismatch(more)) = a.require_same(b)
    {
        found.extend(more.into_iter().map(|difference| format!("{place}: {difference}")));
    }
    found
}
