//! The action expert: a second, narrower stack of decoder layers whose noisy actions attend to what the first one
//! read. The prefix is encoded once; each flow step runs only the expert (pi0, <https://arxiv.org/abs/2410.24164>;
//! SmolVLA, <https://arxiv.org/abs/2506.01844>).

use crate::expert_layer::{ExpertLayer, Tuned};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use vela_llm::{Cache, DecoderConfig};
use vela_nn::rope::RopeAngles;
use vela_nn::{Activation, Error, Heads, Linear, Mask, Result, Rope, Weights, attention_packed};

/// An action expert as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertConfig {
    /// Its layers; heads and head size are those of the decoder beside it. It has no vocabulary.
    pub layers: DecoderConfig,
    /// Every this many layers, from layer 0 on, actions attend to the prefix and to each other; in the other layers
    /// to the prefix alone, through keys and values projected anew. 1: in every layer.
    pub self_attention_every: usize,
    /// Whether an action sees only the actions before it.
    pub causal: bool,
    /// Numbers per action as the network sees it (padded).
    pub action_dims: usize,
    /// Shortest and longest period of the sine embedding of time, in units of flow time.
    pub time_periods: [f64; 2],
}

/// Where the time of the flow enters an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimePlace {
    /// Beside each action, through a small network (pi0, SmolVLA).
    #[default]
    Beside,
    /// It tunes every norm (pi0.5).
    Norms,
}

/// What the expert attends to: the keys and values of an encoded prefix.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub(crate) cache: Cache,
    /// Whether each prefix position is real, `[b * s]`.
    pub(crate) valid: Vec<bool>,
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) hidden: Tensor,
    pub(crate) patch_tokens: Tensor,
    pub(crate) image_tokens: usize,
    /// The robot's state as a token before the actions, `[b, 1, expert width]`, where it is no part of the prefix.
    pub(crate) state_token: Option<Tensor>,
}

impl Prefix {
    /// Whether each position is real and not padding, `[b * length]`.
    pub fn valid(&self) -> &[bool] {
        &self.valid
    }

    /// Real positions of each row.
    fn lengths(&self) -> Vec<usize> {
        self.valid.chunks(self.length.max(1)).map(|row| row.iter().filter(|v| **v).count()).collect()
    }

    /// The robot's state as a token before the actions, `[b, 1, expert width]`, where it is no part of the prefix.
    pub fn state_token(&self) -> Option<&Tensor> {
        self.state_token.as_ref()
    }

    /// Tokens of the vision tower, `[b * cameras, patches, vision_width]`.
    pub fn patch_tokens(&self) -> &Tensor {
        &self.patch_tokens
    }

    /// Hidden states of the image tokens before the last layer, `[b, tokens, width]`, camera by camera.
    pub fn image_hidden(&self) -> Result<Tensor> {
        Ok(self.hidden.narrow(1, 0, self.image_tokens)?.contiguous()?)
    }

    /// Mean of the hidden states of each row's words, in a prefix that ends with the robot's state, before the last layer,
    /// `[b, 1, width]`; padding does not count.
    ///
    /// # Errors
    /// A row without words.
    pub fn word_hidden(&self) -> Result<Tensor> {
        let words = self.length.saturating_sub(self.image_tokens + 1);
        let mut shares = Vec::with_capacity(self.batch * words);
        for row in self.valid.chunks(self.length.max(1)) {
            let real = row.iter().skip(self.image_tokens).take(words);
            let count = real.clone().filter(|real| **real).count();
            if count == 0 {
                return Err(Error::invalid(
                    "mean of the words: expected words in every row, got a row without",
                ));
            }
            shares.extend(real.map(|real| f32::from(u8::from(*real)) / count as f32));
        }
        let shares = Tensor::from_vec(shares, (self.batch, 1, words), &Device::Cpu)?;
        Ok(shares.matmul(&self.hidden.narrow(1, self.image_tokens, words)?.contiguous()?)?)
    }

    /// Hidden state of the robot's state, the last position, before the last layer, `[b, width]`.
    pub fn state_hidden(&self) -> Result<Tensor> {
        Ok(self.hidden.narrow(1, self.length - 1, 1)?.squeeze(1)?.contiguous()?)
    }
}

/// What every flow step over one prefix shares.
pub struct Frame {
    draws: usize,
    horizon: usize,
    /// Tokens before the actions.
    lead: usize,
    joint_angles: RopeAngles,
    cross_angles: RopeAngles,
    joint_mask: Mask,
    cross_mask: Mask,
    /// Projected prefix keys and values of the layers that only look at the prefix.
    crossed: Vec<Option<(Tensor, Tensor)>>,
}

/// The expert.
#[derive(Clone, Debug)]
pub struct Expert {
    config: ExpertConfig,
    rope: Rope,
    layers: Vec<ExpertLayer>,
    norm: Tuned,
    action_in: Linear,
    action_out: Linear,
    time_in: Linear,
    time_out: Linear,
    time_place: TimePlace,
}

