//! `vela record` of servo arms in LeRobot's units, over the built binary: what a hand shows, and what a policy that knows
//! only those units does. The servos are emulated on pseudo-terminals.

#[path = "../robots/tests/robots/emulator.rs"]
mod emulator;
mod running;
mod sessions;

use emulator::Emulator;
use running::Running;
use serde_json::{Value, json};
use sessions::{sessions, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, InferOptions, Observation, Policy, PolicySpec, Stamp,
};
use vela_episodes::{Dataset, Recorded, SI_UNITS};
use vela_robots::ros2::keys::{self, Topic};
use vela_robots::ros2::messages::{self, Image, JointTrajectory, TrajectoryPoint};
use vela_robots::ros2::{DOMAIN, TRAJECTORY};
use vela_robots::{PolicyUnits, Side, open_session, serve_policy};
use zenoh::Wait;

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Answer<T> = Result<T, Box<dyn std::error::Error>>;

const JOINTS: [&str; 6] =
    ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"];
/// Two calibrations: the ranges of each servo, ticks.
const FOLLOWER: [(i32, i32); 6] =
    [(1000, 3000), (800, 3200), (900, 3101), (900, 3100), (0, 4095), (2000, 3400)];
const LEADER: [(i32, i32); 6] =
    [(1100, 3100), (1000, 3100), (950, 3050), (900, 3200), (0, 4095), (1900, 2700)];
/// Pixels of the camera where there is one.
const SIZE: (u32, u32) = (8, 4);
const DEGREES: &str = "LeRobot's degrees (joints), 0 to 100 (gripper)";

/// What LeRobot's motors bus says of a servo at `ticks`, by the formulas of its `_normalize`.
fn lerobot(ranges: &[(i32, i32); 6], joint: usize, ticks: f64, in_degrees: bool) -> f64 {
    let (min, max) = (f64::from(ranges[joint].0), f64::from(ranges[joint].1));
    match (joint == 5, in_degrees) {
        (true, _) => (ticks.clamp(min, max) - min) / (max - min) * 100.0,
        (false, true) => (ticks - (min + max) / 2.0) * 360.0 / 4095.0,
        (false, false) => (ticks.clamp(min, max) - min) / (max - min) * 200.0 - 100.0,
    }
}

/// The same of all servos where they are now.
fn present(arm: &Emulator, ranges: &[(i32, i32); 6], in_degrees: bool) -> Vec<f64> {
    let ticks = |joint| f64::from(arm.set(|table| table.word(joint, 56)));
    (0..6).map(|joint| lerobot(ranges, joint, ticks(joint), in_degrees)).collect()
}

/// Equal but for the 32 bits that a dataset keeps.
fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// An arm's servos with this calibration in them, and its two files; of the shipped robot, with one camera or none.
fn arm(
    dir: &Path,
    name: &str,
    ranges: &[(i32, i32); 6],
    units: &str,
    sees: bool,
) -> Answer<(Emulator, PathBuf)> {
    let emulator = Emulator::start()?;
    let mut motors = serde_json::Map::new();
    emulator.set(|table| {
        for (k, (servo, (min, max))) in table.registers.iter_mut().zip(ranges).enumerate() {
            servo[9..11].copy_from_slice(&(*min as u16).to_le_bytes());
            servo[11..13].copy_from_slice(&(*max as u16).to_le_bytes());
            let motor =
                json!({"id": k + 1, "drive_mode": 0, "homing_offset": 0, "range_min": min, "range_max": max});
            motors.insert(JOINTS[k].into(), motor);
        }
    });
    std::fs::write(dir.join(format!("{name}.json")), Value::Object(motors).to_string())?;
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots");
    let mut robot = std::fs::read_to_string(configs.join("so101.toml"))?.parse::<toml::Table>()?;
    robot.remove("cameras");
    if sees {
        let (width, height) = SIZE;
        let camera = format!("name = 'front'\nwidth = {width}\nheight = {height}");
        robot.insert("cameras".into(), toml::Value::Array(vec![camera.parse::<toml::Table>()?.into()]));
    }
    robot.insert("urdf".into(), configs.join("so101.urdf").display().to_string().into());
    std::fs::write(dir.join("body.toml"), robot.to_string())?;
    let file = dir.join(format!("{name}.toml"));
    let camera = if sees { "[cameras.front]\ntopic = '/front/image_raw'\nkind = 'raw'\n" } else { "" };
    let text = format!(
        "robot = 'body.toml'\nkey = 'vela/{name}'\ncalibration = '{name}.json'\npolicy_units = '{units}'\n\
         [servos]\nport = '{}'\nmin_voltage_v = 6.0\n{camera}",
        emulator.port
    );
    std::fs::write(&file, text)?;
    Ok((emulator, file))
}

