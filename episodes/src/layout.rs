//! Where the files of a dataset are, in either version, and how files are read and written.
//! Layout after LeRobot 0.6.1 (v3.0) and 0.3.3 (v2.1), <https://github.com/huggingface/lerobot>.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use vela_embodiment::{Error, Result};

/// Files in one `chunk-xxx` folder of what we write.
pub(crate) const CHUNKS_SIZE: i64 = 1000;

/// The two layouts that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One file per episode, tables as JSON lines. Read only.
    V21,
    /// Many episodes in a file, tables as parquet. Read and written.
    V30,
}

impl Version {
    /// Its name in `meta/info.json`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V21 => "v2.1",
            Version::V30 => "v3.0",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Version::V21, Version::V30].into_iter().find(|version| version.name() == name)
    }

    /// The `data_path` that `meta/info.json` must have.
    pub(crate) fn data_path(self) -> &'static str {
        match self {
            Version::V21 => "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            Version::V30 => "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        }
    }

    /// The `video_path` that `meta/info.json` must have where there are videos.
    pub(crate) fn video_path(self) -> &'static str {
        match self {
            Version::V21 => "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            Version::V30 => "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
    }
}

/// Number of a file inside `data/` or `meta/episodes/`; in v2.1 the file's number is the episode's.
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
    version: Version,
}

impl Layout {
    pub(crate) fn new(root: &Path, version: Version) -> Self {
        Self { root: root.to_owned(), version }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn meta(&self, name: &str) -> PathBuf {
        self.root.join("meta").join(name)
    }

    pub(crate) fn data(&self, FileId { chunk, file }: FileId) -> PathBuf {
        self.root.join(match self.version {
            Version::V21 => format!("data/chunk-{chunk:03}/episode_{file:06}.parquet"),
            Version::V30 => format!("data/chunk-{chunk:03}/file-{file:03}.parquet"),
        })
    }

    /// The video file of a camera's column.
    pub(crate) fn video(&self, key: &str, FileId { chunk, file }: FileId) -> PathBuf {
        self.root.join(match self.version {
            Version::V21 => format!("videos/chunk-{chunk:03}/{key}/episode_{file:06}.mp4"),
            Version::V30 => format!("videos/{key}/chunk-{chunk:03}/file-{file:03}.mp4"),
        })
    }

    /// A file of the episodes' table of v3.0.
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

/// An error about a file's contents.
pub(crate) fn refuse(path: &Path, why: impl Into<String>) -> Error {
    Error::Parse { what: path.display().to_string(), why: why.into() }
}

/// An error about reading or writing a file.
pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.display().to_string(), source }
}

/// Reads a file of a foreign format. The crates that do it panic on some broken files (found by the tests that mangle
/// them): to us that is an error about the file like any other. What they say on standard error stays.
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    done.unwrap_or_else(|_| Err(refuse(path, "torn: its reader has given up")))
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

/// What a file is called until it is complete.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    PathBuf::from(beside)
}

/// Writes a file beside its place and moves it there when it is complete, so that a kill leaves the old one. What
/// could not be completed is removed again.
pub(crate) fn write_whole(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let beside = beside(path);
    let written = File::create(&beside).map_err(io(&beside)).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all().map_err(io(&beside))?;
        std::fs::rename(&beside, path).map_err(io(path))
    });
    if written.is_err() {
        // A full disk must not stay full of a file that nobody will read; the first error is the one that counts.
        let _ = std::fs::remove_file(&beside);
    }
    written
}
