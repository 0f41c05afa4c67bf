//! A scripted grasp, by kinematics alone, for the physics tests.
#![allow(dead_code)]

use nalgebra::{Matrix3, Point3, Rotation3, UnitQuaternion, Vector3};
use vela_embodiment::{IkGoal, IkOptions, Kinematics, Result};
use vela_sim::World;
use vela_sim::scene::{Colour, Looks, Object, ObjectKind, Physics, Scene};
use vela_sim::state::ObjectState;

pub const HOME: [f64; 6] = [0.0, -0.6, 0.6, 1.2, 0.0, 0.6];

/// A scene of these objects.
pub fn scene(objects: &[(ObjectKind, f64, f64, f64)]) -> Scene {
    let objects = objects.iter().zip(Colour::ALL.iter().cycle());
    let objects = objects.map(|((kind, x, y, yaw), colour)| Object {
        kind: *kind,
        colour: *colour,
        xy_m: [*x, *y],
        yaw_rad: *yaw,
    });
    Scene {
        objects: objects.collect(),
        zones: Vec::new(),
        start_joints: HOME.to_vec(),
        looks: Looks::default(),
        physics: Physics::default(),
    }
}

/// Six objects of every kind.
pub fn crowd() -> Scene {
    scene(&[
        (ObjectKind::Cube, 0.22, 0.03, 0.3),
        (ObjectKind::Cylinder, 0.20, -0.08, 0.0),
        (ObjectKind::Ball, 0.25, 0.10, 0.0),
        (ObjectKind::Cube, 0.17, 0.09, 0.8),
        (ObjectKind::Bowl, 0.27, -0.05, 0.0),
        (ObjectKind::Cylinder, 0.16, -0.02, 0.0),
    ])
}

/// Joints that hold the jaws upright around a point, closing along a direction of the table; the least rolled of
/// the ways that a square can be held. Where upright is out of reach, any way that keeps the roll.
pub fn over(
    kinematics: &Kinematics,
    centre: Vector3<f64>,
    yaw_rad: f64,
    clearance_m: f64,
    seed: &[f64],
) -> Option<Vec<f64>> {
    let ways = (0..4).filter_map(|quarter| {
        let angle = yaw_rad + f64::from(quarter) * std::f64::consts::FRAC_PI_2;
        let closing = Vector3::new(angle.cos(), angle.sin(), 0.0);
        let down = -Vector3::z();
        let turn = Matrix3::from_columns(&[down, closing.cross(&down), closing]);
        let rotation = UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(turn));
        let goal = IkGoal {
            position: Point3::from(centre - closing * clearance_m),
            approach: None,
            rotation: Some(rotation),
        };
        kinematics.solve_ik(&goal, seed, &IkOptions::default())
    });
    ways.min_by(|a, b| a[4].abs().total_cmp(&b[4].abs())).or_else(|| {
        let goal = IkGoal { position: Point3::from(centre), approach: None, rotation: None };
        kinematics.solve_ik(&goal, seed, &IkOptions::default())
    })
}

/// How wrong the scripted grasp is on purpose.
#[derive(Clone, Copy, Default)]
pub struct Wrong {
    pub xy_m: [f64; 2],
    pub yaw_rad: f64,
}

/// How a grasp went.
pub struct Grasped {
    pub lifted_m: f64,
    /// How far the object crept in the gripper between closing and the end.
    pub slip_m: f64,
    pub last: ObjectState,
    pub jaw_rad: f64,
}

fn gripper_from_object(world: &World) -> Vector3<f64> {
    let object = world.state().objects[0].base_from_object.translation.vector;
    let gripper = world.drawing().world_from_gripper.cast::<f64>();
    gripper.inverse_transform_point(&Point3::from(object)).coords
}

/// Opens, goes over the first object, descends, closes, lifts by 8 cm and holds for a second. `None` when the
/// place is out of reach.
pub fn grasp(world: &mut World, wrong: Wrong) -> Result<Option<Grasped>> {
    let (open, closed) = (0.7, -0.17);
    let kinematics = world.kinematics().clone();
    let object = &world.scene().objects[0];
    let yaw = object.yaw_rad + wrong.yaw_rad;
    let (x, y) = (object.xy_m[0] + wrong.xy_m[0], object.xy_m[1] + wrong.xy_m[1]);
    let from_height = object.kind.rest_height_m();
    let heights: Vec<f64> = (0..=7).map(|k| 0.09 - 0.0105 * f64::from(k)).collect();
    let mut seed = world.state().joint_targets;
    let mut down = Vec::new();
    for height in &heights {
        let Some(next) = over(&kinematics, Vector3::new(x, y, *height), yaw, 0.005, &seed) else {
            return Ok(None);
        };
        seed = next.clone();
        down.push(next);
    }
    let mut now = world.state().joint_targets;
    let mut go = |world: &mut World, joints: &[f64], jaw: f64, ticks: i32| -> Result<()> {
        let mut joints = joints.to_vec();
        joints[5] = jaw;
        for tick in 1..=ticks {
            let share = f64::from(tick) / f64::from(ticks);
            let targets: Vec<f64> = now.iter().zip(&joints).map(|(a, b)| a + (b - a) * share).collect();
            world.step(&targets)?;
        }
        now = joints;
        Ok(())
    };
    go(world, &down[0], open, 30)?;
    for joints in &down[1..] {
        go(world, joints, open, 3)?;
    }
    go(world, &seed, closed, 15)?;
    go(world, &seed, closed, 5)?;
    let gripped = gripper_from_object(world);
    for joints in down.iter().rev().skip(1) {
        go(world, joints, closed, 3)?;
    }
    let top = Vector3::new(x, y, 0.1);
    if let Some(joints) = over(&kinematics, top, yaw, 0.005, &down[0]) {
        go(world, &joints, closed, 5)?;
    }
    go(world, &down[0].clone(), closed, 30)?;
    let state = world.state();
    let last = state.objects[0].clone();
    Ok(Some(Grasped {
        lifted_m: last.base_from_object.translation.z - from_height,
        slip_m: (gripper_from_object(world) - gripped).norm(),
        last,
        jaw_rad: state.joint_positions[5],
    }))
}
