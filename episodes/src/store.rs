//! The commit of an episode: its rows, its entry in the episodes' table, the totals.
//!
//! The row of `meta/episodes` is the commit: what stands in `data/` beyond it is cut off when the dataset is
//! opened again, and totals and statistics are made from it. Every file is written beside its place and moved there.

use crate::info::{Feature, Info};
use crate::layout::{FileId, Layout, Version, io, read_json, refuse, write_json};
use crate::meta::FilmPlace;
use crate::picture::PictureFormat;
use crate::rulings::{self, Rulings};
use crate::stats::FeatureStats;
use crate::video::mux;
use crate::{EpisodeEntry, meta, table};
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use vela_embodiment::{Camera, Embodiment, Error, Result};

/// A data file is not appended to beyond this size: each commit copies the file.
const DATA_FILE_BYTES: u64 = 32 << 20;
/// Nor a file of the episodes' table beyond this number of rows.
const EPISODES_PER_FILE: usize = 128;

/// A v3.0 dataset that episodes are committed to, held by this process alone.
#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    info: Info,
    embodiment: Option<Embodiment>,
    tasks: Vec<String>,
    episodes: usize,
    frames: usize,
    last: Option<EpisodeEntry>,
    rows_in_data_file: usize,
    rows_in_meta_file: usize,
    stats: BTreeMap<String, FeatureStats>,
    /// The next free video file of each column.
    next_films: BTreeMap<String, FileId>,
    /// Held as long as the store lives; the system frees it when the process dies.
    _lock: File,
}

/// An episode to commit: its number and its first frame's, and the numbers of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) episode: usize,
    pub(crate) first_index: usize,
    pub(crate) tasks: Vec<usize>,
}

/// What the episodes' table says of an episode besides its numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) tasks: Vec<String>,
    pub(crate) extra: serde_json::Value,
    /// Where it is in the video files, by the columns' names.
    pub(crate) films: BTreeMap<String, FilmPlace>,
    /// What the gate made of its frames; they have a file of their own.
    pub(crate) rulings: Rulings,
}

impl Store {
    /// Whether there is a dataset in `folder`.
    pub(crate) fn is_there(folder: &Path) -> bool {
        folder.join("meta/info.json").exists()
    }

    /// Begins a dataset in `folder`.
    ///
    /// # Errors
    /// One is there, or a file cannot be written.
    pub(crate) fn begin(folder: &Path, info: Info, embodiment: Option<&Embodiment>) -> Result<Self> {
        if Self::is_there(folder) {
            return Err(refuse(folder, "there is a dataset already: expected a new folder"));
        }
        let layout = Layout::new(folder, Version::V30);
        let mut store = Self::empty(layout, info)?;
        if let Some(embodiment) = embodiment {
            write_json(&store.layout.meta("embodiment.json"), embodiment)?;
        }
        store.embodiment = embodiment.cloned();
        store.write_totals()?;
        Ok(store)
    }

    /// Takes up the dataset that is in `folder`.
    ///
    /// # Errors
    /// It is not v3.0, is torn, or is being written by another process.
    pub(crate) fn resume(folder: &Path) -> Result<Self> {
        let (info, layout) = Info::load(folder)?;
        if layout.version() != Version::V30 {
            let got = layout.version().name();
            return Err(refuse(folder, format!("expected a dataset of v3.0 to write to, got {got}")));
        }
        let mut store = Self::empty(layout, info)?;
        let path = store.layout.meta("embodiment.json");
        store.embodiment = if path.exists() { Some(read_json(&path)?) } else { None };
        let entries = meta::read_episodes(&store.layout, &store.info)?;
        if let Some(last) = entries.last() {
            store.tasks = meta::read_tasks(&store.layout)?.iter().map(|task| task.to_string()).collect();
            store.episodes = entries.len();
            store.frames = last.first_index + last.length;
            let in_data = entries.iter().filter(|entry| entry.data_file == last.data_file);
            store.rows_in_data_file = in_data.map(|entry| entry.length).sum();
            store.rows_in_meta_file =
                entries.iter().filter(|entry| entry.meta_file == last.meta_file).count();
            // A torn file is refused now rather than after the next episode has been recorded.
            table::groups_of_rows(&store.layout.data(last.data_file), store.rows_in_data_file)?;
            table::groups_of_rows(&store.layout.episodes(last.meta_file), store.rows_in_meta_file)?;
            store.last = Some(last.clone());
            entries.iter().for_each(|entry| store.claim_films(entry));
            let counted = |feature: &Feature| feature.is_numeric() || feature.is_picture();
            for (key, _) in store.info.features.iter().filter(|(_, feature)| counted(feature)) {
                store.stats.insert(key.clone(), meta::read_stats(&store.layout, key)?);
            }
        }
        rulings::cut(&store.layout, store.episodes)?;
        Ok(store)
    }

