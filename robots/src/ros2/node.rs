//! The voice of an arm of ours: what it publishes and what it takes, as one ROS 2 node.

use super::calendar::Calendar;
use super::inlets::Inlets;
use super::keys::{self, Distribution, EndpointKind, Entity, MessageType, Topic};
use super::messages::{CompressedImage, Header, Image, JointState, Text, TfMessage, Time, TransformStamped};
use super::{BY_COMMAND, BY_NOBODY, BY_POLICY, DOMAIN, JOINT_COMMANDS, Outlet};
use crate::control::{ControlEvent, ControlHandle};
use crate::link::failed;
use std::sync::atomic::{AtomicU32, Ordering};
use vela_embodiment::{Clock, Embodiment, Error, Frame, Kinematics, Result, Stamp};
use zenoh::liveliness::LivelinessToken;
use zenoh::{Session, Wait};

/// The description is said again this often, s: late listeners need no history then.
const DESCRIBE_EVERY_SECS: f64 = 2.0;
const JPEG_QUALITY: u8 = 90;
/// How the names of the nodes begin that drive an arm.
pub(super) const DRIVER: &str = "vela_driver_";
/// How many endpoints this process has declared.
static ENDPOINTS: AtomicU32 = AtomicU32::new(0);

/// The arm's ROS 2 node. It is there until it is dropped.
///
/// Published: `/joint_states`, `/joint_commands` (what was sent), `/CAMERA/image_raw` and its JPEG, `/robot_description`,
/// `/tf`; pictures, frames and what was sent only while somebody listens. Accepted: a sentence, trajectories, forward
/// commands, the gripper's command (all through the gate like everything else) and the emergency stop, on the topics
/// named in [`super`].
pub struct Node {
    joint_names: Vec<String>,
    urdf: String,
    kinematics: Kinematics,
    joints: Option<Outlet>,
    commands: Option<Outlet>,
    description: Outlet,
    frames: Outlet,
    cameras: Vec<Camera>,
    described: Option<Stamp>,
    inlets: Option<Inlets>,
    _tokens: Vec<LivelinessToken>,
}

struct Camera {
    name: String,
    raw: Outlet,
    jpeg: Outlet,
}

/// Declares the endpoints of one node, each with its token.
pub(super) struct Declaring<'a> {
    session: &'a Session,
    domain: u32,
    distribution: Distribution,
    node: Entity,
    tokens: Vec<LivelinessToken>,
}

impl<'a> Declaring<'a> {
    /// A node of this name, whose keys are those of `distribution`.
    pub(super) fn node(
        session: &'a Session,
        domain: u32,
        distribution: Distribution,
        name: &str,
    ) -> Result<Self> {
        let node = Entity::node(domain, &session.zid().to_string(), name);
        let mut declaring = Self { session, domain, distribution, node, tokens: Vec::new() };
        declaring.token(declaring.node.token())?;
        Ok(declaring)
    }

    fn token(&mut self, key: String) -> Result<()> {
        let token = self.session.liveliness().declare_token(key.as_str()).wait();
        self.tokens.push(token.map_err(|e| failed(&key, e))?);
        Ok(())
    }

    /// Declares an endpoint; returns its identity.
    pub(super) fn endpoint(&mut self, kind: EndpointKind, topic: &Topic) -> Result<[u8; 16]> {
        // A session has several nodes, and no two endpoints of it the same number.
        let number = ENDPOINTS.fetch_add(1, Ordering::Relaxed) + 1;
        let topic = topic.clone().in_distribution(self.distribution);
        let token = self.node.endpoint_token(number, kind, &topic);
        let gid = keys::gid_of(&token);
        self.token(token)?;
        Ok(gid)
    }

    /// Declares a publisher whose messages are dated by `calendar`.
    pub(super) fn outlet(&mut self, topic: &Topic, calendar: Calendar) -> Result<Outlet> {
        let gid = self.endpoint(EndpointKind::Publisher, topic)?;
        let topic = topic.clone().in_distribution(self.distribution);
        Outlet::open(self.session, &topic, self.domain, gid, calendar)
    }

