//! Softmax attention, forward and backward, head by head: only one block of scores exists at a time. The backward pass works
//! the scores out again from the log-sum of each row (Dao et al., 2022).

use super::attention_lanes::{Head, LANES, Lanes, abreast, lay_keys, lay_values, softmax};
use super::data::{Shared, Values, tensor};
use super::linear::column_sums;
use super::matmul::{View, matmul_over, raw};
use super::node::{node, tracked};
use super::simd::{self, dispatch, exp};
use crate::attention::{Mask, Visible};
use crate::{Result, threads};
use candle_core::Tensor;
use std::ops::Range;

/// Query rows per block: under a causal mask, keys after the block are never touched.
const ROWS: usize = 64;

/// Sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Batch elements.
    pub b: usize,
    /// Query heads.
    pub h: usize,
    /// Key and value heads.
    pub hk: usize,
    /// Queries.
    pub t: usize,
    /// Keys.
    pub s: usize,
    /// Elements of a query or key head.
    pub d: usize,
    /// Elements of a value head.
    pub dv: usize,
}

/// Where the heads of an argument lie: an offset, and the distance of batch elements, heads and rows.
#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    batch: usize,
    head: usize,
    row: usize,
}

impl Place {
    fn packed(rows: usize, heads: usize, d: usize) -> Self {
        Self { offset: 0, batch: rows * heads * d, head: d, row: heads * d }
    }

    /// The place of `[b, rows, heads * d]` (rank 3) or of `[b, heads, rows, d]` (rank 4, any strides but the last).
    fn of(tensor: &Tensor, d: usize) -> Self {
        let layout = tensor.layout();
        let offset = layout.start_offset();
        match *layout.stride() {
            [batch, row, _] => Self { offset, batch, head: d, row },
            [batch, head, row, _] => Self { offset, batch, head, row },
            _ => Self { offset, batch: 0, head: 0, row: 0 },
        }
    }

    fn start(&self, batch: usize, head: usize, row: usize) -> usize {
        self.offset + batch * self.batch + head * self.head + row * self.row
    }

    /// The values from the first row of a head on; none of no rows.
    fn rest<'a>(&self, data: &'a [f32], batch: usize, head: usize) -> &'a [f32] {
        data.get(self.start(batch, head, 0)..).unwrap_or(&[])
    }

    fn view<'a>(&self, data: &'a [f32], batch: usize, head: usize, row: usize) -> View<'a> {
        View::rows(&data[self.start(batch, head, row)..], self.row)
    }
}

#[derive(Clone)]
struct Plan {
    size: Size,
    visible: Visible,
    scale: f32,
    soft_cap: Option<f32>,
    /// Rank 3 arguments: gradients come back in that form.
    packed: bool,
}

/// What becomes of a scaled score before the mask.
#[derive(Clone, Copy)]
pub enum After<'a> {
    /// Nothing.
    Nothing,
    /// It is bounded by `cap · tanh(score / cap)`.
    Cap(f32),
    /// `bias [h, t + s - 1]` is added by distance: entry `s - 1 + i - j` for query `i` and key `j`.
    Bias(&'a Tensor),
}

