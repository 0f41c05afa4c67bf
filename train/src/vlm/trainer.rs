//! The training loop of a small VLM: text alone, then tower and projector at what each patch shows, then everything, the
//! tower at a rate of its own.

use super::dense::{Dense, Grid};
use super::sequence::{Form, Phrase, Sequence, opening};
use super::{Album, Folder, QuestionAnswer, Spot, VlmTrainConfig};
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
    /// Cross-entropy of the answers' tokens, with the loss on the image tokens at its weight.
    pub loss: f32,
    /// Learning rate of projector and decoder.
    pub learning_rate: f64,
    /// By kind of question: answers whose every token was the likeliest, and all answers. By what image tokens are asked:
    /// things told rightly, and all.
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
    dense: Dense,
    opening: Vec<u32>,
    groups: Vec<Group>,
    /// Averaged weights, in the order of the groups' variables.
    average: Vec<Vec<f32>>,
    step: usize,
}

/// By name, what was right.
type Right = Vec<(&'static str, bool)>;

/// A picture of the album as the decoder reads it.
struct Seen {
    index: usize,
    tokens: Encoded,
}

const TEXT: &[&str] = &["text.", "lm_head."];
const PROJECTOR: &[&str] = &["projector."];
const VISION: &[&str] = &["vision."];
/// The layer of the loss on the image tokens: never exported.
const DENSE: &[&str] = &["dense."];

/// A fresh table of words is widened by this: words are to be as large as what the first layer adds.
const WORD_SCALE: f64 = 15.0;

impl VlmTrainer {
    /// A decoder and projector behind a tower, with the tensors that are given, under our names: at least the tower's
    /// (`vision.`); what is not among them is fresh.
    ///
    /// # Errors
    /// Sizes that do not fit each other; a tower with other tensors.
    pub fn new(config: &VlmTrainConfig, folder: Folder, known: &HashMap<String, Tensor>) -> Result<Self> {
        let vlm_config = VlmConfig::from_hf(&folder.config)?;
        let weights = Weights::fresh(config.seed);
        let vlm = Vlm::new(&weights, &vlm_config)?;
        let tower = vlm_config.tower.fixed()?;
        let grid = Grid {
            edge: tower.image_size / tower.patch_size,
            patch_px: tower.patch_size,
            shuffle: config.model.shuffle,
        };
        let dense = Dense::new(&weights.pp("dense"), config.model.width, grid)?;
        let vars = weights.trainable();
        for (name, var) in &vars {
            let like = var.as_tensor();
            match known.get(name) {
                Some(found) if found.shape() == like.shape() => var.set(&found.to_dtype(DType::F32)?)?,
                None if name == "text.embed_tokens.weight" => var.set(&(like * WORD_SCALE)?)?,
                None if !name.starts_with("vision.") => {}
                _ => {
                    let why = format!("tensor '{name}' is missing or not of shape {:?}", like.dims());
                    return Err(Error::Parse { what: "the weights to begin with".into(), why });
                }
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
        let groups = vec![
            group(TEXT, 1.0),
            group(PROJECTOR, 1.0),
            group(VISION, config.tower_share),
            group(DENSE, 1.0),
        ];
        let average =
            groups.iter().flat_map(|group| &group.vars).map(|(_, var)| flat(var)).collect::<Result<_>>()?;
        let patches = tower.patches();
        let opening = opening(&folder.tokenizer, &vlm_config.kind, vlm.projector().tokens(patches))?;
        Ok(Self { config: config.clone(), folder, vlm, dense, opening, groups, average, step: 0 })
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Numbers of the model; the layer that exists in training only does not count.
    pub fn parameters(&self) -> usize {
        let groups = self.groups.iter().filter(|group| group.starts != DENSE);
        groups.flat_map(|group| &group.vars).map(|(_, var)| var.elem_count()).sum()
    }

    /// The groups that learn at a step.
    fn learning(&self, step: usize) -> &'static [&'static [&'static str]] {
        let (text, look) = (self.config.text_steps, self.config.look_steps);
        match step {
            step if step < text => &[TEXT],
            step if step < text + look => &[PROJECTOR, VISION, DENSE],
            _ => &[TEXT, PROJECTOR, VISION, DENSE],
        }
    }

    /// One step on pictures drawn from the album, and one piece of text without a picture where the decoder learns.
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
        let (answers, pictured) = (learning.contains(&TEXT), learning.contains(&VISION));
        let asking = if answers { config.pictures + 1 } else { 0 };
        let shards = asking + if pictured { config.look_pictures } else { 0 };
        let (gradients, right) = shard_gradients_with(&vars, shards, |shard| {
            let mut rng = random::stream(config.seed ^ ((step as u64) << 8), &format!("piece {shard}"));
            let piece = match (shard < asking, pictured && shard > 0) {
                (false, _) => self.see(album, &mut rng).map(|(_, loss, right)| (loss, right)),
                (true, true) => self.ask(album, &mut rng),
                (true, false) => {
                    let asked = album.texts(config.questions.div_ceil(2), rng.random());
                    self.answers(&asked, &[], &[], Form::Beside)
                }
            };
            piece.map_err(vela_nn::Error::invalid)
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
        let mut sums: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (kind, whole) in right.into_iter().flatten() {
            let counts = sums.entry(kind.to_owned()).or_default();
            *counts = (counts.0 + usize::from(whole), counts.1 + 1);
        }
        Ok(VlmReport { step: self.step, loss: gradients.loss, learning_rate: rate, right: sums })
    }

    /// A picture drawn from the album, moved a little: its tokens, the loss on them, and what they told rightly.
    fn see(&self, album: &dyn Album, rng: &mut impl Rng) -> Result<(Seen, Tensor, Right)> {
        let Tower::Fixed(tower) = self.vlm.tower() else {
            return Err(Error::Parse {
                what: "the tower".into(),
                why: "expected one of a fixed size".into(),
            });
        };
        let index = rng.random_range(0..album.count());
        let (edge, most) = (tower.config().image_size, self.config.shift_px as i64);
        let by = [rng.random_range(-most..=most), rng.random_range(-most..=most)].map(|by| by as isize);
        let spots: Vec<Spot> = album.spots(index).into_iter().map(|spot| spot.moved(by)).collect();
        let mut planes = Vec::with_capacity(edge * edge * 3);
        signed_planes(&moved(album.picture(index), edge, by), &mut planes);
        let pixels = Tensor::from_vec(planes, (1, 3, edge, edge), &Device::Cpu)?;
        let tokens = self.vlm.projector().forward(&tower.forward(&pixels)?)?.squeeze(0)?;
        let (loss, right) = self.dense.loss(&tokens, &spots)?;
        Ok((Seen { index, tokens: Encoded { tokens, video: false, span: None } }, loss, right))
    }

    /// Questions about a picture: the loss of the answers and of the image tokens.
    fn ask(&self, album: &dyn Album, rng: &mut impl Rng) -> Result<(Tensor, Right)> {
        let config = &self.config;
        let (seen, dense, mut right) = self.see(album, rng)?;
        let asked = album.questions(seen.index, config.questions, rng.random());
        let conversation = rng.random_bool(config.conversations);
        let form = if conversation { Form::Conversation } else { Form::Beside };
        let (answers, whole) = self.answers(&asked, &self.opening, &[seen.tokens], form)?;
        right.extend(whole);
        Ok(((answers + (dense * config.dense)?)?, right))
    }

    /// Mean cross-entropy of the answers' tokens, and whether each answer would come out whole.
    fn answers(
        &self,
        asked: &[QuestionAnswer],
        opening: &[u32],
        seen: &[Encoded],
        form: Form,
    ) -> Result<(Tensor, Right)> {
        let tokenizer = &self.folder.tokenizer;
        let phrases: Vec<Phrase> =
            asked.iter().map(|asked| Phrase::new(tokenizer, asked)).collect::<vela_nn::Result<_>>()?;
        let sequence = Sequence::new(opening, &phrases, form)?;
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
        let kinds = asked.iter().map(|asked| asked.kind);
        Ok((loss, kinds.zip(sequence.lengths.iter().map(whole)).collect()))
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
            .filter(|((name, _), _)| !DENSE.iter().any(|start| name.starts_with(start)))
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

/// A square picture moved by `[x, y]` pixels, its rim repeated.
fn moved(rgb: &[u8], edge: usize, by: [isize; 2]) -> Vec<u8> {
    let from = |at: usize, by: isize| at.saturating_add_signed(-by).min(edge - 1);
    let pixel = |y: usize, x: usize| rgb.iter().skip((from(y, by[1]) * edge + from(x, by[0])) * 3).take(3);
    (0..edge * edge).flat_map(|at| pixel(at / edge, at % edge)).copied().collect()
}
