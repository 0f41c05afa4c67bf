//! The handle: cheap calls from the control loop, a thread that does the work, and where the recording goes.

use crate::scribe::Scribe;
use crate::{Error, Result, Solid};
use nalgebra::Isometry3;
use rerun::{RecordingStream, RecordingStreamBuilder};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use vela_embodiment::{Embodiment, Observation, Stamp, Trip};

/// Where a recording goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A new .rrd file.
    File(PathBuf),
    /// The rerun viewer, which is started unless it runs; it listens on loopback only.
    Viewer,
    /// Both.
    FileAndViewer(PathBuf),
}

/// What happens to calls when the showing thread is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backlog {
    /// They are left out and counted: nothing may slow a real-time loop.
    #[default]
    Drop,
    /// They wait: in lockstep every tick is to be seen.
    Wait,
}

/// One control tick.
#[derive(Clone, Debug)]
pub struct Tick {
    /// What was seen; its stamp is the tick's time. A picture is shown once, however often it comes.
    pub observation: Observation,
    /// What was sent, rad or m.
    pub joint_targets: Vec<f64>,
    /// Whether the gate replaced what was asked with a hold.
    pub held: bool,
    /// Why the gate stepped in, if it did.
    pub trips: Vec<Trip>,
    /// Where the solids of [`Show::solids`] are now, in their order; empty to leave them.
    pub base_from_solids: Vec<Isometry3<f64>>,
}

/// How showing went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Calls that were shown.
    pub shown: u64,
    /// Calls that were left out because the thread was behind.
    pub dropped: u64,
}

pub(crate) enum Event {
    Begin { number: usize, instruction: String, stamp: Stamp },
    Solids(Vec<Solid>),
    Tick(Box<Tick>),
    Plan { joint_targets: Vec<Vec<f64>>, stamp: Stamp },
    Asked { joint_targets: Vec<f64>, stamp: Stamp },
    Latency { stage: String, secs: f64, stamp: Stamp },
    Note { text: String, stamp: Stamp },
    End { success: bool, words: String, stamp: Stamp },
}

/// Calls that may wait for the showing thread.
const QUEUE: usize = 512;

/// Shows one robot. Calls return at once; the recording is complete when [`Show::finish`] returns.
#[derive(Debug)]
pub struct Show {
    events: Option<mpsc::SyncSender<Event>>,
    thread: Option<JoinHandle<std::result::Result<u64, String>>>,
    backlog: Backlog,
    dropped: Arc<AtomicU64>,
    name: String,
}

impl Show {
    /// Shows `embodiment` at a destination.
    ///
    /// # Errors
    /// The file cannot be written, the viewer cannot be started, or the URDF cannot be drawn.
    pub fn open(destination: &Destination, embodiment: &Embodiment, backlog: Backlog) -> Result<Self> {
        let builder = builder();
        match destination {
            Destination::File(path) => {
                let recording = builder.save(path).map_err(failed(path))?;
                Self::start(recording, &path.display().to_string(), embodiment, backlog)
            }
            Destination::Viewer => {
                spawn_viewer()?;
                let recording = builder.connect_grpc().map_err(|e| Error::Viewer(e.to_string()))?;
                Self::start(recording, "the viewer", embodiment, backlog)
            }
            Destination::FileAndViewer(path) => {
                spawn_viewer()?;
                let file = rerun::sink::FileSink::new(path).map_err(failed(path))?;
                let recording =
                    builder.set_sinks((file, rerun::sink::GrpcSink::default())).map_err(failed(path))?;
                Self::start(recording, &path.display().to_string(), embodiment, backlog)
            }
        }
    }

    /// Shows `embodiment` into memory, where a test can look at it.
    ///
    /// # Errors
    /// The URDF cannot be drawn.
    pub fn to_memory(embodiment: &Embodiment) -> Result<(Self, rerun::sink::MemorySinkStorage)> {
        let (recording, storage) = builder().memory().map_err(failed(Path::new("memory")))?;
        Ok((Self::start(recording, "memory", embodiment, Backlog::Wait)?, storage))
    }

