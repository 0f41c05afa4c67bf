//! Writing a dataset frame by frame: every frame is on disk when it has been added, every episode is committed whole.
//!
//! A kill at any moment loses nothing that was added: the episode that was being recorded is brought in, marked as
//! interrupted, when the dataset is taken up again. Video is coded once, picture by picture as it comes: the journal
//! holds the coded samples, and the commit only puts them into an mp4 file. Each episode has a file of its own for each
//! camera, which v3.0 allows: what is committed is never touched again, and no commit copies earlier videos.

use crate::columns::{batch_of, picture_column, rows_of, stats_of};
use crate::info::{ACTION, IMAGES, INTERVENTION, Info, SI_UNITS, STATE};
use crate::journal::{self, Ending, Entry, Journal, Leftover};
use crate::layout::{Layout, refuse};
use crate::meta::FilmPlace;
use crate::picture::{Coder, PictureFormat, decode_each};
use crate::rulings::{Ruling, Rulings};
use crate::stats::{FeatureStats, PictureCounts};
use crate::store::{Place, Said, Store};
use crate::writing::Step;
use arrow::array::{ArrayRef, BooleanArray, Float32Array, Int64Array, RecordBatch};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::{Action, Camera, Embodiment, Error, Observation, Result};

/// Appends episodes to a LeRobot v3.0 dataset, pictures inside parquet or in mp4 files.
#[derive(Debug)]
pub struct DatasetWriter {
    store: Store,
    embodiment: Embodiment,
    fps: u32,
    format: PictureFormat,
    /// One per camera while an episode is being recorded; made anew after a frame that could not be kept, because
    /// the next one must not build on it.
    coders: Vec<Coder>,
    pending: Pending,
    journal: Option<Journal>,
    recovered_frames: usize,
}

impl DatasetWriter {
    /// Starts a dataset in `folder`, or continues the one that is there. `fps` is the rate at which frames will
    /// be added, normally the embodiment's control rate. An episode whose recording was killed is brought in first:
    /// see [`DatasetWriter::recovered_frames`].
    ///
    /// # Errors
    /// The dataset there was recorded with another robot or rate (every difference is named), is torn, is not
    /// ours, or is being written by another process.
    pub fn create(folder: &Path, embodiment: &Embodiment, fps: u32) -> Result<Self> {
        Self::create_in(folder, embodiment, fps, None, SI_UNITS)
    }

    /// As [`DatasetWriter::create`], pictures to come stored like this. Without it they are PNG in a new dataset, and as
    /// they are there in one that is continued.
    ///
    /// # Errors
    /// As [`DatasetWriter::create`]; the dataset there has its pictures in parquet and these would be video, or the
    /// other way round; or a camera's size or the quality cannot be coded.
    pub fn create_with(
        folder: &Path,
        embodiment: &Embodiment,
        fps: u32,
        pictures: PictureFormat,
    ) -> Result<Self> {
        Self::create_in(folder, embodiment, fps, Some(pictures), SI_UNITS)
    }

    /// As [`DatasetWriter::create_with`], of joints that are said in other `units` than [`SI_UNITS`]: these words are put
    /// beside them, and the numbers are kept as they come.
    ///
    /// # Errors
    /// As [`DatasetWriter::create_with`]; or the joints of the dataset there are in other units.
    pub fn create_in(
        folder: &Path,
        embodiment: &Embodiment,
        fps: u32,
        pictures: Option<PictureFormat>,
        units: &str,
    ) -> Result<Self> {
        if fps == 0 || embodiment.joints.is_empty() {
            return Err(Error::Shape {
                what: format!("dataset for robot '{}'", embodiment.name),
                expected: "at least one joint and one frame per second".into(),
                got: format!("{} joints, {fps} frames per second", embodiment.joints.len()),
            });
        }
        let format = pictures.unwrap_or_default();
        format.check(&embodiment.cameras)?;
        format.require_live()?;
        if !Store::is_there(folder) {
            let info = Info::of_robot(embodiment, fps, format, units);
            let store = Store::begin(folder, info, Some(embodiment))?;
            return Ok(Self::over(store, embodiment.clone(), fps, format));
        }
        let mut writer = Self::resume(folder)?;
        embodiment.require_same(&writer.embodiment)?;
        writer.embodiment.require_same(embodiment)?;
        let place = folder.display();
        if writer.fps != fps {
            let why = format!("{fps} frames per second against {} in {place}", writer.fps);
            return Err(Error::Mismatch(vec![why]));
        }
        let own = writer.store.info().units().unwrap_or(SI_UNITS);
        if own != units {
            return Err(Error::Mismatch(vec![format!("joints in {units} against {own} in {place}")]));
        }
        if let Some(format) = pictures {
            if format.is_video() != writer.format.is_video() {
                let (new, old) = (format.extension(), writer.format.extension());
                return Err(Error::Mismatch(vec![format!("pictures as {new} against {old} in {place}")]));
            }
            writer.format = format;
        }
        writer.format.require_live()?;
        writer.recover()?;
        Ok(writer)
    }

