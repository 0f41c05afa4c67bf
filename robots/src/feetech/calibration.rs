//! LeRobot's calibration file and its units: servo ticks, degrees or -100 to 100, the gripper 0 to 100; and our rad.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use vela_embodiment::{Embodiment, Error, Result};

/// Ticks of one turn less one, as LeRobot counts.
const TURN: f64 = 4095.0;

/// One motor of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MotorCalibration {
    /// Its number on the bus.
    pub id: u8,
    /// 1 when its range is counted backwards.
    pub drive_mode: u8,
    /// What the servo itself takes off its position, ticks.
    pub homing_offset: i32,
    /// Lowest position of its range, ticks.
    pub range_min: i32,
    /// Highest position of its range, ticks.
    pub range_max: i32,
}

/// In which unit LeRobot says a joint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// From the middle of the range.
    Degrees,
    /// -100 to 100 over the range.
    Symmetric,
    /// 0 to 100 over the range: grippers, 0 is closed.
    Percent,
}

/// The motors of one arm, by joint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Calibration {
    /// By the joint's name.
    pub motors: BTreeMap<String, MotorCalibration>,
}

impl Calibration {
    /// Reads LeRobot's JSON file.
    ///
    /// # Errors
    /// It cannot be read, or a motor's range is empty or not of its turn.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        Self::from_json(&name, &text)
    }

    /// The same from a text; `name` is for messages.
    ///
    /// # Errors
    /// As [`Calibration::load`].
    pub fn from_json(name: &str, text: &str) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: name.to_owned(), why };
        let read: Self = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        let mut ids = Vec::new();
        for (joint, motor) in &read.motors {
            if motor.range_min < 0 || motor.range_max > 4095 || motor.range_min >= motor.range_max {
                let (min, max) = (motor.range_min, motor.range_max);
                return Err(refuse(format!(
                    "'{joint}': expected 0 <= range_min < range_max <= 4095, got {min} to {max}"
                )));
            }
            if motor.drive_mode > 1 || motor.id > 253 || ids.contains(&motor.id) {
                return Err(refuse(format!(
                    "'{joint}': drive_mode must be 0 or 1 and id one of its own: {motor:?}"
                )));
            }
            ids.push(motor.id);
        }
        Ok(read)
    }

    /// Writes LeRobot's JSON file, whole or not at all; its folder is made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let mut text = Vec::new();
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut text, indented);
        self.serialize(&mut writer).map_err(|e| io(e.into()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let beside = path.with_extension("json.new");
        std::fs::write(&beside, &text).and_then(|()| std::fs::rename(&beside, path)).map_err(io)
    }

    /// The motors' numbers in the embodiment's joint order.
    ///
    /// # Errors
    /// A joint has no motor.
    pub fn ids(&self, embodiment: &Embodiment) -> Result<Vec<u8>> {
        embodiment.joint_names().into_iter().map(|joint| self.motor(joint).map(|motor| motor.id)).collect()
    }

    pub(super) fn motor(&self, joint: &str) -> Result<&MotorCalibration> {
        self.motors.get(joint).ok_or_else(|| Error::Unknown {
            kind: "joint in the calibration",
            name: joint.to_owned(),
            known: self.motors.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// A servo's ticks in LeRobot's unit.
    ///
    /// # Errors
    /// The joint has no motor.
    pub fn in_unit(&self, joint: &str, unit: Unit, ticks: i32) -> Result<f64> {
        let m = self.motor(joint)?;
        let (min, max, at) = (f64::from(m.range_min), f64::from(m.range_max), f64::from(ticks));
        let part = (at.clamp(min, max) - min) / (max - min);
        Ok(match (unit, m.drive_mode) {
            (Unit::Degrees, _) => (at - 0.5 * (min + max)) * 360.0 / TURN,
            (Unit::Symmetric, 0) => part * 200.0 - 100.0,
            (Unit::Symmetric, _) => 100.0 - part * 200.0,
            (Unit::Percent, 0) => part * 100.0,
            (Unit::Percent, _) => 100.0 - part * 100.0,
        })
    }

    /// The ticks that LeRobot's value means.
    ///
    /// # Errors
    /// The joint has no motor.
    pub fn ticks_of(&self, joint: &str, unit: Unit, value: f64) -> Result<i32> {
        let m = self.motor(joint)?;
        let (min, max) = (f64::from(m.range_min), f64::from(m.range_max));
        let over = |part: f64| min + part.clamp(0.0, 1.0) * (max - min);
        let ticks = match (unit, m.drive_mode) {
            (Unit::Degrees, _) => value * TURN / 360.0 + 0.5 * (min + max),
            (Unit::Symmetric, 0) => over((value + 100.0) / 200.0),
            (Unit::Symmetric, _) => over((100.0 - value) / 200.0),
            (Unit::Percent, 0) => over(value / 100.0),
            (Unit::Percent, _) => over((100.0 - value) / 100.0),
        };
        Ok(ticks.round() as i32)
    }

    /// From the middle of a joint's range to where LeRobot counts 100, rad; negative when it counts backwards.
    ///
    /// # Errors
    /// The joint has no motor.
    pub fn half_range(&self, joint: &str) -> Result<f64> {
        let m = self.motor(joint)?;
        let half = 0.5 * f64::from(m.range_max - m.range_min) * std::f64::consts::TAU / TURN;
        Ok(if m.drive_mode == 0 { half } else { -half })
    }

    /// A servo's ticks as a joint position, rad or m: joints from the middle of their range, the gripper from closed to
    /// open over the range of its joint.
    ///
    /// # Errors
    /// The joint is unknown or has no motor.
    pub fn position(&self, embodiment: &Embodiment, joint: &str, ticks: i32) -> Result<f64> {
        match gripper_range(embodiment, joint)? {
            Some((lower, upper)) => {
                Ok(lower + self.in_unit(joint, Unit::Percent, ticks)? / 100.0 * (upper - lower))
            }
            None => Ok(self.in_unit(joint, Unit::Degrees, ticks)?.to_radians()),
        }
    }

    /// The ticks of a joint position, inside the motor's range: the arm does not push against its own stops.
    ///
    /// # Errors
    /// The joint is unknown or has no motor.
    pub fn ticks(&self, embodiment: &Embodiment, joint: &str, position: f64) -> Result<i32> {
        let m = self.motor(joint)?;
        let ticks = match gripper_range(embodiment, joint)? {
            Some((lower, upper)) => {
                self.ticks_of(joint, Unit::Percent, (position - lower) / (upper - lower) * 100.0)?
            }
            None => self.ticks_of(joint, Unit::Degrees, position.to_degrees())?,
        };
        Ok(ticks.clamp(m.range_min, m.range_max))
    }
}

/// Range of the gripper joint; `None` for the other joints.
fn gripper_range(embodiment: &Embodiment, joint: &str) -> Result<Option<(f64, f64)>> {
    let limits = &embodiment.joints[embodiment.joint_index(joint)?].limits;
    let is = embodiment.gripper.as_ref().is_some_and(|gripper| gripper.joint == joint);
    Ok(is.then_some((limits.lower, limits.upper)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
      "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -14, "range_min": 1000, "range_max": 3000},
      "elbow_flex": {"id": 3, "drive_mode": 1, "homing_offset": 3, "range_min": 900, "range_max": 3100},
      "gripper": {"id": 6, "drive_mode": 0, "homing_offset": 12, "range_min": 2000, "range_max": 3400}
    }"#;

    /// By the formulas of LeRobot's motors bus.
    #[test]
    fn units_are_lerobot_s_and_come_back() -> Result<()> {
        let c = Calibration::from_json("so101.json", FILE)?;
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} against {b}");
        near(c.in_unit("shoulder_pan", Unit::Degrees, 2500)?, 500.0 * 360.0 / 4095.0);
        near(c.in_unit("shoulder_pan", Unit::Symmetric, 2500)?, 50.0);
        near(c.in_unit("elbow_flex", Unit::Symmetric, 900)?, 100.0);
        near(c.in_unit("gripper", Unit::Percent, 2350)?, 25.0);
        for unit in [Unit::Degrees, Unit::Symmetric, Unit::Percent] {
            for joint in ["shoulder_pan", "elbow_flex", "gripper"] {
                for ticks in [2000, 2001, 2700, 3000] {
                    assert_eq!(c.ticks_of(joint, unit, c.in_unit(joint, unit, ticks)?)?, ticks);
                }
            }
        }
        let so101 = Embodiment::so101()?;
        near(c.position(&so101, "shoulder_pan", 2000)?, 0.0);
        near(c.position(&so101, "gripper", 2000)?, -0.174533);
        near(c.position(&so101, "gripper", 3400)?, 1.74533);
        for position in [-0.5, 0.0, 0.7] {
            let ticks = c.ticks(&so101, "shoulder_pan", position)?;
            assert!((c.position(&so101, "shoulder_pan", ticks)? - position).abs() < 1e-3);
        }
        assert_eq!(c.ticks(&so101, "shoulder_pan", 3.0)?, 3000, "never beyond its range");
        Ok(())
    }

    #[test]
    fn a_calibration_that_cannot_be_is_refused_in_words() {
        let said = |text: &str| {
            Calibration::from_json("c.json", text).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(said("{").starts_with("c.json"));
        assert!(said(&FILE.replace("3000", "900")).contains("'shoulder_pan': expected 0 <= range_min"));
        assert!(said(&FILE.replace("\"id\": 3", "\"id\": 1")).contains("id one of its own"));
        let c = Calibration::from_json("c.json", FILE);
        let missing = c.and_then(|c| c.ids(&Embodiment::so101()?));
        assert!(missing.is_err_and(|e| e.to_string().contains("'shoulder_lift'")));
    }
}
