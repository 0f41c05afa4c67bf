//! The assembled VLA: pictures, words and joints to one prefix, and an action expert with a flow head on it.

use crate::expert::{Expert, ExpertConfig, Frame, Prefix, TimePlace};
use crate::flow::{Direction, FlowConfig, StepTap};
use crate::normalise::Normaliser;
use crate::rtc::{Guidance, Guide, Pull};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vela_embodiment::ActionSpace;
use vela_fusion::{Projector, ProjectorConfig};
use vela_llm::{Cache, Decoder, DecoderConfig};
use vela_nn::{Error, Init, Linear, Mask, Result, Weights};
use vela_vision::{Tap, VisionConfig, Vit};

/// A VLA as data: what `config.json` of a policy folder says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlaConfig {
    /// Always `vela_vla`: tells this format from others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The vision tower, one for all cameras.
    pub vision: VisionConfig,
    /// From its tokens to the decoder's width.
    pub projector: ProjectorConfig,
    /// The decoder that reads the prefix.
    pub decoder: DecoderConfig,
    /// The action expert beside it.
    pub expert: ExpertConfig,
    /// The flow head.
    pub flow: FlowConfig,
    /// Cameras in the order of the prefix.
    pub cameras: Vec<String>,
    /// Whether each camera has a learned embedding of its own.
    pub camera_embeddings: bool,
    /// Numbers in the robot's state as the network sees it (padded).
    pub state_dims: usize,
    /// Image tokens are multiplied by this.
    pub image_scale: f32,
    /// Word and camera embeddings are multiplied by this: what brings a fresh table to the size of the rest.
    pub word_scale: f32,
    /// Added to every sentence.
    pub prompt_suffix: String,
    /// What the actions mean.
    pub space: ActionSpace,
    /// Actions per chunk.
    pub horizon: usize,
    /// Actions to carry out before the next chunk.
    pub execute: usize,
    /// Scaling of the joints.
    pub state: Normaliser,
    /// Scaling of the actions.
    pub action: Normaliser,
    /// Real-time chunking, where late chunks are the better for it; without it, chunks are made anew each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtc: Option<Guide>,
}

/// Where the robot's state enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatePlace {
    /// As the last token of the prefix (SmolVLA).
    #[default]
    Prefix,
    /// As a token before the actions (pi0).
    Suffix,
    /// As numbers in the sentence (pi0.5).
    Words,
}

/// What tells pi0 and pi0.5 from the rest, beside sizes and names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Where the robot's state enters.
    pub state: StatePlace,
    /// Where the time of the flow enters.
    pub time: TimePlace,
}

/// What the network reads, for `b` moments.
pub struct VlaInputs {
    /// Pictures in [-1, 1], `[b, cameras, 3, size, size]`.
    pub frames: Tensor,
    /// Words, `[b, words]` (u32), padded at the end.
    pub words: Tensor,
    /// Which words are real, `[b * words]`.
    pub word_valid: Vec<bool>,
    /// Joints, normalised and padded, `[b, state_dims]`.
    pub state: Tensor,
}

/// What a prefix holds beside pictures, for `b` moments; the parts are those of [`VlaInputs`].
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Words, `[b, words]` (u32), padded at the end.
    pub words: &'a Tensor,
    /// Which words are real, `[b * words]`.
    pub word_valid: &'a [bool],
    /// Joints, normalised and padded, `[b, state_dims]`.
    pub state: &'a Tensor,
}

/// The network.
#[derive(Clone, Debug)]
pub struct Vla {
    vision: Vit,
    projector: Projector,
    camera_embedding: Option<Tensor>,
    decoder: Decoder,
    state_proj: Option<Linear>,
    state_place: StatePlace,
    expert: Expert,
    flow: FlowConfig,
    image_scale: f64,
    word_scale: f64,
}

impl Vla {
    /// Reads `vlm_with_expert.{vlm.model.{vision_model,connector,text_model},lm_expert}`, `state_proj` and the
    /// expert's projections (SmolVLA's names), and `camera_embedding` where the config has it.
    pub fn new(weights: &Weights, config: &VlaConfig) -> Result<Self> {
        Self::with_form(weights, config, Form::default())
    }

