//! AdamW (Loshchilov and Hutter, 2019): Adam with decoupled weight decay, and clipping of the global gradient norm.

use crate::{Error, Gradients, Result, kernels::adam, threads};
use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The numbers of AdamW. The learning rate is given at each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay, for parameters of two or more dimensions (not for norms and biases).
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; 0 means no clipping.
    pub max_grad_norm: f32,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 }
    }
}

struct Parameter {
    name: String,
    var: Var,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// An AdamW optimiser over a fixed list of variables.
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    steps: u64,
}

impl AdamW {
    /// Starts with zero moments.
    pub fn new(vars: Vec<(String, Var)>, config: AdamWConfig) -> Self {
        let parameters = vars
            .into_iter()
            .map(|(name, var)| {
                let count = var.elem_count();
                Parameter { name, var, first: vec![0.0; count], second: vec![0.0; count] }
            })
            .collect();
        Self { config, parameters, steps: 0 }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step: clips, updates every variable in place, returns the gradient's norm before clipping. The gradients must be
    /// of the same variables in the same order. Gradients that are not finite change nothing and are an error.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f32) -> Result<f32> {
        let AdamWConfig { beta1, beta2, eps, weight_decay, max_grad_norm } = self.config;
        if gradients.values.len() != self.parameters.len() {
            let (expected, got) = (self.parameters.len(), gradients.values.len());
            return Err(Error::invalid(format!("AdamW: expected {expected} gradients, got {got}")));
        }
        for (p, g) in self.parameters.iter().zip(&gradients.values) {
            if !g.is_empty() && g.len() != p.first.len() {
                return Err(Error::shape(format!("gradient of {}", p.name), p.first.len(), &[g.len()]));
            }
        }
        let norm = gradients.values.iter().map(|g| adam::sum_of_squares(g)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::invalid(format!(
                "AdamW: the gradient's norm is {norm} at step {}",
                self.steps + 1
            )));
        }
        let clip =
            if max_grad_norm > 0.0 { (f64::from(max_grad_norm) / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let power = |beta: f32| 1.0 - f64::from(beta).powf(self.steps as f64);
        let update = adam::Update {
            beta1,
            beta2,
            eps,
            clip: clip as f32,
            step_size: (f64::from(learning_rate) / power(beta1)) as f32,
            second_scale: (1.0 / power(beta2)) as f32,
            keep: 1.0,
        };
        for (p, g) in self.parameters.iter_mut().zip(&gradients.values) {
            if g.is_empty() {
                continue;
            }
            let decay = if p.var.rank() >= 2 { weight_decay } else { 0.0 };
            let update = adam::Update { keep: 1.0 - learning_rate * decay, ..update };
            adam::step(p.var.as_tensor(), g, &mut p.first, &mut p.second, update, threads::current())?;
        }
        Ok(norm as f32)
    }

    /// The moments and the step count, to be saved with [`crate::save`]; loading them resumes bit for bit.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut out = Vec::with_capacity(2 * self.parameters.len() + 1);
        for p in &self.parameters {
            for (kind, moment) in [("first", &p.first), ("second", &p.second)] {
                out.push((
                    format!("{}.{kind}", p.name),
                    Tensor::from_slice(moment, p.var.shape(), &Device::Cpu)?,
                ));
            }
        }
        // Two exact halves: a float32 holds integers up to 2^24.
        let halves = [(self.steps >> 20) as f32, (self.steps & 0xf_ffff) as f32];
        out.push(("steps".to_string(), Tensor::new(&halves, &Device::Cpu)?));
        Ok(out)
    }

    /// Takes up a state that [`AdamW::state`] gave. Every parameter must be there, and nothing else.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let weights = crate::Weights::from_tensors(state.clone());
        let mut moments = Vec::with_capacity(self.parameters.len());
        for p in &self.parameters {
            let read = |kind: &str| -> Result<Vec<f32>> {
                Ok(weights.get(p.var.shape(), &format!("{}.{kind}", p.name))?.flatten_all()?.to_vec1()?)
            };
            moments.push((read("first")?, read("second")?));
        }
        let halves = weights.get(2, "steps")?.to_vec1::<f32>()?;
        weights.finish()?;
        for (p, (first, second)) in self.parameters.iter_mut().zip(moments) {
            (p.first, p.second) = (first, second);
        }
        self.steps = ((halves[0] as u64) << 20) | halves[1] as u64;
        Ok(())
    }
}
