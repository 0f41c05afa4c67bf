//! Whether a task has been done, from the physical state alone; a success latches.

use super::{Destination, Task, TaskKind};
use crate::scene::{ObjectKind, Scene};
use crate::state::{ObjectState, WorldState};
use vela_embodiment::Outcome;

/// An object whose centre is this near to the bowl's axis is inside, m.
pub const BOWL_INSIDE_M: f64 = 0.040;
const REACH_M: f64 = 0.025;
const LIFT_M: f64 = 0.05;
const HOLD_SECS: f64 = 1.0;
/// Released things must lie still this long.
const REST_SECS: f64 = 0.2;
const REST_SPEED: f64 = 0.02;
/// How far a stacked centre may be off, sideways and in height, m.
const STACK_SIDE_M: f64 = 0.016;
const STACK_HEIGHT_M: f64 = 0.005;

/// Watches one episode.
#[derive(Clone, Debug)]
pub struct Judge {
    task: Task,
    zones: Vec<([f64; 2], f64)>,
    time_limit_secs: f64,
    /// World time of the first update of a judge that begins in a world already at work; else zero.
    from_secs: f64,
    /// Since when the condition holds without a break.
    since_secs: Option<f64>,
    touched_another: bool,
    outcome: Outcome,
}

impl Judge {
    /// A judge of a task in its scene, before the first tick.
    pub fn new(scene: &Scene, task: &Task) -> Self {
        Self {
            task: task.clone(),
            zones: scene.zones.iter().map(|zone| (zone.xy_m, zone.half_m)).collect(),
            time_limit_secs: task.time_limit_secs(),
            from_secs: 0.0,
            since_secs: None,
            touched_another: false,
            outcome: Outcome::default(),
        }
    }

    /// The same, its time counted from `from_secs` of the world's.
    pub fn from(self, from_secs: f64) -> Self {
        Self { from_secs, ..self }
    }

    /// Looks at the newest state and says how the episode stands.
    pub fn update(&mut self, state: &WorldState) -> Outcome {
        let seconds = state.time_secs - self.from_secs;
        if !self.outcome.success {
            let hold = match self.task.kind {
                TaskKind::Reach | TaskKind::Push => 0.0,
                TaskKind::Pick => HOLD_SECS,
                TaskKind::Place | TaskKind::Stack => REST_SECS,
            };
            self.since_secs = match (self.holds(state), self.since_secs) {
                (true, since) => Some(since.unwrap_or(seconds)),
                (false, _) => None,
            };
            // Half a tick's grace: periods do not add up to whole seconds exactly.
            self.outcome.success = self.since_secs.is_some_and(|since| seconds - since >= hold - 1e-3);
            self.outcome.seconds = seconds;
            let others = state.objects.iter().enumerate().filter(|(k, _)| *k != self.task.target);
            self.touched_another |= others.into_iter().any(|(_, object)| object.touched);
        }
        self.outcome.finished = self.outcome.success || seconds >= self.time_limit_secs;
        self.outcome.clone()
    }

    /// How the episode stood at the last update.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Whether the task's condition holds at this moment.
    fn holds(&self, state: &WorldState) -> bool {
        let Some(object) = state.objects.get(self.task.target) else { return false };
        let at = object.base_from_object.translation.vector;
        let slow = object.velocity.norm() < REST_SPEED;
        let released = !object.touched && !object.pinched;
        match (self.task.kind, self.task.destination) {
            (TaskKind::Reach, _) => {
                let near = (state.base_from_tip.translation.vector - at).norm() < REACH_M;
                (near || object.touched) && !self.touched_another
            }
            (TaskKind::Pick, _) => at.z >= object.kind.rest_height_m() + LIFT_M && object.touched,
            (TaskKind::Push, Destination::Zone(zone)) => self.zones.get(zone).is_some_and(|(xy, half)| {
                object.on_table && (at.x - xy[0]).abs() < *half && (at.y - xy[1]).abs() < *half
            }),
            (TaskKind::Place, Destination::Bowl(bowl)) => state.objects.get(bowl).is_some_and(|bowl| {
                let off = at - bowl.base_from_object.translation.vector;
                let low = off.z.abs() < 0.03;
                off.xy().norm() < BOWL_INSIDE_M && low && slow && released
            }),
            (TaskKind::Stack, Destination::Object(base)) => state
                .objects
                .get(base)
                .is_some_and(|base| rests_on(object, base) && slow && released && !base.touched),
            _ => false,
        }
    }
}

