//! Flow matching (Lipman et al. 2022, <https://arxiv.org/abs/2210.02747>; for actions: pi0,
//! <https://arxiv.org/abs/2410.24164>): loss and sampling side by side over one conditioning path.

use crate::head::{Body, BodyConfig, Head};
use candle_core::Tensor;
use rand::{Rng, RngCore};
use rand_distr::{Beta, Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result, Weights};

/// Which end of time is noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Noise at 1, actions at 0 (openpi, SmolVLA): `x_t = t noise + (1 - t) actions`, `v = noise - actions`.
    NoiseAtOne,
    /// Noise at 0, actions at 1 (GR00T): `x_t = (1 - t) noise + t actions`, `v = actions - noise`.
    NoiseAtZero,
}

/// How the flow is integrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// One velocity per step.
    Euler,
    /// Two velocities per step, averaged.
    Heun,
}

/// What noise is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseLaw {
    /// Normal, mean 0, variance 1.
    Normal,
    /// Uniform in [-1, 1).
    Uniform,
}

/// What noise levels are drawn from in training: 0 is clean, 1 is pure noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLaw {
    /// Uniform in [0, 1).
    Uniform,
    /// `Beta(alpha, beta) * scale + shift`; pi0 uses 1.5, 1, 0.999, 0.001.
    Beta {
        /// First shape.
        alpha: f64,
        /// Second shape.
        beta: f64,
        /// Factor.
        scale: f64,
        /// Summand.
        shift: f64,
    },
}

/// A flow-matching head as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowConfig {
    /// Which end of time is noise.
    pub direction: Direction,
    /// How the flow is integrated.
    pub solver: Solver,
    /// Integration steps per chunk.
    pub steps: usize,
    /// What noise is drawn from.
    pub noise: NoiseLaw,
    /// What noise levels are drawn from in training.
    pub times: TimeLaw,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            direction: Direction::NoiseAtOne,
            solver: Solver::Euler,
            steps: 10,
            noise: NoiseLaw::Normal,
            times: TimeLaw::Beta { alpha: 1.5, beta: 1.0, scale: 0.999, shift: 0.001 },
        }
    }
}

/// A velocity field over chunks: `velocity(x [b, horizon, dims], times [b]) -> [b, horizon, dims]`.
pub type Field<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<Tensor> + 'a;

/// Hears each step of sampling: step, x before it and the velocity there.
pub type StepTap<'a> = dyn FnMut(usize, &Tensor, &Tensor) + 'a;

impl FlowConfig {
    /// `count` noise values.
    pub fn draw_noise(&self, count: usize, rng: &mut impl Rng) -> Vec<f32> {
        match self.noise {
            NoiseLaw::Normal => (0..count).map(|_| StandardNormal.sample(rng)).collect(),
            NoiseLaw::Uniform => (0..count).map(|_| rng.random_range(-1.0..1.0)).collect(),
        }
    }

    /// `count` flow times for training, in this head's direction of time.
    ///
    /// # Errors
    /// A beta law without positive shapes.
    pub fn draw_times(&self, count: usize, rng: &mut impl Rng) -> Result<Vec<f32>> {
        let levels: Vec<f64> = match self.times {
            TimeLaw::Uniform => (0..count).map(|_| rng.random()).collect(),
            TimeLaw::Beta { alpha, beta, scale, shift } => {
                let law = Beta::new(alpha, beta)
                    .map_err(|e| Error::invalid(format!("flow times: Beta({alpha}, {beta}): {e}")))?;
                (0..count).map(|_| law.sample(rng) * scale + shift).collect()
            }
        };
        Ok(levels.into_iter().map(|level| self.time_at(level) as f32).collect())
    }

    fn time_at(&self, noise_level: f64) -> f64 {
        match self.direction {
            Direction::NoiseAtOne => noise_level,
            Direction::NoiseAtZero => 1.0 - noise_level,
        }
    }

