//! A URDF arm as a rapier multibody (reduced coordinates: joints cannot drift apart), its motors and its drawing.

use crate::bodies::{ARM_FRICTION, JAW_FRICTION, Owner, z_from_y};
use crate::drawing::{Drawn, Solid};
use crate::physics::{Physics, from_pose, to_pose, to_vector};
use nalgebra::{Isometry3, Matrix3, Translation3, UnitQuaternion, Vector3};
use rapier3d::math::{Matrix, Pose};
use rapier3d::prelude::*;
use vela_embodiment::{Embodiment, Error, Geometry, JointKind, Kinematics, Link, Result, RobotModel, Shape};

/// The position error at which a turning motor gives all its effort, rad, and a sliding one, m.
const FULL_EFFORT_ERROR_RAD: f64 = 0.05;
const FULL_EFFORT_ERROR_M: f64 = 0.005;
/// Damping over stiffness, s.
const DAMPING_SECS: f64 = 0.05;
/// A rotor's inertia as felt behind the gears, per unit of force, kg m^2 / (N m) or kg / N.
const ARMATURE_PER_FORCE: f64 = 0.002;
/// The gears' drag per unit of force, s. A jaw that meets something must not ring against it.
const DRAG_PER_FORCE: f64 = 0.07;
/// Share of its effort that the gripper's motor may use: a firm grip that crushes nothing.
const GRIP_SHARE: f64 = 0.1;

/// One driven joint.
#[derive(Clone, Copy, Debug)]
struct Motor {
    handle: MultibodyJointHandle,
    axis: JointAxis,
    stiffness: f64,
    damping: f64,
    max_force: f64,
    lower: f64,
    upper: f64,
}

/// Where the arm lives in rapier's sets.
#[derive(Clone, Debug)]
pub(crate) struct Arm {
    /// For each link of the model, the body it is part of and its place in it.
    place: Vec<(RigidBodyHandle, Isometry3<f64>)>,
    /// In the embodiment's order.
    motors: Vec<Motor>,
    /// The link that carries the wrist camera.
    gripper_link: usize,
}

