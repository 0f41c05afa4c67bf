//! Solids made ready for one picture: where rays enter and leave them, their normals, the shadows they cast.
//!
//! Each shape says once, for one ray, over which pieces of the ray it extends ([`Spans`]); the nearest hit and
//! the shadow test both read that. The loops over [`LANES`] rays have no branches, so that they vectorise.

use super::vec3::{V3, add, dot, high, low, matvec, scale, sub};
use super::{Hits, LANES, Lane, NEAR, Rays};
use crate::camera::CameraView;
use crate::drawing::{Drawn, Solid};

/// Shadow rays start this far above the surface, m.
const LIFT: f32 = 2e-4;

/// Two pieces of a ray, in order, each from where it enters to where it leaves; empty when the end comes first.
type Spans = [[f32; 2]; 2];

const NOTHING: [f32; 2] = [f32::INFINITY, f32::NEG_INFINITY];

/// A rectangle in the picture plane or across the light.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rect {
    pub low: [f32; 2],
    pub high: [f32; 2],
}

impl Rect {
    const EMPTY: Self = Self { low: [f32::INFINITY; 2], high: [f32::NEG_INFINITY; 2] };
    const ALL: Self = Self { low: [f32::NEG_INFINITY; 2], high: [f32::INFINITY; 2] };

    pub fn meets(&self, other: &Self) -> bool {
        self.low[0] <= other.high[0]
            && other.low[0] <= self.high[0]
            && self.low[1] <= other.high[1]
            && other.low[1] <= self.high[1]
    }

    fn grow(&mut self, u: f32, v: f32) {
        self.low = [low(self.low[0], u), low(self.low[1], v)];
        self.high = [high(self.high[0], u), high(self.high[1], v)];
    }
}

/// The eye and the axes of the picture: a ray's direction is `forward + u right + v down`.
pub(super) struct Eye {
    pub at: V3,
    pub right: V3,
    pub down: V3,
    pub forward: V3,
}

impl Eye {
    pub fn new(view: &CameraView) -> Self {
        let axes = view.world_from_camera.rotation.to_rotation_matrix();
        let column = |k: usize| [axes[(0, k)], axes[(1, k)], axes[(2, k)]];
        Self {
            at: view.world_from_camera.translation.vector.into(),
            right: column(0),
            down: column(1),
            forward: column(2),
        }
    }

    #[inline(always)]
    pub fn ray(&self, u: f32, v: f32) -> V3 {
        add(self.forward, add(scale(self.right, u), scale(self.down, v)))
    }
}

/// Towards the light, and two axes across it.
pub(super) struct Light {
    pub across: [V3; 2],
    pub towards: V3,
}

/// One solid, with eye and light in its own frame.
pub(super) struct Ready {
    shape: Solid,
    centre: V3,
    /// Rows: the solid's axes in the world.
    axes: [V3; 3],
    eye: Eye,
    light: V3,
    /// What it covers in the picture plane.
    pub seen: Rect,
    /// Depth of its nearest corner.
    pub depth: f32,
    /// What it covers across the light.
    pub shade: Rect,
    /// How far it reaches towards the light.
    pub top: f32,
}

impl Ready {
    pub fn new(drawn: &Drawn, eye: &Eye, light: &Light) -> Self {
        let rotation = drawn.world_from_solid.rotation.to_rotation_matrix();
        let axes: [V3; 3] = std::array::from_fn(|k| [rotation[(0, k)], rotation[(1, k)], rotation[(2, k)]]);
        let centre: V3 = drawn.world_from_solid.translation.vector.into();
        let half: V3 = match drawn.solid {
            Solid::Box(half) => half.into(),
            Solid::Cylinder { radius, half_length } => [radius, radius, half_length],
            Solid::Sphere { radius } => [radius; 3],
            Solid::Bowl { radius, half_height, .. } => [radius, radius, half_height],
        };
        let reach = |axis: V3| -> f32 { (0..3).map(|k| dot(axes[k], axis).abs() * half[k]).sum() };
        let mut seen = Rect::EMPTY;
        let mut depth = f32::INFINITY;
        for corner in 0..8 {
            let side = |k: usize| if corner >> k & 1 == 0 { -half[k] } else { half[k] };
            let offset = (0..3).fold(sub(centre, eye.at), |at, k| add(at, scale(axes[k], side(k))));
            let z = dot(offset, eye.forward);
            seen.grow(dot(offset, eye.right) / z, dot(offset, eye.down) / z);
            depth = low(depth, z);
        }
        if dot(sub(centre, eye.at), eye.forward) + reach(eye.forward) < NEAR {
            seen = Rect::EMPTY;
        } else if depth < NEAR {
            seen = Rect::ALL;
        }
        let [a, b] = light.across.map(|axis| (dot(centre, axis), reach(axis)));
        Self {
            shape: drawn.solid.clone(),
            centre,
            axes,
            eye: Eye {
                at: matvec(&axes, sub(eye.at, centre)),
                right: matvec(&axes, eye.right),
                down: matvec(&axes, eye.down),
                forward: matvec(&axes, eye.forward),
            },
            light: matvec(&axes, light.towards),
            seen,
            depth,
            shade: Rect { low: [a.0 - a.1, b.0 - b.1], high: [a.0 + a.1, b.0 + b.1] },
            top: dot(centre, light.towards) + reach(light.towards),
        }
    }

