//! What is on the zenoh network: policies, arms and their topics, with measured rates and ages.

mod met;
mod verdict;

use crate::link::{alive, failed};
use crate::ros2::keys::{self, Attachment};
use crate::ros2::listen_openly;
use crate::ros2::messages::{self, CompressedImage, Image, JointState};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{Clock, Error, MonotonicClock, Result, Stamp, unix_time};
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// How long the publishers of a network may take to be known, s.
const KNOWN_WITHIN_SECS: f64 = 0.5;
/// A stamp of the attachments from here on is a date (September 2001); one before it counts from the publisher's start.
const DATES_FROM: Stamp = Stamp(1_000_000_000_000_000_000);

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
    /// How far ahead of ours the publisher's clock is, ms, by the message that came soonest after it was stamped; `None`
    /// where the stamps are no dates.
    pub clock_offset_ms: Option<f64>,
    /// For joint states: the joints.
    pub joints: Vec<String>,
    /// For pictures: width and height.
    pub size: Option<(u32, u32)>,
    /// Messages that could not be understood.
    pub torn: u64,
}

/// A ROS 2 topic that somebody publishes and on which nothing came.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SilentTopic {
    /// Its name, with a leading slash.
    pub name: String,
    /// Its DDS type.
    pub message: String,
}

/// A robot that looks for policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SeenRobot {
    /// Its base key.
    pub key: String,
    /// The policy that it asks, if it has found one: the base keys of that policy, and which of several with the same keys
    /// it is.
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
    /// Topics with a publisher, all the time, and nothing that came: a camera that is dead, or what is only said now and
    /// then.
    pub silent: Vec<SilentTopic>,
}

