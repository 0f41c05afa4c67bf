//! Rotary position embedding (Su et al., 2021) with the scalings that checkpoints use.

use crate::{Error, Result, kernels};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which two elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeStyle {
    /// `i` and `i + d/2` (Llama in Hugging Face's layout).
    HalfSplit,
    /// `2i` and `2i + 1` (the paper's own).
    Interleaved,
}

/// How the frequencies are stretched for contexts longer than training's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor` (Chen et al., 2023).
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// The base raised, so that only low frequencies stretch ("NTK-aware").
    Ntk {
        /// Stretch.
        factor: f32,
    },
    /// The same, raised only as far as the positions need: beyond `original_positions` the base follows the last
    /// position of the row. Keys keep the turn that they got when they were read, as in Hugging Face's cache.
    Dynamic {
        /// Stretch.
        factor: f32,
        /// Context length of the training.
        original_positions: usize,
    },
    /// YaRN (Peng et al., 2023): a ramp between kept and divided frequencies, and a scale on the result.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Context length of the training.
        original_positions: usize,
        /// Rotations above which a frequency is kept (32).
        beta_fast: f32,
        /// Rotations below which it is divided (1).
        beta_slow: f32,
        /// Scale of cosine and sine; `0.1 ln(factor) + 1` if absent.
        attention_factor: Option<f32>,
        /// Whether the ramp begins and ends at whole indices (gpt-oss: not).
        #[serde(default = "yes")]
        truncate: bool,
    },
    /// Llama 3.1's: by wavelength, with a smooth middle.
    Llama3 {
        /// Stretch.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f32,
        /// Context length of the training.
        original_positions: usize,
    },
}

fn yes() -> bool {
    true
}

/// Which of three positions (time, height, width) turns which frequency (M-RoPE; Wang et al., 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSections {
    /// Frequencies of each axis; together half of `rotary_dim`.
    pub counts: [usize; 3],
    /// Whether the axes take turns (Qwen3-VL) or lie one after the other (Qwen2-VL).
    pub interleaved: bool,
}

impl RopeSections {
    /// The axis of frequency `i`.
    fn axis(&self, i: usize) -> usize {
        let [time, height, _] = self.counts;
        if self.interleaved {
            // Time has what the other two leave over.
            let axis = i % 3;
            return if axis > 0 && i < 3 * self.counts[axis] { axis } else { 0 };
        }
        usize::from(i >= time) + usize::from(i >= time + height)
    }
}

/// A rotary embedding as data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Elements of a head that turn (even; the rest passes through).
    pub rotary_dim: usize,
    /// The base of the frequencies (10000 in the paper).
    pub theta: f32,
    /// Which elements turn together.
    pub style: RopeStyle,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
    /// Which axis turns which frequency, where positions have three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sections: Option<RopeSections>,
}

impl RopeConfig {
    /// Half-split, unscaled.
    pub fn new(rotary_dim: usize, theta: f32) -> Self {
        Self { rotary_dim, theta, style: RopeStyle::HalfSplit, scaling: RopeScaling::None, sections: None }
    }
}

/// A rotary embedding: its frequencies.
#[derive(Clone, Debug)]
pub struct Rope {
    config: RopeConfig,
    frequencies: Arc<[f64]>,
    magnitude: f64,
}

/// The base raised so that the lowest frequency stretches by `stretch` and the highest not at all.
fn raised(theta: f64, stretch: f64, dim: usize) -> f64 {
    theta * stretch.powf(dim as f64 / (dim as f64 - 2.0).max(1.0))
}

fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim as f64))
}

