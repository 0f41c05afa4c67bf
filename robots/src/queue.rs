//! The chunk queue: which action a tick gets, when a newer chunk takes over, when to ask for the next one.
//!
//! Actions are looked up by time, so a chunk that comes late starts at the action whose time has come: nothing is
//! replayed and nothing jumps back.

use crate::resolve::Plan;
use vela_embodiment::{Action, Stamp};

/// What became of a plan that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// It is now the plan; this many of its actions were skipped because their time has passed.
    Taken {
        /// Actions skipped.
        skipped: usize,
    },
    /// It answers an observation older than the present plan's.
    Older,
    /// All its time has passed.
    Expired,
    /// A command is playing.
    CommandPlays,
}

/// Holds the present plan of one arm.
#[derive(Clone, Debug)]
pub struct ChunkQueue {
    tick_secs: f64,
    execute: usize,
    plan: Option<Plan>,
}

impl ChunkQueue {
    /// For a control period of `tick_secs`, asking for the next chunk after `execute` ticks of the present one.
    pub fn new(tick_secs: f64, execute: usize) -> Self {
        Self { tick_secs, execute: execute.max(1), plan: None }
    }

    /// Changes after how many ticks the next chunk is wanted.
    pub fn set_execute(&mut self, execute: usize) {
        self.execute = execute.max(1);
    }

    /// The present plan.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Forgets the plan.
    pub fn clear(&mut self) {
        self.plan = None;
    }

    /// Offers a plan at the tick that starts at `now`.
    pub fn merge(&mut self, plan: Plan, now: Stamp) -> Merge {
        if plan.at(now.plus_secs(self.tick_secs)).is_none() {
            return Merge::Expired;
        }
        if !plan.command
            && let Some(present) = &self.plan
        {
            if present.command && present.at(now.plus_secs(self.tick_secs)).is_some() {
                return Merge::CommandPlays;
            }
            if plan.observation_stamp < present.observation_stamp {
                return Merge::Older;
            }
        }
        let passed = now.secs_since(plan.observation_stamp) / plan.period_secs;
        let skipped = (passed + 1e-3).max(0.0) as usize;
        self.plan = Some(plan);
        Merge::Taken { skipped }
    }

    /// The action for the tick that starts at `now`, and the stamp that the gate judges its age by: the targets to
    /// be reached when the tick ends. `None` before the first plan and after the end of the last.
    pub fn action(&self, now: Stamp) -> Option<(Action, Stamp)> {
        let plan = self.plan.as_ref()?;
        let joint_targets = plan.at(now.plus_secs(self.tick_secs))?;
        let stamp = if plan.command { now } else { plan.observation_stamp };
        Some((Action { joint_targets }, stamp))
    }

    /// What is still to be carried out from the tick at `now` on: absolute joint targets, one row per control tick,
    /// `[ticks][joints]`, rad or m. At the stamp of an observation, row `k` is for the tick of action `k` of the chunk
    /// that will answer it.
    pub fn unexecuted(&self, now: Stamp) -> Vec<Vec<f64>> {
        let Some(plan) = &self.plan else { return Vec::new() };
        (1..)
            .map_while(|k| plan.at(now.plus_secs(f64::from(k) * self.tick_secs)))
            // A plan is bounded by its sender; this bounds what we hand on.
            .take(1024)
            .collect()
    }

    /// Whether a chunk that takes `lead_ticks` to arrive has to be asked for at the tick that starts at `now`, so
    /// that it takes over after `execute` ticks of the present one.
    pub fn due(&self, now: Stamp, lead_ticks: usize) -> bool {
        let Some(plan) = &self.plan else { return true };
        if plan.command {
            return plan.at(now.plus_secs((lead_ticks + 1) as f64 * self.tick_secs)).is_none();
        }
        let carried_out = now.secs_since(plan.observation_stamp) / self.tick_secs;
        carried_out + lead_ticks as f64 + 0.5 >= self.execute as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan whose targets are the seconds at which they are to be reached.
    fn plan(observed_secs: f64, period_secs: f64, horizon: usize) -> Plan {
        let target = |k| observed_secs + f64::from(k) * period_secs;
        Plan {
            targets: (1..=horizon as u32).map(|k| vec![target(k)]).collect(),
            period_secs,
            observation_stamp: Stamp::from_secs(observed_secs),
            command: false,
        }
    }

    fn asked(queue: &ChunkQueue, now_secs: f64) -> Option<f64> {
        queue.action(Stamp::from_secs(now_secs)).map(|(action, _)| action.joint_targets[0])
    }

    #[test]
    fn actions_between_two_targets_are_interpolated_and_end_with_the_chunk() {
        let mut queue = ChunkQueue::new(0.02, 4);
        assert_eq!(asked(&queue, 1.0), None);
        queue.merge(plan(1.0, 0.1, 3), Stamp::from_secs(1.0));
        for k in 4..15 {
            let now = 1.0 + f64::from(k) * 0.02;
            let target = asked(&queue, now);
            if k < 15 {
                assert!(target.is_some_and(|t| (t - now - 0.02).abs() < 1e-6), "{now} {target:?}");
            }
        }
        assert_eq!(asked(&queue, 1.30), None);
        assert_eq!(asked(&queue, 1.0), Some(1.1), "before the first target: the first target");
    }

    #[test]
    fn a_late_chunk_starts_where_time_is_and_an_older_one_is_refused() {
        let mut queue = ChunkQueue::new(0.1, 2);
        queue.merge(plan(1.0, 0.1, 8), Stamp::from_secs(1.0));
        let now = Stamp::from_secs(1.5);
        assert_eq!(queue.merge(plan(1.2, 0.1, 8), now), Merge::Taken { skipped: 3 });
        assert!(asked(&queue, 1.5).is_some_and(|t| (t - 1.6).abs() < 1e-6));
        assert_eq!(queue.merge(plan(1.1, 0.1, 8), now), Merge::Older);
        assert_eq!(queue.merge(plan(1.3, 0.1, 2), now), Merge::Expired);
        assert_eq!(queue.plan().map(|p| p.observation_stamp), Some(Stamp::from_secs(1.2)));
    }

    #[test]
    fn the_horizon_recedes_and_the_rest_is_known() {
        let mut queue = ChunkQueue::new(0.1, 4);
        assert!(queue.due(Stamp::from_secs(1.0), 0));
        queue.merge(plan(1.0, 0.1, 8), Stamp::from_secs(1.0));
        assert!(!queue.due(Stamp::from_secs(1.3), 0));
        assert!(queue.due(Stamp::from_secs(1.4), 0));
        assert!(queue.due(Stamp::from_secs(1.2), 2), "asked for early by the delay");
        let rest = queue.unexecuted(Stamp::from_secs(1.4));
        assert_eq!(rest.len(), 4);
        assert!((rest[0][0] - 1.5).abs() < 1e-6);
    }

    #[test]
    fn a_command_plays_to_its_end() {
        let mut queue = ChunkQueue::new(0.1, 2);
        queue.merge(Plan { command: true, ..plan(1.0, 0.1, 4) }, Stamp::from_secs(1.0));
        let now = Stamp::from_secs(1.2);
        assert_eq!(queue.merge(plan(1.2, 0.1, 8), now), Merge::CommandPlays);
        assert_eq!(queue.action(now).map(|(_, stamp)| stamp), Some(now), "a command does not go stale");
        let after = Stamp::from_secs(1.4);
        assert!(queue.due(after, 0));
        assert!(matches!(queue.merge(plan(1.4, 0.1, 8), after), Merge::Taken { .. }));
    }
}
