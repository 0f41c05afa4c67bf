//! What is not as it should be on the network, and what a policy misses there.

use super::{SeenTopic, SilentTopic, Survey};
use crate::arm_file::ArmFile;
use crate::ros2::cameras::{CameraTopic, ImageKind};
use std::collections::BTreeSet;
use vela_embodiment::{Camera, Embodiment, PolicySpec};

/// A clock that runs this much faster or slower than ours is off, ms per s.
const CLOCK_RUNS_OFF_MS: f64 = 50.0;
/// A clock that is this far from ours is off, ms.
const CLOCK_IS_OFF_MS: f64 = 100.0;
/// A camera with fewer pictures than this part of the robot's control ticks is slow.
const SLOW_PART: f64 = 0.8;

impl SeenTopic {
    /// Messages per second.
    pub fn hz(&self) -> f64 {
        1e3 / self.period_ms.max(1e-3)
    }

    /// How much faster than ours the publisher's clock runs, ms per s, if that is too much.
    pub fn clock_runs_off_ms(&self) -> Option<f64> {
        self.clock_drift_ms.filter(|drift| drift.abs() > CLOCK_RUNS_OFF_MS)
    }

    /// How far ahead of ours the publisher's clock is, ms, if that is too much.
    pub fn clock_is_off_ms(&self) -> Option<f64> {
        self.clock_offset_ms.filter(|offset| offset.abs() >= CLOCK_IS_OFF_MS)
    }

    /// Whether it has the pictures of this camera: on the topic that the arm's file says, or else with the camera's name
    /// in its own.
    fn shows(&self, camera: &str, arm: Option<&ArmFile>) -> bool {
        self.size.is_some()
            && match arm {
                Some(arm) => arm.cameras.get(camera).is_some_and(|at| same(&at.topic, &self.name)),
                None => self.name.split('/').any(|part| part == camera),
            }
    }
}

/// Whether two names are of the same topic.
fn same(one: &str, other: &str) -> bool {
    one.trim_matches('/') == other.trim_matches('/')
}

/// The topic of the arm's joint states, by its file.
fn joint_states(arm: Option<&ArmFile>) -> Option<&str> {
    arm.and_then(|arm| arm.ros2.as_ref()).map(|ros2| ros2.joint_states.as_str())
}

/// What came on a camera's topic and what the arm's file says comes there, if they differ.
fn other_kind(at: &CameraTopic, topic: &SeenTopic) -> Option<String> {
    let (expected, word) = match at.kind {
        ImageKind::Compressed => ("CompressedImage", "raw"),
        ImageKind::Raw => ("Image", "compressed"),
    };
    (!topic.message.ends_with(&format!("::{expected}_"))).then(|| {
        format!(
            "{} has no {expected}, which the arm's file expects: kind = \"{word}\" is the other",
            topic.name
        )
    })
}

impl Survey {
    /// What is not as it should be whatever the policy, in words: cameras of the robot that are slower than its control
    /// loop, cameras and joint states that somebody publishes and that do not come, and clocks that are not where ours is
    /// or do not run as ours does. With the arm's own file its topics are those that the file says.
    pub fn amiss(&self, robot: &Embodiment, arm: Option<&ArmFile>) -> Vec<String> {
        let mut amiss = Vec::new();
        let wanted = SLOW_PART * robot.control_hz;
        for camera in &robot.cameras {
            let slow = |topic: &&SeenTopic| topic.shows(&camera.name, arm) && topic.hz() < wanted;
            amiss.extend(self.topics.iter().filter(slow).map(|topic| {
                format!(
                    "camera '{}': {} is slow, expected {wanted:.1} pictures per s or more",
                    camera.name, topic.name
                )
            }));
        }
        let states = |topic: &SilentTopic| match joint_states(arm) {
            Some(name) => same(name, &topic.name),
            None => topic.name.ends_with("/joint_states"),
        };
        for topic in &self.silent {
            let what = match topic {
                _ if topic.has_pictures() => "picture",
                _ if states(topic) => "joint state",
                _ => continue,
            };
            amiss.push(format!("{}: somebody publishes it and no {what} came", topic.name));
        }
        for topic in &self.topics {
            let name = &topic.name;
            if let Some(offset) = topic.clock_is_off_ms() {
                let way = if offset > 0.0 { "ahead of" } else { "behind" };
                amiss.push(format!(
                    "{name}: its clock is {way} ours, expected less than {CLOCK_IS_OFF_MS:.0} ms between them"
                ));
            }
            if let Some(drift) = topic.clock_runs_off_ms() {
                let way = if drift > 0.0 { "fast" } else { "slow" };
                amiss.push(format!(
                    "{name}: its clock runs {way}, expected within {CLOCK_RUNS_OFF_MS:.0} ms per s of ours"
                ));
            }
        }
        amiss
    }

