//! Policy and robot as two zenoh sessions over TCP on loopback.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, Switches, eventually};
use crate::toll::Toll;
use crate::watched::within_limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use vela_embodiment::{Embodiment, Error, InferOptions, Policy, Result, Robot};
use vela_robots::{
    ControlEvent, ControlOptions, Controller, RemotePolicy, ServeReport, State, loopback_pair, serve_policy,
};
use zenoh::{Session, Wait};

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

/// An arm behind the link, and all that its loop tells.
type Linked = (Controller<FakeArm, FakeCameras, RemotePolicy>, Receiver<ControlEvent>);

fn control(robot: &Session, options: ControlOptions) -> Result<Linked> {
    let arm = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&arm);
    let remote = RemotePolicy::new(robot, KEY, &arm.embodiment, 1.0)?;
    Controller::start(arm, cameras, remote, "go on", &ControlOptions { events: 1 << 14, ..options })
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
    let (controller, events) = control(&robot, options)?;
    let handle = controller.handle();
    let state = |what: &str| {
        let (handle, what) = (handle.clone(), what.to_owned());
        move || matches!(handle.state(), State::Holding { reason } if reason.contains(&what))
    };
    assert!(eventually(state("no policy at")), "nobody is there yet");
    let server = serve(&far, slow_policy()?.0);
    let at = || handle.joints().map_or(0.0, |reading| reading.positions[0]);
    assert!(eventually(|| at() > 0.001), "{:?}", handle.state());
    let fault = handle.clock().now();
    server.end()?;
    assert!(eventually(state("no policy at")), "{:?}", handle.state());
    let (healed, stood) = (handle.clock().now(), at());
    let server = serve(&far, slow_policy()?.0);
    assert!(eventually(|| at() > stood + 0.001), "{:?}", handle.state());
    let report = controller.finish().report;
    assert!(report.chunks > 0 && report.failures > 0);
    within_limits(&report, events.try_iter())?.toll(fault, healed).tell("policy ends and another comes");
    server.end()?;
    Ok(())
}

/// Seen once: with one key for all policies both answered, and neither when the first had gone.
#[test]
fn a_second_policy_waits_and_takes_over_when_the_first_goes() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let mut remote = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 60.0)?;
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
    let (controller, events) = control(&robot, options)?;
    let handle = controller.handle();
    assert!(eventually(|| handle.state() == State::Running));
    let fault = handle.clock().now();
    server.end()?;
    // The whole session goes too, as when the process is killed.
    drop(far);
    let report = controller.wait().report;
    assert!(matches!(&report.state, State::Stopped { reason } if reason.contains("policy")), "{report:?}");
    let watched = within_limits(&report, events.try_iter())?;
    let toll = watched.toll(fault, fault);
    assert!(toll.held_secs.is_some() && toll.moved_secs.is_none(), "it never moves again");
    toll.tell("policy gone for good, the arm stops");
    Ok(())
}

/// A session that listens at or connects to these endpoints. Patient: a starved machine must not look like a dead peer.
fn open(listen: &str, connect: &str) -> Result<Session> {
    let text = format!(
        "{{mode: 'peer', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}]}}, \
         scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}, \
         transport: {{link: {{tx: {{lease: 60000}}}}, shared_memory: {{enabled: false}}}}}}"
    );
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    zenoh::open(zenoh::Config::from_json5(&text).map_err(link)?).wait().map_err(link)
}

