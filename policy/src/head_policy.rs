//! A head on the frozen trunk of another policy: the trunk reads pictures, words and joints, the head decodes.

use crate::answer::{answer, newest};
use crate::folder::VlaPolicy;
use crate::head::Head;
use crate::head_config::HeadConfig;
use crate::normalise::Normaliser;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionChunk, InferOptions, Observation, Policy, PolicySpec};
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
}

impl HeadCard {
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
    head: Box<dyn Head + Send + Sync>,
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
        let head = card.head.build(&source)?;
        source.finish()?;
        Self::assemble(trunk, head, card, &hash_of(&bytes))
    }

    /// From a head in memory; `checkpoint` names its weights.
    ///
    /// # Errors
    /// A head of another trunk, or sizes that do not fit the trunk.
    pub fn assemble(
        trunk: VlaPolicy,
        head: Box<dyn Head + Send + Sync>,
        card: HeadCard,
        checkpoint: &str,
    ) -> Result<Self> {
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
        Ok(Self { trunk, head, card, spec })
    }

    /// What the file beside its weights says.
    pub fn card(&self) -> &HeadCard {
        &self.card
    }

    /// The trunk under it.
    pub fn trunk(&mut self) -> &mut VlaPolicy {
        &mut self.trunk
    }

    /// Actions in physical units, `[horizon][joints]`, for conditioning `[1, n, width]` of [`VlaPolicy::conditioning`].
    pub fn decode(&self, conditioning: &Tensor, seed: u64) -> Result<Vec<Vec<f64>>> {
        let made = self.head.sample(conditioning, &mut random::stream(seed, "head"))?;
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
        let seen = newest(history).and_then(|newest| self.trunk.conditioning(newest));
        let actions = seen.and_then(|seen| self.decode(&seen, options.seed));
        answer(&self.spec, history, options, self.spec.embodiment.joints.len(), actions)
    }
}
