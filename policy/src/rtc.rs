//! Real-time chunking (Black et al. 2025, <https://arxiv.org/abs/2506.07339>): while a chunk is sampled, its start is
//! pulled towards the rest of the last chunk, which the arm is still carrying out. Straight, as LeRobot does it, or back
//! through the network, as the paper does. Or the network was trained to go on behind a start that is fixed
//! (<https://arxiv.org/abs/2512.05964>): then nothing is pulled.

use crate::flow::Field;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result};

/// How the last chunk's rest acts on the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// What the chunk would become is pulled as if the network's Jacobian were the identity (LeRobot).
    #[default]
    Straight,
    /// The pull goes back through the network: a vector-Jacobian product per step (the paper).
    Through,
    /// The actions of the delay are given, clean, and the network goes on behind them; for networks trained so.
    Fixed,
}

/// How strongly each tick of the old chunk pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// 1 during the delay, then 0.
    Zeros,
    /// 1 up to the execution horizon, then 0.
    Ones,
    /// 1 during the delay, then falling in a line to 0 at the execution horizon.
    Linear,
    /// As `Linear`, bent: `w (e^w - 1) / (e - 1)`.
    Exp,
}

/// Real-time chunking as a setting: a new chunk starts as the rest of the last one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guide {
    /// How the pull falls off after the delay.
    pub schedule: Schedule,
    /// Upper bound of the pull.
    pub max_weight: f64,
    /// How the last chunk acts on the new one.
    #[serde(default)]
    pub pull: Pull,
    /// How long it does.
    #[serde(default)]
    pub until: Until,
}

/// `rtc_config` of a LeRobot folder.
#[derive(Clone, Debug, Deserialize)]
pub struct LeRobotRtc {
    enabled: bool,
    prefix_attention_schedule: String,
    max_guidance_weight: f64,
    execution_horizon: usize,
}

impl LeRobotRtc {
    /// As a setting of ours; none where it is not enabled.
    ///
    /// # Errors
    /// A schedule that is not known.
    pub fn guide(&self) -> Result<Option<Guide>> {
        let schedule = match self.prefix_attention_schedule.to_uppercase().as_str() {
            "ZEROS" => Schedule::Zeros,
            "ONES" => Schedule::Ones,
            "LINEAR" => Schedule::Linear,
            "EXP" => Schedule::Exp,
            other => {
                return Err(Error::invalid(format!(
                    "rtc_config: prefix_attention_schedule: expected ZEROS, ONES, LINEAR or EXP, got '{other}'"
                )));
            }
        };
        let (max_weight, until) = (self.max_guidance_weight, Until::Tick(self.execution_horizon));
        Ok(self.enabled.then_some(Guide { schedule, max_weight, pull: Pull::Straight, until }))
    }
}

/// Up to where the old chunk acts on the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Up to as many ticks before the end as are carried out of a chunk (the paper).
    #[default]
    Executed,
    /// Up to this tick of the new chunk, whatever the delay (LeRobot's `execution_horizon`).
    Tick(usize),
    /// So many ticks after the delay: the smaller, the sooner what was just seen counts.
    AfterDelay(usize),
}

impl Until {
    /// The first tick that is free of the old chunk, where `execute` of `horizon` actions are carried out.
    pub fn tick(self, horizon: usize, execute: usize, delay: usize) -> usize {
        match self {
            Self::Executed => horizon.saturating_sub(execute),
            Self::Tick(tick) => tick,
            Self::AfterDelay(ticks) => delay.saturating_add(ticks),
        }
    }
}

/// Whether a policy's chunks go on where the last ones lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rtc {
    /// As its folder says.
    #[default]
    AsStated,
    /// As its folder says, and where it says nothing, as [`Guide::default`].
    On,
    /// Never.
    Off,
}

impl Rtc {
    /// The setting, where a folder has `stated` one.
    pub fn guide(self, stated: Option<Guide>) -> Option<Guide> {
        match self {
            Self::AsStated => stated,
            Self::On => Some(stated.unwrap_or_default()),
            Self::Off => None,
        }
    }
}

impl Default for Guide {
    /// What was measured on the tabletop under delay (`docs/heads.md`). It ends soon after the delay, so that it also
    /// acts where all of a chunk is carried out.
    fn default() -> Self {
        Self { schedule: Schedule::Ones, max_weight: 5.0, pull: Pull::Straight, until: Until::AfterDelay(4) }
    }
}

