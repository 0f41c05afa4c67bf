//! What fewer bits do to a policy's actions: the same inputs with its matrices as they are stored and in another form.

use crate::stages::{Setting, of_folder};
use crate::storage::Storage;
use crate::trace;
use candle_core::Tensor;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use vela_nn::{Error, Result};

/// How far normalised actions move, over the spread of the actions themselves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ActionError {
    /// Root mean square.
    pub rms: f64,
    /// The furthest number.
    pub worst: f64,
}

impl ActionError {
    /// Of `got` beside `want`, of one shape.
    ///
    /// # Errors
    /// Another shape; numbers that are not finite; actions that are all the same.
    pub fn between(want: &Tensor, got: &Tensor) -> Result<Self> {
        if want.dims() != got.dims() {
            return Err(Error::shape("actions", format!("{:?}", want.dims()), got.dims()));
        }
        let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1::<f32>()?) };
        let (want, got) = (values(want)?, values(got)?);
        let mean_of = |xs: &mut dyn Iterator<Item = f64>| xs.sum::<f64>() / want.len().max(1) as f64;
        let mean = mean_of(&mut want.iter().map(|x| f64::from(*x)));
        let spread = mean_of(&mut want.iter().map(|x| (f64::from(*x) - mean).powi(2))).sqrt();
        let apart = || want.iter().zip(&got).map(|(a, b)| f64::from((a - b).abs()));
        let made = Self {
            rms: mean_of(&mut apart().map(|d| d * d)).sqrt() / spread,
            worst: apart().fold(0.0, f64::max) / spread,
        };
        if made.rms.is_finite() && got.iter().all(|x| x.is_finite()) {
            Ok(made)
        } else {
            Err(Error::invalid("actions that are all the same, or not finite, have no error to speak of"))
        }
    }

    /// Refuses an error (root mean square) of more than `at_most` of the spread.
    ///
    /// # Errors
    /// It is larger; the error says by how much.
    pub fn require(&self, at_most: f64) -> Result<()> {
        if self.rms <= at_most {
            return Ok(());
        }
        let percent = |x: f64| format!("{:.2} %", x * 100.0);
        Err(Error::invalid(format!(
            "the actions move by {} of their spread ({} at worst), more than {}",
            percent(self.rms),
            percent(self.worst),
            percent(at_most)
        )))
    }
}

/// On the inputs of a reference run.
///
/// # Errors
/// A folder that does not load or is no policy; an input that is missing; see [`ActionError::between`].
pub fn on_golden(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<ActionError> {
    let actions = |storage| actions_on_golden(dir, golden, storage);
    ActionError::between(&actions(Storage::Plain)?, &actions(storage)?)
}

/// Normalised actions on the inputs of a reference run, of any shape.
///
/// # Errors
/// A folder that does not load or is no policy; an input that is missing.
pub fn actions_on_golden(dir: &Path, golden: &HashMap<String, Tensor>, storage: Storage) -> Result<Tensor> {
    let stages = trace::policy(dir, golden, storage)?;
    let found = stages.and_then(|mut stages| stages.remove("out.actions_normalised"));
    found.ok_or_else(|| Error::invalid(format!("{}: no policy whose actions are known", dir.display())))
}

/// On made-up inputs, where there is no reference run: pictures and joints of noise, which are harder than real ones.
///
/// # Errors
/// Those of [`on_golden`].
pub fn on_noise(dir: &Path, storage: Storage) -> Result<ActionError> {
    ActionError::between(&actions_on_noise(dir, Storage::Plain)?, &actions_on_noise(dir, storage)?)
}

/// Normalised actions on made-up inputs, of any shape.
///
/// # Errors
/// Those of [`on_golden`].
pub fn actions_on_noise(dir: &Path, storage: Storage) -> Result<Tensor> {
    let mut run = of_folder(dir, &Setting { storage, ..Setting::default() })?;
    run.see()?;
    run.read()?;
    run.answer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn errors_are_held_against_the_spread() -> Result<()> {
        let want = Tensor::new(&[1f32, -1.0, 1.0, -1.0], &Device::Cpu)?;
        let got = Tensor::new(&[1f32, -1.0, 1.0, -0.98], &Device::Cpu)?;
        let error = ActionError::between(&want, &got)?;
        assert!((error.rms - 0.01).abs() < 1e-6 && (error.worst - 0.02).abs() < 1e-6, "{error:?}");
        error.require(0.011)?;
        assert!(
            error.require(0.009).is_err_and(|e| e.to_string().contains("1.00 % of their spread (2.00 % at"))
        );
        assert!(ActionError::between(&(&want * 0.0)?, &got).is_err());
        assert!(ActionError::between(&want, &(got / 0.0)?).is_err());
        Ok(())
    }
}
