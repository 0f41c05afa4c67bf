//! A run as a file.

use crate::error::{Error, Result, at};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One run. Same file, same build: same bytes, at any thread count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptConfig {
    /// Decides the initial weights, the order of the pictures and the questions.
    pub seed: u64,
    /// The folder of the parts: a VLM's without its projector.
    pub parts: PathBuf,
    /// The folder of the questions ([`PictureSet::load`](super::PictureSet::load)).
    pub data: PathBuf,
    /// Learn from the first so many pictures only.
    pub first_pictures: Option<usize>,
    /// Steps at the beginning in which the projector alone learns to bring forth, among the words of the questions,
    /// those that answers name; the decoder does not take part.
    pub word_steps: usize,
    /// Pictures per such step.
    pub word_pictures: usize,
    /// Steps after those in which the projector learns alone from the decoder's answers.
    pub projector_steps: usize,
    /// Steps of all; in the last ones projector and adapter learn together.
    pub steps: usize,
    /// Pictures per step, each with its questions one piece of work for one thread.
    pub pictures: usize,
    /// Most questions per picture and step.
    pub questions: usize,
    /// Highest learning rate of the projector.
    pub learning_rate: f64,
    /// The adapter's rate is this share of it.
    pub adapter_share: f64,
    /// Steps of linear warm-up in each stage; in the last one a cosine leads from there to a hundredth.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm, of projector and adapter each.
    pub clip_norm: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
    /// The adapter.
    pub adapter: AdapterConfig,
}

/// A LoRA adapter as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Its rank.
    pub rank: usize,
    /// The matrices that it is beside, by name.
    pub targets: Vec<String>,
    /// What the decoder is called in the adapter's own file.
    pub base: String,
}

impl AdaptConfig {
    /// Reads a TOML file; unknown keys are refused.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
        let config: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let counts = [config.pictures, config.word_pictures, config.questions, config.checkpoint_every];
        if counts.contains(&0) {
            return Err(refuse(
                "pictures, word_pictures, questions and checkpoint_every must be at least 1".into(),
            ));
        }
        if config.word_steps + config.projector_steps > config.steps {
            let got = config.steps;
            return Err(refuse(format!("steps: expected at least word_steps + projector_steps, got {got}")));
        }
        Ok(config)
    }

    /// The projector's learning rate at a step: each stage warms up; the last one falls along a cosine.
    pub fn rate_at(&self, step: usize) -> f64 {
        let ends = [0, self.word_steps, self.word_steps + self.projector_steps];
        let start = ends.iter().rev().find(|end| **end <= step).copied().unwrap_or(0);
        let warm = ((step - start + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let span = (self.steps - ends[2]).max(1) as f64;
        let along = (step.saturating_sub(ends[2]) as f64 / span).min(1.0);
        let floor = 0.01;
        let fall = floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * along).cos());
        self.learning_rate * warm * fall
    }
}
