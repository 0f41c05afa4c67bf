//! One test per rule of the gate; the hostile millions are in embodiment/tests/gate.rs.

use super::*;
use crate::{Capsule, Zone};

fn gate() -> Result<SafetyGate> {
    SafetyGate::new(&Embodiment::so101()?, GateConfig::default(), &[0.0; 6])
}

fn tick(k: u64) -> Stamp {
    Stamp::from_secs(k as f64 / 30.0)
}

fn all(target: f64) -> Action {
    Action { joint_targets: vec![target; 6] }
}

/// The shipped policy's success depends on it: small, smooth targets arrive as they were sent.
#[test]
fn small_smooth_plans_pass_untouched() -> Result<()> {
    let mut gate = gate()?;
    for k in 1..300 {
        let phase = k as f64 / 30.0;
        let action = Action {
            joint_targets: [0.3, -0.3, 0.2, 0.3, 0.4, 0.4].map(|a| a * (1.0 - phase.cos()) + 1e-3).to_vec(),
        };
        let verdict = gate.check(Some((&action, tick(k))), tick(k));
        assert!(!verdict.held && verdict.trips.is_empty(), "{k}: {:?}", verdict.trips);
        let sent = &verdict.action.get().joint_targets;
        assert!(sent.iter().zip(&action.joint_targets).all(|(a, b)| (a - b).abs() < 1e-12), "{k}");
    }
    Ok(())
}

#[test]
fn nan_wrong_shape_stale_missing_and_hurried_plans_hold() -> Result<()> {
    let good = all(0.01);
    let nan = Action { joint_targets: vec![0.0, f64::NAN, 0.0, 0.0, 0.0, 0.0] };
    let short = Action { joint_targets: vec![0.0; 5] };
    for (asked, now, reason) in [
        (Some((&nan, tick(0))), tick(1), TripReason::NotFinite),
        (Some((&short, tick(0))), tick(1), TripReason::Shape),
        (Some((&good, tick(0))), tick(100), TripReason::Stale),
        (None, tick(1), TripReason::NoPlan),
    ] {
        let mut gate = gate()?;
        let verdict = gate.check(asked, now);
        assert!(verdict.held);
        assert_eq!(verdict.trips[0].reason, reason);
        assert_eq!(verdict.action.get().joint_targets, vec![0.0; 6]);
        assert_eq!(gate.counts()[&reason], 1);
    }
    let mut gate = gate()?;
    gate.check(Some((&good, tick(0))), tick(1));
    let hurried = gate.check(Some((&good, tick(0))), tick(1).plus_secs(0.001));
    assert_eq!(hurried.trips[0].reason, TripReason::Rate);
    Ok(())
}

#[test]
fn a_hold_s_words_are_its_cause_and_the_same_however_late_it_was() -> Result<()> {
    let said = |asked: Option<Stamp>, now: Stamp| -> Result<Trip> {
        let mut gate = gate()?;
        gate.check(Some((&all(0.01), tick(0))), tick(0));
        let verdict = match asked {
            Some(observed) => gate.check(Some((&all(0.01), observed)), now),
            None => gate.hold("camera: camera 'wrist' is black", now),
        };
        assert!(verdict.held && verdict.trips == verdict.action.trips());
        Ok(verdict.trips[0].clone())
    };
    let black = said(None, tick(1))?;
    assert_eq!((black.reason, &*black.detail), (TripReason::NoPlan, "camera: camera 'wrist' is black"));
    assert_eq!(black.measured_ms, None);
    // Too old, too early and too soon after the last action, each twice.
    for (observed, now, more) in
        [(tick(0), tick(60), 500.0), (tick(90), tick(2), -3000.0), (tick(0), tick(0), 0.0)]
    {
        let (first, second) = (said(Some(observed), now)?, said(Some(observed), now.plus_secs(0.0042))?);
        assert_eq!((first.reason, &first.detail), (second.reason, &second.detail));
        let (first, second) = (first.measured_ms.unwrap_or(f64::NAN), second.measured_ms.unwrap_or(f64::NAN));
        assert!((second - first - 4.2).abs() < 0.01, "{first} and {second} ms");
        assert!(first >= more, "{first} ms");
    }
    // Under the emergency stop, that is the cause.
    let mut gate = gate()?;
    gate.emergency_stop().press("smoke");
    assert_eq!(gate.hold("no policy", tick(1)).trips[0].detail, "smoke");
    Ok(())
}

#[test]
fn a_plan_through_the_table_is_held_before_it_gets_there() -> Result<()> {
    let mut gate = gate()?;
    let kinematics = Embodiment::so101()?.kinematics()?;
    let down = Action { joint_targets: vec![0.0, 1.2, 0.8, 0.0, 0.0, 0.0] };
    let mut held = false;
    for k in 1..200 {
        held |= gate.check(Some((&down, tick(k))), tick(k)).held;
        let z = kinematics.base_from_tip(gate.targets()).translation.z;
        assert!(z > gate.embodiment().safety.workspace_min_m[2] - 1e-6, "tip at {z}");
    }
    assert!(held);
    Ok(())
}

