//! Moves the SO-101 through a made-up motion and records it: `... --example show_arm -- FILE.rrd [SECONDS] [view]`.

use nalgebra::{Isometry3, Translation3, UnitQuaternion, Vector3};
use vela_embodiment::{
    Action, Embodiment, Frame, GateConfig, Geometry, Observation, SafetyGate, Stamp, TripReason,
};
use vela_viz::{Backlog, Destination, Form, Result, Show, Solid, Tick, srgb_from_linear};

/// The motion, rad: down to the cube, grip, up and over the bowl.
fn targets(secs: f64) -> Vec<f64> {
    const POSES: [(f64, [f64; 6]); 6] = [
        (0.0, [0.0, -1.2, 1.2, 0.5, 0.0, 0.2]),
        (1.5, [0.45, -0.15, 0.35, 1.2, 0.0, 1.0]),
        (2.3, [0.45, 0.30, 0.05, 1.15, 0.0, 1.0]),
        (2.8, [0.45, 0.30, 0.05, 1.15, 0.0, 0.15]),
        (3.8, [0.45, -0.5, 0.5, 1.1, 0.0, 0.15]),
        (5.2, [-0.5, -0.25, 0.4, 1.1, 0.0, 0.15]),
    ];
    let next = POSES.iter().position(|(at, _)| *at > secs).unwrap_or(POSES.len() - 1).max(1);
    let ((t0, from), (t1, to)) = (POSES[next - 1], POSES[next]);
    let share = ((secs - t0) / (t1 - t0)).clamp(0.0, 1.0);
    let ease = share * share * (3.0 - 2.0 * share);
    from.iter().zip(to).map(|(a, b)| a + ease * (b - a)).collect()
}

fn solids() -> Vec<Solid> {
    let at = |x: f64, y: f64, z: f64, yaw: f64| {
        Isometry3::from_parts(Translation3::new(x, y, z), UnitQuaternion::from_euler_angles(0.0, 0.0, yaw))
    };
    let cube = Form::Plain(Geometry::Box(Vector3::repeat(0.027)));
    let thing = |name: &str, form: Form, albedo: [f32; 3], base_from_solid| Solid {
        name: name.into(),
        form,
        rgba: srgb_from_linear(albedo),
        base_from_solid,
    };
    vec![
        thing("red cube", cube.clone(), [0.75, 0.03, 0.03], at(0.27, -0.12, 0.0135, 0.5)),
        thing("green cube", cube, [0.04, 0.45, 0.06], at(0.19, 0.03, 0.0135, 0.2)),
        thing(
            "yellow cylinder",
            Form::Plain(Geometry::Cylinder { radius: 0.0135, length: 0.03 }),
            [0.85, 0.65, 0.02],
            at(0.30, 0.02, 0.015, 0.0),
        ),
        thing(
            "purple ball",
            Form::Plain(Geometry::Sphere { radius: 0.0135 }),
            [0.30, 0.04, 0.45],
            at(0.14, -0.14, 0.0135, 0.0),
        ),
        thing(
            "blue bowl",
            Form::Bowl { radius: 0.045, height: 0.025, wall: 0.004 },
            [0.03, 0.10, 0.70],
            at(0.22, 0.13, 0.0125, 0.0),
        ),
        thing("left zone", Form::Patch { half: 0.05 }, [0.30, 0.45, 0.30], at(0.12, 0.2, 0.0006, 0.0)),
    ]
}

/// A picture that changes with time; no camera is needed to look at the layout.
fn picture(camera: &vela_embodiment::Camera, tick: u64, stamp: Stamp) -> Frame {
    let mut rgb = Vec::with_capacity((camera.width * camera.height * 3) as usize);
    for y in 0..camera.height {
        for x in 0..camera.width {
            let near = |cx: u64, cy: u64, r: u64| {
                let (dx, dy) = (u64::from(x).abs_diff(cx), u64::from(y).abs_diff(cy));
                dx * dx + dy * dy < r * r
            };
            let shade = (150 + y / 2) as u8;
            rgb.extend(if near(20 + tick % 60, 50, 9) {
                [190, 40, 40]
            } else {
                [shade, shade - 12, shade - 30]
            });
        }
    }
    Frame { camera: camera.name.clone(), width: camera.width, height: camera.height, rgb: rgb.into(), stamp }
}

fn main() -> Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "show_arm.rrd".into());
    let stop_secs: f64 = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(5.6);
    let so101 = Embodiment::so101()?;
    let destination = match std::env::args().nth(3) {
        Some(_) => Destination::FileAndViewer(file.clone().into()),
        None => Destination::File(file.clone().into()),
    };
    let show = Show::open(&destination, &so101, Backlog::Wait)?;
    for (number, instruction) in
        ["pick up the green cube", "put the green cube in the blue bowl"].iter().enumerate()
    {
        let start = Stamp::from_secs(100.0);
        let period = so101.period_secs();
        let mut gate = SafetyGate::new(&so101, GateConfig::default(), &targets(0.0))?;
        let mut measured = targets(0.0);
        show.begin_episode(number + 1, instruction, start);
        show.solids(solids().into_iter().skip(number).collect());
        for tick in 0..(stop_secs / period) as u64 {
            let stamp = start.plus_secs(tick as f64 * period);
            let secs = tick as f64 * period;
            // Once it is asked too much, so that the gate has something to say.
            let mut asked = targets(secs + period);
            if (60..63).contains(&tick) {
                asked[0] += 0.4;
            }
            let verdict = gate.check(Some((&Action { joint_targets: asked }, stamp)), stamp);
            if tick % 8 == 0 {
                let plan: Vec<Vec<f64>> = (1..=24).map(|k| targets(secs + f64::from(k) * period)).collect();
                show.plan(&plan, stamp);
                show.latency("policy", 0.007 + 0.0015 * (secs * 3.0).sin(), stamp);
                show.latency("link", 0.0006 + 0.0002 * (secs * 7.0).cos(), stamp);
            }
            show.latency("observe", 0.0021 + 0.0004 * (secs * 5.0).cos(), stamp);
            let joint_targets = verdict.action.get().joint_targets.clone();
            show.tick(Tick {
                observation: Observation {
                    frames: so101.cameras.iter().map(|camera| picture(camera, tick, stamp)).collect(),
                    joint_positions: measured.clone(),
                    instruction: (*instruction).into(),
                    stamp,
                },
                joint_targets: joint_targets.clone(),
                held: verdict.held,
                trips: verdict.trips,
                base_from_solids: Vec::new(),
            });
            for (q, target) in measured.iter_mut().zip(&joint_targets) {
                *q += 0.45 * (target - *q);
            }
        }
        let counted = gate.counts().get(&TripReason::Velocity).copied().unwrap_or_default();
        let end = start.plus_secs(stop_secs);
        show.end_episode(number == 0, &format!("in {stop_secs:.1} s, {counted} speed limits"), end);
    }
    let report = show.finish()?;
    println!("{file}: {} calls shown, {} dropped", report.shown, report.dropped);
    Ok(())
}
