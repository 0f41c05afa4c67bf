//! `vela robot` with arms on USB, over the built binary: calibrating, one arm following another, and a policy that moves
//! one while things fail. The servos are emulated on pseudo-terminals.

#[path = "../robots/tests/robots/emulator.rs"]
mod emulator;
mod program;
mod sessions;
#[path = "../robots/tests/robots/toll.rs"]
mod toll;

use emulator::Emulator;
use program::Program;
use serde_json::Value;
use sessions::sessions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use toll::{Toll, excess_rad};
use vela_embodiment::Embodiment;
use vela_robots::feetech::{Calibration, MotorCalibration};
use vela_robots::ros2::keys::{self, Topic};
use vela_robots::ros2::messages::{Image, encode};
use vela_robots::{Side, open_session};
use zenoh::{Session, Wait};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).env("VELA_STATE_DIR", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

fn start(args: &[&str]) -> Result<Program, Box<dyn std::error::Error>> {
    Program::start(&mut vela(args))
}

fn enter(program: &mut Program) -> Outcome {
    program.child.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
    Ok(())
}

fn arm_file(
    dir: &Path,
    name: &str,
    emulator: &Emulator,
) -> Result<(PathBuf, PathBuf), Box<dyn std::error::Error>> {
    // The shipped robot without its cameras.
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots");
    let shipped = std::fs::read_to_string(configs.join("so101.toml"))?;
    let mut robot = shipped.parse::<toml::Table>()?;
    robot.remove("cameras");
    robot.insert("urdf".into(), configs.join("so101.urdf").display().to_string().into());
    let so101 = dir.join("blind.toml");
    std::fs::write(&so101, robot.to_string())?;
    let (file, calibration) = (dir.join(format!("{name}.toml")), dir.join(format!("{name}/{name}.json")));
    let text = format!(
        "robot = '{}'\nkey = 'vela/{name}'\ncalibration = '{}'\n[servos]\nport = '{}'\nmin_voltage_v = 6.0\n",
        so101.display(),
        calibration.display(),
        emulator.port
    );
    std::fs::write(&file, text)?;
    Ok((file, calibration))
}

/// The procedure with Enter and hands; the JSON that it prints.
fn calibrate(file: &Path, emulator: &Emulator) -> Result<Value, Box<dyn std::error::Error>> {
    let mut vela = start(&["robot", "--config", &file.display().to_string(), "--calibrate", "--json"])?;
    vela.says("Hold the arm")?;
    enter(&mut vela)?;
    vela.says("middle of its motion")?;
    enter(&mut vela)?;
    vela.says("from stop to stop")?;
    // A hand moves each joint down, up and back, and waits until the program has looked at all six.
    for servo in [0, 1, 2, 3, 5] {
        for step in [-500, -500, 1000, 1000, -500, -500] {
            let asked = emulator.set(|table| {
                table.turn(servo, step);
                table.questions
            });
            let seen = (0..1000).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                emulator.set(|table| table.questions) > asked + 12
            });
            assert!(seen, "it stopped looking");
        }
    }
    enter(&mut vela)?;
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut vela.child.stdout.take().ok_or("no stdout")?, &mut printed)?;
    assert!(vela.child.wait()?.success(), "{printed} {:#?}", vela.heard);
    Ok(serde_json::from_str(&printed)?)
}

fn near(follower: &Emulator, servo: usize, ticks: i32) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        follower.set(|table| (i32::from(table.word(servo, 56)) - ticks).abs() <= 2)
    })
}

