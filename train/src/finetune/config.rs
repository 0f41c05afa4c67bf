//! A run as a file.

use crate::error::{Error, Result, at};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vela_policy::Storage;

/// What is to be learnt from what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// The policy folder to begin with: vela_vla, smolvla, pi0 or pi05.
    pub base: PathBuf,
    /// A LeRobot dataset of the robot that the policy was made for, or, with `embodiment`, of any other.
    pub data: PathBuf,
    /// Whose robot the policy is for: the base's, or the dataset's, for which a policy is begun with the base's eyes and
    /// language (vela_vla).
    #[serde(default)]
    pub embodiment: TakenFrom,
    /// Regular expressions: tensors in whose names one is found learn as they are.
    #[serde(default)]
    pub train: Vec<String>,
    /// The same: matrices beside which an adapter of low rank learns. Whatever no list names stays as it is.
    #[serde(default)]
    pub adapt: Vec<String>,
    /// In which numbers the matrices are held that do not learn, or beside which something learns: float32 ones are as the
    /// folder has them, bfloat16 ones take half the memory. What learns, its gradients and everything between is float32.
    #[serde(default)]
    pub frozen: Frozen,
    /// By which statistics joints and actions are scaled.
    #[serde(default)]
    pub statistics: TakenFrom,
    /// Pictures with questions that the decoder goes on answering while the policy learns (RT-2's co-training,
    /// <https://arxiv.org/abs/2307.15818>).
    #[serde(default)]
    pub questions: Option<QuestionsConfig>,
    /// Rank of the adapters (LoRA, <https://arxiv.org/abs/2106.09685>).
    pub rank: usize,
    /// Adapters count `alpha / rank`.
    pub alpha: f64,
    /// Steps of the whole run.
    pub steps: usize,
    /// Moments of a step.
    pub batch: usize,
    /// Noises and times that each moment of a step is looked at with; its pictures are read once.
    #[serde(default = "one")]
    pub draws: usize,
    /// Parts of a batch. Their gradients are summed, so that no more of them are in memory at once than there are threads.
    pub shards: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps until it is reached, in a line; then it falls as a cosine to a fortieth of it.
    pub warmup_steps: usize,
    /// AdamW's decay of matrices.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0: they are not.
    pub clip_norm: f64,
    /// What the exported averages keep of themselves at a step.
    pub ema: f64,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
}

fn one() -> usize {
    1
}

/// Whose statistics, whose robot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakenFrom {
    /// The folder's own: what it has learnt stays true.
    #[default]
    Checkpoint,
    /// Those of the dataset, for a robot or a task whose numbers lie elsewhere.
    Dataset,
}

/// How matrices that stay as they are are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// Float32.
    #[default]
    F32,
    /// Bfloat16.
    Bf16,
}

impl From<Frozen> for Storage {
    fn from(frozen: Frozen) -> Self {
        match frozen {
            Frozen::F32 => Self::Plain,
            Frozen::Bf16 => Self::Bf16,
        }
    }
}

/// Questions beside the actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionsConfig {
    /// Their folder, in the layout that `vela train vlm` and `vela eval vqa --data` read; its half `train` is learnt from.
    pub data: PathBuf,
    /// Questions of a step; the shards share them.
    pub batch: usize,
    /// What their cross-entropy counts beside the flow's error.
    pub weight: f64,
}

impl FinetuneConfig {
    /// Reads a TOML file; unknown keys are refused.
    ///
    /// # Errors
    /// A key that is missing or unknown, a number that cannot be.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
        let config: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        config.check().map_err(refuse)?;
        Ok(config)
    }

    /// What cannot be.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if self.shards == 0 || self.batch == 0 || !self.batch.is_multiple_of(self.shards) {
            return Err(format!("batch {} must divide into {} shards", self.batch, self.shards));
        }
        if let Some(QuestionsConfig { batch, weight, .. }) = &self.questions
            && (*batch == 0 || !batch.is_multiple_of(self.shards) || !weight.is_finite() || *weight <= 0.0)
        {
            let shards = self.shards;
            return Err(format!(
                "questions: batch {batch} must divide into {shards} shards and weight {weight} be above 0"
            ));
        }
        if self.draws == 0 {
            return Err("draws must be at least 1".into());
        }
        if self.train.is_empty() && self.adapt.is_empty() {
            return Err("train and adapt are both empty: nothing would learn".into());
        }
        if self.rank == 0 || !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(format!("rank {} and alpha {} must be above 0", self.rank, self.alpha));
        }
        if !(0.0..1.0).contains(&self.ema) || self.checkpoint_every == 0 || self.steps == 0 {
            return Err("ema must be from 0 to below 1, steps and checkpoint_every at least 1".into());
        }
        Ok(())
    }

    /// The learning rate at a step.
    pub fn rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let along = ((step - self.warmup_steps) as f64 / span).min(1.0);
        let floor = 1.0 / 40.0;
        self.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * along).cos()))
    }
}