    /// The same in another form: of pi0 or pi0.5.
    pub fn with_form(weights: &Weights, config: &VlaConfig, form: Form) -> Result<Self> {
        let both = weights.pp("vlm_with_expert");
        let vlm = both.pp("vlm").pp("model");
        let width = config.decoder.width;
        if config.projector.output != width || config.projector.input != config.vision.width {
            return Err(Error::invalid("vla config: the projector fits neither tower nor decoder"));
        }
        let camera_embedding = match config.camera_embeddings {
            true => Some(weights.get_init(
                (config.cameras.len(), width),
                "camera_embedding",
                Init::Normal(0.02),
            )?),
            false => None,
        };
        Ok(Self {
            vision: Vit::new(&vlm.pp("vision_model"), &config.vision)?,
            projector: Projector::new(&vlm.pp("connector"), &config.projector)?,
            camera_embedding,
            decoder: Decoder::new(None, &vlm.pp("text_model"), &config.decoder)?,
            state_proj: match form.state {
                StatePlace::Words => None,
                place => {
                    let own = config.expert.layers.width;
                    let width = if place == StatePlace::Prefix { width } else { own };
                    Some(Linear::new(&weights.pp("state_proj"), config.state_dims, width, true)?)
                }
            },
            state_place: form.state,
            expert: Expert::new(weights, &both.pp("lm_expert"), &config.expert, form.time)?,
            flow: config.flow.clone(),
            image_scale: f64::from(config.image_scale),
            word_scale: f64::from(config.word_scale),
        })
    }

    /// Patch tokens `[b * cameras, patches, vision_width]` of `frames [b, cameras, channels, height, width]`.
    pub fn see(&self, frames: &Tensor) -> Result<Tensor> {
        let (b, cameras, channels, height, width) = frames.dims5()?;
        self.vision.forward(&frames.reshape((b * cameras, channels, height, width))?)
    }

    /// Reads pictures, words and joints once. Differentiable.
    ///
    /// # Errors
    /// Inputs of another batch or size than each other or the network.
    pub fn prefix(&self, inputs: &VlaInputs) -> Result<Prefix> {
        self.prefix_tapped(inputs, &mut |_, _| {})
    }

    /// The same of patch tokens that [`Self::see`] gave, taken as given: nothing learns through them.
    pub fn prefix_on(&self, patch_tokens: &Tensor, inputs: &VlaInputs) -> Result<Prefix> {
        inputs.told().check(inputs.frames.dim(0)?)?;
        self.read(&self.projector, patch_tokens.detach(), &inputs.told(), &mut |_, _| {})
    }

    /// The same through another projector, which may be in training: of `patch_tokens [b * cameras, patches,
    /// vision_width]` and what `b` moments hold beside them. Differentiable in the projector.
    ///
    /// # Errors
    /// A projector of other widths; parts that are not of one number of moments.
    pub fn prefix_through(
        &self,
        projector: &Projector,
        patch_tokens: &Tensor,
        told: &Told,
    ) -> Result<Prefix> {
        told.check(told.words.dim(0)?)?;
        self.read(projector, patch_tokens.detach(), told, &mut |_, _| {})
    }

    /// What a head on the trunk's hidden states is told, `[b, image tokens + 2, width]`: those of every image token,
    /// the mean of the words' and the state's, all before the last layer and scaled to a root mean square of 1.
    /// Differentiable.
    ///
    /// # Errors
    /// A network whose state is no token of the prefix; a row without words.
    pub fn conditioning(&self, prefix: &Prefix) -> Result<Tensor> {
        if self.state_place != StatePlace::Prefix {
            return Err(Error::invalid("a head on a trunk: expected the joints as the prefix's last token"));
        }
        let state = prefix.state_hidden()?.unsqueeze(1)?;
        let all = Tensor::cat(&[prefix.image_hidden()?, prefix.word_hidden()?, state], 1)?;
        Ok(all.broadcast_div(&(all.sqr()?.mean_keepdim(2)? + 1e-6)?.sqrt()?)?)
    }

