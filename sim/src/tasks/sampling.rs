//! Random scenes in which a sentence makes sense: reachable, with room for the gripper, never without distractors.

use super::{Split, Task, TaskKind, ZONE_CENTRES_M, ZONE_HALF_M, targets};
use crate::language::{Command, Goal, TaskBook};
use crate::pointing::Pointing;
use crate::scene::{Colour, Looks, Object, ObjectKind, Physics, Scene, Zone};
use nalgebra::{Vector2, Vector3};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use vela_embodiment::{Embodiment, Error, Result, stream};

/// Ranges of an object's centre, m.
const X_M: (f64, f64) = (0.15, 0.265);
const Y_M: (f64, f64) = (-0.15, 0.15);
/// Distance of an object's centre from the axis of the shoulder pan, m: where the gripper points straight down
/// from the table up to the travel height.
const REACH_M: (f64, f64) = (0.115, 0.222);
/// Least distance of two centres: the open gripper fits between two neighbours, m.
const APART_M: f64 = 0.066;
const APART_FROM_BOWL_M: f64 = 0.096;
const APART_BOWLS_M: f64 = 0.11;
/// Where the gripper comes down behind what it pushes, from its centre, m.
const BEHIND_M: f64 = 0.042;

/// Samples scenes and tasks for one arm.
#[derive(Clone, Debug)]
pub struct Sampler {
    pointing: Pointing,
    /// Gripper joint when open, rad.
    open: f64,
    home: Vec<f64>,
}

impl Sampler {
    /// A sampler for an arm with a gripper.
    pub fn new(embodiment: &Embodiment) -> Result<Self> {
        let pointing = Pointing::new(embodiment)?;
        let open = embodiment.gripper.as_ref().map_or(0.0, |gripper| gripper.open);
        Ok(Self { home: pointing.home()?, pointing, open })
    }

    /// A scene and its task. Decided by all four arguments; no two splits share a scene, but that a swap is a test
    /// scene (another one where nothing else can be named).
    pub fn sample(&self, kind: TaskKind, seed: u64, split: Split, randomise: bool) -> Result<(Scene, Task)> {
        if split == Split::Swap {
            for again in 0..100 {
                let (scene, task) =
                    self.sample(kind, seed.wrapping_add(again << 32), Split::Test, randomise)?;
                if let Some(task) = task.swapped(&scene) {
                    return Ok((scene, task));
                }
            }
            return Err(Error::Robot(format!("found no scene to swap with seed {seed}")));
        }
        let book = TaskBook::builtin()?;
        let mut rng = stream(seed, &format!("tabletop {} {} words", split.name(), kind.name()));
        let none = || Error::Robot("the task book has no target or phrasing left".into());
        let target = *targets(kind, split)?.choose(&mut rng).ok_or_else(none)?;
        let goal = match kind {
            TaskKind::Reach | TaskKind::Pick => Goal::Nowhere,
            TaskKind::Push => Goal::Zone(ZONE_CENTRES_M[usize::from(rng.random_bool(0.5))].0),
            TaskKind::Place => Goal::Bowl(Colour::ALL[rng.random_range(0..Colour::ALL.len())]),
            TaskKind::Stack => {
                let mut bases = targets(kind, Split::Train)?;
                bases.retain(|base| *base != target);
                let base = *bases.choose(&mut rng).ok_or_else(none)?;
                Goal::On(base.0, base.1)
            }
        };
        let text = book.text(kind);
        let template = match split {
            Split::HeldOutPhrasing => &text.held_out_phrasing,
            _ => text.phrasings.choose(&mut rng).ok_or_else(none)?,
        };
        let command = Command { kind, target, goal };
        let purpose = format!("tabletop {} {} scene", split.name(), kind.name());
        self.compose(&command, &command.say(template), seed, &purpose, randomise)
    }

    /// A scene in which a sentence of the user's own makes sense.
    ///
    /// # Errors
    /// The sentence is not understood.
    pub fn scene_for(&self, sentence: &str, seed: u64, randomise: bool) -> Result<(Scene, Task)> {
        self.compose(&Command::parse(sentence)?, sentence, seed, "tabletop own sentence", randomise)
    }

    fn compose(
        &self,
        command: &Command,
        sentence: &str,
        seed: u64,
        purpose: &str,
        randomise: bool,
    ) -> Result<(Scene, Task)> {
        let mut rng = stream(seed, purpose);
        for _ in 0..2000 {
            if let Some(scene) = self.attempt(command, &mut rng, randomise) {
                let task = Task::of(command, sentence, &scene)?;
                return Ok((scene, task));
            }
        }
        Err(Error::Robot(format!("found no free scene for '{sentence}' with seed {seed}")))
    }

