//! Pictures against known geometry, a golden hash, and the same bytes from any number of threads.

#![allow(clippy::unwrap_used)]

use super::{MARK_ID, TABLE_ID, render, render_ids};
use crate::camera::{CameraView, view};
use crate::drawing::{Drawing, Drawn, Mark, Solid};
use crate::scene::{Colour, Looks};
use nalgebra::{Isometry3, Quaternion, Translation3, UnitQuaternion, Vector3};
use rayon::prelude::*;

/// Poses from plain fractions, so that no sine decides the golden bytes.
fn pose(xyz: [f32; 3], quaternion: [f32; 4]) -> Isometry3<f32> {
    let [w, x, y, z] = quaternion;
    Isometry3::from_parts(Translation3::from(xyz), UnitQuaternion::new_normalize(Quaternion::new(w, x, y, z)))
}

fn table() -> Drawing {
    Drawing {
        solids: Vec::new(),
        marks: Vec::new(),
        world_from_gripper: pose([0.2, 0.0, 0.2], [1.0, 0.0, 1.0, 0.0]),
        looks: Looks::default(),
    }
}

fn drawn(solid: Solid, at: Isometry3<f32>, colour: Colour) -> Drawn {
    Drawn { solid, world_from_solid: at, albedo: colour.albedo() }
}

