//! The log of the gate's verdicts: whatever is not a plain pass, with its reason, on disk unless somebody asks for nothing
//! of the kind. One JSON object a line.

use anyhow::{Context, Result, bail};
use chrono::DateTime;
use serde_json::{Value, json};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use vela_embodiment::{Episode, unix_seconds};
use vela_robots::{ControlHandle, Controller, RolloutEvent, Stretch, Stretches, VerdictEntry, Verdicts};

/// Files of one verb that stay in the state's folder.
const KEPT: usize = 100;
/// A file there that has grown to this is followed by another, bytes.
const FULL_BYTES: u64 = 16 << 20;

/// Where the verdicts go.
#[derive(clap::Args)]
pub struct Logging {
    /// Write every verdict of the safety gate that is not a plain pass, with its reason, to this file, one JSON object a
    /// line; otherwise to a new file below $VELA_STATE_DIR, $XDG_STATE_HOME/vela or ~/.local/state/vela.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Write no verdicts down.
    #[arg(long, conflicts_with = "log")]
    no_log: bool,
}

impl Logging {
    /// Opens the log of a verb, and says on standard error where it is.
    pub fn open(&self, verb: &'static str) -> Result<Log> {
        if self.no_log {
            return Ok(Log { path: None, book: None });
        }
        let book = match &self.log {
            Some(path) => Book::at(path),
            None => Book::in_folder(folder()?, verb),
        };
        let book = book.context(
            "the gate's verdicts need a place: name a file with --log, or write none with --no-log",
        )?;
        eprintln!("the gate's verdicts: {}", book.path.display());
        Ok(Log { path: Some(book.path.clone()), book: Some(Arc::new(Mutex::new(book))) })
    }

    /// Whether a file is named.
    pub fn named(&self) -> bool {
        self.log.is_some()
    }

    /// The same if a file is named; without one there is no log.
    pub fn open_named(&self, verb: &'static str) -> Result<Log> {
        if self.named() { self.open(verb) } else { Ok(Log { path: None, book: None }) }
    }
}

/// An open log, or none.
pub struct Log {
    path: Option<PathBuf>,
    book: Option<Arc<Mutex<Book>>>,
}

impl Log {
    /// The file that it began with.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes lines of an episode in lockstep.
    pub fn write(&self, lines: &[Value]) -> Result<()> {
        let Some(book) = &self.book else { return Ok(()) };
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let written = lines.iter().try_for_each(|line| book.write(line));
        written.context("writing the gate's verdicts (--no-log writes none)")
    }

    /// Writes down the verdicts of a loop that has just been started, on a thread of its own. `episode` is said in every
    /// line where there are several loops. An arm whose verdicts cannot be written is stopped.
    pub fn follow<A, C, P>(
        &self,
        controller: &mut Controller<A, C, P>,
        episode: Option<usize>,
    ) -> Result<Following>
    where
        A: vela_embodiment::JointSide + 'static,
        C: vela_embodiment::FrameSource + 'static,
        P: vela_embodiment::Policy + 'static,
    {
        let handle = controller.handle();
        let thread = match self.book.clone().zip(controller.verdicts()) {
            None => None,
            Some((book, verdicts)) => {
                let handle = handle.clone();
                let thread = std::thread::Builder::new().name("vela-verdicts".into());
                Some(thread.spawn(move || {
                    write(verdicts, &book, episode).inspect_err(|error| {
                        handle.stop(&format!("the gate's verdicts cannot be written: {error:#}"));
                    })
                })?)
            }
        };
        Ok(Following { handle, thread })
    }
}

/// What the gate says in one episode in lockstep, as lines of a log.
pub struct Minutes {
    /// Which one it is, as said in every line.
    task: String,
    seed: u64,
    stretches: Stretches,
    lines: Vec<Value>,
}

impl Minutes {
    /// Of an episode that begins.
    pub fn of(episode: &Episode) -> Self {
        Self {
            task: episode.task.clone(),
            seed: episode.seed,
            stretches: Stretches::default(),
            lines: Vec::new(),
        }
    }

    /// To be told everything that happens in it.
    pub fn hear(&mut self, event: &RolloutEvent<'_>) {
        let told = self.stretches.rollout(event);
        told.iter().flatten().for_each(|stretch| self.put(stretch));
    }

    /// The lines that came since they were taken last.
    pub fn take(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.lines)
    }

    /// The episode is over: the lines that are left.
    pub fn finish(mut self) -> Vec<Value> {
        if let Some(rest) = self.stretches.rest() {
            self.put(&rest);
        }
        self.lines
    }

    fn put(&mut self, stretch: &Stretch) {
        let mut line = line(stretch);
        (line["task"], line["seed"]) = (self.task.as_str().into(), self.seed.into());
        self.lines.push(line);
    }
}

/// A loop whose verdicts are being written.
pub struct Following {
    handle: ControlHandle,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Following {
    /// Waits until the loop has ended and everything that it said is written; how many verdicts are missing.
    pub fn finish(mut self) -> Result<u64> {
        let dropped = match self.thread.take().map(JoinHandle::join) {
            None => 0,
            Some(Ok(written)) => written.context("writing the gate's verdicts (--no-log writes none)")?,
            Some(Err(_)) => bail!("the thread that writes the gate's verdicts died"),
        };
        if dropped > 0 {
            eprintln!("{dropped} of the gate's verdicts are missing in the log, which says where");
        }
        Ok(dropped)
    }
}

impl Drop for Following {
    /// Something else failed: the loop ends, and what it said gets to the disk.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop("the program has failed");
            let _ = thread.join();
        }
    }
}

