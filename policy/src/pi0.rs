//! LeRobot's pi0 (<https://arxiv.org/abs/2410.24164>) and pi0.5 (<https://arxiv.org/abs/2504.16054>) folders: PaliGemma reads
//! pictures and words, a Gemma expert beside it denoises actions. pi0 gives the state as a token before the actions and
//! the time beside each action; pi0.5 writes the state into the sentence and lets the time tune the expert's norms.

use crate::expert::{ExpertConfig, TimePlace};
use crate::flow::{FlowConfig, TimeLaw};
use crate::folder::{Reading, VlaPolicy};
use crate::lerobot::{Folder, is_bookkeeping};
use crate::moment::{fits, statistics};
use crate::rtc::LeRobotRtc;
use crate::storage::Storage;
use crate::vla::{Form, StatePlace, Vla, VlaConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionSpace, Embodiment};
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::{DecoderConfig, Tokenizer};
use vela_nn::{Error, Result, Weights};
use vela_vision::{PadSide, VisionConfig};

/// The fields of a pi0 or pi0.5 `config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: String,
    paligemma_variant: String,
    action_expert_variant: String,
    chunk_size: usize,
    n_action_steps: usize,
    max_state_dim: usize,
    max_action_dim: usize,
    num_inference_steps: usize,
    time_sampling_beta_alpha: f64,
    time_sampling_beta_beta: f64,
    time_sampling_scale: f64,
    time_sampling_offset: f64,
    min_period: f64,
    max_period: f64,
    #[serde(default)]
    use_relative_actions: bool,
    image_resolution: [usize; 2],
    #[serde(default)]
    empty_cameras: usize,
    tokenizer_max_length: usize,
    #[serde(default)]
    rtc_config: Option<LeRobotRtc>,
}

/// Sizes of a Gemma decoder.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Gemma {
    width: usize,
    depth: usize,
    mlp_dim: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// Sizes of a PaliGemma.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Sizes {
    pub vlm: Gemma,
    vision: Value,
    pub vocab_size: usize,
}

/// Sizes that a `config.json` cannot say: only test checkpoints have such a file.
fn tiny<T: DeserializeOwned>(folder: &Folder) -> Result<Option<T>> {
    let path = folder.dir.join("tiny_dims.json");
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::parse(path.display(), e)),
        Err(_) => Ok(None),
    }
}

