//! The rigid-body world: an arm with motors, a table, objects, contacts and friction. Same calls, same bytes.

use crate::arm::Arm;
use crate::bodies::{self, Owner};
use crate::drawing::{Drawing, Drawn, Mark};
use crate::physics::{Physics, from_pose, from_vector};
use crate::scene::Scene;
use crate::state::{ObjectState, WorldState};
use rapier3d::prelude::RigidBodyHandle;
use std::sync::Arc;
use vela_embodiment::{Embodiment, Error, Kinematics, Result};

/// Collisions are found this often, Hz; a control period is a whole number of such steps.
const STEP_HZ: f64 = 120.0;
/// Linear RGB of the painted zones.
const ZONE_ALBEDO: [f32; 3] = [0.80, 0.79, 0.74];

/// The world at one moment. A clone goes its own way from there on, to the same bytes under the same targets.
#[derive(Clone)]
pub struct World {
    embodiment: Arc<Embodiment>,
    kinematics: Arc<Kinematics>,
    scene: Arc<Scene>,
    physics: Physics,
    arm: Arm,
    objects: Vec<RigidBodyHandle>,
    targets: Vec<f64>,
    steps_per_tick: usize,
    ticks: u64,
}

impl World {
    /// Each physics step is solved in this many equal parts.
    pub const SOLVER_ITERATIONS: usize = 4;

    /// The scene's objects at rest on the table and the arm at the scene's start joints, at time zero.
    ///
    /// # Errors
    /// Start joints of the wrong number, out of limits or not finite; an object that is nowhere; a URDF whose
    /// moving parts have no mass.
    pub fn new(embodiment: &Embodiment, scene: &Scene) -> Result<Self> {
        let kinematics = embodiment.kinematics()?;
        check(embodiment, "the scene's start joints", &scene.start_joints)?;
        for (joint, position) in embodiment.joints.iter().zip(&scene.start_joints) {
            let limits = &joint.limits;
            if !(limits.lower - 1e-6..=limits.upper + 1e-6).contains(position) {
                return Err(Error::Robot(format!(
                    "joint '{}' cannot start at {position}: its limits are {} to {}",
                    joint.name, limits.lower, limits.upper
                )));
            }
        }
        for object in &scene.objects {
            if !object.xy_m.iter().chain([&object.yaw_rad]).all(|x| x.is_finite()) {
                return Err(Error::NotFinite(format!("the place of the {}", object.kind.word())));
            }
        }
        let steps_per_tick = (embodiment.period_secs() * STEP_HZ - 1e-9).ceil().max(1.0);
        let mut physics = Physics::new(embodiment.period_secs() / steps_per_tick, Self::SOLVER_ITERATIONS);
        bodies::insert_table(&mut physics, &scene.physics);
        let friction_scale = scene.physics.friction_scale;
        let arm = Arm::insert(&mut physics, embodiment, &kinematics, friction_scale, &scene.start_joints)?;
        let objects = scene.objects.iter().enumerate();
        let objects =
            objects.map(|(index, object)| bodies::insert_object(&mut physics, &scene.physics, index, object));
        let objects = objects.collect();
        Ok(Self {
            targets: scene.start_joints.clone(),
            embodiment: Arc::new(embodiment.clone()),
            kinematics: Arc::new(kinematics),
            scene: Arc::new(scene.clone()),
            physics,
            arm,
            objects,
            steps_per_tick: steps_per_tick as usize,
            ticks: 0,
        })
    }

    /// Advances by one control period while the motors' targets move in a straight line from the last ones to
    /// these, rad or m, the embodiment's order. Beyond a joint's limits lies its end stop.
    ///
    /// # Errors
    /// Targets of the wrong number or not finite; the world has not moved then.
    pub fn step(&mut self, joint_targets_rad: &[f64]) -> Result<()> {
        check(&self.embodiment, "joint targets", joint_targets_rad)?;
        let to = self.arm.within_limits(joint_targets_rad);
        let period_secs = self.embodiment.period_secs();
        for step in 1..=self.steps_per_tick {
            let share = step as f64 / self.steps_per_tick as f64;
            let pairs = || self.targets.iter().zip(&to);
            let positions = pairs().map(|(from, to)| from + (to - from) * share);
            let speeds = pairs().map(|(from, to)| (to - from) / period_secs);
            self.arm.drive(&mut self.physics, positions, speeds);
            self.physics.step();
        }
        self.targets = to;
        self.ticks += 1;
        Ok(())
    }

