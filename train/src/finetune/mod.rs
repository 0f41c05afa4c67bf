//! A policy that somebody trained learns from episodes of its own robot: adapters of low rank beside the matrices that are
//! named, others as they are, and everything else stays.
//!
//! Entry points: [`FinetuneConfig`] (a run as a file), [`RecordedMoments`] (a LeRobot dataset) and [`Finetune`] (steps,
//! checkpoints, what is exported).

mod adapters;
mod config;
mod embody;
mod moments;
mod questions;

pub use adapters::Adapters;
pub use config::{FinetuneConfig, Frozen, QuestionsConfig, TakenFrom};
pub use embody::embody;
pub use moments::{Moment, Moments, Numbers, RecordedMoments, statistics};
pub use questions::{Asked, PictureQuestions, Questions};

use crate::error::{Error, Result};
use crate::learner::Learner;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::path::Path;
use vela_embodiment::ActionSpace;
use vela_nn::{AdamWConfig, Device, Tensor, random, shard_gradients_with};
use vela_policy::{VlaConfig, VlaInputs, VlaParts};

/// What one step showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinetuneReport {
    /// Steps so far.
    pub step: usize,
    /// Squared error of the flow's velocity.
    pub loss: f32,
    /// Cross-entropy of the answers, in nats a word; absent without questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<f32>,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate.
    pub learning_rate: f64,
}

/// A policy in training.
pub struct Finetune {
    config: FinetuneConfig,
    parts: VlaParts,
    adapters: Adapters,
    learner: Learner,
    /// Whether the vision tower learns. If not, the folder's own network sees.
    sees_anew: bool,
    questions: Option<Box<dyn Questions>>,
}

