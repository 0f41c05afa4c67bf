//! What a robot is: joints with limits, cameras, a gripper, a rate. Read from a TOML file beside a URDF.

use crate::{Error, Kinematics, Result, RobotModel, Safety};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a joint moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JointKind {
    /// Turns; positions in rad.
    Revolute,
    /// Slides; positions in m.
    Prismatic,
}

/// What a joint may do, in rad or m, per s, per s^2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Lowest position.
    pub lower: f64,
    /// Highest position.
    pub upper: f64,
    /// Highest speed.
    pub velocity: f64,
    /// Highest acceleration.
    pub acceleration: f64,
    /// Highest change of the acceleration per s; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jerk: Option<f64>,
    /// What the joint may push with, N m or N, where the robot measures it; absent: what the URDF says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<f64>,
}

impl Limits {
    /// Refuses limits that leave nothing.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let positive = [Some(self.velocity), Some(self.acceleration), self.jerk, self.effort];
        // A comparison with NaN is false.
        let good = self.lower < self.upper && positive.into_iter().flatten().all(|limit| limit > 0.0);
        if good { Ok(()) } else { Err(format!("empty limits {self:?}")) }
    }
}

/// One joint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joint {
    /// Its name in the URDF, on the wire and in datasets.
    pub name: String,
    /// How it moves.
    pub kind: JointKind,
    /// What it may do.
    pub limits: Limits,
}

/// One camera.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Camera {
    /// Its name.
    pub name: String,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

/// Which joint is the gripper, and where it is open and closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gripper {
    /// The joint's name.
    pub joint: String,
    /// Its position when open, rad or m.
    pub open: f64,
    /// Its position when closed, rad or m.
    pub closed: f64,
}

/// A robot: robot, policy and dataset each carry one and are compared before anything moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embodiment {
    /// Its name.
    pub name: String,
    /// Its joints, in the order of every joint vector.
    pub joints: Vec<Joint>,
    /// Its gripper, if it has one.
    pub gripper: Option<Gripper>,
    /// Its cameras.
    pub cameras: Vec<Camera>,
    /// Control ticks per second.
    pub control_hz: f64,
    /// The frame that reaches: a link of the URDF.
    pub tip_link: String,
    /// What it may do beyond its joints' limits. The robot's own: it crosses no wire and is in no checkpoint.
    #[serde(skip)]
    pub safety: Safety,
    /// The URDF's text; empty when the description came over a wire or from a checkpoint.
    #[serde(skip)]
    pub urdf: String,
}

/// The robot's file, as written by a person.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RobotFile {
    name: String,
    urdf: String,
    tip_link: String,
    control_hz: f64,
    joints: Vec<JointFile>,
    gripper: Option<Gripper>,
    #[serde(default)]
    cameras: Vec<Camera>,
    #[serde(default)]
    safety: Safety,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JointFile {
    name: String,
    acceleration: f64,
    lower: Option<f64>,
    upper: Option<f64>,
    velocity: Option<f64>,
    jerk: Option<f64>,
    effort: Option<f64>,
}

impl Embodiment {
    /// The SO-101 of the tabletop world, from the files that are inside the binary.
    pub fn so101() -> Result<Self> {
        Self::from_texts(
            include_str!("../../configs/robots/so101.toml"),
            include_str!("../../configs/robots/so101.urdf"),
        )
    }

