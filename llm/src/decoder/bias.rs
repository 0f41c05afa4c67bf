//! Scores by distance (T5; Raffel et al., 2020).

use candle_core::{Device, Tensor};
use vela_nn::{Error, Result, Weights};

/// A learned number per head for each distance between query and key; far distances share one.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[buckets, heads]`.
    table: Tensor,
    max_distance: usize,
    both_ways: bool,
}

impl RelativeBias {
    /// Reads `weight [buckets, heads]`.
    pub fn new(
        weights: &Weights,
        buckets: usize,
        heads: usize,
        max_distance: usize,
        both_ways: bool,
    ) -> Result<Self> {
        Ok(Self { table: weights.get((buckets, heads), "weight")?, max_distance, both_ways })
    }

    /// What is added to the scores of `t` queries, the last of `s` positions, over all `s` keys: `[heads, t, s]`.
    /// Differentiable in the table.
    ///
    /// # Errors
    /// More queries than keys.
    pub fn at(&self, t: usize, s: usize) -> Result<Tensor> {
        let Some(first) = s.checked_sub(t) else {
            return Err(Error::invalid(format!("relative positions of {t} queries over only {s} keys")));
        };
        let all = (0..t).flat_map(|query| (0..s).map(move |key| (first + query, key)));
        let buckets = self.table.dim(0)?;
        let ids: Vec<u32> = all.map(|(query, key)| self.bucket(query, key, buckets)).collect();
        let ids = Tensor::from_vec(ids, t * s, &Device::Cpu)?;
        let heads = self.table.dim(1)?;
        Ok(self.table.index_select(&ids, 0)?.reshape((t, s, heads))?.permute((2, 0, 1))?.contiguous()?)
    }

    /// The first half of the buckets are single distances; the rest widen logarithmically up to `max_distance`. With
    /// both ways, keys after the query have the second half of the table.
    fn bucket(&self, query: usize, key: usize, buckets: usize) -> u32 {
        let (buckets, offset) = match self.both_ways {
            true => (buckets / 2, if key > query { buckets / 2 } else { 0 }),
            false => (buckets, 0),
        };
        let distance = if self.both_ways { query.abs_diff(key) } else { query.saturating_sub(key) };
        let exact = buckets / 2;
        if distance < exact {
            return (offset + distance) as u32;
        }
        // In float32, as the reference works it out.
        let part = (distance as f32 / exact as f32).ln()
            / (self.max_distance as f64 / exact as f64).ln() as f32
            * (buckets - exact) as f32;
        (offset + (exact + part as usize).min(buckets - 1)) as u32
    }
}
