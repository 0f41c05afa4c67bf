//! The steps: the projector at the words that answers name, then from the decoder's answers, then with the adapter.

use super::{AdaptConfig, Asked, Features, Parts, PictureSet};
use crate::error::{Error, Result, at};
use crate::learner::Learner;
use crate::vlm::{Form, Phrase, QuestionAnswer, Sequence};
use candle_core::{D, DType, Device, Tensor};
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use vela_fusion::Encoded;
use vela_llm::{Cache, Decoder, Lora};
use vela_nn::{AdamWConfig, Weights, cross_entropy, linear, random, shard_gradients_with};

/// What one step showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdaptReport {
    /// Steps so far.
    pub step: usize,
    /// Cross-entropy of the answers' tokens, or of the named words.
    pub loss: f32,
    /// Learning rate of the projector.
    pub learning_rate: f64,
    /// By kind of question: answers whose every token was the likeliest, and all answers.
    pub right: BTreeMap<String, (usize, usize)>,
}

/// The two groups of variables.
const PROJECTOR: usize = 0;
const ADAPTER: usize = 1;

/// Projector and adapter in training.
pub struct Adaptation {
    config: AdaptConfig,
    parts: Parts,
    lora: Lora,
    learner: Learner,
    /// The words among which the projector brings forth those that answers name: their tokens, and their embeddings.
    words: (Vec<u32>, Tensor),
}

