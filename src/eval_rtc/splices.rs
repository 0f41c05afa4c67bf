//! Where one chunk takes over from another: how far apart their targets are, in steps of an ordinary tick.

use vela_embodiment::{ActionChunk, Observation, Stamp};
use vela_robots::{Plan, Resolver, RolloutEvent};

/// Jumps and ordinary steps of some episodes.
pub struct Splices {
    resolver: Resolver,
    delay_ticks: usize,
    /// The plan that is carried out.
    now: Option<Plan>,
    /// The plan on its way, and the tick from which it is carried out.
    coming: Option<(usize, Plan)>,
    ticks: usize,
    /// New target minus old target where a chunk takes over, `[splices][joints]`, rad or m.
    jumps: Vec<Vec<f64>>,
    /// Target minus the target a tick before, both of one chunk, `[ticks][joints]`, rad or m.
    steps: Vec<Vec<f64>>,
}

/// Jumps in standard deviations of a step.
pub struct Sizes {
    /// Root mean square over the joints, one per splice.
    pub jumps: Vec<f64>,
}

impl Sizes {
    /// Share of splices that are smaller than one standard deviation.
    pub fn under_one(&self) -> f64 {
        self.jumps.iter().filter(|jump| **jump < 1.0).count() as f64 / self.jumps.len().max(1) as f64
    }
}

impl Splices {
    /// For chunks that arrive `delay_ticks` after their observation.
    pub fn new(resolver: Resolver, delay_ticks: usize) -> Self {
        let (jumps, steps) = (Vec::new(), Vec::new());
        Self { resolver, delay_ticks, now: None, coming: None, ticks: 0, jumps, steps }
    }

    /// A new episode: nothing is being carried out.
    pub fn begin(&mut self) {
        (self.now, self.coming, self.ticks) = (None, None, 0);
    }

    /// What happens in a rollout.
    pub fn hear(&mut self, event: RolloutEvent<'_>) {
        match event {
            RolloutEvent::Chunk { observation, chunk, .. } => self.chunk(observation, chunk),
            RolloutEvent::Tick { applied, .. } => self.tick(applied.stamp),
            _ => {}
        }
    }

    fn chunk(&mut self, observation: &Observation, chunk: &ActionChunk) {
        // A chunk that cannot be resolved is a failure of the rollout, and counted there.
        if let Ok(plan) = self.resolver.resolve(chunk, &observation.joint_positions) {
            self.coming = Some((self.ticks + self.delay_ticks, plan));
        }
    }

    /// A tick ends at `end`, when its targets are to be reached.
    fn tick(&mut self, end: Stamp) {
        if let Some((_, new)) = self.coming.take_if(|(from, _)| *from <= self.ticks) {
            // An old chunk that has ended: the arm holds at its last target.
            let old = |plan: &Plan| plan.at(end).or_else(|| plan.targets.last().cloned());
            let both = self.now.as_ref().and_then(|plan| Some((old(plan)?, new.at(end)?)));
            self.jumps.extend(both.map(|(old, new)| difference(&new, &old)));
            self.now = Some(new);
        } else if let Some(plan) = &self.now {
            let both = plan.at(end).zip(plan.at(end.plus_secs(-plan.period_secs)));
            self.steps.extend(both.map(|(new, old)| difference(&new, &old)));
        }
        self.ticks += 1;
    }

    /// Standard deviation of the steps inside chunks, per joint.
    pub fn deviation(&self) -> Vec<f64> {
        let joints = self.steps.first().map_or(0, Vec::len);
        let count = self.steps.len().max(1) as f64;
        let of = |joint: usize| {
            let mean = self.steps.iter().map(|step| step[joint]).sum::<f64>() / count;
            (self.steps.iter().map(|step| (step[joint] - mean).powi(2)).sum::<f64>() / count).sqrt()
        };
        (0..joints).map(of).collect()
    }

    /// The jumps by `sigma`, one per joint.
    pub fn sizes(&self, sigma: &[f64]) -> Sizes {
        let size = |jump: &Vec<f64>| {
            let squares = jump.iter().zip(sigma).map(|(jump, sigma)| (jump / sigma.max(1e-9)).powi(2));
            (squares.sum::<f64>() / jump.len().max(1) as f64).sqrt()
        };
        Sizes { jumps: self.jumps.iter().map(size).collect() }
    }
}

fn difference(new: &[f64], old: &[f64]) -> Vec<f64> {
    new.iter().zip(old).map(|(new, old)| new - old).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_embodiment::{ActionSpace, Embodiment, Result};

    /// A chunk of six joints that go up by a tenth a tick, from `start` on.
    fn chunk(observed: Stamp, start: f64) -> ActionChunk {
        ActionChunk {
            space: ActionSpace::JointPositions,
            actions: (1..=8).map(|k| vec![start + 0.1 * f64::from(k); 6]).collect(),
            period_secs: 0.1,
            observation_stamp: observed,
            seed: 0,
            checkpoint: String::new(),
        }
    }

    #[test]
    fn a_chunk_that_goes_on_does_not_jump_and_one_that_is_off_jumps_by_that() -> Result<()> {
        let tick = |k: u32| Stamp::from_secs(f64::from(k) * 0.1);
        let seen = |stamp| Observation {
            frames: vec![],
            joint_positions: vec![0.0; 6],
            instruction: String::new(),
            stamp,
        };
        let mut splices = Splices::new(Resolver::new(&Embodiment::so101()?)?, 2);
        splices.begin();
        for k in 0..12 {
            match k {
                0 => splices.chunk(&seen(tick(0)), &chunk(tick(0), 0.0)),
                // Arrives at tick 5, and says what the first one says.
                3 => splices.chunk(&seen(tick(3)), &chunk(tick(3), 0.3)),
                // Arrives at tick 8: a quarter above.
                6 => splices.chunk(&seen(tick(6)), &chunk(tick(6), 0.85)),
                _ => {}
            }
            splices.tick(tick(k + 1));
        }
        assert_eq!(splices.jumps.len(), 2);
        let sizes = splices.sizes(&[0.1; 6]);
        assert!(sizes.jumps[0] < 1e-9 && (sizes.jumps[1] - 2.5).abs() < 1e-9, "{:?}", sizes.jumps);
        assert!((sizes.under_one() - 0.5).abs() < 1e-12);
        assert!(splices.deviation().iter().all(|sigma| *sigma < 1e-9), "every step is the same");
        assert!(splices.steps.iter().flatten().all(|step| (step - 0.1).abs() < 1e-9));
        Ok(())
    }
}
