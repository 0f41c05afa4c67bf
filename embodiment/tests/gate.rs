//! Hostile plans by the million against the gate, and a checker that knows nothing of how the gate works: it recomputes
//! position, speed, acceleration, jerk, effort, tip and bodies from the sequence of what was sent, by kinematics and
//! distances of its own. What the arm then does is measured in `sim/tests/hostile.rs`.

mod body;

use body::Body;
use rand::Rng;
use std::collections::BTreeMap;
use vela_embodiment::{
    Action, Embodiment, GateConfig, Narrowing, Result, RobotModel, SafetyGate, Stamp, TripReason, Zone,
    stream,
};

/// What came out of the gate, tick by tick, and whether it obeys.
struct Checker {
    robot: Embodiment,
    body: Body,
    /// N m or N.
    efforts: Vec<f64>,
    position: Vec<f64>,
    speed: Vec<f64>,
    acceleration: Vec<f64>,
    worst: f64,
    /// How near to zero each of the body's depths came, m.
    nearest: [f64; 3],
}

impl Checker {
    fn new(robot: &Embodiment, start: &[f64]) -> Result<Self> {
        let zeros = vec![0.0; start.len()];
        let model = RobotModel::from_urdf(&robot.urdf)?;
        let efforts = robot.joints.iter().map(|joint| Ok(model.joint(&joint.name)?.effort));
        Ok(Self {
            robot: robot.clone(),
            body: Body::new(robot)?,
            efforts: efforts.collect::<Result<_>>()?,
            position: start.to_vec(),
            speed: zeros.clone(),
            acceleration: zeros,
            worst: 0.0,
            nearest: [f64::NEG_INFINITY; 3],
        })
    }

    /// The next targets that were sent while the joints pushed with `felt` (empty: unknown).
    fn sent(&mut self, targets: &[f64], felt: &[f64], at: u64) {
        let dt = self.robot.period_secs();
        for (k, joint) in self.robot.joints.iter().enumerate() {
            let (l, next) = (&joint.limits, targets[k]);
            let speed = (next - self.position[k]) / dt;
            let acceleration = (speed - self.speed[k]) / dt;
            let jerk = (acceleration - self.acceleration[k]) / dt;
            assert!(next >= l.lower && next <= l.upper, "{at}: {} at {next}", joint.name);
            assert!(speed.abs() <= l.velocity + 1e-6, "{at}: {} at {speed} per s", joint.name);
            assert!(acceleration.abs() <= l.acceleration + 1e-4, "{at}: {} {acceleration}", joint.name);
            if let Some(most) = l.jerk {
                assert!(jerk.abs() <= most + 1e-2, "{at}: {} jerks by {jerk}", joint.name);
            }
            let felt = felt.get(k).copied().unwrap_or(0.0);
            if felt.abs() > self.efforts[k] {
                // Into what it pushes against it goes slower, and stands in the end.
                let into = |x: f64| x * felt.signum();
                let (before, gain) = (into(self.speed[k]), into(self.acceleration[k]));
                let most = match l.jerk {
                    None => before - l.acceleration * dt,
                    Some(jerk) => before + (gain - jerk * dt).max(0.0) * dt,
                };
                assert!(into(speed) <= most.max(0.0) + 1e-6, "{at}: {} pushes on at {speed}", joint.name);
            }
            self.worst = self.worst.max(speed.abs() / l.velocity);
            (self.position[k], self.speed[k], self.acceleration[k]) = (next, speed, acceleration);
        }
        let depths = self.body.depths(targets);
        for (nearest, depth) in self.nearest.iter_mut().zip([depths.workspace, depths.keep_out, depths.touch])
        {
            assert!(depth <= 1e-6, "{at}: {depths:?} at {targets:?}");
            *nearest = nearest.max(depth);
        }
    }
}