    /// Takes up the dataset in `folder` for its own robot and rate, and brings in what a kill left.
    ///
    /// # Errors
    /// It is torn, is not ours, or is being written by another process.
    pub(crate) fn repair(folder: &Path) -> Result<Self> {
        let mut writer = Self::resume(folder)?;
        writer.recover()?;
        Ok(writer)
    }

    fn resume(folder: &Path) -> Result<Self> {
        let store = Store::resume(folder)?;
        let missing = || {
            let path = store.layout().meta("embodiment.json");
            refuse(&path, "missing: only datasets that vela began are continued")
        };
        let embodiment = store.embodiment().cloned().ok_or_else(missing)?;
        let fps = store.info().fps();
        if fps.fract() != 0.0 || fps > 10_000.0 {
            return Err(refuse(folder, format!("fps: expected a whole number, got {fps}")));
        }
        let format = store.info().picture_format()?;
        Ok(Self::over(store, embodiment, fps as u32, format))
    }

    fn over(store: Store, embodiment: Embodiment, fps: u32, format: PictureFormat) -> Self {
        Self {
            pending: Pending::new(embodiment.cameras.len()),
            store,
            embodiment,
            fps,
            format,
            coders: Vec::new(),
            journal: None,
            recovered_frames: 0,
        }
    }

    /// Number of committed episodes.
    pub fn episodes(&self) -> usize {
        self.store.episodes()
    }

    /// Number of frames of the committed episodes.
    pub fn frames(&self) -> usize {
        self.store.frames()
    }

    /// Frames per second.
    pub fn fps(&self) -> u32 {
        self.fps
    }

    /// Frames of the episode that is being recorded.
    pub fn pending_frames(&self) -> usize {
        self.pending.entries.len()
    }

    /// Frames of an interrupted episode that were found and committed when the dataset was taken up.
    pub fn recovered_frames(&self) -> usize {
        self.recovered_frames
    }

    pub(crate) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Adds a frame to the episode that is being recorded: what was seen, and the joint targets that answered
    /// it, both in the dataset's units (rad and m where none were named). Numbers are kept in 32 bits. When this returns, a kill cannot lose the frame.
    ///
    /// # Errors
    /// The observation does not fit the embodiment, the action has the wrong length or is not finite, or the disk is
    /// full; the frames before it are kept.
    pub fn add_frame(&mut self, observation: &Observation, action: &Action) -> Result<()> {
        self.add(observation, action, false, None)
    }

    /// Adds a frame whose action a person or an expert chose in the policy's place.
    ///
    /// # Errors
    /// As [`DatasetWriter::add_frame`]; or the dataset was begun without marks for such frames.
    pub fn add_intervention(&mut self, observation: &Observation, action: &Action) -> Result<()> {
        self.require_marks()?;
        self.add(observation, action, true, None)
    }

    /// Adds a frame with everything that is known of it.
    ///
    /// # Errors
    /// As [`DatasetWriter::add_frame`] and [`DatasetWriter::add_intervention`].
    pub fn add_step(&mut self, step: Step) -> Result<()> {
        let Step { observation, action, intervention, ruling } = step;
        if intervention {
            self.require_marks()?;
        }
        self.add(&observation, &action, intervention, ruling)
    }

    fn require_marks(&self) -> Result<()> {
        if self.store.info().features.contains_key(INTERVENTION) {
            return Ok(());
        }
        let why = format!("has no column '{INTERVENTION}': interventions need a new dataset");
        Err(refuse(self.store.layout().root(), why))
    }

    fn add(
        &mut self,
        observation: &Observation,
        action: &Action,
        intervention: bool,
        ruling: Option<Ruling>,
    ) -> Result<()> {
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
        let kept = self.keep(observation, action, intervention, ruling);
        if kept.is_err() {
            self.coders.clear();
        }
        kept
    }

