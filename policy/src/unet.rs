//! The one-dimensional U-Net of Diffusion Policy (Chi et al. 2023, <https://arxiv.org/abs/2303.04137>): convolutions over
//! the ticks of a chunk, conditioned by feature-wise factors and summands (FiLM, <https://arxiv.org/abs/1709.07871>).

use candle_core::{Device, Tensor};
use vela_nn::{Conv, Error, GroupNorm, Linear, Result, Weights, mish};

/// A U-Net as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnetConfig {
    /// Numbers per action.
    pub action_dims: usize,
    /// Numbers that condition all of it, beside the time.
    pub conditioning: usize,
    /// Channels of each level.
    pub widths: Vec<usize>,
    /// Ticks under a kernel.
    pub kernel: usize,
    /// Groups of each group norm.
    pub groups: usize,
    /// Numbers in the embedding of time.
    pub time_dims: usize,
    /// Whether conditioning multiplies as well as adds.
    pub film_scale: bool,
}

impl UnetConfig {
    /// Refuses sizes that cannot work.
    pub fn check(&self) -> Result<()> {
        let uneven = self.widths.iter().any(|w| self.groups == 0 || !w.is_multiple_of(self.groups));
        if self.widths.is_empty() || uneven || self.kernel.is_multiple_of(2) || self.time_dims < 4 {
            return Err(Error::invalid(format!("u-net config: sizes that cannot work: {self:?}")));
        }
        Ok(())
    }
}

/// Convolution, group norm, Mish.
#[derive(Clone, Debug)]
struct Step {
    conv: Conv,
    norm: GroupNorm,
}

