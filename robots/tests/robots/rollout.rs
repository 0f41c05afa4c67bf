//! Lockstep episodes.

use crate::arm::{FakeArm, FakePolicy};
use std::sync::atomic::Ordering;
use vela_embodiment::{Action, Episode, Expert, Result, TripReason};
use vela_robots::{Rollout, RolloutEvent, RolloutOptions, Stretch, Stretches, rollout, rollout_expert};

fn play(policy: &mut FakePolicy, options: &RolloutOptions) -> Result<(Rollout, FakeArm)> {
    let mut arm = FakeArm::lockstep()?;
    let done = rollout(&mut arm, policy, &Episode::default(), options, &mut |_, _| {})?;
    Ok((done, arm))
}

#[test]
fn a_good_policy_reaches_the_goal_untouched_by_the_gate() -> Result<()> {
    let (done, arm) = play(&mut FakePolicy::new()?, &RolloutOptions::default())?;
    assert!(done.outcome.success && done.stopped.is_none(), "{done:?}");
    assert_eq!((done.failures, done.held_ticks), (0, 0));
    assert_eq!(done.ticks, 100);
    assert_eq!(done.chunks, 13, "a new chunk every eight ticks");
    assert!(done.trips.is_empty() && (arm.fastest - 0.005).abs() < 1e-9, "{done:?}");
    Ok(())
}

