//! The arm as a ROS 2 robot on zenoh: what `rmw_zenoh` nodes see, without a bridge and without ROS.
//!
//! Published: `/joint_states`, `/CAMERA/image_raw/compressed`, `/robot_description`. Accepted: `/instruction`
//! (a sentence) and `/arm_controller/joint_trajectory`, which goes through the gate like everything else. Stamps are
//! the arm's own clock, as in simulation time: no wall clock leaves this machine.

pub mod driver;
pub mod keys;
mod lease;
pub mod messages;
mod trajectory;

use crate::control::{ControlEvent, ControlHandle};
use crate::link::failed;
use keys::{Attachment, EndpointKind, Entity, Topic};
use lease::Lease;
use messages::{CompressedImage, Header, JointState, JointTrajectory, Text, Time};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{Embodiment, Error, Frame, Result, Stamp};
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::CongestionControl;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

pub use trajectory::plan_of;

/// The ROS domain of a machine where nobody set another.
pub const DOMAIN: u32 = 0;
/// The description is said again this often, s: late listeners need no history then.
const DESCRIBE_EVERY_SECS: f64 = 2.0;
/// A sentence is shorter than this many bytes.
const LONGEST_SENTENCE: usize = 1000;
const JPEG_QUALITY: u8 = 90;

/// The arm's ROS 2 node. It is there until it is dropped.
pub struct Node {
    joint_names: Vec<String>,
    urdf: String,
    joints: Outlet,
    description: Outlet,
    cameras: Vec<(String, Outlet)>,
    described: Option<Stamp>,
    refusals: Arc<Mutex<Refusals>>,
    _inlets: Vec<Subscriber<()>>,
    _tokens: Vec<LivelinessToken>,
}

/// What a message from outside, and from the endpoint with this identity, does.
type Act = Box<dyn Fn(&[u8], [u8; 16]) -> Result<()> + Send + Sync>;

#[derive(Default)]
struct Refusals {
    count: u64,
    last: Option<String>,
}

impl Refusals {
    fn note(&mut self, why: String) {
        self.count += 1;
        self.last = Some(why);
    }
}

impl Node {
    /// Declares the node on `session`; commands that come in go to `handle`.
    ///
    /// # Errors
    /// The session is closed.
    pub fn start(session: &Session, embodiment: &Embodiment, handle: &ControlHandle) -> Result<Self> {
        let node = Entity::node(DOMAIN, &session.zid().to_string(), &format!("vela_{}", embodiment.name));
        let mut tokens = Vec::new();
        let mut token = |key: String| -> Result<()> {
            let token = session.liveliness().declare_token(key.as_str()).wait();
            tokens.push(token.map_err(|e| failed(&key, e))?);
            Ok(())
        };
        token(node.token())?;
        let mut number = 0;
        let mut outlet = |topic: Topic| -> Result<Outlet> {
            number += 1;
            token(node.endpoint_token(number, EndpointKind::Publisher, &topic))?;
            Outlet::open(session, &topic, DOMAIN, number)
        };
        let joints = outlet(Topic::new("/joint_states", &keys::JOINT_STATE))?;
        let description = outlet(Topic::new("/robot_description", &keys::STRING))?;
        let mut cameras = Vec::new();
        for camera in &embodiment.cameras {
            let name = format!("/{}/image_raw/compressed", camera.name);
            cameras.push((
                camera.name.clone(),
                outlet(Topic::new(&name, &keys::COMPRESSED_IMAGE).best_effort())?,
            ));
        }

        let refusals = Arc::new(Mutex::new(Refusals::default()));
        let mut inlets = Vec::new();
        let mut inlet = |topic: Topic, act: Act| -> Result<()> {
            number += 1;
            token(node.endpoint_token(number, EndpointKind::Subscription, &topic))?;
            let (key, refusals, name) = (topic.key(DOMAIN), refusals.clone(), topic.name.clone());
            let subscriber = session
                .declare_subscriber(key.as_str())
                .callback(move |sample: Sample| {
                    let sent = sample.attachment().map(|bytes| Attachment::decode(&bytes.to_bytes()));
                    let who = sent.and_then(Result::ok).map_or([0; 16], |attachment| attachment.gid);
                    if let Err(error) = act(&sample.payload().to_bytes(), who) {
                        let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
                        refusals.note(format!("{name}: {error}"));
                    }
                })
                .wait()
                .map_err(|e| failed(&key, e))?;
            inlets.push(subscriber);
            Ok(())
        };
        let (to_say, to_move, body, lease) =
            (handle.clone(), handle.clone(), embodiment.clone(), Lease::default());
        inlet(
            Topic::new("/instruction", &keys::STRING),
            Box::new(move |bytes, _| {
                let sentence = messages::decode::<Text>(bytes)?.data;
                if sentence.trim().is_empty() || sentence.len() > LONGEST_SENTENCE {
                    return Err(Error::Shape {
                        what: "instruction".into(),
                        expected: format!("a sentence of at most {LONGEST_SENTENCE} bytes"),
                        got: format!("{} bytes", sentence.len()),
                    });
                }
                to_say.set_instruction(sentence.trim());
                Ok(())
            }),
        )?;
        inlet(
            Topic::new("/arm_controller/joint_trajectory", &keys::JOINT_TRAJECTORY),
            Box::new(move |bytes, who| {
                let trajectory: JointTrajectory = messages::decode(bytes)?;
                let reading =
                    to_move.joints().ok_or_else(|| Error::Robot("the joints were not read yet".into()))?;
                let now = to_move.clock().now();
                let plan = plan_of(&trajectory, &body, &reading.positions, now)?;
                lease.take(who, now, plan.end())?;
                to_move.follow(plan)
            }),
        )?;
        Ok(Self {
            joint_names: embodiment.joint_names().iter().map(ToString::to_string).collect(),
            urdf: embodiment.urdf.clone(),
            joints,
            description,
            cameras,
            described: None,
            refusals,
            _inlets: inlets,
            _tokens: tokens,
        })
    }

