//! `vela robot`, `vela doctor` and the emergency stop over the built binary; every session on a port of its own.

mod running;
mod sessions;
mod standing;

use running::Running;
use serde_json::Value;
use sessions::{sessions, text};
use standing::Standing;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vela_embodiment::{Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_robots::survey::survey;
use vela_robots::{RemotePolicy, Side, open_session, press_stop, release_stop};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What it would keep between runs is kept beside the build.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).env("VELA_STATE_DIR", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

fn vela(args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    Ok(command(args).output()?)
}

#[test]
fn the_doctor_sees_the_arm_and_says_what_a_policy_misses() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let arm = command(&["sim", "--task", "reach", "--wait-secs", "60", "--zenoh", &robot])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let _arm = Running(arm);
    let mut last = String::new();
    for _ in 0..20 {
        let output = vela(&["doctor", "--policy", "builtin", "--secs", "1.5", "--json", "--zenoh", &other])?;
        last = format!("{output:?}");
        let Ok(found) = serde_json::from_slice::<Value>(&output.stdout) else { continue };
        if found["missing"].as_array().is_some_and(Vec::is_empty) {
            assert!(output.status.success());
            let topics = found["seen"]["topics"].as_array().ok_or("no topics")?;
            assert!(
                topics.iter().any(|t| t["name"] == "/joint_states" && t["period_ms"].as_f64() < Some(200.0))
            );
            assert_eq!(found["seen"]["nodes"][0], "vela_so101");
            // And from the same place anyone can stop it and let it go.
            assert!(vela(&["robot", "--stop", "vela/arm", "--zenoh", &other])?.status.success());
            assert!(vela(&["robot", "--release", "vela/arm", "--zenoh", &other])?.status.success());
            let nobody = vela(&["robot", "--stop", "vela/elsewhere", "--zenoh", &other])?;
            assert_eq!(nobody.status.code(), Some(1));
            assert!(
                String::from_utf8_lossy(&nobody.stderr).contains("no arm listens at vela/elsewhere/stop")
            );
            return Ok(());
        }
    }
    Err(last.into())
}

/// `vela sim` is a ROS 2 arm; the shipped file drives such a one.
#[test]
fn the_shipped_file_of_a_ros_2_arm_reaches_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let arm = command(&["sim", "--task", "reach", "--wait-secs", "120", "--zenoh", &robot])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let _arm = Running(arm);
    let file = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/arms/so101-ros2.toml"));
    let look = ["robot", "--config", &file, "--look", "--json", "--wait-secs", "5", "--zenoh", &other];
    let mut last = String::new();
    for _ in 0..20 {
        let output = vela(&look)?;
        last = format!("{output:?}");
        if output.status.success() {
            let joints: Value = serde_json::from_slice(&output.stdout)?;
            assert_eq!(joints["joints"].as_array().map(Vec::len), Some(6), "{joints}");
            assert_eq!(joints["joints"][5]["joint"], "gripper");
            assert!(joints["joints"][0]["position"].is_f64());
            return Ok(());
        }
    }
    Err(last.into())
}

#[test]
fn an_arm_that_cannot_be_reached_is_one_clear_sentence() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, _] = sessions(dir.path())?;
    let so101 = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml");
    let calibration = dir.path().join("calibration.json");
    let motors: Vec<String> = [
        "shoulder_pan",
        "shoulder_lift",
        "elbow_flex",
        "wrist_flex",
        "wrist_roll",
        "gripper",
    ]
    .iter()
    .enumerate()
    .map(|(k, joint)| {
        let id = k + 1;
        format!(
            "\"{joint}\": {{\"id\": {id}, \"drive_mode\": 0, \"homing_offset\": 0, \"range_min\": 900, \
                 \"range_max\": 3100}}"
        )
    })
    .collect();
    std::fs::write(&calibration, format!("{{{}}}", motors.join(",")))?;
    let arm = dir.path().join("arm.toml");
    let complaint = |rest: &str| -> Result<String, Box<dyn std::error::Error>> {
        std::fs::write(&arm, format!("robot = '{}'\n{rest}", text(&so101)))?;
        let args = ["robot", "--config", &text(&arm), "--wait-secs", "0.2", "--zenoh", &robot];
        let output = vela(&args)?;
        assert_eq!(output.status.code(), Some(1));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let usb = "calibration = 'calibration.json'\n[servos]\nport = '/dev/ttyNONE'";
    assert!(complaint(usb)?.contains("serial port /dev/ttyNONE"));
    assert!(complaint("[ros2]")?.contains("no joint states came from the arm"));
    assert!(complaint("")?.contains("expected either [servos]"));
    assert_eq!(vela(&["robot"])?.status.code(), Some(2));
    Ok(())
}

