//! What every action head is: a loss and a way of sampling over the same conditioning; and the body that heads on a
//! trunk's hidden states share.

use crate::expert::sine_embedding;
use candle_core::{Device, Tensor};
use rand::{Rng, RngCore};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use vela_nn::{
    Activation, Error, Heads, Init, Linear, Mask, Mlp, MlpConfig, Norm, NormConfig, Result, Weights,
    attention_packed,
};

/// A way to decode actions from a trunk's hidden states `[b, n, width]`. Actions are normalised, `[b, horizon, dims]`.
pub trait Head {
    /// How far the head is from `actions`: a scalar, differentiable in weights and conditioning. Noise and times are drawn
    /// from `rng`.
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor>;

    /// Actions for `conditioning`. The same stream gives the same bytes.
    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor>;
}

/// Normal numbers from a stream.
pub fn draw_normal(rng: &mut dyn RngCore, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|_| rng.sample(StandardNormal)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// How a body is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyKind {
    /// One token per action; tokens see each other and all hidden states.
    Transformer,
    /// The whole chunk as one vector beside the mean of the hidden states (Octo, <https://arxiv.org/abs/2405.12213>).
    Mlp,
}

/// A head's body as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyConfig {
    /// How it is built.
    pub kind: BodyKind,
    /// Width of the trunk's hidden states.
    pub conditioning: usize,
    /// Its own width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
}

const NORM: NormConfig = NormConfig::LayerNorm { eps: 1e-5, bias: true };

/// Attention of `heads` heads from one sequence to another.
#[derive(Clone, Debug)]
struct Looking {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Looking {
    fn new(weights: &Weights, width: usize, heads: usize) -> Result<Self> {
        let part = |name: &str| Linear::new(&weights.pp(name), width, width, true);
        Ok(Self {
            norm: Norm::new(&weights.pp("norm"), width, NORM)?,
            q: part("q")?,
            k: part("k")?,
            v: part("v")?,
            out: part("out")?,
            heads,
        })
    }

    /// `x [b, t, width]` and what it finds in `there` (or in itself), added.
    fn forward(&self, x: &Tensor, there: Option<&Tensor>, mask: &Mask) -> Result<Tensor> {
        let normal = self.norm.forward(x)?;
        let found = self.keys(there.unwrap_or(&normal))?;
        self.look(x, &normal, &found, mask)
    }

    /// Keys and values of `there [b, n, width]`.
    fn keys(&self, there: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.k.forward(there)?, self.v.forward(there)?])
    }

    fn look(&self, x: &Tensor, normal: &Tensor, [k, v]: &[Tensor; 2], mask: &Mask) -> Result<Tensor> {
        let scale = 1.0 / ((x.dim(2)? / self.heads) as f32).sqrt();
        let heads = Heads { query: self.heads, key: self.heads };
        let q = self.q.forward(normal)?;
        Ok((x + self.out.forward(&attention_packed(&q, k, v, heads, mask, scale)?)?)?)
    }
}

/// One pre-norm layer; without attention in a body of one vector.
#[derive(Clone, Debug)]
struct BodyLayer {
    own: Option<Looking>,
    cross: Option<Looking>,
    norm: Norm,
    mlp: Mlp,
}

/// The layers alone, for heads that make their own inputs.
#[derive(Clone, Debug)]
pub struct Layers {
    memory: Linear,
    layers: Vec<BodyLayer>,
    norm: Norm,
}

impl Layers {
    /// Reads `memory`, `layers.{i}` and `norm`.
    ///
    /// # Errors
    /// A width that is no multiple of the heads.
    pub fn new(weights: &Weights, config: &BodyConfig) -> Result<Self> {
        let width = config.width;
        if config.heads == 0 || width == 0 || !width.is_multiple_of(config.heads) || config.conditioning == 0
        {
            return Err(Error::invalid(format!("body of a head: sizes that cannot work: {config:?}")));
        }
        let mlp = MlpConfig {
            input: width,
            hidden: 4 * width,
            output: width,
            activation: Activation::GeluTanh,
            gated: false,
            bias: true,
        };
        let sees = config.kind == BodyKind::Transformer;
        let layer = |i: usize| -> Result<BodyLayer> {
            let at = weights.pp("layers").pp(i);
            let looking =
                |name: &str| sees.then(|| Looking::new(&at.pp(name), width, config.heads)).transpose();
            Ok(BodyLayer {
                own: looking("self")?,
                cross: looking("cross")?,
                norm: Norm::new(&at.pp("norm"), width, NORM)?,
                mlp: Mlp::new(&at.pp("mlp"), mlp)?,
            })
        };
        Ok(Self {
            memory: Linear::new(&weights.pp("memory"), config.conditioning, width, true)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: Norm::new(&weights.pp("norm"), width, NORM)?,
        })
    }

    /// Hidden states `[b, n, conditioning]` at the body's width.
    pub fn remember(&self, conditioning: &Tensor) -> Result<Tensor> {
        self.memory.forward(conditioning)
    }

