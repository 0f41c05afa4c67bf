//! The world's physics: motors, friction grasps, rest, clones and bytes.

mod support;

use nalgebra::{Point3, Vector3};
use std::path::Path;
use support::{HOME, Wrong, crowd, grasp, scene};
use vela_embodiment::{Embodiment, IkGoal, IkOptions, Result};
use vela_sim::World;
use vela_sim::scene::{ObjectKind, Physics};
use vela_sim::state::ObjectState;

/// From -1 to 1 and back in a period: a sine without the platform's own mathematics.
fn wave(t: f64, period: f64) -> f64 {
    4.0 * ((t / period + 0.25).rem_euclid(1.0) - 0.5).abs() - 1.0
}

/// A motion that meets things: sweeps low over the crowd.
fn sweep(world: &mut World, ticks: usize) -> Result<()> {
    for tick in 0..ticks {
        let t = tick as f64 / 30.0;
        let lower = (t / 3.0).min(1.0);
        world.step(&[
            0.6 * wave(t, 5.7),
            -0.6 + 0.4 * lower,
            0.6 + 0.137 * lower,
            1.2 - 0.158 * lower,
            0.5 * wave(t, 9.0),
            0.5 + 0.4 * wave(t, 3.1),
        ])?;
    }
    Ok(())
}

#[test]
fn the_same_targets_give_the_same_bytes() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut world = World::new(&so101, &crowd())?;
    let before = world.state();
    sweep(&mut world, 300)?;
    let after = world.state();
    let place = |object: &ObjectState| object.base_from_object.translation.vector;
    let moved =
        before.objects.iter().zip(&after.objects).filter(|(a, b)| (place(a) - place(b)).norm() > 0.01);
    assert!(moved.count() >= 3, "the sweep meets things: {:?}", after.objects);
    assert_eq!(format!("{:016x}", world.hash()), GOLDEN_HASH, "the world's bytes changed");
    Ok(())
}
const GOLDEN_HASH: &str = "4925bc5a3fac3ef1";

#[test]
fn a_clone_goes_the_same_way() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut world = World::new(&so101, &crowd())?;
    sweep(&mut world, 120)?;
    let mut clone = world.clone();
    sweep(&mut world, 120)?;
    sweep(&mut clone, 120)?;
    assert_eq!(world.hash(), clone.hash());
    assert_eq!(world.state(), clone.state());
    Ok(())
}

#[test]
fn motors_reach_and_hold_their_targets() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut world = World::new(&so101, &scene(&[]))?;
    let goal = [0.8, 0.2, 0.3, 0.9, -0.7, 0.9];
    for tick in 1..=45 {
        let share = (f64::from(tick) / 30.0).min(1.0);
        let targets: Vec<f64> = HOME.iter().zip(&goal).map(|(a, b)| a + (b - a) * share).collect();
        world.step(&targets)?;
        let state = world.state();
        for (position, target) in state.joint_positions.iter().zip(&targets) {
            assert!((position - target).abs() < 0.05, "tick {tick}: {position} follows {target}");
        }
    }
    let state = world.state();
    for (position, target) in state.joint_positions.iter().zip(&goal) {
        assert!((position - target).abs() < 0.5_f64.to_radians(), "{position} holds {target}");
    }
    let drawn = world.drawing().world_from_gripper.cast::<f64>();
    let tip = drawn * nalgebra::Point3::new(0.086, 0.0, 0.0075);
    assert!(
        (tip.coords - state.base_from_tip.translation.vector).norm() < 1e-4,
        "bodies sit where the joints say"
    );
    Ok(())
}

#[test]
fn objects_stay_where_they_stand() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut world = World::new(&so101, &crowd())?;
    let before = world.state();
    for _ in 0..150 {
        world.step(&HOME)?;
    }
    for (a, b) in before.objects.iter().zip(&world.state().objects) {
        let moved = (a.base_from_object.translation.vector - b.base_from_object.translation.vector).norm();
        assert!(moved < 5e-4, "the {} moved by {moved}", a.kind.word());
        assert!(b.on_table && !b.touched, "{b:?}");
    }
    Ok(())
}

/// Held, tried, greatest slip in metres, over a grid of places and turns.
fn grasps(kind: ObjectKind, wrong: Wrong, feel: &Physics) -> Result<(usize, usize, f64)> {
    let so101 = Embodiment::so101()?;
    let (mut held, mut tried, mut slip) = (0, 0, 0.0_f64);
    for x in [0.16, 0.185, 0.21, 0.235, 0.26] {
        for y in [-0.12, -0.06, 0.0, 0.03, 0.12] {
            for yaw in [0.0, 0.35, -0.7] {
                let mut scene = scene(&[(kind, x, y, yaw)]);
                scene.physics = feel.clone();
                let mut world = World::new(&so101, &scene)?;
                let Some(grasped) = grasp(&mut world, wrong)? else { continue };
                tried += 1;
                if grasped.lifted_m > 0.05 && grasped.last.pinched && !grasped.last.on_table {
                    held += 1;
                    slip = slip.max(grasped.slip_m);
                } else {
                    println!(
                        "{} at {x} {y} {yaw}: lifted {:.4}, jaw {:.3}, pinched {} at {:?}",
                        kind.word(),
                        grasped.lifted_m,
                        grasped.jaw_rad,
                        grasped.last.pinched,
                        grasped.last.base_from_object.translation.vector
                    );
                }
            }
        }
    }
    Ok((held, tried, slip))
}

