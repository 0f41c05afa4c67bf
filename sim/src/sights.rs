//! Pictures of the front camera with what can be seen in them: moments of the experts' episodes.

use crate::camera;
use crate::drawing::Drawing;
use crate::expert::ScriptedExpert;
use crate::render::{render, render_ids};
use crate::scene::{Colour, ObjectKind};
use crate::state::WorldState;
use crate::tabletop::Tabletop;
use crate::tasks::{Split, TaskKind};
use crate::world::World;
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use vela_embodiment::{Embodiment, Error, Result, stream};

/// Edge of the square picture, pixels.
pub const EDGE_PX: u32 = 96;

/// One object in a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thing {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub kind: ObjectKind,
    /// The mean of its pixels, `[x, y]` from the top left corner.
    pub at_px: [f32; 2],
    /// Where it is, m.
    pub xyz_m: [f64; 3],
    /// How many pixels show it.
    pub pixels: usize,
    /// Whether the gripper holds it off the table.
    pub held: bool,
}

impl Thing {
    /// Its colour and shape.
    pub fn pair(&self) -> (Colour, ObjectKind) {
        (self.colour, self.kind)
    }
}

/// What the gripper holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grip {
    /// Nothing, and touches nothing.
    Empty,
    /// One thing, off the table.
    Holds,
    /// It touches something: between the two.
    Unclear,
}

/// What a picture shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The objects, from left to right.
    pub things: Vec<Thing>,
    /// What the gripper holds.
    pub grip: Grip,
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Photo {
    /// sRGB bytes, `[height, width, 3]`.
    pub rgb: Vec<u8>,
    /// What it shows.
    pub shown: Shown,
}

/// Fewer pixels than this share of what it would have alone: an object is hardly visible.
const LEAST_SHARE: f64 = 0.45;
/// And never fewer than this many.
const LEAST_PX: usize = 14;
/// Up to so many pixels: nobody would say that it is there.
const HIDDEN_PX: usize = 1;
/// Height above its place on the table at which an object is held, m.
const LIFTED_M: f64 = 0.01;

impl Shown {
    /// What the front camera sees, or `None` where an object is hardly visible or the gripper holds one that is hidden.
    ///
    /// # Errors
    /// A drawing that does not belong to the world.
    pub fn of(world: &World, drawing: &Drawing) -> Result<Option<Self>> {
        let view = camera::view("front", drawing, EDGE_PX, EDGE_PX)?;
        let ids = render_ids(drawing, &view);
        let state = world.state();
        let arm_parts = drawing.solids.len().checked_sub(state.objects.len());
        let arm_parts = arm_parts.ok_or_else(|| Error::Robot("the drawing lacks objects".into()))?;
        let mut things = Vec::new();
        for (index, object) in state.objects.iter().enumerate() {
            let id = arm_parts + index;
            let places: Vec<usize> = (0..ids.len()).filter(|at| usize::from(ids[*at]) == id).collect();
            let held = lifted(&state, index);
            if places.len() <= HIDDEN_PX && !held {
                continue;
            }
            let alone = Drawing { solids: vec![drawing.solids[id].clone()], ..drawing.clone() };
            let whole = render_ids(&alone, &view).iter().filter(|id| **id == 0).count();
            if places.len() < LEAST_PX || (places.len() as f64) < LEAST_SHARE * whole as f64 {
                return Ok(None);
            }
            let mean = |of: fn(usize) -> usize| {
                places.iter().map(|at| of(*at) as f32 + 0.5).sum::<f32>() / places.len() as f32
            };
            things.push(Thing {
                colour: object.colour,
                kind: object.kind,
                at_px: [mean(|at| at % EDGE_PX as usize), mean(|at| at / EDGE_PX as usize)],
                xyz_m: object.base_from_object.translation.vector.into(),
                pixels: places.len(),
                held,
            });
        }
        things.sort_by(|a, b| a.at_px[0].total_cmp(&b.at_px[0]));
        let grip = match state.objects.iter().any(|object| object.touched) {
            false => Grip::Empty,
            true if things.iter().any(|thing| thing.held) => Grip::Holds,
            true => Grip::Unclear,
        };
        Ok((!things.is_empty()).then_some(Self { things, grip }))
    }
}

