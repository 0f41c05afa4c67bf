//! `meta/vela_verdicts.jsonl`: what the safety gate made of each frame where it was no plain pass, and why. One JSON object
//! a line, by episodes and their frames; LeRobot passes over it.
//!
//! Lines are written just before their episode is committed. What a kill leaves of an episode that was not is passed over
//! by whoever reads and cut off by whoever writes next.

use crate::layout::{Layout, io, refuse};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use vela_embodiment::{Action, Checked, Result, Trip};

/// What the safety gate made of a frame's action, where it was no plain pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ruling {
    /// Whether it replaced what was asked by a hold.
    pub held: bool,
    /// Why it stepped in.
    pub trips: Vec<Trip>,
}

impl Ruling {
    /// What the gate says of an action; `None` of one that it passed as it was.
    pub fn of(action: &Checked<Action>) -> Option<Self> {
        let ruling = Self { held: action.held(), trips: action.trips().to_vec() };
        (ruling.held || !ruling.trips.is_empty()).then_some(ruling)
    }
}

/// The rulings of one episode, by its frames.
pub(crate) type Rulings = BTreeMap<usize, Ruling>;

#[derive(Serialize, Deserialize)]
struct Line<R> {
    episode: usize,
    frame: usize,
    #[serde(flatten)]
    ruling: R,
}

pub(crate) fn path(layout: &Layout) -> PathBuf {
    layout.meta("vela_verdicts.jsonl")
}

/// The whole lines of the file, and how many bytes they are up to and with each.
fn lines(layout: &Layout) -> Result<Vec<(Line<Ruling>, u64)>> {
    let path = path(layout);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io(&path))?,
    };
    let mut end = 0;
    // A last one without an end is what a kill left.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .enumerate()
        .map(|(k, line)| -> Result<_> {
            end += line.len() as u64;
            let parsed =
                serde_json::from_str(line).map_err(|e| refuse(&path, format!("line {}: {e}", k + 1)));
            Ok((parsed?, end))
        })
        .collect()
}

/// Every ruling of these episodes: by the episode, then by the frame.
///
/// # Errors
/// The file cannot be read, or is not ours.
pub(crate) fn read(layout: &Layout, episodes: usize) -> Result<BTreeMap<usize, Rulings>> {
    let mut found: BTreeMap<usize, Rulings> = BTreeMap::new();
    for (Line { episode, frame, ruling }, _) in lines(layout)? {
        if episode < episodes {
            found.entry(episode).or_default().insert(frame, ruling);
        }
    }
    Ok(found)
}

/// Cuts off what a kill left beyond these episodes.
///
/// # Errors
/// The file cannot be read or written, or is not ours.
pub(crate) fn cut(layout: &Layout, episodes: usize) -> Result<()> {
    let path = path(layout);
    if !path.exists() {
        return Ok(());
    }
    let kept = lines(layout)?.into_iter().take_while(|(line, _)| line.episode < episodes).last();
    let file = File::options().write(true).open(&path).map_err(io(&path))?;
    file.set_len(kept.map_or(0, |(_, end)| end)).map_err(io(&path))
}

/// Adds the rulings of an episode. When not all can be written, none is.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn append(layout: &Layout, episode: usize, rulings: &Rulings) -> Result<()> {
    if rulings.is_empty() {
        return Ok(());
    }
    let path = path(layout);
    let mut text = String::new();
    for (frame, ruling) in rulings {
        let line = serde_json::to_string(&Line { episode, frame: *frame, ruling });
        text.push_str(&line.map_err(|e| refuse(&path, e.to_string()))?);
        text.push('\n');
    }
    let mut file = File::options().create(true).append(true).open(&path).map_err(io(&path))?;
    let before = file.metadata().map_err(io(&path))?.len();
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // The disk is full: the error is the same, whether this works or not.
        let _ = file.set_len(before);
        io(&path)(error)
    })
}
