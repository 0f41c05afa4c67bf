//! One chunk of any network, stage by stage, on made-up inputs: for a stop-watch, which is the caller's. Every stage is run by
//! the same code as in use.

use crate::arch::{self, Arch};
use crate::cost::{self, Cost};
use crate::expert::Prefix;
use crate::head::draw_normal;
use crate::lerobot::Folder;
use crate::openvla::{OpenVla, Sizes};
use crate::openvla_oft::is_oft;
use crate::storage::Storage;
use crate::vla::{StatePlace, Vla, VlaConfig, VlaInputs};
use crate::{Act, DiffusionPolicy, Pi0, SmolVla, VlaPolicy, act};
use candle_core::{Device, Tensor};
use std::path::Path;
use vela_llm::trace::config_json;
use vela_llm::{Cache, generate};
use vela_nn::{Error, Mask, Result, random};

/// A network with its inputs. The stages of a chunk, in this order, and as often as wanted.
pub trait Stages {
    /// Pictures to features.
    fn see(&mut self) -> Result<()>;
    /// Features, words and state to what the actions look at.
    fn read(&mut self) -> Result<()>;
    /// From there to normalised actions `[1, horizon, dims]`.
    fn answer(&mut self) -> Result<Tensor>;
    /// Multiply-adds of the stages.
    fn cost(&self) -> Cost;
}

/// What is to be measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setting {
    /// Cameras, where the network does not say.
    pub views: Option<usize>,
    /// Denoising steps, where not its own.
    pub steps: Option<usize>,
    /// How its matrices are kept.
    pub storage: Storage,
}

/// Words of a prompt: as many as SmolVLA and pi0 read at most.
const WORDS: usize = 48;
/// OpenVLA's question with a short instruction.
const QUESTION: usize = 24;
/// Numbers of an OpenVLA action.
const NUMBERS: usize = 7;
/// Every made-up input is drawn under this seed.
const SEED: u64 = 1;

/// Of a published shape with made-up weights: one of [`arch::KNOWN`].
///
/// # Errors
/// An unknown name; steps of a network that has none.
pub fn of_arch(name: &str, setting: &Setting) -> Result<Box<dyn Stages>> {
    let views = setting.views.unwrap_or(if name == "diffusion" || name == "openvla" { 1 } else { 2 });
    let size = if name == "diffusion" { (96, 96) } else { (480, 640) };
    Ok(match arch::make(name, views, size, SEED, setting.storage)? {
        Arch::Act(act) => Box::new(ActRun::new(*act, views, size, setting)?),
        Arch::Diffusion(policy) => Box::new(DiffusionRun::new(*policy, views, size, setting)?),
        Arch::Vla(vla, config) => Box::new(VlaRun::new(*vla, &config, views, setting)?),
        Arch::OpenVla(model, sizes) => Box::new(OpenVlaRun::new(*model, &sizes, views, setting)?),
    })
}