/// The arm that is turned toward a box from the side; it must end before it and be able to turn back.
#[test]
fn a_keep_out_zone_stops_tip_and_links_and_lets_them_leave() -> Result<()> {
    let zone = Zone { name: "lamp".into(), min_m: [0.1, 0.1, 0.0], max_m: [0.3, 0.3, 0.5] };
    let mut robot = Embodiment::so101()?;
    robot.safety.capsules.clear();
    for capsules in [false, true] {
        if capsules {
            let (from_m, to_m) = ([0.0; 3], [0.08, 0.0, 0.0]);
            robot.safety.capsules.push(Capsule { link: "gripper".into(), from_m, to_m, radius_m: 0.03 });
        }
        let config = GateConfig { keep_out: vec![zone.clone()], ..GateConfig::default() };
        let mut gate = SafetyGate::new(&robot, config, &[0.0; 6])?;
        // Positive pan turns toward -y.
        let toward = Action { joint_targets: vec![-1.5, 0.0, 0.0, 0.0, 0.0, 0.0] };
        let mut reasons = Vec::new();
        for k in 1..60 {
            reasons.extend(gate.check(Some((&toward, tick(k))), tick(k)).trips.into_iter().map(|t| t.reason));
        }
        assert!(reasons.contains(&TripReason::KeepOut));
        let stood = gate.targets()[0];
        assert!(stood < -0.1 && stood > -1.0, "{stood}");
        for k in 60..120 {
            gate.check(Some((&all(0.0), tick(k))), tick(k));
        }
        assert!(gate.targets()[0].abs() < 1e-6, "it may leave: {}", gate.targets()[0]);
    }
    Ok(())
}

#[test]
fn an_arm_that_would_fold_onto_itself_is_held() -> Result<()> {
    let mut robot = Embodiment::so101()?;
    robot.safety.workspace_min_m[2] = -0.6;
    assert!(!robot.safety.capsules.is_empty(), "the SO-101's file describes its body");
    let mut gate = SafetyGate::new(&robot, GateConfig::default(), &[0.0; 6])?;
    let fold = Action { joint_targets: vec![0.0, -1.0, 1.69, 1.65, 0.0, 0.0] };
    let mut said = Vec::new();
    for k in 1..200 {
        said.extend(
            gate.check(Some((&fold, tick(k))), tick(k)).trips.into_iter().map(|t| (t.reason, t.detail)),
        );
    }
    let touch = said.iter().find(|(reason, _)| *reason == TripReason::SelfCollision);
    assert!(touch.is_some_and(|(_, detail)| detail.contains("would touch")), "{:?}", gate.targets());
    Ok(())
}

#[test]
fn a_joint_that_pushes_too_hard_may_only_give_way() -> Result<()> {
    let mut gate = gate()?;
    let mut now = 0;
    let mut ask = |gate: &mut SafetyGate, target: f64| {
        now += 1;
        gate.check(Some((&all(target), tick(now))), tick(now))
            .trips
            .into_iter()
            .map(|t| t.reason)
            .collect::<Vec<_>>()
    };
    // 2.94 N m is the URDF's limit.
    gate.feel(&[0.0, 0.0, 2.9, 0.0, 0.0, 0.0]);
    assert!(ask(&mut gate, 0.01).is_empty());
    gate.feel(&[0.0, 0.0, 3.1, 0.0, 0.0, 0.0]);
    for _ in 0..5 {
        assert!(ask(&mut gate, 0.02).contains(&TripReason::Effort));
    }
    assert!((gate.targets()[2] - 0.01).abs() < 1e-9 && (gate.targets()[1] - 0.02).abs() < 1e-9);
    ask(&mut gate, 0.0);
    assert!(gate.targets()[2].abs() < 1e-9, "it gives way");
    gate.feel(&[0.0, f64::NAN, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(ask(&mut gate, 0.0), [TripReason::NotFinite]);
    gate.feel(&[0.0; 2]);
    assert_eq!(ask(&mut gate, 0.0), [TripReason::Shape]);
    Ok(())
}

#[test]
fn a_pressed_stop_brakes_within_the_limits_stays_and_needs_a_new_plan_after_its_release() -> Result<()> {
    let mut gate = gate()?;
    let aside = Action { joint_targets: vec![1.5, 0.0, 0.0, 0.0, 0.0, 0.0] };
    let stop = EmergencyStop::default();
    gate.listen_to(&stop);
    for k in 1..10 {
        gate.check(Some((&aside, tick(k))), tick(k));
    }
    assert!(gate.speeds()[0] > 2.0);
    stop.press("a child ran in");
    stop.press("another reason");
    for k in 10..30 {
        let verdict = gate.check(Some((&aside, tick(k))), tick(k));
        assert!(verdict.held);
        assert_eq!(verdict.trips[0].reason, TripReason::EmergencyStop);
        assert_eq!(verdict.trips[0].detail, "a child ran in");
    }
    assert!(gate.speeds().iter().all(|speed| *speed == 0.0));
    let stood = gate.targets().to_vec();
    stop.release();
    let old = gate.check(Some((&aside, tick(29))), tick(30));
    assert_eq!((old.held, old.trips[0].reason), (true, TripReason::Stale));
    assert_eq!(gate.targets(), stood);
    assert!(!gate.check(Some((&aside, tick(31))), tick(31)).held);
    Ok(())
}

#[test]
fn an_arm_far_out_of_its_range_is_not_taken_over() -> Result<()> {
    let mut measured = [0.0; 6];
    measured[2] = 1.75;
    SafetyGate::new(&Embodiment::so101()?, GateConfig::default(), &measured)?;
    measured[2] = 2.0;
    let refused = SafetyGate::new(&Embodiment::so101()?, GateConfig::default(), &measured);
    assert!(refused.is_err_and(|e| e.to_string().contains("'elbow_flex' at the start")));
    Ok(())
}
