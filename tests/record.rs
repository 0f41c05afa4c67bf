//! `vela record --robot` over the built binary: a live arm on zenoh, driven by a policy in a process of its own.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use vela_episodes::Dataset;

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

/// SIGINT, as a terminal sends it.
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
    assert!(Command::new("kill").args(["-INT", &recording.id().to_string()]).status()?.success());
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
