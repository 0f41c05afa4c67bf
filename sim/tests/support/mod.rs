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
/// the ways that a square can be held.
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
    ways.min_by(|a, b| a[4].abs().total_cmp(&b[4].abs()))
}

/// How a grasp went.
pub struct Grasped {
    pub lifted_m: f64,
    pub last: ObjectState,
}

/// Opens, goes over the first object, descends, closes, lifts by 8 cm and holds for a second. `None` when the
/// place is out of reach.
pub fn grasp(world: &mut World, yaw_rad: f64) -> Result<Option<Grasped>> {
    let (open, closed) = (0.7, -0.17);
    let kinematics = world.kinematics().clone();
    let from = world.state().objects[0].base_from_object.translation.vector;
    let mut now = world.state().joint_targets;
    let place = |height: f64| Vector3::new(from.x, from.y, height);
    let Some(above) = over(&kinematics, place(0.09), yaw_rad, 0.005, &now) else { return Ok(None) };
    let mut heights: Vec<f64> = (0..=7).map(|k| 0.09 - 0.0105 * f64::from(k)).collect();
    let mut path = vec![(above, open, 30)];
    heights.remove(0);
    let mut seed = path[0].0.clone();
    for height in &heights {
        let Some(next) = over(&kinematics, place(*height), yaw_rad, 0.005, &seed) else { return Ok(None) };
        seed = next.clone();
        path.push((next, open, 3));
    }
    path.push((seed.clone(), closed, 20));
    path.push((seed.clone(), closed, 5));
    for height in heights.iter().rev().skip(1).chain([&0.09, &0.1]) {
        let Some(next) = over(&kinematics, place(*height), yaw_rad, 0.005, &seed) else { return Ok(None) };
        seed = next.clone();
        path.push((next, closed, 3));
    }
    path.push((seed, closed, 30));
    for (mut joints, jaw, ticks) in path {
        joints[5] = jaw;
        for tick in 1..=ticks {
            let share = f64::from(tick) / f64::from(ticks);
            let targets: Vec<f64> = now.iter().zip(&joints).map(|(a, b)| a + (b - a) * share).collect();
            world.step(&targets)?;
        }
        now = joints;
    }
    let last = world.state().objects[0].clone();
    Ok(Some(Grasped { lifted_m: last.base_from_object.translation.z - from.z, last }))
}
