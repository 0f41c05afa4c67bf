//! Variables with what training keeps beside them: the optimiser's moments, running averages, the count of steps. One file
//! holds it all, so that a run resumes bit for bit.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use vela_nn::{AdamW, AdamWConfig, Device, Gradients, Tensor, Var};

/// Variables in training.
pub struct Learner {
    vars: Vec<(String, Var)>,
    optimizer: AdamW,
    /// Averaged values, in the order of `vars`.
    average: Vec<Vec<f32>>,
    step: usize,
}

impl Learner {
    /// Starts with zero moments; the averages are the values themselves.
    pub fn new(vars: Vec<(String, Var)>, config: AdamWConfig) -> Result<Self> {
        let average = vars.iter().map(|(_, var)| flat(var.as_tensor())).collect::<Result<_>>()?;
        Ok(Self { optimizer: AdamW::new(vars.clone(), config), vars, average, step: 0 })
    }

    /// The variables, in the order of the gradients.
    pub fn vars(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One step; the averages keep `ema` of themselves. Returns the gradient's norm before clipping.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite: nothing has changed then.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, ema: f64) -> Result<f32> {
        if !gradients.loss.is_finite() {
            return Err(Error::Diverged(self.step));
        }
        let norm = self.optimizer.step(gradients, learning_rate as f32)?;
        self.step += 1;
        // The average starts short, so that it forgets the beginning.
        let decay = ema.min((1.0 + self.step as f64) / (10.0 + self.step as f64)) as f32;
        for (average, (_, var)) in self.average.iter_mut().zip(&self.vars) {
            for (a, x) in average.iter_mut().zip(flat(var.as_tensor())?) {
                *a += (1.0 - decay) * (x - *a);
            }
        }
        Ok(norm)
    }

    /// Gives variables new values, and their averages with them; moments and steps stay.
    pub fn set(&mut self, values: &[(usize, Tensor)]) -> Result<()> {
        for (k, tensor) in values {
            if let (Some((_, var)), Some(average)) = (self.vars.get(*k), self.average.get_mut(*k)) {
                var.set(tensor)?;
                *average = flat(tensor)?;
            }
        }
        Ok(())
    }

    /// The averages, by the variables' names.
    pub fn averaged(&self) -> Result<Vec<(String, Tensor)>> {
        let one = |((name, var), average): (&(String, Var), &Vec<f32>)| {
            let tensor = Tensor::from_slice(average, var.as_tensor().shape(), &Device::Cpu)?;
            Ok((name.clone(), tensor))
        };
        self.vars.iter().zip(&self.average).map(one).collect()
    }

    /// Writes everything that resuming needs: one file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for ((name, var), (_, average)) in self.vars.iter().zip(self.averaged()?) {
            tensors.push((format!("weight.{name}"), var.as_tensor().clone()));
            tensors.push((format!("average.{name}"), average));
        }
        for (name, tensor) in self.optimizer.state()? {
            tensors.push((format!("optimizer.{name}"), tensor));
        }
        tensors.push(("step".into(), Tensor::new(&[self.step as f32], &Device::Cpu)?));
        Ok(vela_nn::save(path, &tensors)?)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let missing = |name: &str| Error::Parse {
            what: path.display().to_string(),
            why: format!("tensor '{name}' is missing or has another shape"),
        };
        let get = |name: String, like: &Tensor| -> Result<Tensor> {
            let found = tensors.get(&name).filter(|t| t.shape() == like.shape());
            found.cloned().ok_or_else(|| missing(&name))
        };
        let mut average = Vec::with_capacity(self.vars.len());
        for (name, var) in &self.vars {
            var.set(&get(format!("weight.{name}"), var.as_tensor())?)?;
            average.push(flat(&get(format!("average.{name}"), var.as_tensor())?)?);
        }
        let state: HashMap<String, Tensor> = tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("optimizer.")?.to_owned(), t.clone())))
            .collect();
        self.optimizer.load_state(&state)?;
        self.average = average;
        let step = tensors.get("step").ok_or_else(|| missing("step"))?.to_vec1::<f32>()?;
        self.step = step.first().copied().ok_or_else(|| missing("step"))? as usize;
        Ok(())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
