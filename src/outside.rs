//! `vela record --env` and `vela eval --env`: an environment in another process, such as a Gymnasium one served by
//! `robots/python`, driven in lockstep through the gate.

use crate::chooser::{Chosen, Following, choose};
use crate::demo::LINK_TIMEOUT_SECS;
use crate::eval::ticks_of;
use crate::stats::{quantile, wilson95};
use crate::verdicts::{Logging, Minutes};
use crate::video::Video;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vela_embodiment::{Action, Embodiment, Episode, Expert, Policy};
use vela_episodes::Recorder;
use vela_robots::{
    External, ExternalExpert, RemotePolicy, Rollout, RolloutEvent, RolloutOptions, Side, open_session,
    rollout, rollout_expert,
};

/// Where an environment is looked for when nobody says where.
pub const KEY: &str = "vela/gym";
/// Meta-World's MT10.
pub const MT10: &str = "reach-v3,push-v3,pick-place-v3,door-open-v3,drawer-open-v3,drawer-close-v3,\
    button-press-topdown-v3,peg-insert-side-v3,window-open-v3,window-close-v3";

/// Where the environment is.
#[derive(clap::Args)]
pub struct Outside {
    /// Drive the environment that answers at this base key (a Gymnasium environment served by robots/python) instead of
    /// the built-in simulator. `--policy expert` is its own, `--policy remote` whoever serves it with `vela act`.
    #[arg(long, value_name = "KEY")]
    pub env: Option<String>,
    /// What the environment is and may do: a file as in configs/robots (the built-in SO-101 by default).
    #[arg(long, value_name = "FILE")]
    env_robot: Option<PathBuf>,
    /// A zenoh config file (JSON5) instead of the built-in one, which listens on loopback only.
    #[arg(long)]
    pub zenoh: Option<PathBuf>,
    /// Seconds to wait for the environment, and for a remote policy; with --robot for the arm.
    #[arg(long, default_value_t = 60.0)]
    pub wait_secs: f64,
}

/// Which episodes are played, and by whom.
pub struct Job<'a> {
    /// Names of tasks, by commas; what a name means is the environment's matter.
    pub task: &'a str,
    /// Episodes of each task.
    pub episodes: u64,
    /// Seed of the first.
    pub seed: u64,
    /// Who drives.
    pub policy: &'a str,
    /// How its chunks follow each other.
    pub following: Following,
    /// Ticks of a chunk to carry out instead of the policy's own number.
    pub execute: Option<usize>,
    /// Milliseconds from an observation to its chunk, in the environment's time.
    pub delay_ms: u64,
    /// Asks the environment to vary what it can.
    pub randomise: bool,
    /// Print JSON.
    pub json: bool,
}

enum Driver {
    Expert,
    Policy(Box<dyn Policy>),
}

/// The environment's expert behind a recorder.
struct Behind;

impl Expert<Recorder<External>> for Behind {
    fn reset(&mut self) {}

    fn label(&mut self, environment: &Recorder<External>) -> vela_embodiment::Result<Action> {
        ExternalExpert.label(environment.inner())
    }
}

/// The environment, what it is, and who drives it.
fn meet(outside: &Outside, key: &str, job: &Job) -> Result<(External, Embodiment, Driver)> {
    let robot = match &outside.env_robot {
        Some(path) => Embodiment::load(path)?,
        None => Embodiment::so101()?,
    };
    let session = open_session(Side::Robot, outside.zenoh.as_deref())?;
    let environment = External::connect(&session, key, &robot, outside.wait_secs)?;
    let driver = if job.policy == "remote" {
        let mut remote = RemotePolicy::new(&session, key, &robot, LINK_TIMEOUT_SECS)?;
        remote.wait_ready(outside.wait_secs)?;
        Driver::Policy(Box::new(remote))
    } else {
        match choose(job.policy, &robot, job.following)? {
            Chosen::Expert => Driver::Expert,
            Chosen::Policy(policy) => Driver::Policy(policy),
        }
    };
    Ok((environment, robot, driver))
}

fn episodes<'a>(job: &'a Job) -> impl Iterator<Item = Episode> + 'a {
    job.task.split(',').flat_map(move |task| {
        (0..job.episodes).map(move |k| Episode {
            task: task.trim().to_owned(),
            seed: job.seed + k,
            randomise: job.randomise,
        })
    })
}

fn said(episode: &Episode, played: &Rollout) {
    let mark = if played.outcome.success { "done" } else { "not done" };
    let (seed, seconds) = (episode.seed, played.outcome.seconds);
    eprintln!("\"{}\", seed {seed}: {mark} after {seconds:.1} s", played.instruction);
}

/// An episode in which whoever drives could not is no episode.
fn driven(episode: &Episode, played: &Rollout) -> Result<()> {
    match &played.stopped {
        Some(why) => bail!("task '{}', seed {}: {why}", episode.task, episode.seed),
        None => Ok(()),
    }
}

