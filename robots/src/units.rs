//! Policies that were trained in LeRobot's units, and datasets in them, of an arm that is in rad: the one place where the
//! two meet.
//!
//! LeRobot's SO-100 and SO-101 say a joint in degrees from the middle of its range, or from -100 to 100 over it, and the
//! gripper from 0 (closed) to 100; so do the datasets that they recorded and the policies that were trained on those.

use crate::feetech::Calibration;
use serde::Deserialize;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Error, InferOptions, Observation, Policy, PolicySpec, Result,
};

/// In which units a policy is told where the joints are and says where they are to be; datasets that are recorded for
/// it are in the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyUnits {
    /// rad and m, as in the datasets that vela records.
    #[default]
    Radians,
    /// LeRobot's degrees, the gripper 0 to 100.
    LerobotDegrees,
    /// LeRobot's -100 to 100 over each motor's range, the gripper 0 to 100.
    LerobotRange,
}

impl PolicyUnits {
    const ALL: [Self; 3] = [Self::Radians, Self::LerobotDegrees, Self::LerobotRange];

    /// The words for it in a dataset.
    pub fn words(self) -> &'static str {
        match self {
            Self::Radians => "rad (revolute joints), m (prismatic joints)",
            Self::LerobotDegrees => "LeRobot's degrees (joints), 0 to 100 (gripper)",
            Self::LerobotRange => "LeRobot's -100 to 100 (joints), 0 to 100 (gripper)",
        }
    }

    /// What a dataset's words mean.
    ///
    /// # Errors
    /// They are none of [`PolicyUnits::words`].
    pub fn from_words(words: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|units| units.words() == words).ok_or_else(|| Error::Unknown {
            kind: "units of a dataset's joints",
            name: words.to_owned(),
            known: Self::ALL.map(Self::words).join("; "),
        })
    }
}

/// One joint: LeRobot's number is `factor` times ours plus `offset`, inside `bounds`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    factor: f64,
    offset: f64,
    bounds: (f64, f64),
}

impl Scale {
    fn theirs(self, ours: f64) -> f64 {
        (self.factor * ours + self.offset).clamp(self.bounds.0, self.bounds.1)
    }

    fn ours(self, theirs: f64) -> f64 {
        (theirs - self.offset) / self.factor
    }
}

/// The joints of one arm in other units.
#[derive(Clone, Debug, PartialEq)]
pub struct JointScales(Vec<Scale>);

impl JointScales {
    /// The joints of `robot` in `units`. Ranges are those of the `calibration`.
    ///
    /// # Errors
    /// A range is needed and there is no calibration, or it misses a joint.
    pub fn new(robot: &Embodiment, units: PolicyUnits, calibration: Option<&Calibration>) -> Result<Self> {
        let gripper = robot.gripper.as_ref().map(|gripper| gripper.joint.as_str());
        let scale = |joint: &vela_embodiment::Joint| {
            let anything = (f64::NEG_INFINITY, f64::INFINITY);
            let (lower, upper) = (joint.limits.lower, joint.limits.upper);
            let percent = 100.0 / (upper - lower);
            match units {
                PolicyUnits::Radians => Ok(Scale { factor: 1.0, offset: 0.0, bounds: anything }),
                _ if gripper == Some(&joint.name) => {
                    Ok(Scale { factor: percent, offset: -lower * percent, bounds: (0.0, 100.0) })
                }
                PolicyUnits::LerobotDegrees => {
                    Ok(Scale { factor: 1_f64.to_degrees(), offset: 0.0, bounds: anything })
                }
                PolicyUnits::LerobotRange => {
                    let expected = "policy_units = 'lerobot_range' needs the calibration of servos on USB";
                    let calibration = calibration.ok_or_else(|| Error::Robot(expected.into()))?;
                    let factor = 100.0 / calibration.half_range(&joint.name)?;
                    Ok(Scale { factor, offset: 0.0, bounds: (-100.0, 100.0) })
                }
            }
        };
        Ok(Self(robot.joints.iter().map(scale).collect::<Result<_>>()?))
    }

    fn row(&self, row: &[f64], one: impl Fn(Scale, f64) -> f64) -> Vec<f64> {
        row.iter().zip(&self.0).map(|(x, scale)| one(*scale, *x)).collect()
    }

    /// Joints in rad or m, in the robot's order, as LeRobot says them.
    pub fn theirs(&self, row: &[f64]) -> Vec<f64> {
        self.row(row, Scale::theirs)
    }

    /// Joints as LeRobot says them, in rad or m.
    pub fn ours(&self, row: &[f64]) -> Vec<f64> {
        self.row(row, Scale::ours)
    }
}

/// A policy in other units as one in rad.
pub struct InUnits {
    policy: Box<dyn Policy>,
    scales: JointScales,
}

impl InUnits {
    /// This policy, which knows the joints in the units of `scales`, in rad.
    pub fn new(policy: Box<dyn Policy>, scales: JointScales) -> Self {
        Self { policy, scales }
    }
}

impl Policy for InUnits {
    fn spec(&self) -> &PolicySpec {
        self.policy.spec()
    }

