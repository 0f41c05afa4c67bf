//! SO-100 and SO-101 arms on USB: Feetech STS3215 servos on one serial bus, through `rustypot`.
//!
//! A [`ServoArm`] is the joint side of such an arm. Units are LeRobot's where people and files meet them (its calibration
//! file, degrees or -100 to 100, gripper 0 to 100) and rad inside. Torque stays on when the loop ends or the program
//! dies: an arm under load does not fall. It goes off only by [`ServoArm::relax`]. A [`LeaderArm`] is one without torque,
//! moved by a hand, that [`teleoperate`] makes another arm follow; a [`Calibrator`] measures either.

mod bus;
mod calibrate;
mod calibration;
mod leader;
mod teleoperate;

pub use bus::ServoState;
pub use calibrate::{Calibrator, Span};
pub use calibration::{Calibration, MotorCalibration, Unit};
pub use leader::LeaderArm;
pub use teleoperate::{HandGuided, Teleoperation, TeleoperationEvent, teleoperate};

use bus::Bus;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Error, JointReading, JointSide, MonotonicClock, Result,
};

/// How an arm on USB is reached and what its servos may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServoConfig {
    /// The serial port.
    pub port: String,
    /// Bits per second.
    #[serde(default = "million")]
    pub baud: u32,
    /// Part of the servos' own torque that they may use, 0 to 1.
    #[serde(default = "half")]
    pub torque: f64,
    /// A servo this warm makes the arm hold, degrees Celsius.
    #[serde(default = "warm")]
    pub max_temperature_c: f64,
    /// Less than this makes the arm hold, V.
    #[serde(default = "weak")]
    pub min_voltage_v: f64,
    /// More than this makes the arm hold, V.
    #[serde(default = "strong")]
    pub max_voltage_v: f64,
}

fn million() -> u32 {
    1_000_000
}

fn half() -> f64 {
    0.5
}

fn warm() -> f64 {
    60.0
}

fn weak() -> f64 {
    4.5
}

fn strong() -> f64 {
    13.0
}