    /// What a policy needs and is not there, in words: joints, cameras, their sizes and their rates. With the arm's own
    /// file its names are those that the file says; the joints of an arm on USB are not looked for on the network.
    pub fn missing(&self, spec: &PolicySpec, arm: Option<&ArmFile>) -> Vec<String> {
        let mut missing = Vec::new();
        if arm.is_none_or(|arm| arm.servos.is_none()) {
            self.missing_joints(&spec.embodiment, arm, &mut missing);
        }
        // One picture per chunk is the least that a policy can work with.
        let wanted = spec.embodiment.control_hz / spec.execute.max(1) as f64;
        for camera in &spec.embodiment.cameras {
            if let Some(why) = self.missing_pictures(camera, wanted, arm) {
                missing.push(format!("camera '{}': {why}", camera.name));
            }
        }
        missing
    }

    fn missing_joints(&self, robot: &Embodiment, arm: Option<&ArmFile>, missing: &mut Vec<String>) {
        let place = joint_states(arm);
        let theirs = |topic: &&SeenTopic| place.is_none_or(|name| same(name, &topic.name));
        let said = self.topics.iter().filter(theirs).flat_map(|topic| &topic.joints);
        let known: BTreeSet<&str> = said.map(String::as_str).collect();
        if known.is_empty() {
            let place = place.map(|name| format!(" on {name}")).unwrap_or_default();
            missing.push(format!("joint states: nobody publishes them{place}"));
            return;
        }
        let names = arm.and_then(|arm| arm.ros2.as_ref()).map(|ros2| &ros2.joint_names);
        for joint in robot.joint_names() {
            match names.and_then(|names| names.get(joint)) {
                None if !known.contains(joint) => {
                    missing.push(format!("joint '{joint}': no joint state names it"));
                }
                Some(own) if !known.contains(own.as_str()) => {
                    missing.push(format!("joint '{joint}', the arm's '{own}': no joint state names it"));
                }
                _ => {}
            }
        }
    }

