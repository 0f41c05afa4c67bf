//! Poses of a gripper that points down: where it turns about the vertical and how far it has to lean.

use nalgebra::{Isometry3, UnitQuaternion, Vector2, Vector3};
use std::f64::consts::FRAC_PI_2;
use vela_embodiment::{Embodiment, Error, IkGoal, IkOptions, Kinematics, Result};

/// Up to this height of the tip the gripper points straight down, m.
const UPRIGHT_M: f64 = 0.06;
/// Above, it leans outwards by so much per metre, up to [`MOST_LEAN`]: the wrist bends no further, rad/m.
const LEAN_PER_M: f64 = 4.5;
const MOST_LEAN: f64 = 0.42;

/// Points an arm's gripper down at places on the table.
#[derive(Clone, Debug)]
pub(crate) struct Pointing {
    pub kinematics: Kinematics,
    /// Place of the gripper in a joint vector.
    pub gripper: usize,
    /// Axis of the shoulder's pan in the base frame, m.
    shoulder: Vector2<f64>,
    /// The tip beside the axis of the wrist's roll, in the tip's frame, m.
    roll_from_tip: Vector3<f64>,
}

impl Pointing {
    /// For an arm that pans about a vertical axis and has a gripper.
    pub fn new(embodiment: &Embodiment) -> Result<Self> {
        let lacks =
            |what: &str| Error::Robot(format!("'{}' has no {what} for the tabletop", embodiment.name));
        let gripper = embodiment.gripper.as_ref().ok_or_else(|| lacks("gripper"))?;
        let kinematics = embodiment.kinematics()?;
        let zeros = vec![0.0; kinematics.dofs()];
        let links = kinematics.base_from_links(&zeros);
        let model = kinematics.model();
        let pan = model.joints.iter().find(|joint| joint.kind.is_some()).ok_or_else(|| lacks("joint"))?;
        let hand = links[model.joint(&gripper.joint)?.parent];
        let roll_from_tip = (hand.inverse() * kinematics.base_from_tip(&zeros)).translation.vector;
        Ok(Self {
            gripper: embodiment.joint_index(&gripper.joint)?,
            shoulder: links[pan.child].translation.vector.xy(),
            roll_from_tip: Vector3::new(0.0, roll_from_tip.y, roll_from_tip.z),
            kinematics,
        })
    }

    /// Distance from the shoulder's axis, m.
    pub fn radius(&self, xy: Vector2<f64>) -> f64 {
        (xy - self.shoulder).norm()
    }

    /// The nearest place with a distance from the shoulder's axis between two bounds, m.
    pub fn within(&self, xy: Vector2<f64>, least: f64, most: f64) -> Vector2<f64> {
        let radius = self.radius(xy).max(1e-6);
        self.shoulder + (xy - self.shoulder) * (radius.clamp(least, most) / radius)
    }

    /// Direction from the shoulder's axis to a place, rad.
    pub fn heading(&self, xy: Vector2<f64>) -> f64 {
        let out = xy - self.shoulder;
        out.y.atan2(out.x)
    }

    /// Yaw of a tip: the direction of its z axis (from the fixed to the moving jaw) about the vertical, the lean
    /// taken back; rad.
    pub fn yaw(base_from_tip: &Isometry3<f64>) -> f64 {
        let turn = base_from_tip.rotation;
        let upright =
            UnitQuaternion::rotation_between(&(turn * Vector3::x()), &-Vector3::z()).unwrap_or_default();
        let across = upright * (turn * Vector3::z());
        across.y.atan2(across.x)
    }

    /// Rotation of a tip at a place with a yaw, rad.
    pub fn rotation(&self, position: &Vector3<f64>, yaw: f64) -> UnitQuaternion<f64> {
        let lean = (LEAN_PER_M * (position.z - UPRIGHT_M)).clamp(0.0, MOST_LEAN);
        let at = |heading: f64| {
            UnitQuaternion::from_axis_angle(&Vector3::z_axis(), heading)
                * UnitQuaternion::from_axis_angle(&Vector3::y_axis(), FRAC_PI_2 - lean)
                * UnitQuaternion::from_axis_angle(&Vector3::x_axis(), heading - yaw)
        };
        // The arm's plane goes through the axis of the roll, which lies beside the tip.
        let mut rotation = at(self.heading(position.xy()));
        for _ in 0..2 {
            let axis = position - rotation * self.roll_from_tip;
            rotation = at(self.heading(axis.xy()));
        }
        rotation
    }

    /// Joints that bring the tip to a place with a yaw, searched from `seed`; `None` out of reach.
    pub fn joints(&self, position: &Vector3<f64>, yaw: f64, seed: &[f64]) -> Option<Vec<f64>> {
        let rotation = Some(self.rotation(position, yaw));
        let goal = IkGoal { position: (*position).into(), approach: None, rotation };
        let options = IkOptions { iterations: 80, tolerance_m: 2e-4, tolerance_rad: 0.01 };
        self.kinematics.solve_ik(&goal, seed, &options)
    }

    /// Joints from which every place on the table is near, rad.
    ///
    /// # Errors
    /// The arm cannot point its gripper down at the table.
    pub fn home(&self) -> Result<Vec<f64>> {
        let above = Vector3::new(0.19, 0.0, 0.08);
        let seed = vec![0.0; self.kinematics.dofs()];
        let goal = IkGoal { position: above.into(), approach: Some(-Vector3::z()), rotation: None };
        let near = self.kinematics.solve_ik(&goal, &seed, &IkOptions::default());
        near.ok_or_else(|| Error::Robot("the arm cannot point its gripper down at the table".into()))
    }
}