impl Arm {
    /// Builds the arm at `start` (rad or m, the embodiment's order). Links that no driven joint parts are one body.
    ///
    /// # Errors
    /// A moving part without mass.
    pub fn insert(
        physics: &mut Physics,
        embodiment: &Embodiment,
        kinematics: &Kinematics,
        friction_scale: f64,
        start: &[f64],
    ) -> Result<Self> {
        let model = kinematics.model();
        let names = embodiment.joint_names();
        let driven = |joint: &str| names.iter().position(|name| *name == joint);
        let owners = owners(model, embodiment)?;
        // Which link leads the body that a link is part of.
        let mut lead: Vec<usize> = (0..model.links.len()).collect();
        let mut lead_from_link = vec![Isometry3::identity(); model.links.len()];
        for joint in &model.joints {
            if driven(&joint.name).is_none() {
                lead[joint.child] = lead[joint.parent];
                lead_from_link[joint.child] = lead_from_link[joint.parent] * joint.parent_from_child(0.0);
            }
        }
        let base_from_links = kinematics.base_from_links(start);
        let mut bodies = vec![RigidBodyHandle::invalid(); model.links.len()];
        for (index, link) in model.links.iter().enumerate().filter(|(index, _)| lead[*index] == *index) {
            let parts: Vec<usize> = (0..model.links.len()).filter(|part| lead[*part] == index).collect();
            let mass = parts
                .iter()
                .filter(|part| model.links[**part].mass_kg > 0.0)
                .map(|part| mass(&model.links[*part], &lead_from_link[*part]))
                .reduce(|a, b| a + b);
            let body = match (index, mass) {
                (0, _) => RigidBodyBuilder::fixed(),
                (_, Some(mass)) => RigidBodyBuilder::dynamic()
                    .additional_mass_properties(mass)
                    // A servo's own loop takes up the arm's weight: it is left out rather than put back.
                    .gravity_scale(0.0)
                    .can_sleep(false),
                (_, None) => {
                    return Err(Error::Robot(format!("link '{}' moves and has no mass", link.name)));
                }
            };
            let colliders = parts.iter().flat_map(|part| {
                let (owner, lead_from_link) = (owners[*part], lead_from_link[*part]);
                let shapes = model.links[*part].collisions.iter();
                shapes.filter_map(move |shape| collider(shape, &lead_from_link, owner, friction_scale))
            });
            bodies[index] = physics.insert(body.pose(to_pose(&base_from_links[index])), colliders);
        }
        let mut motors: Vec<Option<Motor>> = vec![None; names.len()];
        for joint in &model.joints {
            let Some(k) = driven(&joint.name) else { continue };
            let (axis, locked, full_error) = match joint.kind {
                Some(JointKind::Prismatic) => {
                    (JointAxis::LinX, JointAxesMask::LOCKED_PRISMATIC_AXES, FULL_EFFORT_ERROR_M)
                }
                _ => (JointAxis::AngX, JointAxesMask::LOCKED_REVOLUTE_AXES, FULL_EFFORT_ERROR_RAD),
            };
            let is_gripper = embodiment.gripper.as_ref().is_some_and(|gripper| gripper.joint == joint.name);
            let stiffness = joint.effort / full_error;
            let damping = stiffness * DAMPING_SECS;
            let max_force = if is_gripper { joint.effort * GRIP_SHARE } else { joint.effort };
            // Rapier's joints turn about and slide along their frames' x axis.
            let joint_from_x = joint_from_x(&joint.axis);
            let parent_from_x = lead_from_link[joint.parent]
                * joint.parent_from_joint
                * Isometry3::from_parts(Translation3::identity(), joint_from_x);
            let child_from_x = Isometry3::from_parts(Translation3::identity(), joint_from_x);
            let data = GenericJointBuilder::new(locked)
                .local_frame1(to_pose(&parent_from_x))
                .local_frame2(to_pose(&child_from_x))
                .motor_model(axis, MotorModel::ForceBased)
                .motor_max_force(axis, max_force as Real)
                .set_motor(axis, start[k] as Real, 0.0, stiffness as Real, damping as Real);
            let (parent, child) = (bodies[lead[joint.parent]], bodies[joint.child]);
            let handle = physics.multibodies.insert(parent, child, data, true).ok_or_else(|| {
                Error::Robot(format!("joint '{}' does not fit into a tree of links", joint.name))
            })?;
            motors[k] = Some(Motor {
                handle,
                axis,
                stiffness,
                damping,
                max_force,
                lower: joint.lower,
                upper: joint.upper,
            });
        }
        let motors: Vec<Motor> = motors.into_iter().flatten().collect();
        let place = (0..model.links.len()).map(|link| (bodies[lead[link]], lead_from_link[link])).collect();
        let arm = Self { place, motors, gripper_link: gripper_link(model, embodiment)? };
        arm.settle(physics, start);
        Ok(arm)
    }

    /// Puts the joints where they start and gives each its rotor.
    fn settle(&self, physics: &mut Physics, start: &[f64]) {
        let Some(first) = self.motors.first() else { return };
        let Some((multibody, _)) = physics.multibodies.get_mut(first.handle) else { return };
        // A multibody is born with a free root; this sees that the root is fixed and drops its six coordinates.
        multibody.forward_kinematics(&physics.bodies, true);
        let dofs: Vec<(usize, RigidBodyHandle)> =
            multibody.links().skip(1).map(|link| (link.assembly_id(), link.rigid_body_handle())).collect();
        let mut displacements = vec![0.0; multibody.ndofs()];
        for (dof, body) in dofs {
            let Some(k) = self.motors.iter().position(|motor| motor.handle.0 == body.0) else { continue };
            displacements[dof] = start[k] as Real;
            multibody.armature_mut()[dof] = (self.motors[k].max_force * ARMATURE_PER_FORCE) as Real;
            multibody.damping_mut()[dof] = (self.motors[k].max_force * DRAG_PER_FORCE) as Real;
        }
        multibody.apply_displacements(&displacements);
        multibody.forward_kinematics(&physics.bodies, false);
        multibody.update_rigid_bodies(&mut physics.bodies, true);
    }

