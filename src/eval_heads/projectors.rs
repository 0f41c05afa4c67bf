//! The projectors in training: what the frozen tower saw once, then each projector and a flow head of its own, through the
//! frozen decoder, with the same budget.

use super::{Args, bar, study};
use crate::builtin;
use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use vela_embodiment::Policy;
use vela_fusion::{Projection, ProjectorConfig};
use vela_nn::{Activation, NormConfig, Weights, threads};
use vela_policy::{FlowConfig, HeadCard, HeadConfig, HeadKind, VlaConfig};
use vela_train::heads::fit;
use vela_train::{HeadRun, Sights};

/// The projectors, by name.
const KINDS: [&str; 3] = ["mlp", "pixel-shuffle", "q-former"];
/// Noises and times that the flow head draws for one reading of a moment.
const DRAWS: usize = 4;

/// The names of the flow heads under a projector of their own.
pub fn names() -> Vec<String> {
    KINDS.iter().map(|kind| format!("flow-{kind}")).collect()
}

/// The projector of a head of [`names`].
pub fn kind(name: &str) -> &str {
    name.strip_prefix("flow-").unwrap_or(name)
}

/// Trains the named ones and writes them.
pub fn train(args: &Args, names: &[String]) -> Result<()> {
    let trunk = builtin::policy()?;
    let (vla, of) = (trunk.vla(), trunk.config());
    let sights = sights(args)?;
    let [horizon, execute] = study::CHUNK;
    let lessons = sights.lessons(horizon)?;
    let run = HeadRun { seed: 1, steps: args.projector_steps, batch: 64, shards: 4, learning_rate: 2e-3 };
    let bar = bar(names.len() * run.steps, "steps")?;
    for name in names {
        let card = HeadCard {
            head: HeadConfig {
                kind: HeadKind::Flow(FlowConfig::default()),
                body: study::body(of.decoder.width),
                horizon,
                dims: trunk.spec().embodiment.joints.len(),
            },
            execute,
            action: lessons.scaling.clone(),
            trunk: sights.trunk.clone(),
            projector: Some(config(kind(name), of)),
        };
        let weights = Weights::fresh(run.seed);
        let built = card.build(&weights)?;
        let Some(projector) = &built.projector else { continue };
        let draw = |rows: usize, rng: &mut ChaCha8Rng| lessons.draw(vla, projector, [rows, DRAWS], rng);
        let mut mean = 0.0;
        let mut watch = |step: usize, loss: f32| {
            mean += (loss - mean) / step.min(100) as f32;
            bar.inc(1);
            bar.set_message(format!("{name} {mean:.4}"));
        };
        threads::with_threads(args.threads, || fit(built.head.as_ref(), &weights, &run, &draw, &mut watch))?;
        eprintln!("{name}: loss {mean:.4} (mean of the last hundred steps)");
        study::save(args, name, &card, &weights)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// A projector from the tower to the decoder of `of`.
fn config(kind: &str, of: &VlaConfig) -> ProjectorConfig {
    let (input, output) = (of.vision.width, of.decoder.width);
    let activation = Activation::GeluTanh;
    let mlp = Projection::Mlp { hidden: output, activation };
    let shuffle = of.projector.shuffle;
    let tokens = of.vision.patches() / (shuffle * shuffle);
    let (shuffle, projection) = match kind {
        "mlp" => (1, mlp),
        "pixel-shuffle" => (shuffle, mlp),
        // As many tokens as pixel shuffle leaves.
        _ => {
            let norm = NormConfig::LayerNorm { eps: 1e-6, bias: true };
            let (heads, hidden) = (of.decoder.heads, 2 * output);
            (1, Projection::Queries { count: tokens, heads, hidden, layers: 2, norm, activation })
        }
    };
    ProjectorConfig { input, output, shuffle, projection }
}

/// What the tower makes of the lessons: read from the file, or made and written there.
fn sights(args: &Args) -> Result<Sights> {
    if args.sights.exists() {
        return Ok(Sights::load(&args.sights, &builtin::policy()?.spec().checkpoint)?);
    }
    let all = Sights::join(&study::of_lessons(args, Sights::of_lesson)?)?;
    eprintln!("{} moments", all.len());
    study::make_room(&args.sights)?;
    all.save(&args.sights)?;
    Ok(all)
}
