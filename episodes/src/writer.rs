//! Writing a dataset: episodes are committed whole, so that a kill loses at most the one that is being recorded.
//!
//! The row of `meta/episodes` is the commit: what stands in `data/` beyond it is cut off when the dataset is
//! opened again, and totals and statistics are made from it. Every file is written beside its place and moved there.

use crate::layout::{ACTION, FileId, IMAGES, Info, Layout, STATE, io, read_json, refuse, write_json};
use crate::picture::PictureFormat;
use crate::rows::{Pending, Place};
use crate::stats::FeatureStats;
use crate::{EpisodeEntry, meta, table};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use vela_embodiment::{Action, Embodiment, Error, Observation, Result};

/// A data file is not appended to beyond this size: each commit copies the file.
const DATA_FILE_BYTES: u64 = 32 << 20;
/// Nor a file of the episodes' table beyond this number of rows.
const EPISODES_PER_FILE: usize = 128;

/// Appends episodes to a LeRobot v3.0 dataset in image mode.
#[derive(Debug)]
pub struct DatasetWriter {
    layout: Layout,
    embodiment: Embodiment,
    fps: u32,
    format: PictureFormat,
    info: Info,
    tasks: Vec<String>,
    episodes: usize,
    frames: usize,
    last: Option<EpisodeEntry>,
    rows_in_data_file: usize,
    rows_in_meta_file: usize,
    stats: BTreeMap<String, FeatureStats>,
    pending: Pending,
    /// Held as long as the writer lives; the system frees it when the process dies.
    _lock: File,
}

impl DatasetWriter {
    /// Starts a dataset in `folder`, or continues the one that is there. `fps` is the rate at which frames will
    /// be added, normally the embodiment's control rate.
    ///
    /// # Errors
    /// The dataset there was recorded with another robot or rate (every difference is named), is torn, is not
    /// ours, or is being written by another process.
    pub fn create(folder: &Path, embodiment: &Embodiment, fps: u32) -> Result<Self> {
        let layout = Layout::new(folder);
        if fps == 0 || embodiment.joints.is_empty() {
            return Err(Error::Shape {
                what: format!("dataset for robot '{}'", embodiment.name),
                expected: "at least one joint and one frame per second".into(),
                got: format!("{} joints, {fps} frames per second", embodiment.joints.len()),
            });
        }
        let lock = lock(&layout)?;
        let mut writer = Self {
            embodiment: embodiment.clone(),
            fps,
            format: PictureFormat::default(),
            info: Info::new(embodiment, fps),
            tasks: Vec::new(),
            episodes: 0,
            frames: 0,
            last: None,
            rows_in_data_file: 0,
            rows_in_meta_file: 0,
            stats: BTreeMap::new(),
            pending: Pending::new(embodiment.cameras.len()),
            layout,
            _lock: lock,
        };
        if writer.layout.meta("info.json").exists() {
            writer.resume()?;
        } else {
            write_json(&writer.layout.meta("embodiment.json"), embodiment)?;
        }
        writer.write_totals()?;
        Ok(writer)
    }

    /// Stores the pictures to come in another format; PNG unless this is called.
    pub fn with_pictures(mut self, format: PictureFormat) -> Self {
        self.format = format;
        self
    }

    /// Number of committed episodes.
    pub fn episodes(&self) -> usize {
        self.episodes
    }

    /// Number of frames of the committed episodes.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Frames of the episode that is being recorded.
    pub fn pending_frames(&self) -> usize {
        self.pending.len()
    }

