//! `vela eval heads`: what each way of decoding actions is worth, on one frozen trunk and on a task with two ways; and what
//! projectors are worth under the flow head.

mod play;
mod projectors;
mod study;

use crate::chooser;
use crate::stats::{quantile, wilson95};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use play::Played;
pub use play::TASKS;
use serde_json::{Value, json};
use std::path::PathBuf;
use vela_embodiment::{Clock, MonotonicClock, Policy};
use vela_policy::HeadCard;
use vela_train::two_ways::{self, Learnt};

/// Compare the heads: tokens, FAST, regression, diffusion and flow, with chunks and step by step, on the tabletop, and on a
/// task with two equally good ways around an obstacle; and the projectors under the flow head.
#[derive(clap::Args)]
pub struct Args {
    /// Where the heads' weights are.
    #[arg(long, default_value = crate::chooser::HEADS_DIR)]
    dir: PathBuf,
    /// Train the tabletop's heads and projectors first, and write them there.
    #[arg(long)]
    train: bool,
    /// Where the trunk's prefixes are kept for training; made if they are not there.
    #[arg(long, default_value = "out/heads/prefixes.safetensors")]
    prefixes: PathBuf,
    /// Where what the tower saw is kept for training projectors; made if it is not there.
    #[arg(long, default_value = "out/heads/sights.safetensors")]
    sights: PathBuf,
    /// Lessons of the scripted expert, and as many of the policy that ships, to train on.
    #[arg(long, default_value_t = 800)]
    lessons: usize,
    /// Training steps of each of the tabletop's heads.
    #[arg(long, default_value_t = 1000)]
    steps: usize,
    /// Training steps of each projector and its flow head.
    #[arg(long, default_value_t = 1000)]
    projector_steps: usize,
    /// Training steps of each head on the two ways.
    #[arg(long, default_value_t = 700)]
    two_ways_steps: usize,
    /// New scenes of the two ways.
    #[arg(long, default_value_t = 400)]
    scenes: usize,
    /// Episodes of each head on the tabletop, over reach, push and pick in turn.
    #[arg(long, default_value_t = 24)]
    episodes: usize,
    /// Seed of the first episode.
    #[arg(long, default_value_t = 3_000_000)]
    seed: u64,
    /// One part only.
    #[arg(long)]
    only: Option<Part>,
    /// Some of the tabletop's heads and projectors only, by name: tokens-chunk, tokens-step, fast-chunk and so on, flow-mlp,
    /// flow-pixel-shuffle, flow-q-former.
    #[arg(long, value_delimiter = ',')]
    heads: Vec<String>,
    /// Threads of training; the result does not depend on them.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A part of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The tabletop's heads.
    Tabletop,
    /// The projectors under the flow head, on the tabletop.
    Projectors,
    /// The task with two ways.
    TwoWays,
}

/// A line of the tabletop's table.
struct Row {
    name: String,
    chunked: bool,
    played: Played,
    head_ms: f64,
    parameters: usize,
    bytes: u64,
    /// Tokens of a picture behind the head's own projector, and the numbers that this holds.
    projector: Option<[usize; 2]>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let known = [study::names(), projectors::names()];
    if let Some(name) = args.heads.iter().find(|name| known.iter().all(|names| !names.contains(name))) {
        bail!("unknown head '{name}'; known: {}", known.concat().join(", "));
    }
    let wanted = |part: Part| args.only.is_none_or(|only| only == part);
    let chosen = |part: Part, names: &[String]| -> Vec<String> {
        let asked = |name: &&String| args.heads.is_empty() || args.heads.contains(name);
        if wanted(part) { names.iter().filter(asked).cloned().collect() } else { Vec::new() }
    };
    let [heads, projectors] = [chosen(Part::Tabletop, &known[0]), chosen(Part::Projectors, &known[1])];
    if args.train && !heads.is_empty() {
        study::train(args, &heads)?;
    }
    if args.train && !projectors.is_empty() {
        projectors::train(args, &projectors)?;
    }
    let bar = bar((heads.len() + projectors.len()) * args.episodes, "episodes")?;
    let judged = |names: &[String]| {
        let one = |name: &String| {
            let row = judge(args, name, &bar)?;
            // Where no bar is drawn, and for whoever stops the run before its end.
            bar.suspend(|| eprintln!("{name}: {} of {}", row.played.successes(), row.played.episodes()));
            Ok(row)
        };
        names.iter().map(one).collect::<Result<Vec<_>>>()
    };
    let (rows, under) = (judged(&heads)?, judged(&projectors)?);
    bar.finish_and_clear();
    let ways = if wanted(Part::TwoWays) { both_ways(args)? } else { Vec::new() };
    if args.json {
        println!(
            "{}",
            json!({"heads": rows.iter().map(line).collect::<Vec<_>>(), "projectors": under.iter().map(line).collect::<Vec<_>>(),
                "two_ways": ways.iter().map(way).collect::<Vec<_>>()})
        );
        return Ok(());
    }
    print(args, [("head", &rows), ("projector", &under)], &ways);
    Ok(())
}