/// By kind, what was right.
type Right = Vec<(&'static str, bool)>;

impl Adaptation {
    /// A fresh projector and adapter for the parts of `config`, to learn from `set`.
    ///
    /// # Errors
    /// What [`Parts::load`] refuses; matrices to adapt that the decoder does not have.
    pub fn new(config: &AdaptConfig, set: &PictureSet) -> Result<Self> {
        let (fresh, beside) = (Weights::fresh(config.seed), Weights::fresh(config.seed));
        let parts = Parts::load(&config.parts, &fresh)?;
        let decoder = parts.vlm.decoder()?;
        let lora = Lora::of(&beside, decoder.config(), config.adapter.rank, &config.adapter.targets)?;
        let words = words(&parts, decoder, set)?;
        // Image tokens are to begin about as large as words: what the last layer reads has unit spread, more or less.
        let size = words.1.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
        for (name, var) in fresh.trainable() {
            if name.ends_with("fc2.weight") {
                var.set(&(var.as_tensor() * f64::from(size))?)?;
            }
        }
        let adamw = AdamWConfig {
            weight_decay: config.weight_decay as f32,
            max_grad_norm: config.clip_norm as f32,
            ..AdamWConfig::default()
        };
        let groups = vec![(fresh.trainable(), 1.0), (beside.trainable(), config.adapter_share)];
        Ok(Self { learner: Learner::new(groups, adamw)?, config: config.clone(), parts, lora, words })
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.learner.steps()
    }

    /// Numbers of projector and adapter.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |group: usize| self.learner.vars(&[group]).iter().map(|(_, var)| var.elem_count()).sum();
        (count(PROJECTOR), count(ADAPTER))
    }

    /// The parts, with the projector as it is now.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The adapter as it is now.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// One step on the next pictures.
    ///
    /// # Errors
    /// Features of other pictures; a loss that is not finite.
    pub fn step(&mut self, set: &PictureSet, features: &Features) -> Result<AdaptReport> {
        let (config, step) = (&self.config, self.steps());
        if features.count() != set.pictures.len() {
            let why =
                format!("expected features of {} pictures, got {}", set.pictures.len(), features.count());
            return Err(Error::Parse { what: "training".into(), why });
        }
        let at_words = step < config.word_steps;
        let adapts = step >= config.word_steps + config.projector_steps;
        let learning: &[usize] = if adapts { &[PROJECTOR, ADAPTER] } else { &[PROJECTOR] };
        let shards = if at_words { config.word_pictures } else { config.pictures };
        let shown = self.order(set.pictures.len(), shards);
        let (gradients, right) = shard_gradients_with(&self.learner.vars(learning), shards, |shard| {
            let index = shown[shard];
            let piece = match at_words {
                true => self.name(set, features, index),
                false => self.ask(set, features, index, adapts.then_some(&self.lora)),
            };
            piece.map_err(vela_nn::Error::invalid)
        })?;
        let (learning_rate, loss) = (config.rate_at(step), gradients.loss);
        self.learner.step(learning, gradients, learning_rate, 0.0)?;
        let mut sums: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (kind, whole) in right.into_iter().flatten() {
            let counts = sums.entry(kind.to_owned()).or_default();
            *counts = (counts.0 + usize::from(whole), counts.1 + 1);
        }
        Ok(AdaptReport { step: step + 1, loss, learning_rate, right: sums })
    }

    /// The pictures of this step: all are shown once before any is shown again; each kind of step counts by itself.
    fn order(&self, count: usize, shards: usize) -> Vec<usize> {
        let (kind, done) = match self.steps().checked_sub(self.config.word_steps) {
            None => ("words", self.steps()),
            Some(done) => ("answers", done),
        };
        let mut epochs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        (done * shards..(done + 1) * shards)
            .map(|at| {
                let epoch = epochs.entry(at / count).or_insert_with(|| {
                    let mut order: Vec<usize> = (0..count).collect();
                    order.shuffle(&mut random::stream(self.config.seed, &format!("{kind} {}", at / count)));
                    order
                });
                epoch[at % count]
            })
            .collect()
    }

    /// The image tokens of a picture, `[tokens, width]`.
    fn tokens(&self, features: &Features, index: usize) -> Result<Tensor> {
        Ok(self.parts.vlm.projector().forward(&features.get(index)?)?.squeeze(0)?)
    }

    /// The words that a picture's answers name, brought forth by any of its tokens.
    fn name(&self, set: &PictureSet, features: &Features, index: usize) -> Result<(Tensor, Right)> {
        let tokens = self.tokens(features, index)?;
        let (ids, table) = &self.words;
        let logits = linear(&tokens, table, None)?.log_sum_exp(0)?.unsqueeze(0)?;
        let mut targets: Vec<u32> = Vec::new();
        for word in set.pictures[index].named() {
            for id in self.parts.word(word)? {
                targets.extend(ids.iter().position(|known| *known == id).map(|at| at as u32));
            }
        }
        if targets.is_empty() {
            return Ok(((logits.sum_all()? * 0.0)?, Right::new()));
        }
        let likeliest = likeliest(&logits.flatten_all()?.to_vec1::<f32>()?, targets.len());
        let right = targets.iter().map(|target| ("named", likeliest.contains(target))).collect();
        let rows = logits.broadcast_as((targets.len(), ids.len()))?.contiguous()?;
        let count = targets.len();
        Ok((cross_entropy(&rows, &Tensor::from_vec(targets, count, &Device::Cpu)?, None)?, right))
    }

    /// Questions about a picture: the mean cross-entropy of the answers' tokens, and which answers come out whole.
    fn ask(
        &self,
        set: &PictureSet,
        features: &Features,
        index: usize,
        lora: Option<&Lora>,
    ) -> Result<(Tensor, Right)> {
        let mut rng =
            random::stream(self.config.seed ^ ((self.steps() as u64) << 20), &format!("asked {index}"));
        let asked: Vec<&QuestionAnswer> =
            set.pictures[index].asked.choose_multiple(&mut rng, self.config.questions).collect();
        let tokens = self.tokens(features, index)?;
        self.answers(&asked, tokens, lora)
    }

    /// The same for these questions about a picture of these tokens, `[tokens, width]`.
    pub fn answers(
        &self,
        asked: &[&QuestionAnswer],
        tokens: Tensor,
        lora: Option<&Lora>,
    ) -> Result<(Tensor, Right)> {
        let room = tokens.dim(0)?;
        let written: Vec<Asked> = asked
            .iter()
            .map(|asked| self.parts.ask(&asked.question, &asked.answer, room))
            .collect::<Result<_>>()?;
        let (opening, phrases) = beside(&written);
        let sequence = Sequence::new(&opening, &phrases, Form::Beside)?;
        let decoder = self.parts.vlm.decoder()?;
        let embeds = self.parts.vlm.embed(&sequence.ids, &[Encoded { tokens, video: false, span: None }])?;
        let positions = Tensor::from_slice(&sequence.positions, (1, sequence.ids.len()), &Device::Cpu)?;
        let mut cache = Cache::new();
        let hidden = match lora {
            Some(lora) => decoder.forward_beside(&embeds, &positions, &sequence.mask, &mut cache, lora)?,
            None => decoder.forward(&embeds, &positions, &sequence.mask, &mut cache)?,
        };
        let rows = Tensor::from_slice(&sequence.rows, sequence.rows.len(), &Device::Cpu)?;
        let answers = hidden.squeeze(0)?.index_select(&rows, 0)?.unsqueeze(0)?;
        let logits = decoder.logits(&decoder.normalise(&answers)?)?.squeeze(0)?;
        let targets = Tensor::from_slice(&sequence.targets, sequence.targets.len(), &Device::Cpu)?;
        let loss = cross_entropy(&logits, &targets, None)?;
        let said = logits.detach().argmax(D::Minus1)?.to_vec1::<u32>()?;
        let mut hits = said.iter().zip(&sequence.targets).map(|(a, b)| a == b);
        let whole = |count: &usize| hits.by_ref().take(*count).filter(|hit| !hit).count() == 0;
        let kinds = asked.iter().map(|asked| asked.kind);
        Ok((loss, kinds.zip(sequence.lengths.iter().map(whole)).collect()))
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
        self.learner.resume(path)
    }

    /// Writes `projector.safetensors` and the adapter as PEFT saves it into a folder: with the parts' files they make a
    /// VLM's.
    pub fn export(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let adapter = &self.config.adapter;
        let vars = |group: usize| -> Vec<(String, Tensor)> {
            let vars = self.learner.vars(&[group]).into_iter();
            vars.map(|(name, var)| (name, var.as_tensor().clone())).collect()
        };
        Lora::save(dir, adapter.rank, &adapter.targets, &adapter.base, &vars(ADAPTER))?;
        let theirs = |name: &str| {
            let start = "projector.modality_projection.";
            let name =
                name.replace(&format!("{start}fc1"), "linear_1").replace(&format!("{start}fc2"), "linear_2");
            format!("model.multi_modal_projector.{}", name.replace("projector.norm", "layer_norm"))
        };
        let halves: Vec<(String, Tensor)> = vars(PROJECTOR)
            .into_iter()
            .map(|(name, tensor)| Ok((theirs(&name), tensor.to_dtype(DType::F16)?)))
            .collect::<Result<_>>()?;
        Ok(vela_nn::save(&dir.join("projector.safetensors"), &halves)?)
    }
}

