//! `vela eval`: success rates in lockstep, as fast as it goes.

use crate::chooser::{Chosen, Following, choose};
use crate::outside::{self, Outside};
use crate::stats::{quantile, wilson95};
use crate::verdicts::{Logging, Minutes};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value, json};
use vela_embodiment::{Embodiment, Episode, Robot};
use vela_robots::{Rollout, RolloutOptions, rollout, rollout_expert};
use vela_sim::expert::ScriptedExpert;
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};

/// Play a suite of episodes in lockstep and count the successes; `vqa` and `pope` score a VLM, `heads` compares action
/// heads, `rtc` delays the policy.
///
/// The gate's verdicts on the built-in simulator are written down only with --log; those on an environment elsewhere always,
/// unless --no-log says otherwise.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Which suite: tabletop, or metaworld (ten tasks, served by robots/python's example).
    #[arg(long, default_value = "tabletop")]
    suite: String,
    /// One task only: reach, push, pick, place or stack.
    #[arg(long)]
    task: Option<String>,
    /// Episodes per task.
    #[arg(long, default_value_t = 100)]
    episodes: usize,
    /// Seed of the first episode; the others follow it.
    #[arg(long, default_value_t = 1_000_000)]
    seed: u64,
    /// Who drives: builtin, expert, or a policy folder.
    #[arg(long, default_value = "builtin")]
    policy: String,
    /// Domain randomisation: light, colours, cameras, friction, mass, more distractors.
    #[arg(long)]
    randomise: bool,
    /// Which episodes: test (the default), held_out_phrasing, held_out_pair, swap (a test scene, another object named) or
    /// train.
    #[arg(long)]
    split: Option<String>,
    /// Carry out this many ticks of each chunk instead of the policy's own number.
    #[arg(long)]
    execute: Option<usize>,
    #[command(flatten)]
    following: Following,
    /// Milliseconds from an observation to its chunk, in the simulator's time.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    #[command(flatten)]
    outside: Outside,
    #[command(flatten)]
    logging: Logging,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What else can be scored.
