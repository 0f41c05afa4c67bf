//! Our stages against a reference run's, one by one.

use crate::Result;
use candle_core::{DType, Tensor};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// A stage may differ by this much of the reference's standard deviation, in float32.
pub const BOUND: f32 = 1e-4;

/// One stage, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Its name in the reference run, `out.*`.
    pub name: String,
    /// Largest difference over the reference's standard deviation; of integers, the largest difference.
    pub max_abs_over_spread: f32,
    /// Cosine between the two.
    pub cosine: f32,
    /// Whether they agree: floats within [`BOUND`], integers exactly.
    pub pass: bool,
}

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What was compared, by name.
    pub stages: Vec<Stage>,
    /// How many `out.*` the reference run has.
    pub present: usize,
    /// Those that we do not work out.
    pub left_out: Vec<String>,
    /// Whether every `out.*` was compared and agrees.
    pub pass: bool,
}

/// Compares what was worked out (`made`) with every `out.*` of a reference run.
pub fn judge(golden: &HashMap<String, Tensor>, made: &BTreeMap<String, Tensor>) -> Result<Verdict> {
    let mut wanted: Vec<(&String, &Tensor)> =
        golden.iter().filter(|(name, _)| name.starts_with("out.")).collect();
    wanted.sort_by_key(|(name, _)| name.as_str());
    let (mut stages, mut left_out) = (Vec::new(), Vec::new());
    for (name, want) in &wanted {
        match made.get(name.as_str()) {
            Some(got) => stages.push(compare(name, got, want)?),
            None => left_out.push((*name).clone()),
        }
    }
    let pass = !wanted.is_empty() && left_out.is_empty() && stages.iter().all(|stage| stage.pass);
    Ok(Verdict { stages, present: wanted.len(), left_out, pass })
}

/// Compares one stage. A different shape or a number that is not finite does not pass.
pub fn compare(name: &str, got: &Tensor, want: &Tensor) -> Result<Stage> {
    let failed = |name: &str| Stage {
        name: name.to_owned(),
        max_abs_over_spread: f32::INFINITY,
        cosine: 0.0,
        pass: false,
    };
    if got.dims() != want.dims() {
        return Ok(failed(name));
    }
    let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
    let (a, b) = (values(got)?, values(want)?);
    if a.is_empty() || a.iter().any(|x| !x.is_finite()) {
        return Ok(failed(name));
    }
    let count = b.len() as f64;
    let mean = b.iter().sum::<f64>() / count;
    let spread = (b.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let norms = (dot(&a, &a) * dot(&b, &b)).sqrt();
    let exact = !want.dtype().is_float();
    // Without a spread there is nothing to measure by but the difference itself.
    let difference = if exact || spread == 0.0 { largest } else { largest / spread };
    Ok(Stage {
        name: name.to_owned(),
        max_abs_over_spread: difference as f32,
        cosine: if norms == 0.0 { f32::from(largest == 0.0) } else { (dot(&a, &b) / norms) as f32 },
        pass: if exact { largest == 0.0 } else { difference < f64::from(BOUND) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn shapes_nans_and_integers_must_be_right() -> Result<()> {
        let t = |x: &[f32]| Tensor::new(x, &Device::Cpu);
        let want = t(&[1.0, 3.0])?;
        assert!(compare("x", &want, &want)?.pass);
        assert!(!compare("x", &t(&[1.0, 3.001])?, &want)?.pass);
        assert!(!compare("x", &t(&[1.0, f32::NAN])?, &want)?.pass);
        assert!(!compare("x", &t(&[1.0])?, &want)?.pass);
        let ids = Tensor::new(&[5i64, 6], &Device::Cpu)?;
        assert!(compare("x", &ids, &ids)?.pass);
        assert!(!compare("x", &Tensor::new(&[5i64, 7], &Device::Cpu)?, &ids)?.pass);
        Ok(())
    }
}
