//! OpenVLA-OFT (Kim et al. 2025, <https://arxiv.org/abs/2502.19645>): OpenVLA that gives a whole chunk at once. Behind the words come
//! empty tokens, one per number of the chunk, everything sees everything, and a residual network makes actions of what
//! the empty tokens become. Several pictures, and the robot's state as one token behind them.

use crate::answer::{answer, newest};
use crate::lerobot::hash_of_file;
use crate::open::{Choices, chosen_dataset, displacement};
use crate::openvla::{ActionRanges, OpenVla, prompt, ranges, spaced};
use crate::storage::{FILE, Storage, weights_file};
use crate::torch_file;
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionChunk, ActionSpace, Embodiment, InferOptions, Observation, Policy, PolicySpec};
use vela_llm::{Cache, Tokenizer};
use vela_nn::{Activation, Error, Linear, Mask, Norm, NormConfig, Result, Weights};

/// Torch's layer norm.
const NORM: NormConfig = NormConfig::LayerNorm { eps: 1e-5, bias: true };
/// Llama's end of a text, which stands behind the empty tokens as it did in training.
const STOP: u32 = 2;

/// What the folders do not say, by the numbers of an action, as OFT's own constants have it: actions per chunk, and the
/// statistics that actions and state are scaled by. LIBERO's arms have 7 numbers, ALOHA's pair has 14.
const PLATFORMS: [(usize, usize, [&str; 2]); 2] = [(7, 8, ["q01", "q99"]), (14, 25, ["min", "max"])];

/// The residual network on the tokens of one action.
#[derive(Clone, Debug)]
struct Head {
    norm_in: Norm,
    input: Linear,
    blocks: Vec<(Norm, Linear)>,
    norm_out: Norm,
    output: Linear,
}

impl Head {
    /// Widths are in the weights.
    fn new(weights: &Weights) -> Result<Self> {
        let model = weights.pp("model");
        let sizes = |name: &str| -> Result<(usize, usize)> {
            match model.shape_of(&format!("{name}.weight")).unwrap_or_default()[..] {
                [output, input] => Ok((output, input)),
                _ => Err(Error::invalid(format!("action head: expected a matrix model.{name}.weight"))),
            }
        };
        let linear = |name: &str| -> Result<Linear> {
            let (output, input) = sizes(name)?;
            Linear::new(&model.pp(name), input, output, true)
        };
        let (width, tokens) = sizes("fc1")?;
        let block = |i: usize| -> Result<(Norm, Linear)> {
            let at = model.pp("mlp_resnet_blocks").pp(i).pp("ffn");
            Ok((Norm::new(&at.pp(0), width, NORM)?, Linear::new(&at.pp(1), width, width, true)?))
        };
        let there = |i: &usize| model.contains(&format!("mlp_resnet_blocks.{i}.ffn.1.weight"));
        let made = Self {
            norm_in: Norm::new(&model.pp("layer_norm1"), tokens, NORM)?,
            input: linear("fc1")?,
            blocks: (0..).take_while(there).map(block).collect::<Result<_>>()?,
            norm_out: Norm::new(&model.pp("layer_norm2"), width, NORM)?,
            output: linear("fc2")?,
        };
        weights.finish()?;
        Ok(made)
    }

    /// `x [chunk, dims * width]` to actions `[chunk, dims]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.input.forward(&self.norm_in.forward(x)?)?.relu()?;
        for (norm, linear) in &self.blocks {
            x = (&x + linear.forward(&norm.forward(&x)?)?.relu()?)?;
        }
        self.output.forward(&self.norm_out.forward(&x)?)
    }
}

/// An OpenVLA-OFT folder, read.
#[derive(Clone, Debug)]
pub struct OpenVlaOft {
    base: OpenVla,
    head: Head,
    state_in: Option<[Linear; 2]>,
    actions: BTreeMap<String, ActionRanges>,
    states: BTreeMap<String, ActionRanges>,
    /// Actions per chunk.
    pub chunk: usize,
    /// Numbers per action.
    pub dims: usize,
}

