//! What a ROS 2 arm says, hurt on its way to us: late, again, out of order, torn, noise. In every one the arm ends
//! inside its limits and goes on by itself.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, eventually};
use crate::faults::{moving, running};
use crate::toll::excess_rad;
use crate::watched::{Watched, within_limits};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vela_embodiment::{Clock, Embodiment, Error, FrameSource, JointSide, MonotonicClock, Result, Stamp};
use vela_robots::ros2::cameras::{CameraTopic, ImageKind, TopicCameras};
use vela_robots::ros2::driver::{RosArm, RosConfig};
use vela_robots::ros2::keys::{self, Attachment, Distribution, Topic};
use vela_robots::ros2::messages::{CompressedImage, Image, JointState, JointTrajectory, decode, encode};
use vela_robots::ros2::{DOMAIN, TRAJECTORY};
use vela_robots::{ControlEvent, ControlHandle, ControlOptions, Controller, State, loopback_pair};
use zenoh::pubsub::Subscriber;
use zenoh::qos::CongestionControl;
use zenoh::{Session, Wait};

/// The far arm's clock is so far ahead of ours, s.
const AHEAD_SECS: f64 = 1.8e9;
/// Of so many messages one is hurt in each of the ways.
const ONE_IN: u32 = 24;

fn link(error: zenoh::Error) -> Error {
    Error::Link(error.to_string())
}

/// What the network does, and what it has done.
#[derive(Default)]
struct Network {
    /// Joint states are held back so long.
    late_ms: AtomicU64,
    hurting: AtomicBool,
    ended: AtomicBool,
    carried: AtomicU64,
    /// Those that were torn, or noise.
    torn: AtomicU64,
    /// Those that came again, or after a newer one.
    repeated: AtomicU64,
}

struct Said {
    made: Stamp,
    payload: Vec<u8>,
    attachment: Vec<u8>,
}

/// One topic on its way through the network.
struct Way {
    key: String,
    gid: [u8; 16],
    sequence: i64,
    /// Held back until the next one has overtaken it.
    kept: Option<Said>,
    rng: ChaCha8Rng,
}

impl Way {
    fn of(topic: &Topic, number: u8) -> Self {
        let rng = vela_embodiment::stream(number.into(), "hurt on its way");
        Self { key: topic.key(DOMAIN), gid: [number; 16], sequence: 0, kept: None, rng }
    }

    fn say(&mut self, payload: Vec<u8>, now: Stamp) -> Said {
        self.sequence += 1;
        let stamp = now.plus_secs(AHEAD_SECS);
        let attachment = Attachment { sequence: self.sequence, stamp, gid: self.gid };
        Said { made: now, payload, attachment: attachment.encode().to_vec() }
    }

    fn put(&self, session: &Session, said: &Said) -> Result<()> {
        let put = session.put(self.key.as_str(), said.payload.clone());
        put.congestion_control(CongestionControl::Block)
            .attachment(said.attachment.clone())
            .wait()
            .map_err(link)
    }

    fn carry(&mut self, session: &Session, mut said: Said, network: &Network) -> Result<()> {
        network.carried.fetch_add(1, Ordering::SeqCst);
        if let Some(kept) = self.kept.take() {
            self.put(session, &said)?;
            return self.put(session, &kept);
        }
        let way =
            if network.hurting.load(Ordering::SeqCst) { self.rng.random_range(0..ONE_IN) } else { ONE_IN };
        match way {
            0 | 1 => network.repeated.fetch_add(1, Ordering::SeqCst),
            2..=5 => network.torn.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        };
        match way {
            0 => self.put(session, &said)?,
            1 => {
                self.kept = Some(said);
                return Ok(());
            }
            2 => said.payload.truncate(self.rng.random_range(0..said.payload.len())),
            3 => said.attachment.truncate(self.rng.random_range(1..said.attachment.len())),
            4 => said.payload = (0..self.rng.random_range(0..400)).map(|_| self.rng.random()).collect(),
            5 => said.attachment = (0..self.rng.random_range(1..60)).map(|_| self.rng.random()).collect(),
            _ => {}
        }
        self.put(session, &said)
    }
}

/// Where the far arm is: at once where it is sent.
struct Body {
    joints: Vec<f64>,
    excess_rad: f64,
}

/// An arm and its cameras behind the network, as its ROS 2 nodes speak.
struct Far {
    body: Arc<Mutex<Body>>,
    network: Arc<Network>,
    speaking: JoinHandle<Result<()>>,
    _ear: Subscriber<()>,
}

