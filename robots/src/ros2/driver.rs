//! An arm that speaks ROS 2 over zenoh, driven: joint states and compressed images in, joint trajectories out.
//!
//! The arm and its cameras are known by their topics; stamps are given here, on arrival, because no wall clock crosses
//! machines. Every target that is sent has passed the gate like that of any other arm.

use super::messages::{self, CompressedImage, Header, JointState, JointTrajectory, Time, TrajectoryPoint};
use super::{DOMAIN, Outlet, keys};
use crate::control::Latest;
use crate::link::failed;
use keys::{EndpointKind, Entity, Topic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    Action, Applied, Camera, Checked, Clock, Embodiment, Error, Frame, FrameSource, JointReading, JointSide,
    MonotonicClock, Result, Stamp,
};
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::Subscriber;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// The topics of an arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RosConfig {
    /// The ROS domain.
    pub domain: u32,
    /// `sensor_msgs/msg/JointState` from the arm.
    pub joint_states: String,
    /// `trajectory_msgs/msg/JointTrajectory` to its controller.
    pub trajectory: String,
    /// The arm's own names of our joints, where they differ.
    pub joint_names: BTreeMap<String, String>,
}

impl Default for RosConfig {
    fn default() -> Self {
        Self {
            domain: DOMAIN,
            joint_states: "/joint_states".into(),
            trajectory: "/arm_controller/joint_trajectory".into(),
            joint_names: BTreeMap::new(),
        }
    }
}

/// What came from the arm last.
type Heard = Arc<Mutex<Option<std::result::Result<JointReading, String>>>>;

/// The joints of an arm that speaks ROS 2.
pub struct RosArm {
    embodiment: Embodiment,
    /// Its names, in our order.
    names: Vec<String>,
    heard: Heard,
    outlet: Outlet,
    clock: Arc<MonotonicClock>,
    _inlet: Subscriber<()>,
    _tokens: Vec<LivelinessToken>,
}

