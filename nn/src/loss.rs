//! Losses that every model shares.

use crate::{Error, Result, kernels};
use candle_core::{DType, Tensor};

/// Mean cross-entropy of `logits [.., classes]` against `targets [..]` (u32), over the targets that are not `ignore`.
/// With nothing left to count the loss is zero.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore: Option<u32>) -> Result<Tensor> {
    let lead = &logits.dims()[..logits.rank().saturating_sub(1)];
    if targets.dims() != lead || targets.dtype() != DType::U32 {
        return Err(Error::shape("targets of cross-entropy (u32)", format!("{lead:?}"), targets.dims()));
    }
    kernels::loss::cross_entropy(logits, targets, ignore)
}
