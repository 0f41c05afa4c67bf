//! Everything that one picture needs, and what a batch of rays meets and looks like.

use super::solids::{Eye, Light, Ready, Rect};
use super::vec3::{V3, add, cross, dot, high, low, scale, unit};
use super::{Hits, LANES, Lane, MARK_ID, NEAR, Rays, TABLE_ID};
use crate::camera::CameraView;
use crate::drawing::{Drawing, Mark};

/// The table ends here in the haze, m from the base (squared: near, far).
const HAZE: [f32; 2] = [0.45, 2.5];
/// Sunlight is a little warm, skylight a little cool; linear RGB.
const SUN: V3 = [1.22, 1.17, 1.08];
const SKY: V3 = [1.02, 1.08, 1.16];

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
    background: u32,
    table: u32,
}

impl<'a> Stage<'a> {
    pub fn new(drawing: &'a Drawing, view: &CameraView) -> Self {
        let looks = &drawing.looks;
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
            .map(|drawn| paint(drawn.albedo, 0.22))
            .chain([paint(looks.background, 0.0), paint(looks.table, 0.03)])
            .chain(drawing.marks.iter().map(|mark| paint(mark.albedo, 0.03)))
            .collect();
        Self {
            eye,
            light,
            strength: looks.light,
            ambient: looks.ambient,
            background: solids.len() as u32,
            table: solids.len() as u32 + 1,
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
    pub fn id(&self, material: u32) -> u16 {
        match material.checked_sub(self.table + 1) {
            Some(mark) => MARK_ID + mark as u16,
            None if material < self.background => material as u16,
            None => TABLE_ID,
        }
    }

    /// What each ray meets first, of the table, the marks and these solids.
    pub fn meet(&self, rays: &Rays, solids: &[usize], hits: &mut Hits) {
        for i in 0..LANES {
            let depth = -self.eye.at[2] / self.eye.ray(rays.u[i], rays.v[i])[2];
            let below = (depth > NEAR) & (depth < 50.0);
            hits.depth[i] = if below { depth } else { f32::INFINITY };
            hits.material[i] = if below { self.table } else { self.background };
        }
        for (k, mark) in self.marks.iter().enumerate() {
            let me = self.table + 1 + k as u32;
            for i in 0..LANES {
                let ray = self.eye.ray(rays.u[i], rays.v[i]);
                let x = self.eye.at[0] + hits.depth[i] * ray[0] - mark.xy_m[0];
                let y = self.eye.at[1] + hits.depth[i] * ray[1] - mark.xy_m[1];
                let inside = (x.abs() < mark.half_m) & (y.abs() < mark.half_m);
                hits.material[i] = if inside { me } else { hits.material[i] };
            }
        }
        for &k in solids {
            self.solids[k].meet(k as u32, rays, hits);
        }
    }

    /// The linear RGB that each ray sees.
    pub fn colours(&self, rays: &Rays, solids: &[usize], hits: &Hits, rgb: &mut [Lane; 3]) {
        let mut points = [[0.0; LANES]; 3];
        for i in 0..LANES {
            let ray = self.eye.ray(rays.u[i], rays.v[i]);
            let depth = if hits.depth[i] < f32::INFINITY { hits.depth[i] } else { 0.0 };
            for k in 0..3 {
                points[k][i] = self.eye.at[k] + depth * ray[k];
            }
        }
        let mut normals = [[0.0; LANES], [0.0; LANES], [1.0; LANES]];
        for &k in solids {
            if hits.material.iter().fold(false, |any, &m| any | (m == k as u32)) {
                self.solids[k].normals(k as u32, rays, hits, &mut normals);
            }
        }
        let sun = self.sun(hits, &points, &normals);
        let mut paint = [[0.0; LANES]; 4];
        for i in 0..LANES {
            let colour = self.palette.get(hits.material[i] as usize).copied().unwrap_or_default();
            for k in 0..4 {
                paint[k][i] = colour[k];
            }
        }
        let background = self.palette[self.background as usize];
        let [nx, ny, nz] = &normals;
        for i in 0..LANES {
            let ray = self.eye.ray(rays.u[i], rays.v[i]);
            let towards_eye = scale(ray, -1.0 / dot(ray, ray).sqrt());
            // Blinn: the highlight of the direction half way between light and eye, to the 32nd power.
            let half = add(self.light.towards, towards_eye);
            let aligned = nx[i] * half[0] + ny[i] * half[1] + nz[i] * half[2];
            let aligned = high(aligned, 0.0) / high(dot(half, half).sqrt(), 1e-6);
            let a2 = aligned * aligned;
            let a4 = a2 * a2;
            let a8 = a4 * a4;
            let a32 = a8 * a8 * a8 * a8;
            let lit = if sun[i] > 0.0 { 1.0 } else { 0.0 };
            let shine = self.strength * paint[3][i] * a32 * lit;
            // Less sky reaches what faces down.
            let open = self.ambient * (0.72 + 0.28 * nz[i]);
            let direct = (1.0 - self.ambient) * sun[i];
            let far = points[0][i] * points[0][i] + points[1][i] * points[1][i];
            let haze = low(high((far - HAZE[0]) / (HAZE[1] - HAZE[0]), 0.0), 1.0);
            let flat = hits.material[i] >= self.table;
            let nothing = hits.material[i] == self.background;
            let haze = if nothing {
                1.0
            } else if flat {
                haze
            } else {
                0.0
            };
            for k in 0..3 {
                let light = self.strength * (open * SKY[k] + direct * SUN[k]);
                let surface = paint[k][i] * light + shine;
                rgb[k][i] = surface + haze * (background[k] - surface);
            }
        }
    }

    /// Cosine between normal and light, zero in the shadow.
    fn sun(&self, hits: &Hits, points: &[Lane; 3], normals: &[Lane; 3]) -> Lane {
        let towards = self.light.towards;
        let mut sun = [0.0; LANES];
        // Bounds across the light of what is to be lit, eight running minima at a time.
        let mut least = [[f32::INFINITY; 8]; 5];
        for c in 0..LANES / 8 {
            for j in 0..8 {
                let i = c * 8 + j;
                let facing = dot([normals[0][i], normals[1][i], normals[2][i]], towards);
                let lit = (facing > 0.0) & (hits.depth[i] < f32::INFINITY);
                sun[i] = if lit { facing } else { 0.0 };
                let p = [points[0][i], points[1][i], points[2][i]];
                let [a, b] = [dot(p, self.light.across[0]), dot(p, self.light.across[1])];
                for (k, x) in [a, b, -a, -b, dot(p, towards)].into_iter().enumerate() {
                    let x = if lit { x } else { f32::INFINITY };
                    least[k][j] = low(least[k][j], x);
                }
            }
        }
        let [a, b, c, d, lowest] = least.map(|eight| eight.into_iter().fold(f32::INFINITY, low));
        let area = Rect { low: [a, b], high: [-c, -d] };
        for (k, solid) in self.solids.iter().enumerate() {
            if solid.top > lowest && solid.shade.meets(&area) {
                solid.shade(k as u32, hits, points, normals, &mut sun);
            }
        }
        sun
    }
}