    fn empty(layout: Layout, info: Info) -> Result<Self> {
        Ok(Self {
            _lock: lock(&layout)?,
            layout,
            info,
            embodiment: None,
            tasks: Vec::new(),
            episodes: 0,
            frames: 0,
            last: None,
            rows_in_data_file: 0,
            rows_in_meta_file: 0,
            stats: BTreeMap::new(),
            next_films: BTreeMap::new(),
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    pub(crate) fn embodiment(&self) -> Option<&Embodiment> {
        self.embodiment.as_ref()
    }

    /// Number of committed episodes.
    pub(crate) fn episodes(&self) -> usize {
        self.episodes
    }

    /// Number of frames of the committed episodes.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// The statistics of a feature over the committed episodes.
    pub(crate) fn stats(&self, feature: &str) -> Option<&FeatureStats> {
        self.stats.get(feature)
    }

    /// Where the next episode will stand. New tasks are written down before any episode uses them.
    pub(crate) fn place(&mut self, tasks: &[String]) -> Result<Place> {
        let before = self.tasks.len();
        let mut numbers = Vec::with_capacity(tasks.len());
        for task in tasks {
            numbers.push(self.tasks.iter().position(|known| known == task).unwrap_or_else(|| {
                self.tasks.push(task.clone());
                self.tasks.len() - 1
            }));
        }
        if self.tasks.len() > before
            && let Err(error) = meta::write_tasks(&self.layout, &self.tasks)
        {
            self.tasks.truncate(before);
            return Err(error);
        }
        Ok(Place { episode: self.episodes, first_index: self.frames, tasks: numbers })
    }

    /// Commits an episode: after this returns, a kill cannot lose it. Returns its number.
    ///
    /// # Errors
    /// A file cannot be written; nothing is committed then.
    pub(crate) fn commit(
        &mut self,
        rows: &RecordBatch,
        Said { tasks, extra, films, rulings }: Said,
        stats: Vec<(String, FeatureStats)>,
    ) -> Result<usize> {
        if rows.num_rows() == 0 {
            return Err(Error::Shape {
                what: format!("episode {}", self.episodes),
                expected: "at least one frame".into(),
                got: "none".into(),
            });
        }
        let (data_file, kept_rows) = self.data_target()?;
        let data_path = self.layout.data(data_file);
        let groups = table::groups_of_rows(&data_path, kept_rows)?;
        table::append(&data_path, groups, rows)?;

        let (meta_file, kept_entries) = self.meta_target();
        let entry = EpisodeEntry {
            index: self.episodes,
            tasks,
            length: rows.num_rows(),
            extra,
            first_index: self.frames,
            data_file,
            meta_file,
            films,
        };
        let meta_path = self.layout.episodes(meta_file);
        let groups = table::groups_of_rows(&meta_path, kept_entries)?;
        rulings::append(&self.layout, entry.index, &rulings)?;
        let row = meta::episode_batch(&entry, &stats, &self.info);
        if let Err(error) = row.and_then(|row| table::append(&meta_path, groups, &row)) {
            rulings::cut(&self.layout, self.episodes)?;
            return Err(error);
        }

        // Committed. What follows can be made again from the tables.
        self.rows_in_data_file = kept_rows + entry.length;
        self.rows_in_meta_file = kept_entries + 1;
        self.episodes += 1;
        self.frames += entry.length;
        self.claim_films(&entry);
        self.last = Some(entry);
        for (feature, episode) in stats {
            self.stats.entry(feature).or_default().merge(&episode)?;
        }
        self.write_totals()?;
        Ok(self.episodes - 1)
    }

    /// The next free video file of a column. One that is written there and whose episode is not committed is written
    /// over by the next.
    pub(crate) fn next_film(&self, key: &str) -> FileId {
        self.next_films.get(key).copied().unwrap_or_default()
    }

    /// Writes the next video file of a column: the coded pictures of one episode. It counts when the episode is
    /// committed with the place that this returns.
    pub(crate) fn write_film(
        &self,
        key: &str,
        camera: &Camera,
        format: PictureFormat,
        samples: &[&[u8]],
    ) -> Result<FilmPlace> {
        let (file, fps) = (self.next_film(key), self.info.fps());
        let path = self.layout.video(key, file);
        mux::write(&path, (camera.width, camera.height), fps, format, samples)?;
        Ok(FilmPlace { file, from_secs: 0.0, to_secs: samples.len() as f64 / fps })
    }

    fn claim_films(&mut self, entry: &EpisodeEntry) {
        for (key, film) in &entry.films {
            let next = self.next_films.entry(key.clone()).or_default();
            *next = (*next).max(film.file.next());
        }
    }

    /// Removes the video files that a killed writer left before its commit, and says how many they were.
    pub(crate) fn remove_leftover_films(&self) -> Result<usize> {
        let paths = self.info.videos().into_iter().map(|key| self.layout.video(key, self.next_film(key)));
        let left: Vec<_> = paths.filter(|path| path.exists()).collect();
        for path in &left {
            std::fs::remove_file(path).map_err(io(path))?;
        }
        Ok(left.len())
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

    /// Cuts off the rows that a killed writer left beyond the last commit, and says how many they were.
    pub(crate) fn cut_leftovers(&self) -> Result<usize> {
        let mut beyond = 0;
        let mut next = FileId::default();
        if let Some(last) = &self.last {
            let path = self.layout.data(last.data_file);
            beyond = table::rows(&path)?.saturating_sub(self.rows_in_data_file);
            if beyond > 0 {
                table::cut(&path, table::groups_of_rows(&path, self.rows_in_data_file)?)?;
            }
            next = last.data_file.next();
        }
        // A new file that was begun and never committed.
        let path = self.layout.data(next);
        if path.exists() {
            beyond += table::rows(&path)?;
            std::fs::remove_file(&path).map_err(io(&path))?;
        }
        Ok(beyond)
    }

    /// `info.json` and `stats.json`, from what is committed.
    pub(crate) fn write_totals(&mut self) -> Result<()> {
        self.info.total_episodes = self.episodes;
        self.info.total_frames = self.frames;
        self.info.total_tasks = self.tasks.len();
        self.info.splits = BTreeMap::from([("train".to_owned(), format!("0:{}", self.episodes))]);
        let is_picture = |key: &String| self.info.features.get(key).is_some_and(Feature::is_picture);
        let stats: serde_json::Map<String, serde_json::Value> = self
            .stats
            .iter()
            .map(|(feature, stats)| (feature.clone(), stats.to_json(is_picture(feature))))
            .collect();
        write_json(&self.layout.meta("stats.json"), &stats)?;
        write_json(&self.layout.meta("info.json"), &self.info)
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