/// The file `{part}--{step}_checkpoint.pt` of a folder and its step, if there is one.
///
/// # Errors
/// Files of several steps.
fn part(dir: &Path, part: &str) -> Result<Option<(String, PathBuf)>> {
    let entries = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
    let step = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let step = name.strip_prefix(part)?.strip_prefix("--")?.strip_suffix("_checkpoint.pt")?.to_owned();
        Some((step, entry.path()))
    };
    let mut found: Vec<(String, PathBuf)> = entries.flatten().filter_map(step).collect();
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => {
            let steps: Vec<&str> = several.iter().map(|(step, _)| step.as_str()).collect();
            Err(Error::invalid(format!("{part}: expected the file of one step, got {}", steps.join(", "))))
        }
    }
}

/// Whether an OpenVLA folder is one of OpenVLA-OFT's.
pub fn is_oft(dir: &Path) -> bool {
    part(dir, "action_head").is_ok_and(|found| found.is_some()) || part(dir, "action_head").is_err()
}

fn weights_of(path: &Path, storage: Storage) -> Result<Weights> {
    let tensors = torch_file::tensors(path)?;
    // Saved out of a wrapper for several devices.
    let bare = |name: String| name.strip_prefix("module.").map(str::to_owned).unwrap_or(name);
    let weights = Weights::from_tensors(tensors.into_iter().map(|(name, t)| (bare(name), t)).collect());
    // What turns tokens into numbers of the world stays float32.
    if storage == Storage::Plain { Ok(weights) } else { Storage::Float32.of(weights) }
}

impl OpenVlaOft {
    /// Reads a folder whose LoRA has been merged: OpenVLA's files, `dataset_statistics.json`, `action_head--*_checkpoint.pt` and, if
    /// the state is read, `proprio_projector--*_checkpoint.pt` of the same step.
    ///
    /// # Errors
    /// A file is missing, not understood or of another step; a pickle that does more than hold tensors; a head of another
    /// kind; a tensor that is missing, unused or mis-shaped.
    pub fn load(dir: &Path, storage: Storage) -> Result<Self> {
        let refused = |what: &str| {
            Error::invalid(format!("{}: openvla-oft with {what} is not supported", dir.display()))
        };
        if part(dir, "vision_backbone")?.is_some() {
            return Err(refused("a vision tower that words tune (FiLM)"));
        }
        if part(dir, "noisy_action_projector")?.is_some() {
            return Err(refused("a diffusion head"));
        }
        let stored =
            [FILE, "model.safetensors", "model.safetensors.index.json"].map(|name| dir.join(name).is_file());
        if !stored.contains(&true) && dir.join("lora_adapter").is_dir() {
            return Err(refused("a LoRA adapter that is not merged into the model"));
        }
        let head = part(dir, "action_head")?.ok_or_else(|| {
            Error::invalid("openvla-oft: expected action_head--STEP_checkpoint.pt, found none")
        })?;
        let state = part(dir, "proprio_projector")?;
        if let Some((step, _)) = &state
            && *step != head.0
        {
            let expected = &head.0;
            return Err(Error::invalid(format!(
                "openvla-oft: the action head is of step {expected}, the proprio projector of step {step}"
            )));
        }
        let base = OpenVla::load(dir, storage)?;
        let made = Head::new(&weights_of(&head.1, storage)?)?;
        let (width, dims) = (base.decoder().config().width, made.output.dims().0);
        if made.input.dims().1 != width * dims {
            let (got, expected) = (made.input.dims().1, width * dims);
            return Err(Error::invalid(format!("action head: expected {expected} inputs, got {got}")));
        }
        let platform = PLATFORMS.iter().find(|(numbers, ..)| *numbers == dims);
        let (_, chunk, bounds) = platform.ok_or_else(|| {
            Error::invalid(format!("openvla-oft: expected actions of 7 or 14 numbers, got {dims}"))
        })?;
        let path = dir.join("dataset_statistics.json");
        let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let statistics: Value = serde_json::from_slice(&text).map_err(|e| Error::parse(path.display(), e))?;
        let state_in = match &state {
            None => None,
            Some((_, path)) => {
                let weights = weights_of(path, storage)?;
                let numbers = weights.shape_of("fc1.weight").and_then(|shape| shape.get(1).copied());
                let linear = |name: &str, from| Linear::new(&weights.pp(name), from, width, true);
                let both = [linear("fc1", numbers.unwrap_or(0))?, linear("fc2", width)?];
                weights.finish()?;
                Some(both)
            }
        };
        Ok(Self {
            actions: ranges(&statistics, "action", *bounds)?,
            states: if state_in.is_some() {
                ranges(&statistics, "proprio", *bounds)?
            } else {
                BTreeMap::new()
            },
            base,
            head: made,
            state_in,
            chunk: *chunk,
            dims,
        })
    }

