//! What goes wrong beside an arm, one test each: in every one the arm ends inside its limits.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, LeapingClock, Switches, eventually};
use crate::toll::Toll;
use crate::watched::{Watched, within_limits};
use rand::Rng;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vela_embodiment::{
    ActionChunk, Embodiment, Error, InferOptions, Observation, Policy, PolicySpec, Result, Stamp,
};
use vela_robots::ros2::keys::{self, Attachment, Topic};
use vela_robots::ros2::messages::{Float64MultiArray, JointTrajectory, Time, TrajectoryPoint, encode};
use vela_robots::ros2::{DOMAIN, FORWARD, GRIPPER, Node, TRAJECTORY};
use vela_robots::wire::{answer, ask, hello};
use vela_robots::{
    ControlEvent, ControlHandle, ControlOptions, Controller, RemotePolicy, State, VerdictEntry,
    listen_for_stop, loopback_pair, press_stop, release_stop,
};
use zenoh::query::Query;
use zenoh::{Session, Wait};

pub struct Bench<P: Policy + 'static> {
    pub controller: Controller<FakeArm, FakeCameras, P>,
    pub handle: ControlHandle,
    events: Receiver<ControlEvent>,
    black: Arc<AtomicBool>,
    frozen: Arc<AtomicBool>,
    late_ms: Arc<AtomicU64>,
}

pub fn bench<P: Policy + 'static>(policy: P, stop_after_hold_secs: f64) -> Result<Bench<P>> {
    bench_of(FakeArm::real_time()?, policy, stop_after_hold_secs)
}

fn bench_of<P: Policy + 'static>(arm: FakeArm, policy: P, stop_after_hold_secs: f64) -> Result<Bench<P>> {
    let cameras = FakeCameras::of(&arm);
    let (black, frozen, late_ms) = (cameras.black.clone(), cameras.frozen.clone(), arm.late_ms.clone());
    let options = ControlOptions {
        stop_after_hold_secs,
        start_within_secs: 20.0_f64.max(stop_after_hold_secs),
        max_frame_age_secs: 0.4,
        events: 1 << 14,
        ..ControlOptions::default()
    };
    let (controller, events) = Controller::start(arm, cameras, policy, "go on", &options)?;
    let handle = controller.handle();
    Ok(Bench { controller, handle, events, black, frozen, late_ms })
}

pub fn moving(step: f64) -> Result<(FakePolicy, Switches)> {
    let mut policy = FakePolicy::new()?;
    policy.step = step;
    let switches = policy.switches.clone();
    Ok((policy, switches))
}

pub fn running(handle: &ControlHandle) -> bool {
    handle.state() == State::Running
}

fn holding(handle: &ControlHandle, what: &str) -> bool {
    matches!(handle.state(), State::Holding { reason } if reason.contains(what))
}

impl<P: Policy + 'static> Bench<P> {
    pub fn now(&self) -> Stamp {
        self.handle.clock().now()
    }

    /// Waits until it moves on from where it is.
    pub fn moves(&self) -> bool {
        let at = || self.handle.joints().map_or(0.0, |reading| reading.positions[0]);
        let from = at();
        eventually(|| running(&self.handle) && at() > from + 0.001)
    }

    /// Ends the loop and looks at every tick.
    pub fn within_limits(self) -> Result<Watched> {
        let done = self.controller.finish();
        within_limits(&done.report, self.events.try_iter())
    }

    /// The same, and that a line of a hold in the log names each of these causes.
    pub fn within_limits_and_told(mut self, causes: &[&str]) -> Result<Watched> {
        let verdicts = self.controller.verdicts();
        let watched = self.within_limits()?;
        let mut told = Vec::new();
        for entry in verdicts.into_iter().flatten() {
            if let VerdictEntry::Stretch(stretch) = entry {
                let details = stretch.trips.into_iter().map(|trip| trip.detail);
                told.extend(details.filter(|_| stretch.held));
            }
        }
        for cause in causes {
            assert!(told.iter().any(|detail| detail.contains(cause)), "'{cause}' is not in {told:#?}");
        }
        Ok(watched)
    }
}