impl Guide {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// A bound below 0, or no number.
    pub fn check(&self) -> Result<()> {
        if self.max_weight.is_finite() && self.max_weight >= 0.0 {
            return Ok(());
        }
        let got = self.max_weight;
        Err(Error::invalid(format!("real-time chunking: expected a pull of at least 0, got {got}")))
    }
}

/// Guidance of one chunk.
#[derive(Clone, Debug)]
pub struct Guidance {
    /// The old chunk's rest, normalised, `[b, ticks, dims]`; padded ticks never pull.
    pub left_over: Tensor,
    /// Ticks that will have passed when the new chunk arrives.
    pub delay: usize,
    /// First tick that is free of the old chunk.
    pub execution_horizon: usize,
    /// How the pull falls off.
    pub schedule: Schedule,
    /// Upper bound of the pull.
    pub max_weight: f64,
    /// How the old chunk acts.
    pub pull: Pull,
}

impl Schedule {
    /// The weight of each of `total` ticks.
    pub fn weights(self, delay: usize, end: usize, total: usize) -> Vec<f32> {
        let start = delay.min(end);
        let steps = end.min(total).saturating_sub(start) as f64;
        (0..total)
            .map(|tick| {
                let line = 1.0 - (tick + 1).saturating_sub(start) as f64 / (steps + 1.0);
                let weight = match self {
                    _ if self != Self::Ones && tick < start => 1.0,
                    Self::Ones => f64::from(tick < end),
                    Self::Zeros => 0.0,
                    _ if tick >= end => 0.0,
                    Self::Linear => line,
                    Self::Exp => line * line.exp_m1() / (std::f64::consts::E - 1.0),
                };
                weight as f32
            })
            .collect()
    }
}

impl Guidance {
    /// The guided velocity at `x` and `time`, where time runs from 1 (noise) to 0 (actions).
    /// `x` and `velocity` are `[b, horizon, dims]`.
    pub fn apply(&self, x: &Tensor, velocity: &Tensor, time: f64) -> Result<Tensor> {
        let pull = self.pull(&(x - (velocity * time)?)?)?;
        Ok((velocity - (pull * self.strength(time))?)?)
    }

    /// The same with the pull taken back through the network: `field` is asked at `x [b, horizon, dims]` and `times [b]`, all
    /// of one `time`.
    pub fn apply_through(&self, field: &mut Field, x: &Tensor, times: &Tensor, time: f64) -> Result<Tensor> {
        let at = Var::from_tensor(x)?;
        let velocity = field(at.as_tensor(), times)?;
        let clean = (at.as_tensor() - (&velocity * time)?)?;
        let pull = self.pull(&clean.detach())?;
        let grads = (clean * pull)?.sum_all()?.backward()?;
        let back = grads.get(at.as_tensor());
        let back =
            back.ok_or_else(|| Error::invalid("real-time chunking: the network ignores its actions"))?;
        Ok((velocity.detach() - (back * self.strength(time))?)?)
    }

    /// How far what the chunk would become is from the old one, weighed tick by tick.
    fn pull(&self, clean: &Tensor) -> Result<Tensor> {
        let (b, horizon, dims) = clean.dims3()?;
        let (_, ticks, width) = self.left_over.dims3()?;
        let ticks = ticks.min(horizon);
        let mut old = self.left_over.narrow(1, 0, ticks)?.narrow(2, 0, width.min(dims))?;
        if width < dims {
            old = old.pad_with_zeros(2, 0, dims - width)?;
        }
        old = old.pad_with_zeros(1, 0, horizon - ticks)?;
        let end = self.execution_horizon.min(ticks);
        let mut weights = self.schedule.weights(self.delay, end, horizon);
        weights.iter_mut().skip(ticks).for_each(|w| *w = 0.0);
        let weights = Tensor::from_vec(weights, (1, horizon, 1), clean.device())?;
        Ok((old - clean)?.broadcast_mul(&weights.broadcast_as((b, horizon, 1))?)?)
    }