    /// Publishes what an event of the control loop says about joints and cameras.
    ///
    /// # Errors
    /// The session is closed, or a frame cannot be encoded.
    pub fn publish(&mut self, event: &ControlEvent) -> Result<()> {
        match event {
            ControlEvent::Tick(tick) => {
                if self.described.is_none_or(|then| tick.stamp.secs_since(then) >= DESCRIBE_EVERY_SECS) {
                    self.described = Some(tick.stamp);
                    self.description.put(&Text { data: self.urdf.clone() }, tick.stamp)?;
                }
                self.publish_joints(&tick.joints, tick.stamp)
            }
            ControlEvent::Observed(seen) => {
                seen.frames.iter().try_for_each(|frame| self.publish_frame(frame))
            }
            _ => Ok(()),
        }
    }

    /// Publishes measured joints, rad or m, in the embodiment's order.
    pub fn publish_joints(&mut self, positions: &[f64], stamp: Stamp) -> Result<()> {
        let state = JointState {
            header: Header { stamp: Time::from(stamp), frame_id: String::new() },
            name: self.joint_names.clone(),
            position: positions.to_vec(),
            velocity: Vec::new(),
            effort: Vec::new(),
        };
        self.joints.put(&state, stamp)
    }

    /// Publishes a frame as JPEG, if anyone listens.
    pub fn publish_frame(&mut self, frame: &Frame) -> Result<()> {
        let Some((_, outlet)) = self.cameras.iter_mut().find(|(name, _)| *name == frame.camera) else {
            return Ok(());
        };
        if !outlet.listened_to() {
            return Ok(());
        }
        let mut data = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut data, JPEG_QUALITY)
            .encode(&frame.rgb, frame.width, frame.height, image::ExtendedColorType::Rgb8)
            .map_err(|e| Error::Robot(format!("frame of camera '{}': {e}", frame.camera)))?;
        let header = Header { stamp: Time::from(frame.stamp), frame_id: frame.camera.clone() };
        outlet.put(&CompressedImage { header, format: "jpeg".into(), data }, frame.stamp)
    }

    /// How many commands from outside were refused, and the last reason.
    pub fn refusals(&self) -> (u64, Option<String>) {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        (refusals.count, refusals.last.clone())
    }
}

/// One publisher with its count and its identity.
struct Outlet {
    publisher: Publisher<'static>,
    sequence: i64,
    gid: [u8; 16],
}

impl Outlet {
    fn open(session: &Session, topic: &Topic, domain: u32, number: u32) -> Result<Self> {
        let key = topic.key(domain);
        let publisher = session
            .declare_publisher(key.clone())
            .congestion_control(CongestionControl::Drop)
            .express(!topic.is_best_effort())
            .wait()
            .map_err(|e| failed(&key, e))?;
        Ok(Self { publisher, sequence: 0, gid: keys::gid(&session.zid().to_le_bytes(), number) })
    }

    fn listened_to(&self) -> bool {
        self.publisher.matching_status().wait().is_ok_and(|status| status.matching())
    }

    fn put<T: Serialize>(&mut self, message: &T, stamp: Stamp) -> Result<()> {
        self.sequence += 1;
        let attachment = Attachment { sequence: self.sequence, stamp, gid: self.gid };
        self.publisher
            .put(messages::encode(message)?)
            .attachment(attachment.encode().as_slice())
            .wait()
            .map_err(|e| failed(self.publisher.key_expr().as_str(), e))
    }
}
