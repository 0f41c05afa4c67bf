//! The tabletop as a robot that can be reset and judged, in lockstep. Whoever keeps a rate of their own applies one
//! action per control period and takes the pictures from [`Tabletop::drawing`] on another thread.

use crate::camera::CameraView;
use crate::drawing::Drawing;
use crate::scene::Scene;
use crate::state::WorldState;
use crate::studio::{photograph, views};
use crate::tasks::{Judge, Sampler, Split, Task, TaskKind};
use crate::world::World;
use std::sync::Arc;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Environment, Episode, Observation, Outcome, Result, Robot,
    VirtualClock,
};

/// A simulated arm over a table. What a policy may see is in [`Robot::observe`]; the truth is in the other methods.
pub struct Tabletop {
    embodiment: Embodiment,
    sampler: Sampler,
    split: Split,
    world: World,
    task: Task,
    judge: Judge,
    clock: Arc<VirtualClock>,
    pictures: bool,
}

impl Tabletop {
    /// A table in lockstep, set up with reach episode 0 of `split`: [`Robot::apply`] moves the clock and
    /// [`Robot::observe`] takes the pictures. Same seeds, same actions: same bytes.
    pub fn lockstep(embodiment: &Embodiment, split: Split) -> Result<Self> {
        Self::new(embodiment, split, true)
    }

    /// The same without pictures: for experts, which look at the state.
    pub fn blind(embodiment: &Embodiment, split: Split) -> Result<Self> {
        Self::new(embodiment, split, false)
    }

    fn new(embodiment: &Embodiment, split: Split, pictures: bool) -> Result<Self> {
        let sampler = Sampler::new(embodiment)?;
        let (scene, task) = sampler.sample(TaskKind::Reach, 0, split, false)?;
        Ok(Self {
            embodiment: embodiment.clone(),
            world: World::new(embodiment, &scene)?,
            judge: Judge::new(&scene, &task),
            sampler,
            split,
            task,
            clock: Arc::new(VirtualClock::new()),
            pictures,
        })
    }

    /// Sets up a scene of the caller's own.
    pub fn begin(&mut self, scene: &Scene, task: &Task) -> Result<()> {
        self.world = World::new(&self.embodiment, scene)?;
        self.judge = Judge::new(scene, task);
        self.task = task.clone();
        Ok(())
    }

    /// Asks for something else in the present state of the present scene; the judge begins anew.
    pub fn ask(&mut self, task: &Task) {
        self.judge = Judge::new(self.world.scene(), task).from(self.world.time_secs());
        self.task = task.clone();
    }

    /// The samples that [`Environment::reset`] draws.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The scene as it was at the reset.
    pub fn scene(&self) -> &Scene {
        self.world.scene()
    }

    /// What is asked.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The physical truth now.
    pub fn state(&self) -> WorldState {
        self.world.state()
    }

    /// The world itself, to be looked at or copied.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What the cameras see now; cheap to make and to send to another thread.
    pub fn drawing(&self) -> Drawing {
        self.world.drawing()
    }

    /// Where the embodiment's cameras are in a drawing, in their order.
    pub fn camera_views(&self, drawing: &Drawing) -> Result<Vec<CameraView>> {
        views(&self.embodiment.cameras, drawing)
    }
}

impl Robot for Tabletop {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn observe(&mut self) -> Result<Observation> {
        let frames = match self.pictures {
            true => photograph(&self.embodiment.cameras, &self.world.drawing(), self.clock.now())?,
            false => Vec::new(),
        };
        Ok(Observation {
            frames,
            joint_positions: self.world.state().joint_positions,
            instruction: self.task.instruction.clone(),
            stamp: self.clock().now(),
        })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        self.world.step(&action.get().joint_targets)?;
        self.clock.advance_secs(self.embodiment.period_secs());
        let state = self.world.state();
        self.judge.update(&state);
        Ok(Applied { joint_targets: state.joint_targets, stamp: self.clock().now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }
}

impl Environment for Tabletop {
    fn reset(&mut self, episode: &Episode) -> Result<()> {
        let Episode { task, seed, randomise } = episode;
        let is_sentence = task.trim().contains(char::is_whitespace);
        let (scene, task) = match is_sentence {
            true => self.sampler.scene_for(task.trim(), *seed, *randomise)?,
            false => self.sampler.sample(TaskKind::from_name(task.trim())?, *seed, self.split, *randomise)?,
        };
        self.begin(&scene, &task)
    }

    fn outcome(&self) -> Outcome {
        self.judge.outcome().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expert::{ScriptedExpert, expert_chunk};
    use vela_embodiment::{Expert, GateConfig, SafetyGate};

    fn episode(task: &str, seed: u64) -> Episode {
        Episode { task: task.into(), seed, randomise: false }
    }

    #[test]
    fn an_expert_lifts_a_cube_through_the_gate_and_the_pictures_fit() -> Result<()> {
        let so101 = Embodiment::so101()?;
        let mut table = Tabletop::lockstep(&so101, Split::Test)?;
        let mut expert = ScriptedExpert::new(&so101)?;
        table.reset(&episode("pick up the green cube", 5))?;
        let observation = table.observe()?;
        observation.check(&so101)?;
        assert_eq!(observation.instruction, "pick up the green cube");
        let mut gate = SafetyGate::new(&so101, GateConfig::default(), &observation.joint_positions)?;
        while !table.outcome().finished {
            let action = expert.label(&table)?;
            let now = table.clock().now();
            table.apply(gate.check(Some((&action, now)), now).action)?;
        }
        assert!(table.outcome().success, "{:?}", table.state());
        table.observe()?.check(&so101)
    }

    #[test]
    fn a_chunk_is_what_the_expert_then_does_and_leaves_the_table_alone() -> Result<()> {
        let so101 = Embodiment::so101()?;
        let mut table = Tabletop::blind(&so101, Split::Train)?;
        table.reset(&episode("push", 2))?;
        let expert = ScriptedExpert::new(&so101)?;
        let before = table.world().hash();
        let chunk = expert_chunk(&table, &expert, 8)?;
        assert_eq!(before, table.world().hash());
        for targets in chunk {
            assert_eq!(targets, expert.targets(table.scene(), table.task(), &table.state()));
            table.world.step(&targets)?;
        }
        Ok(())
    }

    #[test]
    fn an_unknown_task_is_one_clear_error() -> Result<()> {
        let mut table = Tabletop::blind(&Embodiment::so101()?, Split::Test)?;
        let error = |e: Result<()>| e.err().map(|e| e.to_string()).unwrap_or_default();
        let word = error(table.reset(&episode("juggle", 0)));
        assert_eq!(word, "unknown task 'juggle'; known: reach, push, pick, place, stack");
        assert!(error(table.reset(&episode("fold the shirt", 0))).contains("unknown word 'fold'"));
        Ok(())
    }
}
