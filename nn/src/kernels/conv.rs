//! Convolution as matrix products over gathered columns (im2col; Chellapilla et al. 2006), forward and backward. The
//! columns of a block of output rows are gathered at a time, so that they stay in cache.

use super::data::{Shared, Values, tensor};
use super::matmul::{View, matmul_add, matmul_over, raw};
use super::node::{node, tracked};
use super::simd::{dispatch, sum};
use crate::{Result, threads};
use candle_core::Tensor;
use std::cell::RefCell;
use std::ops::Range;

/// Sizes of one convolution; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pictures.
    pub b: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels.
    pub o: usize,
    /// Input height and width.
    pub input: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Steps of the kernel.
    pub stride: [usize; 2],
    /// Zeros around the input, on each side.
    pub pad: [usize; 2],
}

impl Size {
    /// Output height and width; zero where the kernel does not fit.
    pub fn output(&self) -> [usize; 2] {
        let one = |i: usize| {
            let room = (self.input[i] + 2 * self.pad[i] + 1).saturating_sub(self.kernel[i]);
            if room == 0 { 0 } else { (room - 1) / self.stride[i].max(1) + 1 }
        };
        [one(0), one(1)]
    }

    /// Values under the kernel: the length of a column.
    fn column(&self) -> usize {
        self.c * self.kernel[0] * self.kernel[1]
    }

    fn in_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn out_area(&self) -> usize {
        let [height, width] = self.output();
        height * width
    }

    /// Whether a column is a pixel, so that nothing needs gathering.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pad == [0, 0]
    }

    /// Output rows per block: about a megabyte of columns, but enough of them to pay for packing the kernel.
    fn block(&self) -> usize {
        let [height, width] = self.output();
        let columns = ((1 << 18) / self.column().max(1)).clamp(256, 8192);
        columns.div_ceil(width.max(1)).clamp(1, height.max(1))
    }

    /// Where output columns find input ones for a horizontal kernel offset: the range of output columns that do.
    fn inside(&self, kx: usize) -> Range<usize> {
        let (step, pad, width) = (self.stride[1], self.pad[1], self.input[1]);
        let all = self.output()[1];
        let from = pad.saturating_sub(kx).div_ceil(step).min(all);
        let to = (width + pad).saturating_sub(kx).div_ceil(step).min(all);
        from..to.max(from)
    }

    /// Runs `each(channel, kx, output row within the block, input row if there is one)`, in the order of the columns.
    fn walk(&self, rows: &Range<usize>, mut each: impl FnMut(usize, usize, usize, Option<usize>)) {
        for c in 0..self.c {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    for row in rows.clone() {
                        let y = (row * self.stride[0] + ky).checked_sub(self.pad[0]);
                        each(c, kx, row - rows.start, y.filter(|y| *y < self.input[0]));
                    }
                }
            }
        }
    }

    /// The input rows under some output rows, those of the padding left out.
    fn rows_under(&self, rows: &Range<usize>) -> Range<usize> {
        let from = (rows.start * self.stride[0]).saturating_sub(self.pad[0]);
        let last = (rows.end.max(1) - 1) * self.stride[0] + self.kernel[0];
        let to = last.saturating_sub(self.pad[0]).min(self.input[0]);
        from.min(to)..to
    }

    /// With a step, every how many-th pixel of a row is used: rows `[c, rows, step, width / step]`, so that they lie together.
    fn split(&self, picture: &[f32], under: &Range<usize>, split: &mut Vec<f32>) {
        let ([height, width], step) = (self.input, self.stride[1]);
        let each = width.div_ceil(step);
        split.clear();
        split.resize(self.c * under.len() * step * each, 0.0);
        let mut parts = split.chunks_exact_mut(each);
        for c in 0..self.c {
            for y in under.clone() {
                let row = &picture[(c * height + y) * width..][..width];
                for phase in 0..step {
                    let Some(part) = parts.next() else { return };
                    let every = row.get(phase..).unwrap_or_default().iter().step_by(step);
                    part.iter_mut().zip(every).for_each(|(p, v)| *p = *v);
                }
            }
        }
    }

    /// The columns `[c * kh * kw, rows * width]` of some output rows of one picture.
    fn gather(&self, picture: &[f32], rows: &Range<usize>, columns: &mut Vec<f32>, split: &mut Vec<f32>) {
        let [_, width] = self.output();
        columns.resize(self.column() * rows.len() * width, 0.0);
        let ([height, in_width], step) = (self.input, self.stride[1]);
        let (under, each) = (self.rows_under(rows), in_width.div_ceil(step));
        if step > 1 {
            self.split(picture, &under, split);
        }
        let mut at = 0;
        self.walk(rows, |c, kx, _, y| {
            let out = &mut columns[at..at + width];
            at += width;
            let Some(y) = y else {
                out.fill(0.0);
                return;
            };
            let inside = self.inside(kx);
            out[..inside.start].fill(0.0);
            out[inside.end..].fill(0.0);
            if inside.is_empty() {
                return;
            }
            let first = inside.start * step + kx - self.pad[1];
            let from = match step {
                1 => &picture[(c * height + y) * in_width + first..],
                _ => {
                    &split
                        [((c * under.len() + y - under.start) * step + first % step) * each + first / step..]
                }
            };
            let count = inside.len();
            out[inside].copy_from_slice(&from[..count]);
        });
    }

    /// The reverse of `gather`: adds columns to the pixels that they came from.
    fn scatter(&self, columns: &[f32], rows: &Range<usize>, picture: &mut [f32]) {
        let [_, width] = self.output();
        let ([height, in_width], step) = (self.input, self.stride[1]);
        let mut at = 0;
        self.walk(rows, |c, kx, _, y| {
            let column = &columns[at..at + width];
            at += width;
            let inside = self.inside(kx);
            let Some(y) = y.filter(|_| !inside.is_empty()) else { return };
            let row = &mut picture[(c * height + y) * in_width..][..in_width];
            let first = inside.start * step + kx - self.pad[1];
            row[first..].iter_mut().step_by(step).zip(&column[inside]).for_each(|(p, v)| *p += v);
        });
    }
}

