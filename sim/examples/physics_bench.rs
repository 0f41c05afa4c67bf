//! Control ticks and physics steps per second of the standard scene, as JSON.

use std::time::Instant;
use vela_embodiment::{Embodiment, Result};
use vela_sim::World;
use vela_sim::scene::{Colour, Looks, Object, ObjectKind, Physics, Scene};

fn main() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let place = |kind, colour, x, y| Object { kind, colour, xy_m: [x, y], yaw_rad: 0.3 };
    let scene = Scene {
        objects: vec![
            place(ObjectKind::Cube, Colour::Red, 0.22, 0.03),
            place(ObjectKind::Cylinder, Colour::Green, 0.20, -0.08),
            place(ObjectKind::Ball, Colour::Blue, 0.25, 0.10),
            place(ObjectKind::Cube, Colour::Yellow, 0.17, 0.09),
            place(ObjectKind::Bowl, Colour::Purple, 0.27, -0.05),
            place(ObjectKind::Cylinder, Colour::Orange, 0.16, -0.02),
        ],
        zones: Vec::new(),
        start_joints: vec![0.0, -0.6, 0.6, 1.2, 0.0, 0.6],
        looks: Looks::default(),
        physics: Physics::default(),
    };
    let mut world = World::new(&so101, &scene)?;
    // Sweeps low over the table, so that things are met and pushed.
    let ticks = 3000;
    let (mut stepping, mut reading) = (0.0, 0.0);
    for tick in 0..ticks {
        let t = f64::from(tick) / 30.0;
        let lower = (t / 3.0).min(1.0);
        let targets = [
            0.6 * (1.1 * t).sin(),
            -0.6 + 0.4 * lower,
            0.6 + 0.137 * lower,
            1.2 - 0.158 * lower,
            0.5 * (0.7 * t).sin(),
            0.5 + 0.4 * (2.0 * t).sin(),
        ];
        let begin = Instant::now();
        world.step(&targets)?;
        stepping += begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        std::hint::black_box(world.state());
        reading += begin.elapsed().as_secs_f64();
    }
    let begin = Instant::now();
    for _ in 0..100 {
        std::hint::black_box(world.clone());
    }
    let cloning = begin.elapsed().as_secs_f64() / 100.0;
    let per_tick = stepping / f64::from(ticks);
    let steps = world.steps_per_tick() as f64;
    println!(
        "{}",
        serde_json::json!({
            "ticks": ticks,
            "joints": so101.joints.len(),
            "objects": scene.objects.len(),
            "tick_us": per_tick * 1e6,
            "ticks_per_sec": 1.0 / per_tick,
            "steps_per_sec": steps / per_tick,
            "step_hz": steps * so101.control_hz,
            "solver_iterations": World::SOLVER_ITERATIONS,
            "state_us": reading / f64::from(ticks) * 1e6,
            "clone_us": cloning * 1e6,
            "hash": format!("{:016x}", world.hash()),
        })
    );
    Ok(())
}
