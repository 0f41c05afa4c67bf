//! The arm seen by a ROS 2 node on zenoh.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, eventually};
use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use vela_embodiment::{Embodiment, Error, Result, unix_time};
use vela_robots::ros2::keys::{self, Attachment, Topic};
use vela_robots::ros2::messages::{
    Bool, CompressedImage, Float64MultiArray, Image, JointState, JointTrajectory, Layout, Text, TfMessage,
    Time, TrajectoryPoint, decode, encode,
};
use vela_robots::ros2::{DOMAIN, EMERGENCY_STOP, FORWARD, GRIPPER, Node};
use vela_robots::{ControlEvent, ControlOptions, Controller, State, loopback_pair};
use zenoh::Wait;
use zenoh::sample::Sample;

type Heard = Arc<Mutex<BTreeMap<String, (Vec<u8>, Vec<u8>)>>>;

fn link(error: impl std::fmt::Display) -> Error {
    Error::Link(error.to_string())
}

type Standing = Controller<FakeArm, FakeCameras, FakePolicy>;

/// An arm that stands, what its loop tells, and what the arm is. The loop is patient, so that a machine that is busy elsewhere
/// does not end it.
fn standing() -> Result<(Standing, Receiver<ControlEvent>, Embodiment)> {
    let arm = FakeArm::real_time()?;
    let embodiment = arm.embodiment.clone();
    let cameras = FakeCameras::of(&arm);
    let mut policy = FakePolicy::new()?;
    policy.step = 0.0;
    let patient = f64::INFINITY;
    let options = ControlOptions {
        max_frame_age_secs: patient,
        stop_after_hold_secs: patient,
        start_within_secs: patient,
        ..ControlOptions::default()
    };
    let (controller, events) = Controller::start(arm, cameras, policy, "go on", &options)?;
    Ok((controller, events, embodiment))
}

