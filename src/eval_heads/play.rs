//! Episodes of one head, and what they are measured by.

use anyhow::{Context, Result};
use candle_core::Tensor;
use std::collections::VecDeque;
use vela_embodiment::{Embodiment, Environment, Episode, Policy, Robot};
use vela_policy::HeadPolicy;
use vela_robots::{RolloutEvent, RolloutOptions, rollout};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};

/// The tasks of the comparison.
pub const TASKS: [TaskKind; 3] = [TaskKind::Reach, TaskKind::Push, TaskKind::Pick];

/// How some episodes went.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Successes and episodes by task.
    pub tasks: Vec<(&'static str, [usize; 2])>,
    /// Seconds of each inference.
    pub infer_secs: Vec<f64>,
    /// Sum of the squared third differences, mrad^2 per tick^6, and how many.
    jerks: (f64, usize),
}

impl Played {
    /// Successes over all tasks.
    pub fn successes(&self) -> usize {
        self.tasks.iter().map(|(_, [won, _])| won).sum()
    }

    /// Episodes over all tasks.
    pub fn episodes(&self) -> usize {
        self.tasks.iter().map(|(_, [_, all])| all).sum()
    }

    /// Share of successes.
    pub fn rate(&self) -> f64 {
        self.successes() as f64 / self.episodes().max(1) as f64
    }

    /// Root mean square of the third difference of the commanded arm joints, mrad per tick cubed.
    pub fn jerk(&self) -> f64 {
        (self.jerks.0 / self.jerks.1.max(1) as f64).sqrt()
    }
}

/// Plays `episodes` unseen episodes, the tasks in turn.
pub fn play(policy: &mut dyn Policy, episodes: usize, seed: u64, done: &mut dyn FnMut()) -> Result<Played> {
    let embodiment = Embodiment::so101()?;
    let mut table = Tabletop::lockstep(&embodiment, Split::Test)?;
    let mut played = Played { tasks: TASKS.map(|task| (task.name(), [0, 0])).to_vec(), ..Played::default() };
    for k in 0..episodes {
        let (task, counts) = &mut played.tasks[k % TASKS.len()];
        let episode = Episode { task: (*task).to_owned(), seed: seed + k as u64, randomise: false };
        let options = RolloutOptions { seed: episode.seed, ..RolloutOptions::default() };
        let mut last = VecDeque::with_capacity(4);
        let jerks = &mut played.jerks;
        let mut watch = |_: &Tabletop, event: RolloutEvent<'_>| {
            if let RolloutEvent::Tick { asked, .. } = event {
                match asked {
                    Some(action) => last.push_back(action.joint_targets.clone()),
                    None => last.clear(),
                }
                third_differences(&mut last, jerks);
            }
        };
        let rollout = rollout(&mut table, policy, &episode, &options, &mut watch)?;
        *counts = [counts[0] + usize::from(rollout.outcome.success), counts[1] + 1];
        played.infer_secs.extend(rollout.infer_secs);
        done();
    }
    Ok(played)
}

/// Adds the squared third differences of the last four rows of targets, the gripper (the last joint) left out.
fn third_differences(last: &mut VecDeque<Vec<f64>>, (sum, count): &mut (f64, usize)) {
    if let [a, b, c, d] = last.make_contiguous() {
        for joint in 0..d.len().saturating_sub(1) {
            let third = d[joint] - 3.0 * c[joint] + 3.0 * b[joint] - a[joint];
            *sum += (1e3 * third).powi(2);
            *count += 1;
        }
        last.pop_front();
    }
}

/// What a head is told at the beginning of an episode, to time it on.
pub fn a_look(policy: &mut HeadPolicy) -> Result<Tensor> {
    let mut table = Tabletop::lockstep(&Embodiment::so101()?, Split::Test)?;
    table.reset(&Episode { task: TASKS[0].name().to_owned(), seed: 1, randomise: false })?;
    policy.conditioning(&table.observe()?).context("looking at the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parabola_has_no_jerk_and_a_cubic_has_six() {
        let jerk = |power: i32| {
            let (mut last, mut jerks) = (VecDeque::new(), (0.0, 0));
            for k in 0..9 {
                last.push_back(vec![1e-3 * f64::from(k).powi(power), 7.0 * f64::from(k % 2)]);
                third_differences(&mut last, &mut jerks);
            }
            assert_eq!(jerks.1, 6);
            Played { jerks, ..Played::default() }.jerk()
        };
        assert!(jerk(2) < 1e-9 && (jerk(3) - 6.0).abs() < 1e-9);
    }
}
