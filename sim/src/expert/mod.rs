//! Scripted experts: the next joint targets from the physical state alone, so that they can label any state.
//!
//! Nothing is remembered between ticks. What to do follows from what can be seen in the state: a thing that is
//! pinched is carried, a thing that lies where it should is let go of, anything else is approached. The tip goes
//! to its place through a funnel: far off it travels above everything, and only near the place's axis may it sink.

mod grasp;
mod motion;

use crate::scene::Scene;
use crate::state::{ObjectState, WorldState};
use crate::tabletop::Tabletop;
use crate::tasks::{BOWL_INSIDE_M, Destination, Task, TaskKind, rests_on, stack_height_m};
use grasp::{GRIP, JAW_HALF_WIDTH_M, OPEN, SHUT, SHUT_MIDDLE_M, direction, grasp_yaw, middle_m};
use motion::{Reacher, Tip, TipGoal, wrap};
use nalgebra::{Vector2, Vector3};
use std::f64::consts::FRAC_PI_2;
use vela_embodiment::{Action, Embodiment, Expert, Result};

/// The tip's height while it travels, m: nothing that stands on the table reaches the jaws.
const TRAVEL_M: f64 = 0.075;
/// The tip's height when it has lifted something, m.
const LIFT_M: f64 = 0.082;
/// The tip never plans below this height: the jaws reach 13 mm further, m.
const LOWEST_M: f64 = 0.017;
/// Height of a held object's centre while it is carried, m.
const CARRY_M: f64 = 0.08;
/// Height of the centre at which an object is let go over a bowl, m.
const DROP_M: f64 = 0.046;
const SPEED: f64 = 0.22;
const CARRY_SPEED: f64 = 0.18;
const LOWER_SPEED: f64 = 0.07;
const PUSH_SPEED: f64 = 0.12;
/// The commanded tip this far below the measured one means that what it holds stands on something, m.
const BLOCKED_M: f64 = 0.004;

/// The expert of all five tasks for an arm with the SO-101's gripper. It keeps nothing between ticks.
#[derive(Clone, Debug)]
pub struct ScriptedExpert {
    reacher: Reacher,
}

impl ScriptedExpert {
    /// An expert for an arm with a gripper.
    pub fn new(embodiment: &Embodiment) -> Result<Self> {
        Ok(Self { reacher: Reacher::new(embodiment)? })
    }

    /// Joint targets (rad, the embodiment's order) of the next tick in a state of a task's scene.
    pub fn targets(&self, scene: &Scene, task: &Task, state: &WorldState) -> Vec<f64> {
        let tip = self.reacher.tip(state);
        let goal = state.objects.get(task.target).and_then(|object| match (task.kind, task.destination) {
            (TaskKind::Reach, _) => Some(self.approach(state, &tip, object, false)),
            (TaskKind::Pick, _) => Some(self.pick(state, &tip, object)),
            (TaskKind::Push, Destination::Zone(zone)) => {
                Some(self.push(&tip, object, Vector2::from(scene.zones.get(zone)?.xy_m)))
            }
            (TaskKind::Place, Destination::Bowl(bowl)) => {
                let bowl = state.objects.get(bowl)?;
                let at = bowl.base_from_object.translation.vector;
                let off = object.base_from_object.translation.vector - at;
                let inside = off.xy().norm() < BOWL_INSIDE_M - 0.002 && off.z < 0.045;
                let over = Over {
                    place: Vector3::new(at.x, at.y, DROP_M),
                    sink_m: 0.012,
                    open_m: 0.018,
                    near_m: 0.002,
                    press_m: 0.0,
                };
                Some(self.put(state, &tip, object, inside, &over))
            }
            (TaskKind::Stack, Destination::Object(base)) => {
                let base = state.objects.get(base)?;
                let at = base.base_from_object.translation.vector;
                let height = at.z + stack_height_m(object.kind, base.kind);
                let over = Over {
                    place: Vector3::new(at.x, at.y, height),
                    sink_m: 0.003,
                    open_m: 0.006,
                    near_m: -0.0005,
                    press_m: 0.012,
                };
                Some(self.put(state, &tip, object, rests_on(object, base), &over))
            }
            _ => None,
        });
        let goal = goal.unwrap_or_else(|| stay(&tip, tip.grip_target));
        self.reacher.advance(state, &tip, &goal)
    }

