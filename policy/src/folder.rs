//! A VLA as a policy: from a folder or from inside the binary, observations in, chunks in physical units out.

use crate::answer::{answer, newest};
use crate::lerobot::hash_of_file;
use crate::normalise::Normaliser;
use crate::pi0::state_prompt;
use crate::rtc::{Guidance, Guide};
use crate::storage::{Storage, weights_file};
use crate::vla::{StatePlace, Vla, VlaConfig, VlaInputs, signed_planes};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Frame, InferOptions, Observation, Policy, PolicySpec,
};
use vela_fusion::Projector;
use vela_llm::Tokenizer;
use vela_nn::{Error, Result, Weights, hash_of, random};
use vela_vision::{PadSide, Planes};

/// The files of a policy folder.
pub const FILES: [&str; 4] = ["config.json", "tokenizer.json", "embodiment.json", "model.safetensors"];

/// A VLA with its tokenizer, its robot and its statistics.
#[derive(Clone, Debug)]
pub struct VlaPolicy {
    vla: Vla,
    config: VlaConfig,
    tokenizer: Tokenizer,
    spec: PolicySpec,
    reading: Reading,
    guide: Option<Guide>,
    /// What the tower made of each camera's last picture.
    sights: Vec<Option<Sight>>,
    encoded: usize,
}

/// A picture and its patch tokens `[1, patches, vision_width]`.
#[derive(Clone, Debug)]
struct Sight {
    frame: Frame,
    tokens: Tensor,
}

/// How a policy reads what it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Where padding goes when pictures are resized to the network's size; without it, pictures of another size are
    /// refused.
    pub pad: Option<PadSide>,
    /// Sentences are cut after this many tokens; without it, they are read whole.
    pub max_words: Option<usize>,
}