/// Of a policy folder.
///
/// # Errors
/// A folder that does not load; cameras or steps that it does not have.
pub fn of_folder(dir: &Path, setting: &Setting) -> Result<Box<dyn Stages>> {
    let config = config_json(dir)?;
    let kind = config.get("type").or(config.get("model_type")).and_then(serde_json::Value::as_str);
    let views = |own: usize| match setting.views {
        Some(views) if views != own => {
            Err(Error::invalid(format!("the policy has {own} cameras, not {views}")))
        }
        _ => Ok(own),
    };
    let storage = setting.storage;
    let seen = |folder: &Folder| -> Result<(usize, (usize, usize))> {
        let cameras = folder.cameras()?;
        let size = cameras.first().map_or((96, 96), |camera| (camera.height, camera.width));
        Ok((views(cameras.len())?, size))
    };
    Ok(match kind.unwrap_or("absent") {
        "vela_vla" => {
            let policy = VlaPolicy::load_kept(dir, storage)?;
            let count = views(policy.config().cameras.len())?;
            Box::new(VlaRun::new(policy.vla().clone(), policy.config(), count, setting)?)
        }
        "smolvla" => {
            let model = SmolVla::load(dir, storage)?;
            let count = views(model.config.cameras.len())?;
            Box::new(VlaRun::new(model.vla, &model.config, count, setting)?)
        }
        "pi0" | "pi05" => {
            let model = Pi0::load(dir, storage)?;
            let count = views(model.config.cameras.len())?;
            Box::new(VlaRun::new(model.vla, &model.config, count, setting)?)
        }
        "act" => {
            let (folder, _, network) = Act::open(dir, storage)?;
            let (count, size) = seen(&folder)?;
            Box::new(ActRun::new(network, count, size, setting)?)
        }
        "diffusion" => {
            let (folder, _, network) = DiffusionPolicy::open(dir, storage)?;
            let (count, size) = seen(&folder)?;
            Box::new(DiffusionRun::new(network, count, size, setting)?)
        }
        "openvla" if is_oft(dir) => {
            return Err(Error::invalid(
                "the stages of openvla-oft are not told apart: it cannot be measured",
            ));
        }
        "openvla" => {
            let model = OpenVla::load(dir, storage)?;
            Box::new(OpenVlaRun::new(model, &Sizes::from_config(&config)?, views(1)?, setting)?)
        }
        other => return Err(Error::invalid(format!("no stages of a policy of type '{other}' are known"))),
    })
}

fn not_yet(what: &str) -> Error {
    Error::invalid(format!("stages: expected {what} first"))
}

fn no_steps(kind: &str, setting: &Setting) -> Result<()> {
    match setting.steps {
        Some(_) => Err(Error::invalid(format!("{kind} has no denoising steps to set"))),
        None => Ok(()),
    }
}

struct VlaRun {
    vla: Vla,
    inputs: VlaInputs,
    noise: Tensor,
    cost: Cost,
    seen: Option<Tensor>,
    prefix: Option<Prefix>,
}

impl VlaRun {
    fn new(mut vla: Vla, config: &VlaConfig, views: usize, setting: &Setting) -> Result<Self> {
        if let Some(steps) = setting.steps {
            vla.set_steps(steps);
        }
        let size = config.vision.image_size;
        let vocab = config.decoder.vocab as u32;
        let words: Vec<u32> = (0..WORDS as u32).map(|i| (i + 1) * 7919 % vocab).collect();
        let inputs = VlaInputs {
            frames: random::uniform(SEED, "frames", -1.0, 1.0, vec![1, views, 3, size, size])?,
            words: Tensor::from_vec(words, (1, WORDS), &Device::Cpu)?,
            word_valid: vec![true; WORDS],
            state: random::normal(SEED, "state", (1, config.state_dims))?,
        };
        let shuffle = config.projector.shuffle.max(1);
        let patches = config.vision.patches();
        let tokens = views * patches / (shuffle * shuffle);
        let state = usize::from(vla.state_place() == StatePlace::Prefix);
        let lead = usize::from(vla.state_place() == StatePlace::Suffix);
        let length = tokens + WORDS + state;
        let projected = views * patches * config.projector.input * config.projector.output;
        let steps = vla.flow().steps;
        let evaluations = if vla.flow().solver == crate::flow::Solver::Heun { 2 * steps - 1 } else { steps };
        let cost = Cost {
            vision: views as f64 * cost::tower(&config.vision, config.vision.layers),
            prefix: projected as f64 + cost::decoder(&config.decoder, length, length as f64, true),
            denoise: cost::expert(&config.expert, (config.horizon + lead, length), evaluations),
        };
        let noise = random::normal(SEED, "noise", (1, config.horizon, config.expert.action_dims))?;
        Ok(Self { vla, inputs, noise, cost, seen: None, prefix: None })
    }
}

impl Stages for VlaRun {
    fn see(&mut self) -> Result<()> {
        self.seen = Some(self.vla.see(&self.inputs.frames)?);
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let seen = self.seen.as_ref().ok_or_else(|| not_yet("pictures"))?;
        self.prefix = Some(self.vla.prefix_on(seen, &self.inputs)?);
        Ok(())
    }

