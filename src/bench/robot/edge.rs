//! From two pictures and the joints on zenoh to the command that answers them, without a model.

use super::{Args, PACE_HZ, SIZE, Spread, Still, WARM_UP, robot, sessions};
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use vela_embodiment::{
    Clock, Embodiment, FrameSource, GateConfig, InferOptions, JointSide, MonotonicClock, Observation, Policy,
    SafetyGate, Stamp,
};
use vela_robots::priority::{self, Urgency};
use vela_robots::ros2::cameras::{CameraTopic, ImageKind, TopicCameras};
use vela_robots::ros2::driver::{RosArm, RosConfig};
use vela_robots::ros2::keys::{self, Distribution, Topic};
use vela_robots::ros2::messages::{self, CompressedImage, Image, JointState};
use vela_robots::ros2::{DOMAIN, TRAJECTORY};
use vela_robots::{ChunkQueue, Resolver};
use zenoh::{Session, Wait};

/// Of the JPEGs.
const QUALITY: u8 = 85;

/// From the moment the arm publishes joints and two pictures to the moment it has the command that answers them.
#[derive(Serialize)]
pub(super) struct Edge {
    /// Bytes of both pictures' messages.
    pub(super) bytes: usize,
    /// How they are coded, in words.
    pub(super) coded: String,
    /// Pictures that did not come within half a second: a network that is busy drops them.
    pub(super) lost: usize,
    pub(super) total: Spread,
    /// Of it: to the robot's side, unpacked.
    pub(super) seen: Spread,
    /// Of it: a plan, the gate, the message.
    pub(super) decided: Spread,
    /// Of it: back at the arm.
    pub(super) carried: Spread,
}

