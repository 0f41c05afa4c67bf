//! Denoising diffusion over chunks (Ho et al. 2020, <https://arxiv.org/abs/2006.11239>; for actions: Diffusion Policy,
//! <https://arxiv.org/abs/2303.04137>): loss and sampling side by side over one noise schedule. Sampling as DDPM or as
//! DDIM (Song et al. 2020, <https://arxiv.org/abs/2010.02502>, eta 0).

use crate::flow::Field;
use crate::head::{Body, BodyConfig, Head, draw_normal};
use candle_core::Tensor;
use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result, Weights};

/// How the noise of each training step grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// What is kept falls as a squared cosine (Nichol and Dhariwal 2021, <https://arxiv.org/abs/2102.09672>);
    /// `squaredcos_cap_v2`.
    SquaredCosine,
    /// Evenly from the first to the last.
    Linear(f64, f64),
    /// Evenly in the square root.
    ScaledLinear(f64, f64),
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The clean actions.
    Sample,
    /// `sqrt(kept) noise - sqrt(1 - kept) actions`.
    VPrediction,
}

/// How noise becomes actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// New noise at each step but the last.
    Ddpm,
    /// No new noise.
    Ddim,
}

/// A diffusion head as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiffusionConfig {
    /// Steps from clean to pure noise in training.
    pub train_steps: usize,
    /// How noise grows over them.
    pub betas: Betas,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Predicted clean actions are clamped to this, both ways.
    pub clip: Option<f32>,
    /// How noise becomes actions.
    pub sampler: Sampler,
    /// Denoising steps per chunk.
    pub steps: usize,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            train_steps: 100,
            betas: Betas::SquaredCosine,
            prediction: Prediction::Epsilon,
            clip: Some(1.0),
            sampler: Sampler::Ddim,
            steps: 10,
        }
    }
}

/// Hears each step of sampling: step, what the network said, and the sample after it.
pub type DenoiseTap<'a> = dyn FnMut(usize, &Tensor, &Tensor) + 'a;

/// Gives the new noise of a step, in the shape of the sample.
pub type StepNoise<'a> = dyn FnMut(usize) -> Result<Tensor> + 'a;