/// `count` hostile actions against one robot; how often each reason occurred.
fn attack(
    robot: &Embodiment,
    config: &GateConfig,
    count: u64,
    seed: u64,
) -> Result<BTreeMap<TripReason, u64>> {
    let joints = robot.joints.len();
    let start = vec![0.0; joints];
    let mut gate = SafetyGate::new(robot, config.clone(), &start)?;
    let mut checker = Checker::new(&config.narrow(robot)?, &start)?;
    let stop = gate.emergency_stop();
    let mut rng = stream(seed, "hostile");
    let mut now = Stamp(0);
    let mut targets = vec![0.0; joints];
    let mut felt = Vec::new();
    for k in 0..count {
        // A new kind of attack every 64 ticks, so that some last: jumps, ramps, shaking, corners, small steps, junk.
        let kind = (k / 64).wrapping_mul(0x9e37_79b9) >> 7;
        for (j, target) in targets.iter_mut().enumerate() {
            *target = match kind % 8 {
                0 => rng.random_range(-4.0..4.0),
                1 => *target + rng.random_range(-0.2..0.25),
                2 => {
                    if k % 2 == 0 {
                        3.0
                    } else {
                        -3.0
                    }
                }
                3 => {
                    if (kind >> (3 + j)) & 1 == 0 {
                        1e300
                    } else {
                        -1e300
                    }
                }
                4 => gate.targets()[j] + rng.random_range(-0.03..0.03),
                5 => f64::from_bits(rng.random()),
                6 if k % 64 == 0 => rng.random_range(-2.0..2.0),
                6 => *target,
                _ => (k as f64 * 0.05 * (j + 1) as f64).sin() * 2.0,
            };
        }
        let action = Action { joint_targets: targets.clone() };
        for target in &mut targets {
            if !target.is_finite() || target.abs() > 10.0 {
                *target = 0.0;
            }
        }
        now = now.plus_secs(match rng.random_range(0..40) {
            0 => 1e-4,
            1 => 0.2,
            _ => robot.period_secs(),
        });
        let observed = if rng.random_range(0..50) == 0 { now.plus_secs(-2.0) } else { now };
        match rng.random_range(0..2000) {
            0 => stop.press("attack"),
            1..20 => stop.release(),
            _ => {}
        }
        if rng.random_range(0..20) == 0 {
            felt = checker.efforts.iter().map(|most| most * rng.random_range(-1.4..1.4)).collect();
            if rng.random() {
                felt.clear();
            }
            gate.feel(&felt);
        }
        let asked = (rng.random_range(0..60) != 0).then_some((&action, observed));
        let verdict = gate.check(asked, now);
        assert!(!verdict.held || !verdict.trips.is_empty(), "{k}: a hold without a reason");
        checker.sent(&verdict.action.get().joint_targets, &felt, k);
    }
    assert!(checker.worst > 0.9, "the attack never came near the limits");
    eprintln!(
        "'{}': {:.6} of the speed; out of the workspace, in a zone, in itself by {:.6?} m",
        robot.name, checker.worst, checker.nearest
    );
    Ok(gate.counts().clone())
}

/// The same seven-joint arm with limits of jerk.
fn jerky() -> Result<Embodiment> {
    Embodiment::from_texts(
        include_str!("../../configs/robots/arm7.toml"),
        include_str!("../../configs/robots/arm7.urdf"),
    )
}

fn with_jerk(robot: &Embodiment, jerk: f64) -> GateConfig {
    let own = Narrowing { jerk: Some(jerk), ..Narrowing::default() };
    let joints = robot.joints.iter().map(|joint| (joint.name.clone(), own.clone())).collect();
    GateConfig { joints, ..GateConfig::default() }
}

fn run(count: u64) -> Result<()> {
    let so101 = Embodiment::so101()?;
    let zone = Zone { name: "lamp".into(), min_m: [0.1, 0.12, 0.05], max_m: [0.3, 0.3, 0.5] };
    let zoned = GateConfig { keep_out: vec![zone], ..GateConfig::default() };
    let mut bare = so101.clone();
    bare.safety.capsules.clear();
    let arm7 = jerky()?;
    let shares: [(&Embodiment, GateConfig, u64); 4] = [
        (&so101, GateConfig::default(), count / 5),
        (&so101, zoned, count / 5),
        (&bare, GateConfig::default(), count / 5 * 2),
        (&arm7, with_jerk(&arm7, 400.0), count / 5),
    ];
    let mut seen = BTreeMap::new();
    for (k, (robot, config, share)) in shares.iter().enumerate() {
        let start = std::time::Instant::now();
        for (reason, n) in attack(robot, config, *share, k as u64)? {
            *seen.entry(reason).or_insert(0) += n;
        }
        eprintln!("{} actions to '{}' in {:.1} s", share, robot.name, start.elapsed().as_secs_f64());
    }
    eprintln!("{count} actions: {seen:?}");
    assert_eq!(seen.len(), 14 - usize::from(!seen.contains_key(&TripReason::Shape)), "{seen:?}");
    Ok(())
}

#[test]
fn not_one_of_a_hundred_thousand_hostile_actions_leaves_the_limits() -> Result<()> {
    run(100_000)
}

/// `cargo test --release -p vela-embodiment --test gate -- --ignored --nocapture`
#[test]
#[ignore = "minutes: the whole ten million"]
fn not_one_of_ten_million_hostile_actions_leaves_the_limits() -> Result<()> {
    run(10_000_000)
}
