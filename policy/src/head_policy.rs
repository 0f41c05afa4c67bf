//! A head on the frozen trunk of another policy: the trunk reads pictures, words and joints, the head decodes. A
//! projector may come with the head; pictures then enter the trunk's decoder through it.

use crate::answer::{answer, newest};
use crate::folder::VlaPolicy;
use crate::head::Head;
use crate::head_config::HeadConfig;
use crate::normalise::Normaliser;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionChunk, InferOptions, Observation, Policy, PolicySpec};
use vela_fusion::{Projector, ProjectorConfig};
use vela_nn::{Error, Result, Weights, hash_of, random};

/// What a head's file beside its weights says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadCard {
    /// The head.
    pub head: HeadConfig,
    /// Actions to carry out before the next chunk.
    pub execute: usize,
    /// Scaling of the actions, in the trunk's action space.
    pub action: Normaliser,
    /// Hash of the weights of the trunk that it was trained on.
    pub trunk: String,
    /// The projector that was trained with it, in the place of the trunk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projector: Option<ProjectorConfig>,
}

/// What a card's weights are.
pub struct Trained {
    /// The head.
    pub head: Box<dyn Head + Send + Sync>,
    /// The projector that came with it.
    pub projector: Option<Projector>,
}

impl HeadCard {
    /// Reads the head's tensors and, where there is a projector, its own under `projector`.
    ///
    /// # Errors
    /// Sizes that cannot work; tensors that are missing or mis-shaped.
    pub fn build(&self, weights: &Weights) -> Result<Trained> {
        let projector = self.projector.as_ref();
        Ok(Trained {
            head: self.head.build(weights)?,
            projector: projector.map(|p| Projector::new(&weights.pp("projector"), p)).transpose()?,
        })
    }

    /// `NAME.json` and `NAME.safetensors` in `dir`.
    pub fn files(dir: &Path, name: &str) -> [PathBuf; 2] {
        [dir.join(format!("{name}.json")), dir.join(format!("{name}.safetensors"))]
    }

    /// Writes both; the weights as 16-bit floats.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, dir: &Path, name: &str, tensors: &[(String, Tensor)]) -> Result<()> {
        let [card, weights] = Self::files(dir, name);
        std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        let text = serde_json::to_vec(self).map_err(|e| Error::parse(card.display(), e))?;
        std::fs::write(&card, text).map_err(|e| io(&card, e))?;
        let half = |(name, t): &(String, Tensor)| -> Result<(String, Tensor)> {
            Ok((name.clone(), t.to_dtype(DType::F16)?))
        };
        vela_nn::save(&weights, &tensors.iter().map(half).collect::<Result<Vec<_>>>()?)
    }
}

/// A head and the trunk under it as one policy.
pub struct HeadPolicy {
    trunk: VlaPolicy,
    trained: Trained,
    card: HeadCard,
    spec: PolicySpec,
}

impl HeadPolicy {
    /// Reads a head of [`HeadCard::files`] for `trunk`.
    ///
    /// # Errors
    /// A file is missing or torn; tensors that are missing, unused or mis-shaped (all of them named); a head of another trunk.
    pub fn load(trunk: VlaPolicy, dir: &Path, name: &str) -> Result<Self> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| io(path, e));
        let [card, weights] = HeadCard::files(dir, name);
        let bytes = read(&weights)?;
        let card: HeadCard =
            serde_json::from_slice(&read(&card)?).map_err(|e| Error::parse(card.display(), e))?;
        let source = Weights::from_bytes(&bytes)?;
        let trained = card.build(&source)?;
        source.finish()?;
        Self::assemble(trunk, trained, card, &hash_of(&bytes))
    }

    /// From networks in memory, made of `card`; `checkpoint` names their weights.
    ///
    /// # Errors
    /// A head of another trunk, or sizes that do not fit the trunk.
    pub fn assemble(trunk: VlaPolicy, trained: Trained, card: HeadCard, checkpoint: &str) -> Result<Self> {
        let of = trunk.spec();
        if card.trunk != of.checkpoint {
            return Err(Error::invalid(format!(
                "the head was trained on the trunk {}, this one is {}",
                short(&card.trunk),
                short(&of.checkpoint)
            )));
        }
        let (joints, width) = (of.embodiment.joints.len(), trunk.config().decoder.width);
        let (dims, conditioning) = (card.head.dims, card.head.body.conditioning);
        card.action.check()?;
        if dims != joints || card.action.dims().is_some_and(|d| d != joints) || conditioning != width {
            return Err(Error::invalid(format!(
                "the head gives {dims} numbers from a width of {conditioning}; expected {joints} from {width}"
            )));
        }
        let sees = trunk.config().vision.width;
        if let Some(own) = card.projector.as_ref().filter(|own| [own.input, own.output] != [sees, width]) {
            return Err(Error::invalid(format!(
                "the head's projector goes from a width of {} to {}; expected {sees} to {width}",
                own.input, own.output
            )));
        }
        if card.execute == 0 || card.execute > card.head.horizon {
            let (execute, horizon) = (card.execute, card.head.horizon);
            return Err(Error::invalid(format!("the head carries out {execute} of {horizon} actions")));
        }
        let spec = PolicySpec {
            horizon: card.head.horizon,
            execute: card.execute,
            checkpoint: checkpoint.to_owned(),
            ..of.clone()
        };
        Ok(Self { trunk, trained, card, spec })
    }

    /// What the file beside its weights says.
    pub fn card(&self) -> &HeadCard {
        &self.card
    }

    /// Tokens of a picture behind the head's own projector, if it has one.
    pub fn tokens_per_picture(&self) -> Option<usize> {
        let patches = self.trunk.config().vision.patches();
        self.trained.projector.as_ref().map(|projector| projector.tokens(patches))
    }

    /// What the head is told of an observation, `[1, n, width]`.
    ///
    /// # Errors
    /// An observation that does not fit.
    pub fn conditioning(&mut self, observation: &Observation) -> Result<Tensor> {
        self.trunk.conditioning(observation, self.trained.projector.as_ref())
    }

    /// Actions in physical units, `[horizon][joints]`, for conditioning `[1, n, width]` of [`Self::conditioning`].
    pub fn decode(&self, conditioning: &Tensor, seed: u64) -> Result<Vec<Vec<f64>>> {
        let made = self.trained.head.sample(conditioning, &mut random::stream(seed, "head"))?;
        let physical = |row: &Vec<f32>| -> Result<Vec<f64>> {
            Ok(self.card.action.unnormalise(row)?.iter().map(|x| f64::from(*x)).collect())
        };
        made.squeeze(0)?.to_vec2::<f32>()?.iter().map(physical).collect()
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), source }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

impl Policy for HeadPolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let seen = newest(history).and_then(|newest| self.conditioning(newest));
        let actions = seen.and_then(|seen| self.decode(&seen, options.seed));
        answer(&self.spec, history, options, self.spec.embodiment.joints.len(), actions)
    }
}