/// What holds an arm and why is in the log, line by line, and what became of it in the answer.
#[test]
fn an_arm_held_by_the_stop_has_every_verdict_with_its_reason_in_the_log() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let session = open_session(Side::Robot, Some(Path::new(&robot)))?;
    let _arm = Standing::start(&session)?;
    let (file, log) = (dir.path().join("arm.toml"), dir.path().join("verdicts.jsonl"));
    let so101 = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml"));
    let camera = |name: &str| format!("[cameras.{name}]\ntopic = '/{name}'\n");
    let (front, wrist) = (camera("front"), camera("wrist"));
    std::fs::write(&file, format!("robot = '{so101}'\nkey = 'vela/held'\n[ros2]\n{front}{wrist}"))?;
    let (file, verdicts) = (text(&file), text(&log));
    let mut child = command(&["robot", "--config", &file, "--log", &verdicts, "--json", "--wait-secs", "10"])
        .args(["--zenoh", &other])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let answer = child.stdout.take().ok_or("no stdout")?;
    let _child = Running(child);
    let pressed = || (0..60).any(|_| press_stop(&session, "vela/held", "a hand in the way").is_ok());
    assert!(pressed(), "the arm never listened");
    // Every whole line is a verdict and the ticks in a row that repeat it.
    let stopped = || {
        std::fs::read_to_string(&log).unwrap_or_default().lines().any(|line| {
            let verdict = serde_json::from_str::<Value>(line).unwrap_or_default();
            let trip =
                |trip: &Value| trip["reason"] == "emergency_stop" && trip["detail"] == "a hand in the way";
            verdict["held"] == true && verdict["trips"].as_array().is_some_and(|trips| trips.iter().any(trip))
        })
    };
    assert!((0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        stopped()
    }));
    release_stop(&session, "vela/held")?;
    // Nobody thinks for it, and it gives up; nothing that it told was missed.
    let answer: Value = serde_json::from_reader(answer)?;
    assert_eq!(answer["events_dropped"], 0, "{answer}");
    let held = answer["ticks_held"].as_u64().ok_or("no ticks_held")?;
    let lines = std::fs::read_to_string(&log)?;
    let ticks =
        lines.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?["ticks"].as_u64().unwrap_or(0)));
    assert_eq!(ticks.sum::<Result<u64, serde_json::Error>>()?, held, "{answer}");
    assert!(answer["trips"]["emergency_stop"].as_u64() > Some(0), "{answer}");
    Ok(())
}

/// SIGINT, as a terminal sends it.
#[test]
fn a_policy_server_says_in_json_how_it_went() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let session = open_session(Side::Robot, Some(Path::new(&robot)))?;
    let so101 = Embodiment::so101()?;
    let child = command(&["act", "--json", "--key", "vela/told", "--for-secs", "300", "--zenoh", &other])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut act = Running(child);
    let mut remote = RemotePolicy::new(&session, "vela/told", &so101, 60.0)?;
    remote.wait_ready(60.0)?;
    let whole = observation(&so101);
    for _ in 0..3 {
        remote.infer(std::slice::from_ref(&whole), &InferOptions::default())?;
    }
    let blind = Observation { frames: Vec::new(), ..whole };
    assert!(remote.infer(&[blind], &InferOptions::default()).is_err());
    assert!(Command::new("kill").args(["-INT", &act.0.id().to_string()]).status()?.success());
    let said: Value = serde_json::from_reader(act.0.stdout.take().ok_or("no stdout")?)?;
    assert_eq!((said["answered"].as_u64(), said["refused"].as_u64()), (Some(3), Some(1)), "{said}");
    let ms = |key: &str| said[key].as_f64().unwrap_or_default();
    assert!(ms("infer_p50_ms") > 0.0 && ms("infer_p99_ms") >= ms("infer_p50_ms"), "{said}");
    assert!(act.0.wait()?.success());
    Ok(())
}

/// Grey pictures of an arm at zero.
fn observation(robot: &Embodiment) -> Observation {
    let frame = |c: &vela_embodiment::Camera| Frame {
        camera: c.name.clone(),
        width: c.width,
        height: c.height,
        rgb: vec![100; (c.width * c.height * 3) as usize].into(),
        stamp: Stamp(1),
    };
    Observation {
        frames: robot.cameras.iter().map(frame).collect(),
        joint_positions: vec![0.0; robot.joints.len()],
        instruction: "pick up the red cube".into(),
        stamp: Stamp(1),
    }
}

fn act(config: &str) -> Result<Running, Box<dyn std::error::Error>> {
    let act = command(&["act", "--key", "vela/killed", "--for-secs", "120", "--zenoh", config])
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Running(act))
}

/// SIGKILL: nothing says goodbye.
#[test]
fn a_policy_server_killed_in_mid_episode_costs_a_robot_at_most_one_chunk() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let session = open_session(Side::Robot, Some(Path::new(&robot)))?;
    let so101 = Embodiment::so101()?;
    let history = [observation(&so101)];
    let mut remote = RemotePolicy::new(&session, "vela/killed", &so101, 5.0)?;
    let (mut lost, mut got, mut longest) = (0, 0, Duration::ZERO);
    let mut first = act(&other)?;
    remote.wait_ready(60.0)?;
    for _ in 0..3 {
        // The next one is there before the first one goes.
        let second = act(&other)?;
        let both = (0..300).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            survey(&session, 0, 0.1).is_ok_and(|seen| seen.policies.len() == 2)
        });
        assert!(both, "the second policy never came");
        for k in 0..20 {
            if k == 10 {
                // A question is on its way, or will be in a moment.
                first.0.kill()?;
            }
            let asked = Instant::now();
            match remote.infer(&history, &InferOptions::default()) {
                Ok(_) => got += 1,
                Err(_) => lost += 1,
            }
            if k >= 10 {
                longest = longest.max(asked.elapsed());
            }
        }
        first = second;
    }
    assert!(lost <= 3 && got >= 57, "{lost} chunks lost in three kills, {got} came");
    eprintln!(
        "fault: three policy servers killed in turn, each with another beside it: {lost} of {} chunks lost, the \
         slowest answer after a kill took {:.0} ms",
        lost + got,
        longest.as_secs_f64() * 1e3
    );
    Ok(())
}
