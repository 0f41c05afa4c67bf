//! What the engine counts.

/// Upper bounds of a histogram's buckets, in seconds: four to a factor of ten, from a tenth of a millisecond on.
pub const BOUNDS_SECS: [f64; 26] = [
    0.0001, 0.00018, 0.00032, 0.00056, 0.001, 0.0018, 0.0032, 0.0056, 0.01, 0.018, 0.032, 0.056, 0.1, 0.18,
    0.32, 0.56, 1.0, 1.8, 3.2, 5.6, 10.0, 18.0, 32.0, 56.0, 100.0, 180.0,
];

/// How durations are spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Durations in each bucket, by [`BOUNDS_SECS`]; the last is for all that are longer.
    pub buckets: [u64; BOUNDS_SECS.len() + 1],
    /// How many.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum_secs: f64,
}

impl Histogram {
    /// Counts one duration, in nanoseconds.
    pub fn record_nanos(&mut self, nanos: u64) {
        let secs = nanos as f64 * 1e-9;
        self.buckets[BOUNDS_SECS.partition_point(|bound| *bound < secs)] += 1;
        self.count += 1;
        self.sum_secs += secs;
    }

    /// The duration below which the fraction `q` lies, in seconds, interpolated within its bucket; 0 if there is none.
    pub fn quantile_secs(&self, q: f64) -> f64 {
        let wanted = q.clamp(0.0, 1.0) * self.count as f64;
        let mut below = 0.0;
        for (k, count) in self.buckets.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && below + count >= wanted {
                let from = if k == 0 { 0.0 } else { BOUNDS_SECS[k - 1] };
                let to = BOUNDS_SECS.get(k).copied().unwrap_or(from);
                return from + (to - from) * ((wanted - below) / count);
            }
            below += count;
        }
        0.0
    }
}

/// The state of the engine after its last step, and what happened since it started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Blocks that nobody holds.
    pub free_blocks: usize,
    /// Blocks that only the prefix cache holds: given up when needed.
    pub evictable_blocks: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Positions that blocks of running sequences have room for and do not use yet.
    pub wasted_tokens: usize,
    /// Requests taken.
    pub requests: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests that ended by a stop token, a complete text or their length.
    pub finished: u64,
    /// Requests whose receiver was dropped.
    pub cancelled: u64,
    /// Requests that went wrong.
    pub failed: u64,
    /// Positions of prompts.
    pub prompt_tokens: u64,
    /// Of those, found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Rows that went through the decoder (prompts, generation, reading again after stepping back).
    pub forward_tokens: u64,
    /// Forward passes.
    pub steps: u64,
    /// Sequences that stepped back for want of blocks.
    pub preemptions: u64,
    /// Blocks that the prefix cache gave up.
    pub evictions: u64,
    /// Time spent in steps, in seconds.
    pub busy_secs: f64,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// Between the tokens of a request.
    pub per_token: Histogram,
    /// From arrival to the end.
    pub whole: Histogram,
}

impl Metrics {
    /// Tokens generated per second of work.
    pub fn tokens_per_second(&self) -> f64 {
        if self.busy_secs > 0.0 { self.generated_tokens as f64 / self.busy_secs } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_secs(0.5), 0.0);
        (1..=100).for_each(|ms| histogram.record_nanos(ms * 1_000_000));
        let (median, high) = (histogram.quantile_secs(0.5), histogram.quantile_secs(0.99));
        assert!((0.032..=0.056).contains(&median) && (0.056..=0.1).contains(&high), "{median} {high}");
        assert_eq!((histogram.count, (histogram.sum_secs * 1000.0).round()), (100, 5050.0));
        histogram.record_nanos(u64::MAX);
        assert_eq!(histogram.quantile_secs(1.0), 180.0);
    }
}