#[test]
fn two_arms_are_calibrated_and_one_follows_the_other() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (hand, arm) = (Emulator::start()?, Emulator::start()?);
    // Horns mounted anywhere.
    hand.set(|table| table.turn(0, 700));
    arm.set(|table| table.turn(0, -333));
    let (leader, _) = arm_file(dir.path(), "leader", &hand)?;
    let (follower, written) = arm_file(dir.path(), "follower", &arm)?;
    let made = calibrate(&leader, &hand)?;
    let pan = &made["motors"]["shoulder_pan"];
    assert_eq!((pan["homing_offset"].as_i64(), pan["drive_mode"].as_i64()), (Some(701), Some(0)), "{made}");
    let made = calibrate(&follower, &arm)?;
    let pan = &made["motors"]["shoulder_pan"];
    assert_eq!((pan["range_min"].as_i64(), pan["range_max"].as_i64()), (Some(1047), Some(3047)), "{made}");
    let read: Value = serde_json::from_str(&std::fs::read_to_string(&written)?)?;
    assert_eq!(read, made["motors"]);

    let [zenoh, _] = sessions(dir.path())?;
    let [follower, leader] = [&follower, &leader].map(|path| path.display().to_string());
    // The hand holds the leader 300 ticks (26 degrees) to one side.
    hand.set(|table| table.turn(0, 300));
    let mut vela =
        start(&["robot", "--config", &follower, "--leader", &leader, "--zenoh", &zenoh, "--json"])?;
    vela.says("coming slowly to where the leader is")?;
    vela.says("following the leader")?;
    assert!(near(&arm, 0, 2347), "{:?}", arm.set(|table| table.word(0, 56)));
    hand.set(|table| table.turn(5, 500));
    assert!(near(&arm, 5, 2547), "{:?}", arm.set(|table| table.word(5, 56)));
    // Unplugged: it holds, with its torque on.
    drop(hand);
    vela.says("lost, the arm holds: the leader: ")?;
    arm.set(|table| assert!(table.registers.iter().all(|servo| servo[40] == 1)));
    assert!(near(&arm, 0, 2347) && near(&arm, 5, 2547));
    Ok(())
}

/// LeRobot's own file of an arm whose servos were exchanged: refused, applied, and then it runs.
#[test]
fn a_calibration_of_lerobot_s_is_applied_to_servos_that_do_not_keep_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let arm = Emulator::start()?;
    let (file, calibration) = arm_file(dir.path(), "follower", &arm)?;
    std::fs::create_dir_all(calibration.parent().ok_or("no folder")?)?;
    // As `draccus` dumps it: the motors in the bus's order, four spaces.
    let names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"];
    let motors: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(k, name)| {
            format!(
                "    \"{name}\": {{\n        \"id\": {},\n        \"drive_mode\": 0,\n        \"homing_offset\": {},\n        \
                 \"range_min\": 800,\n        \"range_max\": 3200\n    }}",
                k + 1,
                7 - k as i32 * 5
            )
        })
        .collect();
    std::fs::write(&calibration, format!("{{\n{}\n}}", motors.join(",\n")))?;
    let file = file.display().to_string();
    let [zenoh, _] = sessions(dir.path())?;
    let look = || -> Result<std::process::Output, std::io::Error> {
        vela(&["robot", "--config", &file, "--look", "--json", "--zenoh", &zenoh]).output()
    };
    let refused = look()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("keeps offset 0, range 1000 to 3096, the file says offset 7, range 800"), "{said}");
    let mut vela = start(&["robot", "--config", &file, "--apply-calibration"])?;
    vela.says("Hold the arm")?;
    enter(&mut vela)?;
    assert!(vela.child.wait()?.success());
    let shown: Value = serde_json::from_slice(&look()?.stdout)?;
    // 2048 ticks of the encoder less the offset 7, from the middle 2000.
    let expected = (41.0_f64 * 360.0 / 4095.0).to_radians();
    let position = shown["joints"][0]["position"].as_f64().ok_or("no position")?;
    assert!((position - expected).abs() < 1e-9, "{shown}");
    assert!(
        (shown["joints"][0]["lerobot"].as_f64().ok_or("no degrees")? - 41.0 * 360.0 / 4095.0).abs() < 1e-9
    );
    Ok(())
}

/// Ctrl-C, or nobody at the other end of standard input: no file, the servos locked, and both said.
#[test]
fn a_calibration_that_is_broken_off_locks_the_servos_and_says_so() -> Outcome {
    let dir = tempfile::tempdir()?;
    let arm = Emulator::start()?;
    let (file, written) = arm_file(dir.path(), "follower", &arm)?;
    let file = file.display().to_string();
    for by_signal in [true, false] {
        let mut vela = start(&["robot", "--config", &file, "--calibrate"])?;
        vela.says("Hold the arm")?;
        enter(&mut vela)?;
        vela.says("middle of its motion")?;
        enter(&mut vela)?;
        vela.says("from stop to stop")?;
        arm.set(|table| assert!(table.registers.iter().all(|servo| servo[55] == 0), "unlocked meanwhile"));
        if by_signal {
            let pid = vela.child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status()?.success());
        } else {
            vela.child.stdin = None;
        }
        vela.says("broken off: no file was written, the servos are locked again, without torque")?;
        assert_eq!(vela.child.wait()?.code(), Some(1));
        arm.set(|table| assert!(table.registers.iter().all(|servo| servo[55] == 1), "locked"));
        assert!(!written.exists());
    }
    Ok(())
}