    /// Adds a frame to the episode that is being recorded: what was seen, and the joint targets (rad or m) that
    /// answered it. Numbers are kept in 32 bits.
    ///
    /// # Errors
    /// The observation does not fit the embodiment, or the action has the wrong length or is not finite.
    pub fn add_frame(&mut self, observation: &Observation, action: &Action) -> Result<()> {
        observation.check(&self.embodiment)?;
        let targets = &action.joint_targets;
        if targets.len() != self.embodiment.joints.len() {
            return Err(Error::Shape {
                what: "recorded action".into(),
                expected: format!("{} joint targets", self.embodiment.joints.len()),
                got: targets.len().to_string(),
            });
        }
        if targets.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite("recorded action".into()));
        }
        self.pending.push(observation, targets, &self.embodiment.cameras, self.format)
    }

    /// Commits the episode: after this returns, a kill cannot lose it. `extra` is kept as JSON beside it (task,
    /// seed, outcome, ...). Returns its number.
    ///
    /// # Errors
    /// The episode has no frame, or a file cannot be written; the frames are kept, so that it can be tried again.
    pub fn end_episode(&mut self, task: &str, extra: serde_json::Value) -> Result<usize> {
        if self.pending.len() == 0 {
            return Err(Error::Shape {
                what: format!("episode {}", self.episodes),
                expected: "at least one frame".into(),
                got: "none".into(),
            });
        }
        let task_index = self.task_index(task)?;
        let place =
            Place { episode: self.episodes, first_index: self.frames, task: task_index, fps: self.fps };
        let (data_file, kept_rows) = self.data_target()?;
        let cameras = &self.embodiment.cameras;
        let rows = self.pending.batch(cameras, &place, self.format.extension())?;
        let data_path = self.layout.data(data_file);
        let groups = table::groups_of_rows(&data_path, kept_rows)?;
        table::append(&data_path, groups, &rows)?;

        let (meta_file, kept_entries) = self.meta_target();
        let entry = EpisodeEntry {
            index: self.episodes,
            task: task.to_owned(),
            length: self.pending.len(),
            extra,
            first_index: self.frames,
            data_file,
            meta_file,
        };
        let stats = self.pending.stats(cameras, &place);
        let meta_path = self.layout.episodes(meta_file);
        let groups = table::groups_of_rows(&meta_path, kept_entries)?;
        table::append(&meta_path, groups, &meta::episode_batch(&entry, &stats)?)?;

        // Committed. What follows can be made again from the tables.
        self.rows_in_data_file = kept_rows + entry.length;
        self.rows_in_meta_file = kept_entries + 1;
        self.episodes += 1;
        self.frames += entry.length;
        self.last = Some(entry);
        self.pending = Pending::new(self.embodiment.cameras.len());
        for (feature, episode) in stats {
            self.stats.entry(feature).or_default().merge(&episode)?;
        }
        self.write_totals()?;
        Ok(self.episodes - 1)
    }

    /// Forgets the frames of the episode that is being recorded.
    pub fn discard_episode(&mut self) {
        self.pending = Pending::new(self.embodiment.cameras.len());
    }

    /// The task's number; a new task is written down before any episode uses it.
    fn task_index(&mut self, task: &str) -> Result<usize> {
        if let Some(index) = self.tasks.iter().position(|known| known == task) {
            return Ok(index);
        }
        self.tasks.push(task.to_owned());
        let written = meta::write_tasks(&self.layout, &self.tasks);
        if written.is_err() {
            self.tasks.pop();
        }
        written.map(|()| self.tasks.len() - 1)
    }

    /// The file for the next episode's frames, and how many committed rows it has.
    fn data_target(&self) -> Result<(FileId, usize)> {
        let Some(last) = &self.last else { return Ok((FileId::default(), 0)) };
        let path = self.layout.data(last.data_file);
        let bytes = std::fs::metadata(&path).map_err(io(&path))?.len();
        if bytes >= DATA_FILE_BYTES {
            return Ok((last.data_file.next(), 0));
        }
        Ok((last.data_file, self.rows_in_data_file))
    }

    /// The file for the next episode's row, and how many rows it has.
    fn meta_target(&self) -> (FileId, usize) {
        match &self.last {
            None => (FileId::default(), 0),
            Some(last) if self.rows_in_meta_file >= EPISODES_PER_FILE => (last.meta_file.next(), 0),
            Some(last) => (last.meta_file, self.rows_in_meta_file),
        }
    }

    /// Takes up the dataset that is there.
    fn resume(&mut self) -> Result<()> {
        let found = Info::load(&self.layout)?;
        let path = self.layout.meta("embodiment.json");
        if !path.exists() {
            return Err(refuse(&path, "missing: only datasets that vela began are continued"));
        }
        let theirs: Embodiment = read_json(&path)?;
        self.embodiment.require_same(&theirs)?;
        theirs.require_same(&self.embodiment)?;
        if found.fps() != f64::from(self.fps) {
            return Err(Error::Mismatch(vec![format!(
                "{} frames per second against {} in {}",
                self.fps,
                found.fps(),
                self.layout.root().display()
            )]));
        }
        let entries = meta::read_episodes(&self.layout)?;
        if entries.is_empty() {
            return Ok(());
        }
        self.tasks = meta::read_tasks(&self.layout)?.iter().map(|task| task.to_string()).collect();
        self.episodes = entries.len();
        self.frames = entries.iter().map(|entry| entry.length).sum();
        if let Some(last) = entries.last() {
            let in_data = entries.iter().filter(|entry| entry.data_file == last.data_file);
            self.rows_in_data_file = in_data.map(|entry| entry.length).sum();
            self.rows_in_meta_file = entries.iter().filter(|entry| entry.meta_file == last.meta_file).count();
            // A torn file is refused now rather than after the next episode has been recorded.
            table::groups_of_rows(&self.layout.data(last.data_file), self.rows_in_data_file)?;
            table::groups_of_rows(&self.layout.episodes(last.meta_file), self.rows_in_meta_file)?;
        }
        self.last = entries.last().cloned();
        for feature in self.info.features.keys() {
            self.stats.insert(feature.clone(), meta::read_stats(&self.layout, feature)?);
        }
        Ok(())
    }

    /// `info.json` and `stats.json`, from what is committed.
    fn write_totals(&mut self) -> Result<()> {
        self.info.total_episodes = self.episodes;
        self.info.total_frames = self.frames;
        self.info.total_tasks = self.tasks.len();
        self.info.splits = BTreeMap::from([("train".to_owned(), format!("0:{}", self.episodes))]);
        let stats: serde_json::Map<String, serde_json::Value> = self
            .stats
            .iter()
            .map(|(feature, stats)| (feature.clone(), stats.to_json(feature.starts_with(IMAGES))))
            .collect();
        write_json(&self.layout.meta("stats.json"), &stats)?;
        write_json(&self.layout.meta("info.json"), &self.info)
    }

    /// Mean and deviation of states and actions so far, or `None` before the first episode.
    pub fn stats(&self) -> Option<(&FeatureStats, &FeatureStats)> {
        Some((self.stats.get(STATE)?, self.stats.get(ACTION)?))
    }
}

/// Two writers of one dataset would undo each other's commits.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.meta(".lock");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let file = File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(refuse(layout.root(), "this dataset is being written by another process"))
        }
        Err(std::fs::TryLockError::Error(source)) => Err(io(&path)(source)),
    }
}
