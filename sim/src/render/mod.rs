//! A small ray caster for the tabletop: deterministic pictures on the CPU, without GPU or threads.
//!
//! A picture is cut into tiles; a tile knows which solids may show in it; its rays go through them in batches
//! of [`LANES`], eight to an instruction. First one ray per pixel; then eight more in every pixel that differs
//! from a neighbour, so that edges are smooth and flat areas cheap. Only `+ - * /` and square roots decide a
//! byte, so that the same drawing gives the same bytes everywhere.

// Several arrays are walked side by side; one index says that best.
#![allow(clippy::needless_range_loop)]

mod shapes;
mod solids;
mod srgb;
mod stage;
#[cfg(test)]
mod tests;
mod vec3;

use crate::camera::CameraView;
use crate::drawing::Drawing;
use solids::Rect;
use stage::Stage;
use wide::f32x8;

/// In [`render_ids`]: the table or the background.
pub const TABLE_ID: u16 = u16::MAX;
/// In [`render_ids`]: the first mark; mark `k` of the drawing is `MARK_ID + k`. Smaller ids are solids.
pub const MARK_ID: u16 = 0x8000;

/// Rays in a batch.
const LANES: usize = 8 * PACKS;
/// Packs of eight rays in a batch.
const PACKS: usize = 8;
/// Edge of a tile, pixels.
const TILE: u32 = 8;
/// Nothing nearer to the eye than this is drawn, m.
const NEAR: f32 = 1e-3;
/// A pixel whose neighbour differs by more than this in any channel, of 255, is looked at again.
const EDGE: u8 = 8;
/// Where a pixel is looked at first.
const CENTRE: [[f32; 2]; 1] = [[0.5; 2]];
/// Where it is looked at again: eight rooks that do not attack each other.
const ROOKS: [[f32; 2]; 8] = [
    [0.0625, 0.4375],
    [0.1875, 0.8125],
    [0.3125, 0.1875],
    [0.4375, 0.6875],
    [0.5625, 0.0625],
    [0.6875, 0.5625],
    [0.8125, 0.9375],
    [0.9375, 0.3125],
];

/// One number for each ray of a batch.
type Lane = [f32x8; PACKS];

/// One pack of three lanes.
#[inline(always)]
fn pack(lanes: &[Lane; 3], i: usize) -> vec3::V3<f32x8> {
    [lanes[0][i], lanes[1][i], lanes[2][i]]
}

/// Directions of a batch: `forward + u right + v down` of the eye.
struct Rays {
    u: Lane,
    v: Lane,
    /// How many packs are in use.
    packs: usize,
}

impl Rays {
    /// The packs in use.
    #[inline(always)]
    fn each(&self) -> std::ops::Range<usize> {
        0..self.packs.min(PACKS)
    }

    fn set(&mut self, ray: usize, u: f32, v: f32) {
        self.u[ray / 8].as_mut_array()[ray % 8] = u;
        self.v[ray / 8].as_mut_array()[ray % 8] = v;
        self.packs = ray / 8 + 1;
    }
}

/// What a batch met: how deep, in units of the direction (infinite for nothing), and which material.
struct Hits {
    depth: Lane,
    material: Lane,
}

/// Where a batch ended: points and normals in the world, linear RGB and gloss.
struct Surface {
    points: [Lane; 3],
    normals: [Lane; 3],
    paint: [Lane; 4],
}

/// The picture that a camera sees: sRGB bytes, `[height, width, 3]`, row by row from the top.
pub fn render(drawing: &Drawing, view: &CameraView) -> Vec<u8> {
    let stage = Stage::new(drawing, view);
    let mut picture = Painter::new(&stage, view);
    let mut rgb = vec![0; view.width as usize * view.height as usize * 3];
    picture.paint(&CENTRE, |_| true, &mut rgb);
    let edges = edges(&rgb, view.width as usize);
    picture.paint(&ROOKS, |pixel| edges[pixel], &mut rgb);
    rgb
}

/// Which solid of the drawing is at the centre of each pixel, `[height, width]`: its place in
/// `drawing.solids`, [`MARK_ID`]` + k` on mark `k`, or [`TABLE_ID`]. Same rays and same shapes as [`render`].
pub fn render_ids(drawing: &Drawing, view: &CameraView) -> Vec<u16> {
    let stage = Stage::new(drawing, view);
    let mut ids = vec![TABLE_ID; view.width as usize * view.height as usize];
    Painter::new(&stage, view).cast(
        &CENTRE,
        |_| true,
        |painter, pixels| {
            let materials = painter.hits.material.map(|pack| pack.to_array());
            for (pixel, &material) in pixels.iter().zip(materials.as_flattened()) {
                ids[*pixel] = painter.stage.id(material);
            }
        },
    );
    ids
}

