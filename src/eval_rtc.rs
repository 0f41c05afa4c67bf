//! `vela eval rtc`: the policy that ships under injected inference delay, with real-time chunking and without.

mod splices;

use crate::builtin;
use crate::eval::ticks_of;
use crate::eval_heads::TASKS;
use crate::stats::{quantile, wilson95};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use splices::{Sizes, Splices};
use std::path::PathBuf;
use vela_embodiment::{Embodiment, Episode, Policy};
use vela_policy::rtc::{Pull, Schedule, Until};
use vela_policy::{Guide, VlaPolicy};
use vela_robots::{Resolver, RolloutEvent, RolloutOptions, rollout};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::Split;

/// Delay the policy's chunks in the simulator's time: successes and the jump at each splice, with real-time chunking and with
/// a plain switch to the newer chunk.
#[derive(clap::Args)]
pub struct Args {
    /// Milliseconds from an observation to its chunk; no delay is always played too.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 200, 300])]
    delay_ms: Vec<u64>,
    /// Episodes of each delay, over reach, push and pick in turn.
    #[arg(long, default_value_t = 30)]
    episodes: usize,
    /// Seed of the first episode.
    #[arg(long, default_value_t = 4_000_000)]
    seed: u64,
    /// How the old chunk acts on the new one.
    #[arg(long, value_enum, default_value_t = Form::Straight)]
    pull: Form,
    /// How the pull falls off after the delay.
    #[arg(long, value_enum, default_value_t = Fall::Ones)]
    schedule: Fall,
    /// Upper bound of the pull.
    #[arg(long, default_value_t = 5.0)]
    max_weight: f64,
    /// Ticks after the delay on which the old chunk still acts.
    #[arg(long, default_value_t = 4)]
    overlap: usize,
    /// Actions per chunk; without it, the policy's own, or two delays and two ticks where that is more.
    #[arg(long)]
    horizon: Option<usize>,
    /// The policy: builtin, or a policy folder.
    #[arg(long, default_value = "builtin")]
    policy: PathBuf,
    /// Play one of the two ways to switch only: plain or rtc.
    #[arg(long, value_enum)]
    only: Option<Switch>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A form of real-time chunking.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// As if the network's Jacobian were the identity.
    Straight,
    /// Back through the network.
    Through,
}

/// What happens when a newer chunk arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// It is carried out from the action whose time has come.
    Plain,
    /// The same, and it was made to go on where the old one is.
    Rtc,
}

/// A schedule.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Fall {
    /// Full up to the execution horizon.
    Ones,
    /// In a line.
    Linear,
    /// In a line, bent.
    Exp,
}

/// A line of the table.
struct Row {
    delay_ms: u64,
    /// Actions per chunk.
    horizon: usize,
    rtc: bool,
    successes: usize,
    /// Ticks without a plan, of all.
    held: [usize; 2],
    splices: Splices,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.episodes == 0 {
        bail!("expected at least one episode");
    }
    let guide = Guide {
        schedule: match args.schedule {
            Fall::Ones => Schedule::Ones,
            Fall::Linear => Schedule::Linear,
            Fall::Exp => Schedule::Exp,
        },
        max_weight: args.max_weight,
        pull: match args.pull {
            Form::Straight => Pull::Straight,
            Form::Through => Pull::Through,
        },
        until: Until::AfterDelay(args.overlap),
    };
    guide.check()?;
    let switches = match args.only {
        Some(one) => vec![one],
        None => vec![Switch::Plain, Switch::Rtc],
    };
    let delays: Vec<u64> =
        std::iter::once(0).chain(args.delay_ms.iter().copied().filter(|ms| *ms > 0)).collect();
    let bar = ProgressBar::new((switches.len() * delays.len() * args.episodes) as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} episodes, {eta} left")?);
    let mut policy = match args.policy.to_str() {
        Some("builtin") => builtin::policy()?,
        _ => VlaPolicy::load(&args.policy).with_context(|| format!("loading {}", args.policy.display()))?,
    };
    let own = policy.spec().horizon;
    let mut rows = Vec::new();
    for delay_ms in delays {
        for switch in &switches {
            let rtc = *switch == Switch::Rtc;
            policy.set_guide(rtc.then_some(guide));
            let row = || play(args, own, &mut policy, delay_ms, rtc, &bar);
            rows.push(vela_nn::threads::with_threads(1, row)?);
        }
    }
    bar.finish_and_clear();
    // The yardstick of all rows: steps inside chunks where nothing is late.
    let sigma = rows.first().map(|row| row.splices.deviation()).unwrap_or_default();
    let sizes: Vec<Sizes> = rows.iter().map(|row| row.splices.sizes(&sigma)).collect();
    match args.json {
        true => println!("{}", report(args, &rows, &sizes)),
        false => print(args, &rows, &sizes),
    }
    Ok(())
}