#[test]
fn a_grasp_holds_by_friction() -> Result<()> {
    for kind in ObjectKind::MOVABLE {
        let (held, tried, slip) = grasps(kind, Wrong::default(), &Physics::default())?;
        println!("{}: held {held} of {tried}, slip {slip:.4} m", kind.word());
        assert!(tried >= 60 && held == tried, "{}: held {held} of {tried}", kind.word());
        assert!(slip < 0.003, "{}: crept by {slip} m", kind.word());
    }
    Ok(())
}

#[test]
fn a_wrong_grasp_and_a_slippery_heavy_thing_hold_too() -> Result<()> {
    let slippery = Physics { friction_scale: 0.6, mass_scale: 2.0 };
    for (name, wrong, feel) in [
        ("turned", Wrong { yaw_rad: 0.25, xy_m: [0.0; 2] }, Physics::default()),
        ("off", Wrong { yaw_rad: 0.0, xy_m: [0.006, -0.006] }, Physics::default()),
        ("slippery", Wrong::default(), slippery),
    ] {
        for kind in ObjectKind::MOVABLE {
            let (held, tried, slip) = grasps(kind, wrong, &feel)?;
            println!("{name} {}: held {held} of {tried}, slip {slip:.4} m", kind.word());
            assert!(held * 100 >= tried * 93, "{name} {}: held {held} of {tried}", kind.word());
        }
    }
    Ok(())
}

#[test]
fn without_friction_nothing_is_lifted() -> Result<()> {
    let so101 = Embodiment::so101()?;
    // A ball is no proof: the jaws cage it and lift it without friction.
    for kind in [ObjectKind::Cube, ObjectKind::Cylinder] {
        let mut scene = scene(&[(kind, 0.22, 0.03, 0.0)]);
        scene.physics.friction_scale = 0.0;
        let grasped = grasp(&mut World::new(&so101, &scene)?, Wrong::default())?;
        assert!(grasped.is_some_and(|g| g.lifted_m < 0.02 && !g.last.pinched), "{}", kind.word());
    }
    Ok(())
}

#[test]
fn a_seven_joint_arm_reaches_too() -> Result<()> {
    let arm7 = Embodiment::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/robots/arm7.toml"))?;
    let home = [0.0, 0.3, 0.0, 1.6, 0.0, 1.2, 0.0, 0.05];
    let mut scene = scene(&[(ObjectKind::Cube, 0.45, 0.0, 0.0)]);
    scene.start_joints = home.to_vec();
    let mut world = World::new(&arm7, &scene)?;
    let mut from = home.to_vec();
    for (x, y, z) in [(0.45, 0.1, 0.15), (0.5, -0.2, 0.3), (0.35, 0.25, 0.08), (0.4, 0.0, 0.5)] {
        let goal = IkGoal { position: Point3::new(x, y, z), approach: Some(-Vector3::z()), rotation: None };
        let to = world.kinematics().solve_ik(&goal, &from, &IkOptions::default());
        assert!(to.is_some(), "no way to {x} {y} {z}");
        let to = to.unwrap_or_default();
        for tick in 1..=75 {
            let share = (f64::from(tick) / 60.0).min(1.0);
            let targets: Vec<f64> = from.iter().zip(&to).map(|(a, b)| a + (b - a) * share).collect();
            world.step(&targets)?;
        }
        let state = world.state();
        let error = (state.base_from_tip.translation.vector - goal.position.coords).norm();
        assert!(error < 0.003, "{error} m from {x} {y} {z}: {:?} for {to:?}", state.joint_positions);
        from = to;
    }
    Ok(())
}

#[test]
fn bad_targets_are_refused_and_move_nothing() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut world = World::new(&so101, &crowd())?;
    let before = world.hash();
    assert!(world.step(&[0.0; 5]).is_err_and(|e| e.to_string().contains("expected 6, got 5")));
    assert!(world.step(&[f64::NAN; 6]).is_err_and(|e| e.to_string().contains("not finite")));
    assert_eq!(world.hash(), before);
    let mut lost = crowd();
    lost.objects[0].xy_m[0] = f64::INFINITY;
    assert!(World::new(&so101, &lost).is_err_and(|e| e.to_string().contains("not finite")));
    lost = crowd();
    lost.start_joints[0] = 7.0;
    assert!(World::new(&so101, &lost).is_err_and(|e| e.to_string().contains("cannot start at 7")));
    Ok(())
}