impl Sizes {
    /// By the name of the Gemma that the folder says, for pictures of `image_size`.
    pub fn of(folder: &Folder, gemma: &str, image_size: usize) -> Result<Self> {
        let sizes = match tiny(folder)? {
            Some(sizes) => sizes,
            None => Self {
                vlm: Gemma::named(gemma)?,
                // SigLIP so400m, patches of 14.
                vision: json!({"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                    "num_attention_heads": 16, "patch_size": 14, "image_size": image_size}),
                vocab_size: 257_152,
            },
        };
        let expected = sizes.vision_config()?.image_size;
        if expected != image_size {
            return Err(Error::invalid(format!(
                "config.json: pictures of {image_size}, the tower takes {expected}"
            )));
        }
        Ok(sizes)
    }

    /// The tower.
    pub fn vision_config(&self) -> Result<VisionConfig> {
        let mut vision = self.vision.clone();
        if let Some(vision) = vision.as_object_mut() {
            vision.insert("model_type".into(), "siglip_vision_model".into());
            vision.insert("vision_use_head".into(), false.into());
        }
        VisionConfig::from_hf(&vision)
    }
}

impl Gemma {
    /// By the names that openpi gave them.
    fn named(name: &str) -> Result<Self> {
        let (width, depth, mlp_dim) = match name {
            "gemma_2b" => (2048, 18, 16_384),
            "gemma_300m" => (1024, 18, 4096),
            other => {
                return Err(Error::invalid(format!(
                    "config.json: Gemma variant: expected gemma_2b or gemma_300m, got '{other}'"
                )));
            }
        };
        Ok(Self { width, depth, mlp_dim, num_heads: 8, num_kv_heads: 1, head_dim: 256 })
    }

    /// As a decoder of `vocab` words.
    pub fn decoder(&self, vocab: usize) -> Result<DecoderConfig> {
        DecoderConfig::from_hf(&json!({
            "model_type": "gemma",
            "vocab_size": vocab,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "hidden_activation": "gelu_pytorch_tanh",
        }))
    }
}

/// A pi0 or pi0.5 folder, read.
#[derive(Clone, Debug)]
pub struct Pi0 {
    /// The network.
    pub vla: Vla,
    /// What it is; camera names are those of the features, without `observation.images.`.
    pub config: VlaConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Numbers per action before padding.
    pub actions: usize,
    folder: Folder,
    max_words: usize,
}

/// Where pi0 pads: on both sides.
pub const PAD: PadSide = PadSide::Centred;

/// Processor steps that are carried out here.
const STEPS: [&str; 5] = [
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    // Without effect unless they are switched on, which is refused.
    "relative_actions_processor",
    "absolute_actions_processor",
];

impl Pi0 {
    /// Reads `config.json`, the processors and their state files, `model.safetensors`, and `tokenizer.json` (PaliGemma's, in
    /// the folder itself or in a subfolder with the name of the tokenizer).
    ///
    /// # Errors
    /// A file is missing or not understood; a setting that is not supported; a tensor is missing, unused or mis-shaped.
    pub fn load(dir: &Path, storage: Storage) -> Result<Self> {
        Self::of(dir, storage.stored(dir)?, storage)
    }

    /// The same with the folder's weights in hand, kept as they are.
    pub(crate) fn load_with(dir: &Path, stored: Weights) -> Result<Self> {
        Self::of(dir, stored, Storage::Plain)
    }

    fn of(dir: &Path, stored: Weights, storage: Storage) -> Result<Self> {
        let folder = Folder::read(dir, &STEPS)?;
        let file: File = folder.fields()?;
        let form = match file.kind.as_str() {
            "pi0" => Form { state: StatePlace::Suffix, time: TimePlace::Beside },
            _ => Form { state: StatePlace::Words, time: TimePlace::Norms },
        };
        let periods = file.min_period > 0.0 && file.max_period >= file.min_period;
        folder.refuse(
            &file.kind,
            &[
                (file.use_relative_actions, "use_relative_actions"),
                (file.empty_cameras > 0, "empty_cameras"),
                (file.image_resolution[0] != file.image_resolution[1], "pictures that are not square"),
                (!periods, "these periods of the time embedding"),
                (file.n_action_steps == 0 || file.n_action_steps > file.chunk_size, "these n_action_steps"),
            ],
        )?;
        let (state, action) = statistics(&folder, &stored)?;
        let weights = storage.of(renamed(&stored)?)?;
        let config = file.vla_config(&folder, form, state, action)?;
        let vla = Vla::with_form(&weights, &config, form)?;
        weights.finish_allowing(is_bookkeeping)?;
        Ok(Self {
            vla,
            tokenizer: Tokenizer::load(&tokenizer_file(&folder)?)?,
            actions: folder.outputs.width("ACTION")?,
            max_words: file.tokenizer_max_length,
            config,
            folder,
        })
    }

    /// As a policy for a robot, whose cameras must have the names of the features.
    pub fn policy(self, embodiment: &Embodiment) -> Result<VlaPolicy> {
        fits(&self.folder, &self.folder.cameras()?, embodiment, true)?;
        let reading = Reading { pad: Some(PAD), max_words: Some(self.max_words) };
        let Self { vla, config, tokenizer, folder, .. } = self;
        VlaPolicy::assemble_reading(vla, &config, tokenizer, embodiment, &folder.checkpoint()?, reading)
    }
}

impl File {
    fn vla_config(
        &self,
        folder: &Folder,
        form: Form,
        state: crate::Normaliser,
        action: crate::Normaliser,
    ) -> Result<VlaConfig> {
        #[derive(Deserialize)]
        struct Beside {
            expert: Gemma,
        }
        let sizes = Sizes::of(folder, &self.paligemma_variant, self.image_resolution[0])?;
        let expert = match tiny::<Beside>(folder)? {
            Some(beside) => beside.expert,
            None => Gemma::named(&self.action_expert_variant)?,
        };
        let vision = sizes.vision_config()?;
        let decoder = sizes.vlm.decoder(sizes.vocab_size)?;
        let expert = expert.decoder(1)?;
        if expert.layers != decoder.layers || expert.head_dim != decoder.head_dim {
            return Err(Error::invalid(
                "config.json: the expert's layers and heads are not those of PaliGemma",
            ));
        }
        Ok(VlaConfig {
            kind: "vela_vla".into(),
            projector: ProjectorConfig {
                input: vision.width,
                output: decoder.width,
                shuffle: 1,
                projection: Projection::Linear { bias: true },
            },
            vision,
            expert: ExpertConfig {
                layers: expert,
                self_attention_every: 1,
                causal: false,
                action_dims: self.max_action_dim,
                time_periods: [self.min_period, self.max_period],
            },
            decoder,
            flow: FlowConfig {
                steps: self.num_inference_steps,
                times: TimeLaw::Beta {
                    alpha: self.time_sampling_beta_alpha,
                    beta: self.time_sampling_beta_beta,
                    scale: self.time_sampling_scale,
                    shift: self.time_sampling_offset,
                },
                ..FlowConfig::default()
            },
            cameras: folder.cameras()?.into_iter().map(|camera| camera.name).collect(),
            camera_embeddings: false,
            state_dims: self.max_state_dim,
            // Gemma scales its words itself.
            image_scale: 1.0,
            word_scale: 1.0,
            prompt_suffix: if form.state == StatePlace::Words { String::new() } else { "\n".into() },
            space: ActionSpace::JointPositions,
            horizon: self.chunk_size,
            execute: self.n_action_steps,
            state,
            action,
            rtc: self.rtc_config.as_ref().map(LeRobotRtc::guide).transpose()?.flatten(),
        })
    }
}

/// The checkpoint's names as ours: LeRobot's with and openpi's without `model.` before them.
pub(crate) fn renamed(stored: &Weights) -> Result<Weights> {
    const BOTH: &str = "paligemma_with_expert";
    let names = stored.names();
    let embedded = names.iter().any(|name| name.ends_with("language_model.embed_tokens.weight"));
    stored.renamed(|name| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        let Some(inside) = name.strip_prefix(BOTH).and_then(|rest| rest.strip_prefix('.')) else {
            return name.to_owned();
        };
        let ours = |rest: &str| format!("vlm_with_expert.{rest}");
        if let Some(rest) = inside.strip_prefix("gemma_expert.model.") {
            return ours(&format!("lm_expert.{rest}"));
        }
        // The embeddings may be stored as the output projection that they are tied to; nobody speaks here.
        if inside == "paligemma.lm_head.weight" && !embedded {
            return ours("vlm.model.text_model.embed_tokens.weight");
        }
        if inside.contains("lm_head.weight") {
            return String::new();
        }
        let inside = inside.strip_prefix("paligemma.").unwrap_or(inside);
        let inside = inside.strip_prefix("model.").unwrap_or(inside);
        for (theirs, mine) in [
            ("vision_tower.vision_model.", "vision_model."),
            ("vision_tower.", "vision_model."),
            ("multi_modal_projector.linear.", "connector.modality_projection.proj."),
            ("language_model.model.", "text_model."),
            ("language_model.", "text_model."),
        ] {
            if let Some(rest) = inside.strip_prefix(theirs) {
                return ours(&format!("vlm.model.{mine}{rest}"));
            }
        }
        ours(inside)
    })
}

/// PaliGemma's tokenizer, which these folders name and do not hold.
pub(crate) fn tokenizer_file(folder: &Folder) -> Result<PathBuf> {
    let name = folder.step_setting("tokenizer_processor", "tokenizer_name");
    let name = name.as_ref().and_then(Value::as_str).unwrap_or("google/paligemma-3b-pt-224").to_owned();
    let last = Path::new(&name).file_name().map(|last| folder.dir.join(last).join("tokenizer.json"));
    let places = [Some(folder.dir.join("tokenizer.json")), last];
    places.into_iter().flatten().find(|path| path.is_file()).ok_or_else(|| {
        Error::invalid(format!(
            "{}: expected the tokenizer '{name}' as tokenizer.json, here or in a subfolder of that name",
            folder.dir.display()
        ))
    })
}

/// pi0.5's sentence: the task, and the normalised state as the numbers of 256 bins over [-1, 1] (below them -1).
pub fn state_prompt(task: &str, state: &[f32]) -> String {
    format!("{};\nAction: ", state_text(task, state))
}

/// The task and the state of [`state_prompt`].
pub(crate) fn state_text(task: &str, state: &[f32]) -> String {
    let task = task.trim().replace(['_', '\n'], " ");
    let bin = |x: &f32| ((f64::from(*x) + 1.0) * 128.0).floor().clamp(-1.0, 255.0) as i64;
    let bins: Vec<String> = state.iter().map(|x| bin(x).to_string()).collect();
    format!("Task: {task}, State: {}", bins.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_written_in_256_bins() {
        let text = state_prompt(" pick_up\nit ", &[-1.5, -1.0, 0.0, 0.9999, 1.0, 7.0]);
        assert_eq!(text, "Task: pick up it, State: -1 0 128 255 255 255;\nAction: ");
    }
}