    fn keep(
        &mut self,
        observation: &Observation,
        action: &Action,
        intervention: bool,
        ruling: Option<Ruling>,
    ) -> Result<()> {
        let cameras = &self.embodiment.cameras;
        let frame = |camera: &Camera| observation.frame(&camera.name).map(|frame| &*frame.rgb);
        let seen: Vec<(&Camera, &[u8])> =
            cameras.iter().filter_map(|camera| Some((camera, frame(camera)?))).collect();
        if self.coders.is_empty() {
            self.coders =
                cameras.iter().map(|camera| Coder::new(self.format, camera)).collect::<Result<_>>()?;
        }
        let coded = seen.iter().zip(&mut self.coders).map(|((camera, rgb), coder)| coder.encode(rgb, camera));
        let entry = Entry {
            instruction: observation.instruction.clone(),
            state: observation.joint_positions.iter().map(|x| *x as f32).collect(),
            action: action.joint_targets.iter().map(|x| *x as f32).collect(),
            intervention,
            pictures: coded.collect::<Result<_>>()?,
            ruling,
        };
        if self.journal.is_none() {
            let (layout, episode) = (self.store.layout(), self.store.episodes());
            self.journal = Some(Journal::begin(layout, episode, self.format.extension(), self.fps)?);
        }
        if let Some(journal) = &mut self.journal {
            journal.push(&entry)?;
        }
        for ((_, rgb), counts) in seen.iter().zip(&mut self.pending.counts) {
            counts.add(rgb);
        }
        self.pending.entries.push(entry);
        Ok(())
    }

    /// Commits the episode. `extra` is kept as JSON beside it (task, seed, outcome, ...). Returns its number.
    ///
    /// # Errors
    /// The episode has no frame, or a file cannot be written; the frames are kept, so that it can be tried again.
    pub fn end_episode(&mut self, task: &str, extra: serde_json::Value) -> Result<usize> {
        if let Some(journal) = &mut self.journal {
            journal.end(&Ending { task: task.to_owned(), extra: extra.clone() })?;
        }
        self.commit(task, extra, self.format.extension())
    }

    fn commit(&mut self, task: &str, extra: serde_json::Value, extension: &str) -> Result<usize> {
        let tasks = vec![task.to_owned()];
        if self.pending.entries.is_empty() {
            return Err(Error::Shape {
                what: format!("episode {}", self.store.episodes()),
                expected: "at least one frame".into(),
                got: "none".into(),
            });
        }
        let stored = if self.format.is_video() { self.format.extension() } else { extension };
        if stored != extension {
            let path = journal::path(self.store.layout());
            return Err(refuse(&path, format!("expected pictures as {stored}, got {extension}")));
        }
        let place = self.store.place(&tasks)?;
        let films = self.write_films()?;
        let cameras = &self.embodiment.cameras;
        let rows = self.pending.batch(self.store.info(), cameras, &place, self.fps, extension)?;
        let pictures = cameras.iter().zip(&self.pending.counts);
        let pictures: BTreeMap<String, FeatureStats> =
            pictures.map(|(camera, counts)| (format!("{IMAGES}{}", camera.name), counts.stats())).collect();
        let stats = stats_of(&rows, self.store.info(), &pictures, Path::new("frames to commit"))?;
        let said = Said { tasks, extra, films, rulings: self.pending.rulings() };
        let committed = self.store.commit(&rows, said, stats);
        if self.store.episodes() > place.episode {
            // Even if the totals could not be written: to try again would commit the frames twice.
            self.discard_episode()?;
        }
        committed
    }

    /// The episode's video files, where there are any; they count when the episode is committed.
    fn write_films(&self) -> Result<BTreeMap<String, FilmPlace>> {
        let mut films = BTreeMap::new();
        if !self.format.is_video() {
            return Ok(films);
        }
        for (k, camera) in self.embodiment.cameras.iter().enumerate() {
            let key = format!("{IMAGES}{}", camera.name);
            let samples: Vec<&[u8]> =
                self.pending.entries.iter().map(|entry| entry.pictures[k].as_slice()).collect();
            films.insert(key.clone(), self.store.write_film(&key, camera, self.format, &samples)?);
        }
        Ok(films)
    }

