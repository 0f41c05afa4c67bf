//! The file of a real arm (`vela robot --config`): which robot it is, how it is reached, where its cameras are.

use crate::feetech::{Calibration, ServoArm, ServoConfig};
use crate::ros2::cameras::CameraTopic;
use crate::ros2::driver::{RosArm, RosConfig};
use crate::ros2::gripper::GripperReport;
use crate::ros2::keys::Distribution;
use crate::units::{InUnits, JointScales, PolicyUnits};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Error, GateConfig, JointReading, JointSide, Policy, Result,
};
use zenoh::Session;

/// A real arm as a person describes it; paths are from the file's own folder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmFile {
    /// The robot's file: joints, limits, safety, cameras.
    pub robot: PathBuf,
    /// Its base key on zenoh.
    #[serde(default = "key")]
    pub key: String,
    /// Feetech servos on a serial bus.
    pub servos: Option<ServoConfig>,
    /// LeRobot's calibration file of the servos.
    pub calibration: Option<PathBuf>,
    /// Or an arm that speaks ROS 2 over zenoh.
    pub ros2: Option<RosConfig>,
    /// The ROS 2 topic of each camera, by its name.
    #[serde(default)]
    pub cameras: BTreeMap<String, CameraTopic>,
    /// In which units its policies know the joints and its datasets are recorded: `radians`, `lerobot_degrees` or
    /// `lerobot_range`.
    #[serde(default)]
    pub policy_units: PolicyUnits,
    /// What this arm narrows.
    #[serde(default)]
    pub gate: GateConfig,
    /// How its control loop runs.
    #[serde(default, rename = "loop")]
    pub control: LoopConfig,
}

/// How the control loop of a real arm runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// The loop and the threads that unpack pictures ask the system for a real-time priority (`SCHED_FIFO`), so that
    /// whatever else the machine does they come first. Without the right to it they run all the same.
    pub real_time: bool,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { real_time: true }
    }
}

fn key() -> String {
    "vela/arm".into()
}

impl ArmFile {
    /// Reads a file and the robot that it names.
    ///
    /// # Errors
    /// It cannot be read, it names neither servos nor ROS 2 or both, its controllers are not for the robot's joints, or
    /// its limits are wider than the robot's.
    pub fn load(path: &Path) -> Result<(Self, Embodiment)> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        let refuse = |why: String| Error::Parse { what: name.clone(), why };
        let mut file: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        file.robot = folder.join(&file.robot);
        file.calibration = file.calibration.map(|calibration| folder.join(calibration));
        match (&file.servos, &file.calibration, &file.ros2) {
            (Some(_), Some(_), None) | (None, None, Some(_)) => {}
            _ => {
                let expected = "expected either [servos] with a calibration, or [ros2]";
                return Err(refuse(expected.into()));
            }
        }
        let embodiment = Embodiment::load(&file.robot)?;
        file.gate.narrow(&embodiment)?;
        if let Some(ros2) = &file.ros2 {
            ros2.controllers(&embodiment)?;
        }
        Ok((file, embodiment))
    }

    /// Connects to the arm; a ROS 2 arm has `wait_secs` to say where its joints are.
    ///
    /// # Errors
    /// It cannot be reached, in words.
    pub fn connect(&self, session: &Session, embodiment: &Embodiment, wait_secs: f64) -> Result<RealArm> {
        match (&self.servos, &self.calibration, &self.ros2) {
            (Some(servos), Some(calibration), _) => {
                let calibration = Calibration::load(calibration)?;
                Ok(RealArm::Servos(Box::new(ServoArm::open(embodiment, calibration, servos)?)))
            }
            (_, _, Some(ros2)) => {
                Ok(RealArm::Ros2(Box::new(RosArm::connect(session, embodiment, ros2, wait_secs)?)))
            }
            _ => Err(Error::Robot("the file names no arm".into())),
        }
    }

    /// The joints of this arm in `units`.
    ///
    /// # Errors
    /// The calibration is needed and cannot be read, or misses a joint.
    pub fn scales(&self, embodiment: &Embodiment, units: PolicyUnits) -> Result<JointScales> {
        let calibration = self.calibration.as_deref().filter(|_| units == PolicyUnits::LerobotRange);
        let calibration = calibration.map(Calibration::load).transpose()?;
        JointScales::new(embodiment, units, calibration.as_ref())
    }

    /// This policy, which knows the joints in this arm's `policy_units`, in rad.
    ///
    /// # Errors
    /// The calibration is needed and cannot be read, or misses a joint.
    pub fn translated(&self, policy: Box<dyn Policy>, embodiment: &Embodiment) -> Result<Box<dyn Policy>> {
        if self.policy_units == PolicyUnits::Radians {
            return Ok(policy);
        }
        Ok(Box::new(InUnits::new(policy, self.scales(embodiment, self.policy_units)?)))
    }

    /// The ROS domain of the arm and its cameras.
    pub fn domain(&self) -> u32 {
        self.ros2.as_ref().map_or(crate::ros2::DOMAIN, |ros2| ros2.domain)
    }

    /// Their distribution.
    pub fn distribution(&self) -> Distribution {
        self.ros2.as_ref().map_or_else(Distribution::default, |ros2| ros2.distribution)
    }
}

/// Any real arm.
pub enum RealArm {
    /// On a serial bus.
    Servos(Box<ServoArm>),
    /// On zenoh.
    Ros2(Box<RosArm>),
}

impl RealArm {
    /// How the goals of a gripper with a ROS 2 action went.
    pub fn gripper_report(&self) -> Option<GripperReport> {
        match self {
            Self::Servos(_) => None,
            Self::Ros2(arm) => arm.gripper_report(),
        }
    }

    /// How many joint states were dropped because they came again or after a newer one.
    pub fn repeats(&self) -> u64 {
        match self {
            Self::Servos(_) => 0,
            Self::Ros2(arm) => arm.repeats(),
        }
    }

    fn side(&mut self) -> &mut dyn JointSide {
        match self {
            Self::Servos(arm) => arm.as_mut(),
            Self::Ros2(arm) => arm.as_mut(),
        }
    }
}

impl JointSide for RealArm {
    fn embodiment(&self) -> &Embodiment {
        match self {
            Self::Servos(arm) => arm.embodiment(),
            Self::Ros2(arm) => arm.embodiment(),
        }
    }

    fn joints(&mut self) -> Result<JointReading> {
        self.side().joints()
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        self.side().apply(action)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Servos(arm) => arm.clock(),
            Self::Ros2(arm) => arm.clock(),
        }
    }
}