#[test]
fn a_black_camera_means_hold_and_light_goes_on() -> Result<()> {
    let run = bench(moving(0.0005)?.0, 30.0)?;
    assert!(run.moves());
    let fault = run.now();
    run.black.store(true, Ordering::SeqCst);
    assert!(eventually(|| holding(&run.handle, "is black")), "{:?}", run.handle.state());
    let healed = run.now();
    run.black.store(false, Ordering::SeqCst);
    assert!(run.moves());
    let watched =
        run.within_limits_and_told(&["waiting for the first plan", "' is black", "stopped: finished"])?;
    assert!(watched.ticks() > 10);
    watched.toll(fault, healed).tell("camera black");
    Ok(())
}

/// Its stamps are fresh and its picture is old: only the arm's own motion tells.
#[test]
fn a_camera_that_shows_the_same_picture_while_the_arm_moves_means_hold() -> Result<()> {
    let run = bench(moving(0.01)?.0, 30.0)?;
    assert!(run.moves());
    let fault = run.now();
    run.frozen.store(true, Ordering::SeqCst);
    assert!(eventually(|| holding(&run.handle, "is frozen")), "{:?}", run.handle.state());
    let healed = run.now();
    run.frozen.store(false, Ordering::SeqCst);
    assert!(run.moves());
    let watched = run.within_limits_and_told(&["' is frozen: the arm moved, its picture did not"])?;
    watched.toll(fault, healed).tell("camera frozen");
    Ok(())
}

#[test]
fn late_joint_states_mean_hold_and_fresh_ones_go_on() -> Result<()> {
    let run = bench(moving(0.0005)?.0, 30.0)?;
    assert!(run.moves());
    let fault = run.now();
    run.late_ms.store(400, Ordering::SeqCst);
    assert!(
        eventually(|| holding(&run.handle, "joints: the newest reading is more than 0.25 s old")),
        "{:?}",
        run.handle.state()
    );
    let healed = run.now();
    run.late_ms.store(0, Ordering::SeqCst);
    assert!(run.moves());
    let watched = run.within_limits_and_told(&["joints: the newest reading is more than 0.25 s old"])?;
    watched.toll(fault, healed).tell("joint state late");
    Ok(())
}

#[test]
fn a_policy_slower_than_its_plans_means_hold_and_a_quick_one_goes_on() -> Result<()> {
    let (policy, switches) = moving(0.0005)?;
    let run = bench(policy, 1e9)?;
    assert!(run.moves());
    let fault = run.now();
    // Its chunks last half a second, and nothing older than that is carried out.
    switches.slow_ms.store(1500, Ordering::SeqCst);
    assert!(eventually(|| holding(&run.handle, "the plan has ended and no new one came")));
    let healed = run.now();
    switches.slow_ms.store(0, Ordering::SeqCst);
    // Not before the question that it thinks about is answered.
    assert!(run.moves(), "{:?}", run.handle.state());
    run.within_limits()?.toll(fault, healed).tell("policy slow");
    Ok(())
}

#[test]
fn an_arm_whose_clock_leaps_stays_inside_its_limits_and_goes_on() -> Result<()> {
    let clock = Arc::new(LeapingClock::default());
    let run = bench_of(FakeArm::on(clock.clone())?, moving(0.002)?.0, 1e9)?;
    let at = || run.handle.joints().map_or(0.0, |reading| reading.positions[0]);
    // Forward, as when a machine wakes; and back, which a monotonic clock never does.
    let mut moved = Vec::new();
    for leap_ms in [10_000_i32, -300, 3_600_000, -700] {
        assert!(eventually(|| running(&run.handle)), "{leap_ms} {:?}", run.handle.state());
        let before = at();
        let leapt = Instant::now();
        clock.leap_ms(leap_ms.into());
        assert!(eventually(|| at() > before + 0.01), "{leap_ms} {:?}", run.handle.state());
        moved.push((leap_ms, leapt.elapsed().as_secs_f64()));
    }
    let watched = run.within_limits()?;
    for (leap_ms, secs) in moved {
        let counted = format!("{} ticks in all", watched.ticks());
        let toll = Toll { moved_secs: Some(secs), ..watched.lasting(&counted) };
        toll.tell(&format!("clock leaps {:+.1} s (until the arm is 0.01 rad on)", f64::from(leap_ms) * 1e-3));
    }
    Ok(())
}

