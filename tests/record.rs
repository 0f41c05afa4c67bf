//! `vela record --robot` over the built binary: a live arm on zenoh, driven by a policy in a process of its own.

#[path = "../robots/tests/robots/cable.rs"]
mod cable;
mod program;
mod running;
mod sessions;
#[path = "../robots/tests/robots/toll.rs"]
mod toll;

use cable::{BROKEN, SILENT, WHOLE, Wire};
use program::Program;
use running::Running;
use serde_json::Value;
use sessions::{free_port, session, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use toll::{Toll, excess_rad};
use vela_embodiment::{Embodiment, Stamp};
use vela_episodes::{Dataset, Recording};
use vela_robots::ros2::keys::{self, Topic};
use vela_robots::ros2::messages::{self, JointTrajectory, TrajectoryPoint};
use vela_robots::ros2::{DOMAIN, TRAJECTORY};
use vela_robots::{Side, open_session};
use zenoh::Wait;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// The simulated arm, and its policy if it is to have one. Without a policy it stands for two minutes; the policy does not do the
/// task of this scene, and moves it for fifteen seconds.
fn start(robot: &str, policy: Option<&str>) -> std::io::Result<Vec<Running>> {
    let scene = ["sim", "--task", "stack", "--seed", "2000002"];
    let sim = [&scene[..], &["--wait-secs", "120", "--hold-secs", "120", "--zenoh", robot]].concat();
    let mut running = vec![Running(vela(&sim).stdout(Stdio::null()).spawn()?)];
    if let Some(policy) = policy {
        let act = ["act", "--for-secs", "120", "--zenoh", policy];
        running.push(Running(vela(&act).stdout(Stdio::null()).spawn()?));
    }
    Ok(running)
}

/// The same, and the port where others join it.
fn arm(dir: &Path, driven: bool) -> std::io::Result<(Vec<Running>, u16)> {
    let port = free_port()?;
    let robot = session(&dir.join("robot.json5"), &format!("'tcp/127.0.0.1:{port}'"), "")?;
    Ok((start(&robot, driven.then_some(joins(dir, port)?.as_str()))?, port))
}

/// The session's file of who joins an arm at this port.
fn joins(dir: &Path, port: u16) -> std::io::Result<String> {
    session(&dir.join(format!("at-{port}.json5")), "", &format!("'tcp/127.0.0.1:{port}'"))
}

/// A session's file as it ships, at another port.
fn shipped(name: &str, dir: &Path, port: u16) -> std::io::Result<String> {
    let file = format!("{}/configs/zenoh/{name}.json5", env!("CARGO_MANIFEST_DIR"));
    let words = std::fs::read_to_string(file)?.replace("127.0.0.1:7447", &format!("127.0.0.1:{port}"));
    let path = dir.join(format!("{name}-{port}.json5"));
    std::fs::write(&path, words)?;
    Ok(text(&path))
}

fn record(out: &Path, other: &str, rest: &[&str]) -> Command {
    let file = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/arms/so101-ros2.toml"));
    let mut args = vec!["record", "--robot", &file, "--task", "stack them", "--json", "--zenoh", other];
    let out = text(out);
    args.extend(["--out", &out]);
    if !rest.contains(&"--wait-secs") {
        args.extend(["--wait-secs", "60"]);
    }
    args.extend(rest);
    vela(&args)
}

/// Frames of a recording at 30 Hz that has run since then.
fn frames_since(begun: Instant) -> u64 {
    (begun.elapsed().as_secs_f64() * 30.0).round() as u64
}

/// How far the arm was measured outside its limits in these episodes at worst, rad.
fn worst_rad(episodes: &[Recording]) -> Result<f64, Box<dyn std::error::Error>> {
    let so101 = Embodiment::so101()?;
    let frames = episodes.iter().flat_map(|episode| &episode.frames);
    let each = frames.map(|frame| excess_rad(&so101, &frame.observation.joint_positions));
    Ok(each.fold(0.0, f64::max))
}

/// `vela episodes check`, which must find nothing wrong.
fn sound(out: &Path, rest: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let output = vela(&[&["episodes", "check", &text(out), "--json"], rest].concat()).output()?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    assert!(output.status.success() && said["problems"] == serde_json::json!([]), "{said}");
    Ok(said)
}

#[test]
fn a_policy_s_commands_are_the_actions_and_a_kill_loses_at_most_a_second() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (driven, port) = arm(dir.path(), true)?;
    let other = joins(dir.path(), port)?;
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
    let (_standing, port) = arm(dir.path(), false)?;
    let other = joins(dir.path(), port)?;
    let mut third = record(&out, &other, &["--episodes", "1", "--episode-secs", "100"]).spawn()?;
    let journal = out.join("meta/.pending");
    let begun = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        journal.exists()
    });
    assert!(begun, "the third episode never began");
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let recorded = frames_since(begun);
    third.kill()?;
    third.wait()?;
    let output = record(&out, &other, &["--episodes", "1", "--episode-secs", "0.5"]).output()?;
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let recovered = said["recovered_frames"].as_u64().unwrap_or(0);
    assert!(recovered >= 60, "of 90 frames {recovered} were found");
    assert_eq!(said["episodes"], 4);
    let dataset = Dataset::open(&out)?;
    let excess = worst_rad(&dataset.iter().collect::<Result<Vec<_>, _>>()?)?;
    assert!(excess == 0.0, "{excess}");
    let counted = format!("{recovered} frames kept of {recorded} that its time has, at 30 Hz");
    let toll = Toll { counted, excess_rad: Some(excess), ..Toll::default() };
    toll.tell("SIGKILL while a live arm is recorded");
    Ok(())
}

