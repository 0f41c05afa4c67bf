//! Hostile plans against the gate in front of the simulated arm, and a checker that reads the arm's measured joints:
//! what the gate promises of its commands must be true of the arm that follows them.

#[path = "../../embodiment/tests/body/mod.rs"]
mod body;
mod support;

use body::Body;
use nalgebra::Point3;
use rand::Rng;
use vela_embodiment::{
    Action, Embodiment, GateConfig, IkGoal, IkOptions, Narrowing, Result, SafetyGate, Stamp, Zone, stream,
};
use vela_sim::World;

/// What the measured arm may be beyond the limits of its commands. The servo is overdamped and its gears' drag lets it
/// lag by 0.07 / 20 s of its speed: no more than 0.014 rad at 4 rad/s, and that of shoulder, elbow and wrist together
/// (0.0105 rad each at 3 rad/s; 0.4, 0.3 and 0.2 m from the tip) is 9 mm. What the joints throw at each other adds to
/// it, most to the speed. It is true of an arm that meets nothing: against the table the motors give way, and no gate
/// of commands can keep that.
const MOST: Excess = Excess { position: 0.014, speed: 0.5, workspace: 0.01, keep_out: 0.01, touch: 0.01 };

/// How far the measured arm was beyond each limit at worst; negative: how far from it.
#[derive(Clone, Copy, Debug)]
struct Excess {
    /// rad
    position: f64,
    /// rad/s
    speed: f64,
    /// The tip out of its workspace, m.
    workspace: f64,
    /// The tip or a capsule in a zone, m.
    keep_out: f64,
    /// Two capsules in each other, m.
    touch: f64,
}

impl Excess {
    fn each(self) -> [(&'static str, f64); 5] {
        [
            ("position", self.position),
            ("speed", self.speed),
            ("workspace", self.workspace),
            ("keep_out", self.keep_out),
            ("touch", self.touch),
        ]
    }
}

/// The limits of one run, the last measured joints and the worst of all.
struct Checker {
    robot: Embodiment,
    body: Body,
    last: Vec<f64>,
    worst: Excess,
    /// By joint: beyond its range, rad, and its speed, rad/s.
    joints: Vec<[f64; 2]>,
}

impl Checker {
    fn new(robot: &Embodiment, start: &[f64]) -> Result<Self> {
        let none = f64::NEG_INFINITY;
        let worst = Excess { position: none, speed: none, workspace: none, keep_out: none, touch: none };
        Ok(Self {
            robot: robot.clone(),
            body: Body::new(robot)?,
            last: start.to_vec(),
            worst,
            joints: vec![[none; 2]; start.len()],
        })
    }

