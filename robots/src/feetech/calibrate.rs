//! Calibrating an SO-100 or SO-101 arm by hand, as LeRobot does, into LeRobot's file.
//!
//! The torque is off throughout. The person puts every joint in the middle of its motion: [`Calibrator::centre`] gives
//! each servo the offset that makes this position 2047. Then every joint is moved from stop to stop while
//! [`Calibrator::watch`] is called again and again, and [`Calibrator::finish`] writes the ranges. A servo says its
//! position less its offset, so that the file means nothing to servos that do not keep the same offsets. The servos' gains
//! and the gripper's protection are set on the way, as LeRobot sets them.

use super::bus::Bus;
use super::{Calibration, MotorCalibration, ServoConfig};
use vela_embodiment::{Embodiment, Error, Result};

/// The middle of a turn, ticks.
const MIDDLE: i32 = 2047;
/// The last tick of a turn.
const LAST: i32 = 4095;
/// The largest offset that a servo can keep, ticks.
const LARGEST_OFFSET: i32 = 2047;
/// The joint without stops: its range is the whole turn.
const FULL_TURN: &str = "wrist_roll";
/// A joint that was moved by less was forgotten, ticks (9 degrees).
const LEAST_RANGE: i32 = 102;

/// How far a joint has been moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub joint: String,
    /// The lowest position so far, ticks.
    pub min: i32,
    /// Where it is, ticks.
    pub at: i32,
    /// The highest position so far, ticks.
    pub max: i32,
}

impl Span {
    /// Whether the joint has no stops, so that it need not be moved.
    pub fn full_turn(&self) -> bool {
        self.joint == FULL_TURN
    }
}

/// An arm that is being calibrated.
pub struct Calibrator {
    bus: Bus,
    motors: Vec<MotorCalibration>,
    spans: Vec<Span>,
}

impl Calibrator {
    /// Finds the servos, numbered from 1 in the order of the joints as LeRobot sets them up, and takes their torque
    /// off: the arm falls if nobody holds it.
    ///
    /// # Errors
    /// The port cannot be opened, or a servo does not answer (each is named).
    pub fn open(embodiment: &Embodiment, config: &ServoConfig) -> Result<Self> {
        let ids: Vec<u8> = (1..).take(embodiment.joints.len()).collect();
        Self::with_ids(embodiment, config, ids)
    }

    fn with_ids(embodiment: &Embodiment, config: &ServoConfig, ids: Vec<u8>) -> Result<Self> {
        let gripper = embodiment.gripper.as_ref().map(|gripper| embodiment.joint_index(&gripper.joint));
        let gripper = gripper.transpose()?.and_then(|place| ids.get(place).copied());
        let motor = |id: &u8| MotorCalibration {
            id: *id,
            drive_mode: 0,
            homing_offset: 0,
            range_min: 0,
            range_max: LAST,
        };
        let motors = ids.iter().map(motor).collect();
        let mut bus = Bus::open(&config.port, config.baud, ids)?;
        bus.find(&embodiment.joint_names())?;
        bus.unlock()?;
        bus.configure(gripper)?;
        let span = |joint: &str| Span { joint: joint.to_owned(), min: 0, at: 0, max: 0 };
        Ok(Self { bus, motors, spans: embodiment.joint_names().into_iter().map(span).collect() })
    }

    /// Makes where the joints are now the middle of their turns, and their ranges whole turns.
    ///
    /// # Errors
    /// A servo does not answer or does not keep what it is told.
    pub fn centre(&mut self) -> Result<()> {
        for motor in &mut self.motors {
            (motor.homing_offset, motor.range_min, motor.range_max) = (0, 0, LAST);
            self.bus.calibrate(motor)?;
        }
        for (motor, at) in self.motors.iter_mut().zip(self.bus.positions()?) {
            motor.homing_offset = (at - MIDDLE).clamp(-LARGEST_OFFSET, LARGEST_OFFSET);
            self.bus.calibrate(motor)?;
        }
        for (span, at) in self.spans.iter_mut().zip(self.bus.positions()?) {
            (span.min, span.at, span.max) = (at, at, at);
        }
        Ok(())
    }

    /// Looks where the joints are and how far each has been moved since [`Self::centre`], in the embodiment's order.
    ///
    /// # Errors
    /// A servo does not answer, or a joint has passed the end of its turn: it was not in its middle at the start.
    pub fn watch(&mut self) -> Result<&[Span]> {
        for (span, at) in self.spans.iter_mut().zip(self.bus.positions()?) {
            if !span.full_turn() && (at - span.at).abs() > LAST / 2 {
                return Err(Error::Robot(format!(
                    "joint '{}' went from {} to {at} ticks at once: it passed the end of its turn, so it was not in \
                     the middle of its motion at the start; calibrate again",
                    span.joint, span.at
                )));
            }
            (span.min, span.at, span.max) = (span.min.min(at), at, span.max.max(at));
        }
        Ok(&self.spans)
    }

    /// Makes the servos keep the ranges that were watched and gives the calibration that belongs to them. The torque
    /// stays off; the servos are locked again, whatever comes of it.
    ///
    /// # Errors
    /// A joint was not moved (each is named), or a servo does not keep what it is told.
    pub fn finish(mut self) -> Result<Calibration> {
        let kept = self.keep_ranges();
        kept.and(self.bus.lock())?;
        let joints = self.spans.into_iter().map(|span| span.joint);
        Ok(Calibration { motors: joints.zip(self.motors).collect() })
    }

    fn keep_ranges(&mut self) -> Result<()> {
        let still = |span: &&Span| !span.full_turn() && span.max - span.min < LEAST_RANGE;
        let forgotten: Vec<String> = self
            .spans
            .iter()
            .filter(still)
            .map(|span| format!("'{}' ({} to {} ticks)", span.joint, span.min, span.max))
            .collect();
        if !forgotten.is_empty() {
            return Err(Error::Robot(format!(
                "not moved from stop to stop: {}; calibrate again",
                forgotten.join(", ")
            )));
        }
        for (motor, span) in self.motors.iter_mut().zip(&self.spans) {
            if !span.full_turn() {
                (motor.range_min, motor.range_max) = (span.min.max(0), span.max.min(LAST));
            }
            self.bus.calibrate(motor)?;
        }
        Ok(())
    }

    /// Breaks off: the servos keep what they were told so far and are locked again. The torque stays off.
    ///
    /// # Errors
    /// A servo does not answer.
    pub fn abandon(mut self) -> Result<()> {
        self.bus.lock()
    }

    /// Makes the servos keep a calibration that exists already, such as LeRobot's own file of this arm. The torque is
    /// off afterwards.
    ///
    /// # Errors
    /// As [`Self::open`], or the calibration misses a joint.
    pub fn apply(embodiment: &Embodiment, config: &ServoConfig, calibration: &Calibration) -> Result<()> {
        let mut this = Self::with_ids(embodiment, config, calibration.ids(embodiment)?)?;
        let mut joints = embodiment.joint_names().into_iter();
        let kept = joints.try_for_each(|joint| this.bus.calibrate(calibration.motor(joint)?));
        // Also when one did not keep it.
        kept.and(this.bus.lock())
    }
}