impl VlaPolicy {
    /// From a policy folder.
    ///
    /// # Errors
    /// A file is missing, torn or of another kind; a tensor is missing, unused or mis-shaped (all of them named).
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_kept(dir, Storage::Plain)
    }

    /// The same with its matrices kept as `storage` says.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_kept(dir: &Path, storage: Storage) -> Result<Self> {
        Self::load_with(dir, || storage.load(dir))
    }

    /// The same with the folder's weights from elsewhere; they are asked for when the rest has been read.
    pub(crate) fn load_with(dir: &Path, weights: impl FnOnce() -> Result<Weights>) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| Error::Io { path, source })
        };
        let [config, tokenizer, embodiment, _] = FILES;
        let (config, tokenizer, embodiment) = (read(config)?, read(tokenizer)?, read(embodiment)?);
        let weights = || Ok((weights()?, hash_of_file(&weights_file(dir))?));
        Self::of_files([&config, &tokenizer, &embodiment], weights)
    }

    /// From the contents of [`FILES`].
    pub fn from_bytes(config: &[u8], tokenizer: &[u8], embodiment: &[u8], weights: &[u8]) -> Result<Self> {
        let weights = || Ok((Weights::from_bytes(weights)?, hash_of(weights)));
        Self::of_files([config, tokenizer, embodiment], weights)
    }

    fn of_files(
        [config, tokenizer, embodiment]: [&[u8]; 3],
        weights: impl FnOnce() -> Result<(Weights, String)>,
    ) -> Result<Self> {
        let config: VlaConfig = serde_json::from_slice(config).map_err(|e| Error::parse("config.json", e))?;
        if config.kind != "vela_vla" {
            return Err(Error::parse("config.json", format!("type: expected vela_vla, got {}", config.kind)));
        }
        let embodiment: Embodiment =
            serde_json::from_slice(embodiment).map_err(|e| Error::parse("embodiment.json", e))?;
        let (weights, checkpoint) = weights()?;
        let vla = Vla::new(&weights, &config)?;
        weights.finish()?;
        Self::assemble(vla, &config, Tokenizer::from_bytes(tokenizer)?, &embodiment, &checkpoint)
    }

    /// From a network in memory, in training or just trained.
    ///
    /// # Errors
    /// Statistics, cameras or words that do not fit each other.
    pub fn assemble(
        vla: Vla,
        config: &VlaConfig,
        tokenizer: Tokenizer,
        embodiment: &Embodiment,
        checkpoint: &str,
    ) -> Result<Self> {
        Self::assemble_reading(vla, config, tokenizer, embodiment, checkpoint, Reading::default())
    }

    /// The same with another way of reading pictures and sentences.
    pub fn assemble_reading(
        vla: Vla,
        config: &VlaConfig,
        tokenizer: Tokenizer,
        embodiment: &Embodiment,
        checkpoint: &str,
        reading: Reading,
    ) -> Result<Self> {
        let joints = embodiment.joints.len();
        config.rtc.map_or(Ok(()), |guide| guide.check())?;
        for (what, normaliser) in [("state", &config.state), ("action", &config.action)] {
            normaliser.check()?;
            if normaliser.dims().is_some_and(|dims| dims != joints) {
                return Err(Error::invalid(format!("{what} statistics: expected {joints} joints")));
            }
        }
        if config.state_dims < joints || config.expert.action_dims < joints {
            return Err(Error::invalid(format!("the network has no room for {joints} joints")));
        }
        let size = config.vision.image_size as u32;
        for name in &config.cameras {
            let camera = embodiment.cameras.iter().find(|camera| &camera.name == name);
            let right = |w: u32, h: u32| reading.pad.is_some() || (w, h) == (size, size);
            if camera.is_none_or(|camera| !right(camera.width, camera.height)) {
                return Err(Error::invalid(format!(
                    "camera '{name}': expected one of {size} x {size} pixels"
                )));
            }
        }
        if tokenizer.vocab_size() > config.decoder.vocab {
            let (words, vocab) = (tokenizer.vocab_size(), config.decoder.vocab);
            return Err(Error::invalid(format!("tokenizer: {words} words, the network knows {vocab}")));
        }
        let spec = PolicySpec {
            embodiment: embodiment.clone(),
            space: config.space.clone(),
            horizon: config.horizon,
            execute: config.execute,
            history: 1,
            checkpoint: checkpoint.to_owned(),
        };
        Ok(Self {
            vla,
            config: config.clone(),
            tokenizer,
            spec,
            reading,
            guide: config.rtc,
            sights: Vec::new(),
            encoded: 0,
        })
    }

    /// Real-time chunking as it is set: at first, what the config says.
    pub fn guide(&self) -> Option<Guide> {
        self.guide
    }

    /// Turns real-time chunking on or off: whether [`InferOptions::unexecuted`] is heeded.
    pub fn set_guide(&mut self, guide: Option<Guide>) {
        self.guide = guide;
    }

    /// Answers with chunks of `horizon` actions from now on. A delay of `d` ticks needs chunks of `2 d` at least, while one
    /// question is asked at a time; what lies beyond the horizon of training has to be measured.
    ///
    /// # Errors
    /// Fewer actions than are carried out.
    pub fn set_horizon(&mut self, horizon: usize) -> Result<()> {
        if horizon < self.config.execute {
            let execute = self.config.execute;
            return Err(Error::invalid(format!(
                "expected chunks of at least {execute} actions, got {horizon}"
            )));
        }
        (self.config.horizon, self.spec.horizon) = (horizon, horizon);
        Ok(())
    }

    /// The network.
    pub fn vla(&self) -> &Vla {
        &self.vla
    }

    /// What it is.
    pub fn config(&self) -> &VlaConfig {
        &self.config
    }

    /// A question about a picture that is no camera's, as the network reads it: planes in [-1, 1], `[1, 1, 3, size,
    /// size]`, resized and padded where another size needs it, and the words of question and answer.
    ///
    /// # Errors
    /// Bytes that are not `[height, width, 3]`; words that the tokenizer does not know.
    pub fn asked(
        &self,
        rgb: &[u8],
        [width, height]: [usize; 2],
        question: &str,
        answer: &str,
    ) -> Result<(Tensor, [Vec<u32>; 2])> {
        let size = self.config.vision.image_size;
        let side = self.reading.pad.unwrap_or(PadSide::Centred);
        let mut planes = Planes::from_rgb(rgb, width, height)?;
        if [width, height] != [size, size] {
            planes = planes.resize_with_pad(size, size, side, 0.0);
        }
        planes.to_signed_range();
        let frames = Tensor::from_vec(planes.data, vec![1, 1, 3, size, size], &Device::Cpu)?;
        let question = self.tokenizer.encode(&format!("{question}{}", self.config.prompt_suffix))?;
        Ok((frames, [question, self.tokenizer.encode_rendered(answer)?]))
    }

    /// Scales joints and actions in another way from now on.
    ///
    /// # Errors
    /// Statistics of another width than the robot's joints, or without width.
    pub fn set_scaling(&mut self, state: Normaliser, action: Normaliser) -> Result<()> {
        let joints = self.spec.embodiment.joints.len();
        for (what, scaling) in [("state", &state), ("action", &action)] {
            scaling.check()?;
            scaling.check_widths(what)?;
            if scaling.dims().is_some_and(|dims| dims != joints) {
                return Err(Error::invalid(format!("{what} statistics: expected {joints} joints")));
            }
        }
        (self.config.state, self.config.action) = (state, action);
        Ok(())
    }

    /// The network's inputs for one observation.
    pub fn inputs(&self, observation: &Observation) -> Result<VlaInputs> {
        observation.check(&self.spec.embodiment).map_err(Error::invalid)?;
        let size = self.config.vision.image_size;
        let mut pixels = Vec::with_capacity(self.config.cameras.len() * 3 * size * size);
        for name in &self.config.cameras {
            let frame =
                observation.frame(name).ok_or_else(|| Error::invalid(format!("no camera '{name}'")))?;
            match self.reading.pad {
                None => signed_planes(&frame.rgb, &mut pixels),
                Some(side) => {
                    let planes = Planes::from_rgb(&frame.rgb, frame.width as usize, frame.height as usize)?;
                    let mut planes = planes.resize_with_pad(size, size, side, 0.0);
                    planes.to_signed_range();
                    pixels.extend(planes.data);
                }
            }
        }
        let joints: Vec<f32> = observation.joint_positions.iter().map(|q| *q as f32).collect();
        let mut state = self.config.state.normalise(&joints)?;
        let sentence = match self.vla.state_place() {
            StatePlace::Words => state_prompt(&observation.instruction, &state),
            _ => format!("{}{}", observation.instruction, self.config.prompt_suffix),
        };
        let mut words = self.tokenizer.encode(&sentence)?;
        words.truncate(self.reading.max_words.unwrap_or(usize::MAX));
        state.resize(self.config.state_dims, 0.0);
        let (cameras, count) = (self.config.cameras.len(), words.len());
        Ok(VlaInputs {
            frames: Tensor::from_vec(pixels, vec![1, cameras, 3, size, size], &Device::Cpu)?,
            words: Tensor::from_vec(words, (1, count), &Device::Cpu)?,
            word_valid: vec![true; count],
            state: Tensor::from_vec(state, (1, self.config.state_dims), &Device::Cpu)?,
        })
    }

    /// Pictures that the tower has read so far: one that has not changed is not read again.
    pub fn encoded(&self) -> usize {
        self.encoded
    }

    /// Patch tokens `[cameras, patches, vision_width]`. Pictures that are new are one batch.
    fn see(&mut self, observation: &Observation, frames: &Tensor) -> Result<Tensor> {
        let names = &self.config.cameras;
        self.sights.resize(names.len(), None);
        let same = |old: &Frame, new: &Frame| {
            (old.width, old.height) == (new.width, new.height) && old.rgb == new.rgb
        };
        let mut changed = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let frame = observation.frame(name);
            if !self.sights[i].as_ref().zip(frame).is_some_and(|(old, new)| same(&old.frame, new)) {
                changed.push((i, frame.cloned()));
            }
        }
        if !changed.is_empty() {
            let new: Vec<Tensor> =
                changed.iter().map(|(i, _)| frames.narrow(1, *i, 1)).collect::<candle_core::Result<_>>()?;
            let tokens = self.vla.see(&Tensor::cat(&new, 1)?)?;
            // Weights in training change under what they made.
            if tokens.track_op() {
                self.sights.clear();
                return Ok(tokens);
            }
            self.encoded += changed.len();
            for (k, (i, frame)) in changed.into_iter().enumerate() {
                let frame = frame.ok_or_else(|| Error::invalid("a camera without a picture"))?;
                self.sights[i] = Some(Sight { frame, tokens: tokens.narrow(0, k, 1)?.contiguous()? });
            }
        }
        let all: Vec<&Tensor> = self.sights.iter().flatten().map(|sight| &sight.tokens).collect();
        Ok(Tensor::cat(&all, 0)?)
    }

    /// What the tower makes of an observation, patch tokens `[cameras, patches, vision_width]`, and the network's inputs.
    ///
    /// # Errors
    /// An observation that does not fit.
    pub fn sight(&mut self, observation: &Observation) -> Result<(Tensor, VlaInputs)> {
        let inputs = self.inputs(observation)?;
        Ok((self.see(observation, &inputs.frames)?, inputs))
    }

    /// [`Vla::conditioning`] of an observation, read through the policy's own projector or through another one.
    ///
    /// # Errors
    /// An observation or a projector that does not fit; a policy whose state is no token of the prefix.
    pub fn conditioning(
        &mut self,
        observation: &Observation,
        projector: Option<&Projector>,
    ) -> Result<Tensor> {
        let (seen, inputs) = self.sight(observation)?;
        let prefix = match projector {
            None => self.vla.prefix_on(&seen, &inputs)?,
            Some(other) => self.vla.prefix_through(other, &seen, &inputs.told())?,
        };
        self.vla.conditioning(&prefix)
    }

    fn chunk(&mut self, observation: &Observation, options: &InferOptions) -> Result<Vec<Vec<f64>>> {
        let (seen, inputs) = self.sight(observation)?;
        let prefix = self.vla.prefix_on(&seen, &inputs)?;
        let dims = self.config.expert.action_dims;
        let mut rng = random::stream(options.seed, "flow noise");
        let noise = self.config.flow.draw_noise(self.config.horizon * dims, &mut rng);
        let noise = Tensor::from_vec(noise, (1, self.config.horizon, dims), &Device::Cpu)?;
        let guidance = match self.guide {
            Some(guide) if !options.unexecuted.is_empty() => {
                Some(self.guidance(guide, observation, options)?)
            }
            _ => None,
        };
        let actions = self.vla.sample_guided(&prefix, &noise, guidance.as_ref(), &mut |_, _, _| {})?;
        let joints = self.spec.embodiment.joints.len();
        let physical = |row: &Vec<f32>| -> Result<Vec<f64>> {
            Ok(self.config.action.unnormalise(&row[..joints])?.iter().map(|x| f64::from(*x)).collect())
        };
        actions.squeeze(0)?.to_vec2::<f32>()?.iter().map(physical).collect()
    }

    /// The unexecuted absolute targets as the network sees actions.
    fn guidance(&self, guide: Guide, observation: &Observation, options: &InferOptions) -> Result<Guidance> {
        let (joints, dims) = (self.spec.embodiment.joints.len(), self.config.expert.action_dims);
        let rows = &options.unexecuted[..options.unexecuted.len().min(self.config.horizon)];
        let mut values = Vec::with_capacity(rows.len() * dims);
        for row in rows {
            if row.len() != joints || row.iter().any(|x| !x.is_finite()) {
                return Err(Error::invalid(format!(
                    "unexecuted actions: expected {joints} finite numbers each"
                )));
            }
            let action: Vec<f32> = match self.config.space {
                ActionSpace::JointDeltas => {
                    row.iter().zip(&observation.joint_positions).map(|(a, q)| (a - q) as f32).collect()
                }
                ActionSpace::JointPositions => row.iter().map(|a| *a as f32).collect(),
                ActionSpace::EndEffectorDeltas => {
                    return Err(Error::invalid(
                        "real-time chunking of end-effector actions is not supported",
                    ));
                }
            };
            let mut action = self.config.action.normalise(&action)?;
            action.resize(dims, 0.0);
            values.extend(action);
        }
        Ok(Guidance {
            left_over: Tensor::from_vec(values, (1, rows.len(), dims), &Device::Cpu)?,
            delay: options.delay_ticks,
            execution_horizon: guide.until.tick(
                self.config.horizon,
                self.config.execute,
                options.delay_ticks,
            ),
            schedule: guide.schedule,
            max_weight: guide.max_weight,
            pull: guide.pull,
        })
    }
}

