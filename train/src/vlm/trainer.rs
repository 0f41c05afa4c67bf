//! The training loop of a small VLM: text alone, then tower and projector at what each patch shows, then everything, the
//! tower at a rate of its own.

use super::dense::{Dense, Grid};
use super::sequence::{Form, Phrase, Sequence, opening};
use super::{Album, Folder, QuestionAnswer, Spot, VlmTrainConfig};
use crate::error::{Error, Result};
use crate::learner::Learner;
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_fusion::{Encoded, Tower, Vlm, VlmConfig};
use vela_llm::Cache;
use vela_nn::{AdamWConfig, D, DType, Device, Tensor, Weights, cross_entropy, random, shard_gradients_with};
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

/// A VLM in training.
pub struct VlmTrainer {
    config: VlmTrainConfig,
    folder: Folder,
    vlm: Vlm,
    dense: Dense,
    opening: Vec<u32>,
    learner: Learner,
}

/// By name, what was right.
type Right = Vec<(&'static str, bool)>;

/// A picture of the album as the decoder reads it.
struct Seen {
    index: usize,
    tokens: Encoded,
}

/// How the names of the variables begin that learn at one rate.
const GROUPS: [&[&str]; 4] = [&["text.", "lm_head."], &["projector."], &["vision."], &["dense."]];
const TEXT: usize = 0;
const PROJECTOR: usize = 1;
const VISION: usize = 2;
/// The layer of the loss on the image tokens: never exported.
const DENSE: usize = 3;

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
        let group = |k: usize| {
            let belongs = |name: &str| GROUPS[k].iter().any(|start| name.starts_with(start));
            let share = if k == VISION { config.tower_share } else { 1.0 };
            (vars.iter().filter(|(name, _)| belongs(name)).cloned().collect(), share)
        };
        let learner = Learner::new((0..GROUPS.len()).map(group).collect(), adamw)?;
        let patches = tower.patches();
        let opening = opening(&folder.tokenizer, &vlm_config.kind, vlm.projector().tokens(patches))?;
        Ok(Self { config: config.clone(), folder, vlm, dense, opening, learner })
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.learner.steps()
    }

    /// Numbers of the model; the layer that exists in training only does not count.
    pub fn parameters(&self) -> usize {
        let vars = self.learner.vars(&[TEXT, PROJECTOR, VISION]);
        vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// The groups that learn at a step.
    fn learning(&self, step: usize) -> &'static [usize] {
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
        let (config, step) = (&self.config, self.steps());
        if album.count() == 0 {
            return Err(Error::Parse { what: "training".into(), why: "there are no pictures".into() });
        }
        let learning = self.learning(step);
        let vars = self.learner.vars(learning);
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
        let (learning_rate, loss) = (config.rate_at(step), gradients.loss);
        self.learner.step(learning, gradients, learning_rate, config.ema)?;
        let mut sums: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (kind, whole) in right.into_iter().flatten() {
            let counts = sums.entry(kind.to_owned()).or_default();
            *counts = (counts.0 + usize::from(whole), counts.1 + 1);
        }
        Ok(VlmReport { step: step + 1, loss, learning_rate, right: sums })
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
        self.learner.save(path)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.learner.resume(path)
    }

    /// Writes the averaged model as a folder.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let exported =
            |(name, _): &(String, Tensor)| !GROUPS[DENSE].iter().any(|start| name.starts_with(start));
        let tensors: Vec<_> = self.learner.averaged()?.into_iter().filter(exported).collect();
        self.folder.save(dir, &tensors)
    }
}

/// A square picture moved by `[x, y]` pixels, its rim repeated.
fn moved(rgb: &[u8], edge: usize, by: [isize; 2]) -> Vec<u8> {
    let from = |at: usize, by: isize| at.saturating_add_signed(-by).min(edge - 1);
    let pixel = |y: usize, x: usize| rgb.iter().skip((from(y, by[1]) * edge + from(x, by[0])) * 3).take(3);
    (0..edge * edge).flat_map(|at| pixel(at / edge, at % edge)).copied().collect()
}
