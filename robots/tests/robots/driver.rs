//! An arm that speaks ROS 2, driven from the other side of zenoh. The arm here is our own node with a loop of its own:
//! it takes trajectories as a ROS controller does.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, eventually};
use crate::gripper::Still;
use crate::toll::{Toll, excess_rad};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vela_embodiment::{Action, Embodiment, Error, GateConfig, JointSide, Result, SafetyGate};
use vela_robots::ros2::cameras::{CameraTopic, ImageKind, TopicCameras};
use vela_robots::ros2::driver::{Command, CommandKind, RosArm, RosConfig};
use vela_robots::ros2::keys::{self, Distribution, EndpointKind, Entity, Topic};
use vela_robots::ros2::messages::{Float64MultiArray, JointState, JointTrajectory, decode, encode};
use vela_robots::ros2::{FORWARD, GRIPPER, Node};
use vela_robots::{ArmFile, ControlOptions, Controller, State, loopback_pair};
use zenoh::Wait;

fn patient() -> ControlOptions {
    ControlOptions {
        max_frame_age_secs: f64::INFINITY,
        max_joint_age_secs: 5.0,
        stop_after_hold_secs: f64::INFINITY,
        start_within_secs: f64::INFINITY,
        ..ControlOptions::default()
    }
}

#[test]
fn a_policy_drives_an_arm_by_trajectories_and_compressed_pictures() -> Result<()> {
    drives(&RosConfig::default(), ImageKind::Compressed)
}

#[test]
fn a_policy_drives_an_arm_by_forward_commands_and_raw_pictures() -> Result<()> {
    let forward =
        |topic: &str| Command { kind: CommandKind::Forward, topic: topic.into(), joints: Vec::new() };
    let config =
        RosConfig { command: forward(FORWARD), gripper: Some(forward(GRIPPER)), ..RosConfig::default() };
    drives(&config, ImageKind::Raw)
}

