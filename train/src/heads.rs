//! A head's training on conditioning that is given: a frozen trunk's prefixes, or the numbers of a small task.

use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use vela_nn::{AdamW, AdamWConfig, Tensor, Weights, random, shard_gradients};
use vela_policy::Head;

/// The budget of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadRun {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// Steps.
    pub steps: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Parts of a batch; the result does not depend on how many threads share them.
    pub shards: usize,
    /// At the first step; it falls in a line to a fiftieth of it, so that what is learnt settles.
    pub learning_rate: f64,
}

/// Draws `rows` of conditioning `[rows, n, width]` and normalised actions `[rows, horizon, dims]`.
pub type Draw<'a> = dyn Fn(usize, &mut ChaCha8Rng) -> Result<(Tensor, Tensor)> + Sync + 'a;

/// Trains `head`, made of the trainable `weights`; `watch` hears the step and its loss.
///
/// # Errors
/// A batch that the shards do not divide, a loss that is not finite, whatever `draw` or the head refuses.
pub fn fit(
    head: &(dyn Head + Send + Sync),
    weights: &Weights,
    run: &HeadRun,
    draw: &Draw,
    watch: &mut dyn FnMut(usize, f32),
) -> Result<()> {
    if run.shards == 0 || run.batch == 0 || !run.batch.is_multiple_of(run.shards) {
        let why = format!("{} rows cannot be shared by {} shards", run.batch, run.shards);
        return Err(Error::Parse { what: "training of a head".into(), why });
    }
    let vars = weights.trainable();
    let mut optimiser = AdamW::new(vars.clone(), AdamWConfig::default());
    for step in 0..run.steps {
        let found = shard_gradients(&vars, run.shards, |shard| {
            let mut rng = random::stream(run.seed ^ ((step as u64) << 20), &format!("head {shard}"));
            let drawn = draw(run.batch / run.shards, &mut rng).map_err(vela_nn::Error::invalid)?;
            head.loss(&drawn.0, &drawn.1, &mut rng)
        })?;
        if !found.loss.is_finite() {
            return Err(Error::Diverged(step));
        }
        let falls = (1.0 - step as f64 / run.steps as f64).max(0.02);
        optimiser.step(&found, (run.learning_rate * falls) as f32)?;
        watch(step + 1, found.loss);
    }
    Ok(())
}
