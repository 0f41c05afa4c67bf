//! Where the files of a dataset are, and `meta/info.json`.
//! Layout after LeRobot 0.6.1, `CODEBASE_VERSION = "v3.0"` (<https://github.com/huggingface/lerobot>).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use vela_embodiment::{Camera, Embodiment, Error, Result};

/// The one version that is read and written.
const CODEBASE_VERSION: &str = "v3.0";
/// Files in one `chunk-xxx` folder.
const CHUNKS_SIZE: i64 = 1000;
/// Joint vectors as measured.
pub(crate) const STATE: &str = "observation.state";
/// Joint targets as sent.
pub(crate) const ACTION: &str = "action";
/// What a camera's feature begins with.
pub(crate) const IMAGES: &str = "observation.images.";
/// The columns that every dataset has besides, in LeRobot's order.
pub(crate) const BOOKKEEPING: [&str; 5] =
    ["timestamp", "frame_index", "episode_index", "index", "task_index"];

/// Number of a file inside `data/` or `meta/episodes/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId {
    pub(crate) chunk: i64,
    pub(crate) file: i64,
}

impl FileId {
    pub(crate) fn next(self) -> Self {
        match self.file + 1 {
            CHUNKS_SIZE => Self { chunk: self.chunk + 1, file: 0 },
            file => Self { file, ..self },
        }
    }
}

/// The folder of one dataset.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn meta(&self, name: &str) -> PathBuf {
        self.root.join("meta").join(name)
    }

    pub(crate) fn data(&self, id: FileId) -> PathBuf {
        self.root.join(format!("data/chunk-{:03}/file-{:03}.parquet", id.chunk, id.file))
    }

    pub(crate) fn episodes(&self, id: FileId) -> PathBuf {
        self.root.join(format!("meta/episodes/chunk-{:03}/file-{:03}.parquet", id.chunk, id.file))
    }

    /// The files of `meta/episodes/` that are there, in order.
    pub(crate) fn episode_files(&self) -> Vec<FileId> {
        let mut id = FileId::default();
        let mut found = Vec::new();
        loop {
            if self.episodes(id).exists() {
                found.push(id);
                id = id.next();
            } else if id.file > 0 {
                // LeRobot may begin a new chunk before the old one is full.
                id = FileId { chunk: id.chunk + 1, file: 0 };
            } else {
                return found;
            }
        }
    }
}

/// One column of the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feature {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    /// A list, a map of lists, or null.
    #[serde(default)]
    pub(crate) names: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) info: Option<serde_json::Value>,
}

impl Feature {
    fn vector(names: Vec<String>, units: &str) -> Self {
        Self {
            dtype: "float32".into(),
            shape: vec![names.len()],
            names: names.into(),
            info: Some(serde_json::json!({ "units": units })),
        }
    }

    /// The names of a vector's entries; numbered when there are none.
    pub(crate) fn entry_names(&self) -> Vec<String> {
        let list = match &self.names {
            serde_json::Value::Object(map) => map.values().find_map(|v| v.as_array()),
            other => other.as_array(),
        };
        let named: Vec<String> =
            list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        let wide = self.shape.iter().product();
        if named.len() == wide { named } else { (0..wide).map(|k| k.to_string()).collect() }
    }

    /// Width and height of a picture.
    pub(crate) fn picture_size(&self, key: &str) -> Result<(u32, u32)> {
        let channels_first =
            self.names.get(0).and_then(|n| n.as_str()).is_some_and(|n| n.starts_with("channel"));
        match self.shape[..] {
            [3, height, width] if channels_first => Ok((width as u32, height as u32)),
            [height, width, 3] => Ok((width as u32, height as u32)),
            _ => Err(Error::Shape {
                what: format!("feature '{key}' of meta/info.json"),
                expected: "[height, width, 3]".into(),
                got: format!("{:?}", self.shape),
            }),
        }
    }
}

/// `meta/info.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) codebase_version: String,
    #[serde(default)]
    pub(crate) robot_type: Option<String>,
    pub(crate) total_episodes: usize,
    pub(crate) total_frames: usize,
    pub(crate) total_tasks: usize,
    pub(crate) chunks_size: i64,
    pub(crate) data_files_size_in_mb: u64,
    pub(crate) video_files_size_in_mb: u64,
    pub(crate) fps: serde_json::Number,
    pub(crate) splits: BTreeMap<String, String>,
    pub(crate) data_path: String,
    pub(crate) video_path: Option<String>,
    pub(crate) features: BTreeMap<String, Feature>,
}