    /// The nearest targets that the joints can take, rad or m.
    pub fn within_limits(&self, targets: &[f64]) -> Vec<f64> {
        self.motors
            .iter()
            .zip(targets)
            .map(|(motor, target)| target.clamp(motor.lower, motor.upper))
            .collect()
    }

    /// Sets where the motors pull, rad or m, and how fast that moves, per s.
    pub fn drive(
        &self,
        physics: &mut Physics,
        positions: impl Iterator<Item = f64>,
        speeds: impl Iterator<Item = f64>,
    ) {
        for ((motor, position), speed) in self.motors.iter().zip(positions).zip(speeds) {
            let Some((multibody, link)) = physics.multibodies.get_mut(motor.handle) else { continue };
            let Some(link) = multibody.link_mut(link) else { continue };
            link.joint.data.set_motor(
                motor.axis,
                position as Real,
                speed as Real,
                motor.stiffness as Real,
                motor.damping as Real,
            );
        }
    }

    /// Measured positions and speeds, rad or m, per s.
    pub fn joints(&self, physics: &Physics) -> (Vec<f64>, Vec<f64>) {
        self.motors
            .iter()
            .map(|motor| {
                let found = physics.multibodies.get(motor.handle);
                let link = found.and_then(|(multibody, id)| Some((multibody, multibody.link(id)?)));
                link.map_or((0.0, 0.0), |(multibody, link)| {
                    let position = link.joint().coords()[motor.axis as usize];
                    (f64::from(position), f64::from(multibody.joint_velocity(link)[0]))
                })
            })
            .unzip()
    }

    /// A link's frame in the world.
    fn world_from_link(&self, physics: &Physics, link: usize) -> Isometry3<f64> {
        let (body, body_from_link) = &self.place[link];
        physics.bodies.get(*body).map_or(*body_from_link, |body| from_pose(body.position()) * body_from_link)
    }

    /// The frame that carries the wrist camera.
    pub fn world_from_gripper(&self, physics: &Physics) -> Isometry3<f64> {
        self.world_from_link(physics, self.gripper_link)
    }

    /// The arm as drawn solids, link by link. Meshes are not loaded and not drawn.
    pub fn draw(&self, physics: &Physics, model: &RobotModel, into: &mut Vec<Drawn>) {
        for (index, link) in model.links.iter().enumerate().filter(|(_, link)| !link.visuals.is_empty()) {
            let world_from_link = self.world_from_link(physics, index);
            for shape in &link.visuals {
                let albedo = [shape.rgba[0], shape.rgba[1], shape.rgba[2]];
                let mut push = |solid, shift_m: f64| {
                    let pose = world_from_link * shape.link_from_shape * Translation3::new(0.0, 0.0, shift_m);
                    into.push(Drawn { solid, world_from_solid: pose.cast(), albedo });
                };
                match &shape.geometry {
                    Geometry::Box(size) => push(Solid::Box((size / 2.0).cast()), 0.0),
                    Geometry::Cylinder { radius, length } => {
                        push(
                            Solid::Cylinder { radius: *radius as f32, half_length: (length / 2.0) as f32 },
                            0.0,
                        );
                    }
                    Geometry::Sphere { radius } => push(Solid::Sphere { radius: *radius as f32 }, 0.0),
                    Geometry::Capsule { radius, length } => {
                        let (radius, half) = (*radius as f32, length / 2.0);
                        push(Solid::Cylinder { radius, half_length: half as f32 }, 0.0);
                        push(Solid::Sphere { radius }, half);
                        push(Solid::Sphere { radius }, -half);
                    }
                    Geometry::Mesh(_) => {}
                }
            }
        }
    }
}

