//! Objects and the table as rapier bodies: shapes, masses, friction; and as drawn solids.

use crate::drawing::Solid;
use crate::physics::{Physics, to_pose};
use crate::scene::{Object, ObjectKind, Physics as Feel};
use nalgebra::{Isometry3, Translation3, UnitQuaternion, Vector3};
use rapier3d::math::{Pose, Rotation, Vector};
use rapier3d::prelude::*;

/// Friction of the jaws' rubber, of the arm's plastic, of the objects and of the table. Two bodies that touch
/// rub with the mean of theirs.
pub(crate) const JAW_FRICTION: f64 = 1.5;
pub(crate) const ARM_FRICTION: f64 = 0.5;
const OBJECT_FRICTION: f64 = 0.9;
const TABLE_FRICTION: f64 = 0.8;

const BOWL_RADIUS_M: f64 = 0.045;
const BOWL_HALF_HEIGHT_M: f64 = 0.0125;
const BOWL_WALL_M: f64 = 0.004;
const BOWL_SIDES: usize = 12;

/// Who a collider belongs to, kept in its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The table.
    Table,
    /// A part of the arm that does not grip.
    Arm,
    /// The part that carries the jaw: the fixed jaw.
    Gripper,
    /// The moving jaw.
    Jaw,
    /// The scene's object of that index.
    Object(usize),
}

impl Owner {
    /// As user data.
    pub fn tag(self) -> u128 {
        match self {
            Owner::Table => 0,
            Owner::Arm => 1,
            Owner::Gripper => 2,
            Owner::Jaw => 3,
            Owner::Object(index) => 4 + index as u128,
        }
    }

    /// From user data.
    pub fn of(tag: u128) -> Self {
        match tag {
            0 => Owner::Table,
            1 => Owner::Arm,
            2 => Owner::Gripper,
            3 => Owner::Jaw,
            index => Owner::Object((index - 4) as usize),
        }
    }
}

/// A fixed slab with its top at z = 0.
pub(crate) fn insert_table(physics: &mut Physics, feel: &Feel) {
    let slab = ColliderBuilder::cuboid(1.0, 1.0, 0.05)
        .friction((TABLE_FRICTION * feel.friction_scale) as Real)
        .user_data(Owner::Table.tag());
    let below = Pose::from_translation(Vector::new(0.0, 0.0, -0.05));
    physics.insert(RigidBodyBuilder::fixed().pose(below), [slab]);
}

/// One object, standing on the table at rest.
pub(crate) fn insert_object(
    physics: &mut Physics,
    feel: &Feel,
    index: usize,
    object: &Object,
) -> RigidBodyHandle {
    let pose = Isometry3::from_parts(
        Translation3::new(object.xy_m[0], object.xy_m[1], object.kind.rest_height_m()),
        UnitQuaternion::from_axis_angle(&Vector3::z_axis(), object.yaw_rad),
    );
    // A ball on a real table rubs as it rolls; rapier knows no rolling friction, so spin is damped instead.
    let (shape, mass_kg, spin_damping) = match object.kind {
        ObjectKind::Cube => (SharedShape::cuboid(0.0135, 0.0135, 0.0135), 0.020, 1.0),
        ObjectKind::Cylinder => (SharedShape::cylinder(0.015, 0.0135), 0.020, 4.0),
        ObjectKind::Ball => (SharedShape::ball(0.0135), 0.015, 20.0),
        ObjectKind::Bowl => (bowl(), 0.060, 1.0),
    };
    let turn = if object.kind == ObjectKind::Cylinder { z_from_y() } else { Pose::identity() };
    let collider = ColliderBuilder::new(shape)
        .position(turn)
        .mass((mass_kg * feel.mass_scale) as Real)
        .friction((OBJECT_FRICTION * feel.friction_scale) as Real)
        .user_data(Owner::Object(index).tag());
    let body = RigidBodyBuilder::dynamic().pose(to_pose(&pose)).angular_damping(spin_damping);
    physics.insert(body, [collider])
}

/// What a camera draws of an object.
pub fn solid(kind: ObjectKind) -> Solid {
    match kind {
        ObjectKind::Cube => Solid::Box(Vector3::repeat(0.0135)),
        ObjectKind::Cylinder => Solid::Cylinder { radius: 0.0135, half_length: 0.015 },
        ObjectKind::Ball => Solid::Sphere { radius: 0.0135 },
        ObjectKind::Bowl => Solid::Bowl {
            radius: BOWL_RADIUS_M as f32,
            half_height: BOWL_HALF_HEIGHT_M as f32,
            wall: BOWL_WALL_M as f32,
        },
    }
}

/// Turns rapier's cylinder, which stands along y, to stand along z.
pub(crate) fn z_from_y() -> Pose {
    Pose::from_rotation(Rotation::from_xyzw(
        std::f32::consts::FRAC_1_SQRT_2,
        0.0,
        0.0,
        std::f32::consts::FRAC_1_SQRT_2,
    ))
}

/// A floor and a ring of boxes.
fn bowl() -> SharedShape {
    let half_wall = BOWL_WALL_M / 2.0;
    let step = std::f64::consts::TAU / BOWL_SIDES as f64;
    let ring = BOWL_RADIUS_M - half_wall;
    // Not std's tangent: that is the platform's, and every machine is to build the same bowl.
    let half_side = BOWL_RADIUS_M * nalgebra::ComplexField::tan(step / 2.0);
    let mut parts: Vec<_> = (0..BOWL_SIDES)
        .map(|side| {
            let turn = UnitQuaternion::from_axis_angle(&Vector3::z_axis(), step * side as f64);
            let place = turn * Vector3::new(ring, 0.0, 0.0);
            let wall = SharedShape::cuboid(half_wall as Real, half_side as Real, BOWL_HALF_HEIGHT_M as Real);
            (to_pose(&Isometry3::from_parts(place.into(), turn)), wall)
        })
        .collect();
    let lift = Isometry3::translation(0.0, 0.0, half_wall - BOWL_HALF_HEIGHT_M);
    let floor = SharedShape::cylinder(half_wall as Real, (BOWL_RADIUS_M - half_wall) as Real);
    parts.push((to_pose(&lift) * z_from_y(), floor));
    SharedShape::compound(parts)
}
