//! The real-time loop. Figures of time are counted, never asserted at the tails.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, Switches, eventually};
use crate::watched::within_limits;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use vela_embodiment::{Error, Result, Stamp};
use vela_robots::{ControlEvent, ControlHandle, ControlOptions, Controller, Plan, State};

struct Running {
    controller: Controller<FakeArm, FakeCameras, FakePolicy>,
    handle: ControlHandle,
    events: Receiver<ControlEvent>,
    policy: Switches,
    dark: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

fn start(options: &ControlOptions) -> Result<Running> {
    let mut policy = FakePolicy::new()?;
    // Slow enough to go on for the whole test.
    policy.step = 0.0005;
    let arm = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&arm);
    let (switches, dark) = (policy.switches.clone(), cameras.dark.clone());
    let (controller, events) = Controller::start(arm, cameras, policy, "go on", options)?;
    let handle = controller.handle();
    Ok(Running { controller, handle, events, policy: switches, dark })
}

fn short() -> ControlOptions {
    ControlOptions {
        stop_after_hold_secs: 0.5,
        max_frame_age_secs: 0.3,
        events: 1 << 14,
        ..ControlOptions::default()
    }
}

fn running(handle: &ControlHandle) -> bool {
    handle.state() == State::Running
}

/// Waits until it moves on from where it is.
fn moves(handle: &ControlHandle) -> bool {
    let at = || handle.joints().map_or(0.0, |reading| reading.positions[0]);
    let from = at();
    eventually(|| running(handle) && at() > from + 0.001)
}

fn holding(handle: &ControlHandle, what: &str) -> bool {
    matches!(handle.state(), State::Holding { reason } if reason.contains(what))
}

fn stopped(handle: &ControlHandle, what: &str) -> bool {
    matches!(handle.state(), State::Stopped { reason } if reason.contains(what))
}

#[test]
fn it_runs_moves_the_arm_and_gives_everything_back() -> Result<()> {
    let run = start(&ControlOptions::default())?;
    assert!(eventually(|| running(&run.handle)));
    let moved = || run.handle.joints().is_some_and(|reading| reading.positions[0] > 0.005);
    assert!(eventually(moved));
    let events: Vec<_> = run.events.try_iter().collect();
    let done = run.controller.finish();
    assert!(done.arm.is_some() && done.cameras.is_some() && done.policy.is_some());
    assert!(
        done.report.chunks > 0 && done.report.ticks > 10 && done.report.failures == 0,
        "{:?}",
        done.report
    );
    assert_eq!(done.report.state, State::Stopped { reason: "finished".into() });
    assert!(events.iter().any(|e| matches!(e, ControlEvent::Tick(_))));
    assert!(events.iter().any(|e| matches!(e, ControlEvent::Chunk { .. })));
    assert!(events.iter().any(|e| matches!(e, ControlEvent::Observed(_))));
    Ok(())
}

/// Whether it is given or not: the first event says it, the report says the same, and the loop runs.
#[test]
fn a_loop_that_asks_for_real_time_says_what_it_got() -> Result<()> {
    let run = start(&ControlOptions { real_time: true, ..ControlOptions::default() })?;
    assert!(eventually(|| running(&run.handle)));
    let mut events = run.events.try_iter();
    let given = match events.find(|event| !matches!(event, ControlEvent::Observed(_))) {
        Some(ControlEvent::Scheduled(scheduling)) => scheduling.is_real_time(),
        other => return Err(Error::Robot(format!("expected how the loop is scheduled, got {other:?}"))),
    };
    assert_eq!(run.controller.finish().report.real_time, given);
    let run = start(&ControlOptions::default())?;
    assert!(eventually(|| running(&run.handle)));
    assert!(!run.controller.finish().report.real_time);
    assert!(!run.events.iter().any(|event| matches!(event, ControlEvent::Scheduled(_))));
    Ok(())
}

#[test]
fn a_slow_policy_never_delays_a_tick() -> Result<()> {
    let run = start(&ControlOptions { execute: Some(4), ..ControlOptions::default() })?;
    run.policy.slow_ms.store(200, Ordering::SeqCst);
    assert!(eventually(|| run.handle.joints().is_some_and(|reading| reading.positions[0] > 0.01)));
    let done = run.controller.finish();
    // Each chunk took six ticks; were they waited for, ticks and chunks would be about as many.
    assert!(done.report.ticks > 3 * done.report.chunks, "{:?}", done.report);
    assert!(done.report.chunks >= 2);
    Ok(())
}