    /// One try; `None` when something does not fit or cannot be reached.
    fn attempt(&self, command: &Command, rng: &mut ChaCha8Rng, randomise: bool) -> Option<Scene> {
        let zones: Vec<Zone> = ZONE_CENTRES_M
            .into_iter()
            .map(|(name, [x, y])| Zone {
                name: name.to_owned(),
                xy_m: [x + rng.random_range(-0.01..0.01), y + rng.random_range(-0.01..0.01)],
                half_m: ZONE_HALF_M,
            })
            .collect();
        let mut pairs: Vec<(Colour, ObjectKind)> = vec![command.target];
        match command.goal {
            Goal::Bowl(colour) => pairs.insert(0, (colour, ObjectKind::Bowl)),
            Goal::On(colour, kind) => pairs.push((colour, kind)),
            Goal::Nowhere | Goal::Zone(_) => {}
        }
        distractors(command, rng, randomise, &mut pairs)?;
        let mut objects: Vec<Object> = Vec::new();
        for (colour, kind) in pairs {
            let found = (0..30).find_map(|_| {
                let xy = [rng.random_range(X_M.0..X_M.1), rng.random_range(Y_M.0..Y_M.1)];
                let yaw = rng.random_range(-std::f64::consts::PI..std::f64::consts::PI);
                let object = Object { kind, colour, xy_m: xy, yaw_rad: yaw };
                self.fits(&object, &objects, command, &zones).then_some(object)
            })?;
            objects.push(found);
        }
        let (looks, physics) =
            if randomise { random_world(rng) } else { (Looks::default(), Physics::default()) };
        let start_joints = self.start(rng)?;

        let reachable = objects.iter().all(|object| {
            let [x, y] = object.xy_m;
            let yaw = self.pointing.heading(Vector2::new(x, y));
            [0.017, 0.085]
                .into_iter()
                .all(|z| self.pointing.joints(&Vector3::new(x, y, z), yaw, &self.home).is_some())
        });
        reachable.then_some(Scene { objects, zones, start_joints, looks, physics })
    }

    fn fits(&self, object: &Object, others: &[Object], command: &Command, zones: &[Zone]) -> bool {
        let xy = Vector2::from(object.xy_m);
        let radius = self.pointing.radius(xy);
        if !(REACH_M.0..REACH_M.1).contains(&radius) {
            return false;
        }
        // A bowl that is too near or too far leaves no room to let go over its middle.
        if object.kind == ObjectKind::Bowl && !(0.13..0.212).contains(&radius) {
            return false;
        }
        let bowl = |kind| kind == ObjectKind::Bowl;
        let apart = others.iter().all(|other| {
            let least = match (bowl(object.kind), bowl(other.kind)) {
                (true, true) => APART_BOWLS_M,
                (false, false) => APART_M,
                _ => APART_FROM_BOWL_M,
            };
            (xy - Vector2::from(other.xy_m)).norm() >= least
        });
        let zone = match command.goal {
            Goal::Zone(name) => zones.iter().find(|zone| zone.name == name),
            _ => None,
        };
        // The target comes first in a scene that is to be pushed in.
        let push_room = zone.is_none_or(|zone| match others.first() {
            None => self.can_be_pushed(xy, Vector2::from(zone.xy_m)),
            Some(target) => off_the_way(xy, Vector2::from(target.xy_m), Vector2::from(zone.xy_m)),
        });
        apart && push_room
    }

    /// What is to be pushed starts outside its zone and leaves room for the gripper behind it.
    fn can_be_pushed(&self, from: Vector2<f64>, zone: Vector2<f64>) -> bool {
        let way = zone - from;
        let radius = self.pointing.radius(from - way.normalize() * BEHIND_M);
        (0.08..0.2).contains(&way.norm()) && (REACH_M.0..REACH_M.1 + 0.01).contains(&radius)
    }

    /// Joints of a pose above the table, gripper down and open.
    fn start(&self, rng: &mut ChaCha8Rng) -> Option<Vec<f64>> {
        let (x, y) = (rng.random_range(0.185..0.225), rng.random_range(-0.07..0.07));
        let at = Vector3::new(x, y, rng.random_range(0.09..0.14));
        let yaw = self.pointing.heading(at.xy()) + rng.random_range(-0.4..0.4);
        let mut seed = self.home.clone();
        seed[self.pointing.gripper] = self.open * rng.random_range(0.45..0.9);
        self.pointing.joints(&at, yaw, &seed)
    }
}

