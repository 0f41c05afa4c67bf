//! Any arm from a robot file reaches targets in the world:
//! `cargo run --release -p vela-sim --example reach_urdf -- ROBOT.toml`.
//!
//! Targets are poses of random joint positions above the table, so they can be reached; each is found again by inverse
//! kinematics from where the arm stands, driven to by the motors, and the error of the tip is printed.

use nalgebra::{Point3, Vector3};
use rand::Rng;
use std::path::Path;
use vela_embodiment::{Embodiment, IkGoal, IkOptions, stream};
use vela_sim::World;
use vela_sim::scene::{Looks, Physics, Scene};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: reach_urdf ROBOT.toml")?;
    let embodiment = Embodiment::load(Path::new(&path))?;
    let limits: Vec<_> = embodiment.joints.iter().map(|joint| joint.limits).collect();
    let home: Vec<f64> = limits.iter().map(|l| 0.0f64.clamp(l.lower, l.upper)).collect();
    let scene = Scene {
        objects: Vec::new(),
        zones: Vec::new(),
        start_joints: home.clone(),
        looks: Looks::default(),
        physics: Physics::default(),
    };
    let mut world = World::new(&embodiment, &scene)?;
    let mut rng = stream(1, "targets");
    let (mut from, mut worst, mut reached) = (home, 0f64, 0);
    while reached < 10 {
        let q: Vec<f64> = limits.iter().map(|l| rng.random_range(0.6 * l.lower..0.6 * l.upper)).collect();
        let tip: Vector3<f64> = world.kinematics().base_from_tip(&q).translation.vector;
        if tip.z < 0.12 || tip.x < 0.1 {
            continue;
        }
        let goal = IkGoal { position: Point3::from(tip), approach: None, rotation: None };
        let Some(to) = world.kinematics().solve_ik(&goal, &from, &IkOptions::default()) else { continue };
        for tick in 1..=90 {
            let share = (f64::from(tick) / 70.0).min(1.0);
            world.step(&from.iter().zip(&to).map(|(a, b)| a + (b - a) * share).collect::<Vec<_>>())?;
        }
        let error = (world.state().base_from_tip.translation.vector - tip).norm();
        println!("({:.3}, {:.3}, {:.3}) m: {:.2} mm off", tip.x, tip.y, tip.z, error * 1e3);
        worst = worst.max(error);
        (from, reached) = (to, reached + 1);
    }
    println!("{}: {reached} targets, worst {:.2} mm", embodiment.name, worst * 1e3);
    Ok(())
}