    /// The point between noise and actions, `[b, horizon, dims]`, at `times [b]`.
    pub fn blend(&self, actions: &Tensor, noise: &Tensor, times: &Tensor) -> Result<Tensor> {
        let (b, _, _) = actions.dims3()?;
        let t = times.reshape((b, 1, 1))?;
        let (at_one, at_zero) = match self.direction {
            Direction::NoiseAtOne => (noise, actions),
            Direction::NoiseAtZero => (actions, noise),
        };
        Ok((at_zero + (at_one - at_zero)?.broadcast_mul(&t)?)?)
    }

    /// The velocity that the field should have on the straight path from one to the other.
    pub fn target(&self, actions: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(match self.direction {
            Direction::NoiseAtOne => (noise - actions)?,
            Direction::NoiseAtZero => (actions - noise)?,
        })
    }

    /// Squared error of the field, each element, `[b, horizon, dims]`; differentiable in the field's weights.
    pub fn squared_errors(
        &self,
        field: &mut Field,
        actions: &Tensor,
        noise: &Tensor,
        times: &Tensor,
    ) -> Result<Tensor> {
        let x = self.blend(actions, noise, times)?;
        let velocity = field(&x, times)?;
        Ok((velocity - self.target(actions, noise)?)?.sqr()?)
    }

    /// Integrates from noise `[b, horizon, dims]` to actions of the same shape.
    ///
    /// # Errors
    /// No steps; whatever the field refuses.
    pub fn sample(&self, field: &mut Field, noise: &Tensor, tap: &mut StepTap) -> Result<Tensor> {
        if self.steps == 0 {
            return Err(Error::invalid("flow head: expected at least one step, got 0"));
        }
        let b = noise.dim(0)?;
        let dt = match self.direction {
            Direction::NoiseAtOne => -1.0,
            Direction::NoiseAtZero => 1.0,
        } / self.steps as f64;
        let times = |step: usize| -> Result<Tensor> {
            let time = self.time_at(1.0 - step as f64 / self.steps as f64) as f32;
            Ok(Tensor::full(time, b, noise.device())?)
        };
        let mut x = noise.clone();
        for step in 0..self.steps {
            let mut velocity = field(&x, &times(step)?)?;
            tap(step, &x, &velocity);
            // The last Heun step would ask the field at the clean end, where it was never trained: Euler there.
            if self.solver == Solver::Heun && step + 1 < self.steps {
                let ahead = field(&(&x + (&velocity * dt)?)?, &times(step + 1)?)?;
                velocity = ((velocity + ahead)? * 0.5)?;
            }
            x = (x + (velocity * dt)?)?;
        }
        Ok(x)
    }
}

/// A flow head on a trunk's hidden states, for those that are no joint attention of two stacks.
#[derive(Clone, Debug)]
pub struct FlowHead {
    config: FlowConfig,
    body: Body,
}

impl FlowHead {
    /// Reads its body; chunks of `horizon` actions of `dims` numbers.
    pub fn new(
        weights: &Weights,
        body: &BodyConfig,
        config: FlowConfig,
        horizon: usize,
        dims: usize,
    ) -> Result<Self> {
        Ok(Self { body: Body::new(weights, body, (horizon, dims, dims), true)?, config })
    }

    fn noise(&self, b: usize, mut rng: &mut dyn RngCore) -> Result<Tensor> {
        let (horizon, dims) = (self.body.horizon(), self.body.dims());
        let values = self.config.draw_noise(b * horizon * dims, &mut rng);
        Ok(Tensor::from_vec(values, (b, horizon, dims), &candle_core::Device::Cpu)?)
    }
}

