//! An arm that speaks ROS 2, driven from the other side of zenoh. The arm here is our own node with a loop of its own:
//! it takes trajectories as a ROS controller does.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, eventually};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vela_embodiment::{Embodiment, JointSide, Result};
use vela_robots::ros2::Node;
use vela_robots::ros2::driver::{RosArm, RosConfig, TopicCameras};
use vela_robots::{ArmFile, ControlOptions, Controller, State, loopback_pair};

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
fn a_policy_drives_an_arm_that_speaks_ros_2_by_its_topics() -> Result<()> {
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

    let mut driver = RosArm::connect(&near, &robot, &RosConfig::default(), 20.0)?;
    assert_eq!(driver.joints()?.positions.len(), 6);
    let topic = |camera: &str| (camera.to_owned(), format!("/{camera}/image_raw/compressed"));
    let topics: BTreeMap<_, _> = [topic("front"), topic("wrist")].into();
    let eyes = TopicCameras::listen(&near, &robot, 0, &topics, &driver.clock())?;
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
    assert!(said("")?.contains("expected either [servos]"));
    assert!(said("[servos]\nport = '/dev/ttyACM0'")?.contains("with a calibration"));
    assert!(said("[ros2]\n[gate.joints.elbow_flex]\nvelocity = 9.0")?.contains("wider than the robot's"));
    std::fs::remove_dir_all(&folder).map_err(io)
}
