//! The tabletop as a teacher: episodes to lessons, with the expert's chunk and the simulator's truth at every moment.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use vela_embodiment::{
    Action, Embodiment, Environment, Error, Expert, GateConfig, InferOptions, Observation, Policy, Result,
    Robot, SafetyGate, stream,
};
use vela_robots::Resolver;
use vela_sim::drawing::Drawing;
use vela_sim::expert::{ScriptedExpert, expert_chunk};
use vela_sim::render::{MARK_ID, TABLE_ID, render_ids};
use vela_sim::scene::Scene;
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Destination, Split, Task, TaskKind};
use vela_train::{Driver, Example, Lesson, Teacher};

/// Makes lessons of the five tasks from training seeds.
pub struct TabletopTeacher {
    /// The arm.
    pub embodiment: Embodiment,
    /// Ticks per chunk.
    pub horizon: usize,
    /// Ticks that a learner carries out of a chunk.
    pub execute: usize,
    /// Share of the lessons under domain randomisation, 0 to 1.
    pub randomised: f64,
    /// Which tasks.
    pub tasks: Vec<TaskKind>,
}

/// Ticks that an episode goes on after its success, so that the learner sees how to stay.
const AFTERGLOW_TICKS: usize = 12;
/// Ticks that a learner drives at most: one that is lost teaches little more by staying lost.
const STUDENT_TICKS: usize = 160;

impl TabletopTeacher {
    fn moment(&self, table: &Tabletop, seen: &Observation, expert: &ScriptedExpert) -> Result<Example> {
        let drawing = table.drawing();
        let mut labels = Vec::new();
        for view in table.camera_views(&drawing)? {
            let ids = render_ids(&drawing, &view);
            labels.extend(ids.into_iter().map(|id| label(id, &drawing, table.scene(), table.task())));
        }
        let actions = expert_chunk(table, expert, self.horizon)?;
        Ok(Example {
            frames: seen.frames.iter().flat_map(|frame| frame.rgb.iter().copied()).collect(),
            state: seen.joint_positions.iter().map(|q| *q as f32).collect(),
            actions: actions.into_iter().flatten().map(|q| q as f32).collect(),
            labels,
            truth: truth(table),
        })
    }
}

impl Teacher for TabletopTeacher {
    fn lesson(&self, seed: u64, mut driver: Driver<'_>) -> vela_train::Result<Lesson> {
        let mut rng = stream(seed, "lesson");
        let mut table = Tabletop::lockstep(&self.embodiment, Split::Train)?;
        let mut expert = ScriptedExpert::new(&self.embodiment)?;
        let kind = *self.tasks.choose(&mut rng).ok_or_else(|| Error::Robot("no task to teach".into()))?;
        let randomise = rng.random_bool(self.randomised);
        let (scene, task) = table.sampler().sample(kind, seed, Split::Train, randomise)?;
        table.begin(&scene, &task)?;
        let start = table.observe()?.joint_positions;
        let mut gate = SafetyGate::new(&self.embodiment, GateConfig::default(), &start)?;
        let mut lesson = Lesson { instruction: task.instruction.clone(), ..Lesson::default() };
        // A learner's episode often begins with some of the expert's ticks, so that late phases are seen too.
        let hand_over = if rng.random_bool(0.5) { rng.random_range(0..100) } else { 0 };
        let (mut tick, mut glow) = (0usize, 0usize);
        let last = match driver {
            Driver::Student(_) => hand_over + STUDENT_TICKS,
            Driver::Expert => usize::MAX,
            Driver::Nobody => 0,
        };
        if matches!(driver, Driver::Nobody) {
            let seen = table.observe()?;
            lesson.examples.push(self.moment(&table, &seen, &expert)?);
        }
        while tick < last && glow < AFTERGLOW_TICKS && (table.outcome().success || !table.outcome().finished)
        {
            let seen = table.observe()?;
            lesson.examples.push(self.moment(&table, &seen, &expert)?);
            let student = match &mut driver {
                Driver::Student(policy) if tick >= hand_over => Some(&mut **policy),
                _ => None,
            };
            let plan = match student {
                Some(policy) => self.ask(policy, &seen, seed ^ tick as u64)?,
                None => disturbance(&mut rng, &table, self.execute.max(2)),
            };
            let ticks = if plan.is_empty() { self.execute } else { plan.len() };
            for k in 0..ticks {
                let action = match plan.get(k) {
                    Some(targets) => Action { joint_targets: targets.clone() },
                    None => expert.label(&table)?,
                };
                let now = table.clock().now();
                table.apply(gate.check(Some((&action, now)), now).action)?;
                tick += 1;
                glow += usize::from(table.outcome().success);
            }
        }
        lesson.success = table.outcome().success;
        Ok(lesson)
    }
}