    /// Open jaws come down around the object; with `close` they close when they are there.
    fn approach(&self, state: &WorldState, tip: &Tip, object: &ObjectState, close: bool) -> TipGoal {
        let at = object.base_from_object.translation.vector;
        let yaw = grasp_yaw(&self.reacher, state, tip, object);
        let xy = at.xy() - direction(yaw) * middle_m(tip.grip);
        let lowest = (at.z + 0.003).max(LOWEST_M);
        let here = tip.pose.translation.vector;
        let turn = wrap(yaw - tip.yaw).abs();
        let off = (xy - here.xy()).norm().max(0.03 * (turn - 0.1));
        // Well centred before they begin to close; what they then push along may lag.
        let begun = tip.grip_target < OPEN - 0.03;
        let there = off < if begun { 0.012 } else { 0.005 } && (here.z - lowest).abs() < 0.008;
        let mut floor = funnel(lowest, off, 0.005, TRAVEL_M);
        // Half-open jaws would land on the object: wait above it until they are open.
        if tip.grip < OPEN - 0.12 && here.z > lowest + 0.02 {
            floor = floor.max(lowest + 0.045);
        }
        let gripper = if close && there { GRIP } else { OPEN };
        steer(tip, xy, floor, yaw, gripper, SPEED)
    }

    fn pick(&self, state: &WorldState, tip: &Tip, object: &ObjectState) -> TipGoal {
        match (object.pinched, firm(tip)) {
            (true, true) => {
                let here = tip.pose.translation.vector;
                // Too near and too far the arm reaches less high.
                let xy = self.reacher.pointing.within(here.xy(), 0.13, 0.22);
                let position = Vector3::new(xy.x, xy.y, LIFT_M);
                TipGoal { position, yaw: tip.yaw, gripper: GRIP, speed: CARRY_SPEED }
            }
            (true, false) => stay(tip, GRIP),
            (false, _) => self.approach(state, tip, object, true),
        }
    }

    /// Grasps, carries over a place, lets go there and rises. `done` says that the object lies where it should.
    fn put(&self, state: &WorldState, tip: &Tip, object: &ObjectState, done: bool, over: &Over) -> TipGoal {
        let at = object.base_from_object.translation.vector;
        let here = tip.pose.translation.vector;
        let way = over.place - at;
        let off = way.xy().norm();
        let blocked =
            state.base_from_tip.translation.vector.z - here.z > BLOCKED_M && at.z < over.place.z + 0.012;
        match object.pinched {
            true if off < over.open_m && (at.z < over.place.z + over.near_m || blocked) => stay(tip, OPEN),
            true if !firm(tip) => stay(tip, GRIP),
            true => {
                // Aims below the place: what is held is set down with a little force, which also rights it.
                let below = if off < over.open_m { over.press_m } else { 0.0 };
                let height = funnel(over.place.z, off, over.sink_m, CARRY_M) - below;
                // Measured, not commanded: the object hangs on the real tip.
                let tip_above = state.base_from_tip.translation.vector.z - at.z;
                let xy = here.xy() + way.xy();
                let near = at.z - over.place.z < 0.012 && off < 0.02;
                let speed = if near { LOWER_SPEED } else { CARRY_SPEED };
                steer(tip, xy, height + tip_above, tip.yaw, GRIP, speed)
            }
            false if done && tip.grip < 0.45 => stay(tip, OPEN),
            false if done && object.touched && here.z < at.z + 0.03 => {
                // Still against the fixed jaw: away from it sideways, so that rising does not drag it along.
                let xy = here.xy() - direction(tip.yaw) * 0.004;
                let position = Vector3::new(xy.x, xy.y, here.z);
                TipGoal { position, yaw: tip.yaw, gripper: OPEN, speed: 0.03 }
            }
            false if done => {
                let position = Vector3::new(here.x, here.y, at.z + 0.055);
                TipGoal { position, yaw: tip.yaw, gripper: OPEN, speed: CARRY_SPEED }
            }
            false => self.approach(state, tip, object, true),
        }
    }

