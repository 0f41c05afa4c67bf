//! `vela robot` with arms on USB, over the built binary: calibrating, and one arm following another. The servos are
//! emulated on pseudo-terminals.

#[path = "../robots/tests/robots/emulator.rs"]
mod emulator;

use emulator::Emulator;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A program whose words come line by line; killed when the test is over.
struct Program {
    child: Child,
    said: Receiver<String>,
    heard: Vec<String>,
}

impl Program {
    fn start(args: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vela"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (sender, said) = channel();
        let stderr = child.stderr.take().ok_or("no stderr")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, said, heard: Vec::new() })
    }

    /// Waits until a line of its standard error has these words.
    fn says(&mut self, words: &str) -> Outcome {
        while let Ok(line) = self.said.recv_timeout(Duration::from_secs(20)) {
            self.heard.push(line.clone());
            if line.contains(words) {
                return Ok(());
            }
        }
        Err(format!("it never said '{words}', but {:#?}", self.heard).into())
    }

    fn enter(&mut self) -> Outcome {
        self.child.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

/// A zenoh config on a free port.
fn zenoh(dir: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let path = dir.join("robot.json5");
    let config = format!(
        "{{mode: 'peer', listen: {{endpoints: ['tcp/127.0.0.1:{port}']}}, connect: {{endpoints: []}}, \
         scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}}}"
    );
    std::fs::write(&path, config)?;
    Ok(path.display().to_string())
}

/// The procedure with Enter and hands; the JSON that it prints.
fn calibrate(file: &Path, emulator: &Emulator) -> Result<Value, Box<dyn std::error::Error>> {
    let mut vela =
        Program::start(&["robot", "--config", &file.display().to_string(), "--calibrate", "--json"])?;
    vela.says("Hold the arm")?;
    vela.enter()?;
    vela.says("middle of its motion")?;
    vela.enter()?;
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
    vela.enter()?;
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut vela.child.stdout.take().ok_or("no stdout")?, &mut printed)?;
    assert!(vela.child.wait()?.success(), "{printed} {:#?}", vela.said.iter().collect::<Vec<_>>());
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

    let zenoh = zenoh(dir.path())?;
    let [follower, leader] = [&follower, &leader].map(|path| path.display().to_string());
    // The hand holds the leader 300 ticks (26 degrees) to one side.
    hand.set(|table| table.turn(0, 300));
    let mut vela =
        Program::start(&["robot", "--config", &follower, "--leader", &leader, "--zenoh", &zenoh, "--json"])?;
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
    let zenoh = zenoh(dir.path())?;
    let look = || -> Result<std::process::Output, std::io::Error> {
        Command::new(env!("CARGO_BIN_EXE_vela"))
            .args(["robot", "--config", &file, "--look", "--json", "--zenoh", &zenoh])
            .stdin(Stdio::null())
            .output()
    };
    let refused = look()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("keeps offset 0, range 1000 to 3096, the file says offset 7, range 800"), "{said}");
    let mut vela = Program::start(&["robot", "--config", &file, "--apply-calibration"])?;
    vela.says("Hold the arm")?;
    vela.enter()?;
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
        let mut vela = Program::start(&["robot", "--config", &file, "--calibrate"])?;
        vela.says("Hold the arm")?;
        vela.enter()?;
        vela.says("middle of its motion")?;
        vela.enter()?;
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
    let (file, zenoh) = (file.display().to_string(), zenoh(dir.path())?);
    let output = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["robot", "--config", &file, "--leader", "nowhere.toml", "--zenoh", &zenoh])
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nowhere.toml"), "{said}");
    arm.set(|table| assert_eq!(table.questions, 0, "the bus was not even opened"));
    Ok(())
}
