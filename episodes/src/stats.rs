//! Statistics of one feature, per episode and over the dataset, with LeRobot's names and shapes.

use vela_embodiment::{Error, Result};

/// The statistics of one feature: one number per entry of a vector, or per colour channel (0 to 1) of a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureStats {
    /// Smallest value.
    pub min: Vec<f64>,
    /// Largest value.
    pub max: Vec<f64>,
    /// Mean.
    pub mean: Vec<f64>,
    /// Standard deviation of the population.
    pub std: Vec<f64>,
    /// 1 % quantile; over several episodes the mean of theirs, weighted by frames, as LeRobot has it.
    pub q01: Vec<f64>,
    /// 10 % quantile.
    pub q10: Vec<f64>,
    /// Median.
    pub q50: Vec<f64>,
    /// 90 % quantile.
    pub q90: Vec<f64>,
    /// 99 % quantile.
    pub q99: Vec<f64>,
    /// Frames that were counted.
    pub count: u64,
}

/// The names of the nine numbers, in LeRobot's order.
pub(crate) const NAMES: [&str; 9] = ["min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"];

impl FeatureStats {
    /// Statistics of rows of equal width; linear interpolation between ranks, as numpy's default.
    pub(crate) fn of_rows(rows: &[Vec<f64>]) -> Self {
        let wide = rows.first().map_or(0, Vec::len);
        let mut stats = Self { count: rows.len() as u64, ..Self::default() };
        for k in 0..wide {
            let mut column: Vec<f64> = rows.iter().map(|row| row[k]).collect();
            column.sort_by(f64::total_cmp);
            let n = column.len() as f64;
            let mean = column.iter().sum::<f64>() / n;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            stats.push(mean, variance, rows.len(), |rank| column[rank]);
        }
        stats
    }

    fn push(&mut self, mean: f64, variance: f64, count: usize, ranked: impl Fn(usize) -> f64) {
        let quantile = |q: f64| {
            let place = q * (count - 1) as f64;
            let (low, share) = (place.floor() as usize, place.fract());
            let below = ranked(low);
            below + share * (ranked((low + 1).min(count - 1)) - below)
        };
        self.min.push(ranked(0));
        self.max.push(ranked(count - 1));
        self.mean.push(mean);
        self.std.push(variance.max(0.0).sqrt());
        self.q01.push(quantile(0.01));
        self.q10.push(quantile(0.10));
        self.q50.push(quantile(0.50));
        self.q90.push(quantile(0.90));
        self.q99.push(quantile(0.99));
    }

    /// The nine numbers with their names.
    pub(crate) fn named(&self) -> [(&'static str, &Vec<f64>); 9] {
        let values = [
            &self.min, &self.max, &self.mean, &self.std, &self.q01, &self.q10, &self.q50, &self.q90,
            &self.q99,
        ];
        std::array::from_fn(|k| (NAMES[k], values[k]))
    }

    /// The reverse of [`Self::named`]: `get` finds the numbers of a name.
    pub(crate) fn from_named(count: u64, mut get: impl FnMut(&str) -> Result<Vec<f64>>) -> Result<Self> {
        Ok(Self {
            min: get("min")?,
            max: get("max")?,
            mean: get("mean")?,
            std: get("std")?,
            q01: get("q01")?,
            q10: get("q10")?,
            q50: get("q50")?,
            q90: get("q90")?,
            q99: get("q99")?,
            count,
        })
    }

    /// Adds another episode's statistics. Mean and deviation are exact (Chan, Golub and LeVeque 1979, "Updating
    /// formulae and a pairwise algorithm for computing sample variances"); quantiles are weighted by frames.
    ///
    /// # Errors
    /// The other has another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.count == 0 {
            *self = other.clone();
            return Ok(());
        }
        if self.mean.len() != other.mean.len() {
            return Err(Error::Shape {
                what: "statistics".into(),
                expected: self.mean.len().to_string(),
                got: other.mean.len().to_string(),
            });
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let mix = |a: f64, b: f64| (n * a + m * b) / (n + m);
        for k in 0..self.mean.len() {
            let mean = mix(self.mean[k], other.mean[k]);
            let spread = |std: f64, own: f64| std * std + (own - mean).powi(2);
            let variance = mix(spread(self.std[k], self.mean[k]), spread(other.std[k], other.mean[k]));
            self.min[k] = self.min[k].min(other.min[k]);
            self.max[k] = self.max[k].max(other.max[k]);
            self.mean[k] = mean;
            self.std[k] = variance.sqrt();
            self.q01[k] = mix(self.q01[k], other.q01[k]);
            self.q10[k] = mix(self.q10[k], other.q10[k]);
            self.q50[k] = mix(self.q50[k], other.q50[k]);
            self.q90[k] = mix(self.q90[k], other.q90[k]);
            self.q99[k] = mix(self.q99[k], other.q99[k]);
        }
        self.count += other.count;
        Ok(())
    }

