//! Forward kinematics and Jacobians of a URDF, over a robot's own joint order.

use crate::{Error, Result, RobotModel};
use nalgebra::{Isometry3, Matrix6xX, Vector3};

/// Kinematics of one robot. Joint vectors are in the order given at construction, rad or m.
#[derive(Clone, Debug)]
pub struct Kinematics {
    model: RobotModel,
    /// For each joint of the model, its place in a joint vector.
    place: Vec<Option<usize>>,
    /// Model joints from the root to the tip.
    path: Vec<usize>,
    tip: usize,
    dofs: usize,
}

impl Kinematics {
    /// Kinematics with the tip at `tip_link`. Movable joints that are not named stay at zero.
    pub fn new(model: &RobotModel, joint_names: &[&str], tip_link: &str) -> Result<Self> {
        let mut place = vec![None; model.joints.len()];
        for (k, name) in joint_names.iter().enumerate() {
            let index = model.joints.iter().position(|joint| joint.name == *name);
            let index = index.ok_or_else(|| Error::Unknown {
                kind: "joint",
                name: (*name).to_owned(),
                known: model.joints.iter().map(|j| j.name.as_str()).collect::<Vec<_>>().join(", "),
            })?;
            place[index] = Some(k);
        }
        let tip = model.link_index(tip_link)?;
        let mut path = Vec::new();
        let mut link = tip;
        while let Some(index) = model.joints.iter().position(|joint| joint.child == link) {
            path.push(index);
            link = model.joints[index].parent;
        }
        path.reverse();
        Ok(Self { model: model.clone(), place, path, tip, dofs: joint_names.len() })
    }

    /// The robot's links and joints.
    pub fn model(&self) -> &RobotModel {
        &self.model
    }

    /// Length of a joint vector.
    pub fn dofs(&self) -> usize {
        self.dofs
    }

    fn position(&self, joint: usize, positions: &[f64]) -> f64 {
        self.place[joint].and_then(|k| positions.get(k)).copied().unwrap_or(0.0)
    }

    /// Each link's frame in the base, in the order of the model's links.
    pub fn base_from_links(&self, positions: &[f64]) -> Vec<Isometry3<f64>> {
        let mut poses = vec![Isometry3::identity(); self.model.links.len()];
        for (index, joint) in self.model.joints.iter().enumerate() {
            poses[joint.child] =
                poses[joint.parent] * joint.parent_from_child(self.position(index, positions));
        }
        poses
    }

    /// The tip's frame in the base.
    pub fn base_from_tip(&self, positions: &[f64]) -> Isometry3<f64> {
        self.path.iter().fold(Isometry3::identity(), |pose, &index| {
            pose * self.model.joints[index].parent_from_child(self.position(index, positions))
        })
    }

    /// Tip velocity per joint velocity in the base frame: three rows m/s, three rows rad/s.
    pub fn jacobian(&self, positions: &[f64]) -> Matrix6xX<f64> {
        let poses = self.base_from_links(positions);
        let tip = poses[self.tip].translation.vector;
        let mut jacobian = Matrix6xX::zeros(self.dofs);
        for &index in &self.path {
            let Some(k) = self.place[index] else { continue };
            let joint = &self.model.joints[index];
            let base_from_joint = poses[joint.child];
            let axis: Vector3<f64> = base_from_joint.rotation * joint.axis.into_inner();
            let (linear, angular) = match joint.kind {
                Some(crate::JointKind::Prismatic) => (axis, Vector3::zeros()),
                _ => (axis.cross(&(tip - base_from_joint.translation.vector)), axis),
            };
            jacobian.fixed_view_mut::<3, 1>(0, k).copy_from(&linear);
            jacobian.fixed_view_mut::<3, 1>(3, k).copy_from(&angular);
        }
        jacobian
    }

    /// Position limits of joint `k` of a joint vector, rad or m.
    pub fn limits(&self, k: usize) -> (f64, f64) {
        let joint =
            self.place.iter().position(|place| *place == Some(k)).map(|index| &self.model.joints[index]);
        joint.map_or((f64::NEG_INFINITY, f64::INFINITY), |joint| (joint.lower, joint.upper))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Embodiment, Result};
    use nalgebra::Vector3;

    /// The zero pose of the published SO-101 description puts the gripper frame at (0.39136, 0, 0.22647).
    #[test]
    fn the_so101_zero_pose_is_the_published_one() -> Result<()> {
        let so101 = Embodiment::so101()?;
        let model = crate::RobotModel::from_urdf(&so101.urdf)?;
        let kinematics = crate::Kinematics::new(&model, &so101.joint_names(), "gripper_frame")?;
        let tip = kinematics.base_from_tip(&[0.0; 6]).translation.vector;
        assert!((tip - Vector3::new(0.39136, 0.0, 0.22647)).norm() < 2e-4, "{tip:?}");
        Ok(())
    }

    #[test]
    fn the_jacobian_is_the_derivative_of_the_tip() -> Result<()> {
        let kinematics = Embodiment::so101()?.kinematics()?;
        let q = [0.3, -0.4, 0.5, 0.2, -0.7, 0.1];
        let jacobian = kinematics.jacobian(&q);
        let step = 1e-6;
        for k in 0..6 {
            let (mut up, mut down) = (q, q);
            up[k] += step;
            down[k] -= step;
            let (up, down) = (kinematics.base_from_tip(&up), kinematics.base_from_tip(&down));
            let linear = (up.translation.vector - down.translation.vector) / (2.0 * step);
            let angular = (up.rotation * down.rotation.inverse()).scaled_axis() / (2.0 * step);
            assert!((jacobian.fixed_view::<3, 1>(0, k) - linear).norm() < 1e-6);
            assert!((jacobian.fixed_view::<3, 1>(3, k) - angular).norm() < 1e-6);
        }
        Ok(())
    }
}