    fn turn_to(&mut self, robot: &str) {
        self.policy.turn_to(robot);
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let theirs = |row: &[f64]| self.scales.theirs(row);
        let mut seen = history.to_vec();
        for observation in &mut seen {
            observation.joint_positions = theirs(&observation.joint_positions);
        }
        let unexecuted = options.unexecuted.iter().map(|row| theirs(row)).collect();
        let chunk = self.policy.infer(&seen, &InferOptions { unexecuted, ..options.clone() })?;
        // Its shape is looked at where every chunk's is; a wrong one must not lose its extra numbers here.
        chunk.check(self.scales.0.len())?;
        let each =
            |one: fn(Scale, f64) -> f64| chunk.actions.iter().map(|row| self.scales.row(row, one)).collect();
        let actions = match chunk.space {
            ActionSpace::JointPositions => each(Scale::ours),
            ActionSpace::JointDeltas => each(|scale, delta| delta / scale.factor),
            ActionSpace::EndEffectorDeltas => {
                let why =
                    "expected joint positions or deltas in LeRobot's units, got displacements of the gripper";
                return Err(Error::Policy(why.into()));
            }
        };
        Ok(ActionChunk { actions, ..chunk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feetech::Unit;
    use vela_embodiment::Stamp;

    const FILE: &str = r#"{
      "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -14, "range_min": 1000, "range_max": 3000},
      "shoulder_lift": {"id": 2, "drive_mode": 1, "homing_offset": 0, "range_min": 800, "range_max": 3200},
      "elbow_flex": {"id": 3, "drive_mode": 0, "homing_offset": 3, "range_min": 900, "range_max": 3101},
      "wrist_flex": {"id": 4, "drive_mode": 0, "homing_offset": 3, "range_min": 900, "range_max": 3100},
      "wrist_roll": {"id": 5, "drive_mode": 0, "homing_offset": 3, "range_min": 0, "range_max": 4095},
      "gripper": {"id": 6, "drive_mode": 0, "homing_offset": 12, "range_min": 2000, "range_max": 3400}
    }"#;

    /// Answers with the joints that it was shown, and with a step of 1 in each.
    struct Echo(PolicySpec);

    impl Policy for Echo {
        fn spec(&self) -> &PolicySpec {
            &self.0
        }

        fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
            let seen = history[0].joint_positions.clone();
            let actions = match self.0.space {
                ActionSpace::JointPositions => [vec![seen], options.unexecuted.clone()].concat(),
                _ => vec![vec![1.0; 6]],
            };
            Ok(ActionChunk {
                space: self.0.space.clone(),
                actions,
                period_secs: 0.1,
                observation_stamp: Stamp(0),
                seed: 0,
                checkpoint: format!("{:.4?}", history[0].joint_positions),
            })
        }
    }

    fn asked(units: PolicyUnits, space: ActionSpace, joints: &[f64]) -> Result<ActionChunk> {
        let robot = Embodiment::so101()?;
        let calibration = Calibration::from_json("c.json", FILE)?;
        let spec = PolicySpec {
            embodiment: robot.clone(),
            space,
            horizon: 2,
            execute: 1,
            history: 1,
            checkpoint: String::new(),
        };
        let scales = JointScales::new(&robot, units, Some(&calibration))?;
        let mut policy = InUnits::new(Box::new(Echo(spec)), scales);
        let seen = Observation {
            frames: vec![],
            joint_positions: joints.to_vec(),
            instruction: String::new(),
            stamp: Stamp(0),
        };
        policy.infer(&[seen], &InferOptions { unexecuted: vec![joints.to_vec()], ..InferOptions::default() })
    }

    /// What the driver reads in rad is what LeRobot would have read in its units, and its answer comes back to the same
    /// tick.
    #[test]
    fn a_policy_sees_lerobot_s_numbers_and_its_answer_is_in_rad() -> Result<()> {
        let (robot, c) = (Embodiment::so101()?, Calibration::from_json("c.json", FILE)?);
        let ticks = [2500, 1100, 2222, 2000, 77, 2350];
        let names = robot.joint_names();
        let read = names.iter().zip(ticks).map(|(name, ticks)| c.position(&robot, name, ticks));
        let joints = read.collect::<Result<Vec<_>>>()?;
        for (units, unit) in
            [(PolicyUnits::LerobotDegrees, Unit::Degrees), (PolicyUnits::LerobotRange, Unit::Symmetric)]
        {
            let expected = names.iter().zip(ticks).map(|(name, ticks)| {
                c.in_unit(name, if *name == "gripper" { Unit::Percent } else { unit }, ticks)
            });
            let expected = expected.collect::<Result<Vec<_>>>()?;
            let chunk = asked(units, ActionSpace::JointPositions, &joints)?;
            assert_eq!(chunk.checkpoint, format!("{expected:.4?}"), "{units:?}");
            for row in &chunk.actions {
                for (k, q) in row.iter().enumerate() {
                    assert!((q - joints[k]).abs() < 1e-9);
                    assert_eq!(c.ticks(&robot, names[k], *q)?, ticks[k]);
                }
            }
        }
        let same = asked(PolicyUnits::Radians, ActionSpace::JointPositions, &joints)?;
        assert_eq!(same.actions[0], joints);
        // One degree; one of the gripper's hundred.
        let delta = asked(PolicyUnits::LerobotDegrees, ActionSpace::JointDeltas, &joints)?.actions[0].clone();
        let gripper = robot.joints[5].limits;
        assert!((delta[0] - 1_f64.to_radians()).abs() < 1e-12);
        assert!((delta[5] - (gripper.upper - gripper.lower) / 100.0).abs() < 1e-12);
        let tip = asked(PolicyUnits::LerobotDegrees, ActionSpace::EndEffectorDeltas, &joints);
        assert!(tip.is_err_and(|e| e.to_string().contains("displacements of the gripper")));
        Ok(())
    }
}