/// A policy drives, a person with a teleoperation node takes over for two seconds, and the policy goes on.
#[test]
fn an_operator_s_takeover_is_marked_and_the_policy_goes_on_after_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_driven, port) = arm(dir.path(), true)?;
    let other = joins(dir.path(), port)?;
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
    let (_standing, port) = arm(dir.path(), false)?;
    let other = joins(dir.path(), port)?;
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

/// The wire between arm and recorder passes nothing any more; another arm dies. What was recorded stands, and what happened
/// is said.
#[test]
fn a_link_that_falls_silent_and_an_arm_that_dies_each_end_the_episode_and_lose_nothing() -> Outcome {
    for silent in [true, false] {
        let dir = tempfile::tempdir()?;
        let (driven, port) = arm(dir.path(), true)?;
        let wire = Wire::to(port)?;
        let out = dir.path().join("live");
        let rest = ["--episodes", "2", "--episode-secs", "100", "--wait-secs", "2"];
        let mut recorder = Program::start(&mut record(&out, &joins(dir.path(), wire.port)?, &rest))?;
        let begun = recorder.says("episode 0: recording")?;
        std::thread::sleep(Duration::from_secs(2));
        let (fault, recorded) = (Instant::now(), frames_since(begun));
        let mut standing = Some(driven);
        if silent {
            wire.set(SILENT);
        } else {
            standing = None;
        }
        let ended = recorder.says("episode 0 ended after")?;
        recorder.says("vela: after 1 episodes, for 2.0 s: ")?;
        assert_eq!(recorder.child.wait()?.code(), Some(1));
        drop(standing);
        let line = recorder.heard.iter().find(|line| line.contains(" ended after ")).ok_or("no end")?;
        assert!(line.contains(" old") && (line.contains("joints: ") || line.contains("camera '")), "{line}");
        assert!(ended > fault, "it ended before anything happened: {line}");
        let whole = sound(&out, &[])?;
        assert_eq!(whole["episodes"], 1, "{whole}");
        let episodes = Dataset::open(&out)?.iter().collect::<Result<Vec<_>, _>>()?;
        let excess = worst_rad(&episodes)?;
        assert!(excess == 0.0, "{excess}");
        let kept = episodes[0].frames.len() as u64;
        assert!(kept + 30 >= recorded, "{kept} frames of {recorded}");
        assert!(episodes[0].extra["ended"].as_str().is_some_and(|why| why.contains(" old")));
        let ms = ended.duration_since(fault).as_secs_f64() * 1e3;
        let counted = format!(
            "the episode ended after {ms:.0} ms, {kept} frames kept of {recorded} that its time until then has"
        );
        let name = if silent { "link to the recorder falls silent" } else { "arm dies while it is recorded" };
        Toll { counted, excess_rad: Some(excess), ..Toll::default() }.tell(name);
    }
    Ok(())
}