    /// Forgets the frames of the episode that is being recorded.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub fn discard_episode(&mut self) -> Result<()> {
        self.pending = Pending::new(self.embodiment.cameras.len());
        self.journal = None;
        self.coders.clear();
        journal::remove(self.store.layout())
    }

    /// Brings in what a killed recorder left.
    fn recover(&mut self) -> Result<()> {
        let layout: &Layout = self.store.layout();
        let Some(left) = journal::read(layout, self.embodiment.cameras.len())? else {
            return journal::remove(layout);
        };
        let joints = self.embodiment.joints.len();
        let fits = |entry: &Entry| entry.state.len() == joints && entry.action.len() == joints;
        if !left.entries.iter().all(fits) {
            return Err(refuse(&journal::path(layout), format!("expected frames of {joints} joints")));
        }
        // It was committed, and only the removal of its frames was missing.
        if left.episode != self.store.episodes() {
            return journal::remove(layout);
        }
        self.pending = Pending::of(&left, &self.embodiment.cameras)?;
        self.recovered_frames = left.entries.len();
        let (task, extra) = match left.ending {
            Some(ending) => (ending.task, ending.extra),
            None => {
                let task = left.entries.first().map(|entry| entry.instruction.clone()).unwrap_or_default();
                (task, serde_json::json!({ "interrupted": true }))
            }
        };
        self.commit(&task, extra, &left.extension).map(|_| ())
    }

    /// Mean and deviation of states and actions so far, or `None` before the first episode.
    pub fn stats(&self) -> Option<(&FeatureStats, &FeatureStats)> {
        Some((self.store.stats(STATE)?, self.store.stats(ACTION)?))
    }
}

/// The frames of the episode that is being recorded, and the counts of their pictures per camera.
#[derive(Clone, Debug)]
struct Pending {
    entries: Vec<Entry>,
    counts: Vec<PictureCounts>,
}

impl Pending {
    fn new(cameras: usize) -> Self {
        Self { entries: Vec::new(), counts: vec![PictureCounts::new(); cameras] }
    }

    fn of(left: &Leftover, cameras: &[Camera]) -> Result<Self> {
        let mut pending = Self::new(cameras.len());
        for (k, (camera, counts)) in cameras.iter().zip(&mut pending.counts).enumerate() {
            let pictures: Vec<&[u8]> =
                left.entries.iter().map(|entry| entry.pictures[k].as_slice()).collect();
            let see = &mut |rgb: &[u8]| counts.add(rgb);
            decode_each(&left.extension, &pictures, camera, "interrupted episode", see)?;
        }
        pending.entries.clone_from(&left.entries);
        Ok(pending)
    }

    fn rulings(&self) -> Rulings {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(frame, entry)| Some((frame, entry.ruling.clone()?))).collect()
    }

    /// The rows of `data/`.
    fn batch(
        &self,
        info: &Info,
        cameras: &[Camera],
        place: &Place,
        fps: u32,
        extension: &str,
    ) -> Result<RecordBatch> {
        let n = self.entries.len();
        let joints = |numbers: &dyn Fn(&Entry) -> &Vec<f32>| -> Result<ArrayRef> {
            let wide = self.entries.first().map_or(0, |entry| numbers(entry).len());
            let values = self.entries.iter().flat_map(|entry| numbers(entry).iter().copied());
            rows_of(Arc::new(Float32Array::from_iter_values(values)), wide)
        };
        let mut columns: Vec<(String, ArrayRef)> =
            vec![(STATE.into(), joints(&|e| &e.state)?), (ACTION.into(), joints(&|e| &e.action)?)];
        if info.features.contains_key(INTERVENTION) {
            let flags: Vec<bool> = self.entries.iter().map(|entry| entry.intervention).collect();
            columns.push((INTERVENTION.into(), Arc::new(BooleanArray::from(flags))));
        }
        let stored = |key: &String| info.features.get(key).is_some_and(|feature| !feature.is_video());
        for (k, camera) in cameras.iter().enumerate() {
            let key = format!("{IMAGES}{}", camera.name);
            if !stored(&key) {
                continue;
            }
            let pictures: Vec<&[u8]> =
                self.entries.iter().map(|entry| entry.pictures[k].as_slice()).collect();
            columns.push((key, picture_column(&pictures, extension)));
        }
        let timestamps = (0..n).map(|k| (k as f64 / f64::from(fps)) as f32);
        columns.push(("timestamp".into(), Arc::new(Float32Array::from_iter_values(timestamps))));
        let task = place.tasks.first().copied().unwrap_or_default();
        let counted = |name: &str, f: &dyn Fn(usize) -> usize| -> (String, ArrayRef) {
            (name.into(), Arc::new(Int64Array::from_iter_values((0..n).map(|k| f(k) as i64))))
        };
        columns.push(counted("frame_index", &|k| k));
        columns.push(counted("episode_index", &|_| place.episode));
        columns.push(counted("index", &|k| place.first_index + k));
        columns.push(counted("task_index", &|_| task));
        batch_of(columns)
    }
}