/// One head over the episodes.
fn judge(args: &Args, name: &str, bar: &ProgressBar) -> Result<Row> {
    let mut policy = chooser::head(&args.dir.join(name).to_string_lossy())?;
    let [_, weights] = HeadCard::files(&args.dir, name);
    let file = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu)?;
    let card = policy.card();
    let held = |(name, tensor): (&String, &candle_core::Tensor)| {
        if name.starts_with("projector.") { tensor.elem_count() } else { 0 }
    };
    let projector = policy.tokens_per_picture().map(|tokens| [tokens, file.iter().map(held).sum()]);
    let mut row = Row {
        name: match projector {
            Some(_) => projectors::kind(name).to_owned(),
            None => card.head.kind.name().to_owned(),
        },
        projector,
        chunked: policy.spec().horizon > 1,
        played: Played::default(),
        head_ms: 0.0,
        parameters: file.values().map(candle_core::Tensor::elem_count).sum(),
        bytes: std::fs::metadata(&weights)?.len(),
    };
    vela_nn::threads::with_threads(1, || -> Result<()> {
        row.played = play::play(&mut policy, args.episodes, args.seed, &mut || bar.inc(1))?;
        let seen = play::a_look(&mut policy)?;
        let clock = MonotonicClock::new();
        let mut secs = Vec::new();
        for seed in 0..30 {
            let start = clock.now();
            policy.decode(&seen, seed)?;
            secs.push(clock.now().secs_since(start));
        }
        row.head_ms = quantile(&secs, 0.5) * 1e3;
        Ok(())
    })?;
    Ok(row)
}

/// Every head learns the two ways and is judged.
fn both_ways(args: &Args) -> Result<Vec<(&'static str, Learnt)>> {
    let budget = two_ways::budget(args.two_ways_steps);
    let kinds = two_ways::kinds()?;
    let bar = bar(kinds.len() * budget.steps, "steps")?;
    let one = |kind: &vela_policy::HeadKind| -> Result<(&'static str, Learnt)> {
        let learn = || two_ways::learn(kind, &budget, args.scenes, &mut |_, _| bar.inc(1));
        Ok((kind.name(), vela_nn::threads::with_threads(args.threads, learn)?))
    };
    let ways = kinds.iter().map(one).collect::<Result<_>>()?;
    bar.finish_and_clear();
    Ok(ways)
}

fn bar(count: usize, what: &str) -> Result<ProgressBar> {
    let style =
        ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left  {{msg}}"))?;
    Ok(ProgressBar::new(count as u64).with_style(style))
}

fn line(row: &Row) -> Value {
    let p = &row.played;
    let tasks: Vec<Value> = p
        .tasks
        .iter()
        .map(|(task, [won, all])| json!({"task": task, "successes": won, "episodes": all}))
        .collect();
    let mut line = json!({"head": row.name, "chunked": row.chunked, "rate": p.rate(), "ci95": wilson95(p.successes(), p.episodes()),
        "episodes": p.episodes(), "tasks": tasks, "chunk_ms": quantile(&p.infer_secs, 0.5) * 1e3,
        "head_ms": row.head_ms, "jerk": p.jerk(), "parameters": row.parameters, "bytes": row.bytes});
    if let Some([tokens, numbers]) = row.projector {
        line["head"] = "flow".into();
        line["projector"] = row.name.clone().into();
        line["tokens_per_picture"] = tokens.into();
        line["projector_parameters"] = numbers.into();
    }
    line
}

fn way((head, Learnt { tally, ways }): &(&str, Learnt)) -> Value {
    json!({"head": head, "rate": tally.rate, "left": tally.left, "right": tally.right, "jerk": tally.jerk, "ways": ways})
}

fn print(args: &Args, tables: [(&str, &[Row]); 2], ways: &[(&str, Learnt)]) {
    for (first, rows) in tables {
        table(first, rows);
    }
    if tables.iter().any(|(_, rows)| !rows.is_empty()) {
        println!(
            "chunk ms: trunk and head, head ms: the head alone, medians on one thread; jerk: rms third difference of"
        );
        println!("the commanded arm joints, mrad per tick cubed");
    }
    if !ways.is_empty() {
        println!(
            "{:<14} {:>7} {:>6} {:>6} {:>6}   of {} new scenes",
            "two ways", "rate", "left", "right", "jerk", args.scenes
        );
    }
    for (head, Learnt { tally, .. }) in ways {
        println!(
            "{head:<14} {:>5.1} % {:>6} {:>6} {:>6.1}",
            tally.rate * 1e2,
            tally.left,
            tally.right,
            tally.jerk
        );
    }
}

/// Rows under a header whose first column is `first`; nothing without rows.
fn table(first: &str, rows: &[Row]) {
    if !rows.is_empty() {
        println!(
            "{:<13} {:<7} {:>9} {:>7}   {:<15} {:>9} {:>8} {:>7} {:>8}",
            first, "chunks", "successes", "rate", "95 % interval", "chunk ms", "head ms", "jerk", "bytes"
        );
    }
    for row in rows {
        let p = &row.played;
        let [low, high] = wilson95(p.successes(), p.episodes());
        println!(
            "{:<13} {:<7} {:>9} {:>5.1} %   {:<15} {:>9.1} {:>8.1} {:>7.2} {:>8}",
            row.name,
            if row.chunked { "yes" } else { "no" },
            format!("{}/{}", p.successes(), p.episodes()),
            p.rate() * 1e2,
            format!("{:.1} - {:.1} %", low * 1e2, high * 1e2),
            quantile(&p.infer_secs, 0.5) * 1e3,
            row.head_ms,
            p.jerk(),
            row.bytes
        );
    }
}