/// Attention over packed (`[b, t, h * d]`) or split (`[b, h, t, d]`) arguments, to `[b, t, h * dv]` or `[b, t, h, dv]`.
/// Shapes were checked by the caller.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    size: Size,
    mask: &Mask,
    scale: f32,
    after: After,
) -> Result<Tensor> {
    let Size { b, h, t, s, dv, .. } = size;
    let packed = q.rank() == 3;
    let mut args = vec![q, k, v];
    let mut soft_cap = None;
    match after {
        After::Nothing => {}
        After::Cap(cap) => soft_cap = Some(cap),
        After::Bias(bias) => args.push(bias),
    }
    let plan = Plan { size, visible: mask.visible(b, t, s)?, scale, soft_cap, packed };
    let shape = if packed { vec![b, t, h * dv] } else { vec![b, t, h, dv] };
    let mut out = vec![0.0; b * t * h * dv];
    let mut log_sums = vec![0.0; b * h * t];
    plan.forward(&Arguments::of(&args, size)?, &mut out, &mut log_sums);
    if !tracked(&args) {
        return tensor(out, shape);
    }
    let backward = move |args: &[&Tensor], result: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let all = Arguments::of(args, size)?;
        let bias = args.get(3).filter(|bias| bias.track_op());
        let grads = plan.backward(&all, &Values::of(result)?, &Values::of(grad)?, &log_sums, bias.is_some());
        let split = |values: Vec<f32>, arg: &Tensor, rows: usize| -> Result<Option<Tensor>> {
            if !arg.track_op() {
                return Ok(None);
            }
            if plan.packed {
                return Ok(Some(tensor(values, arg.shape())?));
            }
            let (b, heads, _, d) = arg.dims4()?;
            Ok(Some(tensor(swap(&values, (b, rows, heads, d)), arg.shape())?))
        };
        let [dq, dk, dv, d_bias] = grads;
        let mut grads = vec![split(dq, args[0], t)?, split(dk, args[1], s)?, split(dv, args[2], s)?];
        if args.len() > 3 {
            grads.push(bias.map(|bias| tensor(d_bias, bias.shape())).transpose()?);
        }
        Ok(grads)
    };
    node("attention", &args, out, shape, backward)
}

/// `[b, r, h, d]` to `[b, h, r, d]`, row-major.
pub fn swap(values: &[f32], (b, r, h, d): (usize, usize, usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for batch in 0..b {
        for head in 0..h {
            for row in 0..r {
                out.extend_from_slice(&values[((batch * r + row) * h + head) * d..][..d]);
            }
        }
    }
    out
}

/// An argument's values and where its heads lie among them.
struct Argument<'a>(Values<'a>, Place);

impl<'a> Argument<'a> {
    fn of(tensor: &'a Tensor, d: usize) -> Result<Self> {
        let place = Place::of(tensor, d);
        if tensor.layout().stride().last() == Some(&1) {
            return Ok(Self(Values::storage_of(tensor)?, place));
        }
        let values = Values::of(tensor)?;
        let place = match *tensor.dims() {
            [_, rows, width] => Place::packed(rows, width / d.max(1), d),
            [_, heads, rows, d] => Place { offset: 0, batch: heads * rows * d, head: rows * d, row: d },
            _ => place,
        };
        Ok(Self(values, place))
    }
}

/// The arguments of one attention.
struct Arguments<'a> {
    q: Argument<'a>,
    k: Argument<'a>,
    v: Argument<'a>,
    bias: Option<Bias<'a>>,
}

impl<'a> Arguments<'a> {
    /// Queries, keys, values and, if there is a fourth, the bias.
    fn of(args: &[&'a Tensor], size: Size) -> Result<Self> {
        let Size { t, s, d, dv, .. } = size;
        let bias = |bias: &&'a Tensor| Ok::<_, crate::Error>(Bias { values: Values::of(bias)?, t, s });
        Ok(Self {
            q: Argument::of(args[0], d)?,
            k: Argument::of(args[1], d)?,
            v: Argument::of(args[2], dv)?,
            bias: args.get(3).map(bias).transpose()?,
        })
    }
}

/// What is added to scores by distance.
struct Bias<'a> {
    values: Values<'a>,
    t: usize,
    s: usize,
}

/// Distances of `t` queries to `s` keys.
pub fn distances(t: usize, s: usize) -> usize {
    (t + s).saturating_sub(1)
}

