//! The hot operations composed of Candle's own: slow, short and differentiable, in the precision of their arguments. The fused
//! kernels are tested against these in float64.

use crate::activation::Activation;
use crate::attention::Mask;
use crate::rope::{RopeAngles, RopeStyle};
use crate::{Result, norm::NormConfig};
use candle_core::{D, DType, Device, Tensor};

/// `x [.., in] · weightᵀ + bias`, weight `[out, in]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let y = x.flatten_to(x.rank().saturating_sub(2))?.matmul(&weight.t()?)?;
    if let Some(last) = dims.last_mut() {
        *last = weight.dim(0)?;
    }
    let y = y.reshape(dims)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

/// Layer or RMS normalisation over the last dimension.
pub fn norm(
    x: &Tensor,
    config: NormConfig,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let mean_of = |t: &Tensor| -> Result<Tensor> { Ok(t.mean_keepdim(D::Minus1)?) };
    let (x, eps, one_plus) = match config {
        NormConfig::LayerNorm { eps, .. } => (x.broadcast_sub(&mean_of(x)?)?, eps, false),
        NormConfig::RmsNorm { eps, one_plus } => (x.clone(), eps, one_plus),
    };
    let scale = (mean_of(&x.sqr()?)? + f64::from(eps))?.sqrt()?.recip()?;
    let mut y = x.broadcast_mul(&scale)?;
    if let Some(weight) = weight {
        y = y.broadcast_mul(&if one_plus { (weight + 1.0)? } else { weight.clone() })?;
    }
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

/// An activation, element by element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let sigmoid = |t: Tensor| -> Result<Tensor> { Ok((t.neg()?.exp()? + 1.0)?.recip()?) };
    Ok(match activation {
        Activation::Gelu => (x * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?)?.affine(0.5, 0.0)?,
        Activation::GeluTanh => {
            let inner =
                ((x.sqr()? * x)? * 0.044715)?.add(x)?.affine((2.0 / std::f64::consts::PI).sqrt(), 0.0)?;
            (x * (inner.tanh()? + 1.0)?)?.affine(0.5, 0.0)?
        }
        Activation::Relu => x.relu()?,
        Activation::Silu => (x * sigmoid(x.clone())?)?,
        Activation::QuickGelu => (x * sigmoid((x * 1.702)?)?)?,
    })
}

/// Rows of `table [vocabulary, width]` by `ids [..]` (u32): `[.., width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let mut dims = ids.dims().to_vec();
    dims.push(table.dim(1)?);
    Ok(table.index_select(&ids.flatten_all()?, 0)?.reshape(dims)?)
}

/// Rotary position embedding of `x [b, h, t, d]`.
pub fn rope(x: &Tensor, angles: &RopeAngles) -> Result<Tensor> {
    let (b, h, t, d) = x.dims4()?;
    let half = angles.half();
    let place = |t: Tensor| -> Result<Tensor> { Ok(t.unsqueeze(1)?.to_dtype(x.dtype())?) };
    let (cos, sin) = (place(angles.cos()?)?, place(angles.sin()?)?); // [b|1, 1, t, half]
    let turned = x.narrow(3, 0, 2 * half)?;
    let (first, second) = match angles.style() {
        RopeStyle::HalfSplit => (turned.narrow(3, 0, half)?, turned.narrow(3, half, half)?),
        RopeStyle::Interleaved => {
            let pairs = turned.reshape((b, h, t, half, 2))?;
            (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
        }
    };
    let a = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let b_ = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let turned = match angles.style() {
        RopeStyle::HalfSplit => Tensor::cat(&[a, b_], 3)?,
        RopeStyle::Interleaved => Tensor::stack(&[a, b_], 4)?.reshape((b, h, t, 2 * half))?,
    };
    Ok(if 2 * half == d {
        turned
    } else {
        Tensor::cat(&[&turned, &x.narrow(3, 2 * half, d - 2 * half)?], 3)?
    })
}

/// Scaled dot-product attention: `q [b, h, t, d]`, `k [b, hk, s, d]`, `v [b, hk, s, dv]` to `[b, h, t, dv]`.
/// Query head `i` reads key head `i / (h / hk)`. A row that may attend to nothing gives zeros.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f32,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    attention_biased(q, k, v, mask, scale, soft_cap, None)
}

/// The same with `bias [h, t + s - 1]` added to the scores by distance before the mask: the entry `s - 1 + i - j` to that of
/// query `i` with key `j`.
pub fn attention_biased(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f32,
    soft_cap: Option<f32>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (b, h, t, d) = q.dims4()?;
    let (_, hk, s, dv) = v.dims4()?;
    let grouped = q.contiguous()?.reshape((b, hk, h / hk * t, d))?;
    let mut scores =
        (grouped.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(scale))?.reshape((b, h, t, s))?;
    if let Some(cap) = soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    if let Some(bias) = bias {
        let entries: Vec<u32> = (0..t * s).map(|at| (s - 1 + at / s - at % s) as u32).collect();
        let entries = Tensor::new(entries, &Device::Cpu)?;
        scores = scores.broadcast_add(&bias.index_select(&entries, 1)?.reshape((h, t, s))?)?;
    }
    let allowed =
        Tensor::from_vec(mask.dense(b, t, s)?, (b, 1, t, s), &Device::Cpu)?.broadcast_as((b, h, t, s))?;
    let low = (scores.zeros_like()? - 1e30)?;
    let scores = allowed.where_cond(&scores, &low)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = (weights * allowed.to_dtype(q.dtype())?)?;
    let weights = weights.broadcast_div(&(weights.sum_keepdim(D::Minus1)? + 1e-30)?)?;
    let y = weights.reshape((b, hk, h / hk * t, s))?.matmul(&v.contiguous()?)?;
    Ok(y.reshape((b, h, t, dv))?)
}

/// Mean cross-entropy over the targets that are not `ignore`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore: Option<u32>) -> Result<Tensor> {
    let logits = logits.flatten_to(logits.rank().saturating_sub(2))?;
    let targets = targets.flatten_all()?;
    let counted: Vec<f32> =
        targets.to_vec1::<u32>()?.iter().map(|t| f32::from(u8::from(Some(*t) != ignore))).collect();
    let count = counted.iter().sum::<f32>().max(1.0);
    let counted = Tensor::from_vec(counted, targets.shape(), &Device::Cpu)?.to_dtype(logits.dtype())?;
    // An ignored target may lie outside the classes: class 0 stands in, weighted by zero.
    let picked = (targets.to_dtype(logits.dtype())? * &counted)?.to_dtype(DType::U32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let losses = (log_sum - shifted.gather(&picked.unsqueeze(1)?, 1)?)?.squeeze(1)?;
    Ok(((losses * counted)?.sum_all()? / f64::from(count))?)
}