    /// OpenVLA's part.
    pub fn base(&self) -> &OpenVla {
        &self.base
    }

    /// Numbers of the state, if it reads one.
    pub fn state_dims(&self) -> Option<usize> {
        self.state_in.as_ref().map(|[first, _]| first.dims().1)
    }

    /// The data sets that it knows the ranges of.
    pub fn datasets(&self) -> impl Iterator<Item = &str> {
        self.actions.keys().map(String::as_str)
    }

    /// Normalised actions `[chunk, dims]` for pictures (each `[1, 6, size, size]`), the state in [-1, 1] and the words of
    /// [`prompt`].
    ///
    /// # Errors
    /// No pictures; a state where none is read, or none where one is.
    pub fn chunk(&self, pictures: &[Tensor], state: Option<&[f32]>, ids: &[u32]) -> Result<Tensor> {
        let decoder = self.base.decoder();
        let ids = spaced(ids, self.base.bins().vocab);
        let words = decoder.embed(&Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
        let (_, count, width) = words.dims3()?;
        if pictures.is_empty() || count == 0 {
            return Err(Error::invalid("openvla-oft: expected pictures and a prompt"));
        }
        // Cameras are one batch; their tokens follow one another.
        let features = self.base.project(&self.base.see(&Tensor::cat(pictures, 0)?)?)?;
        let seen = features.dim(0)? * features.dim(1)?;
        let mut parts = vec![words.narrow(1, 0, 1)?, features.reshape((1, seen, width))?];
        match (&self.state_in, state) {
            (None, None) => {}
            (Some([first, second]), Some(state)) => {
                let state = Tensor::new(state, &Device::Cpu)?.unsqueeze(0)?;
                let token = second.forward(&Activation::Gelu.forward(&first.forward(&state)?)?)?;
                parts.push(token.unsqueeze(1)?);
            }
            (Some(_), None) => return Err(Error::invalid("openvla-oft: expected a state, got none")),
            (None, Some(_)) => return Err(Error::invalid("openvla-oft: got a state, but none is read")),
        }
        let before: usize = parts.iter().skip(1).map(|part| part.dims()[1]).sum();
        let slots = self.chunk * self.dims;
        parts.push(words.narrow(1, 1, count - 1)?);
        parts.push(words.narrow(1, 0, 1)?.zeros_like()?.broadcast_as((1, slots, width))?.contiguous()?);
        parts.push(decoder.embed(&Tensor::new(&[[STOP]], &Device::Cpu)?)?);
        let embeds = Tensor::cat(&parts, 1)?;
        let positions = Tensor::arange(0, embeds.dim(1)? as u32, &Device::Cpu)?;
        let hidden = decoder.forward(&embeds, &positions, &Mask::None, &mut Cache::new())?;
        // As words are guessed, each number is read where the token before its own stands.
        let read = decoder.normalise(&hidden.narrow(1, before + count - 1, slots)?.contiguous()?)?;
        self.head.forward(&read.reshape((self.chunk, self.dims * width))?)
    }

    /// Actions in the units of a data set; `state` in its units too.
    ///
    /// # Errors
    /// Those of [`OpenVlaOft::chunk`]; an unknown data set; a state of another length.
    pub fn act(
        &self,
        pictures: &[Tensor],
        state: Option<&[f64]>,
        ids: &[u32],
        dataset: &str,
    ) -> Result<Vec<Vec<f64>>> {
        let missing = || Error::invalid(format!("no statistics of '{dataset}'"));
        let scaling = self.actions.get(dataset).ok_or_else(missing)?;
        if scaling.low.len() != self.dims {
            let (expected, got) = (self.dims, scaling.low.len());
            return Err(Error::invalid(format!(
                "'{dataset}': expected statistics of {expected} numbers, got {got}"
            )));
        }
        let state = match (self.state_dims(), state) {
            (Some(dims), Some(state)) => {
                let ranges = self.states.get(dataset).ok_or_else(missing)?;
                if ranges.low.len() != dims || state.len() != dims {
                    let got = (ranges.low.len(), state.len());
                    return Err(Error::invalid(format!("state: expected {dims} numbers, got {got:?}")));
                }
                Some(ranges.normalised(state))
            }
            (None, None) => None,
            (Some(_), None) => return Err(Error::invalid("openvla-oft: expected a state, got none")),
            (None, Some(_)) => return Err(Error::invalid("openvla-oft: got a state, but none is read")),
        };
        let rows = self.chunk(pictures, state.as_deref(), ids)?.to_vec2::<f32>()?;
        Ok(rows.iter().map(|row| scaling.physical(row)).collect())
    }
}

/// OpenVLA-OFT as a policy: the robot's cameras in their order (or those chosen), a chunk out.
pub struct OpenVlaOftPolicy {
    model: OpenVlaOft,
    tokenizer: Tokenizer,
    spec: PolicySpec,
    dataset: String,
    cameras: Vec<String>,
}

impl OpenVlaOftPolicy {
    /// Reads the folder and its `tokenizer.json`. Actions of 7 numbers are displacements of the gripper, those of 14 the joints
    /// of a pair of arms.
    ///
    /// # Errors
    /// Whatever is wrong with the folder; statistics of several data sets and none chosen; a camera or a number of joints that
    /// the robot has not; a state that is not the robot's joints.
    pub fn new(dir: &Path, robot: &Embodiment, choices: &Choices) -> Result<Self> {
        let model = OpenVlaOft::load(dir, choices.storage)?;
        let dataset = chosen_dataset(choices, &model.datasets().collect::<Vec<_>>())?;
        let joints = robot.joints.len();
        let space = match model.dims {
            7 if robot.gripper.is_none() => {
                return Err(Error::invalid(
                    "openvla-oft: actions of 7 numbers move a gripper; the robot has none",
                ));
            }
            7 => ActionSpace::EndEffectorDeltas,
            dims if dims != joints => {
                return Err(Error::invalid(format!(
                    "the policy has {dims} actions, the robot has {joints} joints"
                )));
            }
            _ => ActionSpace::JointPositions,
        };
        if let Some(dims) = model.state_dims()
            && (dims != joints || space == ActionSpace::EndEffectorDeltas)
        {
            return Err(Error::invalid(format!(
                "openvla-oft: its state of {dims} numbers is not the robot's {joints} joints (LIBERO's is the pose of the gripper)"
            )));
        }
        let known: Vec<&str> = robot.cameras.iter().map(|camera| camera.name.as_str()).collect();
        let cameras: Vec<String> = match &choices.camera {
            Some(names) => names.split(',').map(|name| name.trim().to_owned()).collect(),
            None => known.iter().map(|name| (*name).to_owned()).collect(),
        };
        if let Some(name) = cameras.iter().find(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            return Err(Error::invalid(format!("the robot has no camera '{name}'; it has: {known}")));
        }
        let spec = PolicySpec {
            embodiment: robot.clone(),
            space,
            horizon: model.chunk,
            execute: model.chunk,
            history: 1,
            checkpoint: hash_of_file(&weights_file(dir))?,
        };
        Ok(Self { tokenizer: Tokenizer::load(&dir.join("tokenizer.json"))?, model, spec, dataset, cameras })
    }

    fn actions(&self, observation: &Observation) -> Result<Vec<Vec<f64>>> {
        observation.check(&self.spec.embodiment).map_err(Error::invalid)?;
        let picture = |name: &String| -> Result<Tensor> {
            let frame =
                observation.frame(name).ok_or_else(|| Error::invalid(format!("no camera '{name}'")))?;
            self.model.base.pixels(&frame.rgb, frame.width as usize, frame.height as usize)
        };
        let pictures: Vec<Tensor> = self.cameras.iter().map(picture).collect::<Result<_>>()?;
        let state = self.model.state_dims().map(|_| observation.joint_positions.as_slice());
        let ids = self.tokenizer.encode(&prompt(&observation.instruction))?;
        let said = self.model.act(&pictures, state, &ids, &self.dataset)?;
        match self.spec.space {
            ActionSpace::EndEffectorDeltas => {
                said.iter().map(|row| displacement(row, &self.spec.embodiment)).collect()
            }
            _ => Ok(said),
        }
    }
}

impl Policy for OpenVlaOftPolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let actions = newest(history).and_then(|newest| self.actions(newest));
        answer(&self.spec, history, options, self.model.dims, actions)
    }
}