    /// As [`Self::prefix`]; taps `vision_hidden`, `image_features` (both one per picture) and `prefix_embeddings`.
    pub fn prefix_tapped(&self, inputs: &VlaInputs, tap: &mut Tap) -> Result<Prefix> {
        let patch_tokens = self.see(&inputs.frames)?;
        tap("vision_hidden", &patch_tokens);
        inputs.told().check(inputs.frames.dim(0)?)?;
        self.read(&self.projector, patch_tokens, &inputs.told(), tap)
    }

    fn read(
        &self,
        projector: &Projector,
        patch_tokens: Tensor,
        told: &Told,
        tap: &mut Tap,
    ) -> Result<Prefix> {
        let b = told.words.dim(0)?;
        let pictures = patch_tokens.dim(0)?;
        let cameras = pictures / b.max(1);
        if cameras * b != pictures {
            let expected = format!("[multiple of {b} moments, patches, width]");
            return Err(Error::shape("patch tokens", expected, patch_tokens.dims()));
        }
        let features = projector.forward(&patch_tokens)?;
        tap("image_features", &features);
        let seen = (features * self.image_scale)?;
        let (_, tokens, model_width) = seen.dims3()?;
        let mut seen = seen.reshape((b, cameras, tokens, model_width))?;
        if let Some(embedding) = &self.camera_embedding {
            let embedding = (embedding * self.word_scale)?.reshape((1, cameras, 1, model_width))?;
            seen = seen.broadcast_add(&embedding)?;
        }
        let seen = seen.reshape((b, cameras * tokens, model_width))?;
        let words = (self.decoder.embed(told.words)? * self.word_scale)?;
        let project = |project: &Linear| -> Result<Tensor> { Ok(project.forward(told.state)?.unsqueeze(1)?) };
        let state = self.state_proj.as_ref().map(project);
        let (mut parts, mut state_token) = (vec![seen, words], None);
        match (self.state_place, state.transpose()?) {
            (StatePlace::Prefix, Some(state)) => parts.push(state),
            (_, state) => state_token = state,
        }
        let state_in_prefix = usize::from(self.state_place == StatePlace::Prefix);
        let embeds = Tensor::cat(&parts, 1)?;
        tap("prefix_embeddings", &embeds);
        let (_, length, _) = embeds.dims3()?;
        let word_count = told.words.dim(1)?;
        let mut valid = Vec::with_capacity(b * length);
        for row in 0..b {
            valid.extend(std::iter::repeat_n(true, cameras * tokens));
            valid.extend_from_slice(&told.word_valid[row * word_count..(row + 1) * word_count]);
            valid.extend(std::iter::repeat_n(true, state_in_prefix));
        }
        let positions: Vec<u32> = valid
            .chunks(length)
            .flat_map(|row| {
                row.iter().scan(0u32, |count, real| {
                    *count += u32::from(*real);
                    Some(count.saturating_sub(1))
                })
            })
            .collect();
        let positions = Tensor::from_vec(positions, (b, length), &Device::Cpu)?;
        let blocks = prefix_blocks(length, self.state_place);
        let mask = Mask::blocks(blocks.clone(), blocks, valid.clone());
        let mut cache = Cache::new();
        let hidden = self.decoder.fill(&embeds, &positions, &mask, &mut cache)?;
        let image_tokens = cameras * tokens;
        Ok(Prefix { cache, valid, batch: b, length, hidden, patch_tokens, image_tokens, state_token })
    }

    /// Mean squared error of the flow's velocity over `noise [b * draws, horizon, dims]` and `times [b * draws]` for
    /// `actions [b, horizon, dims]`, all normalised; the draws of one row lie side by side. Differentiable.
    pub fn flow_loss(
        &self,
        prefix: &Prefix,
        actions: &Tensor,
        noise: &Tensor,
        times: &Tensor,
    ) -> Result<Tensor> {
        let (b, horizon, dims) = actions.dims3()?;
        let draws = noise.dim(0)? / b.max(1);
        let frame = self.expert.frame(prefix, draws, horizon)?;
        let actions = actions.unsqueeze(1)?.broadcast_as((b, draws, horizon, dims))?;
        let actions = actions.contiguous()?.reshape((b * draws, horizon, dims))?;
        let mut field = |x: &Tensor, t: &Tensor| self.expert.velocity(prefix, &frame, x, t);
        Ok(self.flow.squared_errors(&mut field, &actions, noise, times)?.mean_all()?)
    }

