//! `vela record --robot` over the built binary: a live arm on zenoh, driven by a policy in a process of its own.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use vela_embodiment::Stamp;
use vela_episodes::Dataset;
use vela_robots::ros2::keys::{self, Topic};
use vela_robots::ros2::messages::{self, JointTrajectory, TrajectoryPoint};
use vela_robots::ros2::{DOMAIN, TRAJECTORY};
use vela_robots::{Side, open_session};
use zenoh::Wait;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Killed when the test is over, also when it fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vela(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The simulated arm, its policy if it is to have one, and the zenoh config of who listens. Without a policy it stands
/// for two minutes.
fn arm(dir: &Path, driven: bool) -> Result<(Vec<Running>, String), Box<dyn std::error::Error>> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let config = |listen: &str, connect: &str| {
        format!(
            "{{mode: 'peer', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}]}}, \
             scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}}}"
        )
    };
    let (robot, other) = (dir.join("robot.json5"), dir.join("other.json5"));
    let endpoint = format!("'tcp/127.0.0.1:{port}'");
    std::fs::write(&robot, config(&endpoint, ""))?;
    std::fs::write(&other, config("", &endpoint))?;
    let other = text(&other);
    let sim =
        ["sim", "--task", "stack", "--wait-secs", "120", "--hold-secs", "120", "--zenoh", &text(&robot)];
    let mut running = vec![Running(vela(&sim).stdout(Stdio::null()).spawn()?)];
    if driven {
        let act = ["act", "--for-secs", "120", "--zenoh", &other];
        running.push(Running(vela(&act).stdout(Stdio::null()).spawn()?));
    }
    Ok((running, other))
}

fn record(out: &Path, other: &str, rest: &[&str]) -> Command {
    let file = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/arms/so101-ros2.toml"));
    let mut args = vec!["record", "--robot", &file, "--task", "stack them", "--json", "--zenoh", other];
    let out = text(out);
    args.extend(["--out", &out, "--wait-secs", "60"]);
    args.extend(rest);
    vela(&args)
}

#[test]
fn a_policy_s_commands_are_the_actions_and_a_kill_loses_at_most_a_second() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (driven, other) = arm(dir.path(), true)?;
    let out: PathBuf = dir.path().join("live");
    let output = record(&out, &other, &["--episodes", "2", "--episode-secs", "1"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_str(&said)?;
    assert_eq!((said["recorded"].as_u64(), said["episodes"].as_u64()), (Some(2), Some(2)), "{said}");
    let dataset = Dataset::open(&out)?;
    let episode = dataset.episode(1)?;
    assert_eq!(dataset.total_frames(), 60, "{said}");
    assert_eq!(&*dataset.tasks()[0], "stack them");
    assert_eq!(episode.extra["ended"], "time");
    assert_eq!(said["interventions"], 0, "nobody took over");

    // Killed in the middle of an episode that has been recorded for three seconds, of an arm that nobody drives.
    drop(driven);
    let (_standing, other) = arm(dir.path(), false)?;
    let mut third = record(&out, &other, &["--episodes", "1", "--episode-secs", "100"]).spawn()?;
    let journal = out.join("meta/.pending");
    let begun = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        journal.exists()
    });
    assert!(begun, "the third episode never began");
    std::thread::sleep(Duration::from_secs(3));
    third.kill()?;
    third.wait()?;
    let output = record(&out, &other, &["--episodes", "1", "--episode-secs", "0.5"]).output()?;
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let recovered = said["recovered_frames"].as_u64().unwrap_or(0);
    assert!(recovered >= 60, "of 90 frames {recovered} were found");
    assert_eq!(said["episodes"], 4);
    Ok(())
}