/// Refuses servos that keep another calibration than the file says: every position would be another one.
fn require_calibrated(bus: &mut Bus, embodiment: &Embodiment, calibration: &Calibration) -> Result<()> {
    let mut differences = Vec::new();
    for joint in embodiment.joint_names() {
        let file = calibration.motor(joint)?;
        let servo = bus.kept(file.id)?;
        // How it counts is the file's own matter.
        if (MotorCalibration { drive_mode: file.drive_mode, ..servo.clone() }) != *file {
            let said = |m: &MotorCalibration| {
                format!("offset {}, range {} to {}", m.homing_offset, m.range_min, m.range_max)
            };
            differences.push(format!(
                "servo {} ('{joint}') keeps {}, the file says {}",
                file.id,
                said(&servo),
                said(file)
            ));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Robot(format!(
        "{}: calibrate the arm (--calibrate), or write the file's values to its servos (--apply-calibration)",
        differences.join("; ")
    )))
}

/// The joints of a servo arm.
pub struct ServoArm {
    embodiment: Embodiment,
    calibration: Calibration,
    config: ServoConfig,
    bus: Bus,
    /// What each servo pushes with at full load, N m, as the URDF says.
    full_load: Vec<f64>,
    last: JointReading,
    clock: Arc<MonotonicClock>,
}

impl ServoArm {
    /// Opens the port, finds every servo, limits its torque, tells it to stay where it is and only then turns its torque
    /// on: nothing moves.
    ///
    /// # Errors
    /// The port cannot be opened, a servo does not answer (each is named), the calibration misses a joint or is not the
    /// one that the servos keep, or a servo is too warm or badly supplied.
    pub fn open(embodiment: &Embodiment, calibration: Calibration, config: &ServoConfig) -> Result<Self> {
        if !(config.torque > 0.0 && config.torque <= 1.0) {
            return Err(Error::Shape {
                what: "torque of the servos".into(),
                expected: "more than 0, at most 1".into(),
                got: config.torque.to_string(),
            });
        }
        let ids = calibration.ids(embodiment)?;
        let mut bus = Bus::open(&config.port, config.baud, ids)?;
        bus.find(&embodiment.joint_names())?;
        require_calibrated(&mut bus, embodiment, &calibration)?;
        let model = vela_embodiment::RobotModel::from_urdf(&embodiment.urdf)?;
        let mut full_load = Vec::with_capacity(embodiment.joints.len());
        for joint in &embodiment.joints {
            full_load.push(model.joint(&joint.name)?.effort);
        }
        let mut arm = Self {
            embodiment: embodiment.clone(),
            calibration,
            config: config.clone(),
            bus,
            full_load,
            last: JointReading::default(),
            clock: Arc::new(MonotonicClock::new()),
        };
        arm.last = arm.read()?;
        let here = arm.ticks(&arm.last.positions)?;
        arm.bus.limit_torque(config.torque)?;
        arm.bus.send_goals(&here)?;
        arm.bus.enable_torque(true)?;
        Ok(arm)
    }

    /// Takes the torque off: the arm falls if nobody holds it. Only when asked.
    ///
    /// # Errors
    /// The bus is gone.
    pub fn relax(&mut self) -> Result<()> {
        self.bus.enable_torque(false)
    }

    /// What the servos say of themselves, in the embodiment's order.
    ///
    /// # Errors
    /// A servo does not answer.
    pub fn servos(&mut self) -> Result<Vec<ServoState>> {
        self.bus.read()
    }

    /// Where these servos are as LeRobot says it: degrees from the middle of the range, the gripper 0 (closed) to 100.
    ///
    /// # Errors
    /// Never for the servos of this arm.
    pub fn in_lerobot_units(&self, servos: &[ServoState]) -> Result<Vec<f64>> {
        let gripper = self.embodiment.gripper.as_ref().map(|gripper| gripper.joint.as_str());
        let joints = self.embodiment.joint_names().into_iter().zip(servos);
        let each = joints.map(|(joint, servo)| {
            let unit = if gripper == Some(joint) { Unit::Percent } else { Unit::Degrees };
            self.calibration.in_unit(joint, unit, servo.ticks)
        });
        each.collect()
    }

    fn ticks(&self, positions: &[f64]) -> Result<Vec<i32>> {
        let joints = self.embodiment.joints.iter().zip(positions);
        joints.map(|(joint, q)| self.calibration.ticks(&self.embodiment, &joint.name, *q)).collect()
    }

    fn read(&mut self) -> Result<JointReading> {
        let servos = self.bus.read()?;
        let stamp = self.clock.now();
        let mut reading = JointReading { stamp, ..JointReading::default() };
        for (k, (joint, servo)) in self.embodiment.joints.iter().zip(&servos).enumerate() {
            self.healthy(&joint.name, servo)?;
            reading.positions.push(self.calibration.position(&self.embodiment, &joint.name, servo.ticks)?);
            reading.efforts.push(servo.load * self.full_load[k]);
        }
        Ok(reading)
    }

    fn healthy(&self, joint: &str, servo: &ServoState) -> Result<()> {
        let c = &self.config;
        let why = if servo.temperature_c >= c.max_temperature_c {
            format!("is at {:.0} °C, at most {:.0} °C", servo.temperature_c, c.max_temperature_c)
        } else if servo.voltage_v < c.min_voltage_v || servo.voltage_v > c.max_voltage_v {
            let (low, high) = (c.min_voltage_v, c.max_voltage_v);
            format!("has {:.1} V, expected {low:.1} to {high:.1} V", servo.voltage_v)
        } else if let Some(alarm) = servo.alarm {
            format!("raises an alarm: {alarm}")
        } else {
            return Ok(());
        };
        Err(Error::Robot(format!("servo {} ('{joint}') {why}", servo.id)))
    }
}

impl JointSide for ServoArm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    /// A reading that got lost on the bus is answered with the last one and its old stamp, so that only a servo that
    /// stays silent makes the arm hold; a servo in trouble does so at once.
    fn joints(&mut self) -> Result<JointReading> {
        match self.read() {
            Ok(reading) => {
                self.last = reading.clone();
                Ok(reading)
            }
            Err(Error::Link(why)) => {
                let age = self.clock.now().secs_since(self.last.stamp);
                if age > MISSING_SECS { Err(Error::Link(why)) } else { Ok(self.last.clone()) }
            }
            Err(other) => Err(other),
        }
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let joint_targets = action.into_inner().joint_targets;
        self.bus.send_goals(&self.ticks(&joint_targets)?)?;
        Ok(Applied { joint_targets, stamp: self.clock.now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// Readings may be missing for this long, s.
const MISSING_SECS: f64 = 0.15;
