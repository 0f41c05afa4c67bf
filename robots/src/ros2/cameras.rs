//! Cameras that speak ROS 2 over zenoh: compressed or raw images in, frames out.

use super::delay::Arrivals;
use super::keys::{self, Distribution, EndpointKind, Topic};
use super::node::Declaring;
use super::picture::Pictures;
use crate::control::Latest;
use crate::link::failed;
use crate::priority::{self, Urgency};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vela_embodiment::{Camera, Clock, Embodiment, Error, Frame, FrameSource, Result, Stamp};
use zenoh::bytes::ZBytes;
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::Subscriber;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// How a camera sends its pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// `sensor_msgs/msg/CompressedImage`: JPEG or PNG.
    #[default]
    Compressed,
    /// `sensor_msgs/msg/Image`, its pixels as they are: colours, greys or YUV.
    Raw,
}

/// One camera's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraTopic {
    /// Its name.
    pub topic: String,
    /// What comes there.
    #[serde(default)]
    pub kind: ImageKind,
}

/// How long a picture may let itself be waited for.
const PATIENCE: Duration = Duration::from_millis(900);

/// What the ear of a camera heard last, or what was wrong with it.
type Heard = Latest<std::result::Result<(Stamp, ZBytes), String>>;
/// What was unpacked last.
type Unpacked = Latest<std::result::Result<Frame, String>>;

/// One camera: its ear, and a thread that unpacks what it hears.
struct Eye {
    name: String,
    unpacked: Arc<Unpacked>,
    seen: u64,
    closed: Arc<AtomicBool>,
    arrivals: Arrivals,
    _inlet: Subscriber<()>,
}

impl Eye {
    fn open(
        session: &Session,
        camera: &Camera,
        domain: u32,
        topic: &CameraTopic,
        clock: &Arc<dyn Clock>,
        real_time: bool,
    ) -> Result<Self> {
        let (heard, unpacked) = (Arc::new(Heard::default()), Arc::new(Unpacked::default()));
        let (closed, arrivals) = (Arc::new(AtomicBool::new(false)), Arrivals::default());
        let key = keys::any_type(domain, &topic.topic);
        let inlet = session.declare_subscriber(key.as_str()).callback({
            let (heard, clock, arrivals) = (heard.clone(), clock.clone(), arrivals.clone());
            let name = camera.name.clone();
            move |sample: Sample| {
                let Some(stamp) = arrivals.on_time(&sample, clock.now()).transpose() else { return };
                let picture = stamp.map(|stamp| (stamp, sample.payload().clone()));
                heard.put(picture.map_err(|why| format!("picture of camera '{name}': {why}")));
            }
        });
        let inlet = inlet.wait().map_err(|e| failed(&key, e))?;
        let unpacking = {
            let (unpacked, closed) = (unpacked.clone(), closed.clone());
            let (camera, kind) = (camera.clone(), topic.kind);
            move || {
                if real_time {
                    // The control loop's thread asks for the same and says what came of it.
                    let _ = priority::ask(Urgency::Picture);
                }
                unpack(&camera, kind, &heard, &unpacked, &closed);
            }
        };
        let name = camera.name.clone();
        let thread = std::thread::Builder::new().name(format!("vela-eye-{name}"));
        thread
            .spawn(unpacking)
            .map_err(|e| Error::Robot(format!("cannot start the thread of camera '{name}': {e}")))?;
        Ok(Self { name, unpacked, seen: 0, closed, arrivals, _inlet: inlet })
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Unpacks every picture as it comes, or the newest one when they come faster than that.
fn unpack(camera: &Camera, kind: ImageKind, heard: &Heard, unpacked: &Unpacked, closed: &AtomicBool) {
    let mut seen = 0;
    let mut pictures = Pictures::default();
    while !closed.load(Ordering::Acquire) {
        let Some((number, picture)) = heard.wait_newer(seen, Duration::from_millis(100)) else {
            continue;
        };
        seen = number;
        let unpack =
            |(stamp, bytes): (Stamp, ZBytes)| pictures.unpack(camera, kind, stamp, &bytes.to_bytes());
        unpacked.put(picture.and_then(unpack));
    }
}

/// Cameras on topics.
pub struct TopicCameras {
    eyes: Vec<Eye>,
    _tokens: Vec<LivelinessToken>,
}

impl TopicCameras {
    /// Listens to a topic per camera of the embodiment, by the camera's name; stamps are on `clock`, on arrival, less
    /// what a picture was late. Each picture is unpacked on a thread of its camera's own, which asks for a priority just
    /// under the control loop's if it is to be in `real_time`.
    ///
    /// # Errors
    /// A camera has no topic or a topic no camera; the session is closed.
    pub fn listen(
        session: &Session,
        embodiment: &Embodiment,
        domain: u32,
        distribution: Distribution,
        topics: &BTreeMap<String, CameraTopic>,
        clock: &Arc<dyn Clock>,
        real_time: bool,
    ) -> Result<Self> {
        let join = |names: Vec<&str>| names.join(", ");
        let known: Vec<&str> = embodiment.cameras.iter().map(|camera| camera.name.as_str()).collect();
        if let Some(name) = topics.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::Unknown { kind: "camera", name: name.clone(), known: join(known) });
        }
        let mut eyes = Vec::with_capacity(embodiment.cameras.len());
        let name = format!("vela_cameras_{}", embodiment.name);
        let mut declaring = Declaring::node(session, domain, distribution, &name)?;
        for camera in &embodiment.cameras {
            let topic = topics.get(&camera.name).ok_or_else(|| Error::Unknown {
                kind: "topic of camera",
                name: camera.name.clone(),
                known: join(topics.keys().map(String::as_str).collect()),
            })?;
            let message = match topic.kind {
                ImageKind::Compressed => &keys::COMPRESSED_IMAGE,
                ImageKind::Raw => &keys::IMAGE,
            };
            // Some cameras compress or send nothing as long as the graph shows nobody who listens.
            declaring
                .endpoint(EndpointKind::Subscription, &Topic::new(&topic.topic, message).best_effort())?;
            eyes.push(Eye::open(session, camera, domain, topic, clock, real_time)?);
        }
        Ok(Self { eyes, _tokens: declaring.done() })
    }

    /// How many pictures were dropped because they came again or after a newer one.
    pub fn repeats(&self) -> u64 {
        self.eyes.iter().map(|eye| eye.arrivals.repeats()).sum()
    }
}

impl FrameSource for TopicCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        let newest = |eye: &mut Eye| {
            let name = &eye.name;
            let newer = eye.unpacked.wait_newer(eye.seen, PATIENCE);
            let (number, frame) =
                newer.ok_or_else(|| Error::Robot(format!("camera '{name}' sent nothing for 0.9 s")))?;
            eye.seen = number;
            frame.map_err(Error::Robot)
        };
        self.eyes.iter_mut().map(newest).collect()
    }
}
