//! The task with two equally good ways, learnt by a fresh head of each kind.

use crate::error::Result;
use crate::heads::{HeadRun, fit};
use vela_nn::{Weights, random};
use vela_policy::two_ways::{DIMS, FEATURES, HORIZON, Tally, lesson, tally, ways};
use vela_policy::{Bins, BodyConfig, BodyKind, DiffusionConfig, Fast, FlowConfig, HeadConfig, HeadKind};

/// The budget of every head, for `steps` steps of 64 ways.
pub fn budget(steps: usize) -> HeadRun {
    HeadRun { seed: 7, steps, batch: 64, shards: 2, learning_rate: 3e-3 }
}

/// The kinds that are compared. Tokens are drawn as likely as they are.
///
/// # Errors
/// Those of [`Fast::fit`].
pub fn kinds() -> Result<Vec<HeadKind>> {
    let (_, shown) = lesson(200, &mut random::stream(3, "FAST"))?;
    let chunks: Vec<Vec<f32>> = shown.flatten_from(1)?.to_vec2()?;
    let bins = Bins { count: 64, temperature: 1.0 };
    Ok(vec![
        HeadKind::Tokens(bins),
        HeadKind::TokensAtOnce(bins),
        HeadKind::Fast { codec: Fast::fit(&chunks, HORIZON, DIMS, 20.0, 256)?, temperature: 1.0 },
        HeadKind::Regression,
        HeadKind::Diffusion(DiffusionConfig::default()),
        HeadKind::Flow(FlowConfig::default()),
    ])
}

/// What became of a head.
pub struct Learnt {
    /// How often it arrived on new scenes.
    pub tally: Tally,
    /// Some of its ways around the obstacle in the middle, each a list of places.
    pub ways: Vec<Vec<Vec<f32>>>,
}

/// Ways that are kept for a picture.
const KEPT: usize = 24;

/// Trains a fresh head within a budget and judges it on `scenes` new scenes; `watch` hears the step and its loss. All kinds
/// have the same body.
///
/// # Errors
/// Those of [`fit`].
pub fn learn(
    kind: &HeadKind,
    run: &HeadRun,
    scenes: usize,
    watch: &mut dyn FnMut(usize, f32),
) -> Result<Learnt> {
    let body =
        BodyConfig { kind: BodyKind::Transformer, conditioning: FEATURES, width: 64, layers: 2, heads: 4 };
    let config = HeadConfig { kind: kind.clone(), body, horizon: HORIZON, dims: DIMS };
    let weights = Weights::fresh(run.seed);
    let head = config.build(&weights)?;
    let draw = |rows: usize, rng: &mut rand_chacha::ChaCha8Rng| Ok(lesson(rows / 2, rng)?);
    fit(head.as_ref(), &weights, run, &draw, watch)?;
    let mut draws = random::stream(run.seed, "draws");
    let mut scene_rng = random::stream(run.seed, "new scenes");
    let mut sample = |told: &vela_nn::Tensor| head.sample(told, &mut draws);
    Ok(Learnt { tally: tally(scenes, &mut scene_rng, &mut sample)?, ways: ways(KEPT, &mut sample)? })
}