    /// Tokens `[b, t, width]` to the same shape.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, mask: &Mask) -> Result<Tensor> {
        let mut x = x.clone();
        for layer in &self.layers {
            if let Some(own) = &layer.own {
                x = own.forward(&x, None, mask)?;
            }
            if let Some(cross) = &layer.cross {
                x = cross.forward(&x, Some(memory), &Mask::None)?;
            }
            x = (&x + layer.mlp.forward(&layer.norm.forward(&x)?)?)?;
        }
        self.norm.forward(&x)
    }

    /// Before the first token of a sequence that grows one by one, over `memory [b, n, width]`.
    pub fn begin(&self, memory: &Tensor) -> Result<SoFar> {
        let cross = |layer: &BodyLayer| layer.cross.as_ref().map(|cross| cross.keys(memory)).transpose();
        Ok(SoFar {
            own: vec![None; self.layers.len()],
            cross: self.layers.iter().map(cross).collect::<Result<_>>()?,
        })
    }

    /// The next token `x [b, 1, width]` of such a sequence: what [`Self::forward`] gives at its place under a causal mask.
    pub fn next(&self, x: &Tensor, so_far: &mut SoFar) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(own) = &layer.own {
                let normal = own.norm.forward(&x)?;
                let [mut k, mut v] = own.keys(&normal)?;
                if let Some([keys, values]) = &so_far.own[i] {
                    (k, v) = (Tensor::cat(&[keys, &k], 1)?, Tensor::cat(&[values, &v], 1)?);
                }
                let all = [k, v];
                x = own.look(&x, &normal, &all, &Mask::None)?;
                so_far.own[i] = Some(all);
            }
            if let (Some(cross), Some(keys)) = (&layer.cross, &so_far.cross[i]) {
                x = cross.look(&x, &cross.norm.forward(&x)?, keys, &Mask::None)?;
            }
            x = (&x + layer.mlp.forward(&layer.norm.forward(&x)?)?)?;
        }
        self.norm.forward(&x)
    }
}

/// What a sequence that grows token by token remembers: keys and values, each `[b, n, width]`, of its tokens so far and of
/// the memory, layer by layer.
#[derive(Clone, Debug)]
pub struct SoFar {
    own: Vec<Option<[Tensor; 2]>>,
    cross: Vec<Option<[Tensor; 2]>>,
}

/// From hidden states, and from noisy actions and a time where there are some, to numbers per action.
#[derive(Clone, Debug)]
pub struct Body {
    kind: BodyKind,
    layers: Layers,
    input: Option<Linear>,
    time: Option<[Linear; 2]>,
    places: Tensor,
    output: Linear,
    horizon: usize,
    dims: usize,
    outputs: usize,
    width: usize,
}

/// Periods of the embedding of times from 0 to 1.
const PERIODS: [f64; 2] = [4e-3, 4.0];

impl Body {
    /// `horizon` actions of `dims` numbers (if `denoises`) to `outputs` numbers per action.
    pub fn new(
        weights: &Weights,
        config: &BodyConfig,
        (horizon, dims, outputs): (usize, usize, usize),
        denoises: bool,
    ) -> Result<Self> {
        if horizon * dims * outputs == 0 {
            return Err(Error::invalid("body of a head: expected a positive horizon and positive widths"));
        }
        // A body of one vector has one token that stands for the whole chunk.
        let per = if config.kind == BodyKind::Mlp { horizon } else { 1 };
        let width = config.width;
        let linear = |name: &str, from, to| Linear::new(&weights.pp(name), from, to, true);
        let time = || Ok::<_, Error>([linear("time_in", width, width)?, linear("time_out", width, width)?]);
        Ok(Self {
            layers: Layers::new(weights, config)?,
            input: denoises.then(|| linear("input", dims * per, width)).transpose()?,
            time: denoises.then(time).transpose()?,
            places: weights.get_init((1, horizon / per, width), "places", Init::Normal(0.02))?,
            // Zero at first: a fresh head says nothing.
            output: Linear::with_init(&weights.pp("output"), width, outputs * per, true, Init::Zeros)?,
            kind: config.kind,
            horizon,
            dims,
            outputs,
            width,
        })
    }

    /// Actions per chunk.
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// Numbers per action.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// `noisy` actions `[b, horizon, dims]` and their times `[b]` (from 0 to 1), if it denoises, and hidden states
    /// `[b, n, conditioning]` to `[b, horizon, outputs]`.
    pub fn forward(&self, noisy: Option<(&Tensor, &Tensor)>, conditioning: &Tensor) -> Result<Tensor> {
        let b = conditioning.dim(0)?;
        let tokens = self.places.dim(1)?;
        let memory = self.layers.remember(conditioning)?;
        let mut x = self.places.broadcast_as((b, tokens, self.width))?.contiguous()?;
        match (noisy, &self.input, &self.time) {
            (None, None, None) => {}
            (Some((noisy, times)), Some(input), Some([first, second])) => {
                if noisy.dims() != [b, self.horizon, self.dims] {
                    let expected = format!("[{b}, {}, {}]", self.horizon, self.dims);
                    return Err(Error::shape("noisy actions", expected, noisy.dims()));
                }
                let each = self.horizon / tokens * self.dims;
                x = (x + input.forward(&noisy.reshape((b, tokens, each))?)?)?;
                let time = first.forward(&sine_embedding(times, self.width, PERIODS)?)?;
                let time = second.forward(&Activation::Silu.forward(&time)?)?;
                x = x.broadcast_add(&time.unsqueeze(1)?)?;
            }
            _ => {
                return Err(Error::invalid(
                    "body of a head: noisy actions go to heads that denoise, and only there",
                ));
            }
        }
        if self.kind == BodyKind::Mlp {
            x = x.broadcast_add(&memory.mean_keepdim(1)?)?;
        }
        let y = self.output.forward(&self.layers.forward(&x, &memory, &Mask::None)?)?;
        Ok(y.reshape((b, self.horizon, self.outputs))?)
    }
}
