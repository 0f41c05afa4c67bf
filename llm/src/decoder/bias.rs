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

    /// What is added to the scores of `t` queries, the last of `s` positions, over all `s` keys: for each head
    /// `[t + s - 1]` by distance, from the farthest key after a query to the farthest before it. Differentiable in the
    /// table.
    ///
    /// # Errors
    /// More queries than keys.
    pub fn at(&self, t: usize, s: usize) -> Result<Tensor> {
        if t > s {
            return Err(Error::invalid(format!("relative positions of {t} queries over only {s} keys")));
        }
        let buckets = self.table.dim(0)?;
        // The last query is at `s - 1`, the first `t - 1` before it.
        let ids: Vec<u32> = (1..t + s).map(|i| self.bucket(i.abs_diff(t), i < t, buckets)).collect();
        let ids = Tensor::new(ids, &Device::Cpu)?;
        Ok(self.table.index_select(&ids, 0)?.t()?.contiguous()?)
    }

    /// The bucket of a key that is `distance` positions before the query, or `after` it. The first half of the buckets are
    /// single distances; the rest widen logarithmically up to `max_distance`. With both ways, keys after the query have the
    /// second half of the table.
    fn bucket(&self, distance: usize, after: bool, buckets: usize) -> u32 {
        let (buckets, offset) = match self.both_ways {
            true => (buckets / 2, if after { buckets / 2 } else { 0 }),
            false => (buckets, 0),
        };
        let distance = if self.both_ways || !after { distance } else { 0 };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_queries_have_the_last_distances() -> Result<()> {
        for both_ways in [false, true] {
            let bias = RelativeBias::new(&Weights::fresh(1), 8, 3, 20, both_ways)?;
            let s = 40;
            let whole = bias.at(s, s)?;
            assert_eq!(whole.dims(), [3, 2 * s - 1]);
            for t in [1, 7] {
                let want = whole.narrow(1, s - t, t + s - 1)?.to_vec2::<f32>()?;
                assert_eq!(bias.at(t, s)?.to_vec2::<f32>()?, want, "{both_ways}");
            }
            // The query itself is in bucket 0; the farthest keys share the last one of their side.
            let bucket = |i: u32| -> Result<Vec<f32>> { Ok(bias.table.get(i as usize)?.to_vec1::<f32>()?) };
            let at = |i: usize| -> Result<Vec<f32>> { Ok(whole.narrow(1, i, 1)?.flatten_all()?.to_vec1()?) };
            assert_eq!(at(s - 1)?, bucket(0)?);
            assert_eq!((at(s)?, at(s - 2)?), (bucket(1)?, bucket(if both_ways { 5 } else { 0 })?));
            assert_eq!(at(2 * s - 2)?, bucket(if both_ways { 3 } else { 7 })?);
            assert_eq!(at(0)?, bucket(if both_ways { 7 } else { 0 })?);
        }
        Ok(())
    }

    #[test]
    fn more_queries_than_keys_are_refused() -> Result<()> {
        let bias = RelativeBias::new(&Weights::fresh(1), 8, 3, 20, true)?;
        assert!(bias.at(5, 4).is_err_and(|e| e.to_string().contains("5 queries over only 4 keys")));
        Ok(())
    }
}