impl Expert {
    /// Reads `layers.{i}` and `norm` under `body`, and `action_in_proj`, `action_out_proj` and
    /// `action_time_mlp_{in,out}` (or, where time tunes the norms, `time_mlp_{in,out}`) under `root`.
    pub fn new(root: &Weights, body: &Weights, config: &ExpertConfig, time_place: TimePlace) -> Result<Self> {
        config.layers.check()?;
        if config.self_attention_every == 0 || config.action_dims == 0 {
            return Err(Error::invalid(format!("expert config: counts must be positive: {config:?}")));
        }
        let (width, keys) = (config.layers.width, config.layers.kv_heads * config.layers.head_dim);
        let tuned = time_place == TimePlace::Norms;
        let layer = |i: usize| {
            let key_width = if config.is_joint(i) { width } else { keys };
            ExpertLayer::new(&body.pp("layers").pp(i), &config.layers, key_width, tuned)
        };
        let (time, time_width) = if tuned { ("time_mlp", width) } else { ("action_time_mlp", 2 * width) };
        Ok(Self {
            rope: Rope::new(config.layers.rope)?,
            layers: (0..config.layers.layers).map(layer).collect::<Result<_>>()?,
            norm: Tuned::new(&body.pp("norm"), &config.layers, tuned)?,
            action_in: Linear::new(&root.pp("action_in_proj"), config.action_dims, width, true)?,
            action_out: Linear::new(&root.pp("action_out_proj"), width, config.action_dims, true)?,
            time_in: Linear::new(&root.pp(format!("{time}_in")), time_width, width, true)?,
            time_out: Linear::new(&root.pp(format!("{time}_out")), width, width, true)?,
            config: config.clone(),
            time_place,
        })
    }

    /// What it is.
    pub fn config(&self) -> &ExpertConfig {
        &self.config
    }

    /// Prepares `draws` chunks of `horizon` actions per row of the prefix: they lie side by side in one sequence and
    /// do not see each other.
    ///
    /// # Errors
    /// The prefix has fewer layers than the expert.
    pub fn frame(&self, prefix: &Prefix, draws: usize, horizon: usize) -> Result<Frame> {
        let lead = usize::from(prefix.state_token.is_some());
        let each = lead + horizon;
        let (b, s, t) = (prefix.batch, prefix.length, draws * each);
        let lengths = prefix.lengths();
        let positions = |offset: &dyn Fn(usize) -> usize| -> Result<RopeAngles> {
            let all = (0..b).flat_map(|row| (0..t).map(move |k| (row, k % each)));
            let all: Vec<u32> = all.map(|(row, k)| (offset(row) + k) as u32).collect();
            self.rope.at(&Tensor::from_vec(all, (b, t), &Device::Cpu)?)
        };
        let mut joint = Vec::with_capacity(b * t * (s + t));
        let mut cross = Vec::with_capacity(b * t * s);
        for row in 0..b {
            let valid = &prefix.valid[row * s..(row + 1) * s];
            for query in 0..t {
                joint.extend(valid.iter().map(|v| u8::from(*v)));
                cross.extend(valid.iter().map(|v| u8::from(*v)));
                joint.extend((0..t).map(|key| {
                    // What leads is seen by the actions and does not see them.
                    let seen =
                        key % each < lead || (query % each >= lead && (!self.config.causal || key <= query));
                    u8::from(key / each == query / each && seen)
                }));
            }
        }
        let dense = |values: Vec<u8>, keys: usize| -> Result<Mask> {
            let first = &values[..t * keys];
            // Rows that are all alike are one row: less to read in every layer.
            let rows = if values.chunks(t * keys).all(|row| row == first) { 1 } else { b };
            if first.iter().all(|v| *v == 1) && rows == 1 {
                return Ok(Mask::None);
            }
            let values = values[..rows * t * keys].to_vec();
            Ok(Mask::Dense(Tensor::from_vec(values, (rows, t, keys), &Device::Cpu)?))
        };
        let crossed = self.layers.iter().enumerate().map(|(i, layer)| {
            if self.config.is_joint(i) {
                return Ok(None);
            }
            let (keys, values) = self.prefix_layer(prefix, i)?;
            Ok(Some((layer.keys(keys)?, layer.values(values)?)))
        });
        Ok(Frame {
            draws,
            horizon,
            lead,
            joint_angles: positions(&|row| lengths[row])?,
            cross_angles: positions(&|_| 0)?,
            joint_mask: dense(joint, s + t)?,
            cross_mask: dense(cross, s)?,
            crossed: crossed.collect::<Result<_>>()?,
        })
    }