/// Whether an object's centre is where it is when the object stands on the base.
pub(crate) fn rests_on(object: &ObjectState, base: &ObjectState) -> bool {
    let off = object.base_from_object.translation.vector - base.base_from_object.translation.vector;
    let expected = stack_height_m(object.kind, base.kind);
    off.xy().norm() < STACK_SIDE_M && (off.z - expected).abs() < STACK_HEIGHT_M
}

/// Height of a centre above the centre of what it stands on, m.
pub(crate) fn stack_height_m(object: ObjectKind, base: ObjectKind) -> f64 {
    object.rest_height_m() + base.rest_height_m()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Colour, Looks, Physics, Zone};
    use nalgebra::{Isometry3, Vector3};

    fn object(x: f64, z: f64) -> ObjectState {
        ObjectState {
            kind: ObjectKind::Cube,
            colour: Colour::Red,
            base_from_object: Isometry3::translation(x, 0.0, z),
            velocity: Vector3::zeros(),
            touched: false,
            pinched: false,
            on_table: true,
        }
    }

    fn state(time_secs: f64, objects: Vec<ObjectState>) -> WorldState {
        WorldState {
            time_secs,
            joint_positions: vec![0.0; 6],
            joint_speeds: vec![0.0; 6],
            joint_targets: vec![0.0; 6],
            base_from_tip: Isometry3::translation(0.2, 0.0, 0.1),
            objects,
        }
    }

    fn judge(kind: TaskKind, destination: Destination) -> Judge {
        let scene = Scene {
            objects: vec![],
            zones: vec![Zone { name: "left".into(), xy_m: [0.3, 0.0], half_m: 0.03 }],
            start_joints: vec![],
            looks: Looks::default(),
            physics: Physics::default(),
        };
        Judge::new(&scene, &Task { kind, target: 0, destination, instruction: String::new() })
    }

    #[test]
    fn a_lift_counts_only_after_one_unbroken_second_and_then_latches() {
        let mut judge = judge(TaskKind::Pick, Destination::Nowhere);
        let lifted = || vec![ObjectState { touched: true, ..object(0.2, 0.07) }];
        assert!(!judge.update(&state(0.0, lifted())).success);
        assert!(!judge.update(&state(0.9, lifted())).success);
        assert!(!judge.update(&state(1.0, vec![object(0.2, 0.0135)])).success);
        assert!(!judge.update(&state(1.1, lifted())).success);
        assert!(judge.update(&state(2.1, lifted())).success);
        let after = judge.update(&state(3.0, vec![object(0.2, 0.0135)]));
        assert!(after.success && after.finished);
        assert!((after.seconds - 2.1).abs() < 1e-9);
    }

    #[test]
    fn touching_another_object_first_spoils_a_reach() {
        let touched = |k: usize| {
            let mut both = vec![object(0.2, 0.0135), object(0.3, 0.0135)];
            both[k].touched = true;
            both
        };
        let mut good = judge(TaskKind::Reach, Destination::Nowhere);
        assert!(good.update(&state(0.1, touched(0))).success);
        let mut spoilt = judge(TaskKind::Reach, Destination::Nowhere);
        spoilt.update(&state(0.1, touched(1)));
        assert!(!spoilt.update(&state(0.2, touched(0))).success);
        assert!(spoilt.update(&state(6.0, touched(0))).finished);
    }

    #[test]
    fn a_push_counts_in_the_zone_and_on_the_table() {
        let mut judge = judge(TaskKind::Push, Destination::Zone(0));
        assert!(!judge.update(&state(0.1, vec![object(0.26, 0.0135)])).success);
        let mut carried = object(0.3, 0.05);
        carried.on_table = false;
        assert!(!judge.update(&state(0.2, vec![carried])).success);
        assert!(judge.update(&state(0.3, vec![object(0.28, 0.0135)])).success);
    }

    #[test]
    fn a_stack_counts_when_it_stands_by_itself() {
        let mut judge = judge(TaskKind::Stack, Destination::Object(1));
        let held = ObjectState { touched: true, on_table: false, ..object(0.2, 0.0405) };
        let free = ObjectState { touched: false, ..held.clone() };
        let base = object(0.205, 0.0135);
        judge.update(&state(0.0, vec![held.clone(), base.clone()]));
        assert!(!judge.update(&state(1.0, vec![held, base.clone()])).success);
        judge.update(&state(1.1, vec![free.clone(), base.clone()]));
        assert!(judge.update(&state(1.4, vec![free, base])).success);
    }
}