    /// Integrates `noise [b, horizon, dims]` to normalised actions of the same shape.
    pub fn sample(&self, prefix: &Prefix, noise: &Tensor, tap: &mut StepTap) -> Result<Tensor> {
        self.sample_guided(prefix, noise, None, tap)
    }

    /// The same with the rest of the last chunk acting on it.
    ///
    /// # Errors
    /// Guidance of a flow whose noise is at time 0, for which it is not defined here.
    pub fn sample_guided(
        &self,
        prefix: &Prefix,
        noise: &Tensor,
        guidance: Option<&Guidance>,
        tap: &mut StepTap,
    ) -> Result<Tensor> {
        if guidance.is_some() && self.flow.direction != Direction::NoiseAtOne {
            return Err(Error::invalid("real-time chunking: expected a flow with its noise at time 1"));
        }
        let frame: Frame = self.expert.frame(prefix, 1, noise.dim(1)?)?;
        let mut free = |x: &Tensor, t: &Tensor| self.expert.velocity(prefix, &frame, x, t);
        // All rows share one time when sampling.
        let time_of = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.get(0)?.to_scalar::<f32>()?)) };
        match guidance.map(|guidance| (guidance, guidance.pull)) {
            None => self.flow.sample(&mut free, noise, tap),
            Some((guidance, Pull::Straight)) => {
                let mut field = |x: &Tensor, t: &Tensor| guidance.apply(x, &free(x, t)?, time_of(t)?);
                self.flow.sample(&mut field, noise, tap)
            }
            Some((guidance, Pull::Through)) => {
                let mut field = |x: &Tensor, t: &Tensor| guidance.apply_through(&mut free, x, t, time_of(t)?);
                self.flow.sample(&mut field, noise, tap)
            }
            Some((guidance, Pull::Fixed)) => {
                let fixed =
                    Fixed::new(noise, &vec![guidance.delay; noise.dim(0)?], guidance.left_over.dim(1)?)?;
                let start = fixed.put(&guidance.left_over, noise)?;
                let mut field = |x: &Tensor, t: &Tensor| fixed.still(&free(x, &fixed.times(t)?)?);
                self.flow.sample(&mut field, &start, tap)
            }
        }
    }

    /// As [`Self::flow_loss`] with one draw per row, where the first `delays [b]` actions of each row are given clean and do
    /// not count: what is left learns to go on behind them (<https://arxiv.org/abs/2512.05964>). Differentiable.
    ///
    /// # Errors
    /// A flow whose noise is at time 0; an expert whose norms time tunes; not one delay per row.
    pub fn flow_loss_behind(
        &self,
        prefix: &Prefix,
        actions: &Tensor,
        noise: &Tensor,
        times: &Tensor,
        delays: &[usize],
    ) -> Result<Tensor> {
        if self.flow.direction != Direction::NoiseAtOne || delays.len() != actions.dim(0)? {
            return Err(Error::invalid("real-time chunking: expected noise at time 1 and one delay per row"));
        }
        let fixed = Fixed::new(actions, delays, usize::MAX)?;
        let frame = self.expert.frame(prefix, 1, actions.dim(1)?)?;
        let mut field = |x: &Tensor, t: &Tensor| {
            self.expert.velocity(prefix, &frame, &fixed.put(actions, x)?, &fixed.times(t)?)
        };
        let errors = self.flow.squared_errors(&mut field, actions, noise, times)?;
        mean_where(&errors, &fixed.free)
    }

    /// As [`Self::flow_loss`] with `actions [b * draws, horizon, dims]`, where of each row only the first `recorded
    /// [b * draws]` count. Differentiable.
    ///
    /// # Errors
    /// Not one count per row.
    pub fn flow_loss_within(
        &self,
        prefix: &Prefix,
        actions: &Tensor,
        noise: &Tensor,
        times: &Tensor,
        recorded: &[usize],
    ) -> Result<Tensor> {
        let (b, horizon, _) = actions.dims3()?;
        if recorded.len() != b {
            return Err(Error::shape("counts of recorded actions", format!("[{b}]"), &[recorded.len()]));
        }
        let frame = self.expert.frame(prefix, b / prefix.batch.max(1), horizon)?;
        let mut field = |x: &Tensor, t: &Tensor| self.expert.velocity(prefix, &frame, x, t);
        let errors = self.flow.squared_errors(&mut field, actions, noise, times)?;
        let counts = |count: &usize| {
            let count = *count;
            (0..horizon).map(move |k| f32::from(u8::from(k < count)))
        };
        let counts = recorded.iter().flat_map(counts).collect::<Vec<_>>();
        mean_where(&errors, &Tensor::from_vec(counts, (b, horizon, 1), actions.device())?)
    }

    /// Mean cross-entropy of the words of `answer` behind a picture, given by its `patch_tokens [1, patches,
    /// vision_width]`, and the words of `question`: picture and question see each other, as they do in a prefix, and each
    /// word of the answer what comes before it. `head [vocab, width]` turns hidden states into words. Differentiable.
    ///
    /// # Errors
    /// A question or an answer without words.
    pub fn answer_loss(
        &self,
        patch_tokens: &Tensor,
        question: &[u32],
        answer: &[u32],
        head: &Linear,
    ) -> Result<Tensor> {
        let Some((_, said)) = answer.split_last().filter(|_| !question.is_empty()) else {
            return Err(Error::invalid("a question and its answer: expected words in both"));
        };
        let mut seen = (self.projector.forward(patch_tokens)? * self.image_scale)?;
        if let Some(embedding) = &self.camera_embedding {
            let first = (embedding.narrow(0, 0, 1)? * self.word_scale)?.unsqueeze(0)?;
            seen = seen.broadcast_add(&first)?;
        }
        let words = [question, said].concat();
        let words = Tensor::from_vec(words.clone(), (1, words.len()), &Device::Cpu)?;
        let words = (self.decoder.embed(&words)? * self.word_scale)?;
        let embeds = Tensor::cat(&[&seen, &words], 1)?;
        let (tokens, length) = (seen.dim(1)?, embeds.dim(1)?);
        let open = tokens + question.len();
        let blocks: Vec<u32> = (0..length).map(|i| (i + 1).saturating_sub(open) as u32).collect();
        let mask = Mask::blocks(blocks.clone(), blocks, vec![true; length]);
        let positions = Tensor::arange(0, length as u32, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.decoder.forward(&embeds, &positions, &mask, &mut Cache::new())?;
        let asked = hidden.narrow(1, open - 1, answer.len())?.contiguous()?;
        let logits = head.forward(&self.decoder.normalise(&asked)?)?;
        let targets = Tensor::from_vec(answer.to_vec(), (1, answer.len()), &Device::Cpu)?;
        vela_nn::loss::cross_entropy(&logits, &targets, None)
    }

    /// Integrates in `steps` steps from now on.
    pub fn set_steps(&mut self, steps: usize) {
        self.flow.steps = steps;
    }

    /// The flow head.
    pub fn flow(&self) -> &FlowConfig {
        &self.flow
    }

    /// Where the robot's state enters.
    pub fn state_place(&self) -> StatePlace {
        self.state_place
    }

    /// The action expert.
    pub fn expert(&self) -> &Expert {
        &self.expert
    }
}