/// Who each link belongs to: what the gripper's joint moves is jaw, what carries that joint is gripper.
fn owners(model: &RobotModel, embodiment: &Embodiment) -> Result<Vec<Owner>> {
    let mut owners = vec![Owner::Arm; model.links.len()];
    let Some(gripper) = &embodiment.gripper else { return Ok(owners) };
    let jaw = model.joint(&gripper.joint)?;
    owners[jaw.parent] = Owner::Gripper;
    owners[jaw.child] = Owner::Jaw;
    for joint in model.joints.iter().filter(|joint| joint.kind.is_none()) {
        if owners[joint.child] == Owner::Arm {
            owners[joint.child] = owners[joint.parent];
        }
    }
    Ok(owners)
}

/// The link that carries the jaw, or the tip of an arm without one.
fn gripper_link(model: &RobotModel, embodiment: &Embodiment) -> Result<usize> {
    match &embodiment.gripper {
        Some(gripper) => Ok(model.joint(&gripper.joint)?.parent),
        None => model.link_index(&embodiment.tip_link),
    }
}

/// Mass of a link, in the frame of the body it is part of.
fn mass(link: &Link, body_from_link: &Isometry3<f64>) -> MassProperties {
    let body_from_com = body_from_link * link.link_from_com;
    let turn: Matrix3<f64> = body_from_com.rotation.to_rotation_matrix().into_inner();
    let inertia = turn * link.inertia_kg_m2 * turn.transpose();
    let columns: Vec<_> = inertia.column_iter().map(|c| to_vector(&c.into_owned())).collect();
    MassProperties::with_inertia_matrix(
        to_vector(&body_from_com.translation.vector),
        link.mass_kg as Real,
        Matrix::from_cols(columns[0], columns[1], columns[2]),
    )
}

/// A link's shape as a collider that meets the table and the objects, never the arm. Meshes do not collide.
fn collider(
    shape: &Shape,
    body_from_link: &Isometry3<f64>,
    owner: Owner,
    friction_scale: f64,
) -> Option<ColliderBuilder> {
    let (shared, turn) = match &shape.geometry {
        Geometry::Box(size) => {
            let half = to_vector(&(size / 2.0));
            (SharedShape::cuboid(half.x, half.y, half.z), Pose::identity())
        }
        Geometry::Cylinder { radius, length } => {
            (SharedShape::cylinder((length / 2.0) as Real, *radius as Real), z_from_y())
        }
        Geometry::Sphere { radius } => (SharedShape::ball(*radius as Real), Pose::identity()),
        Geometry::Capsule { radius, length } => {
            (SharedShape::capsule_z((length / 2.0) as Real, *radius as Real), Pose::identity())
        }
        Geometry::Mesh(_) => return None,
    };
    let friction = match owner {
        Owner::Gripper | Owner::Jaw => JAW_FRICTION,
        _ => ARM_FRICTION,
    };
    let groups =
        InteractionGroups::new(Group::GROUP_1, Group::ALL & !Group::GROUP_1, InteractionTestMode::And);
    Some(
        ColliderBuilder::new(shared)
            .position(to_pose(&(body_from_link * shape.link_from_shape)) * turn)
            .density(0.0)
            .friction((friction * friction_scale) as Real)
            .collision_groups(groups)
            .user_data(owner.tag()),
    )
}

/// Rotation that takes x to the joint's axis.
fn joint_from_x(axis: &Vector3<f64>) -> UnitQuaternion<f64> {
    UnitQuaternion::rotation_between(&Vector3::x(), axis)
        .unwrap_or_else(|| UnitQuaternion::from_axis_angle(&Vector3::z_axis(), std::f64::consts::PI))
}