/// A policy drives, a person with a teleoperation node takes over for two seconds, and the policy goes on.
#[test]
fn an_operator_s_takeover_is_marked_and_the_policy_goes_on_after_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_driven, other) = arm(dir.path(), true)?;
    let operator = open_session(Side::Policy, Some(Path::new(&other)))?;
    let out = dir.path().join("live");
    let mut recording =
        record(&out, &other, &["--episodes", "1", "--episode-secs", "7"]).stdout(Stdio::piped()).spawn()?;
    let journal = out.join("meta/.pending");
    let begun = (0..1200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        journal.exists()
    });
    assert!(begun, "the episode never began");
    std::thread::sleep(Duration::from_secs(2));
    // The hand turns the arm to one side, twenty times a second.
    let aside = 0.6;
    let command = messages::encode(&JointTrajectory {
        joint_names: vec!["shoulder_pan".into()],
        points: vec![TrajectoryPoint {
            positions: vec![aside],
            time_from_start: Stamp::from_secs(0.25).into(),
            ..TrajectoryPoint::default()
        }],
        ..JointTrajectory::default()
    })?;
    let key = Topic::new(TRAJECTORY, &keys::JOINT_TRAJECTORY).key(DOMAIN);
    for _ in 0..40 {
        operator.put(key.as_str(), command.clone()).wait().map_err(|e| e.to_string())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(recording.wait()?.success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut recording.stdout.take().ok_or("no stdout")?, &mut said)?;
    let said: Value = serde_json::from_str(&said)?;

    let dataset = Dataset::open(&out)?;
    let frames = dataset.episode(0)?.frames;
    let marks: Vec<bool> = frames.iter().map(|frame| frame.intervention).collect();
    let marked = marks.iter().filter(|mark| **mark).count();
    assert_eq!(said["interventions"].as_u64(), Some(marked as u64), "{said}");
    let first = marks.iter().position(|mark| *mark).ok_or("nothing is marked")?;
    let last = first + marked - 1;
    assert!(marks[first..=last].iter().all(|mark| *mark), "one takeover, one run of marks: {marks:?}");
    // Two seconds at 30 Hz, the last command's quarter of a second, and how late a busy machine is.
    assert!((45..=100).contains(&marked), "{marked} frames are marked");
    assert!(first >= 15 && last + 15 < marks.len(), "the policy before and after: {first} to {last}");
    let pan = |k: usize| frames[k].action[0];
    assert!((pan(last) - aside).abs() < 0.02, "the hand's own command is the action: {}", pan(last));
    let back = (last + 1..frames.len()).any(|k| (pan(k) - aside).abs() > 0.05);
    assert!(back, "the policy never moved the arm again");
    Ok(())
}

/// SIGINT, as a terminal sends it; an impatient second one cuts nothing short.
#[test]
fn ctrl_c_ends_it_with_what_it_has() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_standing, other) = arm(dir.path(), false)?;
    let out = dir.path().join("live");
    let mut recording =
        record(&out, &other, &["--episodes", "5", "--episode-secs", "100"]).stdout(Stdio::piped()).spawn()?;
    let journal = out.join("meta/.pending");
    for _ in 0..1200 {
        if journal.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-INT", &recording.id().to_string()]).status()?.success());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(recording.wait()?.success());
    let dataset = Dataset::open(&out)?;
    assert_eq!(dataset.len(), 1);
    assert!(dataset.total_frames() >= 10 && !dataset.has_leftover());
    assert_eq!(dataset.episode(0)?.extra["ended"], "interrupted");
    Ok(())
}

#[test]
fn an_arm_that_is_not_there_and_an_episode_without_an_end_are_clear_sentences() -> Outcome {
    let dir = tempfile::tempdir()?;
    let other = dir.path().join("nobody.json5");
    std::fs::write(
        &other,
        "{mode: 'peer', listen: {endpoints: []}, scouting: {multicast: {enabled: false}}}",
    )?;
    let file = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/arms/so101-ros2.toml"));
    let out = text(&dir.path().join("none"));
    let complaint = |rest: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let zenoh = text(&other);
        let mut args = vec!["record", "--robot", &file, "--task", "x", "--out", &out, "--wait-secs", "0.3"];
        args.extend(["--zenoh", &zenoh]);
        args.extend(rest);
        let output = vela(&args).stderr(Stdio::piped()).output()?;
        assert_eq!(output.status.code(), Some(1));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let absent = complaint(&["--episode-secs", "1"])?;
    assert!(absent.contains("no joint states came from the arm"), "{absent}");
    let endless = complaint(&[])?;
    assert!(endless.contains("--episode-secs is needed"), "{endless}");
    Ok(())
}
