//! `vela robot`: a real arm, on USB or speaking ROS 2 over zenoh, behind the safety gate; a policy (`vela act`) moves it,
//! or a hand that holds a second arm.

use crate::demo::LINK_TIMEOUT_SECS;
use crate::leading::Leader;
use crate::verdicts::Logging;
use crate::{calibrate, operator};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vela_embodiment::{JointSide, Policy};
use vela_robots::feetech::HandGuided;
use vela_robots::priority::{self, Urgency};
use vela_robots::ros2::cameras::TopicCameras;
use vela_robots::{
    ArmFile, ControlEvent, ControlOptions, Controller, RealArm, RemotePolicy, Side, State, listen_for_stop,
    open_session, press_stop, release_stop, ros2,
};

/// Run a real arm as a robot on zenoh and let a policy (`vela act`) move it through the safety gate. Ctrl-C or SIGTERM
/// brakes it, leaves its torque on and ends it.
#[derive(clap::Args)]
pub struct Args {
    /// The arm's file: which robot, how it is reached (servos on USB, or ROS 2 over zenoh), its cameras.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["stop", "release"])]
    config: Option<PathBuf>,
    /// What it is asked to do.
    #[arg(long, default_value = "pick up the red cube")]
    task: String,
    /// Show the joints once and do nothing else.
    #[arg(long)]
    look: bool,
    /// Take the torque off the servos, so that the arm can be moved by hand. It falls if nobody holds it.
    #[arg(long)]
    relax: bool,
    /// Measure the servos by hand, as LeRobot does, and write its calibration file where the arm's file names it.
    #[arg(long, conflicts_with_all = ["look", "relax"])]
    calibrate: bool,
    /// Write the calibration file that the arm's file names (LeRobot's own, for example) to the servos.
    #[arg(long, conflicts_with_all = ["look", "relax", "calibrate"])]
    apply_calibration: bool,
    /// The file of a second servo arm without torque: the arm follows the hand that moves it, and no policy.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["look", "relax", "calibrate", "apply_calibration"])]
    leader: Option<PathBuf>,
    /// Press the emergency stop of the arm with this base key, from anywhere on zenoh, and do nothing else.
    #[arg(long, value_name = "KEY")]
    stop: Option<String>,
    /// Release the emergency stop of the arm with this base key and do nothing else.
    #[arg(long, value_name = "KEY")]
    release: Option<String>,
    #[command(flatten)]
    logging: Logging,
    /// A zenoh config file (JSON5) instead of the built-in one, which listens on loopback only.
    #[arg(long)]
    zenoh: Option<PathBuf>,
    /// Seconds to wait for the arm and then for a policy.
    #[arg(long, default_value_t = 60.0)]
    wait_secs: f64,
    /// Seconds to hold when the policy, a camera or the link is gone before it stops for good: 2, behind a leader 600.
    #[arg(long)]
    hold_secs: Option<f64>,
    /// Print how it went as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.stop.is_some() || args.release.is_some() {
        let session = open_session(Side::Policy, args.zenoh.as_deref())?;
        if let Some(key) = &args.stop {
            press_stop(&session, key, "pressed by an operator")?;
        }
        if let Some(key) = &args.release {
            release_stop(&session, key)?;
        }
        if args.json {
            let said = [("stopped", &args.stop), ("released", &args.release)];
            let said: BTreeMap<_, _> = said.into_iter().filter(|(_, key)| key.is_some()).collect();
            println!("{}", json!(said));
        }
        return Ok(());
    }
    let path = args.config.as_ref().context("--config FILE is needed")?;
    if args.calibrate || args.apply_calibration {
        return calibrate::run(path, args.apply_calibration, args.json);
    }
    let (file, embodiment) = ArmFile::load(path)?;
    // Whatever may be wrong with a file is said before anything moves.
    let leader = args.leader.as_deref().map(|path| Leader::read(path, &embodiment)).transpose()?;
    let open = || open_session(Side::Robot, args.zenoh.as_deref());
    // Commands of the arm and pictures for it come first here; whoever thinks about them is in another process.
    let session = if file.control.real_time { priority::urgently(Urgency::Message, open)?? } else { open()? };
    let mut arm = file.connect(&session, &embodiment, args.wait_secs)?;
    if args.relax {
        let RealArm::Servos(servos) = &mut arm else { bail!("only servos on USB can be relaxed from here") };
        servos.relax()?;
        if args.json {
            println!("{}", json!({"relaxed": embodiment.joint_names()}));
        }
        return Ok(());
    }
    if args.look {
        return look(args, &mut arm);
    }
    let (clock, real_time) = (arm.clock(), file.control.real_time);
    let (domain, distribution) = (file.domain(), file.distribution());
    let cameras =
        TopicCameras::listen(&session, &embodiment, domain, distribution, &file.cameras, &clock, real_time)?;
    let guided = leader.is_some().then(|| HandGuided::new(&embodiment));
    let policy: Box<dyn Policy> = match &guided {
        Some(guided) => Box::new(guided.clone()),
        None => {
            let remote = RemotePolicy::new(&session, &file.key, &embodiment, LINK_TIMEOUT_SECS)?;
            file.translated(Box::new(remote), &embodiment)?
        }
    };
    let options = ControlOptions {
        gate: file.gate.clone(),
        start_within_secs: args.wait_secs,
        stop_after_hold_secs: args.hold_secs.unwrap_or(if guided.is_some() { 600.0 } else { 2.0 }),
        real_time,
        ..ControlOptions::default()
    };
    let interrupted = operator::ending()?;
    let log = args.logging.open("robot")?;
    let (mut controller, events) = Controller::start(arm, cameras, policy, &args.task, &options)?;
    let verdicts = log.follow(&mut controller, None)?;
    let handle = controller.handle();
    let stop = handle.emergency_stop();
    let _listener = listen_for_stop(&session, &file.key, &stop)?;
    operator::watch(&stop);
    let next = if guided.is_some() {
        "it follows the leader".to_owned()
    } else {
        format!("now run `vela act --key {}`", file.key)
    };
    eprintln!("the arm '{}' is on zenoh as '{}'; {next}", embodiment.name, file.key);
    let leading = match (leader, guided) {
        (Some(leader), Some(guided)) => Some(leader.start(&embodiment, &handle, guided)?),
        _ => None,
    };
    // An arm that is a ROS 2 robot already needs no second voice, at most a description.
    let (mut node, _topic) = match &file.ros2 {
        None => (Some(ros2::Node::start(&session, &embodiment, &handle)?), None),
        Some(own) => {
            let describe =
                || ros2::Node::describe(&session, &embodiment, &*clock, own.domain, own.distribution);
            let describing = own.describe.then(describe);
            let topic = ros2::listen_for_stop(&session, own.domain, &own.emergency_stop, &stop)?;
            (describing.transpose()?, Some(topic))
        }
    };
    let mut frame_age_secs = None;
    loop {
        let event = events.recv_timeout(Duration::from_millis(100));
        if interrupted.load(Ordering::Acquire) {
            handle.stop("interrupted");
        }
        match event {
            Ok(event) => {
                if let Some(node) = &mut node {
                    node.publish(&event)?;
                }
                match event {
                    ControlEvent::Scheduled(scheduling) => eprintln!("{scheduling}"),
                    ControlEvent::State { state, .. } => eprintln!("{}", words(&state)),
                    ControlEvent::Tick(tick) => frame_age_secs = tick.frame_age_secs,
                    _ => {}
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let ended = controller.wait();
    let dropped = verdicts.finish()?;
    let repeats =
        ended.arm.as_ref().map(RealArm::repeats).zip(ended.cameras.as_ref().map(TopicCameras::repeats));
    let (report, gripper) = (ended.report, ended.arm.and_then(|arm| arm.gripper_report()));
    if args.json {
        let answer = json!({"state": words(&report.state), "ticks": report.ticks, "ticks_late": report.late_ticks,
            "ticks_held": report.held_ticks, "real_time": report.real_time, "chunks": report.chunks, "trips": report.trips,
            "events_dropped": report.events_dropped, "verdicts_dropped": dropped, "log": log.path(), "gripper": gripper,
            "messages_repeated": repeats.map(|(joints, pictures)| joints + pictures),
            "frame_age_ms": frame_age_secs.map(|secs| secs * 1e3)});
        println!("{answer}");
    } else {
        println!("{} after {} ticks, {} chunks", words(&report.state), report.ticks, report.chunks);
        if let Some(gripper) = gripper {
            println!("{gripper}");
        }
    }
    if let Some(leading) = leading {
        leading.finish()?;
    } else if report.chunks == 0 && !interrupted.load(Ordering::Acquire) {
        bail!("no policy moved the arm: {}", words(&report.state));
    }
    Ok(())
}

fn look(args: &Args, arm: &mut RealArm) -> Result<()> {
    let reading = arm.joints()?;
    let names = arm.embodiment().joint_names().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let (servos, lerobot) = match arm {
        RealArm::Servos(arm) => {
            let servos = arm.servos()?;
            let lerobot = arm.in_lerobot_units(&servos)?;
            (servos, lerobot)
        }
        RealArm::Ros2(_) => (Vec::new(), Vec::new()),
    };
    let mut rows = Vec::new();
    for (k, name) in names.iter().enumerate() {
        let servo = servos.get(k);
        rows.push(json!({"joint": name, "position": reading.positions[k], "servo": servo.map(|s| s.id),
            "temperature_c": servo.map(|s| s.temperature_c), "voltage_v": servo.map(|s| s.voltage_v),
            "load": servo.map(|s| s.load), "lerobot": lerobot.get(k)}));
    }
    if args.json {
        println!("{}", json!({ "joints": rows }));
    } else {
        for (k, name) in names.iter().enumerate() {
            let of = servos.get(k).zip(lerobot.get(k)).map_or(String::new(), |(s, at)| {
                format!("  LeRobot {at:7.2}  {:.0} °C  {:.1} V", s.temperature_c, s.voltage_v)
            });
            println!("{name:>16} {:8.4}{of}", reading.positions[k]);
        }
    }
    Ok(())
}

/// A state as one line.
pub fn words(state: &State) -> String {
    match state {
        State::Running => "running".into(),
        State::Holding { reason } => format!("holding: {reason}"),
        State::Stopped { reason } => format!("stopped: {reason}"),
    }
}
