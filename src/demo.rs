//! `vela demo`: a simulated arm does what sentences ask, in real time, over zenoh, through the safety gate.

use crate::chooser::{self, Following, Switch};
use crate::live::Live;
use crate::operator;
use crate::realtime::{self, Moment, Stage};
use crate::showing;
use crate::stats::quantile;
use crate::verdicts::{Log, Logging};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use vela_embodiment::{Embodiment, Environment, Episode, Policy};
use vela_nn::threads;
use vela_robots::{
    ControlEvent, ControlOptions, ControlReport, Controller, Latest, RemotePolicy, loopback_pair,
    serve_policy,
};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};
use vela_viz::Show;

/// The base key under which robot and policy meet.
pub const BASE_KEY: &str = "vela/arm";
/// How long a chunk may take over the link before the policy counts as gone, s.
pub const LINK_TIMEOUT_SECS: f64 = 1.0;

/// Watch a simulated arm do what sentences ask: cameras, zenoh, policy, safety gate, physics, in real time. Ctrl-C
/// or SIGTERM brakes the arm and ends it; the episodes before are told.
#[derive(clap::Args)]
pub struct Args {
    /// One task (reach, push, pick, place, stack) or a sentence of your own: "pick up the green cube".
    #[arg(long)]
    task: Option<String>,
    /// Episodes per task: one; with --serve, one after the other until Ctrl-C.
    #[arg(long)]
    episodes: Option<u64>,
    /// Decides the scenes and the policy's noise.
    #[arg(long, default_value_t = 2_000_000)]
    seed: u64,
    /// The policy: builtin, or a policy folder.
    #[arg(long, default_value = "builtin")]
    policy: String,
    /// Another head on the trunk of the builtin policy: tokens-chunk, flow-step and so on, from models/heads, or a path.
    #[arg(long, conflicts_with = "policy")]
    head: Option<String>,
    #[command(flatten)]
    following: Following,
    /// Write a rerun recording.
    #[arg(long)]
    rrd: Option<PathBuf>,
    /// Open the rerun viewer, live.
    #[arg(long)]
    view: bool,
    /// Serve a page that shows what the arm's camera sees, to be asked about, while the arm works.
    #[arg(long)]
    serve: bool,
    /// With --serve: the address to listen at.
    #[arg(long, default_value = "127.0.0.1", requires = "serve")]
    host: IpAddr,
    /// With --serve: the port to listen at; 0 takes a free one.
    #[arg(long, default_value_t = 8080, requires = "serve")]
    port: u16,
    #[command(flatten)]
    logging: Logging,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// The episodes to be played: task and seed. Without end (`--serve` alone), the tasks take turns.
fn episodes<'a>(args: &Args, tasks: &'a [String]) -> Box<dyn Iterator<Item = (&'a String, u64)> + 'a> {
    let seed = args.seed;
    match args.episodes {
        None if args.serve => {
            Box::new((0..).flat_map(move |k| tasks.iter().map(move |task| (task, seed + k))))
        }
        count => {
            let count = count.unwrap_or(1);
            Box::new(tasks.iter().flat_map(move |task| (0..count).map(move |k| (task, seed + k))))
        }
    }
}

/// One line of the table.
struct Row {
    task: String,
    instruction: String,
    success: bool,
    seconds: f64,
    report: ControlReport,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let embodiment = Embodiment::so101()?;
    let tasks: Vec<String> = match &args.task {
        Some(task) => vec![task.clone()],
        None => TaskKind::ALL.iter().map(|kind| kind.name().to_owned()).collect(),
    };
    // What cannot be played is refused before anything is opened.
    let mut table = Tabletop::blind(&embodiment, Split::Test)?;
    for task in &tasks {
        table.reset(&Episode { task: task.clone(), seed: args.seed, randomise: false })?;
    }
    let mut policy: Box<dyn Policy> = match &args.head {
        Some(_) if args.following.rtc == Some(Switch::On) => {
            bail!("real-time chunking: the heads of the comparison do not have it")
        }
        Some(name) => Box::new(chooser::head(name)?),
        None => chooser::following_policy(&args.policy, &embodiment, args.following)?,
    };
    let show = showing::open(args.rrd.as_deref(), args.view, &embodiment)?;
    let live = if args.serve { Some(Live::start(args.host, args.port)?) } else { None };
    let interrupted = operator::ending()?;
    let log = args.logging.open("demo")?;
    let watching = Watching { show: show.as_ref(), live: live.as_ref(), interrupted, log };
    let (robot_session, policy_session) = loopback_pair()?;
    let shutdown = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| -> Result<Vec<Row>> {
        let server = scope.spawn(|| {
            // One thread: a network this small loses more by handing work over than it gains.
            threads::with_threads(1, || {
                serve_policy(&policy_session, BASE_KEY, policy.as_mut(), &shutdown, &mut |_| {})
            })
        });
        let played = (|| -> Result<Vec<Row>> {
            let mut remote = RemotePolicy::new(&robot_session, BASE_KEY, &embodiment, LINK_TIMEOUT_SECS)?;
            remote.wait_ready(10.0)?;
            let mut rows = Vec::new();
            for (number, (task, seed)) in episodes(args, &tasks).enumerate() {
                let episode = Episode { task: task.clone(), seed, randomise: false };
                let (row, back) = play(args, &embodiment, remote, &episode, number, &watching)?;
                if watching.is_ended() {
                    break;
                }
                rows.push(row);
                remote = back;
            }
            Ok(rows)
        })();
        shutdown.store(true, Ordering::Release);
        let served = server.join().map_err(|_| anyhow::anyhow!("the policy's thread died"))?;
        let rows = played?;
        served?;
        Ok(rows)
    })?;
    if let Some(live) = live {
        live.finish()?;
    }
    if let Some(show) = show {
        show.finish()?;
    }
    print(args, &rows)
}

