//! `vela record`: episodes of the simulated arm, of an environment elsewhere or of a live arm, as a LeRobot dataset.

use crate::chooser::{Chosen, Following, choose};
use crate::outside::{self, Outside};
use crate::recording;
use crate::video::Video;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::PathBuf;
use vela_embodiment::{Action, Embodiment, Environment, Episode, Expert};
use vela_episodes::Recorder;
use vela_robots::{RolloutEvent, RolloutOptions, rollout, rollout_expert};
use vela_sim::expert::ScriptedExpert;
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};

/// Record episodes of the simulated arm in LeRobot's format (v3.0, pictures as PNG inside parquet or as video).
#[derive(clap::Args)]
pub struct Args {
    /// The dataset's folder: new, or one of the same arm to add to.
    #[arg(long)]
    out: PathBuf,
    /// One task (reach, push, pick, place, stack) or a sentence of your own; all five in turn by default.
    #[arg(long)]
    task: Option<String>,
    /// Episodes.
    #[arg(long, default_value_t = 10)]
    episodes: u64,
    /// Seed of the first episode.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Who drives: expert (scripted, reads the simulator's state), builtin, or a policy folder. A live arm's policy is no
    /// matter of the recording: it runs as `vela act`.
    #[arg(long, default_value = "expert")]
    policy: String,
    /// The expert takes over from the policy after this many seconds of an episode; what it does is marked in the
    /// column `intervention`.
    #[arg(long, conflicts_with = "env")]
    rescue_secs: Option<f64>,
    /// Domain randomisation.
    #[arg(long)]
    randomise: bool,
    /// Record the simulated arm, which is what happens without --robot and --env too.
    #[arg(long = "sim", conflicts_with_all = ["robot", "env"])]
    _sim: bool,
    #[command(flatten)]
    video: Video,
    #[command(flatten)]
    outside: Outside,
    /// Record this live arm instead, whoever drives it (`vela robot`, `vela sim`, any ROS 2 node on zenoh): the file that
    /// `vela robot --config` takes. It only listens; what the arm is commanded is the action, and frames where somebody
    /// took over from the policy are marked. The numbers are in the file's `policy_units`. Needs --task; nothing here is
    /// random, so --seed is refused. Ctrl-C or SIGTERM ends it with what it has.
    #[arg(long, value_name = "FILE", requires = "task", conflicts_with_all = ["policy", "seed", "rescue_secs", "randomise", "env"])]
    robot: Option<PathBuf>,
    /// With --robot: an episode ends after so many seconds; otherwise when Enter is pressed.
    #[arg(long, requires = "robot")]
    episode_secs: Option<f64>,
    /// With --robot: seconds between two episodes; by default none, after Enter until Enter is pressed again.
    #[arg(long, requires = "robot")]
    reset_secs: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The expert of a table that is being recorded.
struct Behind(ScriptedExpert);

impl Expert<Recorder<Tabletop>> for Behind {
    fn reset(&mut self) {
        Expert::<Tabletop>::reset(&mut self.0);
    }

    fn label(&mut self, environment: &Recorder<Tabletop>) -> vela_embodiment::Result<Action> {
        self.0.label(environment.inner())
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if let Some(key) = &args.outside.env {
        let job = outside::Job {
            task: args.task.as_deref().unwrap_or_default(),
            episodes: args.episodes,
            seed: args.seed,
            policy: &args.policy,
            following: Following::default(),
            execute: None,
            delay_ms: 0,
            randomise: args.randomise,
            json: args.json,
        };
        return outside::record(&args.outside, key, &args.out, &args.video, &job);
    }
    if let Some(robot) = &args.robot {
        return recording::run(&recording::Job {
            robot,
            out: &args.out,
            video: &args.video,
            task: args.task.as_deref().unwrap_or_default(),
            episodes: args.episodes,
            episode_secs: args.episode_secs,
            reset_secs: args.reset_secs,
            zenoh: args.outside.zenoh.as_deref(),
            wait_secs: args.outside.wait_secs,
            json: args.json,
        });
    }
    let embodiment = Embodiment::so101()?;
    let mut chosen = choose(&args.policy, &embodiment, Following::default())?;
    let writer = args.video.writer(&args.out, &embodiment)?;
    if args.rescue_secs.is_some() && matches!(chosen, Chosen::Expert) {
        bail!("--rescue-secs needs a --policy to take over from");
    }
    let recovered = writer.recovered_frames();
    if recovered > 0 && !args.json {
        println!("an earlier recording was killed: {recovered} frames of it are an episode now");
    }
    let table = Tabletop::lockstep(&embodiment, Split::Train)?;
    let mut recorder = Recorder::new(table, writer)?;
    let mut expert = Behind(ScriptedExpert::new(&embodiment)?);
    let bar = ProgressBar::new(args.episodes)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} episodes, {eta} left")?);
    let mut successes = 0;
    for k in 0..args.episodes {
        let task = match &args.task {
            Some(task) => task.clone(),
            None => TaskKind::ALL[k as usize % TaskKind::ALL.len()].name().to_owned(),
        };
        let episode = Episode { task, seed: args.seed + k, randomise: args.randomise };
        let options =
            RolloutOptions { seed: episode.seed, observe_every_tick: true, ..RolloutOptions::default() };
        let mut rescuer = ScriptedExpert::new(&embodiment)?;
        let watch = &mut |table: &Recorder<Tabletop>, event: RolloutEvent<'_>| {
            let RolloutEvent::Asking { asked } = event else { return };
            let late = args.rescue_secs.is_some_and(|secs| table.inner().outcome().seconds >= secs);
            // An expert that finds no way leaves the arm to the policy.
            if late && let Ok(action) = rescuer.label(table.inner()) {
                *asked = Some(action);
                table.mark_intervention();
            }
        };
        let played = match &mut chosen {
            Chosen::Expert => rollout_expert(&mut recorder, &mut expert, &episode, &options, watch)?,
            Chosen::Policy(policy) => rollout(&mut recorder, policy.as_mut(), &episode, &options, watch)?,
        };
        successes += usize::from(played.outcome.success);
        recorder
            .end_episode(json!({"success": played.outcome.success, "seed": episode.seed,
            "driver": args.policy, "task": episode.task, "randomise": episode.randomise}))
            .with_context(|| format!("recording into {}", args.out.display()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (_, writer) = recorder.finish().with_context(|| format!("writing {}", args.out.display()))?;
    let (episodes, frames) = (writer.episodes(), writer.frames());
    if args.json {
        println!(
            "{}",
            json!({"dataset": args.out, "recorded": args.episodes, "successes": successes,
            "recovered_frames": recovered, "episodes": episodes, "frames": frames})
        );
    } else {
        println!(
            "{}: {} episodes recorded, {successes} successful; the dataset holds {episodes} with {frames} frames",
            args.out.display(),
            args.episodes
        );
    }
    Ok(())
}