impl DiffusionConfig {
    /// Share of the actions' variance that is kept up to each training step: `alphas_cumprod`.
    ///
    /// # Errors
    /// No training steps; betas outside [0, 1).
    pub fn kept(&self) -> Result<Vec<f32>> {
        let n = self.train_steps;
        let even = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (n.max(2) - 1) as f64;
        let cosine = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let beta = |i: usize| match self.betas {
            Betas::SquaredCosine => {
                let [before, after] = [i, i + 1].map(|i| cosine(i as f64 / n as f64));
                (1.0 - after / before).min(0.999)
            }
            Betas::Linear(from, to) => even(from, to, i),
            Betas::ScaledLinear(from, to) => even(from.sqrt(), to.sqrt(), i).powi(2),
        };
        let betas: Vec<f64> = (0..n).map(beta).collect();
        if n == 0 || betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(Error::invalid(format!("diffusion: no schedule of {n} steps by {:?}", self.betas)));
        }
        // Single precision for the factors and double for their product, as the reference has it.
        let kept = betas.iter().scan(1.0, |kept, beta| {
            *kept *= f64::from(1.0 - *beta as f32);
            Some(*kept as f32)
        });
        Ok(kept.collect())
    }

    /// The training steps that sampling visits, from noise to clean: evenly spaced, the last one is 0 ("leading").
    pub fn times(&self) -> Vec<usize> {
        let apart = self.train_steps / self.steps.max(1);
        (0..self.steps).rev().map(|i| i * apart).collect()
    }

    /// `actions [b, horizon, dims]` under the noise of training steps `times [b]`.
    pub fn noised(&self, actions: &Tensor, noise: &Tensor, times: &[usize]) -> Result<Tensor> {
        let (signal, spread) = self.factors(actions, times)?;
        Ok((actions.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?)?)
    }

    /// What the network should say there.
    pub fn target(&self, actions: &Tensor, noise: &Tensor, times: &[usize]) -> Result<Tensor> {
        Ok(match self.prediction {
            Prediction::Epsilon => noise.clone(),
            Prediction::Sample => actions.clone(),
            Prediction::VPrediction => {
                let (signal, spread) = self.factors(actions, times)?;
                (noise.broadcast_mul(&signal)? - actions.broadcast_mul(&spread)?)?
            }
        })
    }

    fn factors(&self, actions: &Tensor, times: &[usize]) -> Result<(Tensor, Tensor)> {
        let (kept, b) = (self.kept()?, actions.dim(0)?);
        let of = |t: &usize| {
            kept.get(*t).copied().ok_or_else(|| Error::invalid(format!("diffusion: no training step {t}")))
        };
        let kept: Vec<f32> = times.iter().map(of).collect::<Result<_>>()?;
        let make = |f: fn(f32) -> f32| -> Result<Tensor> {
            Ok(Tensor::from_vec(kept.iter().map(|k| f(*k)).collect(), (b, 1, 1), actions.device())?)
        };
        Ok((make(f32::sqrt)?, make(|k| (1.0 - k).sqrt())?))
    }

    /// Squared error of the network, each element, `[b, horizon, dims]`; differentiable in its weights.
    pub fn squared_errors(
        &self,
        field: &mut Field,
        actions: &Tensor,
        noise: &Tensor,
        times: &[usize],
    ) -> Result<Tensor> {
        let x = self.noised(actions, noise, times)?;
        let at: Vec<f32> = times.iter().map(|t| *t as f32).collect();
        let said = field(&x, &Tensor::new(at, actions.device())?)?;
        Ok((said - self.target(actions, noise, times)?)?.sqr()?)
    }

    /// From noise `[b, horizon, dims]` to actions of the same shape; the network is asked at training steps.
    ///
    /// # Errors
    /// No steps, or more than in training; whatever the network refuses.
    pub fn sample(
        &self,
        field: &mut Field,
        noise: &Tensor,
        step_noise: &mut StepNoise,
        tap: &mut DenoiseTap,
    ) -> Result<Tensor> {
        if self.steps == 0 || self.steps > self.train_steps {
            let (steps, most) = (self.steps, self.train_steps);
            return Err(Error::invalid(format!("diffusion: expected 1 to {most} steps, got {steps}")));
        }
        let (kept, apart) = (self.kept()?, self.train_steps / self.steps);
        let mut x = noise.clone();
        for (step, t) in self.times().into_iter().enumerate() {
            let said = field(&x, &Tensor::full(t as f32, x.dim(0)?, x.device())?)?;
            let here = kept[t];
            let next = if t >= apart { kept[t - apart] } else { 1.0 };
            let scaled = |t: &Tensor, factor: f32| -> Result<Tensor> { Ok((t * f64::from(factor))?) };
            let (signal, spread) = (here.sqrt(), (1.0 - here).sqrt());
            let (mut clean, epsilon) = match self.prediction {
                Prediction::Epsilon => (scaled(&(&x - scaled(&said, spread)?)?, 1.0 / signal)?, said.clone()),
                Prediction::Sample => (said.clone(), scaled(&(&x - scaled(&said, signal)?)?, 1.0 / spread)?),
                Prediction::VPrediction => (
                    (scaled(&x, signal)? - scaled(&said, spread)?)?,
                    (scaled(&said, signal)? + scaled(&x, spread)?)?,
                ),
            };
            if let Some(clip) = self.clip {
                clean = clean.clamp(-clip, clip)?;
            }
            x = match self.sampler {
                Sampler::Ddim => (scaled(&clean, next.sqrt())? + scaled(&epsilon, (1.0 - next).sqrt())?)?,
                Sampler::Ddpm => {
                    let kept_here = here / next;
                    let grown = 1.0 - kept_here;
                    let of_clean = next.sqrt() * grown / (1.0 - here);
                    let of_x = kept_here.sqrt() * (1.0 - next) / (1.0 - here);
                    let mean = (scaled(&clean, of_clean)? + scaled(&x, of_x)?)?;
                    let variance = ((1.0 - next) / (1.0 - here) * grown).max(1e-20);
                    if t > 0 { (mean + scaled(&step_noise(step)?, variance.sqrt())?)? } else { mean }
                }
            };
            tap(step, &said, &x);
        }
        Ok(x)
    }
}

