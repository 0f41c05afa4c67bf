//! What the threads of one arm share. The loop only ever tries its locks.

use super::{ControlEvent, State};
use crate::resolve::Plan;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{Clock, EmergencyStop, Error, JointReading, Observation, Result, Stamp};

/// A thread that panicked left whole values behind: every write below is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest value of something, for one writer that must not wait and readers that may: a simulated arm's loop
/// offers drawings, its camera thread waits for them.
#[derive(Debug)]
pub struct Latest<T> {
    slot: Mutex<(u64, Option<T>)>,
    changed: Condvar,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { slot: Mutex::new((0, None)), changed: Condvar::new() }
    }
}

impl<T: Clone> Latest<T> {
    /// Replaces the value; returns false, without waiting, when a reader is just copying the old one.
    pub fn offer(&self, value: T) -> bool {
        let Ok(mut slot) = self.slot.try_lock() else { return false };
        *slot = (slot.0 + 1, Some(value));
        drop(slot);
        self.changed.notify_all();
        true
    }

    /// Replaces the value, for a writer that may wait until a reader has copied the old one.
    pub fn put(&self, value: T) {
        let mut slot = lock(&self.slot);
        slot.0 += 1;
        // Given back to the memory after the lock.
        let _old = slot.1.replace(value);
        drop(slot);
        self.changed.notify_all();
    }

    /// The value, if there is one.
    pub fn get(&self) -> Option<T> {
        lock(&self.slot).1.clone()
    }

    /// Waits for a value newer than number `seen` (0 at first); its number and itself, or `None` after `timeout`.
    pub fn wait_newer(&self, seen: u64, timeout: Duration) -> Option<(u64, T)> {
        let (slot, _) = self
            .changed
            .wait_timeout_while(lock(&self.slot), timeout, |slot| slot.0 <= seen)
            .unwrap_or_else(PoisonError::into_inner);
        (slot.0 > seen).then(|| slot.1.clone().map(|value| (slot.0, value))).flatten()
    }
}

const NO_FRAME: u64 = u64::MAX;
/// Joint readings kept to pair with frames: more than a second at any usual rate.
const READINGS: usize = 128;
/// Observations kept for policies with a history.
const OBSERVATIONS: usize = 16;

pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    readings: Mutex<VecDeque<JointReading>>,
    observations: Mutex<VecDeque<Arc<Observation>>>,
    newest_frame: AtomicU64,
    camera_error: Mutex<Option<String>>,
    instruction: Mutex<String>,
    state: Mutex<State>,
    stop_reason: Mutex<Option<String>>,
    stopping: AtomicBool,
    ended: AtomicBool,
    pub(super) events_dropped: AtomicU64,
    pub(super) emergency: EmergencyStop,
}

impl Shared {
    pub(super) fn new(instruction: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            readings: Mutex::default(),
            observations: Mutex::default(),
            newest_frame: AtomicU64::new(NO_FRAME),
            camera_error: Mutex::default(),
            instruction: Mutex::new(instruction.to_owned()),
            state: Mutex::new(State::Holding { reason: "waiting for the first plan".into() }),
            stop_reason: Mutex::default(),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            events_dropped: AtomicU64::new(0),
            emergency: EmergencyStop::default(),
        }
    }

    /// Called by the loop: skipped when the camera thread is reading.
    pub(super) fn offer_reading(&self, reading: &JointReading) {
        if let Ok(mut readings) = self.readings.try_lock() {
            if readings.len() == READINGS {
                readings.pop_front();
            }
            readings.push_back(reading.clone());
        }
    }

    /// The reading nearest to `stamp`.
    pub(super) fn reading_at(&self, stamp: Stamp) -> Option<JointReading> {
        lock(&self.readings).iter().min_by_key(|r| r.stamp.0.abs_diff(stamp.0)).cloned()
    }

    pub(super) fn observed(&self, observation: Arc<Observation>, frame: Stamp) {
        let mut observations = lock(&self.observations);
        if observations.len() == OBSERVATIONS {
            observations.pop_front();
        }
        observations.push_back(observation);
        drop(observations);
        *lock(&self.camera_error) = None;
        self.newest_frame.store(frame.0, Ordering::Release);
    }

    /// The newest `count` observations, oldest first; the oldest stands for those that are not there yet.
    pub(super) fn history(&self, count: usize) -> Vec<Arc<Observation>> {
        let observations = lock(&self.observations);
        let newest = observations.iter().skip(observations.len().saturating_sub(count)).cloned();
        let mut history: Vec<_> = newest.collect();
        if let Some(oldest) = history.first().cloned() {
            while history.len() < count {
                history.insert(0, oldest.clone());
            }
        }
        history
    }

    /// Age of the newest frames at `now`, s; `None` before the first.
    pub(super) fn frame_age_secs(&self, now: Stamp) -> Option<f64> {
        let stamp = self.newest_frame.load(Ordering::Acquire);
        (stamp != NO_FRAME).then(|| now.secs_since(Stamp(stamp)))
    }

    pub(super) fn camera_failed(&self, why: String) {
        *lock(&self.camera_error) = Some(why);
    }

    /// Called by the loop: `None` also when the camera thread is writing.
    pub(super) fn camera_error(&self) -> Option<String> {
        self.camera_error.try_lock().ok().and_then(|error| error.clone())
    }

    pub(super) fn instruction(&self) -> String {
        lock(&self.instruction).clone()
    }

    /// Called by the loop; false, without waiting, when someone is reading the state.
    pub(super) fn offer_state(&self, state: &State) -> bool {
        let free = self.state.try_lock().map(|mut slot| slot.clone_from(state));
        free.is_ok()
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop_reason(&self) -> String {
        self.stop_reason
            .try_lock()
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_else(|| "asked to stop".into())
    }

    /// The loop has ended: the last state, waited for, since nothing moves any more.
    pub(super) fn end(&self, state: State) {
        *lock(&self.state) = state;
        self.ended.store(true, Ordering::Release);
        self.stopping.store(true, Ordering::Release);
    }
}