/// The wire between arm and recorder passes nothing, or its connections are closed and refused, for three seconds; with the
/// sessions' files that ship, and with those of the other tests. Nobody drives the arm: a simulated one that is driven
/// ends its episode and goes, and then nothing is there to be recorded.
#[test]
fn a_link_that_was_silent_or_closed_is_recorded_again_when_it_is_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    for ships in [true, false] {
        let (_standing, port) = if ships {
            let port = free_port()?;
            (start(&shipped("robot", dir.path(), port)?, None)?, port)
        } else {
            arm(dir.path(), false)?
        };
        for (fault, name) in [(SILENT, "silent"), (BROKEN, "closed")] {
            let wire = Wire::to(port)?;
            let other =
                if ships { shipped("policy", dir.path(), wire.port) } else { joins(dir.path(), wire.port) }?;
            let out = dir.path().join(format!("{name}-{ships}"));
            let mut recorder =
                Program::start(&mut record(&out, &other, &["--episodes", "2", "--episode-secs", "100"]))?;
            recorder.says("episode 0: recording")?;
            std::thread::sleep(Duration::from_secs(1));
            let since = Instant::now();
            wire.set(fault);
            let ended = recorder.says("episode 0 ended after")?;
            std::thread::sleep(Duration::from_secs(3).saturating_sub(since.elapsed()));
            let healed = Instant::now();
            wire.set(WHOLE);
            // As long as it takes on a busy machine, up to the minute that it waits for the arm.
            let again = recorder.says("episode 1: recording")?;
            assert!(again > healed, "nothing was cut: {:?}", recorder.heard);
            std::thread::sleep(Duration::from_secs(1));
            assert!(
                Command::new("kill").args(["-INT", &recorder.child.id().to_string()]).status()?.success()
            );
            assert!(recorder.child.wait()?.success(), "{:?}", recorder.heard);
            let whole = sound(&out, &[])?;
            assert_eq!(whole["episodes"], 2, "{whole}");
            let episodes = Dataset::open(&out)?.iter().collect::<Result<Vec<_>, _>>()?;
            assert!(episodes[0].extra["ended"].as_str().is_some_and(|why| why.contains(" old")));
            assert_eq!(episodes[1].extra["ended"], "interrupted");
            let (excess, frames) = (worst_rad(&episodes)?, episodes[1].frames.len());
            assert!(excess == 0.0 && frames >= 10, "{excess} rad, {frames} frames");
            let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
            let counted = format!(
                "the episode ended after {:.0} ms, the next one began {:.0} ms after the link was back",
                ms(since, ended),
                ms(healed, again)
            );
            let files = if ships { "files that ship" } else { "retries of 0.1 s" };
            let fault = format!("link to the recorder {name} for 3 s and healed, {files}");
            Toll { counted, excess_rad: Some(excess), ..Toll::default() }.tell(&fault);
        }
    }
    Ok(())
}

/// No file may grow beyond 1.5 MB: what a full disk does, for one process alone.
#[test]
fn a_full_disk_ends_a_live_recording_in_one_clear_sentence_and_loses_at_most_a_second() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_standing, port) = arm(dir.path(), false)?;
    let (other, out) = (joins(dir.path(), port)?, dir.path().join("live"));
    assert!(record(&out, &other, &["--episodes", "1", "--episode-secs", "0.5"]).status()?.success());
    let before = Dataset::open(&out)?.episode(0)?;
    let endless = record(&out, &other, &["--episodes", "1", "--episode-secs", "100"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 3000; exec \"$0\" \"$@\""]);
    limited.arg(endless.get_program()).args(endless.get_args());
    let mut recorder = Program::start(&mut limited)?;
    let begun = recorder.says("episode 0: recording")?;
    let failed = recorder.says("vela: recording into")?;
    let recorded = (failed.duration_since(begun).as_secs_f64() * 30.0).round() as u64;
    assert_eq!(recorder.child.wait()?.code(), Some(1));
    let words = recorder.heard.last().ok_or("it said nothing")?;
    assert!(words.contains("File too large") && words.contains("live"), "{words}");
    // What was committed opens as it is; the frames of the episode that was open are found.
    assert_eq!(Dataset::open(&out)?.episode(0)?.frames, before.frames);
    let repaired = sound(&out, &["--repair"])?;
    assert_eq!(repaired["episodes"], 2, "{repaired}");
    let episodes = Dataset::open(&out)?.iter().collect::<Result<Vec<_>, _>>()?;
    let kept = episodes[1].frames.len() as u64;
    assert!(kept + 30 >= recorded, "{kept} frames of {recorded}");
    let excess = worst_rad(&episodes)?;
    assert!(excess == 0.0, "{excess}");
    let counted = format!("{kept} frames kept of {recorded} that the time until it said so has, at 30 Hz");
    Toll { counted, excess_rad: Some(excess), ..Toll::default() }
        .tell("disk full while a live arm is recorded");
    Ok(())
}