impl TabletopTeacher {
    fn ask(&self, policy: &mut dyn Policy, seen: &Observation, seed: u64) -> Result<Vec<Vec<f64>>> {
        let options = InferOptions { seed, ..InferOptions::default() };
        let chunk = policy.infer(std::slice::from_ref(seen), &options)?;
        let mut plan = Resolver::new(&self.embodiment)?.resolve(&chunk, &seen.joint_positions)?;
        plan.targets.truncate(self.execute);
        Ok(plan.targets)
    }
}

/// Now and then a push off the path: targets for some ticks that drift away at random; mostly nothing.
fn disturbance(rng: &mut ChaCha8Rng, table: &Tabletop, ticks: usize) -> Vec<Vec<f64>> {
    if !rng.random_bool(0.2) {
        return Vec::new();
    }
    let state = table.state();
    let arm = table.embodiment().joints.len().saturating_sub(1);
    let drift: Vec<f64> =
        (0..=arm).map(|joint| if joint < arm { rng.random_range(-0.03..0.03) } else { 0.0 }).collect();
    let count = rng.random_range(2..=ticks);
    (1..=count)
        .map(|k| state.joint_targets.iter().zip(&drift).map(|(q, d)| q + d * k as f64).collect())
        .collect()
}

/// What a pixel shows and which part that plays in the sentence.
fn label(id: u16, drawing: &Drawing, scene: &Scene, task: &Task) -> u8 {
    let arm_parts = drawing.solids.len() - scene.objects.len();
    let role = |is_target: bool, is_goal: bool| if is_target { 1 << 5 } else { u8::from(is_goal) << 6 };
    match id {
        TABLE_ID => 0,
        id if id >= MARK_ID => {
            let zone = usize::from(id - MARK_ID);
            (2 + zone.min(1) as u8) | role(false, task.destination == Destination::Zone(zone))
        }
        id if usize::from(id) < arm_parts => 1,
        id => {
            let index = usize::from(id) - arm_parts;
            let object = &scene.objects[index];
            let class = 4 + object.colour as u8 * 4 + object.kind as u8;
            let goal = [Destination::Bowl(index), Destination::Object(index)].contains(&task.destination);
            class | role(index == task.target, goal)
        }
    }
}

/// Where what the sentence names is, m: target, destination, and whether there is a destination.
fn truth(table: &Tabletop) -> [f32; 7] {
    let state = table.state();
    let place = |index: usize| {
        state
            .objects
            .get(index)
            .map_or([0.0; 3], |o| o.base_from_object.translation.vector.cast::<f32>().into())
    };
    let target: [f32; 3] = place(table.task().target);
    let goal: Option<[f32; 3]> = match table.task().destination {
        Destination::Nowhere => None,
        Destination::Zone(k) => table.scene().zones.get(k).map(|z| [z.xy_m[0] as f32, z.xy_m[1] as f32, 0.0]),
        Destination::Bowl(k) | Destination::Object(k) => Some(place(k)),
    };
    let there = f32::from(u8::from(goal.is_some()));
    let goal = goal.unwrap_or_default();
    [target[0], target[1], target[2], goal[0], goal[1], goal[2], there]
}