fn vela(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to its end; the JSON that it prints.
fn told(args: &[&str]) -> Answer<Value> {
    let output = vela(args).output()?;
    if !output.status.success() {
        return Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs to a refusal; the words.
fn refused(args: &[&str]) -> Answer<String> {
    let output = vela(args).output()?;
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn eventually(is: impl Fn() -> bool) -> bool {
    (0..1200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        is()
    })
}

/// One episode that ends after so many seconds; returns when it has begun.
fn record(file: &str, out: &Path, zenoh: &str, secs: &str) -> Answer<Running> {
    let (place, journal) = (text(out), out.join("meta/.pending"));
    let args = ["record", "--robot", file, "--out", &place, "--task", "hand it over", "--zenoh", zenoh];
    let rest = ["--episodes", "1", "--episode-secs", secs, "--wait-secs", "60", "--json"];
    let recording = Running(vela(&[&args[..], &rest[..]].concat()).stdout(Stdio::piped()).spawn()?);
    assert!(eventually(|| journal.exists()), "the episode never began");
    Ok(recording)
}

/// What it printed at its end.
fn ended(mut recording: Running) -> Answer<Value> {
    let mut printed = String::new();
    let mut stdout = recording.0.stdout.take().ok_or("no stdout")?;
    std::io::Read::read_to_string(&mut stdout, &mut printed)?;
    assert!(recording.0.wait()?.success(), "{printed}");
    Ok(serde_json::from_str(&printed)?)
}

#[test]
fn what_a_hand_shows_is_recorded_as_lerobot_would_say_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (hand, leader) = arm(dir.path(), "leader", &LEADER, "radians", false)?;
    let (body, follower) = arm(dir.path(), "follower", &FOLLOWER, "lerobot_degrees", false)?;
    let [robot, other] = sessions(dir.path())?;
    let (leader, follower, out) = (text(&leader), text(&follower), dir.path().join("shown"));
    let words = ["robot", "--config", &follower, "--leader", &leader, "--zenoh", &robot];
    let _follows = Running(vela(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let agree = || {
        let (led, is) = (present(&hand, &LEADER, true), present(&body, &FOLLOWER, true));
        led.iter().zip(&is).all(|(led, is)| (led - is).abs() < 0.2)
    };
    assert!(eventually(agree), "the follower never came");

    let recording = record(&follower, &out, &other, "4")?;
    // Somebody turns the leader's shoulder by 35 degrees and opens its gripper by half.
    for _ in 0..20 {
        hand.set(|table| {
            table.turn(0, 20);
            table.turn(5, 20);
        });
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = ended(recording)?;
    assert!(agree(), "{:?} {:?}", present(&hand, &LEADER, true), present(&body, &FOLLOWER, true));
    assert_eq!((said["recorded"].as_u64(), said["frames"].as_u64()), (Some(1), Some(120)), "{said}");
    assert_eq!(said["interventions"], 0, "a demonstration is nobody's takeover");

    // LeRobot's names and units.
    let info: Value = serde_json::from_str(&std::fs::read_to_string(out.join("meta/info.json"))?)?;
    for column in ["observation.state", "action"] {
        let feature = &info["features"][column];
        assert_eq!(feature["names"], json!(JOINTS.map(|joint| format!("{joint}.pos"))));
        assert_eq!(
            (feature["dtype"].as_str(), feature["info"]["units"].as_str()),
            (Some("float32"), Some(DEGREES))
        );
    }
    let dataset = Dataset::open(&out)?;
    let frames = dataset.episode(0)?.frames;
    let last = frames.last().ok_or("no frames")?;
    let state = |frame: &Recorded| frame.observation.joint_positions.clone();
    // Where the hand has come to rest: LeRobot's numbers of either arm by its own calibration.
    assert!(same(&last.action, &present(&hand, &LEADER, true)), "{:?}", last.action);
    assert!(same(&state(last), &present(&body, &FOLLOWER, true)), "{:?}", state(last));
    // And all the way: every state is a servo's tick.
    for frame in &frames {
        for (joint, value) in state(frame).iter().enumerate() {
            let per_tick = lerobot(&FOLLOWER, joint, 2101.0, true) - lerobot(&FOLLOWER, joint, 2100.0, true);
            let ticks = 2100.0 + (value - lerobot(&FOLLOWER, joint, 2100.0, true)) / per_tick;
            assert!((ticks - ticks.round()).abs() < 1e-2, "{value} of {} is {ticks} ticks", JOINTS[joint]);
        }
    }
    // The hand goes before, the arm after it; nothing else moves.
    let way = |joint: usize| (last.action[joint] - frames[0].action[joint]).abs();
    assert!(way(0) > 30.0 && way(5) > 40.0 && way(2) < 1e-4, "{} {} {}", way(0), way(5), way(2));
    let lag = |k: usize| frames[k].action[0] - state(&frames[k])[0];
    assert!((0..frames.len()).any(|k| lag(k) > 0.5) && lag(frames.len() - 1) < 0.1);
    assert!(frames.iter().all(|frame| !frame.intervention));

    let shown = text(&out);
    assert_eq!(told(&["episodes", "check", &shown, "--json"])?["problems"], json!([]));
    // Replayed, its degrees are rad for the simulated arm, which has no trouble to follow.
    let replayed = told(&["replay", &shown, "--robot", &follower, "--sim", "--json"])?;
    let off = replayed["sim"][0]["mae_rad"].as_f64().ok_or("no error")?;
    assert!(off < 0.05, "{replayed}");
    assert_eq!(told(&["replay", &shown, "--json"])?["frames"], 120, "to look at it needs no arm");
    let robot = text(&dir.path().join("body.toml"));
    for rest in [&["--sim"][..], &["--robot", &robot]] {
        let why = refused(&[&["replay", &shown][..], rest].concat())?;
        assert!(why.contains(DEGREES) && why.contains("expected the file of its arm as --robot"), "{why}");
    }

    // Other units do not go into the same dataset.
    let other_units = std::fs::read_to_string(&follower)?.replace("lerobot_degrees", "radians");
    let radians = dir.path().join("radians.toml");
    std::fs::write(&radians, other_units)?;
    let (radians, end) = (text(&radians), ["--episodes", "1", "--episode-secs", "1", "--zenoh", &other]);
    let into = ["record", "--robot", &radians, "--out", &shown, "--task", "hand it over"];
    let why = refused(&[&into[..], &end[..]].concat())?;
    assert!(why.contains(&format!("joints in {SI_UNITS} against {DEGREES}")), "{why}");
    assert_eq!(PolicyUnits::from_words(SI_UNITS)?, PolicyUnits::Radians);
    Ok(())
}

/// Knows LeRobot's -100 to 100 only, and always wants the same.
struct Trained {
    spec: PolicySpec,
    wants: Vec<f64>,
    seen: Arc<Mutex<Vec<f64>>>,
}

impl Policy for Trained {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let newest = &history[history.len() - 1];
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&newest.joint_positions);
        Ok(ActionChunk {
            space: ActionSpace::JointPositions,
            actions: vec![self.wants.clone(); self.spec.horizon],
            period_secs: self.spec.embodiment.period_secs(),
            observation_stamp: newest.stamp,
            seed: options.seed,
            checkpoint: self.spec.checkpoint.clone(),
        })
    }
}

/// A picture of one grey as a USB camera's node sends it, its rows padded.
fn grey(luminance: u8) -> Image {
    let (width, height) = SIZE;
    let row = [[luminance, 128].repeat(width as usize), vec![99; 4]].concat();
    Image {
        height,
        width,
        encoding: "yuv422_yuy2".into(),
        step: row.len() as u32,
        data: row.repeat(height as usize),
        ..Image::default()
    }
}

/// What it is told and what it says are the dataset's numbers, and a takeover in between is marked in the same units.
#[test]
fn a_policy_in_the_dataset_s_units_moves_the_arm_to_what_it_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (body, follower) = arm(dir.path(), "follower", &FOLLOWER, "lerobot_range", true)?;
    let [robot, other] = sessions(dir.path())?;
    let (follower, out) = (text(&follower), dir.path().join("driven"));
    let words = ["robot", "--config", &follower, "--zenoh", &robot];
    let _arm = Running(vela(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);

    let wants = vec![30.0, -10.0, 0.0, 20.0, 5.0, 60.0];
    let goals: [i32; 6] = [2300, 1880, 2001, 2220, 2150, 2840];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let spec = PolicySpec {
        embodiment: Embodiment::load(&dir.path().join("body.toml"))?,
        space: ActionSpace::JointPositions,
        horizon: 20,
        execute: 5,
        history: 1,
        checkpoint: "trained".into(),
    };
    let mut policy = Trained { spec, wants: wants.clone(), seen: seen.clone() };
    let session = open_session(Side::Policy, Some(Path::new(&other)))?;
    let over = Arc::new(AtomicBool::new(false));
    let seeing = std::thread::spawn({
        let (session, over) = (session.clone(), over.clone());
        move || {
            let key = Topic::new("/front/image_raw", &keys::IMAGE).key(DOMAIN);
            for luminance in (40..=200).cycle().take_while(|_| !over.load(Ordering::SeqCst)) {
                let sent = messages::encode(&grey(luminance)).ok();
                let sent = sent.map(|bytes| session.put(key.as_str(), bytes).wait());
                assert!(sent.is_some_and(|sent| sent.is_ok()), "the camera's topic");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let serving = std::thread::spawn({
        let (session, over) = (session.clone(), over.clone());
        move || serve_policy(&session, "vela/follower", &mut policy, &over, &mut |_| {})
    });
    let arrived = || {
        let ticks = |k: usize| i32::from(body.set(|table| table.word(k, 56)));
        (0..6).all(|k| (ticks(k) - goals[k]).abs() <= 1)
    };
    assert!(eventually(arrived), "{:?}", present(&body, &FOLLOWER, false));

    let recording = record(&follower, &out, &other, "7")?;
    std::thread::sleep(Duration::from_secs(1));
    // A hand turns the shoulder to the middle for a second, with a node of its own.
    let command = messages::encode(&JointTrajectory {
        joint_names: vec!["shoulder_pan".into()],
        points: vec![TrajectoryPoint {
            positions: vec![0.0],
            time_from_start: Stamp::from_secs(0.25).into(),
            ..TrajectoryPoint::default()
        }],
        ..JointTrajectory::default()
    })?;
    let key = Topic::new(TRAJECTORY, &keys::JOINT_TRAJECTORY).key(DOMAIN);
    for _ in 0..20 {
        session.put(key.as_str(), command.clone()).wait().map_err(|e| e.to_string())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = ended(recording)?;
    assert!(arrived(), "{:?}", present(&body, &FOLLOWER, false));

    let frames = Dataset::open(&out)?.episode(0)?.frames;
    let (first, last) = (&frames[0], frames.last().ok_or("no frames")?);
    for frame in [first, last] {
        assert!(same(&frame.action, &wants) && !frame.intervention, "{:?}", frame.action);
        let state = &frame.observation.joint_positions;
        assert!(same(state, &present(&body, &FOLLOWER, false)), "{state:?}");
        // The policy was told the same.
        assert!(same(state, &seen.lock().unwrap_or_else(PoisonError::into_inner)), "{seen:?}");
    }
    // Luminances of 40 to 200 are these greys, and each frame has its own.
    for frame in &frames {
        let rgb = &frame.observation.frames[0].rgb;
        assert_eq!(rgb.len(), 8 * 4 * 3);
        assert!((28..=214).contains(&rgb[0]) && rgb.iter().all(|byte| *byte == rgb[0]), "{rgb:?}");
    }
    assert!(frames.windows(2).any(|two| two[0].observation.frames != two[1].observation.frames));
    let marked: Vec<&Recorded> = frames.iter().filter(|frame| frame.intervention).collect();
    assert_eq!(said["interventions"].as_u64(), Some(marked.len() as u64), "{said}");
    let middle = marked.iter().map(|frame| frame.action[0].abs()).fold(f64::INFINITY, f64::min);
    assert!(marked.len() >= 15 && middle < 1e-3, "{} frames, {middle} from the middle", marked.len());
    assert_eq!(told(&["episodes", "check", &text(&out), "--json"])?["problems"], json!([]));
    over.store(true, Ordering::SeqCst);
    serving.join().map_err(|_| "the policy's thread died")??;
    seeing.join().map_err(|_| "the camera's thread died")?;
    Ok(())
}
