//! A robot or environment that records what passes through it. Encoding and writing happen on a thread of their
//! own: the control loop never waits for a disk.

use crate::{DatasetWriter, Ruling, Step, Writing};
use std::cell::Cell;
use std::sync::Arc;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Environment, Episode, Error, Observation, Outcome, Result,
    Robot,
};

/// Wraps a robot (or environment) and records, for every action, the observation before it and the targets that
/// were really sent, and what the gate said where that was not what was asked. Episodes are committed by [`Recorder::end_episode`]; one that is not is forgotten at the next
/// reset. It is at most one second behind: made for lockstep, where [`Robot::apply`] waits for a slow disk rather than
/// lose more than that to a kill.
#[derive(Debug)]
pub struct Recorder<R> {
    inner: R,
    seen: Option<Observation>,
    label: Option<Action>,
    intervention: Cell<bool>,
    instruction: Option<String>,
    writing: Writing,
}

impl<R: Robot> Recorder<R> {
    /// Records into `writer`.
    ///
    /// # Errors
    /// The writing thread cannot be started.
    pub fn new(inner: R, writer: DatasetWriter) -> Result<Self> {
        Ok(Self {
            inner,
            seen: None,
            label: None,
            intervention: Cell::new(false),
            instruction: None,
            writing: Writing::start(writer)?,
        })
    }

    /// What is wrapped.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// What is wrapped.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The next frame is recorded with this action in place of the one that is sent: an expert's label on a state
    /// that a policy reached.
    pub fn label(&mut self, action: Action) {
        self.label = Some(action);
    }

    /// The next frame is marked: its action was chosen by a person or an expert in the policy's place.
    pub fn mark_intervention(&self) {
        self.intervention.set(true);
    }

    /// Commits the episode under the instruction of its observations; `extra` is kept beside it as JSON. Does not
    /// wait for the disk.
    ///
    /// # Errors
    /// No frame was recorded, or an earlier write failed: then recording has ended and this is why.
    pub fn end_episode(&mut self, extra: serde_json::Value) -> Result<()> {
        let task = self.instruction.take().ok_or_else(|| Error::Shape {
            what: "episode to commit".into(),
            expected: "at least one frame".into(),
            got: "none".into(),
        })?;
        self.seen = None;
        self.writing.end_episode(task, extra)
    }

    /// Forgets the episode that is being recorded.
    pub fn discard_episode(&mut self) {
        (self.seen, self.label, self.instruction) = (None, None, None);
        self.intervention.set(false);
        self.writing.discard_episode();
    }

    /// Waits until everything is on disk, and gives both parts back.
    ///
    /// # Errors
    /// A write failed.
    pub fn finish(self) -> Result<(R, DatasetWriter)> {
        let writer = self.writing.finish()?;
        Ok((self.inner, writer))
    }
}

impl<R: Robot> Robot for Recorder<R> {
    fn embodiment(&self) -> &Embodiment {
        self.inner.embodiment()
    }

    fn observe(&mut self) -> Result<Observation> {
        let observation = self.inner.observe()?;
        self.seen = Some(observation.clone());
        Ok(observation)
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let ruling = Ruling::of(&action);
        let applied = self.inner.apply(action)?;
        let (label, intervention) = (self.label.take(), self.intervention.take());
        if let Some(observation) = self.seen.take() {
            self.instruction.get_or_insert_with(|| observation.instruction.clone());
            let action = label.unwrap_or_else(|| Action { joint_targets: applied.joint_targets.clone() });
            // The arm is not stopped for a full disk; `end_episode` and `finish` report it.
            let _ = self.writing.add(Step { observation, action, intervention, ruling });
        }
        Ok(applied)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }
}

impl<E: Environment> Environment for Recorder<E> {
    fn reset(&mut self, episode: &Episode) -> Result<()> {
        self.discard_episode();
        self.inner.reset(episode)
    }

    fn outcome(&self) -> Outcome {
        self.inner.outcome()
    }
}