fn drives(config: &RosConfig, kind: ImageKind) -> Result<()> {
    let (far, near) = loopback_pair()?;
    let ended = Arc::new(AtomicBool::new(false));
    // The far arm.
    let body = FakeArm::real_time()?;
    let cameras = FakeCameras::of(&body);
    let mut still = FakePolicy::new()?;
    still.step = 0.0;
    let (arm, events) = Controller::start(body, cameras, still, "stand", &patient())?;
    let far_handle = arm.handle();
    let robot = Embodiment::so101()?;
    let mut node = Node::start(&far, &robot, &far_handle)?;
    let speaking = std::thread::spawn({
        let ended = ended.clone();
        move || {
            while !ended.load(Ordering::SeqCst) {
                events.try_iter().for_each(|event| drop(node.publish(&event)));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    });

    let mut driver = RosArm::connect(&near, &robot, config, 20.0)?;
    assert_eq!(driver.joints()?.positions.len(), 6);
    let ending = if kind == ImageKind::Raw { "" } else { "/compressed" };
    let topic = |camera: &str| {
        (camera.to_owned(), CameraTopic { topic: format!("/{camera}/image_raw{ending}"), kind })
    };
    let topics: BTreeMap<_, _> = [topic("front"), topic("wrist")].into();
    let (jazzy, clock) = (Distribution::Jazzy, driver.clock());
    let eyes = TopicCameras::listen(&near, &robot, 0, jazzy, &topics, &clock, false)?;
    // Cameras that send nothing unless the graph shows who listens find both.
    let tokens = || far.liveliness().get("@ros2_lv/0/*/*/*/MS/%/%/vela_cameras_so101/**").wait();
    assert!(eventually(|| tokens().is_ok_and(|found| found.into_iter().count() == 2)));
    let mut policy = FakePolicy::new()?;
    policy.step = 0.002;
    let (controller, _events) = Controller::start(driver, eyes, policy, "go on", &patient())?;
    let handle = controller.handle();
    let at = || far_handle.joints().map_or(0.0, |reading| reading.positions[0]);
    assert!(eventually(|| at() > 0.05), "{} {:?}", at(), handle.state());
    assert_eq!(handle.state(), State::Running);
    controller.finish();
    ended.store(true, Ordering::SeqCst);
    assert!(speaking.join().is_ok());
    arm.finish();
    Ok(())
}

/// What goes out on the topics of the shipped example: the arm's own names and orders.
#[test]
fn a_controller_gets_its_joints_in_its_own_order() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/arms/so101-ros2.toml");
    let (file, robot) = ArmFile::load(&path)?;
    let mut config = file.ros2.unwrap_or_default();
    config.command.joints.swap(0, 4);
    config.joint_names.insert("gripper".into(), "jaw".into());
    config.gripper.iter_mut().for_each(|gripper| gripper.kind = CommandKind::Trajectory);
    let heard: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    let _ear = far
        .declare_subscriber("0/*/commands/**")
        .callback({
            let heard = heard.clone();
            move |sample| {
                let key = sample.key_expr().as_str().split('/').nth(1).unwrap_or_default().to_owned();
                let bytes = sample.payload().to_bytes().into_owned();
                heard.lock().unwrap_or_else(PoisonError::into_inner).insert(key, bytes);
            }
        })
        .wait()
        .map_err(link)?;
    let mut names: Vec<String> = robot.joint_names().iter().map(ToString::to_string).collect();
    names[5] = "jaw".into();
    let state = JointState { name: names, position: vec![0.0; 6], ..JointState::default() };
    let states = Topic::new("/joint_states", &keys::JOINT_STATE).key(0);
    let said = far.declare_publisher(states).wait().map_err(link)?;
    let speaking = Arc::new(AtomicBool::new(true));
    let arm = std::thread::spawn({
        let speaking = speaking.clone();
        move || {
            while speaking.load(Ordering::SeqCst) {
                let _ = said.put(encode(&state).unwrap_or_default()).wait();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    });
    let mut driver = RosArm::connect(&near, &robot, &config, 20.0)?;
    let mut gate = SafetyGate::new(&robot, GateConfig::default(), &[0.0; 6])?;
    let wanted = Action { joint_targets: vec![0.3, 0.0, 0.0, 0.0, -0.3, 0.2] };
    let get = |key: &str| heard.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
    let mut sent = Vec::new();
    assert!(eventually(|| {
        let now = driver.clock().now();
        let applied = driver.apply(gate.check(Some((&wanted, now)), now).action);
        sent = applied.map(|applied| applied.joint_targets).unwrap_or_default();
        get("forward_position_controller").is_some() && get("gripper_controller").is_some()
    }));
    // The arm stands by now where it was sent; once more, so that both messages are of one action.
    assert!(eventually(|| {
        let Ok(numbers) =
            decode::<Float64MultiArray>(&get("forward_position_controller").unwrap_or_default())
        else {
            return false;
        };
        numbers.data == [sent[4], sent[1], sent[2], sent[3], sent[0]]
    }));
    let jaw: JointTrajectory = decode(&get("gripper_controller").unwrap_or_default())?;
    assert_eq!((jaw.joint_names, jaw.points.len()), (vec!["jaw".to_owned()], 1));
    assert_eq!(jaw.points[0].positions.len(), 1);
    speaking.store(false, Ordering::SeqCst);
    assert!(arm.join().is_ok());
    Ok(())
}

#[test]
fn an_arm_that_is_not_there_or_has_other_joints_is_one_clear_error() -> Result<()> {
    let (_far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let said = |config: &RosConfig| {
        RosArm::connect(&near, &robot, config, 0.1).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(said(&RosConfig::default()).contains("no joint states came from the arm"));
    let mut wrong = RosConfig::default();
    wrong.joint_names.insert("knee".into(), "joint_7".into());
    assert!(said(&wrong).contains("unknown joint 'knee'"));
    Ok(())
}

#[test]
fn the_file_of_an_arm_names_one_way_to_reach_it_and_never_widens() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("vela-arm-file-{}", std::process::id()));
    let io = |source| vela_embodiment::Error::Io { path: folder.display().to_string(), source };
    std::fs::create_dir_all(&folder).map_err(io)?;
    let robot = format!("robot = '{}/../configs/robots/so101.toml'\n", env!("CARGO_MANIFEST_DIR"));
    let said = |rest: &str| -> Result<String> {
        let path = folder.join("arm.toml");
        std::fs::write(&path, format!("{robot}{rest}")).map_err(io)?;
        Ok(ArmFile::load(&path).map_or_else(|e| e.to_string(), |(file, _)| format!("{file:?}")))
    };
    assert!(said("[ros2]")?.contains("/joint_states"));
    assert!(said("calibration = 'c.json'\n[servos]\nport = '/dev/ttyACM0'")?.contains("torque: 0.5"));
    let forward = said("[ros2.command]\nkind = 'forward'\ntopic = '/c'\njoints = ['elbow_flex', 'gripper']")?;
    assert!(
        forward.contains("ros2.command.joints: expected each of shoulder_pan, shoulder_lift"),
        "{forward}"
    );
    let odd = said("[ros2.command]\nkind = 'effort'\ntopic = '/c'")?;
    assert!(odd.contains("`effort`") && odd.contains("`forward`"), "{odd}");
    let action = "[ros2.gripper_action]\nname = '/g/gripper_cmd'\nmax_effort = 5.0\n";
    assert!(said(action)?.contains("max_effort: 5.0, min_change: None, max_hz: 5.0"), "{}", said(action)?);
    let twice = said(&format!("{action}[ros2.gripper]\nkind = 'forward'\ntopic = '/c'"))?;
    assert!(twice.contains("expected [ros2.gripper] or [ros2.gripper_action], got both"), "{twice}");
    let slow = said(&action.replace("max_effort = 5.0", "max_effort = 5.0\nmax_hz = 0.0"))?;
    assert!(
        slow.contains("ros2.gripper_action.max_hz: expected more than 0 goals a second, got 0"),
        "{slow}"
    );
    assert!(said(&action.replace("max_effort = 5.0", ""))?.contains("missing field `max_effort`"));
    assert!(said("[ros2]\n[cameras.front]\ntopic = '/f'\nkind = 'raw'")?.contains("kind: Raw"));
    assert!(said("")?.contains("expected either [servos]"));
    assert!(said("[servos]\nport = '/dev/ttyACM0'")?.contains("with a calibration"));
    assert!(said("[ros2]\n[gate.joints.elbow_flex]\nvelocity = 9.0")?.contains("wider than the robot's"));
    std::fs::remove_dir_all(&folder).map_err(io)
}

/// An arm of Humble: no hash in any of its keys, neither in what it says nor in what it listens to.
#[test]
fn an_arm_of_humble_is_heard_and_spoken_to_without_hashes() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let config = RosConfig { distribution: Distribution::Humble, ..RosConfig::default() };
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    let heard = Arc::new(AtomicBool::new(false));
    let controller =
        "0/arm_controller/joint_trajectory/trajectory_msgs::msg::dds_::JointTrajectory_/TypeHashNotSupported";
    let ear = far.declare_subscriber(controller).callback({
        let heard = heard.clone();
        move |_| heard.store(true, Ordering::SeqCst)
    });
    let _ear = ear.wait().map_err(link)?;
    let names = robot.joint_names().iter().map(ToString::to_string).collect();
    let state = encode(&JointState { name: names, position: vec![0.0; 6], ..JointState::default() })?;
    let say = || {
        let states = "0/joint_states/sensor_msgs::msg::dds_::JointState_/TypeHashNotSupported";
        far.put(states, state.clone()).wait().map_err(link)
    };
    let mut driver = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| RosArm::connect(&near, &robot, &config, 20.0));
        while !connecting.is_finished() {
            say()?;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        connecting.join().map_err(|_| Error::Robot("it died".into()))?
    })?;
    let mut gate = SafetyGate::new(&robot, GateConfig::default(), &[0.0; 6])?;
    assert!(eventually(|| {
        let now = driver.clock().now();
        driver.apply(gate.check(None, now).action).is_ok() && heard.load(Ordering::SeqCst)
    }));
    // Its tools find the endpoint under the same word.
    let token = "@ros2_lv/0/*/*/*/MP/*/*/*/*/*/TypeHashNotSupported/*";
    let found = far.liveliness().get(token).wait().map_err(link)?.into_iter().count();
    assert_eq!(found, 1);
    Ok(())
}

