//! The loop itself.

use super::planner::{Request, Thought};
use super::report::{ControlEvent, ControlReport, TickReport};
use super::shared::{EventSink, Shared};
use super::verdicts::VerdictSink;
use super::{ControlOptions, State};
use crate::priority::{self, Scheduling, Urgency};
use crate::queue::{ChunkQueue, Merge};
use crate::resolve::Plan;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use vela_embodiment::{JointReading, JointSide, SafetyGate, Stamp, TripReason};

/// Figures of a long run are kept up to this many.
const KEPT: usize = 100_000;
/// A failed policy is asked again after this time, s.
const RETRY_SECS: f64 = 0.1;
/// Braking within the limits ends by itself; a loop that never came to it would never end, s.
const BRAKING_SECS: f64 = 30.0;
/// Chunks are expected to take this many ticks until the first was measured.
const FIRST_LEAD_TICKS: usize = 2;

pub(super) struct Channels {
    pub(super) requests: SyncSender<Request>,
    pub(super) answers: Receiver<Result<Thought, String>>,
    pub(super) commands: Receiver<Plan>,
}

/// Drives the arm until it is stopped, and gives it back.
pub(super) fn run<A: JointSide>(
    mut arm: A,
    channels: &Channels,
    shared: &Shared,
    sink: &EventSink,
    verdicts: VerdictSink,
    options: &ControlOptions,
) -> (A, ControlReport) {
    let scheduling = options.real_time.then(|| priority::ask(Urgency::Control));
    let real_time = scheduling.as_ref().is_some_and(Scheduling::is_real_time);
    if let Some(scheduling) = scheduling {
        sink.send(ControlEvent::Scheduled(scheduling));
    }
    let first = arm.joints().and_then(|reading| {
        let mut gate = SafetyGate::new(arm.embodiment(), options.gate.clone(), &reading.positions)?;
        gate.listen_to(&shared.emergency);
        Ok((gate, reading))
    });
    let (gate, reading) = match first {
        Ok(first) => first,
        Err(error) => {
            let state = State::Stopped { reason: error.to_string() };
            shared.end(state.clone());
            return (arm, ControlReport { state, ..ControlReport::new() });
        }
    };
    let period = arm.embodiment().period_secs();
    let mut tick = Loop {
        period,
        queue: ChunkQueue::new(period, options.execute.unwrap_or(1)),
        gate,
        reading,
        channels,
        shared,
        sink,
        verdicts,
        options,
        report: ControlReport { real_time, ..ControlReport::new() },
        asked: 0,
        in_flight: false,
        retry_from: Stamp(0),
        failure: None,
        lead_ticks: FIRST_LEAD_TICKS,
        held_since: None,
        had_plan: false,
        pressed: None,
        braking: 0,
    };
    let clock = shared.clock.clone();
    let mut due = clock.now();
    loop {
        clock.sleep_until(due);
        let now = clock.now();
        let late_secs = now.secs_since(due).max(0.0);
        if !tick.once(&mut arm, now, late_secs) {
            break;
        }
        // After a late start the beat moves: a burst of ticks to catch up would be faster than the gate's limits.
        due = if late_secs > options.late_part * period { now } else { due }.plus_secs(period);
    }
    tick.report.trips.clone_from(tick.gate.counts());
    tick.report.events_dropped = shared.events_dropped.load(Ordering::Relaxed);
    shared.end(tick.report.state.clone());
    (arm, tick.report)
}

struct Loop<'a> {
    period: f64,
    queue: ChunkQueue,
    gate: SafetyGate,
    reading: JointReading,
    channels: &'a Channels,
    shared: &'a Shared,
    sink: &'a EventSink,
    verdicts: VerdictSink,
    options: &'a ControlOptions,
    report: ControlReport,
    asked: u64,
    in_flight: bool,
    retry_from: Stamp,
    /// The policy's last failure, forgotten when it answers again.
    failure: Option<String>,
    lead_ticks: usize,
    held_since: Option<Stamp>,
    had_plan: bool,
    /// When the emergency stop was last seen pressed: plans for observations before that are not taken.
    pressed: Option<Stamp>,
    braking: u32,
}

