//! LeRobot's SmolVLA folders (<https://arxiv.org/abs/2506.01844>): what their files say, in our words.

use crate::expert::ExpertConfig;
use crate::flow::FlowConfig;
use crate::folder::{Reading, VlaPolicy};
use crate::lerobot::{Feature, Features, camera_of, hash_of_file};
use crate::normalise::{Normaliser, processor_steps, step_normaliser};
use crate::rtc::LeRobotRtc;
use crate::storage::{Storage, weights_file};
use crate::vla::{Vla, VlaConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionSpace, Embodiment};
use vela_fusion::VlmConfig;
use vela_llm::{DecoderConfig, Tokenizer, trace::config_json};
use vela_nn::{Error, Result, RopeConfig, Weights};
use vela_vision::PadSide;

/// The fields of a SmolVLA `config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct File {
    input_features: Features,
    output_features: Features,
    chunk_size: usize,
    n_action_steps: usize,
    max_state_dim: usize,
    max_action_dim: usize,
    resize_imgs_with_padding: [usize; 2],
    #[serde(default)]
    empty_cameras: usize,
    #[serde(default)]
    adapt_to_pi_aloha: bool,
    tokenizer_max_length: usize,
    num_steps: usize,
    vlm_model_name: String,
    #[serde(default)]
    add_image_special_tokens: bool,
    attention_mode: String,
    prefix_length: i64,
    num_expert_layers: i64,
    num_vlm_layers: usize,
    self_attn_every_n_layers: usize,
    expert_width_multiplier: f64,
    min_period: f64,
    max_period: f64,
    #[serde(default)]
    rtc_config: Option<LeRobotRtc>,
}

/// A SmolVLA folder, read.
#[derive(Clone, Debug)]
pub struct SmolVla {
    /// The network.
    pub vla: Vla,
    /// What it is; camera names are those of the features, without `observation.images.`.
    pub config: VlaConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Numbers per action before padding.
    pub actions: usize,
    /// SHA-256 of its weights.
    pub checkpoint: String,
    max_words: usize,
}

/// Where SmolVLA pads: on the left and on top.
pub const PAD: PadSide = PadSide::LeftTop;

impl SmolVla {
    /// Reads `config.json`, the processors and their state files, `model.safetensors`, and `config.json` and
    /// `tokenizer.json` of the VLM in the subfolder that `vlm_model_name` names (its last part will do).
    ///
    /// # Errors
    /// A file is missing or not understood; a setting that is not supported; a tensor is missing, unused or mis-shaped.
    pub fn load(dir: &Path, storage: Storage) -> Result<Self> {
        Self::load_with(dir, storage.load(dir)?)
    }

    /// The same with the folder's weights in hand.
    pub(crate) fn load_with(dir: &Path, weights: Weights) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let file: File = serde_json::from_slice(&text).map_err(|e| Error::parse(path.display(), e))?;
        file.check()?;
        let vlm_dir = vlm_dir(dir, &file.vlm_model_name)?;
        let vlm = VlmConfig::from_hf(&config_json(&vlm_dir)?)?;
        let config = file.vla_config(dir, vlm, &weights)?;
        let vla = Vla::new(&weights.pp("model"), &config)?;
        // A policy does not speak: the VLM's output projection is there and not needed.
        weights.finish_allowing(|name| name == "model.vlm_with_expert.vlm.lm_head.weight")?;
        Ok(Self {
            vla,
            tokenizer: Tokenizer::load(&vlm_dir.join("tokenizer.json"))?,
            actions: file.output_features.width("ACTION")?,
            checkpoint: hash_of_file(&weights_file(dir))?,
            max_words: file.tokenizer_max_length,
            config,
        })
    }

    /// As a policy for a robot, whose cameras must have the names of the features. The folder says nothing of joint
    /// names, units and rate: the embodiment must be the one that it was trained on.
    pub fn policy(self, embodiment: &Embodiment) -> Result<VlaPolicy> {
        if embodiment.joints.len() != self.actions {
            let (got, expected) = (embodiment.joints.len(), self.actions);
            return Err(Error::invalid(format!("smolvla: expected a robot of {expected} joints, got {got}")));
        }
        let reading = Reading { pad: Some(PAD), max_words: Some(self.max_words) };
        let Self { vla, config, tokenizer, checkpoint, .. } = self;
        VlaPolicy::assemble_reading(vla, &config, tokenizer, embodiment, &checkpoint, reading)
    }
}

