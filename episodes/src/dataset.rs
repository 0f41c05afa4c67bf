//! Reading a dataset, ours or LeRobot's own, episode by episode.

use crate::columns::{read_pictures, read_vectors};
use crate::info::{ACTION, Feature, INTERVENTION, Info, STATE};
use crate::layout::{FileId, Layout, Version, read_json, refuse};
use crate::rows::{EncodedEpisode, Pictures};
use crate::video::Movie;
use crate::{Recording, Ruling, journal, lines, meta, rulings, table};
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::{Camera, Embodiment, Error, Result};

pub use crate::meta::EpisodeEntry;

/// A LeRobot dataset, v3.0 or v2.1, pictures inside parquet or in video
/// files (AV1, H.264). Opening reads the tables; frames are read episode by episode, touching
/// only the row groups that hold them. Numbers come as they are stored: [`Dataset::units`] says in which units, of
/// ours.
#[derive(Clone, Debug)]
pub struct Dataset {
    layout: Layout,
    info: Info,
    embodiment: Option<Embodiment>,
    state_names: Vec<String>,
    action_names: Vec<String>,
    cameras: Vec<Camera>,
    /// The column of each camera.
    camera_keys: Vec<String>,
    tasks: Vec<Arc<str>>,
    episodes: Vec<EpisodeEntry>,
    /// The number of each data file's first frame.
    file_starts: BTreeMap<FileId, usize>,
}

/// One column of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub key: String,
    /// What it holds: float32, int64, bool, image, ...
    pub dtype: String,
    /// The shape of one row's entry; `[height, width, 3]` of a picture.
    pub shape: Vec<usize>,
}

impl Dataset {
    /// Opens the dataset in a folder.
    ///
    /// # Errors
    /// Not a v3.0 or v2.1 dataset, a missing feature, a torn table.
    pub fn open(folder: &Path) -> Result<Self> {
        let (info, layout) = Info::load(folder)?;
        let embodiment_path = layout.meta("embodiment.json");
        let embodiment: Option<Embodiment> =
            if embodiment_path.exists() { Some(read_json(&embodiment_path)?) } else { None };
        let mut cameras = info.cameras()?;
        if let Some(embodiment) = &embodiment {
            // The embodiment's order of cameras, where there is one.
            let place =
                |(_, c): &(String, Camera)| embodiment.cameras.iter().position(|own| own.name == c.name);
            cameras.sort_by_key(|camera| place(camera).unwrap_or(usize::MAX));
        }
        let (camera_keys, cameras) = cameras.into_iter().unzip();
        let episodes = match layout.version() {
            Version::V21 => lines::read_episodes(&layout, &info)?,
            Version::V30 => meta::read_episodes(&layout, &info)?,
        };
        let tasks = match layout.version() {
            Version::V21 => lines::read_tasks(&layout)?,
            Version::V30 if episodes.is_empty() => Vec::new(),
            Version::V30 => meta::read_tasks(&layout)?,
        };
        let mut file_starts = BTreeMap::new();
        for entry in &episodes {
            file_starts.entry(entry.data_file).or_insert(entry.first_index);
        }
        Ok(Self {
            state_names: names(info.vector(STATE)?),
            action_names: names(info.vector(ACTION)?),
            tasks,
            layout,
            info,
            embodiment,
            cameras,
            camera_keys,
            episodes,
            file_starts,
        })
    }

    /// The robot that it was recorded with; `None` when vela did not write it. Its URDF is empty.
    pub fn embodiment(&self) -> Option<&Embodiment> {
        self.embodiment.as_ref()
    }

