//! A fresh head of each kind for the two-ways task, and its lessons.

use rand::RngCore;
use vela_nn::{AdamW, AdamWConfig, Result, Weights, gradients, random};
use vela_policy::two_ways::{DIMS, FEATURES, HORIZON, Tally, lesson, tally};
use vela_policy::*;

/// The kinds of head that are compared. All have the same body; tokens are drawn as likely as they are.
pub const HEADS: [&str; 5] = ["tokens", "fast", "regression", "diffusion", "flow"];

/// A fresh head by name.
pub fn fresh(name: &str, weights: &Weights) -> Result<Box<dyn Head>> {
    let body =
        BodyConfig { kind: BodyKind::Transformer, conditioning: FEATURES, width: 64, layers: 2, heads: 4 };
    Ok(match name {
        "tokens" => Box::new(TokenHead::new(weights, &body, (64, 1.0), HORIZON, DIMS)?),
        "fast" => {
            let mut rng = random::stream(3, "FAST");
            let (_, shown) = lesson(200, &mut rng)?;
            let chunks: Vec<Vec<f32>> = shown.flatten_from(1)?.to_vec2()?;
            Box::new(FastHead::new(weights, &body, Fast::fit(&chunks, HORIZON, DIMS, 20.0, 256)?, 1.0)?)
        }
        "regression" => Box::new(RegressionHead::new(weights, &body, HORIZON, DIMS)?),
        "diffusion" => {
            Box::new(DiffusionHead::new(weights, &body, DiffusionConfig::default(), HORIZON, DIMS)?)
        }
        _ => Box::new(FlowHead::new(weights, &body, FlowConfig::default(), HORIZON, DIMS)?),
    })
}

/// Trains a head for `steps` steps of 64 ways and judges it on `scenes` new scenes.
pub fn run(name: &str, steps: usize, scenes: usize) -> Result<Tally> {
    let weights = Weights::fresh(7);
    let head = fresh(name, &weights)?;
    let vars = weights.trainable();
    let mut optimiser = AdamW::new(vars.clone(), AdamWConfig::default());
    let mut rng = random::stream(7, "lessons");
    for step in 0..steps {
        let (told, shown) = lesson(32, &mut rng)?;
        let found = gradients(&vars, &head.loss(&told, &shown, &mut rng)?)?;
        // Down to a little, so that what is learnt settles.
        optimiser.step(&found, 3e-3 * (1.0 - step as f32 / steps as f32).max(0.02))?;
    }
    let mut rng = random::stream(8, "new scenes");
    let mut draws = random::stream(9, "draws");
    let draws: &mut dyn RngCore = &mut draws;
    tally(scenes, &mut rng, &mut |told| head.sample(told, draws))
}
