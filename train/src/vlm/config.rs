//! A VLM's training run as a file.

use crate::error::{Error, Result, at};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One training run. Same file, same build: same bytes, at any thread count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmTrainConfig {
    /// Decides the initial weights, the pictures and the questions.
    pub seed: u64,
    /// The policy folder whose vision tower sees for it.
    pub tower: PathBuf,
    /// A VLM's folder whose weights it begins with, tower and all, in place of fresh ones.
    pub start: Option<PathBuf>,
    /// Episodes of which pictures are taken.
    pub episodes: usize,
    /// Steps at the beginning that train the decoder alone, on questions without a picture.
    pub text_steps: usize,
    /// Steps after those in which tower and projector learn alone what each patch shows.
    pub look_steps: usize,
    /// Pictures per step of which this alone is asked, here and in the steps that train everything.
    pub look_pictures: usize,
    /// Weight of that loss beside the answers' in the steps that train everything.
    pub dense: f64,
    /// Each time a picture is shown it is moved by up to so many pixels along either axis; its rim is repeated.
    pub shift_px: usize,
    /// Steps of all: text, looking, then everything, the tower at its own rate.
    pub steps: usize,
    /// Pictures per step, each with its questions one piece of work for one thread.
    pub pictures: usize,
    /// Questions per picture.
    pub questions: usize,
    /// Share of the pictures whose questions follow one another as in a conversation, 0 to 1; the questions of the others
    /// share the picture and do not see each other.
    pub conversations: f64,
    /// Highest learning rate of projector and decoder.
    pub learning_rate: f64,
    /// The tower's rate is this share of it.
    pub tower_share: f64,
    /// Steps of linear warm-up in each stage; a cosine leads from there to a hundredth of the highest rate.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip_norm: f64,
    /// Decay of the averaged weights, which are the ones that are saved.
    pub ema: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
    /// Sizes of the decoder.
    pub model: VlmSizes,
}

/// Sizes of a small decoder of the Llama family behind a pixel shuffle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmSizes {
    /// Pixel shuffle: `shuffle * shuffle` patches become one token.
    pub shuffle: usize,
    /// Width of the decoder.
    pub width: usize,
    /// Width inside its feed-forward network.
    pub inner_width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions that it is made for.
    pub positions: usize,
}

impl VlmTrainConfig {
    /// Reads a TOML file; unknown keys are refused.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
        let config: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        if [config.pictures, config.look_pictures, config.questions, config.checkpoint_every].contains(&0) {
            return Err(refuse(
                "pictures, look_pictures, questions and checkpoint_every must be at least 1".into(),
            ));
        }
        if config.text_steps + config.look_steps > config.steps {
            return Err(refuse(format!(
                "steps: expected at least text_steps + look_steps, got {}",
                config.steps
            )));
        }
        if ![config.conversations, config.ema].iter().all(|share| (0.0..=1.0).contains(share)) {
            return Err(refuse("conversations and ema are shares from 0 to 1".into()));
        }
        Ok(config)
    }

    /// The learning rate of projector and decoder at a step: each stage warms up; the last one falls along a cosine.
    pub fn rate_at(&self, step: usize) -> f64 {
        let ends = [self.text_steps, self.text_steps + self.look_steps, self.steps];
        let start = ends.iter().rev().find(|end| **end <= step && **end < self.steps).copied().unwrap_or(0);
        let warm = ((step - start + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let span = (self.steps - ends[1]).max(1) as f64;
        let along = (step.saturating_sub(ends[1]) as f64 / span).min(1.0);
        let floor = 0.01;
        self.learning_rate
            * warm
            * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * along).cos()))
    }
}