impl Step {
    fn new(weights: &Weights, widths: (usize, usize), config: &UnetConfig) -> Result<Self> {
        let block = weights.pp("block");
        Ok(Self {
            conv: Conv::over_time(&block.pp(0), widths, config.kernel, 1, config.kernel / 2)?,
            norm: GroupNorm::new(&block.pp(1), widths.1, config.groups, 1e-5)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        mish(&self.norm.forward(&self.conv.forward_over_time(x)?)?)
    }
}

/// Two steps with the conditioning between them, and a way past them.
#[derive(Clone, Debug)]
struct Residual {
    first: Step,
    conditioning: Linear,
    second: Step,
    past: Option<Conv>,
    width: usize,
    film_scale: bool,
}

impl Residual {
    fn new(weights: &Weights, (input, output): (usize, usize), config: &UnetConfig) -> Result<Self> {
        let given = config.time_dims + config.conditioning;
        let taken = if config.film_scale { 2 * output } else { output };
        let past = || Conv::over_time(&weights.pp("residual_conv"), (input, output), 1, 1, 0);
        Ok(Self {
            first: Step::new(&weights.pp("conv1"), (input, output), config)?,
            conditioning: Linear::new(&weights.pp("cond_encoder").pp(1), given, taken, true)?,
            second: Step::new(&weights.pp("conv2"), (output, output), config)?,
            past: (input != output).then(past).transpose()?,
            width: output,
            film_scale: config.film_scale,
        })
    }

    /// `x [b, input, t]`, `active [b, given]` (after Mish) to `[b, output, t]`.
    fn forward(&self, x: &Tensor, active: &Tensor) -> Result<Tensor> {
        let film = self.conditioning.forward(active)?.unsqueeze(2)?;
        let y = self.first.forward(x)?;
        let y = if self.film_scale {
            let (scale, shift) = (film.narrow(1, 0, self.width)?, film.narrow(1, self.width, self.width)?);
            y.broadcast_mul(&scale)?.broadcast_add(&shift)?
        } else {
            y.broadcast_add(&film)?
        };
        let y = self.second.forward(&y)?;
        Ok(match &self.past {
            Some(past) => (y + past.forward_over_time(x)?)?,
            None => (y + x)?,
        })
    }
}

/// One level: two residual blocks, and a convolution to the next level if there is one.
#[derive(Clone, Debug)]
struct Level {
    blocks: [Residual; 2],
    onward: Option<Conv>,
}

/// The network.
#[derive(Clone, Debug)]
pub struct Unet {
    config: UnetConfig,
    time: [Linear; 2],
    down: Vec<Level>,
    middle: [Residual; 2],
    up: Vec<Level>,
    last: Step,
    out: Conv,
}

impl Unet {
    /// Reads `diffusion_step_encoder`, `down_modules`, `mid_modules`, `up_modules` and `final_conv`.
    pub fn new(weights: &Weights, config: &UnetConfig) -> Result<Self> {
        config.check()?;
        let (widths, levels, e) = (&config.widths, config.widths.len(), config.time_dims);
        let block =
            |weights: Weights, input: usize, output: usize| Residual::new(&weights, (input, output), config);
        let (down, up) = (weights.pp("down_modules"), weights.pp("up_modules"));
        let down_level = |i: usize| -> Result<Level> {
            let (at, width) = (down.pp(i), widths[i]);
            let input = if i == 0 { config.action_dims } else { widths[i - 1] };
            let onward = || Conv::over_time(&at.pp(2), (width, width), 3, 2, 1);
            Ok(Level {
                blocks: [block(at.pp(0), input, width)?, block(at.pp(1), width, width)?],
                onward: (i + 1 < levels).then(onward).transpose()?,
            })
        };
        let up_level = |i: usize| -> Result<Level> {
            let (at, level) = (up.pp(i), levels - 1 - i);
            let (input, width) = (2 * widths[level], widths[level - 1]);
            Ok(Level {
                blocks: [block(at.pp(0), input, width)?, block(at.pp(1), width, width)?],
                onward: Some(Conv::transposed_over_time(&at.pp(2), (width, width), 4, 2, 1)?),
            })
        };
        let (first, deepest) = (widths[0], widths[levels - 1]);
        // The reference's last block has eight groups whatever the others have.
        let at_last = UnetConfig { groups: 8, ..config.clone() };
        let (time, mid) = (weights.pp("diffusion_step_encoder"), weights.pp("mid_modules"));
        let last = weights.pp("final_conv");
        Ok(Self {
            time: [Linear::new(&time.pp(1), e, 4 * e, true)?, Linear::new(&time.pp(3), 4 * e, e, true)?],
            down: (0..levels).map(down_level).collect::<Result<_>>()?,
            middle: [block(mid.pp(0), deepest, deepest)?, block(mid.pp(1), deepest, deepest)?],
            up: (0..levels - 1).map(up_level).collect::<Result<_>>()?,
            last: Step::new(&last.pp(0), (first, first), &at_last)?,
            out: Conv::over_time(&last.pp(1), (first, config.action_dims), 1, 1, 0)?,
            config: config.clone(),
        })
    }

    /// What it is.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Noisy actions `x [b, t, action_dims]` at training steps `times [b]` under `conditioning [b, n]` to what the network
    /// predicts, of the same shape. Differentiable.
    ///
    /// # Errors
    /// A number of ticks that cannot be halved at every level.
    pub fn forward(&self, x: &Tensor, times: &Tensor, conditioning: &Tensor) -> Result<Tensor> {
        let halvings = 1 << (self.config.widths.len() - 1);
        if !x.dim(1)?.is_multiple_of(halvings) {
            return Err(Error::shape(
                "chunk of a u-net",
                format!("[b, multiple of {halvings}, dims]"),
                x.dims(),
            ));
        }
        let time = self.time[0].forward(&sine_of_step(times, self.config.time_dims)?)?;
        let time = self.time[1].forward(&mish(&time)?)?;
        let active = mish(&Tensor::cat(&[&time, conditioning], 1)?)?;
        let mut x = x.transpose(1, 2)?.contiguous()?;
        let mut kept = Vec::with_capacity(self.down.len());
        for level in &self.down {
            for block in &level.blocks {
                x = block.forward(&x, &active)?;
            }
            kept.push(x.clone());
            if let Some(onward) = &level.onward {
                x = onward.forward_over_time(&x)?;
            }
        }
        for block in &self.middle {
            x = block.forward(&x, &active)?;
        }
        for (level, kept) in self.up.iter().zip(kept.iter().rev()) {
            x = Tensor::cat(&[&x, kept], 1)?;
            for block in &level.blocks {
                x = block.forward(&x, &active)?;
            }
            if let Some(onward) = &level.onward {
                x = onward.transposed_forward_over_time(&x)?;
            }
        }
        let x = self.out.forward_over_time(&self.last.forward(&x)?)?;
        Ok(x.transpose(1, 2)?.contiguous()?)
    }
}

/// Sines, then cosines, of a step number at frequencies from 1 down to 1e-4: `[b]` to `[b, dims]`.
fn sine_of_step(times: &Tensor, dims: usize) -> Result<Tensor> {
    let (times, half) = (times.to_vec1::<f32>()?, dims / 2);
    let rate = -(10_000f64.ln() / (half - 1) as f64) as f32;
    let mut values = Vec::with_capacity(times.len() * 2 * half);
    for t in &times {
        let angle = |k: usize| t * (k as f32 * rate).exp();
        values.extend((0..half).map(|k| angle(k).sin()));
        values.extend((0..half).map(|k| angle(k).cos()));
    }
    Ok(Tensor::from_vec(values, (times.len(), 2 * half), &Device::Cpu)?)
}