    /// Keeps this solid wherever it is nearer than what a ray has met so far.
    pub fn meet(&self, me: u32, rays: &Rays, hits: &mut Hits) {
        match self.shape {
            Solid::Box(half) => self.meet_as(me, rays, hits, |o, d| [block(o, d, half.into()), NOTHING]),
            Solid::Cylinder { radius, half_length } => self
                .meet_as(me, rays, hits, |o, d| [tube(o, d, radius, [-half_length, half_length]), NOTHING]),
            Solid::Sphere { radius } => self.meet_as(me, rays, hits, |o, d| [ball(o, d, radius), NOTHING]),
            Solid::Bowl { radius, half_height, wall } => {
                self.meet_as(me, rays, hits, |o, d| bowl(o, d, radius, half_height, wall))
            }
        }
    }

    #[inline(always)]
    fn meet_as(&self, me: u32, rays: &Rays, hits: &mut Hits, spans: impl Fn(V3, V3) -> Spans) {
        for i in 0..LANES {
            let [first, second] = spans(self.eye.at, self.eye.ray(rays.u[i], rays.v[i]));
            let mut depth = hits.depth[i];
            let mut material = hits.material[i];
            for [enter, leave] in [second, first] {
                let nearer = (enter < leave) & (enter > NEAR) & (enter < depth);
                depth = if nearer { enter } else { depth };
                material = if nearer { me } else { material };
            }
            hits.depth[i] = depth;
            hits.material[i] = material;
        }
    }

    /// Writes the world normals of the lanes that this solid won.
    pub fn normals(&self, me: u32, rays: &Rays, hits: &Hits, normals: &mut [Lane; 3]) {
        match self.shape {
            Solid::Box(half) => {
                let half: V3 = half.into();
                // Edges are rounded for the eye only: the normal turns over the outermost millimetre.
                let bevel = low(0.0015, 0.3 * low(half[0], low(half[1], half[2])));
                let inner = sub(half, [bevel; 3]);
                self.normals_as(me, rays, hits, normals, |p| {
                    std::array::from_fn(|k| high(p[k].abs() - inner[k], 0.0).copysign(p[k]))
                });
            }
            Solid::Cylinder { radius, half_length } => {
                let bevel = low(0.0015, 0.3 * low(radius, half_length));
                self.normals_as(me, rays, hits, normals, |p| {
                    let r = (p[0] * p[0] + p[1] * p[1]).sqrt();
                    let out = high(r - (radius - bevel), 0.0) / high(r, 1e-6);
                    let up = high(p[2].abs() - (half_length - bevel), 0.0).copysign(p[2]);
                    [p[0] * out, p[1] * out, up]
                });
            }
            Solid::Sphere { .. } => self.normals_as(me, rays, hits, normals, |p| p),
            Solid::Bowl { radius, half_height, wall } => {
                self.normals_as(me, rays, hits, normals, |p| bowl_normal(p, radius, half_height, wall));
            }
        }
    }

    #[inline(always)]
    fn normals_as(
        &self,
        me: u32,
        rays: &Rays,
        hits: &Hits,
        normals: &mut [Lane; 3],
        normal: impl Fn(V3) -> V3,
    ) {
        let [nx, ny, nz] = normals;
        let [ax, ay, az] = self.axes;
        for i in 0..LANES {
            let ray = self.eye.ray(rays.u[i], rays.v[i]);
            let n = normal(add(self.eye.at, scale(ray, hits.depth[i])));
            let n = scale(n, 1.0 / dot(n, n).sqrt());
            let world = add(scale(ax, n[0]), add(scale(ay, n[1]), scale(az, n[2])));
            let mine = hits.material[i] == me;
            nx[i] = if mine { world[0] } else { nx[i] };
            ny[i] = if mine { world[1] } else { ny[i] };
            nz[i] = if mine { world[2] } else { nz[i] };
        }
    }

    /// Puts out the light where this solid stands before it. A convex solid never shades itself.
    pub fn shade(&self, me: u32, hits: &Hits, points: &[Lane; 3], normals: &[Lane; 3], sun: &mut Lane) {
        match self.shape {
            Solid::Box(half) => {
                self.shade_as(me, hits, points, normals, sun, |o, d| [block(o, d, half.into()), NOTHING])
            }
            Solid::Cylinder { radius, half_length } => {
                self.shade_as(me, hits, points, normals, sun, |o, d| {
                    [tube(o, d, radius, [-half_length, half_length]), NOTHING]
                });
            }
            Solid::Sphere { radius } => {
                self.shade_as(me, hits, points, normals, sun, |o, d| [ball(o, d, radius), NOTHING]);
            }
            Solid::Bowl { radius, half_height, wall } => {
                self.shade_as(u32::MAX, hits, points, normals, sun, |o, d| {
                    bowl(o, d, radius, half_height, wall)
                });
            }
        }
    }