impl Far {
    fn start(session: &Session) -> Result<Self> {
        let robot = Embodiment::so101()?;
        let body = Arc::new(Mutex::new(Body { joints: vec![0.0; 6], excess_rad: 0.0 }));
        let network = Arc::new(Network::default());
        let ear = session.declare_subscriber(keys::any_type(DOMAIN, TRAJECTORY)).callback({
            let (body, robot) = (body.clone(), robot.clone());
            move |sample| {
                let Ok(told) = decode::<JointTrajectory>(&sample.payload().to_bytes()) else { return };
                let mut body = body.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(point) = told.points.first() else { return };
                body.joints.clone_from(&point.positions);
                body.excess_rad = body.excess_rad.max(excess_rad(&robot, &body.joints));
            }
        });
        let ear = ear.wait().map_err(link)?;
        let speaking = std::thread::spawn({
            let (session, body, network) = (session.clone(), body.clone(), network.clone());
            move || speak(&session, &robot, &body, &network)
        });
        Ok(Self { body, network, speaking, _ear: ear })
    }

    /// Ends it; the joints that it had were inside their ranges.
    fn end(self) -> Result<()> {
        self.network.ended.store(true, Ordering::SeqCst);
        self.speaking.join().map_err(|_| Error::Robot("the far arm died".into()))??;
        let excess_rad = self.body.lock().unwrap_or_else(PoisonError::into_inner).excess_rad;
        assert!(excess_rad == 0.0, "the far arm was {excess_rad} rad outside its limits");
        Ok(())
    }
}