impl Rope {
    /// Works out the frequencies. Errors if `rotary_dim` is odd or zero, or a number is not positive.
    pub fn new(config: RopeConfig) -> Result<Self> {
        let RopeConfig { rotary_dim: dim, theta, scaling, .. } = config;
        if dim == 0 || dim % 2 != 0 || theta.is_nan() || theta <= 0.0 {
            return Err(Error::invalid(format!(
                "rope: expected an even rotary_dim and theta > 0, got {dim} and {theta}"
            )));
        }
        if let Some(RopeSections { counts, .. }) = config.sections
            && counts.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)) != Some(dim / 2)
        {
            return Err(Error::invalid(format!("rope: sections {counts:?} are not {} frequencies", dim / 2)));
        }
        if let RopeScaling::Dynamic { factor, original_positions } = scaling
            && (factor.is_nan() || factor <= 0.0 || original_positions == 0)
        {
            return Err(Error::invalid(format!("rope: {scaling:?}: expected positive numbers")));
        }
        let theta = f64::from(theta);
        let powers = |theta: f64| powers(theta, dim);
        let mut magnitude = 1.0;
        let frequencies: Vec<f64> = match scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => powers(theta).collect(),
            RopeScaling::Linear { factor } => powers(theta).map(|f| f / f64::from(factor)).collect(),
            RopeScaling::Ntk { factor } => powers(raised(theta, f64::from(factor), dim)).collect(),
            RopeScaling::Yarn {
                factor,
                original_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let factor = f64::from(factor);
                magnitude = attention_factor.map_or(0.1 * factor.max(1.0).ln() + 1.0, f64::from);
                // The index whose frequency turns `rotations` times over the original context.
                let index = |rotations: f32| {
                    let ratio = original_positions as f64 / (f64::from(rotations) * std::f64::consts::TAU);
                    dim as f64 * ratio.ln() / (2.0 * theta.ln())
                };
                let whole = |index: f64, round: fn(f64) -> f64| if truncate { round(index) } else { index };
                let low = whole(index(beta_fast), f64::floor).max(0.0);
                let high = whole(index(beta_slow), f64::ceil).min(dim as f64 - 1.0);
                let ramp = move |i: usize| ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                powers(theta).enumerate().map(|(i, f)| f * (1.0 - ramp(i)) + f / factor * ramp(i)).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let (factor, low, high) =
                    (f64::from(factor), f64::from(low_freq_factor), f64::from(high_freq_factor));
                powers(theta)
                    .map(|f| {
                        let turns = original_positions as f64 * f / std::f64::consts::TAU;
                        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        f * keep + f / factor * (1.0 - keep)
                    })
                    .collect()
            }
        };
        if frequencies.iter().any(|f| !f.is_finite()) {
            return Err(Error::invalid(format!("rope: {config:?} gives frequencies that are not finite")));
        }
        Ok(Self { config, frequencies: frequencies.into(), magnitude })
    }

    /// The angles at `positions [t]` or `[b, t]`, or `[3, b, t]` with [`RopeSections`] (u32). Work them out once and use
    /// them in every layer.
    pub fn at(&self, positions: &Tensor) -> Result<RopeAngles> {
        let sections = self.config.sections;
        let (axes, batch, length) = match (positions.dims(), sections) {
            ([t], _) => (1, 1, *t),
            ([b, t], _) => (1, *b, *t),
            ([3, b, t], Some(_)) => (3, *b, *t),
            (other, None) => return Err(Error::shape("positions", "[t] or [b, t]", other)),
            (other, Some(_)) => return Err(Error::shape("positions", "[t], [b, t] or [3, b, t]", other)),
        };
        let positions = positions.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
        let half = self.frequencies.len();
        let (mut cos, mut sin) =
            (Vec::with_capacity(batch * length * half), Vec::with_capacity(batch * length * half));
        for row in 0..batch {
            let of = |axis: usize| &positions[(axis * batch + row) * length..][..length];
            let frequencies = self.frequencies_for(of(0));
            for k in 0..length {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let axis = if axes == 1 { 0 } else { sections.map_or(0, |sections| sections.axis(i)) };
                    let turn = f64::from(of(axis)[k]) * frequency;
                    cos.push((turn.cos() * self.magnitude) as f32);
                    sin.push((turn.sin() * self.magnitude) as f32);
                }
            }
        }
        Ok(RopeAngles(Arc::new(Angles { cos, sin, batch, length, half, style: self.config.style })))
    }

    /// The frequencies for a row of positions.
    fn frequencies_for(&self, positions: &[u32]) -> Arc<[f64]> {
        let RopeConfig { rotary_dim: dim, theta, scaling, .. } = self.config;
        if let RopeScaling::Dynamic { factor, original_positions } = scaling {
            let length = positions.iter().max().map_or(0, |last| *last as usize + 1);
            if length > original_positions {
                let (factor, times) = (f64::from(factor), length as f64 / original_positions.max(1) as f64);
                return powers(raised(f64::from(theta), factor * times - (factor - 1.0), dim), dim).collect();
            }
        }
        self.frequencies.clone()
    }

    /// Turns `x [b, h, t, d]` at `positions`. With several layers, [`Rope::at`] once is faster.
    pub fn apply(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        self.at(positions)?.apply(x)
    }
}

