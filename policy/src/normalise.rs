//! From physical units to the numbers a network likes, and back: LeRobot's four ways and its state files.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use vela_nn::{Error, Result};

/// How numbers are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Scaling {
    /// Not at all.
    Identity,
    /// `(x - mean) / (std + eps)`.
    MeanStd,
    /// The range from min to max becomes [-1, 1].
    MinMax,
    /// The range from the 1 % to the 99 % quantile becomes [-1, 1].
    Quantiles,
    /// The range from the 10 % to the 90 % quantile becomes [-1, 1].
    Quantile10,
}

impl Scaling {
    /// The two statistics it needs, by LeRobot's names.
    pub fn statistics(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Identity => None,
            Self::MeanStd => Some(["mean", "std"]),
            Self::MinMax => Some(["min", "max"]),
            Self::Quantiles => Some(["q01", "q99"]),
            Self::Quantile10 => Some(["q10", "q90"]),
        }
    }
}

/// The scaling of one vector: state or action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normaliser {
    /// How.
    pub scaling: Scaling,
    /// Mean, or the low end, per dimension; empty for `Identity`.
    pub first: Vec<f32>,
    /// Standard deviation, or the high end, per dimension; empty for `Identity`.
    pub second: Vec<f32>,
    /// Keeps a division from dividing by zero.
    pub eps: f32,
}

impl Normaliser {
    /// LeRobot's eps.
    pub const EPS: f32 = 1e-8;

    /// From two statistics of one length.
    ///
    /// # Errors
    /// Lengths differ, a number is not finite, a standard deviation is negative.
    pub fn new(scaling: Scaling, first: Vec<f32>, second: Vec<f32>, eps: f32) -> Result<Self> {
        let normaliser = Self { scaling, first, second, eps };
        normaliser.check()?;
        Ok(normaliser)
    }

    /// Refuses statistics that cannot be used, also after reading them from a file.
    pub fn check(&self) -> Result<()> {
        if self.first.len() != self.second.len() {
            let (a, b) = (self.first.len(), self.second.len());
            return Err(Error::invalid(format!("{:?} statistics: lengths {a} and {b} differ", self.scaling)));
        }
        if self.first.iter().chain(&self.second).any(|x| !x.is_finite()) {
            return Err(Error::invalid(format!("{:?} statistics: a number is not finite", self.scaling)));
        }
        if self.scaling == Scaling::MeanStd && self.second.iter().any(|x| *x < 0.0) {
            return Err(Error::invalid("MeanStd statistics: a standard deviation is negative"));
        }
        Ok(())
    }

    /// Mean and standard deviation of rows of numbers; a dimension that hardly moves gets `floor` as its deviation.
    pub fn mean_std(rows: &[Vec<f32>], floor: f32) -> Result<Self> {
        let width = rows.first().map_or(0, Vec::len);
        if width == 0 || rows.iter().any(|row| row.len() != width) {
            return Err(Error::invalid("statistics: expected rows of one positive length"));
        }
        let count = rows.len() as f64;
        let mean: Vec<f64> =
            (0..width).map(|d| rows.iter().map(|row| f64::from(row[d])).sum::<f64>() / count).collect();
        let deviation = |d: usize| {
            let variance: f64 = rows.iter().map(|row| (f64::from(row[d]) - mean[d]).powi(2)).sum();
            ((variance / count).sqrt() as f32).max(floor)
        };
        let std = (0..width).map(deviation).collect();
        Self::new(Scaling::MeanStd, mean.iter().map(|x| *x as f32).collect(), std, Self::EPS)
    }

    /// Number of dimensions; `None` when any number fits.
    pub fn dims(&self) -> Option<usize> {
        (self.scaling != Scaling::Identity).then_some(self.first.len())
    }

    fn range(&self, d: usize) -> f32 {
        let range = self.second[d] - self.first[d];
        if range == 0.0 { self.eps } else { range }
    }

    fn fits(&self, got: usize) -> Result<()> {
        match self.dims() {
            Some(dims) if dims != got => {
                Err(Error::invalid(format!("normalisation: expected {dims} numbers, got {got}")))
            }
            _ => Ok(()),
        }
    }

    fn one(&self, d: usize, x: f32) -> f32 {
        match self.scaling {
            Scaling::Identity => x,
            Scaling::MeanStd => (x - self.first[d]) / (self.second[d] + self.eps),
            _ => 2.0 * (x - self.first[d]) / self.range(d) - 1.0,
        }
    }

    /// Physical units to network units.
    pub fn normalise(&self, values: &[f32]) -> Result<Vec<f32>> {
        self.fits(values.len())?;
        Ok(values.iter().enumerate().map(|(d, x)| self.one(d, *x)).collect())
    }