    /// Velocity at noisy actions `x [b * draws, horizon, action_dims]` and flow times `[b * draws]`; the same shape.
    pub fn velocity(&self, prefix: &Prefix, frame: &Frame, x: &Tensor, times: &Tensor) -> Result<Tensor> {
        let each = frame.lead + frame.horizon;
        let (b, n, t) = (prefix.batch, prefix.batch * frame.draws, frame.draws * each);
        let (dims, width) = (self.config.action_dims, self.config.layers.width);
        if x.dims() != [n, frame.horizon, dims] {
            let expected = format!("[{n}, {}, {dims}]", frame.horizon);
            return Err(Error::shape("noisy actions", expected, x.dims()));
        }
        let heads = Heads { query: self.config.layers.heads, key: self.config.layers.kv_heads };
        let scale = self.config.layers.scale();
        let condition = self.condition(times)?;
        let condition = condition.as_ref();
        let mut h = self.embed(x, times)?;
        if let Some(token) = &prefix.state_token {
            let token = token.unsqueeze(1)?.broadcast_as((b, frame.draws, 1, width))?;
            h = Tensor::cat(&[&token.contiguous()?.reshape((n, 1, width))?, &h], 1)?;
        }
        // The draws of one row are one sequence for attention, and rows of their own for all else.
        let joined = |x: Tensor| -> Result<Tensor> {
            let width = x.dim(2)?;
            Ok(x.reshape((b, t, width))?)
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let (y, gate) = layer.attention_input(&h, condition)?;
            let y = joined(y)?;
            let attended = match &frame.crossed[i] {
                Some((keys, values)) => {
                    let q = frame.cross_angles.apply_packed(&layer.queries(&y)?, heads.query)?;
                    attention_packed(&q, keys, values, heads, &frame.cross_mask, scale)?
                }
                None => {
                    let q = frame.joint_angles.apply_packed(&layer.queries(&y)?, heads.query)?;
                    let k = frame.joint_angles.apply_packed(&layer.keys(&y)?, heads.key)?;
                    let (keys, values) = self.prefix_layer(prefix, i)?;
                    let keys = Tensor::cat(&[keys, &k], 1)?;
                    let values = Tensor::cat(&[values, &layer.values(&y)?], 1)?;
                    attention_packed(&q, &keys, &values, heads, &frame.joint_mask, scale)?
                }
            };
            let attended = attended.reshape((n, each, heads.query * self.config.layers.head_dim))?;
            h = layer.add(&h, &attended, gate.as_ref(), condition)?;
        }
        let (y, _) = self.norm.forward(&h, condition)?;
        let y = if frame.lead > 0 { y.narrow(1, frame.lead, frame.horizon)?.contiguous()? } else { y };
        self.action_out.forward(&y)
    }

    /// What tunes the norms at flow times `[n]`, `[n, width]`, if time does.
    pub fn condition(&self, times: &Tensor) -> Result<Option<Tensor>> {
        if self.time_place == TimePlace::Beside {
            return Ok(None);
        }
        if times.rank() != 1 {
            return Err(Error::shape("times that tune norms", "[n]", times.dims()));
        }
        let time = sine_embedding(times, self.config.layers.width, self.config.time_periods)?;
        let silu = |x: Tensor| Activation::Silu.forward(&x);
        Ok(Some(silu(self.time_out.forward(&silu(self.time_in.forward(&time)?)?)?)?))
    }

    /// Noisy actions `[n, horizon, action_dims]` and flow times `[n]`, or one per action `[n, horizon]`, to embeddings
    /// `[n, horizon, width]`.
    pub fn embed(&self, x: &Tensor, times: &Tensor) -> Result<Tensor> {
        let (n, horizon, _) = x.dims3()?;
        let width = self.config.layers.width;
        if self.time_place == TimePlace::Norms {
            return self.action_in.forward(x);
        }
        let time = sine_embedding(&times.flatten_all()?, width, self.config.time_periods)?;
        let each = if times.rank() == 2 { horizon } else { 1 };
        let time = time.reshape((n, each, width))?.broadcast_as((n, horizon, width))?;
        let both = Tensor::cat(&[&self.action_in.forward(x)?, &time.contiguous()?], 2)?;
        self.time_out.forward(&Activation::Silu.forward(&self.time_in.forward(&both)?)?)
    }

    fn prefix_layer<'a>(&self, prefix: &'a Prefix, layer: usize) -> Result<(&'a Tensor, &'a Tensor)> {
        prefix.cache.layer(layer).ok_or_else(|| {
            Error::invalid(format!("the expert has {} layers, the prefix fewer", self.layers.len()))
        })
    }
}

impl ExpertConfig {
    /// Whether the actions attend to each other in a layer.
    pub fn is_joint(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.self_attention_every)
    }
}

/// Sines, then cosines, of `2 pi t / period`, the periods spread evenly on a log scale: `times [n]` to `[n, width]`.
/// In double precision, as the reference does.
pub fn sine_embedding(times: &Tensor, width: usize, periods: [f64; 2]) -> Result<Tensor> {
    let times = times.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    let half = width / 2;
    let period = |i: usize| {
        let part = i as f64 / (half.max(2) - 1) as f64;
        periods[0] * (periods[1] / periods[0]).powf(part)
    };
    let mut values = Vec::with_capacity(times.len() * width);
    for t in &times {
        let angle = |i: usize| std::f64::consts::TAU * f64::from(*t) / period(i);
        values.extend((0..half).map(|i| angle(i).sin() as f32));
        values.extend((0..half).map(|i| angle(i).cos() as f32));
    }
    Ok(Tensor::from_vec(values, (times.len(), 2 * half), &Device::Cpu)?)
}