#[derive(Debug)]
pub(crate) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub batch: usize,
    pub length: usize,
    pub half: usize,
    pub style: RopeStyle,
}

/// Cosines and sines at certain positions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RopeAngles(pub(crate) Arc<Angles>);

impl RopeAngles {
    /// From tables worked out elsewhere (multi-axis positions): `cos`, `sin` of `[t, half]` or `[b, t, half]`.
    pub fn from_tables(cos: &Tensor, sin: &Tensor, style: RopeStyle) -> Result<Self> {
        let (batch, length, half) = match cos.dims() {
            [t, half] => (1, *t, *half),
            [b, t, half] => (*b, *t, *half),
            other => return Err(Error::shape("rope tables", "[t, half] or [b, t, half]", other)),
        };
        if sin.dims() != cos.dims() {
            return Err(Error::shape("sines of rope", format!("{:?}", cos.dims()), sin.dims()));
        }
        let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        Ok(Self(Arc::new(Angles { cos: values(cos)?, sin: values(sin)?, batch, length, half, style })))
    }

    /// Pairs that turn: half of `rotary_dim`.
    pub fn half(&self) -> usize {
        self.0.half
    }

    /// Which elements turn together.
    pub fn style(&self) -> RopeStyle {
        self.0.style
    }

    /// `[b | 1, t, half]`.
    pub fn cos(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.0.cos, (self.0.batch, self.0.length, self.0.half), &Device::Cpu)?)
    }

    /// `[b | 1, t, half]`.
    pub fn sin(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.0.sin, (self.0.batch, self.0.length, self.0.half), &Device::Cpu)?)
    }

    fn check(&self, b: usize, t: usize, d: usize, x: &Tensor) -> Result<()> {
        let a = &self.0;
        if t != a.length || (a.batch != 1 && a.batch != b) || d < 2 * a.half {
            let expected =
                format!("batch {} (1 means any), length {}, head size >= {}", a.batch, a.length, 2 * a.half);
            return Err(Error::shape("input of rope", expected, x.dims()));
        }
        Ok(())
    }

    /// Turns `x [b, h, t, d]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, t, d) = x.dims4()?;
        self.check(b, t, d, x)?;
        kernels::rope::rope(x, &self.0, kernels::rope::Layout { b, t, h, d, packed: false })
    }

    /// Turns `x [b, t, heads * d]`, as a projection gives it: no transposition, the fast form in training.
    pub fn apply_packed(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let d = width / heads.max(1);
        if d * heads != width {
            return Err(Error::shape(
                "input of rope",
                format!("[b, t, {heads} heads of one size]"),
                x.dims(),
            ));
        }
        self.check(b, t, d, x)?;
        kernels::rope::rope(x, &self.0, kernels::rope::Layout { b, t, h: heads, d, packed: true })
    }
}