impl Head for FlowHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, mut rng: &mut dyn RngCore) -> Result<Tensor> {
        let b = actions.dim(0)?;
        let noise = self.noise(b, rng)?;
        let times = Tensor::from_vec(self.config.draw_times(b, &mut rng)?, b, actions.device())?;
        let mut field = |x: &Tensor, t: &Tensor| self.body.forward(Some((x, t)), conditioning);
        Ok(self.config.squared_errors(&mut field, actions, &noise, &times)?.mean_all()?)
    }

    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let noise = self.noise(conditioning.dim(0)?, rng)?;
        let mut field = |x: &Tensor, t: &Tensor| self.body.forward(Some((x, t)), conditioning);
        self.config.sample(&mut field, &noise, &mut |_, _, _| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use vela_embodiment::stream;

    fn chunk(value: f32) -> Result<Tensor> {
        Ok(Tensor::full(value, (1, 2, 3), &Device::Cpu)?)
    }

    fn head(direction: Direction, solver: Solver, steps: usize) -> FlowConfig {
        FlowConfig { direction, solver, steps, ..FlowConfig::default() }
    }

    #[test]
    fn flow_direction_one_is_noise_for_smolvla_and_zero_is_noise_for_gr00t() -> Result<()> {
        let (actions, noise) = (chunk(2.0)?, chunk(5.0)?);
        for (direction, noisy, speed) in
            [(Direction::NoiseAtOne, 1f32, 3.0), (Direction::NoiseAtZero, 0.0, -3.0)]
        {
            let head = head(direction, Solver::Euler, 4);
            let at = |t: f32| -> Result<f32> {
                let t = Tensor::new(&[t], &Device::Cpu)?;
                Ok(head.blend(&actions, &noise, &t)?.mean_all()?.to_scalar()?)
            };
            assert_eq!((at(noisy)?, at(1.0 - noisy)?), (5.0, 2.0));
            assert_eq!(head.target(&actions, &noise)?.mean_all()?.to_scalar::<f32>()?, speed);
        }
        Ok(())
    }

    #[test]
    fn the_true_field_carries_noise_to_the_actions_in_both_directions_and_solvers() -> Result<()> {
        for direction in [Direction::NoiseAtOne, Direction::NoiseAtZero] {
            for solver in [Solver::Euler, Solver::Heun] {
                let head = head(direction, solver, 5);
                let (actions, noise) = (chunk(2.0)?, chunk(5.0)?);
                let target = head.target(&actions, &noise)?;
                let mut seen = Vec::new();
                let got = head.sample(
                    &mut |_, t| {
                        seen.push(t.to_vec1::<f32>()?[0]);
                        Ok(target.clone())
                    },
                    &noise,
                    &mut |_, _, _| {},
                )?;
                assert!((got.mean_all()?.to_scalar::<f32>()? - 2.0).abs() < 1e-6);
                assert_eq!(seen[0], if direction == Direction::NoiseAtOne { 1.0 } else { 0.0 });
                let mut exact = |_: &Tensor, _: &Tensor| Ok(target.clone());
                let times = Tensor::new(&[0.3f32], &Device::Cpu)?;
                let loss = head.squared_errors(&mut exact, &actions, &noise, &times)?.mean_all()?;
                assert!(loss.to_scalar::<f32>()? < 1e-12);
            }
        }
        Ok(())
    }

    #[test]
    fn noise_law_and_time_law_are_what_they_say() -> Result<()> {
        let mut rng = stream(3, "test");
        let mut head = FlowConfig::default();
        let normal = head.draw_noise(20_000, &mut rng);
        let moment = |xs: &[f32], power: i32| xs.iter().map(|x| x.powi(power)).sum::<f32>() / xs.len() as f32;
        assert!(moment(&normal, 1).abs() < 0.03 && (moment(&normal, 2) - 1.0).abs() < 0.05);
        head.noise = NoiseLaw::Uniform;
        let uniform = head.draw_noise(20_000, &mut rng);
        assert!(uniform.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!((moment(&uniform, 2) - 1.0 / 3.0).abs() < 0.02);
        // Beta(1.5, 1) has mean 0.6: more noise than not.
        let times = head.draw_times(20_000, &mut rng)?;
        assert!((moment(&times, 1) - 0.6).abs() < 0.01 && times.iter().all(|t| (0.001..=1.0).contains(t)));
        head.direction = Direction::NoiseAtZero;
        assert!((moment(&head.draw_times(20_000, &mut rng)?, 1) - 0.4).abs() < 0.01);
        Ok(())
    }

    #[test]
    fn no_steps_are_refused() -> Result<()> {
        let head = head(Direction::NoiseAtOne, Solver::Euler, 0);
        let noise = Tensor::zeros((1, 1, 1), DType::F32, &Device::Cpu)?;
        assert!(head.sample(&mut |x, _| Ok(x.clone()), &noise, &mut |_, _, _| {}).is_err());
        Ok(())
    }
}