/// Records episodes as a LeRobot dataset.
pub fn record(outside: &Outside, key: &str, out: &Path, video: &Video, job: &Job) -> Result<()> {
    let (environment, robot, mut driver) = meet(outside, key, job)?;
    let writer = video.writer(out, &robot)?;
    let recovered = writer.recovered_frames();
    let mut recorder = Recorder::new(environment, writer)?;
    let (mut successes, mut recorded) = (0, 0);
    for episode in episodes(job) {
        let options = RolloutOptions {
            seed: episode.seed,
            execute: job.execute,
            observe_every_tick: true,
            ..RolloutOptions::default()
        };
        let watch = &mut |_: &Recorder<External>, _: vela_robots::RolloutEvent<'_>| {};
        let played = match &mut driver {
            Driver::Expert => rollout_expert(&mut recorder, &mut Behind, &episode, &options, watch)?,
            Driver::Policy(policy) => rollout(&mut recorder, policy.as_mut(), &episode, &options, watch)?,
        };
        if let Err(error) = driven(&episode, &played) {
            recorder.discard_episode();
            recorder.finish().with_context(|| format!("writing {}", out.display()))?;
            return Err(error);
        }
        said(&episode, &played);
        successes += u64::from(played.outcome.success);
        recorded += 1;
        recorder
            .end_episode(
                json!({"success": played.outcome.success, "seed": episode.seed, "driver": job.policy,
                "task": episode.task, "environment": key}),
            )
            .with_context(|| format!("recording into {}", out.display()))?;
    }
    let (_, writer) = recorder.finish().with_context(|| format!("writing {}", out.display()))?;
    let (held, frames) = (writer.episodes(), writer.frames());
    if job.json {
        let answer = json!({"dataset": out, "recorded": recorded, "successes": successes, "recovered_frames": recovered,
            "episodes": held, "frames": frames});
        println!("{answer}");
    } else {
        println!(
            "{}: {recorded} episodes recorded, {successes} successful; the dataset holds {held} with {frames} frames",
            out.display()
        );
    }
    Ok(())
}

/// Counts successes, per task, and writes down what the gate says.
pub fn eval(outside: &Outside, key: &str, job: &Job, logging: &Logging) -> Result<()> {
    let (mut environment, robot, mut driver) = meet(outside, key, job)?;
    let log = logging.open("eval")?;
    let delay_ticks = ticks_of(job.delay_ms, &robot);
    let mut infer_secs = Vec::new();
    let mut played: Vec<(String, Vec<Rollout>)> = Vec::new();
    for episode in episodes(job) {
        let options = RolloutOptions {
            seed: episode.seed,
            execute: job.execute,
            delay_ticks,
            ..RolloutOptions::default()
        };
        let (mut minutes, mut unwritten) = (Minutes::of(&episode), Ok(()));
        let watch = &mut |_: &External, event: RolloutEvent<'_>| match event {
            // What cannot be written down does not happen.
            RolloutEvent::Asking { asked } if unwritten.is_err() => *asked = None,
            event => {
                minutes.hear(&event);
                let lines = minutes.take();
                if unwritten.is_ok() {
                    unwritten = log.write(&lines);
                }
            }
        };
        let one = match &mut driver {
            Driver::Expert => {
                rollout_expert(&mut environment, &mut ExternalExpert, &episode, &options, watch)?
            }
            Driver::Policy(policy) => rollout(&mut environment, policy.as_mut(), &episode, &options, watch)?,
        };
        unwritten?;
        log.write(&minutes.finish())?;
        driven(&episode, &one)?;
        said(&episode, &one);
        infer_secs.extend_from_slice(&one.infer_secs);
        match played.last_mut() {
            Some((task, rows)) if *task == episode.task => rows.push(one),
            _ => played.push((episode.task, vec![one])),
        }
    }
    if played.is_empty() {
        bail!("no episodes to play");
    }
    let rows: Vec<Value> = played
        .iter()
        .map(|(task, rows)| {
            let (n, k) = (rows.len(), rows.iter().filter(|row| row.outcome.success).count());
            json!({"task": task, "episodes": n, "successes": k, "rate": k as f64 / n as f64, "ci95": wilson95(k, n),
                "held_ticks": rows.iter().map(|row| row.held_ticks).sum::<usize>()})
        })
        .collect();
    let ms = |q| quantile(&infer_secs, q) * 1e3;
    if job.json {
        let answer = json!({"env": key, "policy": job.policy, "delay_ms": job.delay_ms, "tasks": rows,
            "log": log.path(), "policy_ms": {"p50": ms(0.5), "p99": ms(0.99)}});
        println!("{answer}");
        return Ok(());
    }
    for row in &rows {
        let interval = row["ci95"].as_array().map_or(String::new(), |ci| {
            let percent = |x: &Value| x.as_f64().unwrap_or_default() * 1e2;
            format!("{:.1} - {:.1} %", ci.first().map_or(0.0, percent), ci.last().map_or(0.0, percent))
        });
        let task = row["task"].as_str().unwrap_or_default();
        println!("{task:<24} {} of {}   {interval}", row["successes"], row["episodes"]);
    }
    Ok(())
}