/// Who looks on.
struct Watching<'a> {
    show: Option<&'a Show>,
    live: Option<&'a Live>,
    interrupted: Arc<AtomicBool>,
    log: Log,
}

impl Watching<'_> {
    /// Whether somebody ended the program.
    fn is_ended(&self) -> bool {
        self.interrupted.load(Ordering::Acquire) || self.live.is_some_and(Live::is_ended)
    }
}

fn play(
    args: &Args,
    embodiment: &Embodiment,
    policy: RemotePolicy,
    episode: &Episode,
    number: usize,
    watching: &Watching,
) -> Result<(Row, RemotePolicy)> {
    let show = watching.show;
    let mut table = Tabletop::blind(embodiment, Split::Test)?;
    table.reset(episode)?;
    let instruction = table.task().instruction.clone();
    let task = table.task().kind.name().to_owned();
    let scene = table.scene().clone();
    let Stage { arm, cameras, moments, .. } = realtime::split(table);
    if let Some(live) = watching.live {
        live.show(&moments, &instruction);
    }
    let options = ControlOptions { seed: episode.seed, ..ControlOptions::default() };
    let (mut controller, events) = Controller::start(arm, cameras, policy, &instruction, &options)?;
    let verdicts = watching.log.follow(&mut controller, Some(number))?;
    let handle = controller.handle();
    if let Some(show) = show {
        showing::begin(show, number, &instruction, &scene, moments.get().as_ref());
    }
    loop {
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok(event) => {
                let moment = moments.get();
                if let (Some(show), Some(moment)) = (show, &moment) {
                    showing::event(show, &event, moment);
                }
                if let ControlEvent::Tick(tick) = &event {
                    live_line(args, &task, &instruction, &moments, tick.tick)?;
                }
                if moment.is_some_and(|m| m.outcome.finished) {
                    handle.stop("the episode is over");
                } else if watching.is_ended() {
                    handle.stop("the demo is over");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let finished = controller.wait();
    verdicts.finish()?;
    let last = moments.get().context("the arm never moved")?;
    let (success, seconds) = (last.outcome.success, last.outcome.seconds);
    if let Some(show) = show {
        let words = if success { format!("done in {seconds:.1} s") } else { "not done".to_owned() };
        show.end_episode(success, &words, last.stamp);
    }
    if !args.json && !watching.is_ended() {
        let mark = if success { "done" } else { "not done" };
        println!("\r{task:<6} \"{instruction}\"  {mark} after {seconds:.1} s          ");
    }
    let policy = finished.policy.context("the planner's thread did not end")?;
    Ok((Row { task, instruction, success, seconds, report: finished.report }, policy))
}

fn live_line(args: &Args, task: &str, instruction: &str, moments: &Latest<Moment>, tick: u64) -> Result<()> {
    if args.json || !tick.is_multiple_of(6) || !std::io::stdout().is_terminal() {
        return Ok(());
    }
    let seconds = moments.get().map_or(0.0, |m| m.outcome.seconds);
    print!("\r{task:<6} \"{instruction}\"  {seconds:4.1} s ");
    Ok(std::io::stdout().flush()?)
}

fn print(args: &Args, rows: &[Row]) -> Result<()> {
    let ms = |values: &[f64], q| quantile(values, q) * 1e3;
    let ticks: u64 = rows.iter().map(|r| r.report.ticks).sum();
    let late: u64 = rows.iter().map(|r| r.report.late_ticks).sum();
    if args.json {
        let episodes: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({"task": r.task, "instruction": r.instruction, "success": r.success,
                    "seconds": r.seconds, "chunks": r.report.chunks,
                    "policy_ms": {"p50": ms(&r.report.infer_secs, 0.5), "p99": ms(&r.report.infer_secs, 0.99)},
                    "ticks": r.report.ticks, "ticks_late": r.report.late_ticks,
                    "gate_trips": r.report.trips, "held_ticks": r.report.held_ticks})
            })
            .collect();
        let successes = rows.iter().filter(|r| r.success).count();
        println!(
            "{}",
            json!({"episodes": episodes, "successes": successes, "ticks": ticks, "ticks_late": late})
        );
        return Ok(());
    }
    println!();
    println!(
        "{:<6} {:<42} {:>7} {:>8} {:>7} {:>15} {:>11}",
        "task", "instruction", "success", "seconds", "chunks", "policy p50/p99", "ticks late"
    );
    for r in rows {
        println!(
            "{:<6} {:<42} {:>7} {:>8.1} {:>7} {:>12} ms {:>11}",
            r.task,
            r.instruction,
            if r.success { "yes" } else { "no" },
            r.seconds,
            r.report.chunks,
            format!("{:.1}/{:.1}", ms(&r.report.infer_secs, 0.5), ms(&r.report.infer_secs, 0.99)),
            format!("{}/{}", r.report.late_ticks, r.report.ticks),
        );
    }
    println!(
        "policy latency is from question to answer over zenoh; {late} of {ticks} control ticks were late"
    );
    Ok(())
}
