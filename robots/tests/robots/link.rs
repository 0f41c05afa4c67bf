//! Policy and robot as two zenoh sessions over TCP on loopback.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, Switches, eventually};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use vela_embodiment::{Embodiment, Error, InferOptions, Policy, Result, Robot};
use vela_robots::{
    ControlOptions, Controller, RemotePolicy, ServeReport, State, loopback_pair, serve_policy,
};
use zenoh::Session;

const KEY: &str = "vela/test";

/// A policy that serves on a thread of its own until it is shut down.
struct Server {
    shutdown: Arc<AtomicBool>,
    thread: JoinHandle<Result<ServeReport>>,
}

fn serve(session: &Session, mut policy: FakePolicy) -> Server {
    let shutdown = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (session, shutdown) = (session.clone(), shutdown.clone());
        move || serve_policy(&session, KEY, &mut policy, &shutdown, &mut |_| {})
    });
    Server { shutdown, thread }
}

impl Server {
    fn end(self) -> Result<ServeReport> {
        self.shutdown.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| Error::Policy("the server's thread died".into()))?
    }
}

#[test]
fn a_chunk_over_zenoh_is_the_chunk_of_the_policy_itself() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let mut near = FakePolicy::new()?;
    let server = serve(&far, FakePolicy::new()?);
    let mut remote = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 2.0)?;
    remote.wait_ready(10.0)?;
    assert_eq!(remote.spec().checkpoint, "fake");
    let mut arm = FakeArm::lockstep()?;
    arm.joints[0] = 0.25;
    let observation = arm.observe()?;
    for seed in 0..20 {
        let options = InferOptions { seed, delay_ticks: 2, unexecuted: vec![vec![0.5; 6]; 3] };
        let history = [observation.clone()];
        assert_eq!(remote.infer(&history, &options)?, near.infer(&history, &options)?);
    }
    let mut blind = observation.clone();
    blind.frames.pop();
    let refused = remote.infer(&[blind], &InferOptions::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("'wrist'")));
    let report = server.end()?;
    assert_eq!((report.answered, report.refused), (20, 1));
    Ok(())
}

#[test]
fn a_policy_for_another_robot_is_refused_with_the_exact_difference() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let mut policy = FakePolicy::new()?;
    policy.spec.embodiment.cameras[0].width = 64;
    policy.spec.embodiment.control_hz = 20.0;
    let server = serve(&far, policy);
    let mut remote = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 2.0)?;
    let text = remote.wait_ready(10.0).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("camera 'front' is 96x96 against 64x96"), "{text}");
    assert!(text.contains("control rate 30 Hz against 20 Hz"), "{text}");
    let observation = FakeArm::lockstep()?.observe()?;
    assert!(matches!(remote.infer(&[observation], &InferOptions::default()), Err(Error::Mismatch(_))));
    server.end()?;
    Ok(())
}

#[test]
fn nobody_there_a_slow_and_a_leaving_policy_are_errors_in_time() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let mut remote = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 0.3)?;
    let observation = FakeArm::lockstep()?.observe()?;
    let history = [observation];
    let options = InferOptions::default();
    let said = |remote: &mut RemotePolicy| remote.infer(&history, &options).err().map(|e| e.to_string());
    assert!(said(&mut remote).is_some_and(|text| text.contains("no policy at vela/test")));
    assert!(remote.wait_ready(0.05).is_err());

    let policy = FakePolicy::new()?;
    let switches = policy.switches.clone();
    let server = serve(&far, policy);
    remote.wait_ready(10.0)?;
    switches.slow_ms.store(800, Ordering::SeqCst);
    assert!(said(&mut remote).is_some_and(|text| text.contains("no answer within 0.30 s")));
    switches.slow_ms.store(0, Ordering::SeqCst);
    assert!(eventually(|| said(&mut remote).is_none()), "the next question is answered again");
    server.end()?;
    assert!(eventually(|| !remote.alive()));
    assert!(said(&mut remote).is_some_and(|text| text.contains("no policy")));
    Ok(())
}

fn control(
    robot: &Session,
    options: &ControlOptions,
) -> Result<Controller<FakeArm, FakeCameras, RemotePolicy>> {
    let arm = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&arm);
    let remote = RemotePolicy::new(robot, KEY, &arm.embodiment, 1.0)?;
    Ok(Controller::start(arm, cameras, remote, "go on", options)?.0)
}

fn slow_policy() -> Result<(FakePolicy, Switches)> {
    let mut policy = FakePolicy::new()?;
    policy.step = 0.0005;
    let switches = policy.switches.clone();
    Ok((policy, switches))
}

#[test]
fn the_arm_follows_a_far_policy_holds_when_it_dies_and_goes_on_with_the_next() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let options =
        ControlOptions { stop_after_hold_secs: 30.0, start_within_secs: 30.0, ..ControlOptions::default() };
    let controller = control(&robot, &options)?;
    let handle = controller.handle();
    let state = |what: &str| {
        let (handle, what) = (handle.clone(), what.to_owned());
        move || matches!(handle.state(), State::Holding { reason } if reason.contains(&what))
    };
    assert!(eventually(state("no policy at")), "nobody is there yet");
    let server = serve(&far, slow_policy()?.0);
    assert!(eventually(|| handle.state() == State::Running));
    server.end()?;
    assert!(eventually(state("no policy at")), "{:?}", handle.state());
    let server = serve(&far, slow_policy()?.0);
    assert!(eventually(|| handle.state() == State::Running), "{:?}", handle.state());
    let report = controller.finish().report;
    assert!(report.chunks > 0 && report.failures > 0);
    server.end()?;
    Ok(())
}

/// Seen once: with one key for all policies both answered, and neither when the first had gone.
#[test]
fn a_second_policy_waits_and_takes_over_when_the_first_goes() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let mut remote = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 2.0)?;
    let server = serve(&far, FakePolicy::new()?);
    remote.wait_ready(10.0)?;
    // The robot's own session serves as the second one's: another identity all the same.
    let mut second = FakePolicy::new()?;
    second.spec.checkpoint = "second".into();
    let calls = second.switches.calls.clone();
    let second = serve(&robot, second);
    let history = [FakeArm::lockstep()?.observe()?];
    for _ in 0..20 {
        assert_eq!(remote.infer(&history, &InferOptions::default())?.checkpoint, "fake");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    server.end()?;
    let mut next = || remote.infer(&history, &InferOptions::default());
    assert!(eventually(|| next().is_ok_and(|chunk| chunk.checkpoint == "second")));
    assert_eq!(remote.spec().checkpoint, "second");
    second.end()?;
    Ok(())
}

#[test]
fn a_far_policy_that_never_comes_back_stops_the_arm() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let options = ControlOptions { stop_after_hold_secs: 0.5, ..ControlOptions::default() };
    let server = serve(&far, slow_policy()?.0);
    let controller = control(&robot, &options)?;
    let handle = controller.handle();
    assert!(eventually(|| handle.state() == State::Running));
    server.end()?;
    // The whole session goes too, as when the process is killed.
    drop(far);
    let report = controller.wait().report;
    assert!(matches!(&report.state, State::Stopped { reason } if reason.contains("policy")), "{report:?}");
    Ok(())
}
