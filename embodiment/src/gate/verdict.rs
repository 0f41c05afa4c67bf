//! What the gate says: the action that may be sent, and why it is not the one that was asked.

use crate::{Action, Stamp};
use serde::{Deserialize, Serialize};

/// A value that the gate has passed. Nobody else can make one.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<T> {
    pub(in crate::gate) value: T,
    pub(in crate::gate) held: bool,
    pub(in crate::gate) trips: Vec<Trip>,
}

impl<T> Checked<T> {
    /// What was passed.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Takes what was passed.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Whether it is a hold in place of what was asked: a driver whose commands outlive a tick ends them.
    pub fn held(&self) -> bool {
        self.held
    }

    /// Why it is not what was asked: whoever is handed it can write that down. Empty after a plain pass.
    pub fn trips(&self) -> &[Trip] {
        &self.trips
    }
}

/// Why the gate stepped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TripReason {
    /// A target outside the joint's range was moved to it.
    Position,
    /// A target too far for one tick was brought nearer.
    Velocity,
    /// A change of speed too great for one tick was made smaller.
    Acceleration,
    /// A change of acceleration too great for one tick was made smaller.
    Jerk,
    /// A joint that pushes harder than it may was kept from pushing on.
    Effort,
    /// The tip would leave the workspace: hold.
    Workspace,
    /// The arm would enter a keep-out zone: hold.
    KeepOut,
    /// Two parts of the arm would touch: hold.
    SelfCollision,
    /// A target or a measured effort is not a finite number: hold.
    NotFinite,
    /// The wrong number of targets or efforts: hold.
    Shape,
    /// The plan answers an observation that is too old, or one from before an emergency stop: hold.
    Stale,
    /// There is no plan: hold.
    NoPlan,
    /// Two actions in less than half a control period: hold.
    Rate,
    /// Someone pressed the emergency stop: hold until it is released.
    EmergencyStop,
}

/// One intervention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    /// Why.
    pub reason: TripReason,
    /// Which joint or value, asked and allowed; of a hold without a plan, why there is none.
    pub detail: String,
    /// When.
    pub stamp: Stamp,
    /// Of [`TripReason::Stale`] and [`TripReason::Rate`] the time that was measured, ms: how old the observation is, how
    /// soon after the last action this one came. Not among the words, so that they are the same in every run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_ms: Option<f64>,
}

impl Trip {
    /// One that no measured time belongs to.
    pub fn new(reason: TripReason, detail: impl Into<String>, stamp: Stamp) -> Self {
        Self { reason, detail: detail.into(), stamp, measured_ms: None }
    }
}

/// What the gate made of one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The action to send; always within the limits.
    pub action: Checked<Action>,
    /// Whether the asked action was replaced by a hold.
    pub held: bool,
    /// Why, if the gate stepped in at all.
    pub trips: Vec<Trip>,
}