    fn answer(&mut self) -> Result<Tensor> {
        let prefix = self.prefix.as_ref().ok_or_else(|| not_yet("a prefix"))?;
        self.vla.sample(prefix, &self.noise, &mut |_, _, _| {})
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

struct ActRun {
    network: Act,
    pictures: Vec<Tensor>,
    state: Option<Tensor>,
    cost: Cost,
    maps: Vec<Tensor>,
    read: Option<act::Encoded>,
}

impl ActRun {
    fn new(network: Act, views: usize, (height, width): (usize, usize), setting: &Setting) -> Result<Self> {
        no_steps("ACT", setting)?;
        let picture = |i: usize| random::normal(SEED, &format!("view {i}"), (1, 3, height, width));
        let state = network.state_dims().map(|dims| random::normal(SEED, "state", (1, dims))).transpose()?;
        let pixels = height.div_ceil(32) * width.div_ceil(32);
        let sizes = network.sizes(1 + usize::from(state.is_some()) + views * pixels);
        let [encoder, decoder] = cost::act(&sizes);
        let cost = Cost {
            vision: views as f64 * cost::resnet18((height, width)),
            prefix: encoder + (views * pixels * 512 * sizes.width) as f64,
            denoise: decoder,
        };
        let pictures = (0..views).map(picture).collect::<Result<_>>()?;
        Ok(Self { network, pictures, state, cost, maps: Vec::new(), read: None })
    }
}

impl Stages for ActRun {
    fn see(&mut self) -> Result<()> {
        self.maps = self.network.see(&self.pictures)?;
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        self.read = Some(self.network.read(&self.maps, self.state.as_ref(), &mut |_, _| {})?);
        Ok(())
    }

    fn answer(&mut self) -> Result<Tensor> {
        let read = self.read.as_ref().ok_or_else(|| not_yet("pictures and joints"))?;
        self.network.answer(read, &mut |_, _| {})
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

struct DiffusionRun {
    network: DiffusionPolicy,
    pictures: Vec<Tensor>,
    state: Tensor,
    noise: Tensor,
    cost: Cost,
    conditioning: Option<Tensor>,
}

impl DiffusionRun {
    fn new(
        mut network: DiffusionPolicy,
        views: usize,
        (height, width): (usize, usize),
        setting: &Setting,
    ) -> Result<Self> {
        if let Some(steps) = setting.steps {
            network.set_steps(steps);
        }
        let [history, dims] = network.state_shape();
        let [ticks, action_dims] = network.chunk_shape();
        let picture =
            |i: usize| random::normal(SEED, &format!("view {i}"), vec![1, history, 3, height, width]);
        let cost = Cost {
            vision: (views * history) as f64 * cost::resnet18(network.cropped((height, width))),
            prefix: 0.0,
            denoise: cost::unet(network.unet(), ticks, network.diffusion().steps),
        };
        Ok(Self {
            pictures: (0..views).map(picture).collect::<Result<_>>()?,
            state: random::normal(SEED, "state", (1, history, dims))?,
            noise: random::normal(SEED, "noise", (1, ticks, action_dims))?,
            network,
            cost,
            conditioning: None,
        })
    }
}

impl Stages for DiffusionRun {
    fn see(&mut self) -> Result<()> {
        self.conditioning = Some(self.network.condition(&self.pictures, &self.state)?);
        Ok(())
    }

    /// There is nothing between the features and the U-Net.
    fn read(&mut self) -> Result<()> {
        Ok(())
    }

    fn answer(&mut self) -> Result<Tensor> {
        let conditioning = self.conditioning.as_ref().ok_or_else(|| not_yet("pictures and joints"))?;
        let mut rng = random::stream(SEED, "step noise");
        let shape = self.noise.dims().to_vec();
        let mut more = |_: usize| draw_normal(&mut rng, &shape);
        let chunk = self.network.sample(conditioning, &self.noise, &mut more, &mut |_, _, _| {})?;
        self.network.from_now(&chunk)
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

struct OpenVlaRun {
    model: OpenVla,
    pixels: Tensor,
    ids: Tensor,
    cost: Cost,
    features: Option<Tensor>,
    said: Option<(u32, Cache)>,
}

impl OpenVlaRun {
    fn new(model: OpenVla, sizes: &Sizes, views: usize, setting: &Setting) -> Result<Self> {
        no_steps("OpenVLA", setting)?;
        if views != 1 {
            return Err(Error::invalid(format!("OpenVLA has one camera, not {views}")));
        }
        let (dino, siglip, text) = (&sizes.dino, &sizes.siglip, &sizes.text);
        let (patches, input) = (dino.patches(), dino.width + siglip.width);
        let length = patches + QUESTION;
        let projector = patches * (input * 4 * input + 4 * input * text.width + text.width * text.width);
        // Only the last token of the prompt is asked for words; each one that is said is read again but the last.
        let word = (text.width * text.vocab) as f64;
        let later = (NUMBERS - 1) as f64;
        let cost = Cost {
            vision: cost::tower(dino, dino.layers - 1)
                + cost::tower(siglip, siglip.layers - 1)
                + projector as f64,
            prefix: cost::decoder(text, length, (length + 1) as f64 / 2.0, false) + word,
            denoise: later * (cost::decoder(text, 1, length as f64 + later / 2.0, false) + word),
        };
        let vocab = text.vocab as u32;
        let ids: Vec<u32> = (0..QUESTION as u32).map(|i| (i + 1) * 7919 % vocab).collect();
        Ok(Self {
            pixels: random::normal(SEED, "pixels", (1, 6, dino.image_size, dino.image_size))?,
            ids: Tensor::from_vec(ids, (1, QUESTION), &Device::Cpu)?,
            model,
            cost,
            features: None,
            said: None,
        })
    }

    fn say(&self, embeds: &Tensor, cache: &mut Cache) -> Result<u32> {
        let (decoder, length) = (self.model.decoder(), embeds.dim(1)?);
        let start = cache.len() as u32;
        let positions = Tensor::arange(start, start + length as u32, &Device::Cpu)?;
        let hidden = decoder.forward(embeds, &positions, &Mask::Causal, cache)?;
        let last = hidden.narrow(1, length - 1, 1)?.contiguous()?;
        let logits = decoder.logits(&decoder.normalise(&last)?)?;
        generate::best(&logits.flatten_all()?.to_vec1::<f32>()?)
    }
}

impl Stages for OpenVlaRun {
    fn see(&mut self) -> Result<()> {
        self.features = Some(self.model.project(&self.model.see(&self.pixels)?)?);
        Ok(())
    }

    /// The prompt, up to its first token.
    fn read(&mut self) -> Result<()> {
        let features = self.features.as_ref().ok_or_else(|| not_yet("pictures"))?;
        let mut cache = Cache::new();
        let first = self.say(&self.model.embed(&self.ids, features)?, &mut cache)?;
        self.said = Some((first, cache));
        Ok(())
    }

    /// The other tokens.
    fn answer(&mut self) -> Result<Tensor> {
        let (first, mut cache) = self.said.clone().ok_or_else(|| not_yet("a prompt"))?;
        let mut tokens = vec![first];
        while tokens.len() < NUMBERS {
            let ids = Tensor::new(&[[tokens[tokens.len() - 1]]], &Device::Cpu)?;
            tokens.push(self.say(&self.model.decoder().embed(&ids)?, &mut cache)?);
        }
        Ok(Tensor::from_vec(self.model.values(&tokens), (1, 1, NUMBERS), &Device::Cpu)?)
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_answers_stage_by_stage_and_not_out_of_turn() -> Result<()> {
        let setting = Setting { views: Some(1), steps: None, storage: Storage::Int8 };
        let mut run = of_arch("act", &setting)?;
        assert!(run.answer().is_err_and(|e| e.to_string().contains("first")));
        let cost = run.cost();
        assert!(cost.vision > cost.prefix && cost.prefix > cost.denoise && cost.denoise > 0.0, "{cost:?}");
        let steps = Setting { steps: Some(3), ..setting };
        assert!(of_arch("act", &steps).is_err_and(|e| e.to_string().contains("no denoising steps")));
        assert!(of_arch("diffusion", &setting).is_err_and(|e| e.to_string().contains("float32")));
        assert!(of_arch("teapot", &setting).is_err());
        Ok(())
    }
}
