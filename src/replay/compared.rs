//! A policy asked at every recorded observation: how far its answers are from what was recorded, from one another,
//! and from what the gate lets through.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, VecDeque};
use vela_embodiment::{
    Action, Clock, Embodiment, GateConfig, InferOptions, MonotonicClock, Policy, SafetyGate, TripReason,
};
use vela_episodes::{ActionError, EncodedEpisode};
use vela_robots::{Resolver, chunk_seed};

/// An answer to one observation.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The episode's number.
    pub episode: usize,
    /// The frame's number in it.
    pub frame: usize,
    /// Seconds since the episode's start.
    pub secs: f64,
    /// Mean absolute error over joints and steps.
    pub mae: f64,
    /// The joint with the largest mean error.
    pub joint: String,
    /// That error.
    pub joint_mae: f64,
}

/// Everything that is known about a policy on a dataset.
pub struct Compared {
    embodiment: Embodiment,
    resolver: Resolver,
    gate: GateConfig,
    seed: u64,
    every: usize,
    /// By joint and step.
    pub error: ActionError,
    /// Each answer.
    pub moments: Vec<Moment>,
    /// Seconds of each inference.
    pub infer_secs: Vec<f64>,
    /// At each moment where one chunk would follow another: the largest difference of a joint between what the old one
    /// had planned for that tick and what the new one begins with, rad or m.
    pub splices: Vec<f64>,
    /// Ticks that were put through the gate.
    pub gate_ticks: usize,
    /// Those on which it stepped in.
    pub tripped_ticks: usize,
    /// How often, by reason.
    pub trips: BTreeMap<TripReason, u64>,
}

/// The answers of one episode: frame and absolute joint targets `[steps][joints]`, rad or m.
pub type Plans = Vec<(usize, Vec<Vec<f64>>)>;

impl Compared {
    /// Nothing yet. Infers at every `every`-th frame; `gate` is what this arm narrows.
    pub fn new(embodiment: &Embodiment, gate: GateConfig, seed: u64, every: usize) -> Result<Self> {
        Ok(Self {
            resolver: Resolver::new(embodiment)?,
            error: ActionError::new(&embodiment.joint_names()),
            embodiment: embodiment.clone(),
            gate,
            seed,
            every,
            moments: Vec::new(),
            infer_secs: Vec::new(),
            splices: Vec::new(),
            gate_ticks: 0,
            tripped_ticks: 0,
            trips: BTreeMap::new(),
        })
    }

    /// Asks the policy along one episode.
    pub fn episode(&mut self, recorded: &EncodedEpisode, policy: &mut dyn Policy) -> Result<Plans> {
        let clock = MonotonicClock::new();
        let (history, execute) = (policy.spec().history.max(1), policy.spec().execute.max(1));
        let fps = self.embodiment.control_hz;
        let mut seen = VecDeque::with_capacity(history);
        let mut plans: Plans = Vec::new();
        for frame in 0..recorded.len() {
            let observation = recorded.frame(frame)?.observation;
            // The first observation stands in for those before it.
            while seen.len() + 1 < history {
                seen.push_back(observation.clone());
            }
            seen.push_back(observation);
            if seen.len() > history {
                seen.pop_front();
            }
            if frame % self.every != 0 {
                continue;
            }
            let seed = chunk_seed(self.seed ^ recorded.index as u64, frame as u64);
            let started = clock.now();
            let options = InferOptions { seed, ..InferOptions::default() };
            let chunk = policy.infer(seen.make_contiguous(), &options)?;
            self.infer_secs.push(clock.now().secs_since(started));
            let plan = self.resolver.resolve(&chunk, &recorded.states[frame])?;
            self.error.add(&recorded.actions, fps, frame, &plan.targets, plan.period_secs)?;
            self.moments.push(self.moment(recorded, frame, &plan.targets, plan.period_secs)?);
            if let Some((_, old)) =
                frame.checked_sub(execute).and_then(|before| plans.iter().rev().find(|(at, _)| *at == before))
                && let (Some(planned), Some(first)) = (old.get(execute), plan.targets.first())
            {
                let jumps = planned.iter().zip(first).map(|(a, b)| (a - b).abs());
                self.splices.push(jumps.fold(0.0, f64::max));
            }
            plans.push((frame, plan.targets));
        }
        self.gate(recorded, &plans, execute)?;
        Ok(plans)
    }

    fn moment(
        &self,
        recorded: &EncodedEpisode,
        frame: usize,
        targets: &[Vec<f64>],
        period_secs: f64,
    ) -> Result<Moment> {
        let mut own = ActionError::new(&self.embodiment.joint_names());
        own.add(&recorded.actions, self.embodiment.control_hz, frame, targets, period_secs)?;
        let by_joint = own.by_joint();
        let worst = by_joint.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let (joint, joint_mae) =
            worst.map_or((String::new(), 0.0), |(k, mae)| (own.joints()[k].clone(), *mae));
        Ok(Moment {
            episode: recorded.index,
            frame,
            secs: recorded.timestamps_secs[frame],
            mae: own.mean().unwrap_or_default(),
            joint,
            joint_mae,
        })
    }

    /// Puts the answers through a gate as a control loop would: a new one each `execute` ticks.
    fn gate(&mut self, recorded: &EncodedEpisode, plans: &Plans, execute: usize) -> Result<()> {
        let Some(start) = recorded.states.first() else { return Ok(()) };
        let mut gate = SafetyGate::new(&self.embodiment, self.gate.clone(), start)
            .with_context(|| format!("the gate, at the start of episode {}", recorded.index))?;
        let mut playing: Option<&(usize, Vec<Vec<f64>>)> = None;
        let stamp = |frame: usize| vela_embodiment::Stamp::from_secs(recorded.timestamps_secs[frame]);
        for frame in 0..recorded.len() {
            if playing.is_none_or(|(from, _)| frame - from >= execute) {
                playing = plans.iter().find(|(at, _)| *at == frame).or(playing);
            }
            let asked = playing.and_then(|(from, targets)| {
                let joint_targets = targets.get(frame - from)?.clone();
                Some((Action { joint_targets }, stamp(*from)))
            });
            let verdict = gate.check(asked.as_ref().map(|(action, from)| (action, *from)), stamp(frame));
            self.gate_ticks += 1;
            self.tripped_ticks += usize::from(!verdict.trips.is_empty());
        }
        for (reason, count) in gate.counts() {
            *self.trips.entry(*reason).or_default() += count;
        }
        Ok(())
    }

    /// The moment of worst disagreement in one episode.
    pub fn worst_of(&self, episode: usize) -> Option<&Moment> {
        let own = self.moments.iter().filter(|moment| moment.episode == episode);
        own.max_by(|a, b| a.mae.total_cmp(&b.mae))
    }

    /// The moments of worst disagreement, worst first.
    pub fn worst(&self, count: usize) -> Vec<&Moment> {
        let mut worst: Vec<&Moment> = self.moments.iter().collect();
        worst.sort_by(|a, b| b.mae.total_cmp(&a.mae));
        worst.truncate(count);
        worst
    }
}
