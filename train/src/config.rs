//! A training run as a file.

use crate::error::{Error, Result, at};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One training run. Same file, same build: same bytes, at any thread count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Decides the initial weights, the lessons, the batches and the noise.
    pub seed: u64,
    /// Seed of the first lesson: seeds that another run did not see show the learner scenes that are new to what that run
    /// made.
    #[serde(default)]
    pub first_lesson: u64,
    /// Actions per chunk.
    pub horizon: usize,
    /// Actions that a learner carries out before its next chunk.
    pub execute: usize,
    /// Whether the action expert alone learns; everything else stays as it was at the start.
    #[serde(default)]
    pub expert_only: bool,
    /// Episodes that the expert plays before the first step.
    pub expert_lessons: usize,
    /// Scenes of which the expert shows the first moment only: many sentences and looks for little time.
    pub glances: usize,
    /// Rounds of DAgger after the first run of steps.
    pub dagger_rounds: usize,
    /// Episodes that the learner plays in each round.
    pub dagger_lessons: usize,
    /// Share of a batch that comes from the learner's own episodes once there are any, 0 to 1.
    pub dagger_share: f64,
    /// Share of a batch that comes from the first moments of lessons, 0 to 1.
    pub early_share: f64,
    /// Steps at the beginning that train the vision tower alone, on what each patch shows.
    pub vision_steps: usize,
    /// Steps after those that leave the tower as it is: what stands on it learns faster so, and at half the cost.
    pub frozen_steps: usize,
    /// Steps before the first round, those included.
    pub first_steps: usize,
    /// Steps after each round.
    pub round_steps: usize,
    /// Examples per step.
    pub batch: usize,
    /// Pieces that a batch is cut into, each for one thread; part of the result, not of the machine.
    pub shards: usize,
    /// Flow times drawn per encoded prefix.
    pub flow_draws: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up; a cosine leads from there down to a twentieth of the highest rate.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip_norm: f64,
    /// Decay of the averaged weights, which are the ones that are saved.
    pub ema: f64,
    /// Weight of the auxiliary loss: what each patch shows.
    pub patch_weight: f64,
    /// Weight of the auxiliary loss: which image tokens show what the sentence names.
    pub grounding_weight: f64,
    /// Weight of the auxiliary loss: where those things are.
    pub position_weight: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
    /// Share of the lessons under domain randomisation, 0 to 1.
    pub randomised: f64,
    /// Sizes of the network.
    pub model: ModelSizes,
}

/// Sizes of a small VLA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSizes {
    /// Edge of a patch, pixels.
    pub patch: usize,
    /// Width of a patch token.
    pub vision_width: usize,
    /// Width inside the tower's feed-forward network.
    pub vision_inner_width: usize,
    /// Blocks of the tower.
    pub vision_layers: usize,
    /// Attention heads of the tower.
    pub vision_heads: usize,
    /// Pixel shuffle: `shuffle * shuffle` patches become one token.
    pub shuffle: usize,
    /// Width of the decoder.
    pub width: usize,
    /// Width inside its feed-forward network.
    pub inner_width: usize,
    /// Layers of the decoder and of the action expert.
    pub layers: usize,
    /// Query heads of both.
    pub heads: usize,
    /// Key and value heads of both.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the action expert.
    pub expert_width: usize,
    /// Width inside its feed-forward network.
    pub expert_inner_width: usize,
    /// Flow steps per chunk.
    pub flow_steps: usize,
    /// Image tokens are multiplied by this before the decoder reads them.
    pub image_scale: f32,
}

impl TrainConfig {
    /// Reads a TOML file; unknown keys are refused.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
        let config: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        if config.shards == 0 || config.batch == 0 || !config.batch.is_multiple_of(config.shards) {
            return Err(refuse(format!("batch {} must divide into {} shards", config.batch, config.shards)));
        }
        if ![config.dagger_share, config.early_share, config.randomised]
            .iter()
            .all(|share| (0.0..=1.0).contains(share))
        {
            return Err(refuse("dagger_share, early_share and randomised are shares from 0 to 1".into()));
        }
        if config.execute == 0 || config.execute > config.horizon {
            let (execute, horizon) = (config.execute, config.horizon);
            return Err(refuse(format!("{execute} actions cannot be carried out of a chunk of {horizon}")));
        }
        if config.flow_draws == 0 || config.checkpoint_every == 0 {
            return Err(refuse("flow_draws and checkpoint_every must be at least 1".into()));
        }
        Ok(config)
    }

    /// All steps of the run.
    pub fn total_steps(&self) -> usize {
        self.first_steps + self.dagger_rounds * self.round_steps
    }

    /// The learning rate at a step.
    pub fn rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps().saturating_sub(self.warmup_steps).max(1) as f64;
        let along = ((step - self.warmup_steps) as f64 / span).min(1.0);
        let floor = 0.05;
        self.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * along).cos()))
    }
}
