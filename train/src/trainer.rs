//! The training loop of the tabletop policy: steps, averaged weights, checkpoints that resume bit for bit.

use crate::auxiliary::Auxiliary;
use crate::batch::{Lot, lot};
use crate::config::TrainConfig;
use crate::data::{Library, Shares};
use crate::error::{Error, Result};
use crate::learner::Learner;
use serde::{Deserialize, Serialize};
use std::path::Path;
use vela_embodiment::Embodiment;
use vela_llm::Tokenizer;
use vela_nn::{AdamWConfig, Device, Tensor, Var, Weights, random, shard_gradients_with};
use vela_policy::{Vla, VlaConfig, VlaPolicy, folder};

/// What one step showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Steps so far.
    pub step: usize,
    /// Everything that was minimised.
    pub loss: f32,
    /// Squared error of the flow's velocity; absent, as the others, in steps that do not train it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<f32>,
    /// Cross-entropy of the patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<f32>,
    /// Binary cross-entropy of the named parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grounding: Option<f32>,
    /// Squared error of the positions, square decimetres.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<f32>,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate.
    pub learning_rate: f64,
}

impl Report {
    /// The parts of the loss that this step trained.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, f32)> {
        [
            ("flow", self.flow),
            ("patch", self.patch),
            ("grounding", self.grounding),
            ("position", self.position),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

/// A policy in training.
pub struct Trainer {
    config: TrainConfig,
    vla_config: VlaConfig,
    tokenizer: Tokenizer,
    embodiment: Embodiment,
    vla: Vla,
    auxiliary: Auxiliary,
    learner: Learner,
    /// The network that reads, where the expert alone learns.
    reader: Option<Vla>,
}

/// The tensors of the action expert, by how their names begin in a checkpoint.
const EXPERT: [&str; 4] =
    ["vlm_with_expert.lm_expert.", "action_in_proj.", "action_out_proj.", "action_time_mlp_"];

impl Trainer {
    /// A fresh policy.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(
        config: &TrainConfig,
        vla_config: &VlaConfig,
        tokenizer: &Tokenizer,
        embodiment: &Embodiment,
    ) -> Result<Self> {
        let weights = Weights::fresh(config.seed);
        let vla = Vla::new(&weights.pp("policy"), vla_config)?;
        let (vision_width, width) = (vla_config.vision.width, vla_config.decoder.width);
        let auxiliary = Auxiliary::new(&weights.pp("auxiliary"), vision_width, width)?;
        let adamw = AdamWConfig {
            weight_decay: config.weight_decay as f32,
            max_grad_norm: config.clip_norm as f32,
            ..AdamWConfig::default()
        };
        let of_expert = |(name, _): &(String, Var)| {
            let own = name.strip_prefix("policy.");
            own.is_some_and(|own| EXPERT.iter().any(|start| own.starts_with(start)))
        };
        let groups = match config.expert_only {
            true => {
                let (learns, stays) = weights.trainable().into_iter().partition(of_expert);
                vec![(learns, 1.0), (stays, 0.0)]
            }
            false => vec![(weights.trainable(), 1.0)],
        };
        Ok(Self {
            config: config.clone(),
            vla_config: vla_config.clone(),
            tokenizer: tokenizer.clone(),
            embodiment: embodiment.clone(),
            vla,
            auxiliary,
            learner: Learner::new(groups, adamw)?,
            reader: None,
        })
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.learner.steps()
    }

    /// Numbers of the policy that learn, the auxiliary heads left out.
    pub fn parameters(&self) -> usize {
        let vars = self.learner.vars(&[0]);
        let policy = vars.iter().filter(|(name, _)| name.starts_with("policy."));
        policy.map(|(_, var)| var.as_tensor().elem_count()).sum()
    }

    /// One step on moments drawn from the library.
    ///
    /// # Errors
    /// An empty library; a loss that is not finite.
    pub fn step(&mut self, library: &Library) -> Result<Report> {
        if self.config.expert_only && self.reader.is_none() {
            self.reader = Some(self.network()?);
        }
        let (config, step, lots) = (&self.config, self.steps(), self.lots(library)?);
        let (gradients, parts) = shard_gradients_with(&self.learner.vars(&[0]), config.shards, |shard| {
            self.loss(&lots[shard]).map_err(vela_nn::Error::invalid)
        })?;
        let learning_rate = config.rate_at(step);
        let loss = gradients.loss;
        let gradient_norm = self.learner.step(&[0], gradients, learning_rate, config.ema)?;
        let mean = |k: usize| {
            let trained: Option<f32> = parts.iter().map(|p: &[Option<f32>; 4]| p[k]).sum();
            trained.map(|sum| sum / parts.len() as f32)
        };
        Ok(Report {
            step: self.steps(),
            loss,
            flow: mean(0),
            patch: mean(1),
            grounding: mean(2),
            position: mean(3),
            gradient_norm,
            learning_rate,
        })
    }

    /// What the next step reads, shard by shard. Asking changes nothing.
    ///
    /// # Errors
    /// An empty library; lessons of another size than the network.
    pub fn lots(&self, library: &Library) -> Result<Vec<Lot>> {
        let (config, step) = (&self.config, self.steps());
        let shares = Shares { student: config.dagger_share, early: config.early_share };
        let drawn = library.draw(config.seed, step, config.batch, shares);
        if drawn.len() != config.batch {
            return Err(Error::Parse { what: "training".into(), why: "there are no lessons".into() });
        }
        let per_shard = config.batch / config.shards;
        drawn
            .chunks(per_shard)
            .enumerate()
            .map(|(shard, moments)| {
                let mut rng = random::stream(config.seed ^ step as u64, &format!("flow {shard}"));
                lot(&self.vla_config, &self.tokenizer, moments, config.flow_draws, &mut rng)
            })
            .collect()
    }

    /// Loss of one shard, and its four parts.
    fn loss(&self, lot: &Lot) -> Result<(Tensor, [Option<f32>; 4])> {
        let c = &self.config;
        if let Some(reader) = &self.reader {
            let prefix = reader.prefix(&lot.inputs)?;
            let flow = self.vla.flow_loss(&prefix, &lot.actions, &lot.noise, &lot.times)?;
            let shown = flow.to_scalar::<f32>()?;
            return Ok((flow, [Some(shown), None, None, None]));
        }
        let seen = self.vla.see(&lot.inputs.frames)?;
        if self.steps() < c.vision_steps {
            let patch = self.auxiliary.patch_loss(&seen, &lot.labels)?;
            let shown = patch.to_scalar::<f32>()?;
            return Ok((patch, [None, Some(shown), None, None]));
        }
        let frozen = self.steps() < c.vision_steps + c.frozen_steps;
        let prefix = match frozen {
            true => self.vla.prefix_on(&seen, &lot.inputs)?,
            false => self.vla.prefix(&lot.inputs)?,
        };
        let flow = self.vla.flow_loss(&prefix, &lot.actions, &lot.noise, &lot.times)?;
        let grounding = self.auxiliary.grounding_loss(&prefix.image_hidden()?, &lot.labels)?;
        let position = self.auxiliary.position_loss(&prefix.state_hidden()?, &lot.labels)?;
        let mut sum = ((&flow + (&grounding * c.grounding_weight)?)? + (&position * c.position_weight)?)?;
        let patch = match frozen {
            true => None,
            false => Some(self.auxiliary.patch_loss(prefix.patch_tokens(), &lot.labels)?),
        };
        if let Some(patch) = &patch {
            sum = (sum + (patch * c.patch_weight)?)?;
        }
        let parts = [Some(&flow), patch.as_ref(), Some(&grounding), Some(&position)];
        Ok((sum, parts.map(|part| part?.to_scalar::<f32>().ok())))
    }

    /// Writes everything that resuming needs: one file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.learner.save(path)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.reader = None;
        self.learner.resume(path)
    }