/// What follows the sums of a convolution, worked out while they are in cache.
#[derive(Clone, Copy, Default)]
pub struct After<'a> {
    /// Per output channel.
    pub bias: Option<&'a [f32]>,
    /// As many values as the result has, added.
    pub add: Option<&'a [f32]>,
    /// Negative values become zero.
    pub relu: bool,
}

thread_local! {
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `x [b, c, h, w]` by `weight [o, c, kh, kw]` to `[b, o, oh, ow]`.
pub fn forward(x: &[f32], weight: &[f32], size: Size, after: After) -> Vec<f32> {
    let ([height, width], k, area) = (size.output(), size.column(), size.out_area());
    let block = size.block();
    let blocks = height.div_ceil(block.max(1));
    let mut out = vec![0.0; size.b * size.o * area];
    let shared = Shared::new(&mut out);
    threads::for_each(size.b * blocks, |task| {
        let (picture, rows) = (task / blocks, task % blocks * block);
        let rows = rows..(rows + block).min(height);
        let (n, start) = (rows.len() * width, rows.start * width);
        let pixels = &x[picture * size.c * size.in_area()..][..size.c * size.in_area()];
        let first = picture * size.o * area + start;
        let multiply = |columns: View| {
            // SAFETY: this task alone writes these columns of this picture's rows, which `out` holds.
            unsafe {
                raw(shared.pointer(first), area, false, (size.o, n, k), View::rows(weight, k), columns, 1.0)
            };
        };
        if size.is_pointwise() {
            multiply(View::rows(&pixels[start..], area));
        } else {
            // Taken out, not borrowed: while the product waits for its threads, this one may begin another task.
            let [mut columns, mut split] = SCRATCH.take();
            size.gather(pixels, &rows, &mut columns, &mut split);
            multiply(View::rows(&columns, n));
            SCRATCH.set([columns, split]);
        }
        for channel in 0..size.o {
            let at = first + channel * area;
            // SAFETY: as above.
            let values = unsafe { shared.range(at, n) };
            if let Some(bias) = after.bias {
                values.iter_mut().for_each(|v| *v += bias[channel]);
            }
            if let Some(add) = after.add {
                values.iter_mut().zip(&add[at..at + n]).for_each(|(v, a)| *v += a);
            }
            if after.relu {
                values.iter_mut().for_each(|v| *v = v.max(0.0));
            }
        }
    });
    out
}

/// The gradient of the input, `[b, c, h, w]`, from that of the result; also the transposed convolution.
pub fn backward_input(grad: &[f32], weight: &[f32], size: Size) -> Vec<f32> {
    let ([height, width], k, area) = (size.output(), size.column(), size.out_area());
    let (block, in_size) = (size.block(), size.c * size.in_area());
    let mut out = vec![0.0; size.b * in_size];
    let shared = Shared::new(&mut out);
    threads::for_each(size.b, |picture| {
        // SAFETY: each task has a picture of its own.
        let pixels = unsafe { shared.range(picture * in_size, in_size) };
        let mut columns = Vec::new();
        for start in (0..height).step_by(block) {
            let rows = start..(start + block).min(height);
            let n = rows.len() * width;
            columns.resize(k * n, 0.0);
            let grad = View::rows(&grad[picture * size.o * area + start * width..], area);
            matmul_over(&mut columns, n, (k, n, size.o), View::rows(weight, k).t(), grad, 1.0);
            size.scatter(&columns[..k * n], &rows, pixels);
        }
    });
    out
}

/// The gradient of the kernel, `[o, c, kh, kw]`. Pictures one after another: the same sums at any thread count.
pub fn backward_weight(grad: &[f32], x: &[f32], size: Size) -> Vec<f32> {
    let ([height, width], k, area) = (size.output(), size.column(), size.out_area());
    let block = size.block();
    let mut out = vec![0.0; size.o * k];
    let (mut columns, mut split) = (Vec::new(), Vec::new());
    for picture in 0..size.b {
        let pixels = &x[picture * size.c * size.in_area()..][..size.c * size.in_area()];
        for start in (0..height).step_by(block) {
            let rows = start..(start + block).min(height);
            let n = rows.len() * width;
            size.gather(pixels, &rows, &mut columns, &mut split);
            let grad = View::rows(&grad[picture * size.o * area + start * width..], area);
            matmul_add(&mut out, k, (size.o, k, n), grad, View::rows(&columns, n).t(), 1.0);
        }
    }
    out
}

dispatch!(fn plane_sum(values: &[f32]) -> f32 = sum);

fn channel_sums(grad: &[f32], b: usize, channels: usize) -> Vec<f32> {
    let area = grad.len() / (b * channels).max(1);
    let one =
        |c: usize| -> f32 { (0..b).map(|i| plane_sum(&grad[(i * channels + c) * area..][..area])).sum() };
    (0..channels).map(one).collect()
}

/// A convolution in Candle's graph. Shapes were checked by the caller.
pub fn conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, size: Size) -> Result<Tensor> {
    let [height, width] = size.output();
    let shape = (size.b, size.o, height, width);
    let values = {
        let bias = bias.map(Values::of).transpose()?;
        let after = After { bias: bias.as_deref(), ..After::default() };
        forward(&Values::of(x)?, &Values::of(weight)?, size, after)
    };
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let grad = Values::of(grad)?;
        let wanted = |i: usize| args.get(i).is_some_and(|arg| arg.track_op());
        let of = |i: usize, values: Vec<f32>| tensor(values, args[i].shape()).map(Some);
        let mut grads = vec![None; args.len()];
        if wanted(0) {
            grads[0] = of(0, backward_input(&grad, &Values::of(args[1])?, size))?;
        }
        if wanted(1) {
            grads[1] = of(1, backward_weight(&grad, &Values::of(args[0])?, size))?;
        }
        if wanted(2) {
            grads[2] = of(2, channel_sums(&grad, size.b, size.o))?;
        }
        Ok(grads)
    };
    let mut args = vec![x, weight];
    args.extend(bias);
    node("convolution", &args, values, shape, backward)
}