impl Loop<'_> {
    /// One tick; false when the arm stands still after a stop.
    fn once<A: JointSide>(&mut self, arm: &mut A, now: Stamp, late_secs: f64) -> bool {
        self.report.ticks += 1;
        self.report.late_ticks += u64::from(late_secs > self.options.late_part * self.period);
        self.report.worst_late_secs = self.report.worst_late_secs.max(late_secs);

        let read = arm.joints().map_err(|error| error.to_string());
        let mut trouble = match read {
            Ok(reading) => {
                self.shared.offer_reading(&reading);
                self.gate.feel(&reading.efforts);
                self.reading = reading;
                let most = self.options.max_joint_age_secs;
                (now.secs_since(self.reading.stamp) > most)
                    .then(|| format!("joints: the newest reading is more than {most} s old"))
            }
            Err(why) => Some(why),
        };
        self.take_plans(now);
        if self.shared.emergency.pressed() {
            self.queue.clear();
            self.pressed = Some(now);
        }
        let frame_age_secs = self.shared.frame_age_secs(now);
        let blind = frame_age_secs.is_none_or(|age| age > self.options.max_frame_age_secs);
        if !blind {
            self.ask(now);
        }
        if self.shared.emergency.pressed() {
            trouble = Some(format!("emergency stop: {}", self.shared.emergency.reason()));
        }
        trouble = trouble.or_else(|| self.missing(now, blind, frame_age_secs));
        // Why nothing is followed, if nothing is.
        let cause = if self.shared.stopping() {
            Some(format!("stopped: {}", self.shared.stop_reason()))
        } else {
            trouble.clone()
        };
        let planned = if cause.is_none() { self.queue.action(now) } else { None };
        let commanded = planned.is_some() && self.queue.plan().is_some_and(|plan| plan.command);
        let verdict = match (&planned, &cause) {
            (None, Some(why)) => self.gate.hold(why, now),
            _ => self.gate.check(planned.as_ref().map(|(action, stamp)| (action, *stamp)), now),
        };
        if trouble.is_none() && verdict.held {
            trouble = verdict.trips.last().map(|trip| format!("gate, {:?}: {}", trip.reason, trip.detail));
        }
        self.report.held_ticks += u64::from(verdict.held);
        let targets = verdict.action.get().joint_targets.clone();
        let targets = match arm.apply(verdict.action) {
            Ok(applied) => applied.joint_targets,
            Err(error) => {
                trouble = Some(error.to_string());
                targets
            }
        };
        // A hurried tick after a hiccup is no loss of anything.
        let hurried = verdict.trips.last().is_some_and(|trip| trip.reason == TripReason::Rate);
        let resting = self.settle(if hurried { None } else { trouble }, now);
        let report = TickReport {
            tick: self.report.ticks - 1,
            stamp: now,
            late_secs,
            joints: self.reading.positions.clone(),
            asked: planned.map(|(action, _)| action.joint_targets),
            commanded,
            targets,
            held: verdict.held,
            trips: verdict.trips,
            frame_age_secs,
        };
        self.verdicts.tick(&report);
        self.sink.send(ControlEvent::Tick(report));
        !resting
    }

    /// Takes what the planner and commanders sent.
    fn take_plans(&mut self, now: Stamp) {
        while let Ok(command) = self.channels.commands.try_recv() {
            self.had_plan = true;
            self.queue.merge(Plan { observation_stamp: now, ..command }, now);
        }
        while let Ok(answer) = self.channels.answers.try_recv() {
            self.in_flight = false;
            match answer {
                Ok(thought) if self.pressed.is_some_and(|at| thought.plan.observation_stamp <= at) => {}
                Ok(thought) => {
                    let latency_secs = now.secs_since(thought.plan.observation_stamp);
                    self.queue.set_execute(self.options.execute.unwrap_or(thought.execute));
                    let merge = self.queue.merge((*thought.plan).clone(), now);
                    if let Merge::Taken { .. } = merge {
                        self.had_plan = true;
                        self.report.chunks += 1;
                    }
                    self.lead_ticks = (latency_secs / self.period).ceil().max(0.0) as usize;
                    if self.report.infer_secs.len() < KEPT {
                        self.report.infer_secs.push(thought.infer_secs);
                        self.report.latency_secs.push(latency_secs);
                    }
                    self.failure = None;
                    self.sink.send(ControlEvent::Merged { merge, latency_secs, stamp: now });
                }
                Err(why) => {
                    self.report.failures += 1;
                    self.report.last_failure = Some(why.clone());
                    self.failure = Some(why);
                    self.retry_from = now.plus_secs(RETRY_SECS);
                }
            }
        }
    }

    /// Asks the planner for a chunk if it is time to.
    fn ask(&mut self, now: Stamp) {
        if self.in_flight
            || now < self.retry_from
            || self.shared.stopping()
            || !self.queue.due(now, self.lead_ticks)
        {
            return;
        }
        let request = Request { number: self.asked, delay_ticks: self.lead_ticks, queue: self.queue.clone() };
        if self.channels.requests.try_send(request).is_ok() {
            self.asked += 1;
            self.in_flight = true;
        }
    }

    /// Why there is nothing to follow at this tick, if there is nothing.
    fn missing(&self, now: Stamp, blind: bool, frame_age_secs: Option<f64>) -> Option<String> {
        let commanded =
            self.queue.plan().is_some_and(|plan| plan.command) && self.queue.action(now).is_some();
        if blind && !commanded {
            let why = self.shared.camera_error();
            return Some(match (frame_age_secs, why) {
                (_, Some(why)) => format!("camera: {why}"),
                (Some(_), None) => {
                    format!("camera: the newest frame is more than {} s old", self.options.max_frame_age_secs)
                }
                (None, None) => "camera: no frame yet".into(),
            });
        }
        if self.queue.action(now).is_none() {
            let plan = if self.had_plan {
                "the plan has ended and no new one came"
            } else {
                "waiting for the first plan"
            };
            return Some(self.failure.clone().unwrap_or_else(|| plan.into()));
        }
        None
    }

    /// Decides the state; true when the loop may end.
    fn settle(&mut self, trouble: Option<String>, now: Stamp) -> bool {
        if !matches!(self.report.state, State::Stopped { .. }) {
            let state = if self.shared.stopping() {
                State::Stopped { reason: self.shared.stop_reason() }
            } else if let Some(reason) = trouble {
                self.held_since.get_or_insert(now);
                if self.shared.emergency.pressed() {
                    // Whoever pressed it decides when it is over.
                    self.held_since = None;
                }
                let since = self.held_since.unwrap_or(now);
                let (first, later) = (self.options.start_within_secs, self.options.stop_after_hold_secs);
                let patience = if self.had_plan { later } else { first.max(later) };
                if now.secs_since(since) > patience {
                    State::Stopped { reason: format!("held for {patience:.1} s: {reason}") }
                } else {
                    State::Holding { reason }
                }
            } else {
                self.held_since = None;
                State::Running
            };
            if self.report.state != state {
                // A hold whose reason only changes its figures is not news.
                let same = std::mem::discriminant(&self.report.state) == std::mem::discriminant(&state);
                self.report.state = state.clone();
                if !same {
                    self.sink.send(ControlEvent::State { state, stamp: now });
                }
            }
        }
        self.shared.offer_state(&self.report.state);
        if !matches!(self.report.state, State::Stopped { .. }) {
            return false;
        }
        self.braking += 1;
        let standing = self.gate.speeds().iter().all(|speed| speed.abs() < 1e-9);
        (standing && self.braking > 1) || f64::from(self.braking) * self.period > BRAKING_SECS
    }
}