#[test]
fn a_ros_2_listener_hears_joints_pictures_and_the_description_and_may_command() -> Result<()> {
    let (robot, listener) = loopback_pair()?;
    let heard: Heard = Arc::default();
    let _ears = listener
        .declare_subscriber("0/**")
        .callback({
            let heard = heard.clone();
            move |sample: Sample| {
                let attachment = sample.attachment().map(|a| a.to_bytes().into_owned()).unwrap_or_default();
                let entry = (sample.payload().to_bytes().into_owned(), attachment);
                let topic = sample.key_expr().as_str().split("_msgs::").next().unwrap_or_default().to_owned();
                let topic = topic.rsplit_once('/').map_or(String::new(), |(topic, _)| topic.to_owned());
                if let Ok(mut heard) = heard.lock() {
                    heard.insert(topic, entry);
                }
            }
        })
        .wait()
        .map_err(link)?;
    let (controller, events, embodiment) = standing()?;
    let handle = controller.handle();
    let mut node = Node::start(&robot, &embodiment, &handle)?;
    let mut pump = |done: &dyn Fn() -> bool| {
        eventually(|| {
            let told = events.try_iter().all(|event| node.publish(&event).is_ok());
            told && done()
        })
    };
    let has = |topic: &str| heard.lock().ok().and_then(|heard| heard.get(topic).cloned());
    assert!(pump(&|| has("0/joint_states").is_some() && has("0/robot_description").is_some()));
    assert!(pump(&|| has("0/wrist/image_raw/compressed").is_some()));

    let (payload, attachment) = has("0/joint_states").unwrap_or_default();
    let state: JointState = decode(&payload)?;
    assert_eq!(state.name, embodiment.joint_names());
    assert_eq!(state.position.len(), 6);
    let beside = Attachment::decode(&attachment)?;
    assert!(beside.sequence > 0);
    // What ROS 2's tools expect: the time since 1970, and an identity that the endpoint's token tells.
    assert_eq!(state.header.stamp, Time::from(beside.stamp));
    assert!(unix_time().secs_since(beside.stamp).abs() < 60.0, "{:?}", beside.stamp);
    let picture: CompressedImage = decode(&has("0/wrist/image_raw/compressed").unwrap_or_default().0)?;
    let decoded = image::load_from_memory(&picture.data).map_err(link)?;
    assert_eq!((decoded.width(), decoded.height(), picture.header.frame_id.as_str()), (96, 96, "wrist"));
    let description: Text = decode(&has("0/robot_description").unwrap_or_default().0)?;
    assert!(description.data.contains("<robot"));

    // What `vela doctor` sees of it.
    let seen = std::thread::scope(|scope| {
        let survey = scope.spawn(|| vela_robots::survey::survey(&listener, DOMAIN, 1.0));
        assert!(pump(&|| survey.is_finished()));
        survey.join().unwrap_or_else(|_| Err(Error::Link("the survey died".into())))
    })?;
    let picture: Image = decode(&has("0/wrist/image_raw").unwrap_or_default().0)?;
    assert_eq!(
        (picture.width, picture.height, picture.step, picture.encoding.as_str()),
        (96, 96, 288, "rgb8")
    );
    let frames: TfMessage = decode(&has("0/tf").unwrap_or_default().0)?;
    assert!(frames.transforms.iter().any(|frame| frame.child_frame_id == "gripper"), "{frames:?}");
    let topic = |name: &str| seen.topics.iter().find(|topic| topic.name == name).cloned().unwrap_or_default();
    assert!(topic("/joint_states").hz() > 3.0 && topic("/joint_states").joints.len() == 6, "{seen:?}");
    assert_eq!(topic("/front/image_raw/compressed").size, Some((96, 96)));
    assert!(topic("/joint_states").clock_drift_ms.is_some_and(|drift| drift.abs() < 200.0), "{seen:?}");
    assert_eq!(seen.nodes, ["vela_so101"]);
    let mut spec = FakePolicy::new()?.spec;
    // Pictures per second depend on how busy the machine is: this asks for few.
    spec.execute = 1000;
    assert_eq!(seen.missing(&spec, None), Vec::<String>::new());
    spec.embodiment.cameras[0].width = 64;
    spec.embodiment.cameras[1].name = "overhead".into();
    let missing = seen.missing(&spec, None).join("; ");
    assert!(
        missing.contains("has 96x96, expected 64x96") && missing.contains("camera 'overhead'"),
        "{missing}"
    );

    // Every endpoint and the node itself can be discovered.
    let tokens = listener.liveliness().get("@ros2_lv/**").wait().map_err(link)?;
    let tokens: Vec<String> = tokens
        .into_iter()
        .filter_map(|reply| reply.result().ok().map(|sample| sample.key_expr().to_string()))
        .collect();
    assert_eq!(tokens.len(), 14, "{tokens:?}");
    assert!(tokens.iter().any(|t| t.contains("/NN/%/%/vela_so101")));
    let joints: Vec<_> = tokens.iter().filter(|t| t.contains("/MP/%/%/vela_so101/%joint_states/")).collect();
    assert_eq!(joints.iter().map(|token| keys::gid_of(token)).collect::<Vec<_>>(), [beside.gid]);
    assert!(tokens.iter().any(|t| t.contains("/MS/%/%/vela_so101/%arm_controller%joint_trajectory/")));

    let say = |topic: &Topic, bytes: Vec<u8>| listener.put(topic.key(DOMAIN), bytes).wait().map_err(link);
    say(&Topic::new("/instruction", &keys::STRING), encode(&Text { data: "touch the red cube".into() })?)?;
    assert!(pump(&|| handle.instruction() == "touch the red cube"));
    let moves = Topic::new("/arm_controller/joint_trajectory", &keys::JOINT_TRAJECTORY);
    say(&moves, b"nonsense".to_vec())?;
    let mut trajectory = JointTrajectory {
        joint_names: vec!["shoulder_pan".into()],
        points: vec![TrajectoryPoint {
            positions: vec![0.2],
            time_from_start: Time { sec: 2, nanosec: 0 },
            ..TrajectoryPoint::default()
        }],
        ..JointTrajectory::default()
    };
    say(&moves, encode(&trajectory)?)?;
    assert!(pump(&|| handle.joints().is_some_and(|reading| reading.positions[0] > 0.15)));
    trajectory.joint_names = vec!["tail".into()];
    say(&moves, encode(&trajectory)?)?;
    assert!(pump(&|| true));
    assert!(eventually(|| node.refusals().0 == 2), "{:?}", node.refusals());
    assert!(node.refusals().1.is_some_and(|why| why.contains("unknown joint 'tail'")));
    assert_ne!(handle.state(), State::Stopped { reason: String::new() });
    controller.finish();
    Ok(())
}