/// A policy's place on zenoh whose answers the network hurts: repeated, late by one, cut off, flipped, noise.
/// Counts how many it hurt and how many it let through.
fn hurting_link(
    session: &Session,
    mut policy: FakePolicy,
    counts: &Arc<[AtomicU64; 2]>,
) -> Result<Vec<Box<dyn Send>>> {
    let counts = counts.clone();
    let key = |name: &str| format!("vela/test/policy/hurting/{name}");
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    let spec = policy.spec().clone();
    let greet = session.declare_queryable(key("hello")).callback(move |query: Query| {
        let bytes = query.payload().map(|bytes| bytes.to_bytes().into_owned()).unwrap_or_default();
        let said = hello::decode_hello(&bytes);
        let said = said.and_then(|said| hello::encode_welcome(&hello::Welcome::to(&said, &spec)));
        let _ = query.reply(query.key_expr().clone(), said.unwrap_or_default()).wait();
    });
    let greet = greet.wait().map_err(link)?;
    let (mut rng, mut last) = (vela_embodiment::stream(5, "hurting link"), Vec::new());
    let answer = Mutex::new(move |bytes: &[u8]| -> Result<Vec<u8>> {
        let asked = ask::decode(bytes)?;
        let chunk = policy.infer(&asked.history, &asked.options).map_err(|error| error.to_string());
        let whole = answer::encode(&answer::Answer { sequence: asked.sequence, infer_secs: 0.0, chunk })?;
        let before = std::mem::replace(&mut last, whole.clone());
        let mut hurt = whole;
        let kind = rng.random_range(0..8);
        counts[usize::from(kind > 3)].fetch_add(1, Ordering::SeqCst);
        match kind {
            0 => hurt = before,
            1 => hurt.truncate(rng.random_range(0..hurt.len())),
            2 => {
                for _ in 0..rng.random_range(1..8) {
                    let at = rng.random_range(0..hurt.len());
                    hurt[at] = rng.random();
                }
            }
            3 => hurt = (0..rng.random_range(0..400)).map(|_| rng.random()).collect(),
            _ => {}
        }
        Ok(hurt)
    });
    let chunk = session.declare_queryable(key("chunk")).callback(move |query: Query| {
        let bytes = query.payload().map(|bytes| bytes.to_bytes().into_owned()).unwrap_or_default();
        let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        let said = answer(&bytes).unwrap_or_default();
        // Twice: the second is nobody's any more.
        let _ = query.reply(query.key_expr().clone(), said.clone()).wait();
        let _ = query.reply(query.key_expr().clone(), said).wait();
    });
    let chunk = chunk.wait().map_err(link)?;
    let token = session.liveliness().declare_token(key("alive")).wait().map_err(link)?;
    Ok(vec![Box::new(greet), Box::new(chunk), Box::new(token)])
}

#[test]
fn answers_repeated_reordered_torn_and_random_on_the_link_never_leave_the_limits() -> Result<()> {
    let (near, far) = loopback_pair()?;
    let (policy, switches) = moving(0.002)?;
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let _link = hurting_link(&far, policy, &counts)?;
    let remote = RemotePolicy::new(&near, "vela/test", &Embodiment::so101()?, 1.0)?;
    let run = bench(remote, 1e9)?;
    assert!(eventually(|| switches.calls.load(Ordering::SeqCst) > 40), "{:?}", run.handle.state());
    // Between what is hurt it goes on.
    assert!(eventually(|| running(&run.handle)), "{:?}", run.handle.state());
    assert!(run.handle.joints().is_some_and(|reading| reading.positions[0] > 0.01));
    let watched = run.within_limits()?;
    assert!(watched.ticks() > 25);
    let [hurt, whole] = [0, 1].map(|k| counts[k].load(Ordering::SeqCst));
    let counted = format!("{hurt} of {} answers hurt, each came twice", hurt + whole);
    watched.lasting(&counted).tell("answers repeated, reordered, truncated, random");
    Ok(())
}

