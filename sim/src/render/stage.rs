//! Everything that one picture needs, and what a batch of rays meets and looks like.

use super::solids::{Eye, Light, Ready, Rect};
use super::vec3::{V3, add, cross, dot, high, low, pick, scale, splat, unit};
use super::{Hits, Lane, MARK_ID, NEAR, PACKS, Rays, Surface, TABLE_ID, pack};
use crate::camera::CameraView;
use crate::drawing::{Drawing, Mark};
use wide::f32x8;

/// The table fades into the background between these distances from the base, m, squared.
const HAZE: [f32; 2] = [0.45, 2.5];
/// Sunlight is a little warm, skylight a little cool; linear RGB.
const SUN: V3 = [1.06, 1.01, 0.94];
const SKY: V3 = [0.90, 0.94, 1.00];
/// How much a solid, and the table, shine.
const GLOSS: [f32; 2] = [0.20, 0.02];

/// A drawing made ready for one camera. Materials are the solids in order, then background, table, marks.
pub(super) struct Stage<'a> {
    eye: Eye,
    light: Light,
    strength: f32,
    ambient: f32,
    solids: Vec<Ready>,
    /// The solids' places, nearest first.
    order: Vec<usize>,
    marks: &'a [Mark],
    /// Linear RGB and gloss by material.
    palette: Vec<[f32; 4]>,
    background: f32,
    table: f32,
}

impl<'a> Stage<'a> {
    pub fn new(drawing: &'a Drawing, view: &CameraView) -> Self {
        let looks = &drawing.looks;
        // Light from nowhere falls straight down.
        let towards = unit(looks.towards_light).unwrap_or([0.0, 0.0, 1.0]);
        let aside = if towards[0].abs() < 0.7 { [1.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0] };
        let first = unit(cross(towards, aside)).unwrap_or([0.0, 1.0, 0.0]);
        let light = Light { across: [first, cross(towards, first)], towards };
        let eye = Eye::new(view);
        let solids: Vec<Ready> = drawing.solids.iter().map(|drawn| Ready::new(drawn, &eye, &light)).collect();
        let mut order: Vec<usize> = (0..solids.len()).collect();
        order.sort_by(|&a, &b| solids[a].depth.total_cmp(&solids[b].depth));
        let paint = |rgb: V3, gloss: f32| [rgb[0], rgb[1], rgb[2], gloss];
        let palette = drawing
            .solids
            .iter()
            .map(|drawn| paint(drawn.albedo, GLOSS[0]))
            .chain([paint(looks.background, 0.0), paint(looks.table, GLOSS[1])])
            .chain(drawing.marks.iter().map(|mark| paint(mark.albedo, GLOSS[1])))
            .collect();
        Self {
            eye,
            light,
            strength: looks.light,
            ambient: looks.ambient,
            background: solids.len() as f32,
            table: solids.len() as f32 + 1.0,
            solids,
            order,
            marks: &drawing.marks,
            palette,
        }
    }

    /// The solids that may show inside a rectangle of the picture plane, nearest first.
    pub fn within(&self, rect: &Rect, found: &mut Vec<usize>) {
        found.clear();
        found.extend(self.order.iter().filter(|&&k| self.solids[k].seen.meets(rect)));
    }

    /// The public id of a material.
    pub fn id(&self, material: f32) -> u16 {
        if material < self.background {
            material as u16
        } else if material > self.table {
            MARK_ID + (material - self.table) as u16 - 1
        } else {
            TABLE_ID
        }
    }

    /// What each ray meets first, of the table, the marks and these solids.
    pub fn meet(&self, rays: &Rays, solids: &[usize], hits: &mut Hits) {
        let eye = self.eye.splat();
        let [near, horizon, nowhere] = [NEAR, 50.0, f32::INFINITY].map(f32x8::splat);
        let (table, background) = (f32x8::splat(self.table), f32x8::splat(self.background));
        for i in rays.each() {
            let depth = -eye.at[2] / eye.ray(rays, i)[2];
            let below = depth.simd_gt(near) & depth.simd_lt(horizon);
            hits.depth[i] = pick(below, depth, nowhere);
            hits.material[i] = pick(below, table, background);
        }
        for (k, mark) in self.marks.iter().enumerate() {
            let me = f32x8::splat(self.table + 1.0 + k as f32);
            let [x, y, half] = [mark.xy_m[0], mark.xy_m[1], mark.half_m].map(f32x8::splat);
            for i in rays.each() {
                let ray = eye.ray(rays, i);
                let dx = (eye.at[0] + hits.depth[i] * ray[0] - x).abs();
                let dy = (eye.at[1] + hits.depth[i] * ray[1] - y).abs();
                let inside = dx.simd_lt(half) & dy.simd_lt(half);
                hits.material[i] = pick(inside, me, hits.material[i]);
            }
        }
        for &k in solids {
            self.solids[k].meet(k as f32, rays, hits);
        }
    }