/// What is gathered of one topic.
#[derive(Default)]
struct Heard {
    message: String,
    arrivals: u64,
    first: Option<(Stamp, Attachment)>,
    last: Option<(Stamp, Attachment)>,
    offset_ms: Option<f64>,
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
    let secs = secs.clamp(0.1, 60.0);
    let published = known_publishers(session, domain, secs.min(KNOWN_WITHIN_SECS), clock.as_ref())?;
    let pictures = published.iter().filter(|topic| topic.has_pictures());
    let pictures: Vec<(&str, &str)> = pictures.map(|topic| (&*topic.name, &*topic.message)).collect();
    let open = listen_openly(session, domain, &pictures)?;
    let heard: Arc<Mutex<BTreeMap<String, Heard>>> = Arc::default();
    let key = format!("{domain}/**");
    let ears = session.declare_subscriber(key.as_str()).callback({
        let (heard, clock) = (heard.clone(), clock.clone());
        move |sample: Sample| {
            let now = (clock.now(), unix_time());
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            listen(&mut heard, &sample, now);
        }
    });
    let ears = ears.wait().map_err(|e| failed(&key, e))?;
    let begun = clock.now();
    std::thread::sleep(Duration::from_secs_f64(secs));
    let listened_ms = clock.now().secs_since(begun) * 1e3;
    drop((ears, open));
    let (policies, robots) = met::met(
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
    let still: BTreeSet<SilentTopic> = tokens.iter().filter_map(|token| topic_of(token)).collect();
    let silent =
        published.into_iter().filter(|topic| still.contains(topic) && !heard.contains_key(&topic.name));
    let silent = silent.collect();
    let topics = heard.into_iter().map(|(name, heard)| seen(name, heard, listened_ms)).collect();
    Ok(Survey { listened_ms, policies, robots, nodes, actions, topics, silent })
}

/// What is published, as soon as anything is: a session that was just opened may still know nobody.
fn known_publishers(
    session: &Session,
    domain: u32,
    within_secs: f64,
    clock: &dyn Clock,
) -> Result<BTreeSet<SilentTopic>> {
    let begun = clock.now();
    loop {
        let tokens = alive(session, &keys::publishers(domain))?;
        let published: BTreeSet<SilentTopic> = tokens.iter().filter_map(|token| topic_of(token)).collect();
        if !published.is_empty() || clock.now().secs_since(begun) > within_secs {
            return Ok(published);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The topic of a publisher's token.
fn topic_of(token: &str) -> Option<SilentTopic> {
    // @ros2_lv/DOMAIN/ZID/NODE/ENTITY/MP/ENCLAVE/NAMESPACE/NAME/TOPIC/TYPE/HASH/QOS
    let parts: Vec<&str> = token.split('/').collect();
    let [_, _, _, _, _, "MP", _, _, _, topic, message, ..] = parts.as_slice() else { return None };
    Some(SilentTopic { name: topic.replace('%', "/"), message: (*message).to_owned() })
}

/// The action whose goals the service of a token takes, if it is one.
fn action(token: &str) -> Option<String> {
    let (_, service) = token.split_once("/SS/")?;
    let mut parts = service.split('/').skip(3);
    let name = parts.next()?.strip_suffix("%_action%send_goal")?.replace('%', "/");
    let kind = parts.next()?.strip_suffix("_SendGoal_")?.replace("::dds_::", "::").replace("::", "/");
    Some(format!("{name} ({kind})"))
}

fn listen(heard: &mut BTreeMap<String, Heard>, sample: &Sample, (now, unix): (Stamp, Stamp)) {
    // DOMAIN/TOPIC.../TYPE/HASH
    let parts: Vec<&str> = sample.key_expr().as_str().split('/').collect();
    let [_, topic @ .., message, _] = parts.as_slice() else { return };
    let entry = heard.entry(format!("/{}", topic.join("/"))).or_default();
    entry.message = (*message).to_owned();
    entry.arrivals += 1;
    let payload = sample.payload().to_bytes();
    if let Some(Ok(beside)) = sample.attachment().map(|bytes| Attachment::decode(&bytes.to_bytes())) {
        entry.stamped(beside, now, unix);
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

impl Heard {
    /// What rode beside a message that came `now` on our own clock, at the date `unix`.
    fn stamped(&mut self, beside: Attachment, now: Stamp, unix: Stamp) {
        self.first.get_or_insert((now, beside));
        self.last = Some((now, beside));
        if beside.stamp >= DATES_FROM {
            // A message can only come after its stamp: the one that came soonest says most of the clock.
            let ahead_ms = beside.stamp.secs_since(unix) * 1e3;
            self.offset_ms = Some(self.offset_ms.map_or(ahead_ms, |most| most.max(ahead_ms)));
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
        clock_offset_ms: heard.offset_ms,
        joints: heard.joints.into_iter().collect(),
        size: heard.size,
        torn: heard.torn,
    }
}

impl SilentTopic {
    /// Whether pictures are to come on it. What shows depths is silent for a camera of colours.
    fn has_pictures(&self) -> bool {
        let pictures = ["::Image_", "::CompressedImage_"].iter().any(|kind| self.message.ends_with(kind));
        pictures && !self.name.ends_with("/compressedDepth")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_embodiment::Embodiment;

    /// What three seconds of listening gathered: pictures at `hz` by a publisher whose clock runs `rate` times ours.
    pub(super) fn camera(name: &str, hz: f64, rate: f64) -> SeenTopic {
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

    /// Messages that were stamped by a clock which is `ahead_ms` of ours, each so many ms before it came.
    fn stamped(start: Stamp, ahead_ms: f64, delays_ms: &[f64]) -> SeenTopic {
        let mut gathered = Heard { arrivals: delays_ms.len() as u64, ..Heard::default() };
        for (k, delay_ms) in delays_ms.iter().enumerate() {
            let sent = start.plus_secs(0.1 * k as f64);
            let came = sent.plus_secs(delay_ms * 1e-3);
            let beside =
                Attachment { sequence: k as i64 + 1, stamp: sent.plus_secs(ahead_ms * 1e-3), gid: [0; 16] };
            gathered.stamped(beside, Stamp::from_secs(came.secs_since(start)), came);
        }
        seen("/joint_states".into(), gathered, 1000.0)
    }

    #[test]
    fn a_clock_that_is_minutes_off_is_named() -> Result<()> {
        let robot = Embodiment::so101()?;
        let amiss =
            |topic: SeenTopic| Survey { topics: vec![topic], ..Survey::default() }.amiss(&robot, None);
        let today = Stamp(1_790_000_000_000_000_000);
        let minutes = 600_000.0;
        // The message that came soonest says it best.
        let behind = stamped(today, -minutes, &[5.0, 2.0, 250.0, 5.0]);
        assert!(behind.clock_offset_ms.is_some_and(|ms| (ms + minutes + 2.0).abs() < 1e-3), "{behind:?}");
        let said = |way: &str| {
            [format!("/joint_states: its clock is {way} ours, expected less than 100 ms between them")]
        };
        assert_eq!(amiss(stamped(today, -minutes, &[5.0, 2.0, 30.0, 5.0])), said("behind"));
        assert_eq!(amiss(stamped(today, minutes, &[2.0, 2.0, 2.0])), said("ahead of"));
        assert_eq!(amiss(stamped(today, 101.0, &[0.5, 0.5, 0.5])), said("ahead of"));
        assert_eq!(amiss(stamped(today, 99.0, &[0.5, 0.5, 0.5])), [""; 0]);
        assert_eq!(amiss(stamped(today, 0.0, &[150.0, 2.0, 3.0, 150.0])), [""; 0]);
        // One that counts from its start says no date.
        let since_start = stamped(Stamp::from_secs(3000.0), -minutes, &[2.0, 2.0, 2.0]);
        assert_eq!(since_start.clock_offset_ms, None);
        assert_eq!(amiss(since_start), [""; 0]);
        Ok(())
    }

    #[test]
    fn a_publisher_s_token_says_its_topic() {
        let token = "@ros2_lv/0/aac3/0/10/MP/%/%/cam/%arm%image_raw/sensor_msgs::msg::dds_::Image_/RIHS01_d3/::,10:,:,:,,";
        let topic = topic_of(token).unwrap_or_default();
        assert_eq!((topic.name.as_str(), topic.has_pictures()), ("/arm/image_raw", true));
        assert_eq!(topic.message, "sensor_msgs::msg::dds_::Image_");
        assert_eq!(topic_of(&token.replace("/MP/", "/MS/")), None);
        assert_eq!(topic_of("@ros2_lv/0/aac3/0/0/NN/%/%/cam"), None);
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