    pub(super) fn session(&self) -> &'a Session {
        self.session
    }

    pub(super) fn domain(&self) -> u32 {
        self.domain
    }

    pub(super) fn distribution(&self) -> Distribution {
        self.distribution
    }

    pub(super) fn done(self) -> Vec<LivelinessToken> {
        self.tokens
    }
}

impl Node {
    /// Declares the node of an arm of ours on `session`; commands that come in go to `handle`.
    ///
    /// # Errors
    /// The session is closed, or the URDF has no chain to the tip.
    pub fn start(session: &Session, embodiment: &Embodiment, handle: &ControlHandle) -> Result<Self> {
        let mut declaring =
            Declaring::node(session, DOMAIN, Distribution::default(), &format!("vela_{}", embodiment.name))?;
        let calendar = Calendar::beside(&*handle.clock());
        let joints = declaring.outlet(&Topic::new("/joint_states", &keys::JOINT_STATE), calendar)?;
        let sent = declaring.outlet(&Topic::new(JOINT_COMMANDS, &keys::JOINT_STATE), calendar)?;
        let mut cameras = Vec::new();
        for camera in &embodiment.cameras {
            let mut outlet = |ending: &str, message: &MessageType| {
                let name = format!("/{}/image_raw{ending}", camera.name);
                declaring.outlet(&Topic::new(&name, message).best_effort(), calendar)
            };
            let (raw, jpeg) = (outlet("", &keys::IMAGE)?, outlet("/compressed", &keys::COMPRESSED_IMAGE)?);
            cameras.push(Camera { name: camera.name.clone(), raw, jpeg });
        }
        let inlets = Inlets::open(&mut declaring, embodiment, handle)?;
        let mut node = Self::describing(declaring, embodiment, calendar)?;
        (node.joints, node.commands) = (Some(joints), Some(sent));
        (node.cameras, node.inlets) = (cameras, Some(inlets));
        Ok(node)
    }

    /// Only `/robot_description` and `/tf`, for an arm on this clock that says its joints itself and nothing else.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn describe(
        session: &Session,
        embodiment: &Embodiment,
        clock: &dyn Clock,
        domain: u32,
        distribution: Distribution,
    ) -> Result<Self> {
        let name = format!("vela_description_{}", embodiment.name);
        let declaring = Declaring::node(session, domain, distribution, &name)?;
        Self::describing(declaring, embodiment, Calendar::beside(clock))
    }

    fn describing(mut declaring: Declaring, embodiment: &Embodiment, calendar: Calendar) -> Result<Self> {
        Ok(Self {
            joint_names: embodiment.joint_names().iter().map(ToString::to_string).collect(),
            urdf: embodiment.urdf.clone(),
            kinematics: embodiment.kinematics()?,
            joints: None,
            commands: None,
            description: declaring.outlet(&Topic::new("/robot_description", &keys::STRING), calendar)?,
            frames: declaring.outlet(&Topic::new("/tf", &keys::TF_MESSAGE), calendar)?,
            cameras: Vec::new(),
            described: None,
            inlets: None,
            _tokens: declaring.done(),
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
                    self.description.put(tick.stamp, |_| Text { data: self.urdf.clone() })?;
                }
                if let Some(commands) = self.commands.as_mut().filter(|outlet| outlet.listened_to()) {
                    let by = match (tick.held || tick.asked.is_none(), tick.commanded) {
                        (true, _) => BY_NOBODY,
                        (false, true) => BY_COMMAND,
                        (false, false) => BY_POLICY,
                    };
                    commands.put(tick.stamp, |date| state(&self.joint_names, &tick.targets, by, date))?;
                }
                self.publish_joints(&tick.joints, tick.stamp)
            }
            ControlEvent::Observed(seen) => {
                seen.frames.iter().try_for_each(|frame| self.publish_frame(frame))
            }
            _ => Ok(()),
        }
    }

    /// Publishes measured joints, rad or m, in the embodiment's order, and where they put the links.
    pub fn publish_joints(&mut self, positions: &[f64], stamp: Stamp) -> Result<()> {
        if self.frames.listened_to() {
            self.frames.put(stamp, |date| links(&self.kinematics, positions, date))?;
        }
        let Some(joints) = &mut self.joints else { return Ok(()) };
        joints.put(stamp, |date| state(&self.joint_names, positions, "", date))
    }

    /// Publishes a frame as it is and as JPEG, each if anyone listens.
    pub fn publish_frame(&mut self, frame: &Frame) -> Result<()> {
        let Some(camera) = self.cameras.iter_mut().find(|camera| camera.name == frame.camera) else {
            return Ok(());
        };
        let header = |date| Header { stamp: date, frame_id: frame.camera.clone() };
        let (width, height) = (frame.width, frame.height);
        if camera.raw.listened_to() {
            let image = |date| Image {
                header: header(date),
                height,
                width,
                encoding: "rgb8".into(),
                is_bigendian: 0,
                step: width * 3,
                data: frame.rgb.to_vec(),
            };
            camera.raw.put(frame.stamp, image)?;
        }
        if !camera.jpeg.listened_to() {
            return Ok(());
        }
        let mut data = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut data, JPEG_QUALITY)
            .encode(&frame.rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| Error::Robot(format!("frame of camera '{}': {e}", frame.camera)))?;
        let image = |date| CompressedImage { header: header(date), format: "jpeg".into(), data };
        camera.jpeg.put(frame.stamp, image)
    }

    /// How many commands from outside were refused, and the last reason.
    pub fn refusals(&self) -> (u64, Option<String>) {
        self.inlets.as_ref().map(Inlets::refusals).unwrap_or_default()
    }
}

