//! What is on the zenoh network: policies, arms and their topics, with measured rates and ages.

use crate::link::failed;
use crate::ros2::keys::Attachment;
use crate::ros2::messages::{self, CompressedImage, Image, JointState};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{Clock, Error, MonotonicClock, PolicySpec, Result, Stamp};
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// A ROS 2 topic that somebody publishes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SeenTopic {
    /// Its name, with a leading slash.
    pub name: String,
    /// Its DDS type.
    pub message: String,
    /// Messages per second.
    pub hz: f64,
    /// Messages that the publisher counted and that did not come.
    pub lost: u64,
    /// How much faster than ours the publisher's clock runs, s per s; `None` from fewer than three messages.
    pub clock_drift: Option<f64>,
    /// For joint states: the joints.
    pub joints: Vec<String>,
    /// For pictures: width and height.
    pub size: Option<(u32, u32)>,
    /// Messages that could not be understood.
    pub torn: u64,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Survey {
    /// For how long was listened, s.
    pub listened_secs: f64,
    /// Base keys under which a policy waits, once per policy.
    pub policies: Vec<String>,
    /// ROS 2 nodes, by name.
    pub nodes: Vec<String>,
    /// ROS 2 actions that somebody serves, each with its type: `/gripper_controller/gripper_cmd (control_msgs/action/GripperCommand)`.
    pub actions: Vec<String>,
    /// Topics on which something came.
    pub topics: Vec<SeenTopic>,
}

/// What is gathered of one topic.
#[derive(Default)]
struct Heard {
    message: String,
    arrivals: u64,
    first: Option<(Stamp, Attachment)>,
    last: Option<(Stamp, Attachment)>,
    joints: BTreeSet<String>,
    size: Option<(u32, u32)>,
    torn: u64,
}

/// Listens for `secs` to the topics of a ROS domain and asks who is alive.
///
/// # Errors
/// The session is closed.
pub fn survey(session: &Session, domain: u32, secs: f64) -> Result<Survey> {
    let clock = Arc::new(MonotonicClock::new());
    let heard: Arc<Mutex<BTreeMap<String, Heard>>> = Arc::default();
    let key = format!("{domain}/**");
    let ears = session.declare_subscriber(key.as_str()).callback({
        let (heard, clock) = (heard.clone(), clock.clone());
        move |sample: Sample| {
            let now = clock.now();
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            listen(&mut heard, &sample, now);
        }
    });
    let ears = ears.wait().map_err(|e| failed(&key, e))?;
    let begun = clock.now();
    std::thread::sleep(Duration::from_secs_f64(secs.clamp(0.1, 60.0)));
    let listened_secs = clock.now().secs_since(begun);
    drop(ears);
    let alive = |key: &str| -> Result<Vec<String>> {
        let replies = session.liveliness().get(key).wait().map_err(|e| failed(key, e))?;
        Ok(replies
            .into_iter()
            .filter_map(|reply| reply.result().ok().map(|sample| sample.key_expr().to_string()))
            .collect())
    };
    let mut policies: Vec<String> = alive("**/policy/*/alive")?
        .iter()
        .filter_map(|token| token.split("/policy/").next().map(str::to_owned))
        .collect();
    policies.sort();
    let tokens = alive(&format!("@ros2_lv/{domain}/**"))?;
    let mut actions: Vec<String> = tokens.iter().filter_map(|token| action(token)).collect();
    actions.sort();
    let mut nodes: Vec<String> = tokens
        .iter()
        .filter(|token| token.contains("/NN/"))
        .filter_map(|token| token.rsplit('/').next().map(str::to_owned))
        .collect();
    nodes.sort();
    let heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let topics = heard.into_iter().map(|(name, heard)| seen(name, heard, listened_secs)).collect();
    Ok(Survey { listened_secs, policies, nodes, actions, topics })
}

/// The action whose goals the service of a token takes, if it is one.
fn action(token: &str) -> Option<String> {
    let (_, service) = token.split_once("/SS/")?;
    let mut parts = service.split('/').skip(3);
    let name = parts.next()?.strip_suffix("%_action%send_goal")?.replace('%', "/");
    let kind = parts.next()?.strip_suffix("_SendGoal_")?.replace("::dds_::", "::").replace("::", "/");
    Some(format!("{name} ({kind})"))
}

