//! Ctrl-C and SIGTERM over the built binary: an arm that moves is braked within its limits, keeps its torque, and how it
//! went is told. The servos are emulated on pseudo-terminals.

#[path = "../robots/tests/robots/emulator.rs"]
mod emulator;
mod program;
mod sessions;

use emulator::Emulator;
use program::Program;
use serde_json::{Value, json};
use sessions::{sessions, text};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vela_embodiment::Embodiment;
use vela_robots::feetech::{Calibration, MotorCalibration};

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Answer<T> = Result<T, Box<dyn std::error::Error>>;

/// What the arm's file narrows of its shoulder, rad/s and rad/s^2: braking takes it 2.7 s.
const SPEED: f64 = 0.4;
const ACCELERATION: f64 = 0.15;
/// A tick of the encoder where 2096 of them are the joint's calibrated range, rad; and a tick of the loop, s.
const TICK_RAD: f64 = 2.0 * std::f64::consts::PI / 4095.0;
const PERIOD_SECS: f64 = 1.0 / 30.0;

fn vela(args: &[&str], state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).env("VELA_STATE_DIR", state);
    command
}

fn signal(program: &Program, name: &str) -> Outcome {
    let status = Command::new("kill").args([name, &program.child.id().to_string()]).status()?;
    if status.success() { Ok(()) } else { Err("it has ended already".into()) }
}

/// The status with which it ends, and all that it printed.
fn ended(program: &mut Program) -> Answer<(Option<i32>, String)> {
    let mut printed = String::new();
    program.child.stdout.take().ok_or("no stdout")?.read_to_string(&mut printed)?;
    Ok((program.child.wait()?.code(), printed))
}

/// The file of an arm of the shipped robot without its cameras, calibrated.
fn arm_file(dir: &Path, name: &str, emulator: &Emulator, gate: &str) -> Answer<String> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots");
    let mut robot = std::fs::read_to_string(configs.join("so101.toml"))?.parse::<toml::Table>()?;
    robot.remove("cameras");
    robot.insert("urdf".into(), text(&configs.join("so101.urdf")).into());
    std::fs::write(dir.join("blind.toml"), robot.to_string())?;
    let motor =
        |id| MotorCalibration { id, drive_mode: 0, homing_offset: 0, range_min: 1000, range_max: 3096 };
    let so101 = Embodiment::so101()?;
    let motors = so101.joint_names().into_iter().map(str::to_owned).zip((1..).map(motor));
    Calibration { motors: motors.collect() }.save(&dir.join(format!("{name}.json")))?;
    let file = dir.join(format!("{name}.toml"));
    let arm = format!("robot = 'blind.toml'\nkey = 'vela/{name}'\ncalibration = '{name}.json'\n");
    let servos = format!("[servos]\nport = '{}'\nmin_voltage_v = 6.0\n", emulator.port);
    std::fs::write(&file, arm + &servos + gate)?;
    Ok(text(&file))
}

/// From one goal of the shoulder to the next, ticks of the encoder.
fn steps(arm: &Emulator) -> Vec<i32> {
    arm.set(|table| table.path.windows(2).map(|two| i32::from(two[1]) - i32::from(two[0])).collect())
}

/// Waits for something that happens within a minute.
fn eventually(happens: impl Fn() -> bool) -> bool {
    (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        happens()
    })
}

/// Whether every servo's torque is this.
fn torque(arm: &Emulator, on: bool) -> bool {
    arm.set(|table| table.registers.iter().all(|servo| servo[40] == u8::from(on)))
}

/// A follower on its way to a leader that is far away, at its full speed.
fn moving(dir: &Path, hand: &Emulator, arm: &Emulator) -> Answer<Program> {
    let gate = format!("[gate.joints.shoulder_pan]\nvelocity = {SPEED}\nacceleration = {ACCELERATION}\n");
    let (leader, follower) = (arm_file(dir, "leader", hand, "")?, arm_file(dir, "follower", arm, &gate)?);
    hand.set(|table| table.turn(0, 1000));
    let [zenoh, _] = sessions(dir)?;
    let args = ["robot", "--config", &follower, "--leader", &leader, "--zenoh", &zenoh, "--json"];
    let mut robot = Program::start(&mut vela(&args, dir))?;
    robot.says("coming slowly to where the leader is")?;
    let full = (SPEED * PERIOD_SECS / TICK_RAD).floor() as i32;
    if !eventually(|| steps(arm).last().is_some_and(|step| *step >= full)) {
        return Err(format!("it never came to its speed: {:?}", steps(arm)).into());
    }
    Ok(robot)
}