impl Policy for VlaPolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let actions = newest(history).and_then(|newest| self.chunk(newest, options));
        answer(&self.spec, history, options, self.spec.embodiment.joints.len(), actions)
    }
}

/// Writes a policy folder; the weights as 16-bit floats.
///
/// # Errors
/// The folder cannot be written.
pub fn save(
    dir: &Path,
    config: &VlaConfig,
    tokenizer: &Tokenizer,
    embodiment: &Embodiment,
    tensors: &[(String, Tensor)],
) -> Result<()> {
    let io = |path: &Path, source| Error::Io { path: path.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
    let json = |what: &str, value: serde_json::Result<Vec<u8>>| value.map_err(|e| Error::parse(what, e));
    let [config_file, tokenizer_file, embodiment_file, weights_file] = FILES.map(|name| dir.join(name));
    let files = [
        (config_file, json("config.json", serde_json::to_vec_pretty(config))?),
        (tokenizer_file, tokenizer.json().to_vec()),
        (embodiment_file, json("embodiment.json", serde_json::to_vec_pretty(embodiment))?),
    ];
    for (path, bytes) in &files {
        std::fs::write(path, bytes).map_err(|e| io(path, e))?;
    }
    let halves: Vec<(String, Tensor)> =
        tensors.iter().map(|(name, t)| Ok((name.clone(), t.to_dtype(DType::F16)?))).collect::<Result<_>>()?;
    vela_nn::save(&weights_file, &halves)
}