    /// The linear RGB that each ray sees.
    pub fn colours(
        &self,
        rays: &Rays,
        solids: &[usize],
        hits: &Hits,
        surface: &mut Surface,
        rgb: &mut [Lane; 3],
    ) {
        self.surface(rays, solids, hits, surface);
        let sun = self.sun(rays, hits, surface);
        let (eye, towards) = (self.eye.splat(), splat(self.light.towards));
        let [zero, one] = [f32x8::ZERO, f32x8::ONE];
        let [strength, ambient] = [self.strength, self.ambient].map(f32x8::splat);
        let haze_scale = f32x8::splat(1.0 / (HAZE[1] - HAZE[0]));
        let (table, background) = (f32x8::splat(self.table), f32x8::splat(self.background));
        let [sky_rgb, sun_rgb] = [SKY, SUN].map(|colour| splat(scale(colour, self.strength)));
        let background_paint = self.palette[self.background as usize].map(f32x8::splat);
        for i in rays.each() {
            // Blinn 1977: the highlight where the normal halves the angle of light and eye; to the 32nd power.
            let ray = eye.ray(rays, i);
            let half = add(towards, scale(ray, -one / dot(ray, ray).sqrt()));
            let normal = pack(&surface.normals, i);
            let aligned = dot(normal, half) / high(dot(half, half).sqrt(), f32x8::splat(1e-6));
            // Not lower, because numbers next to zero are slow.
            let a2 = high(aligned, f32x8::splat(0.15));
            let a2 = a2 * a2;
            let a8 = a2 * a2 * (a2 * a2);
            let a16 = a8 * a8;
            let shine = pick(sun[i].simd_gt(zero), strength * surface.paint[3][i] * (a16 * a16), zero);
            // Less sky reaches what faces down.
            let open = ambient * (f32x8::splat(0.72) + f32x8::splat(0.28) * normal[2]);
            let direct = (one - ambient) * sun[i];
            let far =
                surface.points[0][i] * surface.points[0][i] + surface.points[1][i] * surface.points[1][i];
            let haze = low(high((far - f32x8::splat(HAZE[0])) * haze_scale, zero), one);
            let haze = pick(hits.material[i].simd_ge(table), haze, zero);
            let haze = pick(hits.material[i].simd_eq(background), one, haze);
            for k in 0..3 {
                let lit = surface.paint[k][i] * (open * sky_rgb[k] + direct * sun_rgb[k]) + shine;
                rgb[k][i] = low(lit + haze * (background_paint[k] - lit), one);
            }
        }
    }

    /// Where each ray ends, on what.
    fn surface(&self, rays: &Rays, solids: &[usize], hits: &Hits, surface: &mut Surface) {
        let (eye, nowhere) = (self.eye.splat(), f32x8::splat(f32::INFINITY));
        let table = self.palette[self.table as usize].map(f32x8::splat);
        for i in rays.each() {
            let depth = pick(hits.depth[i].simd_lt(nowhere), hits.depth[i], f32x8::ZERO);
            let point = add(eye.at, scale(eye.ray(rays, i), depth));
            for k in 0..3 {
                surface.points[k][i] = point[k];
                surface.normals[k][i] = if k == 2 { f32x8::ONE } else { f32x8::ZERO };
            }
            for k in 0..4 {
                surface.paint[k][i] = table[k];
            }
        }
        let shows = |material: f32| {
            let me = f32x8::splat(material);
            hits.material.iter().fold(f32x8::ZERO, |any, m| any | m.simd_eq(me)).any()
        };
        for k in 0..self.marks.len() {
            let material = self.table + 1.0 + k as f32;
            if shows(material) {
                for (c, x) in self.palette[material as usize].into_iter().enumerate() {
                    for i in rays.each() {
                        let mine = hits.material[i].simd_eq(f32x8::splat(material));
                        surface.paint[c][i] = pick(mine, f32x8::splat(x), surface.paint[c][i]);
                    }
                }
            }
        }
        for &k in solids {
            if shows(k as f32) {
                self.solids[k].surface(k as f32, self.palette[k], rays, hits, surface);
            }
        }
    }

    /// Cosine between normal and light, zero in the shadow.
    fn sun(&self, rays: &Rays, hits: &Hits, surface: &Surface) -> Lane {
        let nowhere = f32x8::splat(f32::INFINITY);
        let [a, b] = self.light.across.map(splat);
        let towards = splat(self.light.towards);
        let mut sun = [f32x8::ZERO; PACKS];
        // Bounds across the light of what is to be lit.
        let mut least = [nowhere; 5];
        for i in rays.each() {
            let facing = dot(pack(&surface.normals, i), towards);
            let lit = facing.simd_gt(f32x8::ZERO) & hits.depth[i].simd_lt(nowhere);
            sun[i] = pick(lit, facing, f32x8::ZERO);
            let point = pack(&surface.points, i);
            let (across, along) = (dot(point, a), dot(point, b));
            let bounds = [across, along, -across, -along, dot(point, towards)];
            for k in 0..5 {
                least[k] = low(least[k], pick(lit, bounds[k], nowhere));
            }
        }
        let [a, b, c, d, lowest] =
            least.map(|eight| eight.to_array().into_iter().fold(f32::INFINITY, f32::min));
        let area = Rect { low: [a, b], high: [-c, -d] };
        for (k, solid) in self.solids.iter().enumerate() {
            if solid.top > lowest && solid.shade.meets(&area) {
                solid.shade(k as f32, rays, hits, surface, &mut sun);
            }
        }
        sun
    }
}