/// Writes until the loop has ended; how many verdicts are missing.
fn write(verdicts: Verdicts, book: &Mutex<Book>, episode: Option<usize>) -> Result<u64> {
    let mut missing = 0;
    for entry in verdicts {
        let mut line = match entry {
            VerdictEntry::Stretch(stretch) => line(&stretch),
            VerdictEntry::Lost(ticks) => {
                missing += ticks;
                json!({ "dropped": ticks })
            }
        };
        if let Some(episode) = episode {
            line["episode"] = episode.into();
        }
        book.lock().unwrap_or_else(PoisonError::into_inner).write(&line)?;
    }
    Ok(missing)
}

/// Joints are told to the millionth of a rad or m.
fn line(stretch: &Stretch) -> Value {
    let round = |joints: &[f64]| -> Vec<f64> { joints.iter().map(|q| (q * 1e6).round() / 1e6).collect() };
    json!({"tick": stretch.first_tick, "last_tick": stretch.last_tick, "ticks": stretch.ticks(),
        "stamp_secs": stretch.stamp.secs(), "held": stretch.held, "asked": stretch.asked.as_deref().map(round),
        "sent": round(&stretch.targets), "trips": stretch.trips})
}

/// The file that is written to.
struct Book {
    path: PathBuf,
    file: File,
    written_bytes: u64,
    /// The folder and the verb, where files are named and removed by us.
    ours: Option<(PathBuf, &'static str)>,
}

impl Book {
    fn at(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, written_bytes: 0, ours: None })
    }

    fn in_folder(folder: PathBuf, verb: &'static str) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let now = DateTime::from_timestamp(unix_seconds(), 0).unwrap_or_default();
        let name = format!("{verb}-{}-{}.jsonl", now.format("%Y%m%dT%H%M%SZ"), std::process::id());
        let path = folder.join(name);
        let opened = File::options().create(true).append(true).open(&path);
        let file = opened.with_context(|| format!("writing {}", path.display()))?;
        // Held as long as it is written: nobody removes it then. Where nothing can be locked, its age has to do.
        let _ = file.try_lock();
        remove_oldest(&folder, verb).with_context(|| format!("tidying {}", folder.display()))?;
        Ok(Self { path, file, written_bytes: 0, ours: Some((folder, verb)) })
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        if let (Some((folder, verb)), true) = (&self.ours, self.written_bytes >= FULL_BYTES) {
            *self = Self::in_folder(folder.clone(), verb)?;
        }
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).with_context(|| format!("writing {}", self.path.display()))?;
        self.written_bytes += text.len() as u64;
        Ok(())
    }
}

/// Leaves the newest files of a verb; the name says how old one is. Those that somebody still writes stay.
fn remove_oldest(folder: &Path, verb: &str) -> std::io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let ours = name.to_str().is_some_and(|name| {
            name.strip_prefix(verb).is_some_and(|rest| rest.starts_with('-')) && name.ends_with(".jsonl")
        });
        if ours {
            names.push(name);
        }
    }
    names.sort();
    for name in names.iter().rev().skip(KEPT) {
        let path = folder.join(name);
        let in_use =
            File::open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !in_use
            && let Err(error) = std::fs::remove_file(&path)
            // Another process may have been quicker.
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Where the files are when nobody says where.
fn folder() -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let own = named("VELA_STATE_DIR");
    // A relative one is void, says the standard that it is from.
    let state = || named("XDG_STATE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("vela"));
    let home = || std::env::home_dir().filter(|path| path.is_absolute());
    let folder = own.or_else(state).or_else(|| home().map(|path| path.join(".local/state/vela")));
    let folder = folder.context(
        "the gate's verdicts need a place, and there is no home folder: set VELA_STATE_DIR, name a file with --log, or \
         write none with --no-log",
    )?;
    Ok(folder.join("verdicts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_go_but_not_those_that_are_written_or_another_verb_s() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let name = |verb: &str, k: usize| dir.path().join(format!("{verb}-2026{k:04}T000000Z-1.jsonl"));
        for k in 0..KEPT + 5 {
            File::create(name("sim", k))?;
            File::create(name("simmer", k))?;
        }
        let written = File::open(name("sim", 1))?;
        written.try_lock()?;
        remove_oldest(dir.path(), "sim")?;
        let left = |verb: &str| (0..KEPT + 5).filter(|k| name(verb, *k).exists()).collect::<Vec<_>>();
        assert_eq!(left("sim"), [vec![1], (5..KEPT + 5).collect()].concat());
        assert_eq!(left("simmer").len(), KEPT + 5);
        Ok(())
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_no_line_is_lost() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut book = Book::in_folder(dir.path().to_owned(), "sim")?;
        let before = book.path.with_file_name("sim-19700101T000000Z-1.jsonl");
        std::fs::rename(&book.path, &before)?;
        book.write(&json!({"tick": 0}))?;
        book.written_bytes = FULL_BYTES;
        book.write(&json!({"tick": 1}))?;
        assert_eq!(std::fs::read_to_string(&before)?, "{\"tick\":0}\n");
        assert_eq!(std::fs::read_to_string(&book.path)?, "{\"tick\":1}\n");
        Ok(())
    }
}