impl Finetune {
    /// Begins with what `parts` are.
    ///
    /// # Errors
    /// A run that cannot be; names that are not there; a policy whose actions are not joints.
    pub fn new(config: &FinetuneConfig, parts: VlaParts) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: "fine-tuning".into(), why };
        config.check().map_err(refuse)?;
        if parts.config().space == ActionSpace::EndEffectorDeltas {
            return Err(refuse(
                "expected a policy of joint targets, got one of displacements of the gripper".into(),
            ));
        }
        let stored = parts.stored()?;
        let adapters = Adapters::new(config, &stored)?;
        if config.frozen != Frozen::F32 && adapters.full().len() == stored.names().len() {
            return Err(refuse(
                "frozen: expected something that stays as it is, but every tensor learns".into(),
            ));
        }
        let adamw = AdamWConfig {
            weight_decay: config.weight_decay as f32,
            max_grad_norm: config.clip_norm as f32,
            ..AdamWConfig::default()
        };
        let learner = Learner::new(vec![(adapters.vars(), 1.0)], adamw)?;
        let sees_anew = adapters.names().any(|name| name.contains("vision"));
        Ok(Self { config: config.clone(), parts, adapters, learner, sees_anew, questions: None })
    }

    /// Asks `questions` beside the actions from now on, as the run says.
    ///
    /// # Errors
    /// A run that says nothing of questions, or none of whose tensors has a part in answers.
    pub fn ask(&mut self, questions: Box<dyn Questions>) -> Result<()> {
        let refuse = |why: &str| Error::Parse { what: "fine-tuning".into(), why: why.into() };
        if self.config.questions.is_none() {
            return Err(refuse("questions: the run does not say how many and what they count"));
        }
        let silent = ["lm_expert", "gemma_expert", "action_", "state_proj", "time_mlp_"];
        let speaks = |name: &str| !silent.iter().any(|part| name.contains(part));
        if !self.adapters.names().any(speaks) {
            return Err(refuse(
                "questions: expected a tensor of the decoder, the projector or the tower among what learns",
            ));
        }
        if questions.count() == 0 {
            return Err(refuse("questions: there are none"));
        }
        self.questions = Some(questions);
        Ok(())
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.learner.steps()
    }

    /// Numbers that learn.
    pub fn parameters(&self) -> usize {
        self.learner.vars(&[0]).iter().map(|(_, var)| var.as_tensor().elem_count()).sum()
    }

    /// One step on moments drawn from `moments`.
    ///
    /// # Errors
    /// A moment that does not fit the policy; a loss that is not finite: nothing has changed then.
    pub fn step(&mut self, moments: &dyn Moments) -> Result<FinetuneReport> {
        let (config, step) = (&self.config, self.steps());
        let per_shard = config.batch / config.shards;
        let (found, answers) = shard_gradients_with(&self.learner.vars(&[0]), config.shards, |shard| {
            let seed = config.seed ^ ((step as u64) << 20);
            let mut rng = random::stream(seed, &format!("fine-tuning {shard}"));
            let drawn: Vec<usize> =
                (0..per_shard).map(|_| rng.random_range(0..moments.count().max(1))).collect();
            let flow = self.loss(moments, &drawn, &mut rng).map_err(vela_nn::Error::invalid)?;
            let shown = flow.to_scalar::<f32>()?;
            let Some((questions, own)) = self.questions.as_deref().zip(config.questions.as_ref()) else {
                return Ok((flow, (shown, None)));
            };
            // A stream of its own: the actions' draws are the same with questions and without.
            let mut rng = random::stream(seed, &format!("questions {shard}"));
            let asked: Vec<usize> =
                (0..own.batch / config.shards).map(|_| rng.random_range(0..questions.count())).collect();
            let answers = self.answers(questions, &asked).map_err(vela_nn::Error::invalid)?;
            let said = answers.to_scalar::<f32>()?;
            Ok(((flow + (answers * own.weight)?)?, (shown, Some(said))))
        })?;
        let learning_rate = config.rate_at(step);
        let count = answers.len() as f32;
        let loss = answers.iter().map(|(flow, _)| flow).sum::<f32>() / count;
        let said: Option<f32> = answers.iter().map(|(_, said)| *said).sum();
        let answers = said.map(|sum| sum / count);
        let gradient_norm = self.learner.step(&[0], found, learning_rate, config.ema)?;
        Ok(FinetuneReport { step: step + 1, loss, answers, gradient_norm, learning_rate })
    }

    /// Mean cross-entropy of the answers to some questions, in nats a word. Differentiable in the variables.
    ///
    /// # Errors
    /// A picture that cannot be read; words that the policy does not know.
    pub fn answers(&self, questions: &dyn Questions, which: &[usize]) -> Result<Tensor> {
        let weights = self.parts.with(self.adapters.full(), self.adapters.beside())?;
        let (vla, head) = (self.parts.network(&weights)?, self.parts.speech(&weights)?);
        let mut losses = Vec::with_capacity(which.len());
        for at in which {
            let Asked { rgb, size, question, answer } = questions.asked(*at)?;
            let (frames, [question, answer]) = self.parts.policy().asked(&rgb, size, &question, &answer)?;
            let seen = match self.sees_anew {
                true => vla.see(&frames)?,
                false => self.parts.policy().vla().see(&frames)?,
            };
            losses.push(vla.answer_loss(&seen, &question, &answer, &head)?);
        }
        Ok(Tensor::stack(&losses, 0)?.mean_all()?)
    }

    /// The loss on some moments, with noise and times from `rng`. Differentiable in the variables.
    ///
    /// # Errors
    /// A moment that does not fit the policy.
    pub fn loss(&self, moments: &dyn Moments, which: &[usize], rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let own = self.parts.config();
        let (mut inputs, mut actions, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
        let draws = self.config.draws;
        for at in which {
            let moment = moments.moment(*at, own.horizon)?;
            inputs.push(self.parts.policy().inputs(&moment.observation)?);
            let row = normalised(own, &moment)?;
            (0..draws).for_each(|_| actions.extend_from_slice(&row));
            recorded.extend(std::iter::repeat_n(moment.recorded, draws));
        }
        let (b, horizon, dims) = (which.len() * draws, own.horizon, own.expert.action_dims);
        let (inputs, cpu) = (VlaInputs::together(&inputs)?, &Device::Cpu);
        let noise = Tensor::from_vec(own.flow.draw_noise(b * horizon * dims, rng), (b, horizon, dims), cpu)?;
        let times = Tensor::from_vec(own.flow.draw_times(b, rng)?, b, cpu)?;
        let actions = Tensor::from_vec(actions, (b, horizon, dims), cpu)?;
        let vla = self.parts.network(&self.parts.with(self.adapters.full(), self.adapters.beside())?)?;
        let prefix = match self.sees_anew {
            true => vla.prefix(&inputs)?,
            false => vla.prefix_on(&self.parts.policy().vla().see(&inputs.frames)?, &inputs)?,
        };
        Ok(vla.flow_loss_within(&prefix, &actions, &noise, &times, &recorded)?)
    }

    /// Writes everything that resuming needs: one file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.learner.save(path)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another run.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.learner.resume(path)
    }

    /// Writes the averages: `policy`, a folder of the base's kind with the adapters added to its matrices, and `adapter`, the
    /// adapters alone as PEFT has them.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let averaged = self.learner.averaged()?;
        let changed = self.adapters.merged(&self.parts.stored()?, &averaged)?;
        self.parts.save(&dir.join("policy"), &changed)?;
        self.adapters.save(&dir.join("adapter"), &self.config, &averaged)
    }
}

/// A moment's actions as the network has them, padded.
fn normalised(config: &VlaConfig, moment: &Moment) -> Result<Vec<f32>> {
    let joints = &moment.observation.joint_positions;
    let mut all = Vec::with_capacity(config.horizon * config.expert.action_dims);
    for row in &moment.actions {
        let row: Vec<f32> = match config.space {
            ActionSpace::JointDeltas => row.iter().zip(joints).map(|(a, q)| (a - q) as f32).collect(),
            _ => row.iter().map(|a| *a as f32).collect(),
        };
        let mut row = config.action.normalise(&row)?;
        row.resize(config.expert.action_dims, 0.0);
        all.extend(row);
    }
    Ok(all)
}