/// Casts the rays of a picture, tile by tile and batch by batch.
struct Painter<'a> {
    stage: &'a Stage<'a>,
    width: u32,
    height: u32,
    /// Edge of a pixel in the plane at depth one.
    pixel: f32,
    rays: Rays,
    hits: Hits,
    surface: Surface,
    colours: [Lane; 3],
    /// The solids of this tile.
    solids: Vec<usize>,
}

impl<'a> Painter<'a> {
    fn new(stage: &'a Stage<'a>, view: &CameraView) -> Self {
        let nothing = [[f32x8::ZERO; PACKS]; 3];
        Self {
            stage,
            width: view.width,
            height: view.height,
            pixel: 2.0 * view.half_fov_tangent / view.height as f32,
            rays: Rays { u: [f32x8::ZERO; PACKS], v: [f32x8::ZERO; PACKS], packs: 0 },
            hits: Hits { depth: [f32x8::ZERO; PACKS], material: [f32x8::ZERO; PACKS] },
            surface: Surface { points: nothing, normals: nothing, paint: [[f32x8::ZERO; PACKS]; 4] },
            colours: nothing,
            solids: Vec::new(),
        }
    }

    /// Sets the chosen pixels to the mean of what these places in them see.
    fn paint(&mut self, places: &[[f32; 2]], chosen: impl Fn(usize) -> bool, rgb: &mut [u8]) {
        let share = 1.0 / places.len() as f32;
        self.cast(places, chosen, |painter, pixels| {
            let Painter { stage, rays, solids, hits, surface, colours, .. } = painter;
            stage.colours(rays, solids, hits, surface, colours);
            for (c, colour) in colours.iter().enumerate() {
                let mut seen = [[0.0; 8]; PACKS];
                for (seen, pack) in seen.iter_mut().zip(colour) {
                    *seen = pack.to_array();
                }
                for (pixel, seen) in pixels.iter().zip(seen.as_flattened().chunks_exact(places.len())) {
                    rgb[pixel * 3 + c] = srgb::encode(seen.iter().sum::<f32>() * share);
                }
            }
        });
    }

    /// Casts a ray through each place of each chosen pixel; `take` gets the pixels of every batch, whose rays
    /// lie in their order, all places of a pixel side by side.
    fn cast(
        &mut self,
        places: &[[f32; 2]],
        chosen: impl Fn(usize) -> bool,
        mut take: impl FnMut(&mut Self, &[usize]),
    ) {
        let centre = [0.5 * self.width as f32, 0.5 * self.height as f32];
        let mut pixels = [0; LANES];
        for top in (0..self.height).step_by(TILE as usize) {
            for left in (0..self.width).step_by(TILE as usize) {
                let (right, bottom) = ((left + TILE).min(self.width), (top + TILE).min(self.height));
                let at = |x: u32, y: u32| {
                    [(x as f32 - centre[0]) * self.pixel, (y as f32 - centre[1]) * self.pixel]
                };
                let tile = Rect { low: at(left, top), high: at(right, bottom) };
                let mut found = std::mem::take(&mut self.solids);
                self.stage.within(&tile, &mut found);
                self.solids = found;
                let mut count = 0;
                for y in top..bottom {
                    for x in left..right {
                        let pixel = (y * self.width + x) as usize;
                        if !chosen(pixel) {
                            continue;
                        }
                        for (k, place) in places.iter().enumerate() {
                            let [u, v] = [x as f32 + place[0] - centre[0], y as f32 + place[1] - centre[1]];
                            self.rays.set(count * places.len() + k, u * self.pixel, v * self.pixel);
                        }
                        pixels[count] = pixel;
                        count += 1;
                        if count * places.len() == LANES {
                            self.stage.meet(&self.rays, &self.solids, &mut self.hits);
                            take(self, &pixels[..count]);
                            count = 0;
                        }
                    }
                }
                if count > 0 {
                    self.stage.meet(&self.rays, &self.solids, &mut self.hits);
                    take(self, &pixels[..count]);
                }
            }
        }
    }
}

/// Marks the pixels that differ from the one beside, above or below them.
fn edges(rgb: &[u8], width: usize) -> Vec<bool> {
    let pixels = rgb.len() / 3;
    let mut edges = vec![false; pixels];
    let differ = |a: usize, b: usize| {
        (0..3).fold(0, |most: u8, c| most.max(rgb[3 * a + c].abs_diff(rgb[3 * b + c]))) > EDGE
    };
    for a in 0..pixels {
        let right = (a + 1) % width != 0 && differ(a, a + 1);
        let below = a + width < pixels && differ(a, a + width);
        edges[a] |= right | below;
        if right {
            edges[a + 1] = true;
        }
        if below {
            edges[a + width] = true;
        }
    }
    edges
}