    fn start(
        recording: RecordingStream,
        name: &str,
        embodiment: &Embodiment,
        backlog: Backlog,
    ) -> Result<Self> {
        let mut scribe = Scribe::new(recording, embodiment)?;
        let (events, inbox) = mpsc::sync_channel(QUEUE);
        let work = move || {
            let mut shown = 0;
            for event in inbox {
                scribe.write(event).map_err(|e| e.to_string())?;
                shown += 1;
            }
            scribe.flush().map(|()| shown)
        };
        let thread = std::thread::Builder::new().name("show".into()).spawn(work);
        let thread = thread.map_err(|e| Error::Recording { path: name.to_owned(), why: e.to_string() })?;
        Ok(Self {
            events: Some(events),
            thread: Some(thread),
            backlog,
            dropped: Arc::default(),
            name: name.to_owned(),
        })
    }

    /// An episode begins; it follows the last one on the timeline, whatever its clock says.
    pub fn begin_episode(&self, number: usize, instruction: &str, stamp: Stamp) {
        self.send(Event::Begin { number, instruction: instruction.to_owned(), stamp });
    }

    /// The things that stand around the arm in this episode; those of the last one go.
    pub fn solids(&self, solids: Vec<Solid>) {
        self.send(Event::Solids(solids));
    }

    /// One control tick.
    pub fn tick(&self, tick: Tick) {
        self.send(Event::Tick(Box::new(tick)));
    }

    /// The plan that is carried out from now on: absolute joint targets `[steps][joints]`, rad or m.
    pub fn plan(&self, joint_targets: &[Vec<f64>], stamp: Stamp) {
        self.send(Event::Plan { joint_targets: joint_targets.to_vec(), stamp });
    }

    /// What a policy would have asked for where something else was sent: absolute joint targets, rad or m.
    pub fn asked(&self, joint_targets: &[f64], stamp: Stamp) {
        self.send(Event::Asked { joint_targets: joint_targets.to_vec(), stamp });
    }

    /// How long a stage took ("policy", "render", "link", ...).
    pub fn latency(&self, stage: &str, secs: f64, stamp: Stamp) {
        self.send(Event::Latency { stage: stage.to_owned(), secs, stamp });
    }

    /// A line for the log.
    pub fn note(&self, text: &str, stamp: Stamp) {
        self.send(Event::Note { text: text.to_owned(), stamp });
    }

    /// The episode has ended; `words` say how.
    pub fn end_episode(&self, success: bool, words: &str, stamp: Stamp) {
        self.send(Event::End { success, words: words.to_owned(), stamp });
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(mut self) -> Result<Report> {
        self.events = None;
        let failed = |why: String| Error::Recording { path: self.name.clone(), why };
        let ended = self.thread.take().map(JoinHandle::join);
        let shown = match ended {
            Some(Ok(result)) => result.map_err(failed)?,
            _ => return Err(failed("the showing thread died".into())),
        };
        Ok(Report { shown, dropped: self.dropped.load(Ordering::Relaxed) })
    }

    fn send(&self, event: Event) {
        let Some(events) = &self.events else { return };
        let sent = match self.backlog {
            Backlog::Wait => events.send(event).is_ok(),
            Backlog::Drop => events.try_send(event).is_ok(),
        };
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn builder() -> RecordingStreamBuilder {
    RecordingStreamBuilder::new("vela")
}

fn failed<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Error + '_ {
    move |e| Error::Recording { path: path.display().to_string(), why: e.to_string() }
}

fn spawn_viewer() -> Result<()> {
    let options = rerun::SpawnOptions {
        // Rerun's own default listens on every interface.
        extra_args: vec!["--bind".into(), "127.0.0.1".into()],
        hide_welcome_screen: true,
        wait_for_bind: true,
        ..rerun::SpawnOptions::default()
    };
    // The rest of rerun's text is about installing; ours says that in one sentence.
    let first_line = |e: rerun::SpawnError| e.to_string().lines().next().unwrap_or_default().to_owned();
    rerun::spawn(&options).map(|_| ()).map_err(|e| Error::Viewer(first_line(e)))
}