    /// Refuses a dataset that was not recorded with this robot; every difference is named. A dataset that is not
    /// ours is compared by joint names, cameras and rate.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn require_same(&self, robot: &Embodiment) -> Result<()> {
        if let Some(own) = &self.embodiment {
            return robot.require_same(own);
        }
        let mut seen = robot.clone();
        seen.cameras.clone_from(&self.cameras);
        seen.control_hz = self.fps();
        let mut differences = Vec::new();
        for (what, names) in [("state", &self.state_names), ("action", &self.action_names)] {
            if robot.joint_names() != *names {
                differences.push(format!("joints {:?} against {what} {names:?}", robot.joint_names()));
            }
        }
        match robot.require_same(&seen) {
            Err(Error::Mismatch(more)) => differences.extend(more),
            other => other?,
        }
        if differences.is_empty() { Ok(()) } else { Err(Error::Mismatch(differences)) }
    }

    /// Frames per second.
    pub fn fps(&self) -> f64 {
        self.info.fps()
    }

    /// What the safety gate made of the frames where it was no plain pass, by the episode and the frame. Episodes that are
    /// not there have none: all was passed, or nobody who recorded them saw the gate.
    ///
    /// # Errors
    /// `meta/vela_verdicts.jsonl` cannot be read or is not ours.
    pub fn rulings(&self) -> Result<BTreeMap<usize, BTreeMap<usize, Ruling>>> {
        rulings::read(&self.layout, self.len())
    }

    /// In which units joints are, in the words that [`DatasetWriter`](crate::DatasetWriter) was given; `None` where the
    /// dataset does not say.
    pub fn units(&self) -> Option<&str> {
        self.info.units()
    }

    /// Names of the state's entries: joint names, without LeRobot's ending ".pos".
    pub fn state_names(&self) -> &[String] {
        &self.state_names
    }

    /// Names of the action's entries: joint names, without LeRobot's ending ".pos".
    pub fn action_names(&self) -> &[String] {
        &self.action_names
    }

    /// The cameras, in the order of every observation's frames.
    pub fn cameras(&self) -> &[Camera] {
        &self.cameras
    }

    /// The episodes, without their frames.
    pub fn entries(&self) -> &[EpisodeEntry] {
        &self.episodes
    }

    /// Number of episodes.
    pub fn len(&self) -> usize {
        self.episodes.len()
    }

    /// Whether it has no episode.
    pub fn is_empty(&self) -> bool {
        self.episodes.is_empty()
    }

    /// Number of frames of all episodes.
    pub fn total_frames(&self) -> usize {
        self.episodes.last().map_or(0, |entry| entry.first_index + entry.length)
    }

    /// Which of LeRobot's layouts it has.
    pub fn version(&self) -> Version {
        self.layout.version()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.layout.root()
    }

    /// The sentences that robots were asked, by their number.
    pub fn tasks(&self) -> &[Arc<str>] {
        &self.tasks
    }

    /// The columns as `meta/info.json` describes them.
    pub fn columns(&self) -> Vec<Column> {
        let column = |(key, feature): (&String, &Feature)| Column {
            key: key.clone(),
            dtype: feature.dtype.clone(),
            shape: feature.shape.clone(),
        };
        self.info.features.iter().map(column).collect()
    }

    /// The robot's name in `meta/info.json`.
    pub fn robot_type(&self) -> Option<&str> {
        self.info.robot_type.as_deref()
    }

    /// Whether a killed recorder left frames that are not in any episode yet; `vela record` into the same folder or a
    /// repair brings them in.
    pub fn has_leftover(&self) -> bool {
        journal::is_left(&self.layout)
    }

    /// `meta/stats.json`, with LeRobot's names and shapes.
    ///
    /// # Errors
    /// The file is missing (v2.1 has none) or not JSON.
    pub fn stats(&self) -> Result<serde_json::Value> {
        read_json(&self.layout.meta("stats.json"))
    }

    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sentence of a `task_index` that was read from the file at `path`.
    pub(crate) fn task(&self, number: i64, path: &Path) -> Result<&Arc<str>> {
        let known = usize::try_from(number).ok().and_then(|number| self.tasks.get(number));
        let unknown = || format!("task_index {number}, but there are {} tasks", self.tasks.len());
        known.ok_or_else(|| refuse(path, unknown()))
    }

    /// The camera of a column.
    pub(crate) fn camera(&self, key: &str) -> Result<Camera> {
        let place = self.camera_keys.iter().position(|own| own == key);
        place.and_then(|k| self.cameras.get(k)).cloned().ok_or_else(|| Error::Unknown {
            kind: "camera's column",
            name: key.into(),
            known: self.camera_keys.join(", "),
        })
    }

    /// An episode's part of a video file.
    pub(crate) fn film(&self, index: usize, key: &str) -> Result<Pictures> {
        let film = self.episodes.get(index).and_then(|entry| entry.films.get(key));
        let film = film.ok_or_else(|| Error::Unknown {
            kind: "video",
            name: key.into(),
            known: self.info.videos().join(", "),
        })?;
        let path = self.layout.video(key, film.file);
        let movie = Arc::new(Movie::open(&path)?);
        let (camera, (width, height)) = (self.camera(key)?, movie.size());
        if (width, height) != (camera.width, camera.height) {
            return Err(Error::Shape {
                what: path.display().to_string(),
                expected: format!("pictures of {}x{}", camera.width, camera.height),
                got: format!("{width}x{height}"),
            });
        }
        Ok(Pictures::Film { movie, from_secs: film.from_secs, fps: self.fps() })
    }

    /// An episode's pictures of one camera, inside its `rows`, which came from the file at `path`, or in a video file.
    pub(crate) fn pictures(
        &self,
        index: usize,
        key: &str,
        rows: &RecordBatch,
        path: &Path,
    ) -> Result<Pictures> {
        match self.info.features.get(key).is_some_and(Feature::is_video) {
            true => self.film(index, key),
            false => Ok(Pictures::Bytes(read_pictures(rows, key, path)?)),
        }
    }

    /// The named columns of an episode's rows, and the file that they are in.
    pub(crate) fn rows(&self, index: usize, columns: &[&str]) -> Result<(RecordBatch, PathBuf)> {
        let entry = self.episodes.get(index).ok_or_else(|| Error::Unknown {
            kind: "episode",
            name: index.to_string(),
            known: format!("{} episodes in {}", self.len(), self.layout.root().display()),
        })?;
        let path = self.layout.data(entry.data_file);
        let start = entry.first_index - self.file_starts.get(&entry.data_file).copied().unwrap_or_default();
        let batch = table::read(&path, columns, Some(start..start + entry.length))?;
        if let Some(other) =
            table::integers(&batch, "episode_index", &path)?.iter().find(|k| **k != index as i64)
        {
            let why = format!("expected frames of episode {index} from row {start} on, got {other}");
            return Err(refuse(&path, why));
        }
        Ok((batch, path))
    }

    /// Episode `index` with its pictures decoded.
    ///
    /// # Errors
    /// There is no such episode, its file is torn, or a column is missing or has the wrong shape.
    pub fn episode(&self, index: usize) -> Result<Recording> {
        self.encoded(index)?.decode()
    }

    /// The episodes one after another, each read when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Result<Recording>> + '_ {
        (0..self.len()).map(|index| self.episode(index))
    }

    /// Episode `index` with its pictures still encoded.
    ///
    /// # Errors
    /// There is no such episode, its file is torn, or a column is missing or has the wrong shape.
    pub fn encoded(&self, index: usize) -> Result<EncodedEpisode> {
        let is_marked = self.info.features.contains_key(INTERVENTION);
        let mut columns = vec![STATE, ACTION, "timestamp", "episode_index", "task_index"];
        columns.extend(is_marked.then_some(INTERVENTION));
        let stored = |key: &&String| self.info.features.get(*key).is_some_and(|f| !f.is_video());
        columns.extend(self.camera_keys.iter().filter(stored).map(String::as_str));
        let (batch, path) = self.rows(index, &columns)?;
        let (path, entry) = (&path, &self.episodes[index]);
        let flags = || read_vectors(&batch, INTERVENTION, 1, path);
        let interventions: Vec<bool> = match is_marked {
            true => flags()?.iter().map(|flag| flag[0] != 0.0).collect(),
            false => vec![false; batch.num_rows()],
        };
        let tasks = table::integers(&batch, "task_index", path)?
            .iter()
            .map(|task| self.task(*task, path).cloned())
            .collect::<Result<_>>()?;
        Ok(EncodedEpisode {
            index,
            extra: entry.extra.clone(),
            tasks,
            states: read_vectors(&batch, STATE, self.state_names.len(), path)?,
            actions: read_vectors(&batch, ACTION, self.action_names.len(), path)?,
            interventions,
            timestamps_secs: read_vectors(&batch, "timestamp", 1, path)?.into_iter().flatten().collect(),
            cameras: self.cameras.clone(),
            pictures: self
                .camera_keys
                .iter()
                .map(|key| self.pictures(index, key, &batch, path))
                .collect::<Result<_>>()?,
        })
    }
}

fn names(feature: &Feature) -> Vec<String> {
    let plain = |name: String| name.strip_suffix(".pos").map(str::to_owned).unwrap_or(name);
    feature.entry_names().into_iter().map(plain).collect()
}
