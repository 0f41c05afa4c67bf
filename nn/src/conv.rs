//! Convolutions over pictures `[b, c, h, w]` and over time `[b, c, t]`, transposed ones, and pooling by the maximum.

use crate::kernels::conv::{self as kernel, After, Size};
use crate::kernels::data::{Values, tensor};
use crate::{Error, Init, Result, Weights};
use candle_core::Tensor;

/// A convolution with its kernel.
#[derive(Clone, Debug)]
pub struct Conv {
    /// `[output, input, height, width]`; of a transposed one `[input, output, height, width]`.
    weight: Tensor,
    bias: Option<Tensor>,
    stride: [usize; 2],
    pad: [usize; 2],
}

impl Conv {
    /// Over pictures: reads `weight [output, input, kernel, kernel]` and, if `bias`, `bias [output]`.
    pub fn new(
        weights: &Weights,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        pad: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = weights.get_init((output, input, kernel, kernel), "weight", Init::FanIn(1.0))?;
        let bias = if bias { Some(weights.get_init(output, "bias", Init::Zeros)?) } else { None };
        Self::from_tensors(weight, bias, [stride; 2], [pad; 2])
    }

    /// Over time: reads `weight [output, input, kernel]` and `bias [output]`.
    pub fn over_time(
        weights: &Weights,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Result<Self> {
        let weight = weights.get_init((output, input, kernel), "weight", Init::FanIn(1.0))?;
        let bias = weights.get_init(output, "bias", Init::Zeros)?;
        Self::from_tensors(weight.unsqueeze(2)?, Some(bias), [1, stride], [0, pad])
    }

    /// Over time and transposed: reads `weight [input, output, kernel]` and `bias [output]`.
    pub fn transposed_over_time(
        weights: &Weights,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Result<Self> {
        let weight = weights.get_init((input, output, kernel), "weight", Init::FanIn(1.0))?;
        let bias = weights.get_init(output, "bias", Init::Zeros)?;
        Self::from_tensors(weight.unsqueeze(2)?, Some(bias), [1, stride], [0, pad])
    }

    /// From tensors; strides and paddings are (vertical, horizontal).
    ///
    /// # Errors
    /// A kernel that is not of rank 4, a stride of zero.
    pub fn from_tensors(
        weight: Tensor,
        bias: Option<Tensor>,
        stride: [usize; 2],
        pad: [usize; 2],
    ) -> Result<Self> {
        weight.dims4()?;
        if stride.contains(&0) {
            return Err(Error::invalid("convolution: expected a positive stride, got 0"));
        }
        Ok(Self { weight, bias, stride, pad })
    }

    /// The kernel.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// One factor and one summand per output channel, taken into the kernel: a batch norm whose statistics are fixed
    /// costs nothing after that.
    ///
    /// # Errors
    /// Not as many numbers as output channels.
    pub fn scaled(&self, factor: &[f32], summand: &[f32]) -> Result<Self> {
        let (output, input, height, width) = self.weight.dims4()?;
        if factor.len() != output || summand.len() != output {
            return Err(Error::shape("scaling of a convolution", format!("[{output}]"), &[factor.len()]));
        }
        let mut values = self.weight.flatten_all()?.to_vec1::<f32>()?;
        let size = input * height * width;
        for (row, factor) in values.chunks_exact_mut(size.max(1)).zip(factor) {
            row.iter_mut().for_each(|w| *w *= factor);
        }
        let old = match &self.bias {
            Some(bias) => bias.to_vec1::<f32>()?,
            None => vec![0.0; output],
        };
        let bias = old.iter().zip(factor).zip(summand).map(|((b, f), s)| b * f + s).collect();
        let weight = tensor(values, self.weight.shape())?;
        Self::from_tensors(weight, Some(tensor(bias, output)?), self.stride, self.pad)
    }

    fn size(&self, x: &Tensor) -> Result<Size> {
        let (o, c, kh, kw) = self.weight.dims4()?;
        let (b, channels, height, width) = x.dims4()?;
        let size =
            Size { b, c, o, input: [height, width], kernel: [kh, kw], stride: self.stride, pad: self.pad };
        if channels != c || size.output().contains(&0) {
            let expected =
                format!("[b, {c}, at least {kh} - {}, at least {kw} - {}]", 2 * self.pad[0], 2 * self.pad[1]);
            return Err(Error::shape("input of a convolution", expected, x.dims()));
        }
        Ok(size)
    }

    /// `x [b, input, h, w]` to `[b, output, oh, ow]`. Differentiable.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernel::conv(x, &self.weight, self.bias.as_ref(), self.size(x)?)
    }

    /// The same, then `add` of the result's shape added and, with `relu`, negative values made zero.
    pub fn forward_then(&self, x: &Tensor, add: Option<&Tensor>, relu: bool) -> Result<Tensor> {
        let size = self.size(x)?;
        let [height, width] = size.output();
        let shape = [size.b, size.o, height, width];
        if let Some(add) = add.filter(|add| add.dims() != shape) {
            return Err(Error::shape("summand of a convolution", format!("{shape:?}"), add.dims()));
        }
        let tracked = [Some(x), Some(&self.weight), self.bias.as_ref(), add];
        if tracked.iter().flatten().any(|t| t.track_op()) {
            let mut y = self.forward(x)?;
            if let Some(add) = add {
                y = (y + add)?;
            }
            return Ok(if relu { y.relu()? } else { y });
        }
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let add = add.map(Values::of).transpose()?;
        let after = After { bias: bias.as_deref(), add: add.as_deref(), relu };
        let values = kernel::forward(&Values::of(x)?, &Values::of(&self.weight)?, size, after);
        tensor(values, &shape[..])
    }

    /// `x [b, input, t]` to `[b, output, t']`. Differentiable.
    pub fn forward_over_time(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward(&x.unsqueeze(2)?)?.squeeze(2)?)
    }

    /// The transposed convolution, `x [b, input, t]` to `[b, output, (t - 1) stride - 2 pad + kernel]`. Differentiable.
    pub fn transposed_forward_over_time(&self, x: &Tensor) -> Result<Tensor> {
        let (o, c, kh, kw) = self.weight.dims4()?;
        let (b, channels, t) = x.dims3()?;
        let long = (t.saturating_sub(1) * self.stride[1] + kw).saturating_sub(2 * self.pad[1]);
        let size = Size { b, c, o, input: [1, long], kernel: [kh, kw], stride: self.stride, pad: self.pad };
        if channels != o || size.output() != [1, t] {
            return Err(Error::shape("input of a transposed convolution", format!("[b, {o}, t]"), x.dims()));
        }
        let y = kernel::conv_transposed(&x.unsqueeze(2)?, &self.weight, self.bias.as_ref(), size)?;
        Ok(y.squeeze(2)?)
    }
}

/// The greatest value of each window of `x [b, c, h, w]`; beyond the edge there is nothing. Differentiable.
///
/// # Errors
/// A stride of zero, more padding than half a window, a picture that no window fits.
pub fn max_pool(x: &Tensor, kernel: usize, stride: usize, pad: usize) -> Result<Tensor> {
    let (b, c, height, width) = x.dims4()?;
    if stride == 0 || 2 * pad > kernel {
        return Err(Error::invalid(format!("max pool: kernel {kernel}, stride {stride}, padding {pad}")));
    }
    let size =
        Size { b, c, o: c, input: [height, width], kernel: [kernel; 2], stride: [stride; 2], pad: [pad; 2] };
    if size.output().contains(&0) {
        return Err(Error::shape("input of max pool", format!("pictures of at least {kernel}"), x.dims()));
    }
    kernel::max_pool(x, size)
}
