//! Where the actions of a rollout come from: a policy's chunks or an expert's labels.

use super::{Hook, RolloutEvent, RolloutOptions};
use crate::queue::ChunkQueue;
use crate::resolve::{Plan, Resolver, chunk_seed, require_policy_fits};
use std::collections::VecDeque;
use vela_embodiment::{
    Action, Clock, Embodiment, Environment, Error, Expert, InferOptions, MonotonicClock, Observation, Policy,
    Result, Stamp,
};

/// What a planner says about one tick.
pub(super) struct Answer {
    /// The action, with the stamp of the observation that it answers; `None` holds.
    pub(super) action: Option<(Action, Stamp)>,
    /// Whether it thought anew, or why it could not.
    pub(super) thought: Result<bool>,
}

/// A source of actions for one episode.
pub(super) trait Planner<E: Environment + ?Sized> {
    /// Whether [`Self::answer`] needs an observation at the tick that starts at `now`.
    fn needs_observation(&self, now: Stamp) -> bool;
    /// The action for the tick that starts at `now`.
    fn answer(
        &mut self,
        environment: &E,
        observation: Option<&Observation>,
        now: Stamp,
        hook: &mut Hook<'_, E>,
    ) -> Answer;
}

pub(super) struct ExpertPlanner<'a, E: Environment + ?Sized> {
    pub(super) expert: &'a mut dyn Expert<E>,
}

impl<E: Environment + ?Sized> Planner<E> for ExpertPlanner<'_, E> {
    fn needs_observation(&self, _: Stamp) -> bool {
        false
    }

    fn answer(
        &mut self,
        environment: &E,
        _: Option<&Observation>,
        now: Stamp,
        _: &mut Hook<'_, E>,
    ) -> Answer {
        match self.expert.label(environment) {
            Ok(action) => Answer { action: Some((action, now)), thought: Ok(true) },
            Err(error) => Answer { action: None, thought: Err(error) },
        }
    }
}

/// Asks a policy for chunks, receding horizon, with an optional delay.
pub(super) struct PolicyPlanner<'a> {
    policy: &'a mut dyn Policy,
    resolver: Resolver,
    queue: ChunkQueue,
    /// The plan on its way and the time from which it may be used.
    underway: Option<(Stamp, Plan)>,
    history: VecDeque<Observation>,
    delay_ticks: usize,
    tick_secs: f64,
    seed: u64,
    asked: u64,
    watch: MonotonicClock,
}

impl<'a> PolicyPlanner<'a> {
    pub(super) fn new(
        robot: &Embodiment,
        policy: &'a mut dyn Policy,
        options: &RolloutOptions,
    ) -> Result<Self> {
        require_policy_fits(robot, policy.spec())?;
        let execute = options.execute.unwrap_or(policy.spec().execute);
        Ok(Self {
            resolver: Resolver::new(robot)?,
            queue: ChunkQueue::new(robot.period_secs(), execute),
            underway: None,
            history: VecDeque::new(),
            delay_ticks: options.delay_ticks,
            tick_secs: robot.period_secs(),
            seed: options.seed,
            asked: 0,
            watch: MonotonicClock::new(),
            policy,
        })
    }

    fn due(&self, now: Stamp) -> bool {
        self.underway.is_none() && self.queue.due(now, self.delay_ticks)
    }

    /// Remembers as many observations as the policy wants; at the start of an episode the first stands for those
    /// before it.
    fn remember(&mut self, observation: &Observation) {
        let wanted = self.policy.spec().history;
        if self.history.is_empty() {
            self.history.extend(std::iter::repeat_n(observation.clone(), wanted - 1));
        }
        while self.history.len() >= wanted {
            self.history.pop_front();
        }
        self.history.push_back(observation.clone());
    }

    fn think<E: Environment + ?Sized>(
        &mut self,
        environment: &E,
        observation: &Observation,
        now: Stamp,
        hook: &mut Hook<'_, E>,
    ) -> Result<()> {
        let options = InferOptions {
            seed: chunk_seed(self.seed, self.asked),
            delay_ticks: self.delay_ticks,
            unexecuted: self.queue.unexecuted(now),
        };
        self.asked += 1;
        let start = self.watch.now();
        let chunk = self.policy.infer(self.history.make_contiguous(), &options)?;
        let infer_secs = self.watch.now().secs_since(start);
        let plan = self.resolver.resolve(&chunk, &observation.joint_positions)?;
        if chunk.observation_stamp != observation.stamp {
            return Err(Error::Policy(format!(
                "the chunk answers the observation at {:.4} s, asked was the one at {:.4} s",
                chunk.observation_stamp.secs(),
                observation.stamp.secs()
            )));
        }
        hook(environment, RolloutEvent::Chunk { observation, chunk: &chunk, infer_secs });
        // Half a tick of slack absorbs the rounding of stamps.
        self.underway = Some((now.plus_secs((self.delay_ticks as f64 - 0.5) * self.tick_secs), plan));
        Ok(())
    }
}

impl<E: Environment + ?Sized> Planner<E> for PolicyPlanner<'_> {
    fn needs_observation(&self, now: Stamp) -> bool {
        self.policy.spec().history > 1 || self.due(now)
    }

    fn answer(
        &mut self,
        environment: &E,
        observation: Option<&Observation>,
        now: Stamp,
        hook: &mut Hook<'_, E>,
    ) -> Answer {
        let mut thought = Ok(false);
        if let Some(observation) = observation {
            self.remember(observation);
            if self.due(now) {
                thought = self.think(environment, observation, now, hook).map(|()| true);
            }
        }
        if let Some((_, plan)) = self.underway.take_if(|(from, _)| *from <= now) {
            self.queue.merge(plan, now);
        }
        Answer { action: self.queue.action(now), thought }
    }
}
