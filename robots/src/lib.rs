//! What runs beside an arm: control loop, chunk broker, rollout and the zenoh wire.
//!
//! Knows no tensors and no simulator: arms, environments, policies and experts come in as the traits of
//! `vela_embodiment`. Frames and stamps are the arm's; nothing here reads another clock.

pub mod arm_file;
pub mod control;
pub mod external;
pub mod feetech;
pub mod link;
pub mod priority;
pub mod queue;
pub mod resolve;
pub mod rollout;
pub mod ros2;
pub mod survey;
pub mod units;
pub mod wire;

pub use arm_file::{ArmFile, RealArm};
pub use control::{
    ControlEvent, ControlHandle, ControlOptions, ControlReport, Controller, Finished, Latest, State, Stretch,
    Stretches, TickReport, VerdictEntry, Verdicts,
};
pub use external::{External, ExternalExpert};
pub use link::{
    RemotePolicy, ServeEvent, ServeReport, Served, Side, StopListener, listen_for_stop, loopback_pair,
    loopback_pair_with, open_session, press_stop, release_stop, serve_policy, serve_robots,
};
pub use queue::{ChunkQueue, Merge};
pub use resolve::{Absolute, Plan, Resolver, chunk_seed, require_policy_fits};
pub use rollout::{Hook, Rollout, RolloutEvent, RolloutOptions, rollout, rollout_expert};
pub use units::{InUnits, JointScales, PolicyUnits};