/// The tokens of all words that are asked with or named, and their embeddings.
fn words(parts: &Parts, decoder: &Decoder, set: &PictureSet) -> Result<(Vec<u32>, Tensor)> {
    let asked = set.pictures.iter().flat_map(|picture| &picture.asked);
    let words: BTreeSet<&str> =
        asked.flat_map(|asked| asked.question.split_whitespace().chain([asked.answer.as_str()])).collect();
    let mut ids: Vec<u32> = Vec::new();
    for word in words {
        ids.extend(parts.word(word)?);
    }
    ids.sort_unstable();
    ids.dedup();
    let count = ids.len();
    let table = decoder.embed(&Tensor::from_slice(&ids, (1, count), &Device::Cpu)?)?.squeeze(0)?;
    Ok((ids, table.contiguous()?))
}

/// Where the `count` largest are.
fn likeliest(values: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
    order.truncate(count);
    order
}

/// Prompts side by side: what all begin with, and how each goes on. At least one token of each is its own.
fn beside(asked: &[Asked]) -> (Vec<u32>, Vec<Phrase>) {
    let first = asked.first().map_or(&[][..], |asked| &asked.prompt);
    let alike = |prompt: &[u32]| {
        let shared = prompt.iter().zip(first).take_while(|(a, b)| a == b).count();
        shared.min(prompt.len().saturating_sub(1))
    };
    let shared = asked.iter().map(|asked| alike(&asked.prompt)).min().unwrap_or(0);
    let rest = |asked: &Asked| Phrase {
        opening: Vec::new(),
        question: asked.prompt[shared..].to_vec(),
        answer: asked.answer.clone(),
    };
    (first[..shared].to_vec(), asked.iter().map(rest).collect())
}