impl File {
    fn check(&self) -> Result<()> {
        let refused = [
            (self.attention_mode != "cross_attn", "attention_mode other than cross_attn"),
            (self.add_image_special_tokens, "add_image_special_tokens"),
            (self.adapt_to_pi_aloha, "adapt_to_pi_aloha"),
            (self.empty_cameras > 0, "empty_cameras"),
            (self.prefix_length > 0, "prefix_length"),
            (self.self_attn_every_n_layers == 0, "self_attn_every_n_layers 0"),
            (
                self.min_period <= 0.0 || self.max_period < self.min_period,
                "these periods of the time embedding",
            ),
        ];
        match refused.iter().find(|(refused, _)| *refused) {
            Some((_, what)) => {
                Err(Error::invalid(format!("config.json: smolvla with {what} is not supported")))
            }
            None => Ok(()),
        }
    }

    fn vla_config(&self, dir: &Path, vlm: VlmConfig, weights: &Weights) -> Result<VlaConfig> {
        let vision = vlm.tower.fixed()?.clone();
        let size = vision.image_size;
        if self.resize_imgs_with_padding != [size, size] {
            let got = self.resize_imgs_with_padding;
            return Err(Error::invalid(format!(
                "config.json: pictures of {got:?}, the tower takes {size} x {size}"
            )));
        }
        // Some fine-tunes store 0 and mean all: the weights know.
        let stored = |i: usize| {
            let name = format!("text_model.layers.{i}.input_layernorm.weight");
            weights.pp("model.vlm_with_expert.vlm.model").contains(&name)
        };
        let layers = match self.num_vlm_layers {
            0 => (0..).take_while(|i| stored(*i)).count(),
            count => count,
        };
        if self.num_expert_layers > 0 && self.num_expert_layers as usize != layers {
            let got = self.num_expert_layers;
            return Err(Error::invalid(format!(
                "config.json: {got} expert layers beside {layers} are not supported"
            )));
        }
        let decoder = DecoderConfig {
            layers,
            // The joint attention turns by its own base, whatever the VLM's config says.
            rope: RopeConfig::new(vlm.decoder.head_dim, 10_000.0),
            ..vlm.decoder
        };
        let width = (decoder.width as f64 * self.expert_width_multiplier) as usize;
        let expert = ExpertConfig {
            layers: DecoderConfig {
                vocab: 1,
                width,
                inner_width: expert_inner_width(width),
                ..decoder.clone()
            },
            self_attention_every: self.self_attn_every_n_layers,
            causal: true,
            action_dims: self.max_action_dim,
            time_periods: [self.min_period, self.max_period],
        };
        let camera = |(name, _): &(String, Feature)| camera_of(name).to_owned();
        let normaliser = |file: &str, step: &str, feature: &str, kind: &str| -> Result<Normaliser> {
            let steps = processor_steps(&dir.join(file))?;
            let found = steps.iter().find(|s| s.registry_name == step);
            let found = found.ok_or_else(|| Error::invalid(format!("{file}: no step {step}")))?;
            step_normaliser(dir, found, feature, kind)
        };
        Ok(VlaConfig {
            kind: "vela_vla".into(),
            image_scale: (decoder.width as f32).sqrt(),
            word_scale: (decoder.width as f32).sqrt(),
            vision,
            projector: vlm.projector,
            decoder,
            expert,
            flow: FlowConfig { steps: self.num_steps, ..FlowConfig::default() },
            cameras: self.input_features.of_kind("VISUAL").map(camera).collect(),
            camera_embeddings: false,
            state_dims: self.max_state_dim,
            prompt_suffix: "\n".into(),
            space: ActionSpace::JointPositions,
            horizon: self.chunk_size,
            execute: self.n_action_steps,
            state: normaliser(
                "policy_preprocessor.json",
                "normalizer_processor",
                "observation.state",
                "STATE",
            )?,
            action: normaliser("policy_postprocessor.json", "unnormalizer_processor", "action", "ACTION")?,
            rtc: self.rtc_config.as_ref().map(LeRobotRtc::guide).transpose()?.flatten(),
        })
    }
}

/// Two thirds of four times the width, rounded up to a multiple of 256.
fn expert_inner_width(width: usize) -> usize {
    (2 * width / 3 * 4).div_ceil(256) * 256
}

fn vlm_dir(dir: &Path, name: &str) -> Result<PathBuf> {
    let last = Path::new(name).file_name().map(|last| dir.join(last));
    match last {
        Some(path) if path.join("config.json").is_file() => Ok(path),
        _ => Err(Error::invalid(format!(
            "{}: expected config.json and tokenizer.json of the VLM '{name}' in a subfolder of that name",
            dir.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expert_inner_width_is_that_of_the_published_checkpoint() {
        assert_eq!((expert_inner_width(720), expert_inner_width(30)), (2048, 256));
    }
}