impl Bias<'_> {
    /// The entries of the query `row` for `keys`, the last key's first.
    fn entries(s: usize, row: usize, keys: &Range<usize>) -> Range<usize> {
        row + s - keys.end..row + s - keys.start
    }

    fn of(&self, head: usize) -> &[f32] {
        let span = distances(self.t, self.s);
        &self.values[head * span..][..span]
    }

    /// Adds to the scores of the queries `rows`, side by side, with `keys`.
    fn add_to_lanes(&self, head: usize, rows: &Range<usize>, keys: &Range<usize>, scores: &mut [Lanes]) {
        let bias = self.of(head);
        for (key, scores) in keys.clone().zip(scores) {
            let bias = &bias[rows.start + self.s - 1 - key..][..rows.len()];
            scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
    }

    /// Adds to the scores of the query `row` with `keys`.
    fn add(&self, head: usize, row: usize, keys: &Range<usize>, scores: &mut [f32]) {
        let bias = &self.of(head)[Self::entries(self.s, row, keys)];
        scores.iter_mut().zip(bias.iter().rev()).for_each(|(score, bias)| *score += bias);
    }
}

impl Plan {
    fn forward(&self, all: &Arguments, out: &mut [f32], log_sums: &mut [f32]) {
        let Arguments { q, k, v, bias } = all;
        let Size { b, h, hk, t, s, d, dv } = self.size;
        let (mut keys, mut values) = (vec![0.0; b * hk * s * d], vec![0.0; b * hk * s * dv]);
        {
            let (keys, values) = (Shared::new(&mut keys), Shared::new(&mut values));
            threads::for_each(b * hk, |task| {
                let (batch, head) = (task / hk, task % hk);
                // SAFETY: tasks have heads of their own, which outlive the loop.
                let (keys, values) =
                    unsafe { (keys.range(task * s * d, s * d), values.range(task * s * dv, s * dv)) };
                lay_keys(k.1.rest(&k.0, batch, head), k.1.row, d, keys);
                lay_values(v.1.rest(&v.0, batch, head), v.1.row, dv, values);
            });
        }
        let place = Place::packed(t, h, dv);
        let (out, log_sums) = (Shared::new(out), Shared::new(log_sums));
        let blocks = t.div_ceil(ROWS);
        threads::for_each(b * h * blocks, |task| {
            let (head, block) = (task / blocks, task % blocks);
            let (batch, head) = (head / h, head % h);
            let at = batch * hk + head / (h / hk);
            let keys = Head::new(&keys[at * s * d..][..s * d], &values[at * s * dv..][..s * dv], (s, d, dv));
            let together = abreast();
            let mut scores = vec![Vec::new(); together];
            let mut queries = vec![vec![[0f32; LANES]; d]; together];
            let mut sums = vec![vec![[0f32; LANES]; dv]; together];
            let end = t.min((block + 1) * ROWS);
            for first in (block * ROWS..end).step_by(LANES * together) {
                // Sixteens of rows, the last of which may be fewer.
                let parts: Vec<Range<usize>> = (first..end.min(first + LANES * together))
                    .step_by(LANES)
                    .map(|row| row..end.min(row + LANES))
                    .collect();
                for (rows, queries) in parts.iter().zip(&mut queries) {
                    for (lane, row) in rows.clone().enumerate() {
                        let query = &q.0[q.1.start(batch, head, row)..][..d];
                        queries.iter_mut().zip(query).for_each(|(lanes, x)| lanes[lane] = self.scale * x);
                    }
                }
                let (queries, sums) = (&queries[..parts.len()], &mut sums[..parts.len()]);
                let scores = &mut scores[..parts.len()];
                let rows = end.min(first + LANES * together) - first;
                let seen = keys.whole_tiles(&self.visible.keys(first, rows));
                scores.iter_mut().for_each(|scores| scores.resize(seen.len(), [0.0; LANES]));
                keys.scores(queries, &seen, scores);
                let mut found = [([0.0; LANES], [0.0; LANES]); 2];
                for ((rows, scores), (totals, maxima)) in parts.iter().zip(&mut *scores).zip(&mut found) {
                    if let Some(cap) = self.soft_cap {
                        soft_cap(scores.as_flattened_mut(), cap);
                    }
                    if let Some(bias) = bias {
                        bias.add_to_lanes(head, rows, &seen, scores);
                    }
                    self.hide(batch, rows.clone(), &seen, scores);
                    softmax(scores, totals, maxima);
                }
                keys.sums(scores, &seen, sums);
                for ((rows, sums), (totals, maxima)) in parts.iter().zip(&*sums).zip(&found) {
                    for (lane, row) in rows.clone().enumerate() {
                        let (scale, log_sum) = match totals[lane] {
                            0.0 => (0.0, f32::INFINITY),
                            total => (1.0 / total, maxima[lane] + total.ln()),
                        };
                        // SAFETY: tasks and blocks have rows of their own; both outlive the loop.
                        let (to, log_sum_to) = unsafe {
                            let start = place.start(batch, head, row);
                            (out.range(start, dv), log_sums.range((batch * h + head) * t + row, 1))
                        };
                        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = scale * sum[lane]);
                        log_sum_to[0] = log_sum;
                    }
                }
            }
        });
    }

    /// Hides from each of the queries `rows` the scores of `keys` that it may not see.
    fn hide(&self, batch: usize, rows: Range<usize>, keys: &Range<usize>, scores: &mut [Lanes]) {
        if self.visible.is_everything() {
            return;
        }
        let mut seen = vec![0f32; keys.len()];
        for (lane, row) in rows.enumerate() {
            seen.fill(0.0);
            self.visible.hide(batch, row, keys.start, &mut seen);
            for (scores, seen) in scores.iter_mut().zip(&seen) {
                scores[lane] = if *seen == 0.0 { scores[lane] } else { f32::NEG_INFINITY };
            }
        }
    }

    /// Scaled, capped or biased, and masked scores of a block of rows over a range of keys.
    fn scores(
        &self,
        all: &Arguments,
        (batch, head, key_head): (usize, usize, usize),
        rows: Range<usize>,
        keys: &Range<usize>,
        scores: &mut Vec<f32>,
    ) {
        let Arguments { q, k, bias, .. } = all;
        let n = keys.len();
        scores.clear();
        scores.resize(rows.len() * n, 0.0);
        let queries = q.1.view(&q.0, batch, head, rows.start);
        let keys_t = k.1.view(&k.0, batch, key_head, keys.start).t();
        matmul_over(scores, n, (rows.len(), n, self.size.d), queries, keys_t, self.scale);
        if let Some(cap) = self.soft_cap {
            soft_cap(scores, cap);
        }
        for (row, scores) in rows.zip(scores.chunks_exact_mut(n.max(1))) {
            if let Some(bias) = bias {
                bias.add(head, row, keys, scores);
            }
            self.visible.hide(batch, row, keys.start, scores);
        }
    }

    /// Gradients of queries, keys, values and, if asked for, the bias.
    fn backward(
        &self,
        all: &Arguments,
        out: &[f32],
        grad: &[f32],
        log_sums: &[f32],
        of_bias: bool,
    ) -> [Vec<f32>; 4] {
        let Arguments { q, k, v, .. } = all;
        let Size { b, h, hk, t, s, d, dv } = self.size;
        let (mut dq, mut dk, mut d_v) =
            (vec![0.0; b * t * h * d], vec![0.0; b * s * hk * d], vec![0.0; b * s * hk * dv]);
        let (q_place, k_place) = (Place::packed(t, h, d), Place::packed(s, hk, d));
        let (v_place, o_place) = (Place::packed(s, hk, dv), Place::packed(t, h, dv));
        let (dq_to, dk_to, dv_to) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut d_v));
        // Of each batch element by itself: the same sums at any thread count.
        let span = if of_bias { distances(t, s) } else { 0 };
        let mut d_bias = vec![0.0; b * h * span];
        let bias_to = Shared::new(&mut d_bias);
        threads::for_each(b * hk, |task| {
            let (batch, key_head) = (task / hk, task % hk);
            let (mut p, mut ds) = (Vec::new(), Vec::new());
            for head in key_head * (h / hk)..(key_head + 1) * (h / hk) {
                for row in (0..t).step_by(ROWS) {
                    let rows = ROWS.min(t - row);
                    let keys = self.visible.keys(row, rows);
                    let n = keys.len();
                    self.scores(all, (batch, head, key_head), row..row + rows, &keys, &mut p);
                    let grads = o_place.view(grad, batch, head, row);
                    ds.clear();
                    ds.resize(rows * n, 0.0);
                    let values_t = v.1.view(&v.0, batch, key_head, keys.start).t();
                    matmul_over(&mut ds, n, (rows, n, dv), grads, values_t, 1.0);
                    for i in 0..rows {
                        let at = o_place.start(batch, head, row + i);
                        let log_sum = log_sums[(batch * h + head) * t + row + i];
                        let (p, ds) = (&mut p[i * n..][..n], &mut ds[i * n..][..n]);
                        slopes(
                            p,
                            ds,
                            &grad[at..at + dv],
                            &out[at..at + dv],
                            log_sum,
                            self.soft_cap.unwrap_or(0.0),
                        );
                    }
                    if of_bias {
                        // SAFETY: this task alone has this head of this batch element, and `d_bias` outlives the loop.
                        let to = unsafe { bias_to.range((batch * h + head) * span, span) };
                        for (row, ds) in (row..row + rows).zip(ds.chunks_exact(n.max(1))) {
                            let to = &mut to[Bias::entries(s, row, &keys)];
                            to.iter_mut().rev().zip(ds).for_each(|(to, ds)| *to += ds);
                        }
                    }
                    let (p, ds) = (View::rows(&p, n), View::rows(&ds, n));
                    let queries = q.1.view(&q.0, batch, head, row);
                    let keys_of = k.1.view(&k.0, batch, key_head, keys.start);
                    // SAFETY: this task alone writes this key head and its query heads, which the three results hold.
                    unsafe {
                        let to = dv_to.pointer(v_place.start(batch, key_head, keys.start));
                        raw(to, v_place.row, true, (n, dv, rows), p.t(), grads, 1.0);
                        let to = dk_to.pointer(k_place.start(batch, key_head, keys.start));
                        raw(to, k_place.row, true, (n, d, rows), ds.t(), queries, self.scale);
                        let to = dq_to.pointer(q_place.start(batch, head, row));
                        raw(to, q_place.row, false, (rows, d, n), ds, keys_of, self.scale);
                    }
                }
            }
        });
        [dq, dk, d_v, column_sums(&d_bias, h * span)]
    }
}

