//! `vela sim`: the simulated arm as a robot on zenoh, or one picture of its table with the truth beside it.

use crate::demo::{BASE_KEY, LINK_TIMEOUT_SECS};
use crate::operator;
use crate::realtime::{self, Stage};
use crate::robot::words;
use crate::verdicts::Logging;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vela_embodiment::{Embodiment, Environment, Episode};
use vela_robots::{
    ControlEvent, ControlOptions, Controller, RemotePolicy, Side, listen_for_stop, open_session, ros2,
};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::Split;

/// Run the simulated arm in real time as a robot on zenoh, and wait for a policy (`vela act`) to move it. Ctrl-C or SIGTERM
/// brakes it and ends it.
#[derive(clap::Args)]
pub struct Args {
    /// The task (reach, push, pick, place, stack) or a sentence of your own.
    #[arg(long, default_value = "pick")]
    task: String,
    /// Decides the scene.
    #[arg(long, default_value_t = 2_000_000)]
    seed: u64,
    /// Domain randomisation.
    #[arg(long)]
    randomise: bool,
    /// Write the front camera's picture of the scene, 640 x 480, to this PNG file and do nothing else.
    #[arg(long, value_name = "FILE.png")]
    snapshot: Option<PathBuf>,
    /// Print the scene's truth (with --snapshot) or the outcome as JSON.
    #[arg(long)]
    json: bool,
    /// A zenoh config file (JSON5) instead of the built-in one, which listens on loopback only.
    #[arg(long)]
    zenoh: Option<PathBuf>,
    /// Seconds to wait for a policy before giving up.
    #[arg(long, default_value_t = 60.0)]
    wait_secs: f64,
    /// Seconds to hold when policy or link are gone before it stops for good.
    #[arg(long, default_value_t = 2.0)]
    hold_secs: f64,
    #[command(flatten)]
    logging: Logging,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let embodiment = Embodiment::so101()?;
    let mut table = Tabletop::blind(&embodiment, Split::Test)?;
    table.reset(&Episode { task: args.task.clone(), seed: args.seed, randomise: args.randomise })?;
    match &args.snapshot {
        Some(path) => snapshot(args, &table, path),
        None => serve(args, &embodiment, table),
    }
}

fn snapshot(args: &Args, table: &Tabletop, path: &std::path::Path) -> Result<()> {
    let drawing = table.drawing();
    let view = vela_sim::camera::view("front", &drawing, 640, 480)?;
    let rgb = vela_sim::render::render(&drawing, &view);
    image::save_buffer(path, &rgb, 640, 480, image::ColorType::Rgb8)
        .with_context(|| format!("writing {}", path.display()))?;
    let objects: Vec<_> = table
        .state()
        .objects
        .iter()
        .map(|o| {
            let position: [f64; 3] = o.base_from_object.translation.vector.into();
            json!({"color": o.colour.word(), "shape": o.kind.word(), "position_m": position})
        })
        .collect();
    if args.json {
        println!("{}", json!({"objects": objects, "instruction": table.task().instruction}));
    } else {
        println!("{}: {}", path.display(), table.task().instruction);
        for object in objects {
            println!("  {} {} at {}", object["color"], object["shape"], object["position_m"]);
        }
    }
    Ok(())
}

fn serve(args: &Args, embodiment: &Embodiment, table: Tabletop) -> Result<()> {
    let session = open_session(Side::Robot, args.zenoh.as_deref())?;
    let instruction = table.task().instruction.clone();
    eprintln!("the arm is on zenoh as '{BASE_KEY}' and as a ROS 2 robot; asked to: {instruction}");
    eprintln!("now run `vela act` in another shell");
    // Not waited for: the arm stands and shows its joints until a policy comes.
    let remote = RemotePolicy::new(&session, BASE_KEY, embodiment, LINK_TIMEOUT_SECS)?;
    let Stage { arm, cameras, moments, restart } = realtime::split(table);
    let options = ControlOptions {
        start_within_secs: args.wait_secs,
        stop_after_hold_secs: args.hold_secs,
        ..ControlOptions::default()
    };
    let interrupted = operator::ending()?;
    let log = args.logging.open("sim")?;
    let (mut controller, events) = Controller::start(arm, cameras, remote, &instruction, &options)?;
    let verdicts = log.follow(&mut controller, None)?;
    let handle = controller.handle();
    let stop = handle.emergency_stop();
    let _listener = listen_for_stop(&session, BASE_KEY, &stop)?;
    operator::watch(&stop);
    let mut begun = false;
    let mut node = ros2::Node::start(&session, embodiment, &handle)?;
    loop {
        let event = events.recv_timeout(Duration::from_millis(100));
        if interrupted.load(Ordering::Acquire) {
            handle.stop("interrupted");
        }
        match event {
            Ok(event) => {
                node.publish(&event)?;
                match event {
                    // The task's time runs from the first plan on.
                    ControlEvent::Merged { .. } if !begun => {
                        begun = true;
                        restart.store(true, Ordering::Release);
                    }
                    ControlEvent::Tick(_)
                        if begun
                            && !restart.load(Ordering::Acquire)
                            && moments.get().is_some_and(|m| m.outcome.finished) =>
                    {
                        handle.stop("the episode is over");
                    }
                    ControlEvent::State { state, .. } => eprintln!("{}", words(&state)),
                    _ => {}
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let report = controller.wait().report;
    verdicts.finish()?;
    if !begun && !interrupted.load(Ordering::Acquire) {
        bail!("no policy came in {} s: run `vela act` in another shell", args.wait_secs);
    }
    let outcome = moments.get().context("the arm never moved")?.outcome;
    if args.json {
        let answer = json!({"instruction": instruction, "success": outcome.success, "seconds": outcome.seconds,
            "chunks": report.chunks, "ticks": report.ticks, "ticks_late": report.late_ticks,
            "state": words(&report.state)});
        println!("{answer}");
    } else {
        let mark = if outcome.success { "done" } else { "not done" };
        println!("\"{instruction}\": {mark} after {:.1} s, {} chunks", outcome.seconds, report.chunks);
    }
    Ok(())
}