/// The mean of `errors [b, horizon, dims]` where `counts [b, horizon, 1]` is 1 and not 0.
fn mean_where(errors: &Tensor, counts: &Tensor) -> Result<Tensor> {
    let counted = counts.broadcast_as(errors.shape())?.sum_all()?.to_scalar::<f32>()?;
    Ok((errors.broadcast_mul(counts)?.sum_all()? / f64::from(counted.max(1.0)))?)
}

/// Actions that are given at the start of each row.
struct Fixed {
    /// 1 where an action is free, `[b, horizon, 1]`.
    free: Tensor,
}

impl Fixed {
    /// The first `delays [b]` actions of `like [b, horizon, dims]`, at most `most`.
    fn new(like: &Tensor, delays: &[usize], most: usize) -> Result<Self> {
        let (b, horizon, _) = like.dims3()?;
        let free = |delay: &usize| {
            let delay = (*delay).min(most);
            (0..horizon).map(move |k| f32::from(u8::from(k >= delay)))
        };
        Ok(Self {
            free: Tensor::from_vec(delays.iter().flat_map(free).collect(), (b, horizon, 1), like.device())?,
        })
    }

    /// `given [b, ticks, dims]` where it is fixed, `x [b, horizon, dims]` elsewhere.
    fn put(&self, given: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (_, horizon, dims) = x.dims3()?;
        let ticks = given.dim(1)?.min(horizon);
        let mut given = given.narrow(1, 0, ticks)?.pad_with_zeros(1, 0, horizon - ticks)?;
        if given.dim(2)? < dims {
            given = given.pad_with_zeros(2, 0, dims - given.dim(2)?)?;
        }
        // Not by factors: noise must leave no trace in what is given.
        let free = self.free.broadcast_as(x.shape())?.contiguous()?;
        Ok(free.ge(0.5)?.where_cond(&x.contiguous()?, &given.contiguous()?)?)
    }