    /// The same for a picture in planes, `[channels, height, width]`: one dimension per plane.
    pub fn normalise_planes(&self, values: &mut [f32], channels: usize) -> Result<()> {
        self.fits(channels)?;
        let area = values.len() / channels.max(1);
        for (d, plane) in values.chunks_exact_mut(area.max(1)).enumerate() {
            plane.iter_mut().for_each(|x| *x = self.one(d, *x));
        }
        Ok(())
    }

    /// Refuses a dimension that statistics squeeze to nothing: a network's output for it has no physical meaning.
    pub fn check_widths(&self, what: &str) -> Result<()> {
        let ranged = !matches!(self.scaling, Scaling::Identity | Scaling::MeanStd);
        match (0..self.first.len()).find(|d| ranged && self.second[*d] <= self.first[*d]) {
            Some(d) => Err(Error::invalid(format!(
                "{what}: dimension {d}: {:?} statistics have no width ({} to {})",
                self.scaling, self.first[d], self.second[d]
            ))),
            None => Ok(()),
        }
    }

    /// Network units to physical units. No eps here: `z std + mean`.
    pub fn unnormalise(&self, values: &[f32]) -> Result<Vec<f32>> {
        self.fits(values.len())?;
        let one = |(d, &z): (usize, &f32)| match self.scaling {
            Scaling::Identity => z,
            Scaling::MeanStd => z * self.second[d] + self.first[d],
            _ => (z + 1.0) / 2.0 * self.range(d) + self.first[d],
        };
        Ok(values.iter().enumerate().map(one).collect())
    }
}

/// Statistics by feature: `observation.state`, `action`, each with `mean`, `std`, `min`, `max`, `q01` and so on.
#[derive(Clone, Debug, Default)]
pub struct Statistics(HashMap<String, Vec<f32>>);

impl Statistics {
    /// A LeRobot processor's state file: tensors called `{feature}.{statistic}`.
    pub fn load(path: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|e| Error::parse(path.display(), e))?;
        let flat = |t: &Tensor| t.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>();
        Ok(Self(tensors.iter().map(|(k, t)| Ok((k.clone(), flat(t)?))).collect::<Result<_>>()?))
    }

    /// Every statistic of rows of numbers, as those of `feature`.
    ///
    /// # Errors
    /// No rows, rows of different lengths, a number that is not finite.
    pub fn of_rows(feature: &str, rows: &[Vec<f32>]) -> Result<Self> {
        let moments = Normaliser::mean_std(rows, 0.0)?;
        let columns: Vec<Vec<f32>> = (0..moments.first.len())
            .map(|d| {
                let mut column: Vec<f32> = rows.iter().map(|row| row[d]).collect();
                column.sort_by(f32::total_cmp);
                column
            })
            .collect();
        let quantile = |q: f64| -> Vec<f32> {
            columns.iter().map(|all| all[(q * (all.len() - 1) as f64).round() as usize]).collect()
        };
        let mut all = HashMap::from([
            (format!("{feature}.mean"), moments.first.clone()),
            (format!("{feature}.std"), moments.second.clone()),
        ]);
        for (name, q) in
            [("min", 0.0), ("q01", 0.01), ("q10", 0.1), ("q90", 0.9), ("q99", 0.99), ("max", 1.0)]
        {
            all.insert(format!("{feature}.{name}"), quantile(q));
        }
        Ok(Self(all))
    }

    /// These and `others`, which come first where both know one.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Those that are here put into a LeRobot processor's state file in place of its own.
    ///
    /// # Errors
    /// The file cannot be read or written; a statistic of another width.
    pub fn put_into(&self, path: &Path) -> Result<()> {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|e| Error::parse(path.display(), e))?;
        for (name, values) in &self.0 {
            if let Some(old) = tensors.get(name) {
                if old.elem_count() != values.len() {
                    let expected = old.elem_count();
                    return Err(Error::invalid(format!(
                        "{name}: expected {expected} numbers, got {}",
                        values.len()
                    )));
                }
                let new = Tensor::new(values.as_slice(), &Device::Cpu)?;
                tensors.insert(name.clone(), new.reshape(old.shape())?.to_dtype(old.dtype())?);
            }
        }
        Ok(candle_core::safetensors::save(&tensors, path)?)
    }

    /// From names and numbers.
    pub fn from_map(map: HashMap<String, Vec<f32>>) -> Self {
        Self(map)
    }

    /// The normaliser of a feature.
    ///
    /// # Errors
    /// A statistic is missing; the error names it.
    pub fn normaliser(&self, feature: &str, scaling: Scaling, eps: f32) -> Result<Normaliser> {
        let Some(names) = scaling.statistics() else {
            return Normaliser::new(scaling, Vec::new(), Vec::new(), eps);
        };
        let get = |name: &str| {
            self.0.get(&format!("{feature}.{name}")).cloned().ok_or_else(|| {
                let mut known: Vec<&str> = self.0.keys().map(String::as_str).collect();
                known.sort_unstable();
                Error::invalid(format!("no statistic {feature}.{name}; there are: {}", known.join(", ")))
            })
        };
        Normaliser::new(scaling, get(names[0])?, get(names[1])?, eps)
    }
}

