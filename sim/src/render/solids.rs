//! Solids made ready for one picture: where rays enter and leave them, their normals, the shadows they cast.
//!
//! Each shape says once over which pieces of a ray it extends ([`Spans`]); the nearest hit and the shadow test
//! both read that.

use super::shapes::{self, Spans};
use super::vec3::{V3, add, dot, matvec, pick, scale, splat, sub};
use super::{Hits, Lane, NEAR, Rays, Surface, pack};
use crate::camera::CameraView;
use crate::drawing::{Drawn, Solid};
use wide::f32x8;

/// Shadow rays start this far above the surface, m.
const LIFT: f32 = 2e-4;

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
        self.low = [self.low[0].min(u), self.low[1].min(v)];
        self.high = [self.high[0].max(u), self.high[1].max(v)];
    }
}

/// The eye and the axes of the picture: a ray's direction is `forward + u right + v down`.
#[derive(Clone, Copy)]
pub(super) struct Eye<T = f32> {
    pub at: V3<T>,
    pub right: V3<T>,
    pub down: V3<T>,
    pub forward: V3<T>,
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
    pub fn splat(&self) -> Eye<f32x8> {
        Eye {
            at: splat(self.at),
            right: splat(self.right),
            down: splat(self.down),
            forward: splat(self.forward),
        }
    }
}

impl Eye<f32x8> {
    #[inline(always)]
    pub fn ray(&self, rays: &Rays, i: usize) -> V3<f32x8> {
        add(self.forward, add(scale(self.right, rays.u[i]), scale(self.down, rays.v[i])))
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
            depth = depth.min(z);
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
                at: matvec(axes, sub(eye.at, centre)),
                right: matvec(axes, eye.right),
                down: matvec(axes, eye.down),
                forward: matvec(axes, eye.forward),
            },
            light: matvec(axes, light.towards),
            seen,
            depth,
            shade: Rect { low: [a.0 - a.1, b.0 - b.1], high: [a.0 + a.1, b.0 + b.1] },
            top: dot(centre, light.towards) + reach(light.towards),
        }
    }

    /// Keeps this solid wherever it is nearer than what a ray has met so far.
    pub fn meet(&self, me: f32, rays: &Rays, hits: &mut Hits) {
        match self.shape {
            Solid::Box(half) => self.meet_as(me, rays, hits, shapes::block(half.into())),
            Solid::Cylinder { radius, half_length } => {
                self.meet_as(me, rays, hits, shapes::cylinder(radius, half_length));
            }
            Solid::Sphere { radius } => self.meet_as(me, rays, hits, shapes::ball(radius)),
            Solid::Bowl { radius, half_height, wall } => {
                self.meet_as(me, rays, hits, shapes::bowl(radius, half_height, wall));
            }
        }
    }

    #[inline(always)]
    fn meet_as(&self, me: f32, rays: &Rays, hits: &mut Hits, spans: impl Fn(V3<f32x8>, V3<f32x8>) -> Spans) {
        let (eye, me, near) = (self.eye.splat(), f32x8::splat(me), f32x8::splat(NEAR));
        for i in rays.each() {
            let [first, second] = spans(eye.at, eye.ray(rays, i));
            for [enter, leave] in [second, first] {
                let nearer = enter.simd_lt(leave) & enter.simd_gt(near) & enter.simd_lt(hits.depth[i]);
                hits.depth[i] = pick(nearer, enter, hits.depth[i]);
                hits.material[i] = pick(nearer, me, hits.material[i]);
            }
        }
    }

    /// Writes normal and paint of the rays that this solid won.
    pub fn surface(&self, me: f32, paint: [f32; 4], rays: &Rays, hits: &Hits, surface: &mut Surface) {
        match self.shape {
            Solid::Box(half) => {
                self.surface_as(me, paint, rays, hits, surface, shapes::block_normal(half.into()));
            }
            Solid::Cylinder { radius, half_length } => {
                let normal = shapes::cylinder_normal(radius, half_length);
                self.surface_as(me, paint, rays, hits, surface, normal);
            }
            Solid::Sphere { .. } => self.surface_as(me, paint, rays, hits, surface, |p| p),
            Solid::Bowl { radius, half_height, wall } => {
                let normal = shapes::bowl_normal(radius, half_height, wall);
                self.surface_as(me, paint, rays, hits, surface, normal);
            }
        }
    }

    #[inline(always)]
    fn surface_as(
        &self,
        me: f32,
        paint: [f32; 4],
        rays: &Rays,
        hits: &Hits,
        surface: &mut Surface,
        normal: impl Fn(V3<f32x8>) -> V3<f32x8>,
    ) {
        let (eye, me, paint) = (self.eye.splat(), f32x8::splat(me), paint.map(f32x8::splat));
        let axes = self.axes.map(splat);
        for i in rays.each() {
            let mine = hits.material[i].simd_eq(me);
            let n = normal(add(eye.at, scale(eye.ray(rays, i), hits.depth[i])));
            let n = scale(n, f32x8::ONE / dot(n, n).sqrt());
            let n = add(scale(axes[0], n[0]), add(scale(axes[1], n[1]), scale(axes[2], n[2])));
            for k in 0..3 {
                surface.normals[k][i] = pick(mine, n[k], surface.normals[k][i]);
            }
            for k in 0..4 {
                surface.paint[k][i] = pick(mine, paint[k], surface.paint[k][i]);
            }
        }
    }

    /// Puts out the sun where this solid stands before it. A convex solid never shades itself.
    pub fn shade(&self, me: f32, rays: &Rays, hits: &Hits, surface: &Surface, sun: &mut Lane) {
        match self.shape {
            Solid::Box(half) => self.shade_as(me, rays, hits, surface, sun, shapes::block(half.into())),
            Solid::Cylinder { radius, half_length } => {
                self.shade_as(me, rays, hits, surface, sun, shapes::cylinder(radius, half_length));
            }
            Solid::Sphere { radius } => self.shade_as(me, rays, hits, surface, sun, shapes::ball(radius)),
            Solid::Bowl { radius, half_height, wall } => {
                self.shade_as(-1.0, rays, hits, surface, sun, shapes::bowl(radius, half_height, wall));
            }
        }
    }

    #[inline(always)]
    fn shade_as(
        &self,
        me: f32,
        rays: &Rays,
        hits: &Hits,
        surface: &Surface,
        sun: &mut Lane,
        spans: impl Fn(V3<f32x8>, V3<f32x8>) -> Spans,
    ) {
        let (me, zero, lift) = (f32x8::splat(me), f32x8::ZERO, f32x8::splat(LIFT));
        let (axes, centre, light) = (self.axes.map(splat), splat(self.centre), splat(self.light));
        for i in rays.each() {
            let lifted = add(pack(&surface.points, i), scale(pack(&surface.normals, i), lift));
            let [first, second] = spans(matvec(axes, sub(lifted, centre)), light);
            let before = |[enter, leave]: [f32x8; 2]| leave.simd_gt(enter) & leave.simd_gt(zero);
            let blocked = (before(first) | before(second)) & hits.material[i].simd_ne(me);
            sun[i] = pick(blocked, zero, sun[i]);
        }
    }
}