fn listen(heard: &mut BTreeMap<String, Heard>, sample: &Sample, now: Stamp) {
    // DOMAIN/TOPIC.../TYPE/HASH
    let parts: Vec<&str> = sample.key_expr().as_str().split('/').collect();
    let [_, topic @ .., message, _] = parts.as_slice() else { return };
    let entry = heard.entry(format!("/{}", topic.join("/"))).or_default();
    entry.message = (*message).to_owned();
    entry.arrivals += 1;
    let payload = sample.payload().to_bytes();
    if let Some(Ok(beside)) = sample.attachment().map(|bytes| Attachment::decode(&bytes.to_bytes())) {
        entry.first.get_or_insert((now, beside));
        entry.last = Some((now, beside));
    }
    if message.contains("JointState_") {
        match messages::decode::<JointState>(&payload) {
            Ok(state) => entry.joints.extend(state.name),
            Err(_) => entry.torn += 1,
        }
    } else if message.contains("::Image_") {
        match messages::decode::<Image>(&payload) {
            Ok(image) => entry.size = Some((image.width, image.height)),
            Err(_) => entry.torn += 1,
        }
    } else if message.contains("CompressedImage_") {
        let size = messages::decode::<CompressedImage>(&payload).and_then(|image| {
            let reader = image::ImageReader::new(Cursor::new(&image.data)).with_guessed_format();
            let size = reader.map_err(image::ImageError::IoError).and_then(|reader| reader.into_dimensions());
            size.map_err(|e| Error::Robot(e.to_string()))
        });
        match size {
            Ok(size) => entry.size = Some(size),
            Err(_) => entry.torn += 1,
        }
    }
}

fn seen(name: String, heard: Heard, listened_secs: f64) -> SeenTopic {
    let between = heard.first.zip(heard.last);
    let counted = between.map_or(heard.arrivals, |((_, a), (_, b))| {
        u64::try_from(b.sequence.saturating_sub(a.sequence)).unwrap_or(0).saturating_add(1)
    });
    let drift = between.and_then(|((here, a), (there, b))| {
        let ours = there.secs_since(here);
        (heard.arrivals > 2 && ours > 0.0).then(|| b.stamp.secs_since(a.stamp) / ours - 1.0)
    });
    SeenTopic {
        name,
        message: heard.message,
        hz: heard.arrivals as f64 / listened_secs.max(1e-3),
        lost: counted.saturating_sub(heard.arrivals),
        clock_drift: drift,
        joints: heard.joints.into_iter().collect(),
        size: heard.size,
        torn: heard.torn,
    }
}

impl Survey {
    /// What a policy needs and is not there, in words: joints, cameras, their sizes and their rates.
    pub fn missing(&self, spec: &PolicySpec) -> Vec<String> {
        let mut missing = Vec::new();
        let robot = &spec.embodiment;
        let known: BTreeSet<&str> =
            self.topics.iter().flat_map(|topic| topic.joints.iter().map(String::as_str)).collect();
        if known.is_empty() {
            missing.push("joint states: nobody publishes them".into());
        } else {
            for joint in robot.joint_names().into_iter().filter(|joint| !known.contains(joint)) {
                missing.push(format!("joint '{joint}': no joint state names it"));
            }
        }
        for camera in &robot.cameras {
            let (name, w, h) = (&camera.name, camera.width, camera.height);
            let topic =
                self.topics.iter().find(|t| t.size.is_some() && t.name.split('/').any(|part| part == name));
            match topic.map(|topic| (topic, topic.size.unwrap_or_default())) {
                None => missing.push(format!("camera '{name}': no topic has its name and pictures")),
                Some((topic, size)) if size != (w, h) => missing.push(format!(
                    "camera '{name}': {} has {}x{}, expected {w}x{h}",
                    topic.name, size.0, size.1
                )),
                Some((topic, _)) => {
                    // One picture per chunk is the least that a policy can work with.
                    let wanted = robot.control_hz / spec.execute.max(1) as f64;
                    if topic.hz < wanted {
                        let got = topic.hz;
                        missing.push(format!(
                            "camera '{name}': {got:.1} pictures per s, expected {wanted:.1} or more"
                        ));
                    }
                }
            }
        }
        missing
    }
}