#[test]
fn commands_repeated_reordered_torn_and_random_never_leave_the_limits() -> Result<()> {
    let (robot, commander) = loopback_pair()?;
    let run = bench(moving(0.0)?.0, 1e9)?;
    let embodiment = Embodiment::so101()?;
    let node = Node::start(&robot, &embodiment, &run.handle)?;
    assert!(eventually(|| running(&run.handle)));
    let mut rng = vela_embodiment::stream(9, "hurt commands");
    let topics = [
        Topic::new(TRAJECTORY, &keys::JOINT_TRAJECTORY),
        Topic::new(FORWARD, &keys::FLOAT64_MULTI_ARRAY),
        Topic::new(GRIPPER, &keys::FLOAT64_MULTI_ARRAY),
    ];
    let mut said: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut sent = 0;
    let mut say = || -> Result<()> {
        let topic = rng.random_range(0..topics.len());
        let mut number = || f64::from(rng.random_range(-4.0_f32..4.0));
        let mut bytes = match topic {
            0 => encode(&JointTrajectory {
                joint_names: vec!["elbow_flex".into(), "gripper".into()],
                points: vec![TrajectoryPoint {
                    positions: vec![number(), number()],
                    time_from_start: Time { sec: 0, nanosec: 300_000_000 },
                    ..TrajectoryPoint::default()
                }],
                ..JointTrajectory::default()
            })?,
            1 => {
                encode(&Float64MultiArray { data: (0..5).map(|_| number()).collect(), ..Default::default() })?
            }
            _ => encode(&Float64MultiArray { data: vec![number()], ..Default::default() })?,
        };
        said.push((topic, bytes.clone()));
        let mut topic = topic;
        match rng.random_range(0..6) {
            0 => (topic, bytes) = said[rng.random_range(0..said.len())].clone(),
            1 => bytes.truncate(rng.random_range(0..bytes.len())),
            2 => {
                bytes.iter_mut().skip(4).for_each(|byte| *byte ^= if rng.random_bool(0.1) { 0x55 } else { 0 })
            }
            3 => bytes = (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
            _ => {}
        }
        sent += 1;
        let put = commander.put(topics[topic].key(DOMAIN), bytes);
        put.wait().map_err(|e| Error::Link(e.to_string()))
    };
    let handle = run.handle.clone();
    let moved = || handle.joints().is_some_and(|reading| reading.positions.iter().any(|q| q.abs() > 0.1));
    let mut seen_moving = false;
    assert!(eventually(|| {
        let told = say().is_ok();
        seen_moving |= moved();
        told && seen_moving && node.refusals().0 > 50
    }));
    let refused = node.refusals().0;
    drop(node);
    let watched = run.within_limits()?;
    assert!(watched.ticks() > 10);
    let counted = format!("{refused} of {sent} commands refused");
    watched.lasting(&counted).tell("commands repeated, reordered, truncated, random");
    Ok(())
}

/// Answers with what the network may make of chunks: the same again, an older one, a torn one, noise.
struct Scrambled {
    inner: FakePolicy,
    said: Vec<ActionChunk>,
    rng: rand_chacha::ChaCha8Rng,
    /// Chunks that it changed.
    hurt: Arc<AtomicU64>,
}

impl Policy for Scrambled {
    fn spec(&self) -> &PolicySpec {
        self.inner.spec()
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let mut chunk = self.inner.infer(history, options)?;
        let kind = self.rng.random_range(0..6);
        self.hurt.fetch_add(u64::from(kind < 5), Ordering::SeqCst);
        self.said.push(chunk.clone());
        let before = self.said.len().saturating_sub(1 + self.rng.random_range(0..3));
        match kind {
            0 => chunk = self.said[before].clone(),
            1 => chunk.actions.truncate(self.rng.random_range(0..3)),
            2 => chunk.actions.iter_mut().flatten().for_each(|x| *x = self.rng.random_range(-3.0..3.0)),
            3 => chunk.actions[2][1] = f64::from_bits(self.rng.random()),
            4 => chunk.period_secs = self.rng.random_range(-0.1..0.1),
            _ => {}
        }
        Ok(chunk)
    }
}

#[test]
fn repeated_reordered_torn_and_random_chunks_never_leave_the_limits() -> Result<()> {
    let inner = moving(0.002)?.0;
    let calls = inner.switches.calls.clone();
    let rng = vela_embodiment::stream(3, "scrambled");
    let hurt = Arc::new(AtomicU64::new(0));
    let run = bench(Scrambled { inner, said: Vec::new(), rng, hurt: hurt.clone() }, 1e9)?;
    assert!(eventually(|| calls.load(Ordering::SeqCst) > 25), "{}", calls.load(Ordering::SeqCst));
    let watched = run.within_limits()?;
    assert!(watched.ticks() > 25);
    let [hurt, calls] = [&hurt, &calls].map(|count| count.load(Ordering::SeqCst));
    let counted = format!("{hurt} of {calls} chunks hurt");
    watched.lasting(&counted).tell("chunks repeated, reordered, truncated, random");
    Ok(())
}

#[test]
fn an_operator_anywhere_on_zenoh_stops_the_arm_and_releases_it() -> Result<()> {
    let (robot, operator) = loopback_pair()?;
    let run = bench(moving(0.002)?.0, 0.3)?;
    let stop = run.handle.emergency_stop();
    let _listener = listen_for_stop(&robot, "vela/test", &stop)?;
    assert!(run.moves());
    let fault = run.now();
    press_stop(&operator, "vela/test", "smoke")?;
    let nobody = press_stop(&operator, "vela/other", "smoke");
    assert!(nobody.is_err_and(|e| e.to_string().contains("no arm listens at vela/other/stop")));
    assert!(eventually(|| holding(&run.handle, "emergency stop: smoke")), "{:?}", run.handle.state());
    let at = |handle: &ControlHandle| handle.joints().map(|reading| reading.positions).unwrap_or_default();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let stood = at(&run.handle);
    // Longer than a hold may last otherwise; nothing moves and a wrong word releases nothing.
    operator.put("vela/test/stop/release", "please").wait().map_err(|e| Error::Link(e.to_string()))?;
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(holding(&run.handle, "emergency stop"), "{:?}", run.handle.state());
    assert_eq!(at(&run.handle), stood);
    let healed = run.now();
    release_stop(&operator, "vela/test")?;
    assert!(run.moves(), "{:?}", run.handle.state());
    assert!(eventually(|| at(&run.handle)[0] > stood[0] + 0.01));
    run.within_limits()?.toll(fault, healed).tell("emergency stop pressed over zenoh and released");
    Ok(())
}

#[test]
fn of_two_nodes_that_command_one_arm_the_second_is_refused() -> Result<()> {
    let (robot, commander) = loopback_pair()?;
    let run = bench(moving(0.0)?.0, 1e9)?;
    let embodiment = Embodiment::so101()?;
    let node = Node::start(&robot, &embodiment, &run.handle)?;
    assert!(eventually(|| running(&run.handle)));
    let command = |who: u8, joint: &str, secs: i32, to: f64| -> Result<()> {
        let trajectory = JointTrajectory {
            joint_names: vec![joint.into()],
            points: vec![TrajectoryPoint {
                positions: vec![to],
                time_from_start: Time { sec: secs, nanosec: 0 },
                ..TrajectoryPoint::default()
            }],
            ..JointTrajectory::default()
        };
        let attachment = Attachment { sequence: 1, stamp: run.handle.clock().now(), gid: [who; 16] };
        let topic = Topic::new("/arm_controller/joint_trajectory", &keys::JOINT_TRAJECTORY);
        let put = commander.put(topic.key(DOMAIN), encode(&trajectory)?);
        put.attachment(attachment.encode().as_slice()).wait().map_err(|e| Error::Link(e.to_string()))
    };
    let at = |k: usize| run.handle.joints().map_or(0.0, |reading| reading.positions[k]);
    assert!(eventually(|| {
        let sent = command(1, "shoulder_pan", 3, 0.3).is_ok();
        std::thread::sleep(std::time::Duration::from_millis(100));
        sent && at(0) > 0.005
    }));
    command(2, "wrist_roll", 1, 1.0)?;
    assert!(eventually(|| node.refusals().0 == 1), "{:?}", node.refusals());
    assert!(node.refusals().1.is_some_and(|why| why.contains("another node commands the arm")));
    assert!(eventually(|| at(0) > 0.28));
    let moved = at(4).abs();
    assert!(moved < 1e-6, "the second moved nothing: {moved}");
    let refused = node.refusals().0;
    drop(node);
    let watched = run.within_limits()?;
    let counted = format!("{refused} command of the second refused, which moved its joint by {moved:.4} rad");
    watched.lasting(&counted).tell("two nodes command one arm");
    Ok(())
}