    /// Reads a robot's TOML file; the URDF that it names lies beside it.
    pub fn load(path: &Path) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| Error::Io { path: path.display().to_string(), source })
        };
        let text = read(path)?;
        let file: RobotFile = parse(&path.display().to_string(), &text)?;
        let urdf = read(&path.parent().unwrap_or(Path::new(".")).join(&file.urdf))?;
        Self::from_file(file, &urdf)
    }

    /// The same from texts.
    pub fn from_texts(robot_toml: &str, urdf: &str) -> Result<Self> {
        Self::from_file(parse("robot file", robot_toml)?, urdf)
    }

    fn from_file(file: RobotFile, urdf: &str) -> Result<Self> {
        let model = RobotModel::from_urdf(urdf)?;
        let refuse = |why: String| Error::Parse { what: format!("robot '{}'", file.name), why };
        if !(file.control_hz.is_finite() && file.control_hz > 0.0) {
            return Err(refuse(format!("control_hz must be positive, got {}", file.control_hz)));
        }
        let mut joints = Vec::with_capacity(file.joints.len());
        for joint in &file.joints {
            let found = model.joint(&joint.name)?;
            let Some(kind) = found.kind else {
                return Err(refuse(format!("joint '{}' is fixed in the URDF", joint.name)));
            };
            // A robot's file may narrow what the URDF allows, never widen it.
            let narrow = |what: &str, own: Option<f64>, urdf: f64, tighter: bool| match own {
                Some(own) if !tighter => Err(Error::Parse {
                    what: format!("robot '{}'", file.name),
                    why: format!("joint '{}': {what} {own} is wider than the URDF's {urdf}", joint.name),
                }),
                Some(own) => Ok(own),
                None => Ok(urdf),
            };
            let (lower, upper, velocity) = (joint.lower, joint.upper, joint.velocity);
            let limits = Limits {
                lower: narrow("lower", lower, found.lower, lower.is_none_or(|x| x >= found.lower))?,
                upper: narrow("upper", upper, found.upper, upper.is_none_or(|x| x <= found.upper))?,
                velocity: narrow(
                    "velocity",
                    velocity,
                    found.velocity,
                    velocity.is_none_or(|x| x <= found.velocity),
                )?,
                acceleration: joint.acceleration,
                jerk: joint.jerk,
                effort: joint.effort,
            };
            let torque = (found.effort > 0.0).then_some(found.effort);
            narrow("effort", limits.effort, found.effort, limits.effort <= torque || torque.is_none())?;
            limits.check().map_err(|why| refuse(format!("joint '{}': {why}", joint.name)))?;
            joints.push(Joint { name: joint.name.clone(), kind, limits });
        }
        let embodiment = Self {
            name: file.name.clone(),
            joints,
            gripper: file.gripper.clone(),
            cameras: file.cameras.clone(),
            control_hz: file.control_hz,
            tip_link: file.tip_link.clone(),
            safety: file.safety.clone(),
            urdf: urdf.to_owned(),
        };
        if let Some(gripper) = &embodiment.gripper {
            embodiment.joint_index(&gripper.joint)?;
        }
        embodiment.kinematics()?;
        embodiment.safety.check(&embodiment.name, &model)?;
        Ok(embodiment)
    }

    /// Seconds between two control ticks.
    pub fn period_secs(&self) -> f64 {
        1.0 / self.control_hz
    }

    /// Place of a joint in every joint vector.
    pub fn joint_index(&self, name: &str) -> Result<usize> {
        self.joints.iter().position(|joint| joint.name == name).ok_or_else(|| Error::Unknown {
            kind: "joint",
            name: name.to_owned(),
            known: self.joint_names().join(", "),
        })
    }

    /// Joint names in order.
    pub fn joint_names(&self) -> Vec<&str> {
        self.joints.iter().map(|joint| joint.name.as_str()).collect()
    }

    /// Forward and inverse kinematics of the URDF, over this robot's joint order.
    pub fn kinematics(&self) -> Result<Kinematics> {
        Kinematics::new(&RobotModel::from_urdf(&self.urdf)?, &self.joint_names(), &self.tip_link)
    }

    /// Compares what this robot is with what a policy or dataset was made for. Joint names, order and kinds,
    /// cameras and rate must agree; every difference is named.
    pub fn require_same(&self, other: &Embodiment) -> Result<()> {
        let mut differences = Vec::new();
        if self.joint_names() != other.joint_names() {
            differences.push(format!("joints {:?} against {:?}", self.joint_names(), other.joint_names()));
        } else {
            for (mine, theirs) in self.joints.iter().zip(&other.joints) {
                if mine.kind != theirs.kind {
                    differences
                        .push(format!("joint '{}' is {:?} against {:?}", mine.name, mine.kind, theirs.kind));
                }
            }
        }
        for camera in &other.cameras {
            match self.cameras.iter().find(|mine| mine.name == camera.name) {
                None => differences.push(format!("camera '{}' is missing", camera.name)),
                Some(mine) if mine != camera => differences.push(format!(
                    "camera '{}' is {}x{} against {}x{}",
                    camera.name, mine.width, mine.height, camera.width, camera.height
                )),
                Some(_) => {}
            }
        }
        if (self.control_hz - other.control_hz).abs() > 1e-6 {
            differences.push(format!("control rate {} Hz against {} Hz", self.control_hz, other.control_hz));
        }
        if self.gripper.as_ref().map(|g| &g.joint) != other.gripper.as_ref().map(|g| &g.joint) {
            differences.push(format!("gripper {:?} against {:?}", self.gripper, other.gripper));
        }
        if differences.is_empty() { Ok(()) } else { Err(Error::Mismatch(differences)) }
    }
}

fn parse<T: for<'a> Deserialize<'a>>(what: &str, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| Error::Parse { what: what.to_owned(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_so101_has_six_joints_two_cameras_and_equals_itself() -> Result<()> {
        let so101 = Embodiment::so101()?;
        assert_eq!(
            so101.joint_names(),
            ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
        );
        assert_eq!(so101.cameras.len(), 2);
        so101.require_same(&so101)
    }

    #[test]
    fn a_mismatch_names_every_difference() -> Result<()> {
        let so101 = Embodiment::so101()?;
        let mut other = so101.clone();
        other.joints.swap(0, 1);
        other.cameras[0].width = 7;
        other.control_hz = 10.0;
        let text = so101.require_same(&other).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("joints") && text.contains("against 7x") && text.contains("10 Hz"), "{text}");
        Ok(())
    }

    #[test]
    fn a_file_may_narrow_limits_and_never_widen_them() {
        let urdf = include_str!("../../configs/robots/so101.urdf");
        let text = |lower: f64| {
            format!(
                "name='x'\nurdf='x'\ntip_link='tool'\ncontrol_hz=30.0\n\
                 joints=[{{name='shoulder_pan', acceleration=1.0, lower={lower:?}}}]"
            )
        };
        assert!(Embodiment::from_texts(&text(-0.5), urdf).is_ok());
        let wider = Embodiment::from_texts(&text(-3.0), urdf);
        assert!(wider.is_err_and(|e| e.to_string().contains("wider than the URDF")));
    }
}