    /// Begins with the weights of a policy folder in place of random ones; moments and steps stay at zero.
    ///
    /// # Errors
    /// A torn file, or a policy of other sizes: nothing has changed then.
    pub fn start_from(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
        let mut found = Vec::new();
        for (k, (name, var)) in self.learner.vars(&[0, 1]).iter().enumerate() {
            let Some(name) = name.strip_prefix("policy.") else { continue };
            let like = var.as_tensor();
            let tensor =
                tensors.get(name).filter(|t| t.shape() == like.shape()).ok_or_else(|| Error::Parse {
                    what: path.display().to_string(),
                    why: format!("tensor '{name}' is missing or not of shape {:?}", like.dims()),
                })?;
            found.push((k, tensor.to_dtype(like.dtype())?));
        }
        self.reader = None;
        self.learner.set(&found)
    }

    /// The averaged weights of the policy, by the names of its checkpoint.
    pub fn averaged(&self) -> Result<Vec<(String, Tensor)>> {
        let policy =
            |(name, tensor): (String, Tensor)| Some((name.strip_prefix("policy.")?.to_owned(), tensor));
        Ok(self.learner.averaged()?.into_iter().filter_map(policy).collect())
    }

    /// Writes the averaged policy as a policy folder.
    pub fn export(&self, dir: &Path) -> Result<()> {
        Ok(folder::save(dir, &self.vla_config, &self.tokenizer, &self.embodiment, &self.averaged()?)?)
    }

    /// The averaged network as it is now; it learns nothing.
    fn network(&self) -> Result<Vla> {
        let weights = Weights::from_tensors(self.averaged()?.into_iter().collect());
        let vla = Vla::new(&weights, &self.vla_config)?;
        weights.finish()?;
        Ok(vla)
    }

    /// The averaged policy as it is now, to play with.
    pub fn student(&self) -> Result<VlaPolicy> {
        let vla = self.network()?;
        let name = format!("step {}", self.steps());
        Ok(VlaPolicy::assemble(vla, &self.vla_config, self.tokenizer.clone(), &self.embodiment, &name)?)
    }
}