/// Two policies on one arm: whoever comes second is told who has it, and has it when that one is gone.
#[test]
fn a_second_driver_of_an_arm_is_refused_and_takes_over_when_the_first_goes() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let (robot, config) = (Embodiment::so101()?, RosConfig::default());
    let _still = Still::start(&far, &robot)?;
    // A panel that could command the arm is no driver of ours.
    let panel = Entity::node(0, &far.zid().to_string(), "panel");
    let topic = Topic::new(&config.command.topic, &keys::JOINT_TRAJECTORY);
    let panel = panel.endpoint_token(900, EndpointKind::Publisher, &topic);
    let _panel =
        far.liveliness().declare_token(panel).wait().map_err(|error| Error::Link(error.to_string()))?;
    let connect = |session| RosArm::connect(session, &robot, &config, 20.0);
    // Whichever session has the lower identity: who was there first stays.
    for (one, other) in [(&near, &far), (&far, &near)] {
        let mut first = connect(one)?;
        let asked = Instant::now();
        let said = connect(other).err().map(|e| e.to_string()).unwrap_or_default();
        let who = format!("{}: expected no other driver, got the node 'vela_driver_so101'", topic.name);
        assert!(said.contains(&who) && said.contains(&one.zid().to_string()), "{said}");
        let refused = asked.elapsed();
        let stands = first.joints()?.positions;
        // The same process that connects once more, when the refused one's word is gone, and one that drives another arm.
        assert!(eventually(|| connect(one).is_ok()));
        let mut elsewhere = config.clone();
        elsewhere.command.topic = "/other_arm/joint_trajectory".into();
        assert!(eventually(|| RosArm::connect(other, &robot, &elsewhere, 20.0).is_ok()));
        drop(first);
        let gone = Instant::now();
        assert!(eventually(|| connect(other).is_ok()));
        let counted = format!(
            "the second refused after {:.0} ms, let in {:.0} ms after the first had gone",
            refused.as_secs_f64() * 1e3,
            gone.elapsed().as_secs_f64() * 1e3
        );
        let excess_rad = Some(excess_rad(&robot, &stands));
        assert_eq!(excess_rad, Some(0.0));
        Toll { counted, excess_rad, ..Toll::default() }.tell("two policies' drivers on one arm");
    }
    Ok(())
}

#[test]
fn of_two_drivers_that_come_at_once_one_has_the_arm() -> Result<()> {
    let (robot, config) = (Embodiment::so101()?, RosConfig::default());
    for round in 0..4 {
        let (far, near) = loopback_pair()?;
        let _still = Still::start(&far, &robot)?;
        let connect = |session| RosArm::connect(session, &robot, &config, 20.0);
        let came = std::thread::scope(|scope| {
            let both = [&far, &near].map(|session| scope.spawn(|| connect(session)));
            both.map(|one| one.join().unwrap_or_else(|_| Err(Error::Robot("it died".into()))))
        });
        let refused: Vec<String> =
            came.iter().filter_map(|one| one.as_ref().err().map(ToString::to_string)).collect();
        assert_eq!(refused.len(), 1, "round {round}: {refused:?}");
        assert!(refused[0].contains("expected no other driver"), "{refused:?}");
    }
    Ok(())
}