/// One step of a LeRobot `policy_preprocessor.json` or `policy_postprocessor.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ProcessorStep {
    /// What it does.
    pub registry_name: String,
    /// Its settings.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Its state file, beside the JSON file.
    pub state_file: Option<String>,
}

/// The steps of a LeRobot processor file.
pub fn processor_steps(path: &Path) -> Result<Vec<ProcessorStep>> {
    #[derive(Deserialize)]
    struct Pipeline {
        steps: Vec<ProcessorStep>,
    }
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    let pipeline: Pipeline = serde_json::from_str(&text).map_err(|e| Error::parse(path.display(), e))?;
    Ok(pipeline.steps)
}

/// The normaliser that a processor step holds for `feature` (its kind by `kind`: STATE, ACTION or VISUAL).
pub fn step_normaliser(dir: &Path, step: &ProcessorStep, feature: &str, kind: &str) -> Result<Normaliser> {
    let name = &step.registry_name;
    let scaling = step.config.get("norm_map").and_then(|map| map.get(kind)).cloned();
    let scaling = scaling.ok_or_else(|| Error::invalid(format!("{name}: no norm_map entry for {kind}")))?;
    let scaling: Scaling = serde_json::from_value(scaling).map_err(|e| Error::parse(name, e))?;
    let eps =
        step.config.get("eps").and_then(serde_json::Value::as_f64).map_or(Normaliser::EPS, |x| x as f32);
    let file = step.state_file.as_ref().ok_or_else(|| Error::invalid(format!("{name}: no state_file")))?;
    if Path::new(file).components().count() != 1 {
        return Err(Error::invalid(format!("{name}: state_file '{file}' is not a plain file name")));
    }
    Statistics::load(&dir.join(file))?.normaliser(feature, scaling, eps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_and_forth_and_no_eps_on_the_way_back() -> Result<()> {
        let n = Normaliser::new(Scaling::MeanStd, vec![1.0], vec![0.0], 1e-8)?;
        assert_eq!(n.unnormalise(&[5.0])?, [1.0]);
        for scaling in [Scaling::MinMax, Scaling::Quantiles, Scaling::Quantile10, Scaling::MeanStd] {
            let n = Normaliser::new(scaling, vec![-2.0, 0.5], vec![3.0, 4.0], 1e-8)?;
            let back = n.unnormalise(&n.normalise(&[1.0, 2.0])?)?;
            assert!((back[0] - 1.0).abs() < 1e-5 && (back[1] - 2.0).abs() < 1e-5, "{scaling:?} {back:?}");
        }
        Ok(())
    }

    #[test]
    fn statistics_of_rows_are_lerobot_s() -> Result<()> {
        let rows: Vec<Vec<f32>> = (0..=100).map(|k| vec![k as f32, -2.0 * k as f32]).collect();
        let all = Statistics::of_rows("action", &rows)?;
        let of = |scaling| all.normaliser("action", scaling, 1e-8);
        let quantiles = of(Scaling::Quantiles)?;
        assert_eq!((quantiles.first, quantiles.second), (vec![1.0, -198.0], vec![99.0, -2.0]));
        assert_eq!(of(Scaling::MinMax)?.second, [100.0, 0.0]);
        let moments = of(Scaling::MeanStd)?;
        assert!(
            (moments.first[0] - 50.0).abs() < 1e-4 && (moments.second[1] - 58.31).abs() < 1e-2,
            "{moments:?}"
        );
        assert!(Statistics::of_rows("action", &[]).is_err());
        Ok(())
    }

    #[test]
    fn bad_statistics_are_refused() {
        assert!(Normaliser::new(Scaling::MeanStd, vec![0.0], vec![], 1e-8).is_err());
        assert!(Normaliser::new(Scaling::MeanStd, vec![f32::NAN], vec![1.0], 1e-8).is_err());
        assert!(Normaliser::new(Scaling::MeanStd, vec![0.0], vec![-1.0], 1e-8).is_err());
        let missing = Statistics::default().normaliser("action", Scaling::MinMax, 1e-8);
        assert!(missing.is_err_and(|e| e.to_string().contains("action.min")));
    }
}