    /// As `meta/stats.json` has it: lists for vectors, `[channel][1][1]` for pictures.
    pub fn to_json(&self, is_picture: bool) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        for (name, values) in self.named() {
            let list: Vec<serde_json::Value> = values
                .iter()
                .map(|x| if is_picture { serde_json::json!([[x]]) } else { serde_json::json!(x) })
                .collect();
            map.insert(name.to_owned(), list.into());
        }
        map.insert("count".to_owned(), serde_json::json!([self.count]));
        map.into()
    }
}

/// Counts of every byte value per colour channel: exact statistics of any number of pictures.
#[derive(Clone, Debug)]
pub(crate) struct PictureCounts {
    counts: Vec<[u64; 256]>,
    pictures: u64,
}

impl PictureCounts {
    pub(crate) fn new() -> Self {
        Self { counts: vec![[0; 256]; 3], pictures: 0 }
    }

    pub(crate) fn add(&mut self, rgb: &[u8]) {
        for pixel in rgb.chunks_exact(3) {
            for (channel, value) in self.counts.iter_mut().zip(pixel) {
                channel[usize::from(*value)] += 1;
            }
        }
        self.pictures += 1;
    }

    /// Statistics of the channels, 0 to 1.
    pub(crate) fn stats(&self) -> FeatureStats {
        let mut stats = FeatureStats { count: self.pictures, ..FeatureStats::default() };
        let value = |byte: usize| byte as f64 / 255.0;
        for counts in &self.counts {
            let pixels: u64 = counts.iter().sum();
            if pixels == 0 {
                continue;
            }
            let moment = |f: &dyn Fn(f64) -> f64| {
                counts.iter().enumerate().map(|(byte, n)| *n as f64 * f(value(byte))).sum::<f64>()
                    / pixels as f64
            };
            let mean = moment(&|x| x);
            let variance = moment(&|x| (x - mean).powi(2));
            stats.push(mean, variance, pixels as usize, |rank| {
                let mut seen = 0;
                let byte = counts.iter().position(|n| {
                    seen += *n;
                    seen > rank as u64
                });
                value(byte.unwrap_or(255))
            });
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_column(values: &[f64]) -> FeatureStats {
        FeatureStats::of_rows(&values.iter().map(|x| vec![*x]).collect::<Vec<_>>())
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6)
    }

    #[test]
    fn numbers_are_those_computed_by_hand() {
        // 0, 1, 2, 3, 10: mean 3.2, variance (10.24 + 4.84 + 1.44 + 0.04 + 46.24) / 5 = 12.56.
        let stats = of_column(&[3.0, 0.0, 10.0, 1.0, 2.0]);
        assert!(close(&stats.mean, &[3.2]) && close(&stats.std, &[12.56f64.sqrt()]));
        assert!(close(&stats.min, &[0.0]) && close(&stats.max, &[10.0]) && stats.count == 5);
        // Ranks 0.04, 0.4, 2, 3.6, 3.96 between the sorted values.
        assert!(close(&stats.q01, &[0.04]) && close(&stats.q10, &[0.4]) && close(&stats.q50, &[2.0]));
        assert!(close(&stats.q90, &[7.2]) && close(&stats.q99, &[9.72]), "{stats:?}");
    }

    #[test]
    fn merged_mean_and_deviation_are_those_of_the_whole() -> Result<()> {
        let all: Vec<f64> = (0..50).map(|k| (f64::from(k) * 0.7).sin()).collect();
        let mut merged = of_column(&all[..13]);
        merged.merge(&of_column(&all[13..]))?;
        let whole = of_column(&all);
        assert!(close(&merged.mean, &whole.mean) && close(&merged.std, &whole.std));
        assert!(close(&merged.min, &whole.min) && close(&merged.max, &whole.max) && merged.count == 50);
        assert!(merged.merge(&FeatureStats::of_rows(&[vec![1.0, 2.0]])).is_err());
        Ok(())
    }

    #[test]
    fn picture_statistics_are_per_channel_and_between_zero_and_one() {
        let mut counts = PictureCounts::new();
        counts.add(&[0, 51, 255, 255, 51, 255]);
        let stats = counts.stats();
        assert!(close(&stats.mean, &[0.5, 0.2, 1.0]) && close(&stats.std, &[0.5, 0.0, 0.0]));
        assert!(close(&stats.q50, &[0.5, 0.2, 1.0]) && stats.count == 1);
    }
}
