//! The training loop of a small VLM: text alone, the projector alone, then everything, the tower at a rate of its own.

use super::sequence::{Form, Phrase, Sequence, opening};
use super::{Album, Folder, QuestionAnswer, VlmTrainConfig};
use crate::error::{Error, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_fusion::{Encoded, Tower, Vlm, VlmConfig};
use vela_llm::Cache;
use vela_nn::{
    AdamW, AdamWConfig, D, DType, Device, Gradients, Tensor, Var, Weights, cross_entropy, random,
    shard_gradients_with,
};
use vela_policy::vla::signed_planes;

/// What one step showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VlmReport {
    /// Steps so far.
    pub step: usize,
    /// Cross-entropy of the answers' tokens.
    pub loss: f32,
    /// Learning rate of projector and decoder.
    pub learning_rate: f64,
    /// By kind of question: answers whose every token was the likeliest, and all answers.
    pub right: BTreeMap<String, (usize, usize)>,
}

/// Variables that learn at one rate.
struct Group {
    /// How their names begin.
    starts: &'static [&'static str],
    vars: Vec<(String, Var)>,
    optimizer: AdamW,
    share: f64,
}

/// A VLM in training.
pub struct VlmTrainer {
    config: VlmTrainConfig,
    folder: Folder,
    vlm: Vlm,
    opening: Vec<u32>,
    groups: Vec<Group>,
    /// Averaged weights, in the order of the groups' variables.
    average: Vec<Vec<f32>>,
    step: usize,
}

const TEXT: &[&str] = &["text.", "lm_head."];
const PROJECTOR: &[&str] = &["projector."];
const VISION: &[&str] = &["vision."];

/// A fresh table of words is widened by this: words are to be as large as what the first layer adds.
const WORD_SCALE: f64 = 15.0;