#[test]
fn ctrl_c_in_mid_motion_brakes_within_the_limits_keeps_the_torque_and_tells_how_it_went() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (hand, arm) = (Emulator::start()?, Emulator::start()?);
    let mut robot = moving(dir.path(), &hand, &arm)?;
    signal(&robot, "-INT")?;
    let before = steps(&arm).len();
    let (status, printed) = ended(&mut robot)?;
    assert_eq!(status, Some(0), "{printed} {:?}", robot.heard);
    let said: Value = serde_json::from_str(&printed)?;
    assert_eq!(
        (&said["state"], &said["events_dropped"]),
        (&json!("stopped: interrupted"), &json!(0)),
        "{said}"
    );
    assert!(torque(&arm, true), "torque stays on");
    // Every goal that the servo was sent, to whole ticks of its encoder.
    let steps = steps(&arm);
    let fastest = steps.iter().map(|step| step.abs()).max().ok_or("no goals")?;
    assert!(f64::from(fastest) <= SPEED * PERIOD_SECS / TICK_RAD + 1.0, "{fastest}");
    let change = steps.windows(2).map(|two| (two[1] - two[0]).abs()).max().ok_or("no steps")?;
    assert!(f64::from(change) <= ACCELERATION * PERIOD_SECS.powi(2) / TICK_RAD + 2.0, "{change} {steps:?}");
    // It came to a stand, and that took its time: 80 ticks of the loop from full speed.
    assert_eq!(steps.last(), Some(&0), "{steps:?}");
    assert!(steps.len() >= before + 40, "{before} {steps:?}");
    println!(
        "{} goals after the signal, steps of {fastest} ticks at most, each {change} from the last",
        steps.len() - before
    );
    // The log of the verdicts is whole, up to the last tick.
    let log = std::fs::read_to_string(said["log"].as_str().ok_or("no log")?)?;
    let lines = log.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let last = lines.last().and_then(|line| line["last_tick"].as_u64());
    assert_eq!(last, said["ticks"].as_u64().map(|ticks| ticks - 1), "{log}");

    // Its torque goes when somebody asks for it.
    let follower = text(&dir.path().join("follower.toml"));
    let [zenoh, _] = sessions(dir.path())?;
    let relaxed = vela(&["robot", "--config", &follower, "--relax", "--json", "--zenoh", &zenoh], dir.path())
        .output()?;
    let told: Value = serde_json::from_slice(&relaxed.stdout)?;
    assert_eq!(told, json!({"relaxed": Embodiment::so101()?.joint_names()}));
    assert!(eventually(|| torque(&arm, false)));
    Ok(())
}

#[test]
fn a_second_signal_ends_at_once_with_the_torque_on() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (hand, arm) = (Emulator::start()?, Emulator::start()?);
    let mut robot = moving(dir.path(), &hand, &arm)?;
    signal(&robot, "-INT")?;
    robot.says("stopped: interrupted")?;
    signal(&robot, "-TERM")?;
    assert_eq!(ended(&mut robot)?, (Some(143), String::new()));
    assert!(torque(&arm, true), "torque stays on");
    Ok(())
}

#[test]
fn a_simulated_arm_ends_in_order_when_terminated_after_a_stop_from_elsewhere() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [own, other] = sessions(dir.path())?;
    let mut sim =
        Program::start(&mut vela(&["sim", "--task", "stack", "--json", "--zenoh", &own], dir.path()))?;
    sim.says("now run `vela act`")?;
    let _act = Program::start(&mut vela(&["act", "--zenoh", &other], dir.path()))?;
    sim.says("running")?;
    for (verb, word) in [("--stop", "stopped"), ("--release", "released")] {
        let args = ["robot", verb, "vela/arm", "--json", "--zenoh", &other];
        let told: Value = serde_json::from_slice(&vela(&args, dir.path()).output()?.stdout)?;
        assert_eq!(told, json!({ word: "vela/arm" }));
    }
    signal(&sim, "-TERM")?;
    let (status, printed) = ended(&mut sim)?;
    assert_eq!(status, Some(0), "{printed} {:?}", sim.heard);
    let said: Value = serde_json::from_str(&printed)?;
    assert!(said["state"].as_str().is_some_and(|state| state.contains("interrupted")), "{said}");
    assert!(said["success"] == false && said["chunks"].as_u64() > Some(0), "{said}");
    Ok(())
}

#[test]
fn an_arm_that_nobody_moved_and_a_demo_end_in_order_too() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [own, _] = sessions(dir.path())?;
    let mut sim = Program::start(&mut vela(&["sim", "--json", "--zenoh", &own], dir.path()))?;
    sim.says("the gate's verdicts: ")?;
    signal(&sim, "-INT")?;
    let (status, printed) = ended(&mut sim)?;
    let said: Value = serde_json::from_str(&printed)?;
    assert_eq!((status, &said["chunks"]), (Some(0), &json!(0)), "{said}");
    let args = ["demo", "--task", "reach", "--episodes", "1000", "--json"];
    let mut demo = Program::start(&mut vela(&args, dir.path()))?;
    demo.says("the gate's verdicts: ")?;
    signal(&demo, "-TERM")?;
    let (status, printed) = ended(&mut demo)?;
    let said: Value = serde_json::from_str(&printed)?;
    assert!(
        status == Some(0) && said["episodes"].as_array().is_some_and(|played| played.len() < 1000),
        "{said}"
    );
    Ok(())
}