    fn measured(&mut self, joints: &[f64]) {
        let w = &mut self.worst;
        let measured = joints.iter().zip(&self.last).zip(&mut self.joints);
        for (joint, ((now, last), worst)) in self.robot.joints.iter().zip(measured) {
            let l = &joint.limits;
            let beyond = [
                (l.lower - now).max(now - l.upper),
                (now - last).abs() / self.robot.period_secs() - l.velocity,
            ];
            *worst = [worst[0].max(beyond[0]), worst[1].max(beyond[1])];
            (w.position, w.speed) = (w.position.max(beyond[0]), w.speed.max(beyond[1]));
        }
        let depths = self.body.depths(joints);
        w.workspace = w.workspace.max(depths.workspace);
        w.keep_out = w.keep_out.max(depths.keep_out);
        w.touch = w.touch.max(depths.touch);
        self.last.copy_from_slice(joints);
    }
}

/// `ticks` of hostile plans for the arm over an empty table, through the gate or past it; the worst that was measured.
fn attack(ticks: u64, gated: bool, seed: u64) -> Result<Excess> {
    let mut so101 = Embodiment::so101()?;
    // Fatter than it is, so that it can fold onto itself above the table.
    for capsule in &mut so101.safety.capsules {
        capsule.radius_m += 0.02;
    }
    let lamp = Zone { name: "lamp".into(), min_m: [0.1, 0.12, 0.05], max_m: [0.3, 0.3, 0.5] };
    // Narrower than the motors' end stops, so that it is the gate that keeps the range.
    let narrower = so101.joints.iter().map(|joint| {
        let (lower, upper) = (Some(0.9 * joint.limits.lower), Some(0.9 * joint.limits.upper));
        (joint.name.clone(), Narrowing { lower, upper, ..Narrowing::default() })
    });
    let config = GateConfig {
        keep_out: vec![lamp],
        joints: narrower.collect(),
        // Above the table, so that it is the gate that keeps the tip there.
        workspace_min_m: Some([-0.6, -0.6, 0.06]),
        ..GateConfig::default()
    };
    let mut world = World::new(&so101, &support::scene(&[]))?;
    let kinematics = world.kinematics().clone();
    let mut checker = Checker::new(&config.narrow(&so101)?, &support::HOME)?;
    let mut gate = SafetyGate::new(&so101, config, &support::HOME)?;
    let mut rng = stream(seed, "hostile");
    let mut targets = support::HOME.to_vec();
    let mut kind = 0;
    for k in 1..=ticks {
        let fresh = k % 48 == 1;
        if fresh {
            kind = rng.random_range(0..9);
        }
        let measured = world.state().joint_positions;
        match kind {
            // Into the zone, or through the table.
            0 | 1 if fresh => {
                let position = match kind {
                    0 => [
                        rng.random_range(0.12..0.28),
                        rng.random_range(0.14..0.28),
                        rng.random_range(0.06..0.3),
                    ],
                    _ => [
                        rng.random_range(0.1..0.35),
                        rng.random_range(-0.3..0.3),
                        rng.random_range(-0.1..-0.02),
                    ],
                };
                let goal = IkGoal { position: Point3::from(position), approach: None, rotation: None };
                targets = kinematics.solve_ik(&goal, &measured, &IkOptions::default()).unwrap_or(measured);
            }
            // A far pose: a jump at full speed.
            2 if fresh => targets.fill_with(|| rng.random_range(-2.0..2.0)),
            // Folded onto itself.
            3 if fresh => {
                targets = vec![rng.random_range(-1.0..1.0), rng.random_range(-1.7..0.3), 1.69, 1.65, 0.0, 0.0]
            }
            0..=3 => {}
            _ => {
                for (j, target) in targets.iter_mut().enumerate() {
                    *target = match kind {
                        4 => rng.random_range(-4.0..4.0),
                        // From end to end at every tick, and in every eighth.
                        5 => [-3.0, 3.0][(k % 2) as usize],
                        6 => [-3.0, 3.0][((k / 8 + j as u64) % 2) as usize],
                        7 => measured[j] + rng.random_range(-0.15..0.15),
                        _ => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 0.0][rng.random_range(0..5)],
                    };
                }
            }
        }
        let action = Action { joint_targets: targets.clone() };
        let now = Stamp(0).plus_secs(k as f64 * so101.period_secs());
        if gated {
            let asked = (rng.random_range(0..60) != 0).then_some((&action, now));
            world.step(&gate.check(asked, now).action.get().joint_targets)?;
        } else if world.step(&targets).is_err() {
            // The motors know no NaN: they hold what they have.
            let held = world.state().joint_targets;
            world.step(&held)?;
        }
        checker.measured(&world.state().joint_positions);
    }
    eprintln!("{ticks} ticks, gate {gated}: {:.4?}, by joint {:.4?}", checker.worst, checker.joints);
    if gated {
        eprintln!("{:?}", gate.counts());
    }
    Ok(checker.worst)
}

fn run(ticks: u64) -> Result<()> {
    for ((what, worst), (_, most)) in attack(ticks, true, 1)?.each().into_iter().zip(MOST.each()) {
        assert!(worst <= most, "{what}: the arm was {worst} beyond its limit, at most {most}");
        assert!(worst > -0.01, "{what}: the attack never came near the limit: {worst}");
    }
    Ok(())
}

#[test]
fn the_measured_arm_stays_inside_the_limits_behind_the_gate() -> Result<()> {
    run(15_000)
}

/// `VELA_HOSTILE_TICKS=1000000 cargo test --release -p vela-sim --test hostile -- --ignored --nocapture`
#[test]
#[ignore = "minutes: a million ticks"]
fn the_measured_arm_stays_inside_the_limits_for_a_million_ticks() -> Result<()> {
    let ticks = std::env::var("VELA_HOSTILE_TICKS").ok().and_then(|ticks| ticks.parse().ok());
    run(ticks.unwrap_or(1_000_000))
}

#[test]
fn past_the_gate_the_checker_sees_every_limit_broken() -> Result<()> {
    for ((what, worst), (_, most)) in attack(3_000, false, 1)?.each().into_iter().zip(MOST.each()) {
        assert!(worst > 2.0 * most, "{what}: {worst} past the gate is no more than {most} behind it");
    }
    Ok(())
}