/// Sends events and never waits: what does not fit is dropped and counted.
#[derive(Clone)]
pub(super) struct EventSink {
    sender: SyncSender<ControlEvent>,
    shared: Arc<Shared>,
}

impl EventSink {
    pub(super) fn new(sender: SyncSender<ControlEvent>, shared: Arc<Shared>) -> Self {
        Self { sender, shared }
    }

    pub(super) fn send(&self, event: ControlEvent) {
        if self.sender.try_send(event).is_err() {
            self.shared.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The remote control of a running loop.
#[derive(Clone)]
pub struct ControlHandle {
    shared: Arc<Shared>,
    commands: SyncSender<Plan>,
}

impl ControlHandle {
    pub(super) fn new(shared: Arc<Shared>, commands: SyncSender<Plan>) -> Self {
        Self { shared, commands }
    }

    /// What the loop is doing.
    pub fn state(&self) -> State {
        lock(&self.shared.state).clone()
    }

    /// Whether the loop has ended.
    pub fn ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Brakes the arm and ends the loop. The first reason stays.
    pub fn stop(&self, reason: &str) {
        lock(&self.shared.stop_reason).get_or_insert_with(|| reason.to_owned());
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// The arm's emergency stop: whoever presses it makes the arm brake and stand until it is released.
    pub fn emergency_stop(&self) -> EmergencyStop {
        self.shared.emergency.clone()
    }

    /// The sentence that the next observations carry.
    pub fn set_instruction(&self, sentence: &str) {
        sentence.clone_into(&mut lock(&self.shared.instruction));
    }

    /// The sentence of the present observations.
    pub fn instruction(&self) -> String {
        self.shared.instruction()
    }

    /// The newest joints that the loop read, if it has read any.
    pub fn joints(&self) -> Option<JointReading> {
        lock(&self.shared.readings).back().cloned()
    }

    /// The arm's clock.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.shared.clock.clone()
    }

    /// Makes the arm follow a trajectory through the gate; the policy waits until it is over.
    ///
    /// # Errors
    /// The loop has ended, or four commands are waiting.
    pub fn follow(&self, plan: Plan) -> Result<()> {
        self.commands
            .try_send(Plan { command: true, ..plan })
            .map_err(|_| Error::Robot("the trajectory was refused: the loop has ended or is busy".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_waits_for_newer_values_only() {
        let latest = Latest::default();
        assert_eq!(latest.wait_newer(0, Duration::from_millis(1)), None);
        assert!(latest.offer(5));
        assert_eq!(latest.wait_newer(0, Duration::from_millis(1)), Some((1, 5)));
        assert_eq!(latest.wait_newer(1, Duration::from_millis(1)), None);
        assert_eq!(latest.get(), Some(5));
        latest.put(6);
        assert_eq!(latest.wait_newer(1, Duration::from_millis(1)), Some((2, 6)));
    }
}
