//! The traits that robots, simulators, policies and experts implement. Wrappers implement what they wrap.

use crate::{
    Action, ActionChunk, ActionSpace, Checked, Clock, Embodiment, Frame, Observation, Result, Stamp,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a policy needs and gives; readable before anything moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// The robot it was trained for.
    pub embodiment: Embodiment,
    /// What its actions mean.
    pub space: ActionSpace,
    /// Actions per chunk.
    pub horizon: usize,
    /// How many of them to carry out before the next chunk.
    pub execute: usize,
    /// Observations it wants, oldest first.
    pub history: usize,
    /// Hash of its weights.
    pub checkpoint: String,
}

/// What a chunk is asked with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InferOptions {
    /// Seed of the sampling noise.
    pub seed: u64,
    /// Control ticks that are expected to pass between the observation and the chunk's arrival.
    pub delay_ticks: usize,
    /// The rest of the previous chunk in absolute joint targets, `[ticks][joints]`, rad or m: row `k` is for the tick
    /// of the new chunk's action `k`, and the first `delay_ticks` rows will be carried out whatever the answer.
    pub unexecuted: Vec<Vec<f64>>,
}

/// Answers observations with chunks of actions.
pub trait Policy: Send {
    /// What it needs and gives.
    fn spec(&self) -> &PolicySpec;
    /// The chunk that answers the newest of `history` (oldest first, [`PolicySpec::history`] long).
    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk>;
    /// Says whose questions follow, where several robots ask. Whatever a policy keeps from one answer to the next it keeps
    /// per robot; most keep nothing.
    fn turn_to(&mut self, _robot: &str) {}
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn spec(&self) -> &PolicySpec {
        (**self).spec()
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        (**self).infer(history, options)
    }

    fn turn_to(&mut self, robot: &str) {
        (**self).turn_to(robot);
    }
}

/// What was really sent to the motors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The targets that the driver accepted, rad or m.
    pub joint_targets: Vec<f64>,
    /// When.
    pub stamp: Stamp,
}

/// An arm that can be looked at and moved; moved only by what the gate has checked.
pub trait Robot: Send {
    /// What it is; readable without a connection.
    fn embodiment(&self) -> &Embodiment;
    /// The newest joints and frames. Never blocks on a camera outside lockstep.
    fn observe(&mut self) -> Result<Observation>;
    /// Sends one action. In lockstep it also advances the world by one control period.
    fn apply(&mut self, action: Checked<Action>) -> Result<Applied>;
    /// The clock its stamps come from.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// Measured joints at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JointReading {
    /// Positions in the embodiment's order, rad or m.
    pub positions: Vec<f64>,
    /// What they push with, N m or N, positive toward greater positions; empty when the robot does not measure it.
    pub efforts: Vec<f64>,
    /// When they were read.
    pub stamp: Stamp,
}

/// The joint side of a robot in real time: owned by the control loop's thread, cheap, never renders, never waits
/// for a camera, a model or a disk. A simulated arm that also draws hands a snapshot to its [`FrameSource`] here.
pub trait JointSide: Send {
    /// What it is.
    fn embodiment(&self) -> &Embodiment;
    /// The newest joints, rad or m.
    fn joints(&mut self) -> Result<JointReading>;
    /// Sends one action. A simulated arm also advances its world by one control period.
    fn apply(&mut self, action: Checked<Action>) -> Result<Applied>;
    /// The clock of every stamp, frames included.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// The camera side of a robot in real time: owned by the camera thread, may render or wait.
pub trait FrameSource: Send {
    /// One new frame per camera of the embodiment, stamped on the joint side's clock. Waits for the next ones; gives
    /// up with an error after a second at most, so that a dead camera is known and the thread can end.
    fn frames(&mut self) -> Result<Vec<Frame>>;
}

/// Which episode to play.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// The task's name, or a sentence of the user's own.
    pub task: String,
    /// Decides the scene, the phrasing and, with `randomise`, the looks and the physics.
    pub seed: u64,
    /// Domain randomisation on.
    pub randomise: bool,
}

/// How an episode stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The task's success test on the physical state holds (or held: it latches).
    pub success: bool,
    /// Success, or out of time.
    pub finished: bool,
    /// Seconds since the reset.
    pub seconds: f64,
}

/// A robot that can be reset and judged: the simulator, or an external one.
pub trait Environment: Robot {
    /// Sets up an episode; its instruction is in the observations that follow.
    fn reset(&mut self, episode: &Episode) -> Result<()>;
    /// How the episode stands now.
    fn outcome(&self) -> Outcome;
}

/// Knows the right action in any state of the environment it was made for.
pub trait Expert<E: Environment + ?Sized>: Send {
    /// Forgets the last episode.
    fn reset(&mut self);
    /// The action the expert would send in the environment's present state.
    fn label(&mut self, environment: &E) -> Result<Action>;
}