/// An arm that stands, its node, and somebody who commands it over ROS 2 topics.
#[test]
fn forward_commands_move_arm_and_gripper_side_by_side_and_a_true_stops_them() -> Result<()> {
    let (robot, commander) = loopback_pair()?;
    let (controller, _events, embodiment) = standing()?;
    let handle = controller.handle();
    let node = Node::start(&robot, &embodiment, &handle)?;
    assert!(eventually(|| handle.state() == State::Running));
    let say = |who: u8, topic: &Topic, bytes: Vec<u8>| {
        let attachment = Attachment { sequence: 1, stamp: handle.clock().now(), gid: [who; 16] };
        commander
            .put(topic.key(DOMAIN), bytes)
            .attachment(attachment.encode().as_slice())
            .wait()
            .map_err(link)
    };
    let numbers =
        |data: &[f64]| encode(&Float64MultiArray { layout: Layout::default(), data: data.to_vec() });
    let forward = Topic::new(FORWARD, &keys::FLOAT64_MULTI_ARRAY);
    let gripper = Topic::new(GRIPPER, &keys::FLOAT64_MULTI_ARRAY);
    let at = |k: usize| handle.joints().map_or(0.0, |reading| reading.positions[k]);
    // Two publishers of one node, as a driver has them. Said again until they are heard and followed.
    let goal = [0.4, -0.3, 0.2, 0.1, -0.1];
    assert!(eventually(|| {
        let sent = say(1, &forward, numbers(&goal).unwrap_or_default()).is_ok()
            && say(2, &gripper, numbers(&[0.8]).unwrap_or_default()).is_ok();
        std::thread::sleep(std::time::Duration::from_millis(20));
        sent && (0..5).all(|k| (at(k) - goal[k]).abs() < 1e-3) && (at(5) - 0.8).abs() < 1e-3
    }));
    assert_eq!(node.refusals(), (0, None), "a command was refused");
    say(1, &forward, numbers(&[0.0; 6])?)?;
    assert!(eventually(|| node.refusals().1.is_some_and(|why| why.contains("expected 5 numbers"))));

    let stop = Topic::new(EMERGENCY_STOP, &keys::BOOL);
    say(9, &stop, encode(&Bool { data: false })?)?;
    say(9, &stop, encode(&Bool { data: true })?)?;
    let pressed = || {
        matches!(handle.state(), State::Holding { reason }
            if reason.contains("emergency stop: pressed on /emergency_stop"))
    };
    assert!(eventually(pressed), "{:?}", handle.state());
    // Neither a false nor a command sets it free.
    let stood = at(0);
    say(9, &stop, encode(&Bool { data: false })?)?;
    say(1, &forward, numbers(&[0.0; 5])?)?;
    say(1, &forward, numbers(&[0.0; 6])?)?;
    // A stopped arm refuses them all; the first of the three came before.
    assert!(eventually(|| node.refusals().0 == 3), "the last message was heard: {:?}", node.refusals());
    assert!(pressed() && (at(0) - stood).abs() < 0.05, "{:?} {} {stood}", handle.state(), at(0));
    handle.emergency_stop().release();
    assert!(eventually(|| handle.state() == State::Running));
    controller.finish();
    Ok(())
}