/// Between the jaws and off the table.
fn lifted(state: &WorldState, index: usize) -> bool {
    state.objects.get(index).is_some_and(|object| {
        let height = object.base_from_object.translation.vector.z;
        object.pinched && !object.on_table && height > object.kind.rest_height_m() + LIFTED_M
    })
}

/// Takes pictures of the experts' episodes.
pub struct Photographer {
    table: Tabletop,
    expert: ScriptedExpert,
    split: Split,
}

/// Ticks from one picture of an episode to the next.
const GAP_TICKS: std::ops::Range<usize> = 12..50;
/// No episode is followed longer.
const MOST_TICKS: usize = 360;

impl Photographer {
    /// One for scenes of a split.
    pub fn new(embodiment: &Embodiment, split: Split) -> Result<Self> {
        let table = Tabletop::blind(embodiment, split)?;
        Ok(Self { table, expert: ScriptedExpert::new(embodiment)?, split })
    }

    /// Pictures of one episode, those in which everything is well visible: of every other seed the beginning alone, of the
    /// rest moments up to its end. Half of the episodes are under domain randomisation.
    pub fn episode(&mut self, seed: u64) -> Result<Vec<Photo>> {
        let mut rng = stream(seed, &format!("pictures {}", self.split.name()));
        let kind = *TaskKind::ALL.choose(&mut rng).ok_or_else(|| Error::Robot("no task".into()))?;
        let (scene, task) = self.table.sampler().sample(kind, seed, self.split, rng.random_bool(0.5))?;
        self.table.begin(&scene, &task)?;
        let mut photos = Vec::new();
        photos.extend(self.shoot()?);
        if rng.random_bool(0.5) {
            return Ok(photos);
        }
        let mut world = self.table.world().clone();
        let (mut next, mut done) = (rng.random_range(GAP_TICKS), 0);
        for tick in 1..MOST_TICKS {
            let targets = self.expert.targets(&scene, &task, &world.state());
            world.step(&targets)?;
            if tick == next {
                photos.extend(shoot(&world)?);
                next += rng.random_range(GAP_TICKS);
            }
            done = if still(&world.state()) { done + 1 } else { 0 };
            if done > 20 {
                break;
            }
        }
        Ok(photos)
    }

    fn shoot(&self) -> Result<Option<Photo>> {
        shoot(self.table.world())
    }
}

fn still(state: &WorldState) -> bool {
    state.joint_speeds.iter().all(|speed| speed.abs() < 0.01)
}

fn shoot(world: &World) -> Result<Option<Photo>> {
    let drawing = world.drawing();
    let Some(shown) = Shown::of(world, &drawing)? else { return Ok(None) };
    let view = camera::view("front", &drawing, EDGE_PX, EDGE_PX)?;
    Ok(Some(Photo { rgb: render(&drawing, &view), shown }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_show_what_the_world_holds() -> Result<()> {
        let mut photographer = Photographer::new(&Embodiment::so101()?, Split::Train)?;
        let (mut count, mut holding) = (0, 0);
        for seed in 0..24 {
            let photos = photographer.episode(seed)?;
            assert_eq!(photos, photographer.episode(seed)?, "the same bytes again");
            for photo in photos {
                assert_eq!(photo.rgb.len(), 96 * 96 * 3);
                let things = &photo.shown.things;
                assert!(things.windows(2).all(|pair| pair[0].at_px[0] <= pair[1].at_px[0]));
                let held = things.iter().filter(|thing| thing.held).count();
                assert_eq!(held == 1, photo.shown.grip == Grip::Holds);
                count += 1;
                holding += held;
                for thing in things {
                    // The middle of its pixels is about its colour: its strongest channel is the albedo's.
                    let [x, y] = thing.at_px.map(|at| at as usize);
                    assert!(x < 96 && y < 96 && thing.pixels >= LEAST_PX);
                }
            }
        }
        assert!(count > 24 && holding > 2, "{count} pictures, {holding} with something held");
        Ok(())
    }
}
