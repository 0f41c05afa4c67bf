//! Cross-entropy in two passes over the logits, keeping only the log-sum of each row.

use super::data::{Values, tensor};
use super::node::node;
use super::simd::{self, dispatch, exp};
use crate::{Error, Result};
use candle_core::Tensor;

/// Mean cross-entropy of `logits [.., classes]` over the targets that are not `ignore`. Shapes were checked by the caller.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore: Option<u32>) -> Result<Tensor> {
    let classes = logits.dims().last().copied().unwrap_or(1).max(1);
    let targets = targets.flatten_all()?.to_vec1::<u32>()?;
    let counts = |target: u32| Some(target) != ignore;
    if let Some(bad) = targets.iter().find(|t| counts(**t) && **t as usize >= classes) {
        return Err(Error::invalid(format!("cross-entropy: expected targets below {classes}, got {bad}")));
    }
    let weight = 1.0 / targets.iter().filter(|t| counts(**t)).count().max(1) as f32;
    let mut log_sums = Vec::with_capacity(targets.len());
    let mut loss = 0f64;
    for (row, target) in Values::of(logits)?.chunks_exact(classes).zip(&targets) {
        let log_sum = log_sum_exp(row);
        log_sums.push(log_sum);
        if counts(*target) {
            loss += f64::from(log_sum - row[*target as usize]);
        }
    }
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let scale = weight * Values::of(grad)?.first().copied().unwrap_or(0.0);
        let mut d = Values::of(args[0])?.to_vec();
        for ((row, target), log_sum) in d.chunks_exact_mut(classes).zip(&targets).zip(&log_sums) {
            if Some(*target) == ignore {
                row.fill(0.0);
            } else {
                probabilities(row, *log_sum, scale);
                row[*target as usize] -= scale;
            }
        }
        Ok(vec![Some(tensor(d, args[0].shape())?)])
    };
    node("cross-entropy", &[logits], vec![(loss * f64::from(weight)) as f32], (), backward)
}

dispatch!(fn log_sum_exp(row: &[f32]) -> f32 = log_sum_exp_body);
#[inline(always)]
fn log_sum_exp_body<const FMA: bool>(row: &[f32]) -> f32 {
    let max = simd::max(row);
    max + simd::reduce(row, |lane, v| lane + exp::<FMA>(v - max)).ln()
}

dispatch!(fn probabilities(row: &mut [f32], log_sum: f32, scale: f32) = probabilities_body);
#[inline(always)]
fn probabilities_body<const FMA: bool>(row: &mut [f32], log_sum: f32, scale: f32) {
    row.iter_mut().for_each(|v| *v = scale * exp::<FMA>(*v - log_sum));
}