dispatch!(fn soft_cap(scores: &mut [f32], cap: f32) = soft_cap_body);
#[inline(always)]
fn soft_cap_body<const FMA: bool>(scores: &mut [f32], cap: f32) {
    scores.iter_mut().for_each(|v| *v = cap * simd::tanh::<FMA>(*v / cap));
}

dispatch!(
    /// From scores in `p` and gradients of the probabilities in `ds` to the probabilities and the gradients of the scores:
    /// `p (ds - Σ grad out)`, and through the soft cap if there is one (`cap` not zero).
    fn slopes(p: &mut [f32], ds: &mut [f32], grad: &[f32], out: &[f32], log_sum: f32, cap: f32) = slopes_body
);
#[inline(always)]
fn slopes_body<const FMA: bool>(
    p: &mut [f32],
    ds: &mut [f32],
    grad: &[f32],
    out: &[f32],
    log_sum: f32,
    cap: f32,
) {
    let along = simd::dot::<FMA>(grad, out);
    if cap == 0.0 {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp::<FMA>(*p - log_sum);
            *ds = *p * (*ds - along);
        }
    } else {
        for (p, ds) in p.iter_mut().zip(ds) {
            // A hidden score is minus infinity: its probability is zero, and so must be its slope.
            let ratio = if *p == f32::NEG_INFINITY { 0.0 } else { *p / cap };
            *p = exp::<FMA>(*p - log_sum);
            *ds = *p * (*ds - along) * (1.0 - ratio * ratio);
        }
    }
}
