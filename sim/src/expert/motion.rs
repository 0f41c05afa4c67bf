//! From a goal of the tip to the next joint targets: straight lines, limited speed, the gripper pointing down.

use crate::pointing::Pointing;
use crate::state::WorldState;
use nalgebra::{Isometry3, Vector3};
use vela_embodiment::{Embodiment, Result};

/// Fastest turn about the vertical, rad/s.
const TURN_SPEED: f64 = 2.5;
/// Fastest motion of the gripper's joint, rad/s.
const GRIP_SPEED: f64 = 2.0;
/// Fastest motion of any other joint, rad/s.
const JOINT_SPEED: f64 = 2.7;
/// How fast the tip may gain speed, m/s^2.
const TIP_ACCELERATION: f64 = 2.0;
/// Share of the rest of the way that one tick may cover: the tip slows down before it arrives.
const EASE: f64 = 0.33;
/// A commanded joint may lead the measured one by this much, rad; more means that something is in the way.
const LEAD: f64 = 0.12;

/// Where the tip should go next.
#[derive(Clone, Copy, Debug)]
pub(super) struct TipGoal {
    /// m, in the base frame; reached in a straight line.
    pub position: Vector3<f64>,
    /// Direction from the fixed to the moving jaw about the vertical, rad.
    pub yaw: f64,
    /// Gripper joint, rad.
    pub gripper: f64,
    /// m/s
    pub speed: f64,
}

/// The arm as the expert commands it.
#[derive(Clone, Debug)]
pub(super) struct Reacher {
    pub pointing: Pointing,
    period_secs: f64,
}

/// Where the commanded tip is.
#[derive(Clone, Debug)]
pub(super) struct Tip {
    /// Commanded joints, rad, no further from the measured ones than [`LEAD`].
    joints: Vec<f64>,
    /// Its frame in the base.
    pub pose: Isometry3<f64>,
    /// Direction from the fixed to the moving jaw about the vertical, rad.
    pub yaw: f64,
    /// Measured gripper joint, rad.
    pub grip: f64,
    /// Commanded gripper joint, rad.
    pub grip_target: f64,
}

impl Reacher {
    pub fn new(embodiment: &Embodiment) -> Result<Self> {
        Ok(Self { pointing: Pointing::new(embodiment)?, period_secs: embodiment.period_secs() })
    }

    /// The commanded tip of a state.
    pub fn tip(&self, state: &WorldState) -> Tip {
        let joints: Vec<f64> = (state.joint_positions.iter().zip(&state.joint_targets).enumerate())
            .map(|(k, (measured, target))| match k == self.pointing.gripper {
                true => *target,
                false => measured + (target - measured).clamp(-LEAD, LEAD),
            })
            .collect();
        let pose = self.pointing.kinematics.base_from_tip(&joints);
        Tip {
            yaw: Pointing::yaw(&pose),
            grip: state.joint_positions.get(self.pointing.gripper).copied().unwrap_or(0.0),
            grip_target: state.joint_targets.get(self.pointing.gripper).copied().unwrap_or(0.0),
            joints,
            pose,
        }
    }

    /// Joint targets of the next tick on the way to a goal.
    pub fn advance(&self, state: &WorldState, tip: &Tip, goal: &TipGoal) -> Vec<f64> {
        let dt = self.period_secs;
        let here = tip.pose.translation.vector;
        let way = goal.position - here;
        let speed = goal.speed.min(self.tip_speed(state) + TIP_ACCELERATION * dt);
        let reach = (speed * dt).min(way.norm() * EASE);
        let turn = (EASE * wrap(goal.yaw - tip.yaw)).clamp(-TURN_SPEED * dt, TURN_SPEED * dt);
        let position = here + way * (reach / way.norm().max(1e-9));
        let wanted = self
            .pointing
            .joints(&position, tip.yaw + turn, &tip.joints)
            .unwrap_or_else(|| tip.joints.clone());
        let largest = wanted.iter().zip(&tip.joints).map(|(to, from)| (to - from).abs()).fold(0.0, f64::max);
        let scale = (JOINT_SPEED * dt / largest.max(1e-9)).min(1.0);
        let mut targets: Vec<f64> =
            wanted.iter().zip(&tip.joints).map(|(to, from)| from + (to - from) * scale).collect();
        let grip = (goal.gripper - tip.grip_target).clamp(-GRIP_SPEED * dt, GRIP_SPEED * dt);
        if let Some(target) = targets.get_mut(self.pointing.gripper) {
            *target = tip.grip_target + grip;
        }
        targets
    }

    /// m/s
    fn tip_speed(&self, state: &WorldState) -> f64 {
        let next: Vec<f64> = (state.joint_positions.iter().zip(&state.joint_speeds))
            .map(|(position, speed)| position + speed * self.period_secs)
            .collect();
        let moved = self.pointing.kinematics.base_from_tip(&next).translation.vector
            - self.pointing.kinematics.base_from_tip(&state.joint_positions).translation.vector;
        moved.norm() / self.period_secs
    }
}

/// The same angle between -pi and pi.
pub(super) fn wrap(angle: f64) -> f64 {
    let turn = std::f64::consts::TAU;
    angle - turn * (angle / turn).round()
}