/// A transposed convolution in Candle's graph: `size` is that of the convolution whose input gradient it is, so
/// `x [b, o, oh, ow]` and `weight [o, c, kh, kw]` give `[b, c, h, w]`.
pub fn conv_transposed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, size: Size) -> Result<Tensor> {
    let [height, width] = size.input;
    let mut values = backward_input(&Values::of(x)?, &Values::of(weight)?, size);
    if let Some(bias) = bias {
        let bias = Values::of(bias)?;
        for (i, plane) in values.chunks_exact_mut(size.in_area()).enumerate() {
            plane.iter_mut().for_each(|v| *v += bias[i % size.c]);
        }
    }
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let grad = Values::of(grad)?;
        let wanted = |i: usize| args.get(i).is_some_and(|arg| arg.track_op());
        let of = |i: usize, values: Vec<f32>| tensor(values, args[i].shape()).map(Some);
        let mut grads = vec![None; args.len()];
        if wanted(0) {
            grads[0] = of(0, forward(&grad, &Values::of(args[1])?, size, After::default()))?;
        }
        if wanted(1) {
            grads[1] = of(1, backward_weight(&Values::of(args[0])?, &grad, size))?;
        }
        if wanted(2) {
            grads[2] = of(2, channel_sums(&grad, size.b, size.c))?;
        }
        Ok(grads)
    };
    let mut args = vec![x, weight];
    args.extend(bias);
    node("transposed convolution", &args, values, (size.b, size.c, height, width), backward)
}

