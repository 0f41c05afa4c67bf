//! How fresh parameters start.

use crate::random;
use candle_core::Shape;
use rand::Rng;
use rand_distr::StandardNormal;

/// How a fresh parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One value everywhere.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform in `±bound`.
    Uniform(f32),
    /// Uniform in `±sqrt(6 / (fan_in + fan_out))`, fans from the shape `[out, in, ..]` (Glorot and Bengio, 2010).
    XavierUniform,
    /// Normal with standard deviation `gain / sqrt(fan_in)`, fan from the shape `[out, in, ..]` (He et al., 2015).
    FanIn(f32),
}

/// Inputs and outputs of a parameter `[out, in, ..]`.
fn fans(shape: &[usize]) -> (usize, usize) {
    let receptive: usize = shape.iter().skip(2).product();
    let fan_out = shape.first().copied().unwrap_or(1) * receptive;
    (shape.get(1).or(shape.first()).copied().unwrap_or(1) * receptive, fan_out)
}

impl Init {
    /// The initial values of the parameter `name` under `seed`: they depend on nothing else.
    pub(crate) fn values(self, seed: u64, name: &str, shape: &Shape) -> Vec<f32> {
        let count = shape.elem_count();
        let (fan_in, fan_out) = fans(shape.dims());
        let mut rng = random::stream(seed, name);
        let mut normal = |std: f32| -> Vec<f32> {
            (0..count).map(|_| std * rng.sample::<f32, _>(StandardNormal)).collect()
        };
        match self {
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Constant(value) => vec![value; count],
            Self::Normal(std) => normal(std),
            Self::FanIn(gain) => normal(gain / (fan_in.max(1) as f32).sqrt()),
            Self::Uniform(_) | Self::XavierUniform => {
                let bound = match self {
                    Self::Uniform(bound) => bound,
                    _ => (6.0 / (fan_in + fan_out).max(1) as f32).sqrt(),
                };
                (0..count).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect()
            }
        }
    }

    /// The standard deviation of the initial values of a parameter of this shape, if they are drawn.
    pub(crate) fn spread(self, shape: &[usize]) -> Option<f32> {
        let (fan_in, fan_out) = fans(shape);
        match self {
            Self::Zeros | Self::Ones | Self::Constant(_) => None,
            Self::Normal(std) => Some(std),
            Self::Uniform(bound) => Some(bound / 3f32.sqrt()),
            Self::XavierUniform => Some((2.0 / (fan_in + fan_out).max(1) as f32).sqrt()),
            Self::FanIn(gain) => Some(gain / (fan_in.max(1) as f32).sqrt()),
        }
    }
}