    #[inline(always)]
    fn shade_as(
        &self,
        me: u32,
        hits: &Hits,
        points: &[Lane; 3],
        normals: &[Lane; 3],
        sun: &mut Lane,
        spans: impl Fn(V3, V3) -> Spans,
    ) {
        for i in 0..LANES {
            let lifted: V3 = std::array::from_fn(|k| points[k][i] + LIFT * normals[k][i]);
            let [first, second] = spans(matvec(&self.axes, sub(lifted, self.centre)), self.light);
            let blocked = (first[1] > high(first[0], 0.0)) | (second[1] > high(second[0], 0.0));
            sun[i] = if blocked & (hits.material[i] != me) { 0.0 } else { sun[i] };
        }
    }
}

/// Slabs of a box of half edges `half`.
#[inline(always)]
fn block(o: V3, d: V3, half: V3) -> [f32; 2] {
    let mut span = [f32::NEG_INFINITY, f32::INFINITY];
    for k in 0..3 {
        let inverse = 1.0 / d[k];
        let (near, far) = ((-half[k] - o[k]) * inverse, (half[k] - o[k]) * inverse);
        span = [high(span[0], low(near, far)), low(span[1], high(near, far))];
    }
    span
}

/// A ball of this radius.
#[inline(always)]
fn ball(o: V3, d: V3, radius: f32) -> [f32; 2] {
    let (a, b, c) = (dot(d, d), dot(o, d), dot(o, o) - radius * radius);
    roots(a, b, c)
}

/// A round bar along z of this radius, between two heights.
#[inline(always)]
fn tube(o: V3, d: V3, radius: f32, heights: [f32; 2]) -> [f32; 2] {
    // A ray along the axis has no a: a trace of it puts both roots far away instead of nowhere.
    let a = high(d[0] * d[0] + d[1] * d[1], 1e-12);
    let side = roots(a, o[0] * d[0] + o[1] * d[1], o[0] * o[0] + o[1] * o[1] - radius * radius);
    let inverse = 1.0 / d[2];
    let (near, far) = ((heights[0] - o[2]) * inverse, (heights[1] - o[2]) * inverse);
    [high(side[0], low(near, far)), low(side[1], high(near, far))]
}

/// A bar without its hollow: the part before the hollow and the part after it.
#[inline(always)]
fn bowl(o: V3, d: V3, radius: f32, half_height: f32, wall: f32) -> Spans {
    let bar = tube(o, d, radius, [-half_height, half_height]);
    let hollow = tube(o, d, radius - wall, [wall - half_height, 3.0 * half_height]);
    // A ray that misses the hollow keeps the bar in one piece.
    let through = hollow[0] < hollow[1];
    let end = if through { low(bar[1], hollow[0]) } else { bar[1] };
    let start = if through { high(bar[0], hollow[1]) } else { f32::INFINITY };
    [[bar[0], end], [start, bar[1]]]
}

/// The normal of the surface of a bowl that is nearest to a point.
#[inline(always)]
fn bowl_normal(p: V3, radius: f32, half_height: f32, wall: f32) -> V3 {
    let r = (p[0] * p[0] + p[1] * p[1]).sqrt();
    let (inner, floor) = (radius - wall, wall - half_height);
    let out = [p[0] / high(r, 1e-6), p[1] / high(r, 1e-6), 0.0];
    let mut best = (r - radius).abs();
    let mut normal = out;
    let mut offer = |far: f32, n: V3| {
        let nearer = far < best;
        best = if nearer { far } else { best };
        for k in 0..3 {
            normal[k] = if nearer { n[k] } else { normal[k] };
        }
    };
    let inside = r < inner + 1e-4;
    offer((p[2] - half_height).abs(), [0.0, 0.0, 1.0]);
    offer((p[2] + half_height).abs(), [0.0, 0.0, -1.0]);
    offer(if p[2] > floor { (r - inner).abs() } else { 1.0 }, [-out[0], -out[1], 0.0]);
    offer(if inside { (p[2] - floor).abs() } else { 1.0 }, [0.0, 0.0, 1.0]);
    normal
}

/// Both roots of `a t^2 + 2 b t + c`, a positive; empty when there are none.
#[inline(always)]
fn roots(a: f32, b: f32, c: f32) -> [f32; 2] {
    let square = b * b - a * c;
    let root = high(square, 0.0).sqrt();
    let inverse = 1.0 / a;
    let (near, far) = ((-b - root) * inverse, (root - b) * inverse);
    let real = square > 0.0;
    [if real { near } else { f32::INFINITY }, if real { far } else { f32::NEG_INFINITY }]
}