/// A leader's file that cannot be read is refused before the follower has torque.
#[test]
fn a_leader_that_is_no_arm_is_refused_before_anything_moves() -> Outcome {
    let dir = tempfile::tempdir()?;
    let arm = Emulator::start()?;
    let (file, _) = arm_file(dir.path(), "follower", &arm)?;
    let (file, [zenoh, _]) = (file.display().to_string(), sessions(dir.path())?);
    let output =
        vela(&["robot", "--config", &file, "--leader", "nowhere.toml", "--zenoh", &zenoh]).output()?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nowhere.toml"), "{said}");
    arm.set(|table| assert_eq!(table.questions, 0, "the bus was not even opened"));
    Ok(())
}

/// Two cameras of 96 x 96 pixels: noise, another at every moment.
struct Cameras(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Cameras {
    fn start(session: &Session) -> Self {
        let (session, seeing) = (session.clone(), Arc::new(AtomicBool::new(true)));
        let thread = std::thread::spawn({
            let seeing = seeing.clone();
            move || {
                let mut noise = 1_u32;
                let mut byte = || {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 24) as u8
                };
                while seeing.load(Ordering::SeqCst) {
                    for topic in ["/front", "/wrist"] {
                        let (width, height, encoding) = (96, 96, "rgb8".to_owned());
                        let data = (0..96 * 96 * 3).map(|_| byte()).collect();
                        let image =
                            Image { width, height, encoding, step: 3 * width, data, ..Image::default() };
                        let key = Topic::new(topic, &keys::IMAGE).key(0);
                        let _ = session.put(key, encode(&image).unwrap_or_default()).wait();
                    }
                    std::thread::sleep(Duration::from_millis(40));
                }
            }
        });
        Self(seeing, Some(thread))
    }
}

impl Drop for Cameras {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// The shipped robot with its cameras, on these servos.
fn seeing_arm(
    dir: &Path,
    emulator: &Emulator,
    so101: &Embodiment,
) -> Result<(String, Calibration), Box<dyn std::error::Error>> {
    let motor =
        |id| MotorCalibration { id, drive_mode: 0, homing_offset: 0, range_min: 1000, range_max: 3096 };
    let motors = so101.joint_names().into_iter().map(str::to_owned).zip((1..).map(motor));
    let calibration = Calibration { motors: motors.collect() };
    calibration.save(&dir.join("arm.json"))?;
    let robot = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml");
    let file = dir.join("arm.toml");
    let camera = |name: &str| format!("[cameras.{name}]\ntopic = '/{name}'\nkind = 'raw'\n");
    let text = format!(
        "robot = '{}'\nkey = 'vela/usb'\ncalibration = 'arm.json'\n[servos]\nport = '{}'\nmin_voltage_v = 6.0\n{}{}",
        robot.display(),
        emulator.port,
        camera("front"),
        camera("wrist")
    );
    std::fs::write(&file, text)?;
    Ok((file.display().to_string(), calibration))
}

/// Waits until a servo is more than `ticks` from where they were; when that was seen.
fn moved(arm: &Emulator, from: &[u16], ticks: u16) -> Result<Instant, Box<dyn std::error::Error>> {
    let far = || positions(arm).iter().zip(from).any(|(at, from)| at.abs_diff(*from) > ticks);
    let found = (0..12_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        far()
    });
    found.then(Instant::now).ok_or_else(|| format!("it stays at {from:?}").into())
}

fn positions(arm: &Emulator) -> Vec<u16> {
    arm.set(|table| (0..table.registers.len()).map(|servo| table.word(servo, 56)).collect())
}

/// Waits until the arm stands, and looks that it stays there; where.
fn stands(arm: &Emulator) -> Vec<u16> {
    let mut last = positions(arm);
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(300));
        let now = positions(arm);
        if now == last {
            break;
        }
        last = now;
    }
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(positions(arm), last, "a held arm moves");
    last
}

/// Waits until it has said these words after `since`; when it did.
fn says_since(
    program: &mut Program,
    words: &str,
    since: Instant,
) -> Result<Instant, Box<dyn std::error::Error>> {
    loop {
        let when = program.says(words)?;
        if when >= since {
            return Ok(when);
        }
    }
}