impl Info {
    pub(crate) fn new(embodiment: &Embodiment, fps: u32) -> Self {
        let joints: Vec<String> = embodiment.joints.iter().map(|j| format!("{}.pos", j.name)).collect();
        let units = "rad (revolute joints), m (prismatic joints)";
        let mut features = BTreeMap::new();
        features.insert(STATE.to_owned(), Feature::vector(joints.clone(), units));
        features.insert(ACTION.to_owned(), Feature::vector(joints, units));
        for Camera { name, width, height } in &embodiment.cameras {
            let feature = Feature {
                dtype: "image".into(),
                shape: vec![*height as usize, *width as usize, 3],
                names: serde_json::json!(["height", "width", "channels"]),
                info: None,
            };
            features.insert(format!("{IMAGES}{name}"), feature);
        }
        for name in BOOKKEEPING {
            let dtype = if name == "timestamp" { "float32" } else { "int64" };
            let feature =
                Feature { dtype: dtype.into(), shape: vec![1], names: serde_json::Value::Null, info: None };
            features.insert(name.to_owned(), feature);
        }
        Self {
            codebase_version: CODEBASE_VERSION.into(),
            robot_type: Some(embodiment.name.clone()),
            total_episodes: 0,
            total_frames: 0,
            total_tasks: 0,
            chunks_size: CHUNKS_SIZE,
            data_files_size_in_mb: 100,
            video_files_size_in_mb: 200,
            fps: fps.into(),
            splits: BTreeMap::new(),
            data_path: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".into(),
            video_path: None,
            features,
        }
    }

    /// Reads `meta/info.json` and refuses what is not a v3.0 dataset in the usual folders.
    pub(crate) fn load(layout: &Layout) -> Result<Self> {
        let path = layout.meta("info.json");
        let info: serde_json::Value = read_json(&path)?;
        let version = info["codebase_version"].as_str().unwrap_or("none");
        if version != CODEBASE_VERSION {
            return Err(refuse(
                &path,
                format!(
                    "expected a LeRobot dataset of version {CODEBASE_VERSION}, got {version} (LeRobot's \
                     convert_dataset_v21_to_v30 converts older ones)"
                ),
            ));
        }
        let info: Self = serde_json::from_value(info).map_err(|e| refuse(&path, e.to_string()))?;
        let usual = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet";
        if info.data_path != usual {
            return Err(refuse(&path, format!("data_path: expected {usual}, got {}", info.data_path)));
        }
        if !info.fps().is_finite() || info.fps() <= 0.0 {
            return Err(refuse(&path, format!("fps: expected more than zero, got {}", info.fps)));
        }
        Ok(info)
    }

    pub(crate) fn fps(&self) -> f64 {
        self.fps.as_f64().unwrap_or(f64::NAN)
    }

    /// The vector feature of that name.
    pub(crate) fn vector(&self, key: &str) -> Result<&Feature> {
        match self.features.get(key) {
            Some(feature) if feature.dtype.starts_with("float") => Ok(feature),
            Some(feature) => Err(Error::Shape {
                what: format!("feature '{key}' of meta/info.json"),
                expected: "dtype float32".into(),
                got: feature.dtype.clone(),
            }),
            None => Err(Error::Unknown {
                kind: "feature (missing from meta/info.json)",
                name: key.into(),
                known: self.features.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The cameras, in order of their names.
    pub(crate) fn cameras(&self) -> Result<Vec<Camera>> {
        let mut cameras = Vec::new();
        for (key, feature) in &self.features {
            let Some(name) = key.strip_prefix(IMAGES) else { continue };
            if feature.dtype != "image" {
                return Err(Error::Shape {
                    what: format!("feature '{key}' of meta/info.json"),
                    expected: "dtype image (pictures inside parquet; video files are not read)".into(),
                    got: feature.dtype.clone(),
                });
            }
            let (width, height) = feature.picture_size(key)?;
            cameras.push(Camera { name: name.to_owned(), width, height });
        }
        Ok(cameras)
    }
}

/// An error about a file's contents.
pub(crate) fn refuse(path: &Path, why: impl Into<String>) -> Error {
    Error::Parse { what: path.display().to_string(), why: why.into() }
}

/// An error about reading or writing a file.
pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.display().to_string(), source }
}

/// Reads a JSON file.
pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    serde_json::from_str(&text).map_err(|e| refuse(path, e.to_string()))
}

/// Writes a JSON file whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| refuse(path, e.to_string()))?;
    write_whole(path, |file| std::io::Write::write_all(file, text.as_bytes()).map_err(io(path)))
}

/// Writes a file beside its place and moves it there when it is complete, so that a kill leaves the old one.
pub(crate) fn write_whole(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside).map_err(io(&beside))?;
    fill(&mut file)?;
    file.sync_all().map_err(io(&beside))?;
    std::fs::rename(&beside, path).map_err(io(path))
}