#[test]
fn a_late_chunk_skips_what_has_passed() -> Result<()> {
    let options = RolloutOptions { delay_ticks: 3, ..RolloutOptions::default() };
    let (done, arm) = play(&mut FakePolicy::new()?, &options)?;
    assert!(done.outcome.success, "{done:?}");
    assert_eq!(done.held_ticks, 3, "before the first chunk");
    // The first chunk lands on its fourth action: the gate eases that step in.
    assert!(arm.fastest < 0.04);
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_chunk_seeds() -> Result<()> {
    let seeds = |seed| -> Result<Vec<u64>> {
        let mut seen = Vec::new();
        let options = RolloutOptions { seed, ..RolloutOptions::default() };
        rollout(
            &mut FakeArm::lockstep()?,
            &mut FakePolicy::new()?,
            &Episode::default(),
            &options,
            &mut |_, event| {
                if let RolloutEvent::Chunk { chunk, .. } = event {
                    seen.push(chunk.seed);
                }
            },
        )?;
        Ok(seen)
    };
    let first = seeds(1)?;
    assert_eq!(first, seeds(1)?);
    assert_ne!(first, seeds(2)?);
    assert_ne!(first[0], first[1]);
    Ok(())
}

#[test]
fn a_nan_or_failing_policy_holds_and_ends_with_a_reason() -> Result<()> {
    for nan in [true, false] {
        let mut policy = FakePolicy::new()?;
        policy.switches.nan.store(nan, Ordering::SeqCst);
        policy.switches.failing.store(!nan, Ordering::SeqCst);
        let (done, arm) = play(&mut policy, &RolloutOptions::default())?;
        let why = done.stopped.unwrap_or_default();
        assert!(why.contains(if nan { "not finite" } else { "headache" }), "{why}");
        assert_eq!((done.failures, done.chunks), (10, 0));
        assert_eq!(arm.joints, vec![0.0; 6], "it never moved");
        assert_eq!(done.trips[&TripReason::NoPlan], done.held_ticks as u64);
    }
    Ok(())
}

#[test]
fn every_tick_of_a_failing_policy_says_why_the_arm_holds_up_to_the_last() -> Result<()> {
    let mut policy = FakePolicy::new()?;
    policy.switches.failing.store(true, Ordering::SeqCst);
    let (mut told, mut stretches, mut lines) = (Vec::new(), Stretches::default(), Vec::new());
    let done = rollout(
        &mut FakeArm::lockstep()?,
        &mut policy,
        &Episode::default(),
        &RolloutOptions::default(),
        &mut |_, event| {
            lines.extend(stretches.rollout(&event).into_iter().flatten());
            if let RolloutEvent::Tick { tick, verdict, .. } = event {
                assert_eq!((tick, verdict.held), (told.len(), true));
                told.extend(verdict.action.trips().iter().map(|trip| trip.detail.clone()));
            }
        },
    )?;
    assert_eq!(told.len(), done.ticks);
    let (stopped, failed): (Vec<_>, Vec<_>) =
        told.iter().partition(|why| why.starts_with("stopped: 10 failures"));
    assert!(!stopped.is_empty() && failed.len() >= 10, "{told:?}");
    assert!(told.iter().all(|why| why.contains("headache")), "{told:?}");
    // In a log each of the two is a line when it begins and one of its repeats.
    lines.extend(stretches.rest());
    let ticks: u64 = lines.iter().map(Stretch::ticks).sum();
    assert_eq!((ticks as usize, lines[0].first_tick), (done.ticks, 0));
    assert!((3..=4).contains(&lines.len()), "{lines:?}");
    Ok(())
}

#[test]
fn a_policy_that_fails_once_in_a_while_recovers() -> Result<()> {
    let mut policy = FakePolicy::new()?;
    let switches = policy.switches.clone();
    let mut arm = FakeArm::lockstep()?;
    let mut failed = 0;
    let done =
        rollout(&mut arm, &mut policy, &Episode::default(), &RolloutOptions::default(), &mut |_, event| {
            match event {
                RolloutEvent::Failed(_) => failed += 1,
                RolloutEvent::Tick { tick, .. } => {
                    switches.failing.store(tick > 20 && tick < 30, Ordering::SeqCst);
                }
                _ => {}
            }
        })?;
    assert!(done.outcome.success && done.failures == failed && failed > 0, "{done:?}");
    Ok(())
}

/// The DAgger shape: the policy drives, the expert labels, the hook may take over.
#[test]
fn the_hook_sees_the_state_and_may_replace_the_action() -> Result<()> {
    struct Onwards;
    impl Expert<FakeArm> for Onwards {
        fn reset(&mut self) {}
        fn label(&mut self, arm: &FakeArm) -> Result<Action> {
            let mut joint_targets = arm.joints.clone();
            joint_targets[0] += 0.02;
            Ok(Action { joint_targets })
        }
    }
    let mut arm = FakeArm::lockstep()?;
    let options = RolloutOptions { observe_every_tick: true, ..RolloutOptions::default() };
    let mut rows = 0;
    let expert = rollout_expert(&mut arm, &mut Onwards, &Episode::default(), &options, &mut |_, event| {
        rows += usize::from(matches!(event, RolloutEvent::Tick { observation: Some(_), asked: Some(_), .. }));
    })?;
    assert!(expert.outcome.success && rows == expert.ticks && rows < 40, "{expert:?}");

    let mut labels = Vec::new();
    let mut policy = FakePolicy::new()?;
    let mixed =
        rollout(&mut arm, &mut policy, &Episode::default(), &options, &mut |arm, event| match event {
            RolloutEvent::Observed(observation) => {
                assert_eq!(observation.joint_positions, arm.joints);
                labels.extend(Onwards.label(arm));
            }
            RolloutEvent::Asking { asked } => *asked = labels.last().cloned(),
            _ => {}
        })?;
    assert_eq!(labels.len(), mixed.ticks);
    assert_eq!(mixed.ticks, expert.ticks, "the expert's actions went through");
    Ok(())
}

#[test]
fn a_policy_for_another_robot_is_refused_before_anything_moves() -> Result<()> {
    let mut policy = FakePolicy::new()?;
    policy.spec.embodiment.joints.swap(0, 1);
    let refused = play(&mut policy, &RolloutOptions::default()).err().map(|e| e.to_string());
    assert!(refused.is_some_and(|text| text.contains("joints [\"shoulder_pan\", \"shoulder_lift\"")));
    Ok(())
}