/// Nobody stands where the gripper comes down behind the target, on the way, or in the zone.
fn off_the_way(other: Vector2<f64>, target: Vector2<f64>, zone: Vector2<f64>) -> bool {
    let along = (zone - target).normalize();
    let behind = target - along * BEHIND_M;
    let at = other - behind;
    let nearest = along * at.dot(&along).clamp(0.0, (zone - behind).norm());
    (at - nearest).norm() > 0.048
}

/// Adds two or three others (three or four under randomisation), never a second of the same colour and shape; the
/// first shares the target's colour or its shape.
fn distractors(
    command: &Command,
    rng: &mut ChaCha8Rng,
    randomise: bool,
    pairs: &mut Vec<(Colour, ObjectKind)>,
) -> Option<()> {
    let count = rng.random_range(2..=3) + usize::from(randomise && rng.random_bool(0.5));
    let bowls = match command.kind {
        TaskKind::Push => 0.0,
        TaskKind::Place => 0.25,
        _ => 0.15,
    };
    let target = command.target;
    for k in 0..count {
        let other = (0..100).find_map(|_| {
            let colour = Colour::ALL[rng.random_range(0..Colour::ALL.len())];
            let movable = ObjectKind::MOVABLE[rng.random_range(0..ObjectKind::MOVABLE.len())];
            let other = match k {
                0 if rng.random_bool(0.5) => (target.0, movable),
                0 => (colour, target.1),
                1 if rng.random_bool(bowls) => (colour, ObjectKind::Bowl),
                _ => (colour, movable),
            };
            (!pairs.contains(&other)).then_some(other)
        })?;
        pairs.push(other);
    }
    Some(())
}

/// Light, colours, camera, friction and mass of one episode under domain randomisation.
fn random_world(rng: &mut ChaCha8Rng) -> (Looks, Physics) {
    let plain = Looks::default();
    let mut near = |centre: f32, half: f32| rng.random_range(centre - half..centre + half);
    let looks = Looks {
        towards_light: [near(0.2, 0.6), near(0.2, 0.6), 1.0],
        light: near(1.0, 0.25),
        ambient: near(plain.ambient, 0.1),
        table: {
            let grey = near(0.0, 0.12);
            plain.table.map(|c| c + grey + near(0.0, 0.06))
        },
        background: plain.background.map(|c| c + near(0.0, 0.15)),
        tint: [near(0.0, 0.03), near(0.0, 0.03), near(0.0, 0.03)],
        camera_shift_m: [near(0.0, 0.006), near(0.0, 0.006), near(0.0, 0.006)],
        camera_turn_rad: [near(0.0, 0.02), near(0.0, 0.02), near(0.0, 0.02)],
    };
    let physics =
        Physics { friction_scale: rng.random_range(0.75..1.3), mass_scale: rng.random_range(0.6..1.6) };
    (looks, physics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_of_every_task_gives_reachable_scenes_with_distractors() -> Result<()> {
        let book = TaskBook::builtin()?;
        let sampler = Sampler::new(&Embodiment::so101()?)?;
        for kind in TaskKind::ALL {
            for split in Split::ALL {
                for seed in 0..20 {
                    let (scene, task) = sampler.sample(kind, seed, split, seed % 2 == 1)?;
                    let target = &scene.objects[task.target];
                    let pair = (target.colour, target.kind);
                    assert_eq!(book.is_held_out(pair), split == Split::HeldOutPair);
                    let others = scene.objects.iter().enumerate().filter(|(k, _)| *k != task.target);
                    let others: Vec<_> = others.map(|(_, o)| (o.colour, o.kind)).collect();
                    assert!(others.len() >= 2 && !others.contains(&pair));
                    // After a swap the easily confused one may be another object's.
                    let confusable = others.iter().any(|o| o.0 == pair.0 || o.1 == pair.1);
                    assert!(confusable || split == Split::Swap);
                    assert_eq!(Task::parse(&task.instruction, &scene)?, task);
                    assert_eq!(sampler.sample(kind, seed, split, seed % 2 == 1)?, (scene, task));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_sentence_of_the_users_own_gets_a_scene_with_what_it_names() -> Result<()> {
        let sampler = Sampler::new(&Embodiment::so101()?)?;
        let (scene, task) = sampler.scene_for("Put the red cube on top of the green cylinder.", 3, false)?;
        assert_eq!(task.kind, TaskKind::Stack);
        let swapped = task.swapped(&scene);
        assert!(swapped.is_none_or(|s| s.target != task.target && s.instruction != task.instruction));
        assert!(sampler.scene_for("fold the shirt", 3, false).is_err());
        Ok(())
    }
}