/// Says the joints at about 100 Hz and the pictures at about 33 Hz, each a little different.
fn speak(session: &Session, robot: &Embodiment, body: &Mutex<Body>, network: &Network) -> Result<()> {
    let clock = MonotonicClock::new();
    let mut joints = Way::of(&Topic::new("/joint_states", &keys::JOINT_STATE), 1);
    let mut front = Way::of(&Topic::new("/front", &keys::COMPRESSED_IMAGE), 2);
    let mut wrist = Way::of(&Topic::new("/wrist", &keys::IMAGE), 3);
    let mut under_way = VecDeque::new();
    for round in 0_u32.. {
        if network.ended.load(Ordering::SeqCst) {
            break;
        }
        let position = body.lock().unwrap_or_else(PoisonError::into_inner).joints.clone();
        let name = robot.joint_names().iter().map(ToString::to_string).collect();
        let state = JointState { name, position, ..JointState::default() };
        under_way.push_back(joints.say(encode(&state)?, clock.now()));
        let late_secs = 1e-3 * network.late_ms.load(Ordering::SeqCst) as f64;
        while let Some(said) = under_way.pop_front_if(|said| said.made.plus_secs(late_secs) <= clock.now()) {
            joints.carry(session, said, network)?;
        }
        if round % 3 == 0 {
            let data = vec![100 + (round / 3 % 100) as u8; 96 * 96 * 3];
            let mut file = Vec::new();
            image::codecs::jpeg::JpegEncoder::new(&mut file)
                .encode(&data, 96, 96, image::ExtendedColorType::Rgb8)
                .map_err(|e| Error::Robot(e.to_string()))?;
            let jpeg = CompressedImage { format: "jpeg".into(), data: file, ..CompressedImage::default() };
            let said = front.say(encode(&jpeg)?, clock.now());
            front.carry(session, said, network)?;
            let encoding = "rgb8".into();
            let raw = Image { height: 96, width: 96, step: 288, encoding, data, ..Image::default() };
            let said = wrist.say(encode(&raw)?, clock.now());
            wrist.carry(session, said, network)?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The control loop at our end.
struct Run<C> {
    controller: Controller<RosArm, C, FakePolicy>,
    handle: ControlHandle,
    events: Receiver<ControlEvent>,
}

impl<C: FrameSource + 'static> Run<C> {
    fn start(arm: RosArm, cameras: C, step: f64) -> Result<Self> {
        let options = ControlOptions {
            stop_after_hold_secs: 30.0,
            start_within_secs: 30.0,
            events: 1 << 14,
            ..ControlOptions::default()
        };
        let (controller, events) = Controller::start(arm, cameras, moving(step)?.0, "go on", &options)?;
        let handle = controller.handle();
        Ok(Self { controller, handle, events })
    }

    fn at(&self) -> f64 {
        self.handle.joints().map_or(0.0, |reading| reading.positions[0])
    }

    /// Waits until it moves on from where it is.
    fn moves(&self) -> bool {
        let from = self.at();
        eventually(|| running(&self.handle) && self.at() > from + 0.001)
    }

    /// Ends the loop and looks at every tick; what was dropped of joint states and of pictures.
    fn end(self, dropped: impl Fn(&RosArm, &C) -> u64) -> Result<(Watched, u64)> {
        let done = self.controller.finish();
        let dropped = done.arm.zip(done.cameras).map(|(arm, cameras)| dropped(&arm, &cameras));
        let dropped = dropped.ok_or_else(|| Error::Robot("a part of the loop did not come back".into()))?;
        Ok((within_limits(&done.report, self.events.try_iter())?, dropped))
    }
}

#[test]
fn joint_states_held_back_evenly_mean_hold_and_those_on_time_go_on() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let far = Far::start(&far)?;
    let arm = RosArm::connect(&near, &Embodiment::so101()?, &RosConfig::default(), 20.0)?;
    let cameras = FakeCameras::of(&FakeArm::on(arm.clock())?);
    let run = Run::start(arm, cameras, 0.0005)?;
    assert!(run.moves(), "{:?}", run.handle.state());
    let clock = run.handle.clock();
    let fault = clock.now();
    far.network.late_ms.store(400, Ordering::SeqCst);
    let late = || matches!(run.handle.state(), State::Holding { reason } if reason.contains("the newest reading is"));
    assert!(eventually(late), "{:?}", run.handle.state());
    // They come again by now, as often as ever, and every one of them is too old.
    std::thread::sleep(Duration::from_millis(700));
    let stood = run.at();
    let until = clock.now().plus_secs(1.0);
    while clock.now() < until {
        assert!(late(), "{:?}", run.handle.state());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(run.at(), stood);
    let healed = clock.now();
    far.network.late_ms.store(0, Ordering::SeqCst);
    assert!(run.moves(), "{:?}", run.handle.state());
    let (watched, dropped) = run.end(|arm, _| arm.repeats())?;
    far.end()?;
    assert_eq!(dropped, 0);
    watched.toll(fault, healed).tell("a ROS 2 arm's joint states late");
    Ok(())
}

#[test]
fn joints_and_pictures_repeated_reordered_torn_and_random_never_leave_the_limits() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let far = Far::start(&far)?;
    let robot = Embodiment::so101()?;
    let arm = RosArm::connect(&near, &robot, &RosConfig::default(), 20.0)?;
    let topic = |camera: &str, kind| (camera.to_owned(), CameraTopic { topic: format!("/{camera}"), kind });
    let topics: BTreeMap<_, _> =
        [topic("front", ImageKind::Compressed), topic("wrist", ImageKind::Raw)].into();
    let (jazzy, clock) = (Distribution::Jazzy, arm.clock());
    let cameras = TopicCameras::listen(&near, &robot, DOMAIN, jazzy, &topics, &clock, false)?;
    let run = Run::start(arm, cameras, 0.002)?;
    assert!(run.moves(), "{:?}", run.handle.state());
    far.network.hurting.store(true, Ordering::SeqCst);
    let (from, count) = (run.at(), |count: &AtomicU64| count.load(Ordering::SeqCst));
    let hurt = || count(&far.network.torn).min(count(&far.network.repeated)) > 40;
    assert!(eventually(|| hurt() && run.at() > from + 0.02), "{} {:?}", run.at(), run.handle.state());
    // And when nothing is hurt any more it goes on as before.
    far.network.hurting.store(false, Ordering::SeqCst);
    assert!(run.moves(), "{:?}", run.handle.state());
    let [carried, torn, repeated] =
        [&far.network.carried, &far.network.torn, &far.network.repeated].map(count);
    let (watched, dropped) = run.end(|arm, cameras| arm.repeats() + cameras.repeats())?;
    far.end()?;
    assert!(watched.ticks() > 25);
    // The last ones of them may still be on their way.
    assert!((repeated / 2..=repeated).contains(&dropped), "{dropped} of {repeated} dropped");
    let counted = format!(
        "{torn} of {carried} messages torn or noise, {repeated} again or overtaken: {dropped} dropped"
    );
    watched
        .lasting(&counted)
        .tell("a ROS 2 arm's joints and pictures repeated, reordered, truncated, random");
    Ok(())
}