/// Robot, policy and servos, as people start them. The policy is killed and comes back; a servo drops out and comes back,
/// and drops out for good.
#[test]
fn a_policy_moves_the_servos_and_neither_its_death_nor_a_lost_servo_leaves_the_limits() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (arm, so101) = (Emulator::start()?, Embodiment::so101()?);
    let (file, calibration) = seeing_arm(dir.path(), &arm, &so101)?;
    let [own, other] = sessions(dir.path())?;
    let mut args = vec!["robot", "--config", &file, "--json", "--zenoh", &own, "--hold-secs", "10"];
    args.extend(["--task", "touch the red cube"]);
    let mut robot = start(&args)?;
    robot.says("is on zenoh as 'vela/usb'")?;
    let session = open_session(Side::Policy, Some(Path::new(&other)))?;
    let _cameras = Cameras::start(&session);
    let begun = stands(&arm);
    let act = || start(&["act", "--key", "vela/usb", "--zenoh", &other]);
    let mut policy = act()?;
    moved(&arm, &begun, 20)?;

    // SIGKILL: nothing says goodbye.
    let killed = Instant::now();
    policy.child.kill()?;
    let held = says_since(&mut robot, "holding: ", killed)? - killed;
    assert!(robot.heard.last().is_some_and(|line| line.contains("policy")), "{:?}", robot.heard.last());
    let stood = stands(&arm);
    let healed = Instant::now();
    let _policy = act()?;
    let again = moved(&arm, &stood, 5)? - healed;
    let mut tolls = vec![("policy killed, another process started (with its start)", held, Some(again))];

    let lose = |robot: &mut Program, id: u8| -> Result<Duration, Box<dyn std::error::Error>> {
        robot.says("running")?;
        let lost = Instant::now();
        arm.set(|table| table.silent = Some(id));
        let held = says_since(robot, &format!("servo {id}"), lost)? - lost;
        assert!(
            robot.heard.last().is_some_and(|line| line.starts_with("holding: ")),
            "{:?}",
            robot.heard.last()
        );
        Ok(held)
    };
    let held = lose(&mut robot, 3)?;
    let stood = stands(&arm);
    let healed = Instant::now();
    arm.set(|table| table.silent = None);
    let again = moved(&arm, &stood, 5)? - healed;
    tolls.push(("servo drops out and comes back", held, Some(again)));
    tolls.push(("servo drops out for good, the arm stops", lose(&mut robot, 5)?, None));
    let stood = stands(&arm);
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut robot.child.stdout.take().ok_or("no stdout")?, &mut printed)?;
    assert!(robot.child.wait()?.success(), "{printed}");
    let said: Value = serde_json::from_str(&printed)?;
    let state = said["state"].as_str().ok_or("no state")?;
    assert!(state.starts_with("stopped: held for 10.0 s: ") && state.contains("servo 5"), "{said}");
    assert!(said["chunks"].as_u64() > Some(0) && said["events_dropped"] == 0, "{said}");
    assert_eq!(positions(&arm), stood, "it stays where it held");

    // Everything that the servos were ever sent, and where they stand: inside the range, no step faster than allowed.
    let (goals, steps) = arm.set(|table| (table.goals.clone(), table.steps.clone()));
    let (lowest, highest): (Vec<u16>, Vec<u16>) = goals.into_iter().unzip();
    let rad = |k: usize, ticks: u16| calibration.position(&so101, &so101.joints[k].name, ticks.into());
    let mut excess = 0.0_f64;
    for row in [lowest, highest, stood] {
        let joints =
            row.iter().enumerate().map(|(k, ticks)| rad(k, *ticks)).collect::<Result<Vec<_>, _>>()?;
        excess = excess.max(excess_rad(&so101, &joints));
    }
    assert!(excess == 0.0, "{excess}");
    for (k, joint) in so101.joints.iter().enumerate() {
        let tick_rad = (rad(k, 3096)? - rad(k, 1000)?) / 2096.0;
        let speed = (f64::from(steps[k]) - 1.0).max(0.0) * tick_rad / so101.period_secs();
        assert!(speed <= joint.limits.velocity, "{}: {speed} rad/s", joint.name);
    }
    arm.set(|table| assert!(table.registers.iter().all(|servo| servo[40] == 1), "torque stays on"));
    for (name, held, again) in tolls {
        let (held_secs, moved_secs) = (Some(held.as_secs_f64()), again.map(|again| again.as_secs_f64()));
        Toll { held_secs, moved_secs, excess_rad: Some(excess), ..Toll::default() }.tell(name);
    }
    Ok(())
}
