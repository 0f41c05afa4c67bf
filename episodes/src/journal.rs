//! The frames of the episode that is being recorded, on disk as they come: what a kill leaves of it.
//!
//! `meta/.pending` begins with a line of JSON (the episode's number, the pictures' format); each record after it is
//! a length (u32), a checksum (u64) and a body, numbers in little endian. A record that was not written to its end
//! fails its checksum, and the file ends before it.

use crate::Ruling;
use crate::layout::{Layout, io, refuse};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::PathBuf;
use vela_embodiment::{Result, fnv1a};

const FRAME: u8 = 0;
const CORRECTED_FRAME: u8 = 1;
const END: u8 = 2;

/// One frame as it will be stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) instruction: String,
    pub(crate) state: Vec<f32>,
    pub(crate) action: Vec<f32>,
    pub(crate) intervention: bool,
    /// One per camera, PNG or JPEG.
    pub(crate) pictures: Vec<Vec<u8>>,
    pub(crate) ruling: Option<Ruling>,
}

/// What the recorder said when the episode was complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(crate) task: String,
    pub(crate) extra: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Head {
    episode: usize,
    extension: String,
}

/// What a killed recorder left.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Leftover {
    /// The number that the episode was to have.
    pub(crate) episode: usize,
    /// How its pictures are stored: png or jpg.
    pub(crate) extension: String,
    pub(crate) entries: Vec<Entry>,
    /// There when only the commit was missing.
    pub(crate) ending: Option<Ending>,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Appended to.
    file: File,
    /// Bytes of whole records.
    length: u64,
    /// Frames between two waits for the disk: a kill loses none of them, a power cut at most these.
    sync_every: usize,
    unsynced: usize,
}

fn place(layout: &Layout) -> PathBuf {
    layout.meta(".pending")
}

impl Journal {
    /// Begins the file of an episode; a second of frames goes to the disk at a time.
    pub(crate) fn begin(layout: &Layout, episode: usize, extension: &str, fps: u32) -> Result<Self> {
        let path = place(layout);
        remove(layout)?;
        let mut file = File::options().create(true).append(true).open(&path).map_err(io(&path))?;
        let head = Head { episode, extension: extension.to_owned() };
        let head = serde_json::to_string(&head).map_err(|e| refuse(&path, e.to_string()))? + "\n";
        file.write_all(head.as_bytes()).map_err(io(&path))?;
        Ok(Self { path, file, length: head.len() as u64, sync_every: fps as usize, unsynced: 0 })
    }

    /// Writes one frame; when this returns, a kill of the process cannot lose it.
    pub(crate) fn push(&mut self, entry: &Entry) -> Result<()> {
        let mut body = vec![if entry.intervention { CORRECTED_FRAME } else { FRAME }];
        put(&mut body, entry.instruction.as_bytes());
        for numbers in [&entry.state, &entry.action] {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            put(&mut body, &bytes);
        }
        for picture in &entry.pictures {
            put(&mut body, picture);
        }
        if let Some(ruling) = &entry.ruling {
            put(&mut body, &serde_json::to_vec(ruling).map_err(|e| refuse(&self.path, e.to_string()))?);
        }
        self.unsynced += 1;
        self.write(&body)
    }

    /// Notes that the episode is complete.
    pub(crate) fn end(&mut self, ending: &Ending) -> Result<()> {
        let text = serde_json::to_vec(ending).map_err(|e| refuse(&self.path, e.to_string()))?;
        let mut body = vec![END];
        put(&mut body, &text);
        self.write(&body)
    }

    fn write(&mut self, body: &[u8]) -> Result<()> {
        let mut record = Vec::with_capacity(body.len() + 12);
        record.extend((body.len() as u32).to_le_bytes());
        record.extend(fnv1a(body.iter().copied()).to_le_bytes());
        record.extend(body);
        if let Err(error) = self.file.write_all(&record) {
            // What comes after half a record would never be found. If even this fails, the error is the same.
            let _ = self.file.set_len(self.length);
            return Err(io(&self.path)(error));
        }
        self.length += record.len() as u64;
        if self.unsynced >= self.sync_every {
            self.unsynced = 0;
            self.file.sync_data().map_err(io(&self.path))?;
        }
        Ok(())
    }
}

/// Removes the file: its episode is committed, or was given up.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let path = place(layout);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
        _ => Ok(()),
    }
}

