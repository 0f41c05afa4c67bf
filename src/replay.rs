//! `vela replay`: recorded episodes, shown again, and where a policy would have done something else.

use crate::chooser;
use crate::stats::quantile;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use vela_embodiment::{Clock, Embodiment, InferOptions, MonotonicClock, Policy};
use vela_episodes::{ActionError, Dataset, Recording};
use vela_robots::{Resolver, chunk_seed, require_policy_fits};
use vela_viz::{Backlog, Destination, Show, Tick};

/// Show recorded episodes, and compare a policy with them observation by observation.
#[derive(clap::Args)]
pub struct Args {
    /// A LeRobot dataset (v3.0, image mode).
    dataset: PathBuf,
    /// One episode only.
    #[arg(long)]
    episode: Option<usize>,
    /// Compare with this policy: builtin, or a policy folder.
    #[arg(long)]
    policy: Option<String>,
    /// Infer at every this many frames.
    #[arg(long, default_value_t = 8)]
    every: usize,
    /// Seed of the policy's noise: two runs give the same numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write a rerun recording.
    #[arg(long)]
    rrd: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.every == 0 {
        bail!("--every must be at least 1");
    }
    let dataset = Dataset::open(&args.dataset)?;
    let embodiment = match dataset.embodiment() {
        // Descriptions in datasets carry no URDF; the arm is drawn with the built-in one when it is the same.
        Some(own) if own.name == "so101" => Embodiment::so101()?,
        Some(own) => bail!("the dataset's robot '{}' has no URDF here; known: so101", own.name),
        None => bail!("the dataset does not describe its robot (no meta/embodiment.json)"),
    };
    dataset.require_same(&embodiment)?;
    let mut policy = args.policy.as_deref().map(|name| chooser::policy(name, &embodiment)).transpose()?;
    if let Some(policy) = &policy {
        require_policy_fits(&embodiment, policy.spec())?;
    }
    let show = match &args.rrd {
        Some(path) => Some(Show::open(&Destination::File(path.clone()), &embodiment, Backlog::Wait)?),
        None => None,
    };
    let chosen: Vec<usize> = match args.episode {
        Some(k) if k < dataset.len() => vec![k],
        Some(k) => bail!("episode {k} is not there: the dataset holds {}", dataset.len()),
        None => (0..dataset.len()).collect(),
    };
    let mut error = ActionError::new(&embodiment.joint_names());
    let mut compared = Compared::default();
    for k in chosen {
        let recording = dataset.episode(k).with_context(|| format!("episode {k}"))?;
        let plans = match &mut policy {
            Some(policy) => {
                compare(args, &embodiment, &recording, policy.as_mut(), &mut error, &mut compared)?
            }
            None => Vec::new(),
        };
        if let Some(show) = &show {
            draw(show, &recording, &plans);
        }
        compared.episodes += 1;
        compared.frames += recording.frames.len();
    }
    if let Some(show) = show {
        show.finish()?;
    }
    print(args, &error, &compared);
    Ok(())
}

#[derive(Default)]
struct Compared {
    episodes: usize,
    frames: usize,
    infer_secs: Vec<f64>,
    /// Episode, seconds and mean absolute error of each inference.
    moments: Vec<(usize, f64, f64)>,
}

/// A plan and the frame that it answers.
type Plans = Vec<(usize, Vec<Vec<f64>>)>;

fn compare(
    args: &Args,
    embodiment: &Embodiment,
    recording: &Recording,
    policy: &mut dyn Policy,
    error: &mut ActionError,
    compared: &mut Compared,
) -> Result<Plans> {
    let resolver = Resolver::new(embodiment)?;
    let clock = MonotonicClock::new();
    let history = policy.spec().history;
    let actions: Vec<Vec<f64>> = recording.frames.iter().map(|f| f.action.clone()).collect();
    let fps = embodiment.control_hz;
    let mut plans = Vec::new();
    for frame in (0..recording.frames.len()).step_by(args.every) {
        let seen: Vec<_> = (0..history)
            .map(|back| recording.frames[frame.saturating_sub(history - 1 - back)].observation.clone())
            .collect();
        let seed = chunk_seed(args.seed ^ recording.index as u64, frame as u64);
        let started = clock.now();
        let chunk = policy.infer(&seen, &InferOptions { seed, ..InferOptions::default() })?;
        compared.infer_secs.push(clock.now().secs_since(started));
        let measured = &recording.frames[frame].observation.joint_positions;
        let plan = resolver.resolve(&chunk, measured)?;
        error.add(&actions, fps, frame, &plan.targets, plan.period_secs)?;
        let mut own = ActionError::new(&embodiment.joint_names());
        own.add(&actions, fps, frame, &plan.targets, plan.period_secs)?;
        let mae = own.mean().unwrap_or_default();
        compared.moments.push((recording.index, recording.frames[frame].timestamp_secs, mae));
        plans.push((frame, plan.targets));
    }
    Ok(plans)
}

fn draw(show: &Show, recording: &Recording, plans: &Plans) {
    let Some(first) = recording.frames.first() else { return };
    show.begin_episode(recording.index, &recording.task, first.observation.stamp);
    let mut stamp = first.observation.stamp;
    for (k, frame) in recording.frames.iter().enumerate() {
        stamp = frame.observation.stamp;
        if let Some((_, plan)) = plans.iter().find(|(at, _)| *at == k) {
            show.plan(plan, stamp);
        }
        show.tick(Tick {
            observation: frame.observation.clone(),
            joint_targets: frame.action.clone(),
            held: false,
            trips: Vec::new(),
            base_from_solids: Vec::new(),
        });
    }
    let success = recording.extra.get("success").and_then(serde_json::Value::as_bool).unwrap_or(false);
    show.end_episode(success, "end of the recording", stamp);
}

fn print(args: &Args, error: &ActionError, compared: &Compared) {
    let mut worst = compared.moments.clone();
    worst.sort_by(|a, b| b.2.total_cmp(&a.2));
    worst.truncate(5);
    let ms = |q| quantile(&compared.infer_secs, q) * 1e3;
    if args.json {
        let moments: Vec<_> = worst
            .iter()
            .map(|(episode, secs, mae)| json!({"episode": episode, "seconds": secs, "mae_rad": mae}))
            .collect();
        println!(
            "{}",
            json!({"episodes": compared.episodes, "frames": compared.frames,
                "inferences": compared.moments.len(), "mae_rad": error.mean(),
                "mae_by_joint_rad": error.by_joint(), "mae_by_step_rad": error.by_step(),
                "worst": moments})
        );
        return;
    }
    println!("{} episodes, {} frames", compared.episodes, compared.frames);
    let Some(mean) = error.mean() else { return };
    println!("{} inferences; mean absolute action error {mean:.4} rad", compared.moments.len());
    println!("policy latency per chunk: p50 {:.1} ms, p99 {:.1} ms", ms(0.5), ms(0.99));
    for (joint, mae) in error.joints().iter().zip(error.by_joint()) {
        println!("  {joint:<14} {mae:.4} rad");
    }
    for (episode, secs, mae) in worst {
        println!("  worst: episode {episode} at {secs:.2} s, {mae:.4} rad");
    }
}