/// Positions of the joints with these names, rad or m.
fn state(names: &[String], positions: &[f64], frame: &str, date: Time) -> JointState {
    JointState {
        header: Header { stamp: date, frame_id: frame.into() },
        name: names.to_vec(),
        position: positions.to_vec(),
        velocity: Vec::new(),
        effort: Vec::new(),
    }
}

/// Every link's frame in its parent's.
fn links(kinematics: &Kinematics, positions: &[f64], date: Time) -> TfMessage {
    let poses = kinematics.base_from_links(positions);
    let model = kinematics.model();
    let transforms = model.joints.iter().map(|joint| {
        let pose = poses[joint.parent].inv_mul(&poses[joint.child]);
        let turn = pose.rotation.coords;
        TransformStamped {
            header: Header { stamp: date, frame_id: model.links[joint.parent].name.clone() },
            child_frame_id: model.links[joint.child].name.clone(),
            translation: pose.translation.vector.into(),
            rotation: [turn.x, turn.y, turn.z, turn.w],
        }
    });
    TfMessage { transforms: transforms.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::{Isometry3, Quaternion, Translation3, UnitQuaternion};

    #[test]
    fn the_frames_chained_are_the_tip_s_pose() -> Result<()> {
        let kinematics = Embodiment::so101()?.kinematics()?;
        let positions = [0.3, -0.4, 0.5, 0.6, -0.7, 0.2];
        let date = Time { sec: 1, nanosec: 500_000_000 };
        let message = links(&kinematics, &positions, date);
        let links = kinematics.model().links.len();
        assert_eq!(message.transforms.len(), links - 1, "every link but the root has a parent");
        let mut link = "tool".to_owned();
        let mut pose = Isometry3::identity();
        while let Some(up) = message.transforms.iter().find(|frame| frame.child_frame_id == link) {
            let ([x, y, z], [i, j, k, w]) = (up.translation, up.rotation);
            let turn = UnitQuaternion::from_quaternion(Quaternion::new(w, i, j, k));
            pose = Isometry3::from_parts(Translation3::new(x, y, z), turn) * pose;
            assert_eq!(up.header.stamp, date);
            link.clone_from(&up.header.frame_id);
        }
        let tip = kinematics.base_from_tip(&positions);
        assert!((tip.translation.vector - pose.translation.vector).norm() < 1e-9);
        assert!(tip.rotation.angle_to(&pose.rotation) < 1e-6);
        Ok(())
    }
}