    /// The physical truth now.
    pub fn state(&self) -> WorldState {
        let (joint_positions, joint_speeds) = self.arm.joints(&self.physics);
        let touches = self.touches();
        let objects = self.scene.objects.iter().zip(&self.objects).zip(&touches);
        let objects = objects.filter_map(|((object, handle), touch)| {
            let body = self.physics.bodies.get(*handle)?;
            Some(ObjectState {
                kind: object.kind,
                colour: object.colour,
                base_from_object: from_pose(body.position()),
                velocity: from_vector(body.linvel()),
                touched: touch.gripper || touch.jaw,
                pinched: touch.gripper && touch.jaw,
                on_table: touch.table,
            })
        });
        WorldState {
            time_secs: self.time_secs(),
            base_from_tip: self.kinematics.base_from_tip(&joint_positions),
            joint_positions,
            joint_speeds,
            joint_targets: self.targets.clone(),
            objects: objects.collect(),
        }
    }

    /// What a camera sees now.
    pub fn drawing(&self) -> Drawing {
        let mut solids = Vec::new();
        self.arm.draw(&self.physics, self.kinematics.model(), &mut solids);
        let tint = self.scene.looks.tint;
        for (object, handle) in self.scene.objects.iter().zip(&self.objects) {
            let Some(body) = self.physics.bodies.get(*handle) else { continue };
            let plain = object.colour.albedo();
            solids.push(Drawn {
                solid: bodies::solid(object.kind),
                world_from_solid: from_pose(body.position()).cast(),
                albedo: std::array::from_fn(|channel| (plain[channel] + tint[channel]).clamp(0.0, 1.0)),
            });
        }
        let marks = self.scene.zones.iter().map(|zone| Mark {
            xy_m: zone.xy_m.map(|x| x as f32),
            half_m: zone.half_m as f32,
            albedo: ZONE_ALBEDO,
        });
        Drawing {
            solids,
            marks: marks.collect(),
            world_from_gripper: self.arm.world_from_gripper(&self.physics).cast(),
            looks: self.scene.looks.clone(),
        }
    }

    /// A hash of the bits of every pose and velocity: equal on every machine for equal calls.
    pub fn hash(&self) -> u64 {
        self.physics.hash()
    }

    /// Kinematics of the arm.
    pub fn kinematics(&self) -> &Kinematics {
        &self.kinematics
    }

    /// What the arm is.
    pub fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    /// The scene it began with.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Seconds since the beginning.
    pub fn time_secs(&self) -> f64 {
        self.ticks as f64 * self.embodiment.period_secs()
    }

    /// Physics steps in a control period.
    pub fn steps_per_tick(&self) -> usize {
        self.steps_per_tick
    }

    /// What pushes against each object.
    fn touches(&self) -> Vec<Touch> {
        let mut touches = vec![Touch::default(); self.objects.len()];
        for pair in self.physics.narrow_phase.contact_pairs() {
            if pair.total_impulse_magnitude() <= 0.0 {
                continue;
            }
            let owner = |handle| self.physics.colliders.get(handle).map(|c| Owner::of(c.user_data));
            let (Some(a), Some(b)) = (owner(pair.collider1), owner(pair.collider2)) else { continue };
            for (mine, other) in [(a, b), (b, a)] {
                let Owner::Object(index) = mine else { continue };
                let Some(touch) = touches.get_mut(index) else { continue };
                match other {
                    Owner::Table => touch.table = true,
                    Owner::Gripper => touch.gripper = true,
                    Owner::Jaw => touch.jaw = true,
                    Owner::Arm | Owner::Object(_) => {}
                }
            }
        }
        touches
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Touch {
    table: bool,
    gripper: bool,
    jaw: bool,
}

fn check(embodiment: &Embodiment, what: &str, joints: &[f64]) -> Result<()> {
    if joints.len() != embodiment.joints.len() {
        return Err(Error::Shape {
            what: what.to_owned(),
            expected: embodiment.joints.len().to_string(),
            got: joints.len().to_string(),
        });
    }
    if joints.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite(what.to_owned()));
    }
    Ok(())
}