    /// Velocities, none where it is fixed.
    fn still(&self, velocity: &Tensor) -> Result<Tensor> {
        Ok(velocity.broadcast_mul(&self.free)?)
    }

    /// Times `[b]` as one per action, `[b, horizon]`: what is given is clean, at time 0.
    fn times(&self, times: &Tensor) -> Result<Tensor> {
        let (b, horizon, _) = self.free.dims3()?;
        Ok(self.free.reshape((b, horizon))?.broadcast_mul(&times.reshape((b, 1))?)?)
    }
}

impl VlaInputs {
    /// Several moments as one batch: sentences are padded at the end to the longest.
    ///
    /// # Errors
    /// No moments; pictures or states of different sizes.
    pub fn together(moments: &[Self]) -> Result<Self> {
        let counts = moments.iter().map(|moment| Ok(moment.words.dim(1)?)).collect::<Result<Vec<_>>>()?;
        let longest = counts.iter().copied().max().unwrap_or(0);
        let (mut words, mut word_valid) = (Vec::new(), Vec::new());
        for (moment, count) in moments.iter().zip(counts) {
            words.push(moment.words.pad_with_zeros(1, 0, longest - count)?);
            for valid in moment.word_valid.chunks(count.max(1)) {
                word_valid.extend(valid.iter().copied().chain(std::iter::repeat_n(false, longest - count)));
            }
        }
        let all = |part: fn(&Self) -> &Tensor| Tensor::cat(&moments.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Self {
            frames: all(|moment| &moment.frames)?,
            words: Tensor::cat(&words, 0)?,
            word_valid,
            state: all(|moment| &moment.state)?,
        })
    }

    /// What is there beside the pictures.
    pub fn told(&self) -> Told<'_> {
        Told { words: &self.words, word_valid: &self.word_valid, state: &self.state }
    }
}

impl Told<'_> {
    /// Refuses parts that do not belong to `b` moments.
    fn check(&self, b: usize) -> Result<()> {
        let (rows, words) = self.words.dims2()?;
        let (states, _) = self.state.dims2()?;
        if rows != b || states != b || self.word_valid.len() != b * words {
            let expected = format!("words and states of {b} moments and {} validities", b * words);
            let got = format!("{rows}, {states} and {}", self.word_valid.len());
            return Err(Error::invalid(format!("vla inputs: expected {expected}, got {got}")));
        }
        Ok(())
    }
}

/// Attention blocks of a prefix: pictures and words see each other; the state, at the end, sees them and is not
/// seen by them. A prefix without a state sees itself wholly.
pub fn prefix_blocks(length: usize, state: StatePlace) -> Vec<u32> {
    (0..length).map(|i| u32::from(state == StatePlace::Prefix && i + 1 == length)).collect()
}

/// Bytes `[height, width, 3]` to planes `[3, height, width]` in [-1, 1]: `x / 127.5 - 1`.
pub fn signed_planes(rgb: &[u8], out: &mut Vec<f32>) {
    for channel in 0..3 {
        out.extend(rgb.iter().skip(channel).step_by(3).map(|x| f32::from(*x) / 127.5 - 1.0));
    }
}