impl VlmTrainer {
    /// A fresh decoder and projector behind the tower whose tensors are given, under our names (`vision.`).
    ///
    /// # Errors
    /// Sizes that do not fit each other; a tower with other tensors.
    pub fn new(config: &VlmTrainConfig, folder: Folder, tower: &HashMap<String, Tensor>) -> Result<Self> {
        let vlm_config = VlmConfig::from_hf(&folder.config)?;
        let weights = Weights::fresh(config.seed);
        let vlm = Vlm::new(&weights, &vlm_config)?;
        let vars = weights.trainable();
        for (name, var) in &vars {
            let like = var.as_tensor();
            if name == "text.embed_tokens.weight" {
                var.set(&(like * WORD_SCALE)?)?;
            }
            if name.starts_with("vision.") {
                let found = tower.get(name).filter(|tensor| tensor.shape() == like.shape());
                let why = || format!("tensor '{name}' is missing or not of shape {:?}", like.dims());
                let found = found.ok_or_else(|| Error::Parse { what: "the tower".into(), why: why() })?;
                var.set(&found.to_dtype(DType::F32)?)?;
            }
        }
        let adamw = AdamWConfig {
            weight_decay: config.weight_decay as f32,
            max_grad_norm: config.clip_norm as f32,
            ..AdamWConfig::default()
        };
        let group = |starts: &'static [&'static str], share: f64| {
            let belongs = |name: &str| starts.iter().any(|start| name.starts_with(start));
            let vars: Vec<_> = vars.iter().filter(|(name, _)| belongs(name)).cloned().collect();
            Group { starts, optimizer: AdamW::new(vars.clone(), adamw), vars, share }
        };
        let groups = vec![group(TEXT, 1.0), group(PROJECTOR, 1.0), group(VISION, config.tower_share)];
        let average =
            groups.iter().flat_map(|group| &group.vars).map(|(_, var)| flat(var)).collect::<Result<_>>()?;
        let patches = vlm_config.tower.fixed()?.patches();
        let opening = opening(&folder.tokenizer, &vlm_config.kind, vlm.projector().tokens(patches))?;
        Ok(Self { config: config.clone(), folder, vlm, opening, groups, average, step: 0 })
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        self.groups.iter().flat_map(|group| &group.vars).map(|(_, var)| var.elem_count()).sum()
    }

    /// The groups that learn at a step.
    fn learning(&self, step: usize) -> &'static [&'static [&'static str]] {
        let (text, projector) = (self.config.text_steps, self.config.projector_steps);
        match step {
            step if step < text => &[TEXT],
            step if step < text + projector => &[PROJECTOR],
            _ => &[TEXT, PROJECTOR, VISION],
        }
    }

    /// One step on pictures drawn from the album, and one piece of text without a picture.
    ///
    /// # Errors
    /// An empty album; a loss that is not finite.
    pub fn step(&mut self, album: &dyn Album) -> Result<VlmReport> {
        let (config, step) = (&self.config, self.step);
        if album.count() == 0 {
            return Err(Error::Parse { what: "training".into(), why: "there are no pictures".into() });
        }
        let learning = self.learning(step);
        let learns = |group: &Group| learning.contains(&group.starts);
        let vars: Vec<(String, Var)> =
            self.groups.iter().filter(|group| learns(group)).flat_map(|group| group.vars.clone()).collect();
        let pictured = learning.contains(&PROJECTOR);
        let shards = config.pictures + 1;
        let (gradients, answers) = shard_gradients_with(&vars, shards, |shard| {
            let picture = pictured && shard > 0;
            self.piece(album, step, shard, picture).map_err(vela_nn::Error::invalid)
        })?;
        if !gradients.loss.is_finite() {
            return Err(Error::Diverged(step));
        }
        let rate = config.rate_at(step);
        let mut values = gradients.values.into_iter();
        for group in self.groups.iter_mut().filter(|group| learning.contains(&group.starts)) {
            let own = values.by_ref().take(group.vars.len()).collect();
            let own = Gradients { loss: gradients.loss, values: own };
            group.optimizer.step(&own, (rate * group.share) as f32)?;
        }
        self.step += 1;
        // The average starts short, so that it forgets the random beginning.
        let decay = self.config.ema.min((1.0 + self.step as f64) / (10.0 + self.step as f64)) as f32;
        let vars = self.groups.iter().flat_map(|group| &group.vars);
        for (average, (_, var)) in self.average.iter_mut().zip(vars) {
            for (a, x) in average.iter_mut().zip(flat(var)?) {
                *a += (1.0 - decay) * (x - *a);
            }
        }
        let mut right: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (kind, whole) in answers.into_iter().flatten() {
            let counts = right.entry(kind.to_owned()).or_default();
            *counts = (counts.0 + usize::from(whole), counts.1 + 1);
        }
        Ok(VlmReport { step: self.step, loss: gradients.loss, learning_rate: rate, right })
    }

    /// Loss of one piece of a step, and which answers were wholly right.
    fn piece(
        &self,
        album: &dyn Album,
        step: usize,
        shard: usize,
        pictured: bool,
    ) -> Result<(Tensor, Vec<(&'static str, bool)>)> {
        let config = &self.config;
        let mut rng = random::stream(config.seed ^ ((step as u64) << 8), &format!("piece {shard}"));
        let index = rng.random_range(0..album.count());
        let (asked, seen, opening) = match pictured {
            true => {
                let asked = album.questions(index, config.questions, rng.random());
                (asked, vec![self.look(album.picture(index), step)?], &self.opening[..])
            }
            false => (album.texts(config.questions, rng.random()), Vec::new(), &[][..]),
        };
        let conversation = pictured && rng.random_bool(config.conversations);
        let form = if conversation { Form::Conversation } else { Form::Beside };
        let tokenizer = &self.folder.tokenizer;
        let phrases: Vec<Phrase> =
            asked.iter().map(|asked| Phrase::new(tokenizer, asked)).collect::<vela_nn::Result<_>>()?;
        let sequence = Sequence::new(opening, &phrases, form)?;
        let (loss, whole) = self.loss(&sequence, &seen)?;
        Ok((loss, asked.iter().map(|asked: &QuestionAnswer| asked.kind).zip(whole).collect()))
    }

    /// A picture's tokens; the tower is left alone while it does not learn.
    fn look(&self, rgb: &[u8], step: usize) -> Result<Encoded> {
        let Tower::Fixed(tower) = self.vlm.tower() else {
            return Err(Error::Parse {
                what: "the tower".into(),
                why: "expected one of a fixed size".into(),
            });
        };
        let edge = tower.config().image_size;
        let mut planes = Vec::with_capacity(rgb.len());
        signed_planes(rgb, &mut planes);
        let pixels = Tensor::from_vec(planes, (1, 3, edge, edge), &Device::Cpu)?;
        let mut patches = tower.forward(&pixels)?;
        if !self.learning(step).contains(&VISION) {
            patches = patches.detach();
        }
        let tokens = self.vlm.projector().forward(&patches)?.squeeze(0)?;
        Ok(Encoded { tokens, video: false, span: None })
    }

    /// Mean cross-entropy of the answers' tokens, and whether each answer would come out whole.
    fn loss(&self, sequence: &Sequence, seen: &[Encoded]) -> Result<(Tensor, Vec<bool>)> {
        let decoder = self.vlm.decoder()?;
        let t = sequence.ids.len();
        let embeds = self.vlm.embed(&sequence.ids, seen)?;
        let positions = Tensor::from_slice(&sequence.positions, (1, t), &Device::Cpu)?;
        let hidden = decoder.forward(&embeds, &positions, &sequence.mask, &mut Cache::new())?;
        let rows = Tensor::from_slice(&sequence.rows, sequence.rows.len(), &Device::Cpu)?;
        let answers = hidden.squeeze(0)?.index_select(&rows, 0)?.unsqueeze(0)?;
        let logits = decoder.logits(&decoder.normalise(&answers)?)?.squeeze(0)?;
        let targets = Tensor::from_slice(&sequence.targets, sequence.targets.len(), &Device::Cpu)?;
        let loss = cross_entropy(&logits, &targets, None)?;
        let likeliest = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let mut hits = likeliest.iter().zip(&sequence.targets).map(|(a, b)| a == b);
        let whole = |count: &usize| hits.by_ref().take(*count).filter(|hit| !hit).count() == 0;
        Ok((loss, sequence.lengths.iter().map(whole).collect()))
    }

    /// Writes everything that resuming needs: one file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = vec![("step".into(), Tensor::new(&[self.step as f32], &Device::Cpu)?)];
        let vars = self.groups.iter().flat_map(|group| &group.vars);
        for ((name, var), average) in vars.zip(&self.average) {
            tensors.push((format!("weight.{name}"), var.as_tensor().clone()));
            let average = Tensor::from_slice(average, var.shape(), &Device::Cpu)?;
            tensors.push((format!("average.{name}"), average));
        }
        for (k, group) in self.groups.iter().enumerate() {
            let state = group.optimizer.state()?;
            tensors.extend(state.into_iter().map(|(name, tensor)| (format!("optimizer{k}.{name}"), tensor)));
        }
        Ok(vela_nn::save(path, &tensors)?)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let missing = |name: &str| Error::Parse {
            what: path.display().to_string(),
            why: format!("tensor '{name}' is missing or has another shape"),
        };
        let get = |name: String, like: &Tensor| -> Result<Tensor> {
            let found = tensors.get(&name).filter(|t| t.shape() == like.shape());
            found.cloned().ok_or_else(|| missing(&name))
        };
        let mut average = Vec::with_capacity(self.average.len());
        for (name, var) in self.groups.iter().flat_map(|group| &group.vars) {
            var.set(&get(format!("weight.{name}"), var.as_tensor())?)?;
            average.push(get(format!("average.{name}"), var.as_tensor())?.flatten_all()?.to_vec1()?);
        }
        for (k, group) in self.groups.iter_mut().enumerate() {
            let start = format!("optimizer{k}.");
            let state = tensors
                .iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix(&start)?.to_owned(), tensor.clone())))
                .collect();
            group.optimizer.load_state(&state)?;
        }
        self.average = average;
        let step = tensors.get("step").ok_or_else(|| missing("step"))?.to_vec1::<f32>()?;
        self.step = step.first().copied().ok_or_else(|| missing("step"))? as usize;
        Ok(())
    }

    /// Writes the averaged model as a folder.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let vars = self.groups.iter().flat_map(|group| &group.vars);
        let tensors: Vec<(String, Tensor)> = vars
            .zip(&self.average)
            .map(|((name, var), average)| {
                Ok((name.clone(), Tensor::from_slice(average, var.shape(), &Device::Cpu)?))
            })
            .collect::<Result<_>>()?;
        self.folder.save(dir, &tensors)
    }
}

fn flat(var: &Var) -> Result<Vec<f32>> {
    Ok(var.as_tensor().flatten_all()?.to_vec1()?)
}