#[derive(clap::Subcommand)]
enum Other {
    /// Questions about pictures that training never saw, by kind.
    Vqa(crate::eval_pairs::Args),
    /// Whether the model says that things are there which are not.
    Pope(crate::eval_vlm::Args),
    /// Ways of decoding actions, side by side.
    Heads(crate::eval_heads::Args),
    /// Real-time chunking under delay.
    Rtc(crate::eval_rtc::Args),
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.other {
        Some(Other::Vqa(args)) => return crate::eval_pairs::run(args),
        Some(Other::Pope(args)) => return crate::eval_vlm::pope(args),
        Some(Other::Heads(args)) => return crate::eval_heads::run(args),
        Some(Other::Rtc(args)) => return crate::eval_rtc::run(args),
        None => {}
    }
    let suite = (args.suite == "metaworld").then_some((outside::KEY, outside::MT10));
    if let Some(key) = args.outside.env.as_deref().or(suite.map(|(key, _)| key)) {
        if args.split.is_some() {
            bail!("--split chooses among the tabletop's episodes; an environment elsewhere has its own");
        }
        let job = outside::Job {
            task: args.task.as_deref().or(suite.map(|(_, tasks)| tasks)).unwrap_or_default(),
            episodes: args.episodes as u64,
            seed: args.seed,
            policy: &args.policy,
            following: args.following,
            execute: args.execute,
            delay_ms: args.delay_ms,
            randomise: args.randomise,
            json: args.json,
        };
        return outside::eval(&args.outside, key, &job, &args.logging);
    }
    if args.suite != "tabletop" {
        bail!("unknown suite '{}'; known: tabletop, metaworld (served by robots/python)", args.suite);
    }
    let tasks = match &args.task {
        Some(name) => vec![TaskKind::from_name(name)?],
        None => TaskKind::ALL.to_vec(),
    };
    let split_name = args.split.as_deref().unwrap_or("test");
    let split = Split::from_name(split_name)?;
    choose(&args.policy, &Embodiment::so101()?, args.following)?;
    let log = args.logging.open_named("eval")?;
    let bar = ProgressBar::new((tasks.len() * args.episodes) as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} episodes, {eta} left")?);
    let mut rows = Vec::new();
    let mut infer_secs = Vec::new();
    for task in tasks {
        let played: Vec<(Rollout, Vec<Value>)> = (0..args.episodes as u64)
            .into_par_iter()
            .map_init(
                || Player::new(args, split),
                |player, k| {
                    let player = player.as_mut().map_err(|e| anyhow::anyhow!("{e:#}"))?;
                    let played =
                        vela_nn::threads::with_threads(1, || player.play(args, task, args.seed + k))?;
                    bar.inc(1);
                    Ok(played)
                },
            )
            .collect::<Result<_>>()?;
        // In the order of the seeds, whoever was done first.
        played.iter().try_for_each(|(_, verdicts)| log.write(verdicts))?;
        let played: Vec<Rollout> = played.into_iter().map(|(rollout, _)| rollout).collect();
        let successes = played.iter().filter(|r| r.outcome.success).count();
        let seconds: Vec<f64> =
            played.iter().filter(|r| r.outcome.success).map(|r| r.outcome.seconds).collect();
        infer_secs.extend(played.iter().flat_map(|r| r.infer_secs.iter().copied()));
        rows.push((task, played.len(), successes, quantile(&seconds, 0.5)));
    }
    bar.finish_and_clear();
    let ms = |q| quantile(&infer_secs, q) * 1e3;
    let episodes: usize = rows.iter().map(|row| row.1).sum();
    let successes: usize = rows.iter().map(|row| row.2).sum();
    let rate = |successes: usize, episodes: usize| successes as f64 / episodes.max(1) as f64;
    if args.json {
        let tasks: Vec<_> = rows
            .iter()
            .map(|(task, n, k, seconds)| {
                json!({"task": task.name(), "episodes": n, "successes": k, "rate": rate(*k, *n),
                    "ci95": wilson95(*k, *n), "median_success_secs": seconds})
            })
            .collect();
        let report = json!({"suite": args.suite, "split": split_name, "policy": args.policy,
            "randomise": args.randomise, "delay_ms": args.delay_ms, "tasks": tasks, "rate": rate(successes, episodes),
            "log": log.path(), "policy_ms": {"p50": ms(0.5), "p99": ms(0.99)}});
        println!("{report}");
        return Ok(());
    }
    println!(
        "{:<8} {:>9} {:>9} {:>7}   {:<15} {:>9}",
        "task", "episodes", "successes", "rate", "95 % interval", "seconds"
    );
    for (task, n, k, seconds) in &rows {
        let [low, high] = wilson95(*k, *n);
        let interval = format!("{:.1} - {:.1} %", low * 1e2, high * 1e2);
        println!(
            "{:<8} {n:>9} {k:>9} {:>5.1} %   {interval:<15} {seconds:>9.1}",
            task.name(),
            rate(*k, *n) * 1e2
        );
    }
    println!("policy latency per chunk, one thread: p50 {:.1} ms, p99 {:.1} ms", ms(0.5), ms(0.99));
    Ok(())
}

/// A time in control ticks, to the nearest.
pub fn ticks_of(ms: u64, embodiment: &Embodiment) -> usize {
    (ms as f64 / 1e3 * embodiment.control_hz).round() as usize
}

/// A table and someone who plays at it.
struct Player {
    table: Tabletop,
    chosen: Chosen,
    expert: ScriptedExpert,
}

impl Player {
    fn new(args: &Args, split: Split) -> Result<Self> {
        let embodiment = Embodiment::so101()?;
        let chosen = choose(&args.policy, &embodiment, args.following)?;
        let table = match chosen {
            Chosen::Expert => Tabletop::blind(&embodiment, split)?,
            Chosen::Policy(_) => Tabletop::lockstep(&embodiment, split)?,
        };
        Ok(Self { table, chosen, expert: ScriptedExpert::new(&embodiment)? })
    }

    /// How an episode went, and the lines of its verdicts if there is a log.
    fn play(&mut self, args: &Args, task: TaskKind, seed: u64) -> Result<(Rollout, Vec<Value>)> {
        let episode = Episode { task: task.name().into(), seed, randomise: args.randomise };
        let delay_ticks = ticks_of(args.delay_ms, self.table.embodiment());
        let options =
            RolloutOptions { seed, execute: args.execute, delay_ticks, ..RolloutOptions::default() };
        let mut minutes = args.logging.named().then(|| Minutes::of(&episode));
        let watch = &mut |_: &Tabletop, event: vela_robots::RolloutEvent<'_>| {
            if let Some(minutes) = &mut minutes {
                minutes.hear(&event);
            }
        };
        let rollout = match &mut self.chosen {
            Chosen::Expert => rollout_expert(&mut self.table, &mut self.expert, &episode, &options, watch)?,
            Chosen::Policy(policy) => rollout(&mut self.table, policy.as_mut(), &episode, &options, watch)?,
        };
        Ok((rollout, minutes.map(Minutes::finish).unwrap_or_default()))
    }
}