/// A diffusion head on a trunk's hidden states.
#[derive(Clone, Debug)]
pub struct DiffusionHead {
    config: DiffusionConfig,
    body: Body,
}

impl DiffusionHead {
    /// Reads its body; chunks of `horizon` actions of `dims` numbers.
    pub fn new(
        weights: &Weights,
        body: &BodyConfig,
        config: DiffusionConfig,
        horizon: usize,
        dims: usize,
    ) -> Result<Self> {
        config.kept()?;
        Ok(Self { body: Body::new(weights, body, (horizon, dims, dims), true)?, config })
    }

    /// Times of the body run from 0 to 1.
    fn field<'a>(&'a self, conditioning: &'a Tensor) -> impl FnMut(&Tensor, &Tensor) -> Result<Tensor> + 'a {
        let all = self.config.train_steps as f64;
        move |x, t| self.body.forward(Some((x, &(t / all)?)), conditioning)
    }
}

impl Head for DiffusionHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let noise = draw_normal(rng, actions.dims())?;
        let times: Vec<usize> =
            (0..actions.dim(0)?).map(|_| rng.random_range(0..self.config.train_steps)).collect();
        let mut field = self.field(conditioning);
        Ok(self.config.squared_errors(&mut field, actions, &noise, &times)?.mean_all()?)
    }

    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let shape = [conditioning.dim(0)?, self.body.horizon(), self.body.dims()];
        let noise = draw_normal(rng, &shape)?;
        let mut field = self.field(conditioning);
        let mut more = |_: usize| draw_normal(rng, &shape);
        self.config.sample(&mut field, &noise, &mut more, &mut |_, _, _| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn config(sampler: Sampler, prediction: Prediction) -> DiffusionConfig {
        DiffusionConfig { sampler, prediction, ..DiffusionConfig::default() }
    }

    #[test]
    fn a_network_that_knows_brings_every_sampler_to_the_actions() -> Result<()> {
        let actions = Tensor::new(&[[[0.3f32, -0.7], [0.1, 0.9]]], &Device::Cpu)?;
        let noise = Tensor::new(&[[[1.0f32, -2.0], [0.5, 0.1]]], &Device::Cpu)?;
        for prediction in [Prediction::Epsilon, Prediction::Sample, Prediction::VPrediction] {
            for sampler in [Sampler::Ddpm, Sampler::Ddim] {
                let config = config(sampler, prediction);
                let kept = config.kept()?;
                // What it should say at any x is known, since x and the actions fix the noise.
                let mut knows = |x: &Tensor, t: &Tensor| {
                    let t = t.get(0)?.to_scalar::<f32>()? as usize;
                    let (signal, spread) = (f64::from(kept[t].sqrt()), f64::from((1.0 - kept[t]).sqrt()));
                    let noise = ((x - (&actions * signal)?)? / spread)?;
                    config.target(&actions, &noise, &[t])
                };
                let mut none = |_: usize| Ok(noise.zeros_like()?);
                let got = config.sample(&mut knows, &noise, &mut none, &mut |_, _, _| {})?;
                let worst = (got - &actions)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(worst < 1e-3, "{sampler:?} {prediction:?}: {worst}");
                let loss = config.squared_errors(&mut knows, &actions, &noise, &[40])?;
                assert!(loss.mean_all()?.to_scalar::<f32>()? < 1e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn the_schedule_is_the_squared_cosine_and_visits_even_steps_down_to_zero() -> Result<()> {
        let config = DiffusionConfig::default();
        let kept = config.kept()?;
        assert!(kept.windows(2).all(|w| w[1] < w[0]) && kept[0] > 0.99 && kept[99] < 1e-4);
        assert_eq!(config.times(), [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]);
        let bad = DiffusionConfig { steps: 0, ..config.clone() };
        let x = Tensor::new(&[[[1f32]]], &Device::Cpu)?;
        let mut field = |x: &Tensor, _: &Tensor| Ok(x.clone());
        assert!(bad.sample(&mut field, &x, &mut |_| Ok(x.clone()), &mut |_, _, _| {}).is_err());
        assert!(DiffusionConfig { betas: Betas::Linear(0.1, 1.5), ..config }.kept().is_err());
        Ok(())
    }
}
