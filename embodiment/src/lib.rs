//! What a robot is and what it may do: the ground under the robots.
//!
//! Joints, cameras, units, time, kinematics, what is observed and what is commanded, the traits that
//! robots, simulators and policies implement, and the safety gate. Knows nothing of tensors or networks.

pub mod action;
pub mod clock;
pub mod contracts;
pub mod error;
pub mod gate;
pub mod ik;
pub mod kinematics;
pub mod model;
pub mod observation;
pub mod robot;
pub mod safety;
pub mod stream;

pub use action::{Action, ActionChunk, ActionSpace};
pub use clock::{Clock, MonotonicClock, Stamp, VirtualClock, unix_seconds, unix_time};
pub use contracts::{
    Applied, Environment, Episode, Expert, FrameSource, InferOptions, JointReading, JointSide, Outcome,
    Policy, PolicySpec, Robot,
};
pub use error::{Error, Result};
pub use gate::{Checked, EmergencyStop, SafetyGate, Trip, TripReason, Verdict};
pub use ik::{IkGoal, IkOptions};
pub use kinematics::Kinematics;
pub use model::{Geometry, Link, ModelJoint, RobotModel, Shape};
pub use observation::{Frame, Observation};
pub use robot::{Camera, Embodiment, Gripper, Joint, JointKind, Limits};
pub use safety::{Capsule, GateConfig, Narrowing, Safety, Zone};
pub use stream::{fnv1a, stream};