#[test]
fn a_dying_policy_means_hold_then_stop_and_a_returning_one_goes_on() -> Result<()> {
    let run = start(&short())?;
    assert!(moves(&run.handle));
    let fault = run.handle.clock().now();
    run.policy.failing.store(true, Ordering::SeqCst);
    assert!(eventually(|| holding(&run.handle, "headache")));
    let healed = run.handle.clock().now();
    run.policy.failing.store(false, Ordering::SeqCst);
    assert!(moves(&run.handle));
    run.policy.failing.store(true, Ordering::SeqCst);
    assert!(eventually(|| stopped(&run.handle, "headache")));
    assert!(eventually(|| run.handle.ended()));
    let done = run.controller.wait();
    assert!(done.report.failures > 0 && done.report.held_ticks > 0);
    let watched = within_limits(&done.report, run.events.try_iter())?;
    assert!(watched.ticks() > 10);
    watched.toll(fault, healed).tell("policy fails");
    Ok(())
}

#[test]
fn a_nan_chunk_means_hold_and_never_a_motion() -> Result<()> {
    let mut policy = FakePolicy::new()?;
    policy.switches.nan.store(true, Ordering::SeqCst);
    policy.step = 0.01;
    let arm = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&arm);
    let options = ControlOptions { start_within_secs: 0.5, ..short() };
    let (controller, _events) = Controller::start(arm, cameras, policy, "go on", &options)?;
    let handle = controller.handle();
    assert!(eventually(|| stopped(&handle, "not finite")));
    let done = controller.wait();
    assert_eq!(done.arm.map(|arm| arm.joints), Some(vec![0.0; 6]));
    assert_eq!(done.report.chunks, 0);
    Ok(())
}

#[test]
fn a_dark_camera_means_hold_and_a_returning_one_goes_on() -> Result<()> {
    let run = start(&ControlOptions { stop_after_hold_secs: 5.0, ..short() })?;
    assert!(moves(&run.handle));
    let fault = run.handle.clock().now();
    run.dark.store(true, Ordering::SeqCst);
    assert!(eventually(|| holding(&run.handle, "the cable is out")));
    let healed = run.handle.clock().now();
    run.dark.store(false, Ordering::SeqCst);
    assert!(moves(&run.handle));
    let report = run.controller.finish().report;
    within_limits(&report, run.events.try_iter())?.toll(fault, healed).tell("camera unplugged");
    Ok(())
}

#[test]
fn a_listener_that_never_reads_only_loses_events() -> Result<()> {
    let run = start(&ControlOptions { events: 2, ..ControlOptions::default() })?;
    assert!(eventually(|| running(&run.handle)));
    assert!(eventually(|| run.handle.joints().is_some_and(|reading| reading.positions[0] > 0.005)));
    let done = run.controller.finish();
    assert!(done.report.events_dropped > 0 && done.report.ticks > 5);
    Ok(())
}

#[test]
fn a_commanded_trajectory_goes_before_the_policy() -> Result<()> {
    let run = start(&ControlOptions::default())?;
    assert!(eventually(|| running(&run.handle)));
    let from = run.handle.joints().map(|reading| reading.positions).unwrap_or_default();
    let targets = (1..=20).map(|k| from.iter().map(|q| q - 0.004 * f64::from(k)).collect()).collect();
    let plan = Plan { targets, period_secs: 1.0 / 30.0, observation_stamp: Stamp(0), command: true };
    run.handle.follow(plan)?;
    let low = from[1] - 0.07;
    assert!(eventually(|| run.handle.joints().is_some_and(|reading| reading.positions[1] < low)));
    run.controller.finish();
    Ok(())
}

#[test]
fn dropping_the_controller_stops_the_arm() -> Result<()> {
    let run = start(&ControlOptions::default())?;
    assert!(eventually(|| running(&run.handle)));
    drop(run.controller);
    assert!(eventually(|| run.handle.ended()));
    assert!(stopped(&run.handle, "dropped"));
    Ok(())
}
