//! One AdamW step of one parameter in a single pass.

use crate::Result;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use std::sync::Mutex;

/// The numbers of one step, the same for every element of a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Scale of the gradient, from clipping.
    pub clip: f32,
    /// Learning rate over the bias correction of the first moment.
    pub step_size: f32,
    /// Bias correction of the second moment.
    pub second_scale: f32,
    /// One minus learning rate times decay.
    pub keep: f32,
}

/// The sum of squares, in a fixed order: sixteen float32 lanes per block of 4096, blocks in float64.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let block = |values: &[f32]| {
        let mut lanes = [0f32; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += v * v;
            }
        }
        f64::from(lanes.iter().chain(&rest.iter().map(|v| v * v).collect::<Vec<_>>()).sum::<f32>())
    };
    values.chunks(4096).map(block).sum()
}

/// Updates `parameter` (contiguous) and its moments in place.
pub fn step(
    parameter: &Tensor,
    grad: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    update: Update,
    _threads: usize,
) -> Result<()> {
    let op = Op { update, grad, moments: Mutex::new((first, second)) };
    Ok(parameter.inplace_op1(&op)?)
}

struct Op<'a> {
    update: Update,
    grad: &'a [f32],
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for Op<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (Some((start, end)), CpuStorage::F32(values)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("adamw: expected a contiguous float32 parameter");
        };
        let mut moments = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (first, second) = &mut *moments;
        let u = self.update;
        let rows = values[start..end].iter_mut().zip(self.grad).zip(first.iter_mut()).zip(second.iter_mut());
        for (((w, g), m), v) in rows {
            let g = g * u.clip;
            *m += (1.0 - u.beta1) * (g - *m);
            *v += (1.0 - u.beta2) * (g * g - *v);
            *w = *w * u.keep - u.step_size * *m / ((*v * u.second_scale).sqrt() + u.eps);
        }
        Ok(())
    }
}