/// What a killed recorder left of an episode with this many cameras; `None` when it left no whole frame.
pub(crate) fn read(layout: &Layout, cameras: usize) -> Result<Option<Leftover>> {
    let path = place(layout);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io(&path))?,
    };
    Ok(parse(&bytes, cameras).filter(|left| !left.entries.is_empty()))
}

/// The path, for messages.
pub(crate) fn path(layout: &Layout) -> PathBuf {
    place(layout)
}

fn parse(bytes: &[u8], cameras: usize) -> Option<Leftover> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..line]).ok()?;
    let mut rest = &bytes[line + 1..];
    let mut left =
        Leftover { episode: head.episode, extension: head.extension, entries: Vec::new(), ending: None };
    while let Some(body) = record(&mut rest) {
        match body.first() {
            Some(&END) => {
                let mut text = &body[1..];
                left.ending = take(&mut text).and_then(|text| serde_json::from_slice(text).ok());
            }
            _ => match entry(body, cameras) {
                Some(entry) => left.entries.push(entry),
                None => break,
            },
        }
    }
    Some(left)
}

/// The next whole record.
fn record<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (checksum, after) = after.split_first_chunk::<8>()?;
    let (body, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    (fnv1a(body.iter().copied()) == u64::from_le_bytes(*checksum)).then_some(body)
}

fn entry(body: &[u8], cameras: usize) -> Option<Entry> {
    let (kind, mut rest) = body.split_first()?;
    let instruction = String::from_utf8(take(&mut rest)?.to_vec()).ok()?;
    let mut numbers = || -> Option<Vec<f32>> {
        let (chunks, []) = take(&mut rest)?.as_chunks::<4>() else { return None };
        Some(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
    };
    let (state, action) = (numbers()?, numbers()?);
    let pictures = (0..cameras).map(|_| take(&mut rest).map(<[u8]>::to_vec)).collect::<Option<_>>()?;
    let ruling = match rest.is_empty() {
        true => None,
        false => Some(serde_json::from_slice(take(&mut rest)?).ok()?),
    };
    let whole = rest.is_empty() && matches!(*kind, FRAME | CORRECTED_FRAME);
    let intervention = *kind == CORRECTED_FRAME;
    whole.then_some(Entry { instruction, state, action, intervention, pictures, ruling })
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u32).to_le_bytes());
    body.extend(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some(bytes)
}

/// Whether a recorder that no longer runs left frames behind.
pub(crate) fn is_left(layout: &Layout) -> bool {
    let held = File::open(layout.meta(".lock"))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
    place(layout).exists() && !held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Version;

    fn frame(k: usize) -> Entry {
        Entry {
            instruction: "push the red cube".into(),
            state: vec![k as f32, 0.5],
            action: vec![-1.0, k as f32],
            intervention: k % 2 == 1,
            pictures: vec![vec![k as u8; 5], vec![9; 3]],
            ruling: (k >= 2).then(|| Ruling { held: k == 3, trips: Vec::new() }),
        }
    }

    #[test]
    fn whatever_the_length_that_is_left_every_whole_frame_is_found() -> Result<()> {
        let root = std::env::temp_dir().join(format!("vela-journal-{}", std::process::id()));
        std::fs::create_dir_all(root.join("meta")).map_err(io(&root))?;
        let layout = Layout::new(&root, Version::V30);
        let mut journal = Journal::begin(&layout, 7, "png", 2)?;
        let mut ends = Vec::new();
        let length = || std::fs::metadata(place(&layout)).map(|m| m.len() as usize).map_err(io(&root));
        for k in 0..4 {
            journal.push(&frame(k))?;
            ends.push(length()?);
        }
        let ending = Ending { task: "push".into(), extra: serde_json::json!({ "success": true }) };
        journal.end(&ending)?;
        let bytes = std::fs::read(place(&layout)).map_err(io(&root))?;
        remove(&layout)?;
        assert!(read(&layout, 2)?.is_none());
        std::fs::remove_dir_all(&root).map_err(io(&root))?;
        for length in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= length).count();
            let found = parse(&bytes[..length], 2);
            let entries = found.as_ref().map_or(&[][..], |left| &left.entries);
            assert_eq!(entries, (0..whole).map(frame).collect::<Vec<_>>(), "{length} bytes");
            let ended = found.as_ref().is_some_and(|left| left.ending.is_some());
            assert_eq!(ended, length == bytes.len());
        }
        // A flipped bit ends the file there.
        let mut flipped = bytes.clone();
        flipped[ends[1] + 20] ^= 1;
        assert_eq!(parse(&flipped, 2).map(|left| left.entries.len()), Some(2));
        Ok(())
    }
}