    /// Why there are no pictures for this camera, if there are none of its size and `wanted` a second.
    fn missing_pictures(&self, camera: &Camera, wanted: f64, arm: Option<&ArmFile>) -> Option<String> {
        let at = arm.and_then(|arm| arm.cameras.get(&camera.name));
        let Some(topic) = self.topics.iter().find(|topic| topic.shows(&camera.name, arm)) else {
            return Some(match (at, arm) {
                (Some(at), _) => format!("no pictures came on {}", at.topic),
                (None, Some(_)) => "the arm's file says no topic of it".into(),
                (None, None) => "no topic has its name and pictures".into(),
            });
        };
        let ((w, h), (width, height)) = ((camera.width, camera.height), topic.size.unwrap_or_default());
        if (width, height) != (w, h) {
            return Some(format!("{} has {width}x{height}, expected {w}x{h}", topic.name));
        }
        let other = at.and_then(|at| other_kind(at, topic));
        let slow = || format!("{} is slow, expected {wanted:.1} pictures per s or more", topic.name);
        other.or_else(|| (topic.hz() < wanted).then(slow))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::camera;
    use super::*;
    use std::path::Path;
    use vela_embodiment::{ActionSpace, Result};

    fn seen(topics: &[SeenTopic]) -> Survey {
        Survey { topics: topics.to_vec(), ..Survey::default() }
    }

    #[test]
    fn a_slow_camera_and_a_clock_that_drifts_are_named() -> Result<()> {
        let robot = Embodiment::so101()?;
        let amiss = |topics: &[SeenTopic]| seen(topics).amiss(&robot, None);
        let good = [camera("front", 30.0, 1.0), camera("wrist", 28.0, 0.97)];
        assert_eq!(amiss(&good), Vec::<String>::new());
        assert!((good[0].hz() - 30.0).abs() < 1e-9 && good[0].lost == 0, "{good:?}");
        let slow = "camera 'wrist': /wrist/image_raw is slow, expected 24.0 pictures per s or more";
        assert_eq!(amiss(&[camera("front", 30.0, 1.0), camera("wrist", 10.0, 1.0)]), [slow]);
        // No camera of the robot's: how fast it is to be nobody knows.
        assert_eq!(amiss(&[camera("overhead", 1.0, 1.0)]), Vec::<String>::new());
        let fast = camera("front", 30.0, 1.1);
        assert!(fast.clock_runs_off_ms().is_some_and(|drift| (drift - 100.0).abs() < 1e-6), "{fast:?}");
        let clock = |way: &str| {
            format!("/front/image_raw: its clock runs {way}, expected within 50 ms per s of ours")
        };
        assert_eq!(amiss(&[fast]), [clock("fast")]);
        assert_eq!(amiss(&[camera("front", 30.0, 0.9)]), [clock("slow")]);
        Ok(())
    }

    #[test]
    fn what_is_published_and_does_not_come_is_amiss_where_it_should_come_all_the_time() -> Result<()> {
        let robot = Embodiment::so101()?;
        let silent = |name: &str, message: &str| SilentTopic { name: name.into(), message: message.into() };
        let image = "sensor_msgs::msg::dds_::Image_";
        let survey = Survey {
            silent: vec![
                silent("/front/image_raw", image),
                silent("/front/image_raw/compressedDepth", "sensor_msgs::msg::dds_::CompressedImage_"),
                silent("/joint_states", "sensor_msgs::msg::dds_::JointState_"),
                silent("/tf_static", "tf2_msgs::msg::dds_::TFMessage_"),
            ],
            ..Survey::default()
        };
        let amiss = [
            "/front/image_raw: somebody publishes it and no picture came",
            "/joint_states: somebody publishes it and no joint state came",
        ];
        assert_eq!(survey.amiss(&robot, None), amiss);
        Ok(())
    }

    /// The shipped file of a ROS 2 arm, with names of another maker's.
    #[test]
    fn an_arm_s_own_names_are_looked_for() -> Result<()> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/arms/so101-ros2.toml");
        let (mut arm, robot) = ArmFile::load(&file)?;
        if let Some(ros2) = &mut arm.ros2 {
            ros2.joint_states = "/arm/joint_states".into();
            ros2.joint_names = [("shoulder_pan".to_owned(), "joint_1".to_owned())].into();
        }
        let at = |topic: &str| CameraTopic { topic: topic.into(), kind: ImageKind::Raw };
        arm.cameras.insert("front".into(), at("/usb_cam/image_raw"));
        arm.cameras.insert("wrist".into(), at("tool/image_raw/"));
        let spec = PolicySpec {
            embodiment: robot.clone(),
            space: ActionSpace::JointPositions,
            horizon: 16,
            execute: 8,
            history: 1,
            checkpoint: "none".into(),
        };
        let states = |topic: &str, first: &str| {
            let mut joints: Vec<String> = robot.joint_names().into_iter().map(str::to_owned).collect();
            joints[0] = first.into();
            SeenTopic { name: topic.into(), joints, period_ms: 10.0, ..SeenTopic::default() }
        };
        let image = |name: &str| SeenTopic {
            message: "sensor_msgs::msg::dds_::Image_".into(),
            ..camera(name, 30.0, 1.0)
        };
        let topics = [states("/arm/joint_states", "joint_1"), image("usb_cam"), image("tool")];
        let missing = |topics: &[SeenTopic], arm: Option<&ArmFile>| seen(topics).missing(&spec, arm);
        assert_eq!(missing(&topics, Some(&arm)), Vec::<String>::new());
        assert_eq!(
            missing(&topics, None),
            [
                "joint 'shoulder_pan': no joint state names it",
                "camera 'front': no topic has its name and pictures",
                "camera 'wrist': no topic has its name and pictures"
            ]
        );
        // Slow ones are found by their own names too.
        let slow = "camera 'front': /usb_cam/image_raw is slow, expected 24.0 pictures per s or more";
        let crawling = [camera("usb_cam", 10.0, 1.0)];
        assert_eq!(seen(&crawling).amiss(&robot, Some(&arm)), [slow]);
        assert_eq!(seen(&crawling).amiss(&robot, None), Vec::<String>::new());
        // Names that the file has and the network has not; pictures of the other kind.
        let compressed =
            SeenTopic { message: "sensor_msgs::msg::dds_::CompressedImage_".into(), ..image("usb_cam") };
        arm.cameras.remove("wrist");
        assert_eq!(
            missing(&[states("/arm/joint_states", "shoulder_pan"), compressed, image("wrist")], Some(&arm)),
            [
                "joint 'shoulder_pan', the arm's 'joint_1': no joint state names it",
                "camera 'front': /usb_cam/image_raw has no Image, which the arm's file expects: kind = \"compressed\" \
                 is the other",
                "camera 'wrist': the arm's file says no topic of it"
            ]
        );
        assert_eq!(
            missing(&[states("/joint_states", "joint_1")], Some(&arm))[..2],
            [
                "joint states: nobody publishes them on /arm/joint_states",
                "camera 'front': no pictures came on /usb_cam/image_raw"
            ]
        );
        Ok(())
    }
}
