//! A leader arm: the same servos without torque, moved by a person's hand.

use super::bus::Bus;
use super::{Calibration, ServoConfig, require_calibrated};
use vela_embodiment::{Embodiment, Result};

/// An arm that is only read.
pub struct LeaderArm {
    embodiment: Embodiment,
    calibration: Calibration,
    bus: Bus,
}

impl LeaderArm {
    /// Opens the port, finds every servo and takes its torque off: the arm falls if nobody holds it.
    ///
    /// # Errors
    /// The port cannot be opened, a servo does not answer (each is named), or the calibration misses a joint or is not
    /// the one that the servos keep.
    pub fn open(embodiment: &Embodiment, calibration: Calibration, config: &ServoConfig) -> Result<Self> {
        let mut bus = Bus::open(&config.port, config.baud, calibration.ids(embodiment)?)?;
        bus.find(&embodiment.joint_names())?;
        require_calibrated(&mut bus, embodiment, &calibration)?;
        bus.release()?;
        Ok(Self { embodiment: embodiment.clone(), calibration, bus })
    }

    /// Where the hand holds it: rad or m, in the embodiment's order, by LeRobot's convention (joints from the middle of
    /// their own range, the gripper from closed to open).
    ///
    /// # Errors
    /// A servo does not answer.
    pub fn pose(&mut self) -> Result<Vec<f64>> {
        let servos = self.bus.read()?;
        let joints = self.embodiment.joints.iter().zip(&servos);
        joints
            .map(|(joint, servo)| self.calibration.position(&self.embodiment, &joint.name, servo.ticks))
            .collect()
    }
}