    fn strength(&self, time: f64) -> f64 {
        let tau = 1.0 - time;
        let spread = (time * time + tau * tau) / (time * time);
        let strength = if tau == 0.0 { f64::INFINITY } else { time / tau * spread };
        if strength.is_nan() { 0.0 } else { strength.min(self.max_weight) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_hold_during_the_delay_and_end_at_the_horizon() {
        assert_eq!(Schedule::Zeros.weights(2, 4, 5), [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(Schedule::Ones.weights(2, 4, 5), [1.0, 1.0, 1.0, 1.0, 0.0]);
        let linear = Schedule::Linear.weights(1, 4, 6);
        let want = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0];
        assert!(linear.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{linear:?}");
        let exp = Schedule::Exp.weights(1, 4, 6);
        assert!(exp[1] < linear[1] && exp[0] == 1.0 && exp[4] == 0.0);
    }

    #[test]
    fn the_old_chunk_acts_as_long_as_is_said() {
        assert_eq!(Until::Executed.tick(20, 8, 9), 12);
        assert_eq!(Until::Tick(10).tick(20, 8, 9), 10);
        assert_eq!(Until::AfterDelay(3).tick(20, 8, 9), 12);
    }

    #[test]
    fn a_folder_of_lerobot_says_how() -> Result<()> {
        let read = |schedule: &str, enabled: bool| -> Result<Option<Guide>> {
            let stated = serde_json::json!({"enabled": enabled, "prefix_attention_schedule": schedule,
                "max_guidance_weight": 10.0, "execution_horizon": 10, "debug": false, "debug_maxlen": 100});
            serde_json::from_value::<LeRobotRtc>(stated).map_err(Error::invalid)?.guide()
        };
        let guide = read("LINEAR", true)?;
        let until = Until::Tick(10);
        let want = Guide { schedule: Schedule::Linear, max_weight: 10.0, pull: Pull::Straight, until };
        assert_eq!(guide, Some(want));
        assert_eq!(read("EXP", false)?, None);
        assert!(read("SINE", true).is_err_and(|e| e.to_string().contains("got 'SINE'")));
        Ok(())
    }

    #[test]
    fn padding_of_a_short_rest_never_pulls() -> Result<()> {
        let cpu = &candle_core::Device::Cpu;
        let (x, velocity) = (
            Tensor::ones((1, 6, 2), candle_core::DType::F32, cpu)?,
            Tensor::zeros((1, 6, 2), candle_core::DType::F32, cpu)?,
        );
        let guidance = Guidance {
            left_over: Tensor::full(5f32, (1, 2, 1), cpu)?,
            delay: 1,
            execution_horizon: 6,
            schedule: Schedule::Ones,
            max_weight: 5.0,
            pull: Pull::Straight,
        };
        let pulled = guidance.apply(&x, &velocity, 0.5)?.squeeze(0)?.to_vec2::<f32>()?;
        assert!(pulled[..2].iter().all(|row| row[0] < 0.0), "{pulled:?}");
        assert!(
            pulled[2..].iter().all(|row| row == &[0.0, 0.0]),
            "ticks that the old chunk does not have: {pulled:?}"
        );
        Ok(())
    }

    #[test]
    fn through_a_network_that_ignores_its_place_the_pull_is_straight() -> Result<()> {
        let cpu = &candle_core::Device::Cpu;
        let x = Tensor::new(&[[[0.3f32, -0.2], [0.1, 0.5], [0.7, 0.0]]], cpu)?;
        let guidance = Guidance {
            left_over: Tensor::full(0.4f32, (1, 3, 2), cpu)?,
            delay: 1,
            execution_horizon: 3,
            schedule: Schedule::Linear,
            max_weight: 5.0,
            pull: Pull::Through,
        };
        let (time, times) = (0.6, Tensor::new(&[0.6f32], cpu)?);
        let flat = |t: Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        let constant = Tensor::full(0.25f32, (1, 3, 2), cpu)?;
        let straight = flat(guidance.apply(&x, &constant, time)?)?;
        let through =
            flat(guidance.apply_through(&mut |x, _| Ok(((x * 0.0)? + &constant)?), &x, &times, time)?)?;
        assert!(straight.iter().zip(&through).all(|(a, b)| (a - b).abs() < 1e-6), "{straight:?} {through:?}");
        // v = a x: what the chunk would become is (1 - time a) x, and so is the pull scaled.
        let slope = 0.5;
        let velocity = (&x * slope)?;
        let straight = (&velocity - guidance.apply(&x, &velocity, time)?)?;
        let through = guidance.apply_through(&mut |x, _| Ok((x * slope)?), &x, &times, time)?;
        let (a, b) = (flat((straight * (1.0 - time * slope))?)?, flat((&velocity - through)?)?);
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
        Ok(())
    }
}