    /// The closed gripper comes down behind the object and pushes it towards `to`, a side of the jaws in front.
    fn push(&self, tip: &Tip, object: &ObjectState, to: Vector2<f64>) -> TipGoal {
        let at = object.base_from_object.translation.vector.xy();
        let here = tip.pose.translation.vector;
        let way = to - at;
        if way.norm() < 0.008 {
            return stay(tip, SHUT);
        }
        let along = way.normalize();
        let side = Vector2::new(-along.y, along.x);
        let heading = self.reacher.pointing.heading(at);
        let present = wrap(tip.yaw - self.reacher.pointing.heading(here.xy()));
        let ahead = along.y.atan2(along.x);
        let cost = |yaw: f64| {
            let roll = wrap(yaw - heading);
            roll.abs() + 0.4 * wrap(roll - present).abs()
        };
        let (left, right) = (ahead - FRAC_PI_2, ahead + FRAC_PI_2);
        let yaw = if cost(left) <= cost(right) { left } else { right };
        let paddle_from_tip = direction(tip.yaw) * SHUT_MIDDLE_M;
        let paddle = here.xy() + paddle_from_tip - at;
        let (behind, aside) = (paddle.dot(&along), paddle.dot(&side));
        let low = here.z < LOWEST_M + 0.012 && tip.grip < 0.25;
        let ready = low && (-0.07..-0.018).contains(&behind) && aside.abs() < 0.014;
        if ready {
            let forward = 0.03 * (1.0 - aside.abs() / 0.014).max(0.1);
            let xy = here.xy() + along * forward - side * (1.5 * aside);
            let position = Vector3::new(xy.x, xy.y, LOWEST_M);
            let speed = PUSH_SPEED.min(0.04 + 3.0 * way.norm());
            return TipGoal { position, yaw, gripper: SHUT, speed };
        }
        let start = at - along * (JAW_HALF_WIDTH_M + 0.030);
        let xy = start - direction(yaw) * SHUT_MIDDLE_M;
        let turn = wrap(yaw - tip.yaw).abs();
        let off = (xy - here.xy()).norm().max(0.03 * (turn - 0.2));
        let mut floor = funnel(LOWEST_M, off, 0.006, TRAVEL_M);
        if tip.grip > 0.2 {
            floor = floor.max(LOWEST_M + 0.045);
        }
        steer(tip, xy, floor, yaw, SHUT, SPEED)
    }
}

/// A place over which to let go of something.
struct Over {
    /// Where the object's centre should be, m.
    place: Vector3<f64>,
    /// Sideways error below which it sinks all the way, m.
    sink_m: f64,
    /// Sideways error below which it is let go, m.
    open_m: f64,
    /// Height above the place at which it is let go even without resistance, m.
    near_m: f64,
    /// How far below the place it is pressed, m.
    press_m: f64,
}

/// Lowest height at a sideways error: `lowest` within `free`, then up a steep cone to `travel`, m.
fn funnel(lowest: f64, off: f64, free: f64, travel: f64) -> f64 {
    (lowest + 3.5 * (off - free).max(0.0)).min(travel.max(lowest))
}

/// Towards a place at a height; below that height it rises first and moves sideways later.
fn steer(tip: &Tip, xy: Vector2<f64>, height: f64, yaw: f64, gripper: f64, speed: f64) -> TipGoal {
    let here = tip.pose.translation.vector;
    let share = (1.0 - (height - here.z - 0.004) / 0.02).clamp(0.0, 1.0);
    let xy = here.xy() + (xy - here.xy()) * share;
    TipGoal { position: Vector3::new(xy.x, xy.y, height), yaw, gripper, speed }
}

fn stay(tip: &Tip, gripper: f64) -> TipGoal {
    TipGoal { position: tip.pose.translation.vector, yaw: tip.yaw, gripper, speed: SPEED }
}

/// The motor presses the jaws together: what is between them does not slip.
fn firm(tip: &Tip) -> bool {
    tip.grip - tip.grip_target > 0.06 || tip.grip_target < GRIP + 0.005
}

impl Expert<Tabletop> for ScriptedExpert {
    fn reset(&mut self) {}

    fn label(&mut self, environment: &Tabletop) -> Result<Action> {
        let state = environment.state();
        Ok(Action { joint_targets: self.targets(environment.scene(), environment.task(), &state) })
    }
}

/// What the expert would command over the next `horizon` ticks from the table's present state, `[horizon][joints]`,
/// rad: a copy of the world is played forward, the table itself does not move.
pub fn expert_chunk(table: &Tabletop, expert: &ScriptedExpert, horizon: usize) -> Result<Vec<Vec<f64>>> {
    let mut world = table.world().clone();
    let mut chunk = Vec::with_capacity(horizon);
    for k in 0..horizon {
        let targets = expert.targets(table.scene(), table.task(), &world.state());
        if k + 1 < horizon {
            world.step(&targets)?;
        }
        chunk.push(targets);
    }
    Ok(chunk)
}