/// One of each.
fn zoo() -> Drawing {
    let mut drawing = table();
    let upright = [1.0, 0.0, 0.0, 0.0];
    drawing.solids = vec![
        drawn(
            Solid::Box(Vector3::repeat(0.0135)),
            pose([0.16, -0.1, 0.0135], [4.0, 0.0, 0.0, 1.0]),
            Colour::Red,
        ),
        drawn(
            Solid::Cylinder { radius: 0.0135, half_length: 0.015 },
            pose([0.22, -0.04, 0.015], upright),
            Colour::Green,
        ),
        drawn(Solid::Sphere { radius: 0.0135 }, pose([0.17, 0.02, 0.0135], upright), Colour::Blue),
        drawn(
            Solid::Bowl { radius: 0.045, half_height: 0.0125, wall: 0.003 },
            pose([0.22, 0.1, 0.0125], upright),
            Colour::Yellow,
        ),
    ];
    drawing.marks = vec![Mark { xy_m: [0.26, 0.02], half_m: 0.02, albedo: [0.1, 0.3, 0.4] }];
    drawing
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn pixel(view: &CameraView, world: [f32; 3]) -> usize {
    let [x, y] = view.project(world).unwrap();
    y as usize * view.width as usize + x as usize
}

/// When a change of the renderer is meant, look at the pictures (`--example snapshot`), then renew the number.
/// Models are trained on these bytes: a new number means that they see something else than they learned.
#[test]
fn the_pictures_are_the_golden_ones() {
    let drawing = zoo();
    let hashes =
        ["front", "wrist"].map(|name| fnv(&render(&drawing, &view(name, &drawing, 96, 96).unwrap())));
    assert_eq!(hashes, GOLDEN, "got {hashes:#x?}");
}

const GOLDEN: [u64; 2] = [0x5541_fd9a_9259_58b1, 0x518b_6582_f742_6baa];

#[test]
fn each_solid_is_seen_where_it_projects_and_nowhere_else() {
    let drawing = zoo();
    let view = view("front", &drawing, 192, 192).unwrap();
    let ids = render_ids(&drawing, &view);
    for (k, solid) in drawing.solids.iter().enumerate() {
        let centre = solid.world_from_solid.translation.vector;
        assert_eq!(ids[pixel(&view, centre.into())], k as u16);
        let seen: Vec<usize> = (0..ids.len()).filter(|&p| ids[p] == k as u16).collect();
        let middle =
            seen.iter().fold([0.0; 2], |m, p| [m[0] + (p % 192) as f32 + 0.5, m[1] + (p / 192) as f32 + 0.5]);
        let [u, v] = view.project(centre.into()).unwrap();
        let [du, dv] = [middle[0] / seen.len() as f32 - u, middle[1] / seen.len() as f32 - v];
        let near = if matches!(solid.solid, Solid::Sphere { .. }) { 0.3 } else { 2.0 };
        assert!(du.abs() < near && dv.abs() < near, "solid {k} is off by {du} {dv}");
    }
    assert_eq!(ids[pixel(&view, [0.26, 0.02, 0.0])], MARK_ID);
    assert_eq!(ids[pixel(&view, [0.26, 0.05, 0.0])], TABLE_ID);
}

#[test]
fn a_sphere_covers_the_area_that_its_angle_says() {
    let mut drawing = table();
    drawing.solids.push(drawn(
        Solid::Sphere { radius: 0.05 },
        pose([0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]),
        Colour::Red,
    ));
    // Half a metre away on the axis: a disc of tangent r / sqrt(d^2 - r^2).
    let turn = [1.0, 0.0, 0.0, 0.0];
    let view = CameraView {
        world_from_camera: pose([0.0, 0.0, 0.5], turn),
        half_fov_tangent: 0.2,
        width: 200,
        height: 200,
    };
    let covered = render_ids(&drawing, &view).iter().filter(|&&id| id == 0).count() as f32;
    let radius_px = view.focal_px() * 0.05 / (0.25_f32 - 0.0025).sqrt();
    let disc = std::f32::consts::PI * radius_px * radius_px;
    assert!((covered / disc - 1.0).abs() < 0.01, "{covered} against {disc}");
}

#[test]
fn a_shadow_falls_away_from_the_light_and_darkens_the_table() {
    let mut drawing = table();
    let ball = pose([0.2, 0.0, 0.1], [1.0, 0.0, 0.0, 0.0]);
    drawing.solids.push(drawn(Solid::Sphere { radius: 0.015 }, ball, Colour::Red));
    drawing.looks.towards_light = [0.5, -0.5, 1.0];
    let view = view("front", &drawing, 96, 96).unwrap();
    let rgb = render(&drawing, &view);
    let green = |x: f32, y: f32| f32::from(rgb[3 * pixel(&view, [x, y, 0.0]) + 1]);
    // 0.1 m above the table: the shadow lies 0.05 m behind and 0.05 m to the left.
    let (shadow, lit) = (green(0.15, 0.05), green(0.15, -0.08));
    assert!(shadow < 0.75 * lit, "{shadow} against {lit}");
    drawing.solids.clear();
    let rgb = render(&drawing, &view);
    assert!(rgb[3 * pixel(&view, [0.15, 0.05, 0.0]) + 1].abs_diff(lit as u8) < 12);
}

#[test]
fn a_bowl_is_hollow_from_above_and_stands_on_a_floor() {
    let mut drawing = table();
    let bowl = Solid::Bowl { radius: 0.045, half_height: 0.0125, wall: 0.003 };
    drawing.solids.push(drawn(bowl, pose([0.2, 0.0, 0.0125], [1.0, 0.0, 0.0, 0.0]), Colour::Blue));
    drawing.solids.push(drawn(
        Solid::Sphere { radius: 0.0135 },
        pose([0.2, 0.0, 0.0165], [1.0, 0.0, 0.0, 0.0]),
        Colour::Orange,
    ));
    let view = view("front", &drawing, 96, 96).unwrap();
    let ids = render_ids(&drawing, &view);
    assert_eq!(ids[pixel(&view, [0.2, 0.0, 0.03])], 1, "the ball inside is seen through the open top");
    assert_eq!(ids[pixel(&view, [0.2, 0.03, 0.003])], 0, "the floor is seen");
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let drawing = zoo();
    let views: Vec<CameraView> =
        (0..8).map(|k| view(["front", "wrist"][k % 2], &drawing, 60 + k as u32, 50).unwrap()).collect();
    let pictures = |threads: usize| -> Vec<Vec<u8>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| views.par_iter().map(|view| render(&drawing, view)).collect())
    };
    assert_eq!(pictures(1), pictures(4));
}

#[test]
fn broken_drawings_and_empty_pictures_do_not_panic() {
    let mut drawing = zoo();
    drawing.solids[0].world_from_solid.translation.vector.x = f32::NAN;
    drawing.solids[1].solid = Solid::Sphere { radius: f32::INFINITY };
    drawing.solids[2].solid = Solid::Box(Vector3::zeros());
    drawing.looks.towards_light = [0.0; 3];
    drawing.marks[0].half_m = f32::NAN;
    let mut view = view("front", &drawing, 96, 96).unwrap();
    assert_eq!(render(&drawing, &view).len(), 96 * 96 * 3);
    (view.width, view.height) = (0, 7);
    assert!(render(&drawing, &view).is_empty());
}
