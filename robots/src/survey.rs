//! What is on the zenoh network: policies, arms and their topics, with measured rates and ages.

use crate::link::{alive, base_of, failed};
use crate::ros2::keys::Attachment;
use crate::ros2::messages::{self, CompressedImage, Image, JointState};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{Clock, Embodiment, Error, MonotonicClock, PolicySpec, Result, Stamp};
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// A clock that runs this much faster or slower than ours is off, ms per s.
const CLOCK_IS_OFF_MS: f64 = 50.0;
/// A camera with fewer pictures than this part of the robot's control ticks is slow.
const SLOW_PART: f64 = 0.8;

/// A ROS 2 topic that somebody publishes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SeenTopic {
    /// Its name, with a leading slash.
    pub name: String,
    /// Its DDS type.
    pub message: String,
    /// From one message to the next, on the average of all the time that was listened, ms.
    pub period_ms: f64,
    /// Messages that the publisher counted and that did not come.
    pub lost: u64,
    /// How much faster than ours the publisher's clock runs, ms per s; `None` from fewer than three messages.
    pub clock_drift_ms: Option<f64>,
    /// For joint states: the joints.
    pub joints: Vec<String>,
    /// For pictures: width and height.
    pub size: Option<(u32, u32)>,
    /// Messages that could not be understood.
    pub torn: u64,
}

/// A robot that looks for policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SeenRobot {
    /// Its base key.
    pub key: String,
    /// The ID of the policy that it asks, if it has found one.
    pub asks: Option<String>,
}

/// Everything that was seen. What is measured in time is under the keys that end in `_ms`, and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Survey {
    /// For how long was listened, ms.
    pub listened_ms: f64,
    /// Base keys under which a policy waits, once per policy; with wildcards if it serves every robot that matches.
    pub policies: Vec<String>,
    /// Robots, by base key.
    pub robots: Vec<SeenRobot>,
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
    let listened_ms = clock.now().secs_since(begun) * 1e3;
    drop(ears);
    let (policies, robots) = met(
        &alive(session, "**/policy/*/alive")?,
        &alive(session, "**/robot/*/alive")?,
        &alive(session, "**/robot/*/asks/*")?,
    );
    let tokens = alive(session, &format!("@ros2_lv/{domain}/**"))?;
    let mut actions: Vec<String> = tokens.iter().filter_map(|token| action(token)).collect();
    actions.sort();
    let mut nodes: Vec<String> = tokens
        .iter()
        .filter(|token| token.contains("/NN/"))
        .filter_map(|token| token.rsplit('/').next().map(str::to_owned))
        .collect();
    nodes.sort();
    let heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let topics = heard.into_iter().map(|(name, heard)| seen(name, heard, listened_ms)).collect();
    Ok(Survey { listened_ms, policies, robots, nodes, actions, topics })
}

