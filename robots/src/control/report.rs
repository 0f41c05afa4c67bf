//! What the loop tells while it runs and when it has ended.

use super::State;
use crate::priority::Scheduling;
use crate::queue::Merge;
use crate::resolve::Plan;
use std::collections::BTreeMap;
use std::sync::Arc;
use vela_embodiment::{ActionChunk, Observation, Stamp, Trip, TripReason};

/// One tick.
#[derive(Clone, Debug, PartialEq)]
pub struct TickReport {
    /// Ticks before this one.
    pub tick: u64,
    /// When it started.
    pub stamp: Stamp,
    /// How long after its time it started, s.
    pub late_secs: f64,
    /// Measured joints, rad or m.
    pub joints: Vec<f64>,
    /// What the plan asked, if there was one.
    pub asked: Option<Vec<f64>>,
    /// Whether that was a person's or another program's command, in the policy's place.
    pub commanded: bool,
    /// What was sent to the arm, rad or m.
    pub targets: Vec<f64>,
    /// Whether the gate replaced it by a hold.
    pub held: bool,
    /// Why the gate stepped in, if it did.
    pub trips: Vec<Trip>,
    /// Age of the newest frames, s.
    pub frame_age_secs: Option<f64>,
}

/// What listeners see.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlEvent {
    /// The loop asked for a real-time priority; comes first, and only if it asked.
    Scheduled(Scheduling),
    /// New frames with the joints of their moment.
    Observed(Arc<Observation>),
    /// The policy answered. Comes from the planner, before the loop has taken the plan.
    Chunk {
        /// What it was asked.
        observation: Arc<Observation>,
        /// What it said.
        chunk: Arc<ActionChunk>,
        /// The same in absolute joint targets.
        plan: Arc<Plan>,
        /// How long the policy took, link included, s.
        infer_secs: f64,
    },
    /// The loop took or refused a plan.
    Merged {
        /// What became of it.
        merge: Merge,
        /// From the observation to this tick, s.
        latency_secs: f64,
        /// When.
        stamp: Stamp,
    },
    /// The policy failed.
    Failed {
        /// Why.
        why: String,
        /// When.
        stamp: Stamp,
    },
    /// One tick was carried out.
    Tick(TickReport),
    /// The loop does something else now.
    State {
        /// What.
        state: State,
        /// Since when.
        stamp: Stamp,
    },
}

/// How a control loop went.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlReport {
    /// Ticks carried out.
    pub ticks: u64,
    /// Ticks that started late.
    pub late_ticks: u64,
    /// The latest start after its time, s.
    pub worst_late_secs: f64,
    /// Ticks on which the gate held the arm.
    pub held_ticks: u64,
    /// Plans of the policy that were taken.
    pub chunks: u64,
    /// Seconds of each inference, link included (the first 100,000).
    pub infer_secs: Vec<f64>,
    /// Seconds from an observation to the tick that had its plan (the first 100,000).
    pub latency_secs: Vec<f64>,
    /// How often the policy failed.
    pub failures: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
    /// How often the gate stepped in, by reason.
    pub trips: BTreeMap<TripReason, u64>,
    /// Events that a slow listener missed.
    pub events_dropped: u64,
    /// Whether the loop ran in real time.
    pub real_time: bool,
    /// How it ended.
    pub state: State,
}

impl ControlReport {
    pub(super) fn new() -> Self {
        Self {
            ticks: 0,
            late_ticks: 0,
            worst_late_secs: 0.0,
            held_ticks: 0,
            chunks: 0,
            infer_secs: Vec::new(),
            latency_secs: Vec::new(),
            failures: 0,
            last_failure: None,
            trips: BTreeMap::new(),
            events_dropped: 0,
            real_time: false,
            state: State::Holding { reason: "waiting for the first plan".into() },
        }
    }

    /// Of a loop whose thread did not come back.
    pub(super) fn died() -> Self {
        Self { state: State::Stopped { reason: "the control loop's thread died".into() }, ..Self::new() }
    }
}