impl RosArm {
    /// Listens to the arm and waits for its first joints, at most `wait_secs`.
    ///
    /// # Errors
    /// No joints came, or not ours; a configured joint is unknown; the session is closed.
    pub fn connect(
        session: &Session,
        embodiment: &Embodiment,
        config: &RosConfig,
        wait_secs: f64,
    ) -> Result<Self> {
        for joint in config.joint_names.keys() {
            embodiment.joint_index(joint)?;
        }
        let own = |joint: &&str| config.joint_names.get(*joint).cloned().unwrap_or((*joint).to_owned());
        let names: Vec<String> = embodiment.joint_names().iter().map(own).collect();
        let clock = Arc::new(MonotonicClock::new());
        let node = Entity::node(
            config.domain,
            &session.zid().to_string(),
            &format!("vela_driver_{}", embodiment.name),
        );
        let (states, moves) = (
            Topic::new(&config.joint_states, &keys::JOINT_STATE),
            Topic::new(&config.trajectory, &keys::JOINT_TRAJECTORY),
        );
        let mut tokens = Vec::new();
        for key in [
            node.token(),
            node.endpoint_token(1, EndpointKind::Subscription, &states),
            node.endpoint_token(2, EndpointKind::Publisher, &moves),
        ] {
            let token = session.liveliness().declare_token(key.as_str()).wait();
            tokens.push(token.map_err(|e| failed(&key, e))?);
        }
        let heard = Heard::default();
        // Any type hash: distributions differ in it and not in the message.
        let key = format!("{}/{}/**", config.domain, config.joint_states.trim_matches('/'));
        let inlet = session
            .declare_subscriber(key.as_str())
            .callback({
                let (heard, names, clock) = (heard.clone(), names.clone(), clock.clone());
                move |sample: Sample| {
                    let stamp = clock.now();
                    let reading = messages::decode::<JointState>(&sample.payload().to_bytes())
                        .and_then(|state| reading_of(&state, &names, stamp))
                        .map_err(|error| error.to_string());
                    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
                }
            })
            .wait()
            .map_err(|e| failed(&key, e))?;
        let outlet = Outlet::open(session, &moves, config.domain, 2)?;
        let mut arm = Self {
            embodiment: embodiment.clone(),
            names,
            heard,
            outlet,
            clock,
            _inlet: inlet,
            _tokens: tokens,
        };
        let deadline = arm.clock.now().plus_secs(wait_secs);
        loop {
            match arm.joints() {
                Ok(_) => return Ok(arm),
                Err(error) if arm.clock.now() >= deadline => {
                    return Err(Error::Link(format!("within {wait_secs:.1} s: {error}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl JointSide for RosArm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn joints(&mut self) -> Result<JointReading> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match heard.as_ref() {
            Some(Ok(reading)) => Ok(reading.clone()),
            Some(Err(why)) => Err(Error::Robot(format!("the arm's joint states: {why}"))),
            None => Err(Error::Robot("no joint states came from the arm".into())),
        }
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let joint_targets = action.into_inner().joint_targets;
        let stamp = self.clock.now();
        let point = TrajectoryPoint {
            positions: joint_targets.clone(),
            time_from_start: Time::from(Stamp::from_secs(self.embodiment.period_secs())),
            ..TrajectoryPoint::default()
        };
        // A stamp of zero: begin now.
        let header = Header::default();
        let trajectory = JointTrajectory { header, joint_names: self.names.clone(), points: vec![point] };
        self.outlet.put(&trajectory, stamp)?;
        Ok(Applied { joint_targets, stamp })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// Our joints out of a message that may hold others too, in any order.
fn reading_of(state: &JointState, names: &[String], stamp: Stamp) -> Result<JointReading> {
    let mut reading = JointReading { stamp, ..JointReading::default() };
    for name in names {
        let place = state.name.iter().position(|known| known == name);
        let place = place.ok_or_else(|| Error::Unknown {
            kind: "joint",
            name: name.clone(),
            known: state.name.join(", "),
        })?;
        match state.position.get(place) {
            Some(position) if position.is_finite() => reading.positions.push(*position),
            other => return Err(Error::NotFinite(format!("position of joint '{name}' ({other:?})"))),
        }
        if let Some(effort) = state.effort.get(place) {
            reading.efforts.push(*effort);
        }
    }
    // Efforts of some joints only are no statement about the arm.
    if reading.efforts.len() != names.len() {
        reading.efforts.clear();
    }
    Ok(reading)
}

/// One camera's topic.
struct Eye {
    camera: Camera,
    newest: Arc<Latest<(Stamp, Vec<u8>)>>,
    seen: u64,
    _inlet: Subscriber<()>,
}

/// Cameras that publish `sensor_msgs/msg/CompressedImage`.
pub struct TopicCameras {
    eyes: Vec<Eye>,
}

impl TopicCameras {
    /// Listens to a topic per camera of the embodiment (`topics`: camera to topic); stamps are on `clock`, on arrival.
    ///
    /// # Errors
    /// A camera has no topic; the session is closed.
    pub fn listen(
        session: &Session,
        embodiment: &Embodiment,
        domain: u32,
        topics: &BTreeMap<String, String>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self> {
        let mut eyes = Vec::with_capacity(embodiment.cameras.len());
        for camera in &embodiment.cameras {
            let topic = topics.get(&camera.name).ok_or_else(|| Error::Unknown {
                kind: "topic of camera",
                name: camera.name.clone(),
                known: topics.keys().cloned().collect::<Vec<_>>().join(", "),
            })?;
            let newest = Arc::new(Latest::default());
            let key = format!("{domain}/{}/**", topic.trim_matches('/'));
            let inlet = session
                .declare_subscriber(key.as_str())
                .callback({
                    let (newest, clock) = (newest.clone(), clock.clone());
                    move |sample: Sample| {
                        newest.offer((clock.now(), sample.payload().to_bytes().into_owned()));
                    }
                })
                .wait()
                .map_err(|e| failed(&key, e))?;
            eyes.push(Eye { camera: camera.clone(), newest, seen: 0, _inlet: inlet });
        }
        Ok(Self { eyes })
    }
}

impl FrameSource for TopicCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::with_capacity(self.eyes.len());
        for eye in &mut self.eyes {
            let name = &eye.camera.name;
            let newer = eye.newest.wait_newer(eye.seen, Duration::from_millis(900));
            let (number, (stamp, bytes)) =
                newer.ok_or_else(|| Error::Robot(format!("camera '{name}' sent nothing for 0.9 s")))?;
            eye.seen = number;
            frames.push(frame_of(&eye.camera, stamp, &bytes)?);
        }
        Ok(frames)
    }
}

/// The picture in a message; it must have the camera's size.
fn frame_of(camera: &Camera, stamp: Stamp, bytes: &[u8]) -> Result<Frame> {
    let name = &camera.name;
    let refuse = |why: String| Error::Robot(format!("picture of camera '{name}': {why}"));
    let message: CompressedImage = messages::decode(bytes)?;
    let reader = || image::ImageReader::new(Cursor::new(&message.data)).with_guessed_format();
    // Looked at before anything is decoded: a small file may claim a huge picture.
    let size = reader().map_err(|e| refuse(e.to_string()))?.into_dimensions();
    let (width, height) = size.map_err(|e| refuse(e.to_string()))?;
    if (width, height) != (camera.width, camera.height) {
        let (w, h) = (camera.width, camera.height);
        return Err(refuse(format!("expected {w}x{h}, got {width}x{height}")));
    }
    let decoded = reader().map_err(|e| refuse(e.to_string()))?.decode().map_err(|e| refuse(e.to_string()))?;
    Ok(Frame { camera: name.clone(), width, height, rgb: decoded.into_rgb8().into_raw().into(), stamp })
}