/// Base keys of policies, and robots, by the tokens of policies, of robots and of who asks whom.
///
/// Two peers that are linked by a third do not see each other's tokens: such a policy is known by the robot that asks it.
fn met(policies: &[String], robots: &[String], asks: &[String]) -> (Vec<String>, Vec<SeenRobot>) {
    let part = |token: &str, back: usize| token.rsplit('/').nth(back).unwrap_or_default().to_owned();
    let base = |token: &str| base_of(token).unwrap_or_default().to_owned();
    // BASE/policy/ID/alive, BASE/robot/NAME/alive, BASE/robot/NAME/asks/ID
    let asked: BTreeMap<String, String> = asks.iter().map(|token| (part(token, 2), part(token, 0))).collect();
    let mut robots: Vec<SeenRobot> = robots
        .iter()
        .map(|token| SeenRobot { key: base(token), asks: asked.get(&part(token, 1)).cloned() })
        .collect();
    robots.sort();
    let known: BTreeSet<String> = policies.iter().map(|token| part(token, 1)).collect();
    let told: BTreeSet<(String, String)> = asks
        .iter()
        .map(|token| (base(token), part(token, 0)))
        .filter(|(_, id)| !known.contains(id))
        .collect();
    let mut bases: Vec<String> = policies.iter().map(|token| base(token)).collect();
    bases.extend(told.into_iter().map(|(base, _)| base));
    bases.sort();
    (bases, robots)
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

fn seen(name: String, heard: Heard, listened_ms: f64) -> SeenTopic {
    let between = heard.first.zip(heard.last);
    let counted = between.map_or(heard.arrivals, |((_, a), (_, b))| {
        u64::try_from(b.sequence.saturating_sub(a.sequence)).unwrap_or(0).saturating_add(1)
    });
    let drift = between.and_then(|((here, a), (there, b))| {
        let ours = there.secs_since(here);
        (heard.arrivals > 2 && ours > 0.0).then(|| 1e3 * (b.stamp.secs_since(a.stamp) / ours - 1.0))
    });
    SeenTopic {
        name,
        message: heard.message,
        period_ms: listened_ms / heard.arrivals.max(1) as f64,
        lost: counted.saturating_sub(heard.arrivals),
        clock_drift_ms: drift,
        joints: heard.joints.into_iter().collect(),
        size: heard.size,
        torn: heard.torn,
    }
}

impl SeenTopic {
    /// Messages per second.
    pub fn hz(&self) -> f64 {
        1e3 / self.period_ms.max(1e-3)
    }

    /// How much faster than ours the publisher's clock runs, ms per s, if that is too much.
    pub fn clock_off_ms(&self) -> Option<f64> {
        self.clock_drift_ms.filter(|drift| drift.abs() > CLOCK_IS_OFF_MS)
    }

    /// Whether it has the pictures of this camera.
    fn shows(&self, camera: &str) -> bool {
        self.size.is_some() && self.name.split('/').any(|part| part == camera)
    }
}

impl Survey {
    /// What is not as it should be whatever the policy, in words: cameras of the robot that are slower than its control
    /// loop, and clocks that do not run as ours does.
    pub fn amiss(&self, robot: &Embodiment) -> Vec<String> {
        let mut amiss = Vec::new();
        let wanted = SLOW_PART * robot.control_hz;
        for camera in &robot.cameras {
            let slow = |topic: &&SeenTopic| topic.shows(&camera.name) && topic.hz() < wanted;
            amiss.extend(self.topics.iter().filter(slow).map(|topic| {
                format!(
                    "camera '{}': {} is slow, expected {wanted:.1} pictures per s or more",
                    camera.name, topic.name
                )
            }));
        }
        for topic in &self.topics {
            if let Some(drift) = topic.clock_off_ms() {
                let (name, way) = (&topic.name, if drift > 0.0 { "fast" } else { "slow" });
                amiss.push(format!(
                    "{name}: its clock runs {way}, expected within {CLOCK_IS_OFF_MS:.0} ms per s of ours"
                ));
            }
        }
        amiss
    }

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
            let topic = self.topics.iter().find(|topic| topic.shows(name));
            match topic.map(|topic| (topic, topic.size.unwrap_or_default())) {
                None => missing.push(format!("camera '{name}': no topic has its name and pictures")),
                Some((topic, size)) if size != (w, h) => missing.push(format!(
                    "camera '{name}': {} has {}x{}, expected {w}x{h}",
                    topic.name, size.0, size.1
                )),
                Some((topic, _)) => {
                    // One picture per chunk is the least that a policy can work with.
                    let wanted = robot.control_hz / spec.execute.max(1) as f64;
                    if topic.hz() < wanted {
                        missing.push(format!(
                            "camera '{name}': {} is slow, expected {wanted:.1} pictures per s or more",
                            topic.name
                        ));
                    }
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What three seconds of listening gathered: pictures at `hz` by a publisher whose clock runs `rate` times ours.
    fn camera(name: &str, hz: f64, rate: f64) -> SeenTopic {
        let arrivals = (3.0 * hz) as u64;
        let heard = |secs: f64, sequence: u64| {
            let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
            let beside = Attachment { sequence, stamp: Stamp::from_secs(5.0 + secs * rate), gid: [0; 16] };
            Some((Stamp::from_secs(secs), beside))
        };
        let (first, last) = (heard(0.1, 1), heard(2.9, arrivals));
        let gathered = Heard { arrivals, first, last, size: Some((96, 96)), ..Heard::default() };
        seen(format!("/{name}/image_raw"), gathered, 3000.0)
    }

    #[test]
    fn policies_and_robots_are_known_by_their_tokens() {
        let tokens = |tokens: &[&str]| tokens.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (policies, robots) = met(
            &tokens(&["vela/*/policy/p1/alive", "vela/arm1/policy/p2/alive"]),
            &tokens(&["vela/arm2/robot/r2-0/alive", "vela/arm1/robot/r1-0/alive", "shop/a/robot/r3-0/alive"]),
            &tokens(&["vela/arm1/robot/r1-0/asks/p1", "shop/a/robot/r3-0/asks/p9"]),
        );
        assert_eq!(policies, ["shop/a", "vela/*", "vela/arm1"], "p9 is known by whom it answers");
        let robot = |key: &str, asks: Option<&str>| SeenRobot { key: key.into(), asks: asks.map(Into::into) };
        let asking = [robot("shop/a", Some("p9")), robot("vela/arm1", Some("p1")), robot("vela/arm2", None)];
        assert_eq!(robots, asking);
    }

    #[test]
    fn a_slow_camera_and_a_clock_that_drifts_are_named() -> Result<()> {
        let robot = Embodiment::so101()?;
        let amiss =
            |topics: &[SeenTopic]| Survey { topics: topics.to_vec(), ..Survey::default() }.amiss(&robot);
        let good = [camera("front", 30.0, 1.0), camera("wrist", 28.0, 0.97)];
        assert_eq!(amiss(&good), Vec::<String>::new());
        assert!((good[0].hz() - 30.0).abs() < 1e-9 && good[0].lost == 0, "{good:?}");
        let slow = "camera 'wrist': /wrist/image_raw is slow, expected 24.0 pictures per s or more";
        assert_eq!(amiss(&[camera("front", 30.0, 1.0), camera("wrist", 10.0, 1.0)]), [slow]);
        // No camera of the robot's: how fast it is to be nobody knows.
        assert_eq!(amiss(&[camera("overhead", 1.0, 1.0)]), Vec::<String>::new());
        let fast = camera("front", 30.0, 1.1);
        assert!(fast.clock_off_ms().is_some_and(|drift| (drift - 100.0).abs() < 1e-6), "{fast:?}");
        let clock = |way: &str| {
            format!("/front/image_raw: its clock runs {way}, expected within 50 ms per s of ours")
        };
        assert_eq!(amiss(&[fast]), [clock("fast")]);
        assert_eq!(amiss(&[camera("front", 30.0, 0.9)]), [clock("slow")]);
        Ok(())
    }

    #[test]
    fn what_is_measured_in_time_has_keys_that_say_so() -> Result<()> {
        let survey = |hz: f64, rate: f64| -> std::result::Result<serde_json::Value, serde_json::Error> {
            let topics = vec![camera("front", hz, rate)];
            let mut said =
                serde_json::to_value(Survey { topics, listened_ms: 100.0 * hz, ..Survey::default() })?;
            let timed = |fields: Option<&mut serde_json::Map<_, _>>| {
                fields.map(|fields| fields.retain(|key: &String, _| !key.ends_with("_ms")))
            };
            timed(said.as_object_mut());
            timed(said["topics"][0].as_object_mut());
            Ok(said)
        };
        let json = |error: serde_json::Error| Error::Robot(error.to_string());
        assert_eq!(survey(30.0, 1.0).map_err(json)?, survey(10.0, 1.1).map_err(json)?);
        Ok(())
    }
}
