//! Hostile plans by the million against the gate, and a checker that knows nothing of how the gate works: it recomputes
//! position, speed, acceleration, jerk, tip and bodies from the sequence of what was sent.

use rand::Rng;
use vela_embodiment::{
    Action, Embodiment, GateConfig, Kinematics, Narrowing, Result, SafetyGate, Stamp, TripReason, Zone,
    stream,
};

/// What came out of the gate, tick by tick, and whether it obeys.
struct Checker {
    robot: Embodiment,
    kinematics: Kinematics,
    position: Vec<f64>,
    speed: Vec<f64>,
    acceleration: Vec<f64>,
    worst: f64,
}

impl Checker {
    fn new(robot: &Embodiment, start: &[f64]) -> Result<Self> {
        let zeros = vec![0.0; start.len()];
        Ok(Self {
            robot: robot.clone(),
            kinematics: robot.kinematics()?,
            position: start.to_vec(),
            speed: zeros.clone(),
            acceleration: zeros,
            worst: 0.0,
        })
    }

    /// The next targets that were sent. `tip`: look at the tip's workspace and the zones too.
    fn sent(&mut self, targets: &[f64], tip: bool, at: u64) {
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
            self.worst = self.worst.max(speed.abs() / l.velocity);
            (self.position[k], self.speed[k], self.acceleration[k]) = (next, speed, acceleration);
        }
        if tip {
            let tip = self.kinematics.base_from_tip(targets).translation.vector;
            let s = &self.robot.safety;
            for axis in 0..3 {
                let inside = tip[axis] >= s.workspace_min_m[axis] - 1e-6
                    && tip[axis] <= s.workspace_max_m[axis] + 1e-6;
                assert!(inside, "{at}: the tip is at {tip:?}");
            }
            for zone in &s.keep_out {
                let within =
                    |axis: usize| tip[axis] > zone.min_m[axis] + 1e-6 && tip[axis] < zone.max_m[axis] - 1e-6;
                assert!(!(0..3).all(within), "{at}: the tip is in '{}'", zone.name);
            }
        }
    }
}

/// `count` hostile actions against one robot; how often each reason occurred.
fn attack(
    robot: &Embodiment,
    config: &GateConfig,
    count: u64,
    seed: u64,
) -> Result<std::collections::BTreeMap<TripReason, u64>> {
    let joints = robot.joints.len();
    let start = vec![0.0; joints];
    let mut gate = SafetyGate::new(robot, config.clone(), &start)?;
    let mut checker = Checker::new(&config.narrow(robot)?, &start)?;
    let stop = gate.emergency_stop();
    let mut rng = stream(seed, "hostile");
    let mut now = Stamp(0);
    let mut targets = vec![0.0; joints];
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
            let efforts: Vec<f64> = (0..joints).map(|_| rng.random_range(-4.0..4.0)).collect();
            gate.feel(if rng.random() { &efforts } else { &[] });
        }
        let asked = (rng.random_range(0..60) != 0).then_some((&action, observed));
        let verdict = gate.check(asked, now);
        assert!(!verdict.held || !verdict.trips.is_empty(), "{k}: a hold without a reason");
        checker.sent(&verdict.action.get().joint_targets, true, k);
    }
    assert!(checker.worst > 0.9, "the attack never came near the limits");
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
        (&bare, zoned, count / 5),
        (&bare, GateConfig::default(), count / 5 * 2),
        (&arm7, with_jerk(&arm7, 400.0), count / 5),
    ];
    let mut seen = std::collections::BTreeMap::new();
    for (k, (robot, config, share)) in shares.iter().enumerate() {
        let start = std::time::Instant::now();
        for (reason, n) in attack(robot, config, *share, k as u64)? {
            *seen.entry(reason).or_insert(0) += n;
        }
        println!("{} actions to '{}' in {:.1} s", share, robot.name, start.elapsed().as_secs_f64());
    }
    println!("{count} actions: {seen:?}");
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