/// A JPEG as a camera or `image_transport` makes it: colours at half the width and half the height (4:2:0).
fn jpeg(rgb: &[u8]) -> Result<Vec<u8>> {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    let mut data = Vec::new();
    let mut encoder = Encoder::new(&mut data, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(rgb, SIZE.0 as u16, SIZE.1 as u16, ColorType::Rgb)?;
    Ok(data)
}

/// The messages of one picture and the keys where they go.
fn message(camera: &str, rgb: &[u8], kind: ImageKind) -> Result<(String, Vec<u8>)> {
    let topic = format!("/{camera}/image");
    let (width, height) = SIZE;
    Ok(match kind {
        ImageKind::Compressed => {
            let data = jpeg(rgb)?;
            let message = CompressedImage { format: "jpeg".into(), data, ..CompressedImage::default() };
            (Topic::new(&topic, &keys::COMPRESSED_IMAGE).key(DOMAIN), messages::encode(&message)?)
        }
        ImageKind::Raw => {
            let message = Image {
                width,
                height,
                encoding: "rgb8".into(),
                step: width * 3,
                data: rgb.to_vec(),
                ..Image::default()
            };
            (Topic::new(&topic, &keys::IMAGE).key(DOMAIN), messages::encode(&message)?)
        }
    })
}

/// The arm in one session, the robot's side in another: pictures and joints over, a command back, one after another.
pub(super) fn measure(
    args: &Args,
    pictures: &[Vec<u8>],
    kind: ImageKind,
    shared_memory: bool,
) -> Result<Edge> {
    let (near, far) = sessions(shared_memory)?;
    // The drivers of an arm and its cameras are not what is measured.
    priority::urgently(Urgency::Control, || play(args, pictures, kind, [&near, &far]))?
}

fn play(args: &Args, pictures: &[Vec<u8>], kind: ImageKind, [near, far]: [&Session; 2]) -> Result<Edge> {
    let robot = robot(SIZE, PACE_HZ)?;
    let clock = Arc::new(MonotonicClock::new());
    let (arrived, commands) = channel::<Stamp>();
    let ear = far.declare_subscriber(keys::any_type(DOMAIN, TRAJECTORY)).callback({
        let clock = clock.clone();
        move |_| {
            // Nobody listens any more at the end.
            let _ = arrived.send(clock.now());
        }
    });
    let _ear = ear.wait().map_err(|e| anyhow::anyhow!("{e}"))?;
    let joints = JointState {
        name: robot.joint_names().into_iter().map(str::to_owned).collect(),
        position: vec![0.0; robot.joints.len()],
        ..JointState::default()
    };
    let joints = (Topic::new("/joint_states", &keys::JOINT_STATE).key(DOMAIN), messages::encode(&joints)?);
    let mut said = vec![joints];
    for (camera, rgb) in robot.cameras.iter().zip(pictures) {
        said.push(message(&camera.name, rgb, kind)?);
    }
    let publish = |bytes: &(String, Vec<u8>)| {
        far.put(bytes.0.as_str(), bytes.1.clone()).wait().map_err(|e| anyhow::anyhow!("{e}"))
    };
    let done = AtomicBool::new(false);
    let (mut total, mut seen, mut decided, mut carried) = (vec![], vec![], vec![], vec![]);
    let mut lost = 0;
    let (between, stages) = channel::<[Stamp; 2]>();
    std::thread::scope(|scope| -> Result<()> {
        let side = scope.spawn(|| robot_side(near, &robot, kind, &clock, &between, &done));
        let rounds = (args.secs * PACE_HZ).ceil() as usize;
        let mut due = clock.now();
        let mut answered = 0;
        for _ in 0..rounds + WARM_UP {
            due = due.plus_secs(1.0 / PACE_HZ).max(clock.now());
            clock.sleep_until(due);
            // An answer that came too late is nobody's.
            while commands.try_recv().is_ok() || stages.try_recv().is_ok() {}
            let start = clock.now();
            said.iter().try_for_each(publish)?;
            let Ok(end) = commands.recv_timeout(Duration::from_millis(500)) else {
                // The first ones are, while the sessions do not know each other yet.
                lost += usize::from(answered > WARM_UP);
                continue;
            };
            answered += 1;
            let [unpacked, sent] = stages.recv_timeout(Duration::from_secs(1))?;
            if answered > WARM_UP {
                total.push(end.secs_since(start));
                seen.push(unpacked.secs_since(start));
                decided.push(sent.secs_since(unpacked));
                carried.push(end.secs_since(sent).max(0.0));
            }
        }
        done.store(true, Ordering::Release);
        // Whoever waits for a picture gets one.
        said.iter().try_for_each(publish)?;
        side.join().map_err(|_| anyhow::anyhow!("the robot's thread died"))?
    })?;
    if total.is_empty() {
        bail!("no command came back over zenoh");
    }
    let [total, seen, decided, carried] = [total, seen, decided, carried].map(|secs| Spread::of(&secs));
    let bytes = said[1..].iter().map(|(_, message)| message.len()).sum();
    let coded = match kind {
        ImageKind::Compressed => format!(", 4:2:0 at quality {QUALITY}"),
        ImageKind::Raw => String::new(),
    };
    Ok(Edge { bytes, coded, lost, total, seen, decided, carried })
}

/// Everything that `vela robot` does between a picture and a command, without waiting for the next tick.
fn robot_side(
    session: &Session,
    robot: &Embodiment,
    kind: ImageKind,
    clock: &MonotonicClock,
    stages: &Sender<[Stamp; 2]>,
    done: &AtomicBool,
) -> Result<()> {
    let topics: BTreeMap<String, CameraTopic> = robot
        .cameras
        .iter()
        .map(|camera| (camera.name.clone(), CameraTopic { topic: format!("/{}/image", camera.name), kind }))
        .collect();
    let _ = priority::ask(Urgency::Control);
    let mut arm = RosArm::connect(session, robot, &RosConfig::default(), 10.0)?;
    let own = arm.clock();
    let mut cameras =
        TopicCameras::listen(session, robot, DOMAIN, Distribution::default(), &topics, &own, true)?;
    let resolver = Resolver::new(robot)?;
    let mut policy = Still::new(robot);
    let mut queue = ChunkQueue::new(robot.period_secs(), policy.spec().execute);
    let mut gate = SafetyGate::new(robot, GateConfig::default(), &arm.joints()?.positions)?;
    while !done.load(Ordering::Acquire) {
        let Ok(frames) = cameras.frames() else { continue };
        let unpacked = clock.now();
        let reading = arm.joints()?;
        let observation = Observation {
            frames,
            joint_positions: reading.positions,
            instruction: "stand".into(),
            stamp: reading.stamp,
        };
        observation.check(robot)?;
        let chunk = policy.infer(std::slice::from_ref(&observation), &InferOptions::default())?;
        queue.merge(resolver.resolve(&chunk, &observation.joint_positions)?, own.now());
        let now = own.now();
        let planned = queue.action(now);
        let verdict = gate.check(planned.as_ref().map(|(action, stamp)| (action, *stamp)), now);
        arm.apply(verdict.action)?;
        if stages.send([unpacked, clock.now()]).is_err() {
            break;
        }
    }
    Ok(())
}
