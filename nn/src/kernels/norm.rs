//! Layer and RMS normalisation, each direction in one pass over the rows.

use super::data::{Values, tensor};
use super::node::node;
use super::simd::{self, dispatch, fma};
use crate::{Result, norm::NormConfig};
use candle_core::Tensor;

/// What a row is normalised by.
#[derive(Clone, Copy)]
struct Kind {
    /// Whether the mean is removed.
    centred: bool,
    eps: f32,
    /// Added to the weight.
    plus: f32,
}

/// Rows whose share of the gradients of weight and bias is summed by itself.
const BLOCK: usize = 64;

impl From<NormConfig> for Kind {
    fn from(config: NormConfig) -> Self {
        match config {
            NormConfig::LayerNorm { eps, .. } => Self { centred: true, eps, plus: 0.0 },
            NormConfig::RmsNorm { eps, one_plus } => {
                Self { centred: false, eps, plus: f32::from(u8::from(one_plus)) }
            }
        }
    }
}

/// A norm that asks for no gradient, for rows that are normalised as something else reads them.
pub struct Inside<'a> {
    kind: Kind,
    scale: Vec<f32>,
    bias: Option<Values<'a>>,
}

impl<'a> Inside<'a> {
    /// Of rows of `width` values.
    pub fn new(
        config: NormConfig,
        width: usize,
        weight: Option<&Tensor>,
        bias: Option<&'a Tensor>,
    ) -> Result<Self> {
        let kind = Kind::from(config);
        Ok(Self { kind, scale: scale_row(kind, weight, width)?, bias: bias.map(Values::of).transpose()? })
    }

    /// Normalises the rows of `x`.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let mut stats = vec![(0.0, 0.0); x.len() / self.scale.len().max(1)];
        forward(x, &self.scale, self.bias.as_deref().unwrap_or(&[]), &mut out, &mut stats, self.kind);
        out
    }
}

/// Normalises `x [.., width]`. Shapes were checked by the caller.
pub fn norm(
    x: &Tensor,
    config: NormConfig,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let kind = Kind::from(config);
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    // Scale and bias as rows; without a weight the scale is one.
    let scale_row = scale_row(kind, weight, width)?;
    let mut out = vec![0.0; x.elem_count()];
    let mut stats = vec![(0.0, 0.0); x.elem_count() / width];
    {
        let bias = bias.map(Values::of).transpose()?;
        forward(&Values::of(x)?, &scale_row, bias.as_deref().unwrap_or(&[]), &mut out, &mut stats, kind);
    }
    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let x = args[0];
        let scale_row = self::scale_row(kind, args.get(1).copied(), width)?;
        let mut dx = vec![0.0; x.elem_count()];
        let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
        backward(&Values::of(x)?, &Values::of(grad)?, &scale_row, &stats, &mut dx, &mut dw, &mut db, kind);
        let rows = [(dx, x.shape().clone()), (dw, width.into()), (db, width.into())];
        let kept = |(arg, (values, shape)): (&&Tensor, _)| match arg.track_op() {
            true => tensor(values, shape).map(Some),
            false => Ok(None),
        };
        args.iter().zip(rows).map(kept).collect()
    };
    match (weight, bias) {
        (Some(weight), Some(bias)) => node("norm", &[x, weight, bias], out, x.shape(), backward),
        (Some(weight), None) => node("norm", &[x, weight], out, x.shape(), backward),
        _ => node("norm", &[x], out, x.shape(), backward),
    }
}

fn scale_row(kind: Kind, weight: Option<&Tensor>, width: usize) -> Result<Vec<f32>> {
    Ok(match weight {
        Some(weight) => Values::of(weight)?.iter().map(|w| w + kind.plus).collect(),
        None => vec![1.0; width],
    })
}

dispatch!(
    /// Writes `(x - mean) / deviation * scale + bias`, and mean and inverse deviation of each row.
    fn forward(x: &[f32], scale: &[f32], bias: &[f32], out: &mut [f32], stats: &mut [(f32, f32)], kind: Kind) = forward_body
);
#[inline(always)]
fn forward_body<const FMA: bool>(
    x: &[f32],
    scale: &[f32],
    bias: &[f32],
    out: &mut [f32],
    stats: &mut [(f32, f32)],
    kind: Kind,
) {
    let width = scale.len();
    for ((x, out), stat) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(stats) {
        let mean = if kind.centred { simd::sum::<FMA>(x) / width as f32 } else { 0.0 };
        let squares = simd::reduce(x, |lane, v| fma::<FMA>(v - mean, v - mean, lane));
        let inverse = 1.0 / (squares / width as f32 + kind.eps).sqrt();
        *stat = (mean, inverse);
        if bias.is_empty() {
            for ((o, x), s) in out.iter_mut().zip(x).zip(scale) {
                *o = (x - mean) * inverse * s;
            }
        } else {
            for (((o, x), s), b) in out.iter_mut().zip(x).zip(scale).zip(bias) {
                *o = fma::<FMA>((x - mean) * inverse, *s, *b);
            }
        }
    }
}

dispatch!(
    /// Gradients of input, scale and bias: with `y` the normalised row and `g = grad * scale`,
    /// `dx = (g - mean(g) - y mean(g y)) / deviation` (without `mean(g)` if the mean is not removed).
    fn backward(
        x: &[f32],
        grad: &[f32],
        scale: &[f32],
        stats: &[(f32, f32)],
        dx: &mut [f32],
        dw: &mut [f32],
        db: &mut [f32],
        kind: Kind,
    ) = backward_body
);
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_body<const FMA: bool>(
    x: &[f32],
    grad: &[f32],
    scale: &[f32],
    stats: &[(f32, f32)],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
    kind: Kind,
) {
    let width = scale.len();
    // The sums over a block of rows by themselves: one sum over all of them would lose digits.
    let mut sums = vec![0.0; 2 * width];
    let (dw_part, db_part) = sums.split_at_mut(width);
    let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(stats);
    for (row, (((x, grad), dx), &(mean, inverse))) in rows.enumerate() {
        if row % BLOCK == 0 {
            flush(dw_part, dw);
            flush(db_part, db);
        }
        // First the scaled gradient goes to dx, with its two sums; then dx is finished in place.
        for (((((dx, g), s), x), dw), db) in
            dx.iter_mut().zip(grad).zip(scale).zip(x).zip(dw_part.iter_mut()).zip(db_part.iter_mut())
        {
            *dx = g * s;
            *dw = fma::<FMA>(*g, (x - mean) * inverse, *dw);
            *db += g;
        }
        let g_mean = if kind.centred { simd::sum::<FMA>(dx) / width as f32 } else { 0.0 };
        // Σ g (x - mean) = Σ g x - mean Σ g
        let along = (simd::dot::<FMA>(dx, x) - mean * g_mean * width as f32) * inverse / width as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = (*dx - fma::<FMA>((x - mean) * inverse, along, g_mean)) * inverse;
        }
    }
    flush(dw_part, dw);
    flush(db_part, db);
}

/// Adds `part` to `sums` and begins it anew.
#[inline(always)]
fn flush(part: &mut [f32], sums: &mut [f32]) {
    sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += std::mem::take(part));
}
