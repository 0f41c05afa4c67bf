//! A dataset's writer on a thread of its own: whoever records never waits for a disk, and is at most a second ahead.

use crate::{DatasetWriter, Ruling};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use vela_embodiment::{Action, Error, Observation, Result};

/// One frame: what was seen, the joint targets (rad or m) that answered it, and whether a person or an expert chose them
/// in the policy's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What was seen.
    pub observation: Observation,
    /// What answered it.
    pub action: Action,
    /// Whether somebody took over from the policy.
    pub intervention: bool,
    /// What the safety gate made of it, if that was no plain pass and whoever records saw it.
    pub ruling: Option<Ruling>,
}

enum Event {
    Step(Step),
    End(String, serde_json::Value),
    Discard,
}

/// The thread and the way to it.
#[derive(Debug)]
pub struct Writing {
    events: Option<SyncSender<Event>>,
    thread: Option<JoinHandle<Result<DatasetWriter>>>,
}

impl Writing {
    /// Takes over a writer.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(writer: DatasetWriter) -> Result<Self> {
        // With the frame that is being written, a second of frames.
        let (events, inbox) = sync_channel(writer.fps().saturating_sub(1) as usize);
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || write(writer, &inbox))
            .map_err(|e| Error::Robot(format!("recorder thread: {e}")))?;
        Ok(Self { events: Some(events), thread: Some(thread) })
    }

    /// Adds a frame; waits while a second of frames is waiting for the disk. False when an earlier write failed:
    /// [`Writing::end_episode`] and [`Writing::finish`] say why.
    pub fn add(&self, step: Step) -> bool {
        self.events.as_ref().is_some_and(|events| events.send(Event::Step(step)).is_ok())
    }

    /// Adds a frame without waiting. False when it is lost, because a second of frames is waiting for the disk already or
    /// because an earlier write failed ([`Writing::is_over`]).
    pub fn offer(&self, step: Step) -> bool {
        self.events.as_ref().is_some_and(|events| events.try_send(Event::Step(step)).is_ok())
    }

    /// Whether a write failed: [`Writing::finish`] says why.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Commits the episode under a task; `extra` is kept beside it as JSON. Does not wait for the disk any longer than
    /// [`Writing::add`] does.
    ///
    /// # Errors
    /// An earlier write failed: then recording has ended and this is why.
    pub fn end_episode(&mut self, task: String, extra: serde_json::Value) -> Result<()> {
        if self.events.as_ref().is_some_and(|events| events.send(Event::End(task, extra)).is_ok()) {
            return Ok(());
        }
        // The thread only ends early with an error: it is the reason.
        self.join().and(Err(Error::Robot("the recorder has ended".into())))
    }

    /// Forgets the episode that is being recorded.
    pub fn discard_episode(&self) {
        // A failed writer is reported by `end_episode` and `finish`.
        if let Some(events) = &self.events {
            let _ = events.send(Event::Discard);
        }
    }

    /// Waits until everything is on disk, and gives the writer back.
    ///
    /// # Errors
    /// A write failed.
    pub fn finish(mut self) -> Result<DatasetWriter> {
        self.join()
    }

    fn join(&mut self) -> Result<DatasetWriter> {
        self.events = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::Robot("the recorder's thread died".into())),
            None => Err(Error::Robot("the recorder has ended".into())),
        }
    }
}

impl Drop for Writing {
    /// What was committed gets to the disk, also when whoever recorded has failed.
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn write(mut writer: DatasetWriter, inbox: &Receiver<Event>) -> Result<DatasetWriter> {
    for event in inbox {
        match event {
            Event::Step(step) => writer.add_step(step)?,
            Event::End(task, extra) => {
                writer.end_episode(&task, extra)?;
            }
            Event::Discard => writer.discard_episode()?,
        }
    }
    Ok(writer)
}
