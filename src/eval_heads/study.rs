//! The tabletop's heads in training: the frozen trunk's prefixes once, then every head on them with the same budget.

use super::{Args, bar, play::TASKS};
use crate::builtin;
use crate::teacher::TabletopTeacher;
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::path::Path;
use vela_embodiment::{Embodiment, Policy};
use vela_nn::{Weights, threads};
use vela_policy::{
    Bins, BodyConfig, BodyKind, DiffusionConfig, Fast, FlowConfig, HeadCard, HeadConfig, HeadKind, VlaPolicy,
};
use vela_train::heads::fit;
use vela_train::{Driver, HeadLessons, HeadRun, Lesson, Prefixes, Teacher};

/// The kinds of head, by name.
const KINDS: [&str; 5] = ["tokens", "fast", "regression", "diffusion", "flow"];
/// Ticks per chunk, and ticks carried out of it: those of the policy that ships.
pub const CHUNK: [usize; 2] = [16, 8];
/// Lessons of the policy that ships have seeds from here on.
const STUDENT_FROM: u64 = 500_000;

/// The names of all heads: each kind with chunks and step by step.
pub fn names() -> Vec<String> {
    KINDS.iter().flat_map(|kind| [format!("{kind}-chunk"), format!("{kind}-step")]).collect()
}

/// Trains the named heads and writes them.
pub fn train(args: &Args, names: &[String]) -> Result<()> {
    let prefixes = prefixes(args)?;
    let run = HeadRun { seed: 1, steps: args.steps, batch: 64, shards: 4, learning_rate: 2e-3 };
    let bar = bar(names.len() * run.steps, "steps")?;
    for name in names {
        let [horizon, execute] = if name.ends_with("-chunk") { CHUNK } else { [1, 1] };
        let lessons = prefixes.lessons(horizon)?;
        let [width, joints] = [prefixes.hidden.dim(2)?, prefixes.actions.dim(2)?];
        let kind = kind(name, &lessons, horizon, joints)?;
        let head = HeadConfig { kind, body: body(width), horizon, dims: joints };
        let weights = Weights::fresh(run.seed);
        let built = head.build(&weights)?;
        let draw = |rows: usize, rng: &mut rand_chacha::ChaCha8Rng| lessons.draw(rows, rng);
        let mut mean = 0.0;
        let mut watch = |step: usize, loss: f32| {
            mean += (loss - mean) / step.min(100) as f32;
            bar.inc(1);
            bar.set_message(format!("{name} {mean:.4}"));
        };
        threads::with_threads(args.threads, || fit(built.as_ref(), &weights, &run, &draw, &mut watch))?;
        eprintln!("{name}: loss {mean:.4} (mean of the last hundred steps)");
        let trunk = prefixes.trunk.clone();
        let card = HeadCard { head, execute, action: lessons.scaling, trunk, projector: None };
        save(args, name, &card, &weights)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// The body that all heads have, over hidden states of this width.
pub fn body(conditioning: usize) -> BodyConfig {
    BodyConfig { kind: BodyKind::Transformer, conditioning, width: 64, layers: 2, heads: 4 }
}

/// Writes what was trained where the heads are.
pub fn save(args: &Args, name: &str, card: &HeadCard, weights: &Weights) -> Result<()> {
    let tensors: Vec<_> =
        weights.trainable().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    Ok(card.save(&args.dir, name, &tensors)?)
}

/// How a named head decodes. Tokens take the likeliest.
fn kind(name: &str, lessons: &HeadLessons, horizon: usize, joints: usize) -> Result<HeadKind> {
    let bins = Bins { count: 256, temperature: 0.0 };
    Ok(match name.split('-').next().unwrap_or(name) {
        "tokens" => HeadKind::Tokens(bins),
        "fast" => {
            // A rounded coefficient may be off by half of one over the scale, whatever the horizon.
            let (scale, vocab) = if horizon > 1 { (25.0, 512) } else { (100.0, 512) };
            let codec = Fast::fit(&lessons.chunks(1000)?, horizon, joints, scale, vocab)?;
            HeadKind::Fast { codec, temperature: 0.0 }
        }
        "regression" => HeadKind::Regression,
        "diffusion" => HeadKind::Diffusion(DiffusionConfig::default()),
        _ => HeadKind::Flow(FlowConfig::default()),
    })
}

/// What the trunk makes of the lessons: read from the file, or made and written there.
fn prefixes(args: &Args) -> Result<Prefixes> {
    if args.prefixes.exists() {
        return Ok(Prefixes::load(&args.prefixes, &builtin::policy()?.spec().checkpoint)?);
    }
    let all = Prefixes::join(&of_lessons(args, Prefixes::of_lesson)?)?;
    eprintln!("{} moments", all.len());
    make_room(&args.prefixes)?;
    all.save(&args.prefixes)?;
    Ok(all)
}

/// The folder of a file that is to be written.
pub fn make_room(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

/// What `read` makes of the lessons of the comparison, in their order.
pub fn of_lessons<T: Send>(
    args: &Args,
    read: impl Fn(&mut VlaPolicy, &Lesson) -> vela_train::Result<T> + Sync,
) -> Result<Vec<T>> {
    let trunk = builtin::policy()?;
    let teacher = TabletopTeacher {
        embodiment: Embodiment::so101()?,
        horizon: CHUNK[0],
        execute: CHUNK[1],
        randomised: 0.3,
        tasks: TASKS.to_vec(),
    };
    let count = args.lessons as u64;
    let seeds: Vec<u64> = (0..count).chain(STUDENT_FROM..STUDENT_FROM + count).collect();
    let bar = bar(seeds.len(), "lessons")?;
    let one = |(trunk, student): &mut (VlaPolicy, VlaPolicy), seed: u64| -> Result<T> {
        threads::with_threads(1, || {
            let driver = if seed < STUDENT_FROM { Driver::Expert } else { Driver::Student(student) };
            let made = read(trunk, &teacher.lesson(seed, driver)?)?;
            bar.inc(1);
            Ok(made)
        })
    };
    // As many at once as training has threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let all = pool.install(|| {
        seeds.into_par_iter().map_init(|| (trunk.clone(), trunk.clone()), one).collect::<Result<_>>()
    })?;
    bar.finish_and_clear();
    Ok(all)
}