/// A session that listens on a free port, and where.
fn listening() -> Result<(Session, String)> {
    let mut last = Error::Link("no port".into());
    // Another process may take the port between our look and zenoh's.
    for _ in 0..5 {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let endpoint = format!("'tcp/127.0.0.1:{}'", port.map_err(|e| Error::Link(e.to_string()))?.port());
        match open(&endpoint, "") {
            Ok(session) => return Ok((session, endpoint)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn named(name: &str) -> Result<(FakePolicy, Switches)> {
    let (mut policy, switches) = slow_policy()?;
    policy.spec.checkpoint = name.into();
    Ok((policy, switches))
}

#[test]
fn of_several_policies_the_least_busy_one_is_asked_and_then_only_that() -> Result<()> {
    let ((far, here), (other, there)) = (listening()?, listening()?);
    let (first, switches) = named("first")?;
    let first = serve(&far, first);
    let robot = open("", &here)?;
    let mut early = RemotePolicy::new(&robot, KEY, &Embodiment::so101()?, 60.0)?;
    early.wait_ready(10.0)?;
    // It has a question, and thinks about it for as long as this test wants.
    switches.held.store(true, Ordering::SeqCst);
    let asking = std::thread::spawn(move || -> Result<(RemotePolicy, String)> {
        let history = [FakeArm::lockstep()?.observe()?];
        let chunk = early.infer(&history, &InferOptions::default())?;
        Ok((early, chunk.checkpoint))
    });
    assert!(eventually(|| switches.calls.load(Ordering::SeqCst) > 0));
    // A second server comes: a robot that looks now takes it.
    let second = serve(&other, named("second")?.0);
    let (history, embodiment) = ([FakeArm::lockstep()?.observe()?], Embodiment::so101()?);
    let mut late: Option<(Session, RemotePolicy)> = None;
    let look = || -> Result<(Session, RemotePolicy)> {
        let robot = open("", &format!("{here}, {there}"))?;
        let mut remote = RemotePolicy::new(&robot, KEY, &embodiment, 60.0)?;
        remote.wait_ready(10.0)?;
        Ok((robot, remote))
    };
    assert!(eventually(|| {
        late = look().ok();
        late.as_ref().is_some_and(|(_, late)| late.spec().checkpoint == "second")
    }));
    // Each stays where it is, whatever the other's does.
    switches.held.store(false, Ordering::SeqCst);
    let (mut early, checkpoint) = asking.join().map_err(|_| Error::Policy("it died".into()))??;
    assert_eq!(checkpoint, "first");
    let (_session, mut late) = late.ok_or(Error::Policy("nobody came".into()))?;
    for _ in 0..5 {
        assert_eq!(late.infer(&history, &InferOptions::default())?.checkpoint, "second");
        assert_eq!(early.infer(&history, &InferOptions::default())?.checkpoint, "first");
    }
    first.end()?;
    second.end()?;
    Ok(())
}

#[test]
fn a_policy_killed_in_mid_question_costs_an_arm_at_most_one_chunk() -> Result<()> {
    let ((far, here), (other, there)) = (listening()?, listening()?);
    let robot = open("", &format!("{here}, {there}"))?;
    let (first, slow) = named("first")?;
    let first = serve(&far, first);
    let arm = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&arm);
    let remote = RemotePolicy::new(&robot, KEY, &arm.embodiment, 60.0)?;
    let options = ControlOptions {
        max_frame_age_secs: f64::INFINITY,
        stop_after_hold_secs: f64::INFINITY,
        start_within_secs: f64::INFINITY,
        events: 1 << 14,
        ..ControlOptions::default()
    };
    let (controller, events) = Controller::start(arm, cameras, remote, "go on", &options)?;
    let handle = controller.handle();
    assert!(eventually(|| handle.state() == State::Running));
    let (second, calls) = named("second")?;
    let second = serve(&other, second);
    // It has a question and does not answer it when its whole session goes.
    slow.held.store(true, Ordering::SeqCst);
    let asked = slow.calls.load(Ordering::SeqCst);
    assert!(eventually(|| slow.calls.load(Ordering::SeqCst) > asked));
    let fault = handle.clock().now();
    far.close().wait().map_err(|e| Error::Link(e.to_string()))?;
    assert!(eventually(|| calls.calls.load(Ordering::SeqCst) > 3), "{:?}", handle.state());
    let report = controller.finish().report;
    let events: Vec<ControlEvent> = events.try_iter().collect();
    let taken = |name: &str| {
        let by = |event: &&ControlEvent| matches!(event, ControlEvent::Chunk { chunk, .. } if chunk.checkpoint == name);
        events.iter().filter(by).count()
    };
    assert!(taken("second") > 1);
    let watched = within_limits(&report, events)?;
    // The question that was lost was asked again elsewhere before anyone called it a failure.
    assert!(report.failures <= 1, "{report:?}");
    let toll = watched.toll(fault, fault);
    let held = if toll.held_secs.is_some() { "" } else { "never held, " };
    let counted = format!("{held}{} questions failed", report.failures);
    Toll { counted, ..toll }.tell("policy killed in mid question, another serves");
    slow.held.store(false, Ordering::SeqCst);
    let _ = first.end();
    second.end()?;
    Ok(())
}
