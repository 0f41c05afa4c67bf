//! Residual networks of basic blocks (He et al. 2015, <https://arxiv.org/abs/1512.03385>): ResNet-18 and -34 without
//! their classifier, under the names that torchvision and that a sequence of its parts give. Widths are in the weights.

use candle_core::Tensor;
use vela_nn::{Conv, Error, GroupNorm, Result, Weights, fixed_batch_norm, max_pool};

/// What the parts are called in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNetNames {
    /// `conv1`, `bn1`, `layer1` to `layer4`.
    Named,
    /// The same parts by their place: `0`, `1`, `4` to `7` (the places between have no weights).
    Numbered,
}

/// What normalises after each convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNetNorm {
    /// Batch norm with fixed statistics, taken into the kernels.
    FixedBatch,
    /// Group norm, this many channels to a group.
    Group(usize),
}

/// Torch's batch and group norms add this to the variance.
const EPS: f32 = 1e-5;

/// A convolution and its normalisation.
#[derive(Clone, Debug)]
struct Part {
    conv: Conv,
    norm: Option<GroupNorm>,
}

impl Part {
    /// `fresh` are the widths of a new network.
    fn new(
        conv: &Weights,
        norm: &Weights,
        kind: ResNetNorm,
        (kernel, stride): (usize, usize),
        fresh: (usize, usize),
    ) -> Result<Self> {
        let shape = match conv.is_fresh() {
            true => vec![fresh.1, fresh.0, kernel, kernel],
            false => conv.shape_of("weight").unwrap_or_default(),
        };
        let [output, input, _, _] = shape[..] else {
            return Err(Error::invalid(format!("resnet: expected a kernel at {}.weight", conv.prefix())));
        };
        let plain = Conv::new(conv, (input, output), kernel, stride, kernel / 2, false)?;
        Ok(match kind {
            ResNetNorm::FixedBatch => {
                let (factor, summand) = fixed_batch_norm(norm, output, EPS)?;
                Self { conv: plain.scaled(&factor, &summand)?, norm: None }
            }
            ResNetNorm::Group(size) => {
                let groups = output.checked_div(size).unwrap_or(0);
                Self { conv: plain, norm: Some(GroupNorm::new(norm, output, groups, EPS)?) }
            }
        })
    }

    fn forward(&self, x: &Tensor, add: Option<&Tensor>, relu: bool) -> Result<Tensor> {
        let Some(norm) = &self.norm else {
            return self.conv.forward_then(x, add, relu);
        };
        let mut y = norm.forward(&self.conv.forward(x)?)?;
        if let Some(add) = add {
            y = (y + add)?;
        }
        Ok(if relu { y.relu()? } else { y })
    }
}

/// Two convolutions and a way past them.
#[derive(Clone, Debug)]
struct Block {
    first: Part,
    second: Part,
    past: Option<Part>,
}

impl Block {
    fn new(weights: &Weights, norm: ResNetNorm, stride: usize, fresh: (usize, usize)) -> Result<Self> {
        let part = |conv: &str, bn: &str, size, fresh| {
            Part::new(&weights.pp(conv), &weights.pp(bn), norm, size, fresh)
        };
        let past = match weights.is_fresh() {
            true => stride > 1,
            false => weights.contains("downsample.0.weight"),
        };
        Ok(Self {
            first: part("conv1", "bn1", (3, stride), fresh)?,
            second: part("conv2", "bn2", (3, 1), (fresh.1, fresh.1))?,
            past: past.then(|| part("downsample.0", "downsample.1", (1, stride), fresh)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.first.forward(x, None, true)?;
        match &self.past {
            Some(past) => self.second.forward(&y, Some(&past.forward(x, None, false)?), true),
            None => self.second.forward(&y, Some(x), true),
        }
    }
}

/// The network up to its last feature map.
#[derive(Clone, Debug)]
pub struct ResNet {
    stem: Part,
    blocks: Vec<Block>,
    width: usize,
}

impl ResNet {
    /// Reads every block that the checkpoint has, in its four stages; a new network is a ResNet-18.
    ///
    /// # Errors
    /// A kernel is missing or of a strange shape; blocks that are not basic ones.
    pub fn new(weights: &Weights, names: ResNetNames, norm: ResNetNorm) -> Result<Self> {
        let (conv, bn) = match names {
            ResNetNames::Named => ("conv1", "bn1"),
            ResNetNames::Numbered => ("0", "1"),
        };
        let mut blocks = Vec::new();
        let mut width = 0;
        for stage in 1..=4 {
            let stage_weights = match names {
                ResNetNames::Named => weights.pp(format!("layer{stage}")),
                ResNetNames::Numbered => weights.pp(stage + 3),
            };
            let there = |i: &usize| match weights.is_fresh() {
                true => *i < 2,
                false => stage_weights.contains(&format!("{i}.conv1.weight")),
            };
            let wide = 32 << stage;
            for i in (0..).take_while(there) {
                let block = stage_weights.pp(i);
                if block.contains("conv3.weight") {
                    return Err(Error::invalid(format!(
                        "resnet: {}: bottleneck blocks (ResNet-50 and deeper) are not supported",
                        block.prefix()
                    )));
                }
                let stride = if stage > 1 && i == 0 { 2 } else { 1 };
                let fresh = (if stride > 1 { wide / 2 } else { wide }, wide);
                blocks.push(Block::new(&block, norm, stride, fresh)?);
                width = block.shape_of("conv2.weight").and_then(|s| s.first().copied()).unwrap_or(wide);
            }
        }
        if blocks.is_empty() {
            return Err(Error::invalid(format!("resnet: no blocks under '{}'", weights.prefix())));
        }
        Ok(Self {
            stem: Part::new(&weights.pp(conv), &weights.pp(bn), norm, (7, 2), (3, 64))?,
            blocks,
            width,
        })
    }

    /// Channels of the last feature map.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `pixels [b, 3, h, w]`, normalised, to the last feature map `[b, width, h / 32, w / 32]` (rounded up).
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        // The buffers of one picture serve the next.
        vela_nn::keep_freed();
        let mut x = max_pool(&self.stem.forward(pixels, None, true)?, 3, 2, 1)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}