/// The greatest value under each window; windows reach over the edge by `pad`, where there is nothing. Padding is less
/// than the kernel (the caller checked).
pub fn max_pool(x: &Tensor, size: Size) -> Result<Tensor> {
    let ([height, width], [in_height, in_width]) = (size.output(), size.input);
    let (planes, area) = (size.b * size.c, size.out_area());
    let x_values = Values::of(x)?;
    let x_values: &[f32] = &x_values;
    let span = |axis: usize, at: usize, most: usize| {
        let from = at * size.stride[axis];
        from.saturating_sub(size.pad[axis])
            ..(from + size.kernel[axis]).saturating_sub(size.pad[axis]).min(most)
    };
    let mut values = vec![0.0; planes * area];
    if !tracked(&[x]) {
        let to = Shared::new(&mut values);
        threads::for_each(planes, |i| {
            let plane = &x_values[i * size.in_area()..][..size.in_area()];
            // SAFETY: each task has a plane of its own.
            let out = unsafe { to.range(i * area, area) };
            let mut highest = vec![0.0; in_width];
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                highest.fill(f32::NEG_INFINITY);
                for y in span(0, row, in_height) {
                    let values = &plane[y * in_width..][..in_width];
                    highest.iter_mut().zip(values).for_each(|(h, v)| *h = h.max(*v));
                }
                for (column, out) in out.iter_mut().enumerate() {
                    let window = &highest[span(1, column, in_width)];
                    *out = window.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
                }
            }
        });
        return tensor(values, (size.b, size.c, height, width));
    }
    let mut places = vec![0u32; planes * area];
    let (values_to, places_to) = (Shared::new(&mut values), Shared::new(&mut places));
    threads::for_each(planes, |i| {
        let plane = &x_values[i * size.in_area()..][..size.in_area()];
        // SAFETY: each task has a plane of its own in both.
        let (out, places) = unsafe { (values_to.range(i * area, area), places_to.range(i * area, area)) };
        for row in 0..height {
            for column in 0..width {
                let (mut best, mut place) = (f32::NEG_INFINITY, 0);
                for y in span(0, row, in_height) {
                    for x in span(1, column, in_width) {
                        let value = plane[y * in_width + x];
                        if value > best {
                            (best, place) = (value, y * in_width + x);
                        }
                    }
                }
                out[row * width + column] = best;
                places[row * width + column] = place as u32;
            }
        }
    });
    let in_area = size.in_area();
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let mut out = vec![0.0; planes * in_area];
        for (i, (g, place)) in Values::of(grad)?.iter().zip(&places).enumerate() {
            out[i / area * in_area + *place as usize] += g;
        }
        Ok(vec![Some(tensor(out, args[0].shape())?)])
    };
    node("max pool", &[x], values, (size.b, size.c, height, width), backward)
}