fn play(
    args: &Args,
    own: usize,
    policy: &mut VlaPolicy,
    delay_ms: u64,
    rtc: bool,
    bar: &ProgressBar,
) -> Result<Row> {
    let embodiment = Embodiment::so101()?;
    let mut table = Tabletop::lockstep(&embodiment, Split::Test)?;
    let delay_ticks = ticks_of(delay_ms, &embodiment);
    // One question at a time: a chunk lasts from its arrival until the next one arrives, two delays after its observation.
    let horizon = args.horizon.unwrap_or(own.max(2 * delay_ticks + 2));
    policy.set_horizon(horizon)?;
    let splices = Splices::new(Resolver::new(&embodiment)?, delay_ticks);
    let mut row = Row { delay_ms, horizon, rtc, successes: 0, held: [0, 0], splices };
    for k in 0..args.episodes {
        let seed = args.seed + k as u64;
        let episode = Episode { task: TASKS[k % TASKS.len()].name().to_owned(), seed, randomise: false };
        let options = RolloutOptions { seed, delay_ticks, ..RolloutOptions::default() };
        row.splices.begin();
        let splices = &mut row.splices;
        let mut hear = |_: &Tabletop, event: RolloutEvent<'_>| splices.hear(event);
        let done = rollout(&mut table, policy, &episode, &options, &mut hear)?;
        row.successes += usize::from(done.outcome.success);
        row.held = [row.held[0] + done.held_ticks, row.held[1] + done.ticks];
        bar.inc(1);
    }
    Ok(row)
}

fn report(args: &Args, rows: &[Row], sizes: &[Sizes]) -> Value {
    let line = |(row, sizes): (&Row, &Sizes)| {
        let jumps = &sizes.jumps;
        json!({"delay_ms": row.delay_ms, "horizon": row.horizon, "rtc": row.rtc, "episodes": args.episodes, "successes": row.successes,
            "rate": row.successes as f64 / args.episodes as f64, "ci95": wilson95(row.successes, args.episodes),
            "splices": jumps.len(), "jump": {"p50": quantile(jumps, 0.5), "p95": quantile(jumps, 0.95), "under_one": sizes.under_one()},
            "held_ticks": row.held[0], "ticks": row.held[1]})
    };
    json!({"rtc": rows.iter().zip(sizes).map(line).collect::<Vec<_>>()})
}

fn print(args: &Args, rows: &[Row], sizes: &[Sizes]) {
    println!(
        "{:>8} {:<8} {:>9} {:>7}   {:<15} {:>8} {:>9} {:>9} {:>9} {:>6}",
        "delay ms",
        "switch",
        "successes",
        "rate",
        "95 % interval",
        "splices",
        "jump p50",
        "jump p95",
        "under 1",
        "held"
    );
    for (row, sizes) in rows.iter().zip(sizes) {
        let [low, high] = wilson95(row.successes, args.episodes);
        println!(
            "{:>8} {:>7} {:<6} {:>9} {:>5.1} %   {:<15} {:>8} {:>9.2} {:>9.2} {:>7.1} % {:>4.1} %",
            row.delay_ms,
            row.horizon,
            if row.rtc { "rtc" } else { "plain" },
            format!("{}/{}", row.successes, args.episodes),
            row.successes as f64 / args.episodes as f64 * 1e2,
            format!("{:.1} - {:.1} %", low * 1e2, high * 1e2),
            sizes.jumps.len(),
            quantile(&sizes.jumps, 0.5),
            quantile(&sizes.jumps, 0.95),
            sizes.under_one() * 1e2,
            row.held[0] as f64 / row.held[1].max(1) as f64 * 1e2
        );
    }
    println!(
        "jump: how far the new chunk's target is from the old one's at the tick where it takes over, in standard deviations"
    );
    println!(
        "of a tick's step inside a chunk (no delay, plain), rms over the joints; held: ticks without a plan"
    );
}
