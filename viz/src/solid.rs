//! Shapes: the arm's links and the things around it, as rerun's archetypes.

use nalgebra::{Isometry3, UnitQuaternion, Vector3};
use rerun::{AsComponents, RecordingStream};
use vela_embodiment::Geometry;

/// The form of a thing, centred on its own frame; m.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Box, cylinder, ball or capsule. A mesh file is not drawn.
    Plain(Geometry),
    /// An open tube along z with a floor at its lower end.
    Bowl {
        /// Outer radius, m.
        radius: f64,
        /// Height from floor to rim, m.
        height: f64,
        /// Thickness, m.
        wall: f64,
    },
    /// A flat square painted on the table, normal along z.
    Patch {
        /// Half its edge, m.
        half: f64,
    },
}

/// A thing beside the arm.
#[derive(Clone, Debug, PartialEq)]
pub struct Solid {
    /// Its name in the viewer, unlike any other solid's: "red cube".
    pub name: String,
    /// What it is.
    pub form: Form,
    /// sRGB colour and opacity, 0 to 1.
    pub rgba: [f32; 4],
    /// Where it is at first.
    pub base_from_solid: Isometry3<f64>,
}

/// The opaque sRGB colour of a linear albedo, 0 to 1 (IEC 61966-2-1).
pub fn srgb_from_linear(albedo: [f32; 3]) -> [f32; 4] {
    let curve = |x: f32| match x.clamp(0.0, 1.0) {
        x if x <= 0.003_130_8 => 12.92 * x,
        x => 1.055 * x.powf(1.0 / 2.4) - 0.055,
    };
    [curve(albedo[0]), curve(albedo[1]), curve(albedo[2]), 1.0]
}

/// Bytes of a colour, 0 to 1.
pub(crate) fn colour(rgba: [f32; 4]) -> rerun::Color {
    let [r, g, b, a] = rgba.map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8);
    rerun::Color::from_unmultiplied_rgba(r, g, b, a)
}

pub(crate) fn vec3(v: &Vector3<f64>) -> [f32; 3] {
    [v.x as f32, v.y as f32, v.z as f32]
}

pub(crate) fn quaternion(q: &UnitQuaternion<f64>) -> rerun::Quaternion {
    rerun::Quaternion([q.i as f32, q.j as f32, q.k as f32, q.w as f32])
}

/// A pose as rerun's transform of child in parent.
pub(crate) fn transform(parent_from_child: &Isometry3<f64>) -> rerun::Transform3D {
    rerun::Transform3D::from_translation(vec3(&parent_from_child.translation.vector))
        .with_quaternion(quaternion(&parent_from_child.rotation))
}

/// Logs shapes under `path`, one entity each: for all time, or from now until they are cleared (what is there for
/// all time cannot be cleared).
pub(crate) fn log_shapes(
    recording: &RecordingStream,
    path: &str,
    for_all_time: bool,
    shapes: &[(Isometry3<f64>, &Geometry, [f32; 4])],
) -> rerun::RecordingStreamResult<()> {
    for (k, (pose, geometry, rgba)) in shapes.iter().enumerate() {
        let (at, turn, colour) = (vec3(&pose.translation.vector), quaternion(&pose.rotation), colour(*rgba));
        let solid = rerun::FillMode::Solid;
        let shape: Box<dyn AsComponents> = match geometry {
            Geometry::Box(size) => Box::new(
                rerun::Boxes3D::from_centers_and_sizes([at], [vec3(size)])
                    .with_quaternions([turn])
                    .with_colors([colour])
                    .with_fill_mode(solid),
            ),
            Geometry::Cylinder { radius, length } => Box::new(
                rerun::Cylinders3D::from_lengths_and_radii([*length as f32], [*radius as f32])
                    .with_centers([at])
                    .with_quaternions([turn])
                    .with_colors([colour])
                    .with_fill_mode(solid),
            ),
            Geometry::Sphere { radius } => Box::new(
                rerun::Ellipsoids3D::from_centers_and_radii([at], [*radius as f32])
                    .with_colors([colour])
                    .with_fill_mode(solid),
            ),
            Geometry::Capsule { radius, length } => {
                // Rerun's capsule begins at its lower centre; ours is centred.
                let low = pose * nalgebra::Point3::new(0.0, 0.0, -length / 2.0);
                Box::new(
                    rerun::Capsules3D::from_lengths_and_radii([*length as f32], [*radius as f32])
                        .with_translations([vec3(&low.coords)])
                        .with_quaternions([turn])
                        .with_colors([colour])
                        .with_fill_mode(solid),
                )
            }
            Geometry::Mesh(_) => continue,
        };
        recording.log_with_static(format!("{path}/shape_{k}"), for_all_time, shape.as_ref())?;
    }
    Ok(())
}

/// Logs a solid's form (not its pose) at `path`, until it is cleared.
pub(crate) fn log_form(
    recording: &RecordingStream,
    path: &str,
    solid: &Solid,
) -> rerun::RecordingStreamResult<()> {
    match &solid.form {
        Form::Plain(geometry) => {
            log_shapes(recording, path, false, &[(Isometry3::identity(), geometry, solid.rgba)])
        }
        Form::Patch { half } => {
            let flat = Geometry::Box(Vector3::new(2.0 * half, 2.0 * half, 0.001));
            log_shapes(recording, path, false, &[(Isometry3::identity(), &flat, solid.rgba)])
        }
        Form::Bowl { radius, height, wall } => {
            let (r, h, w) = (*radius as f32, *height as f32 / 2.0, *wall as f32);
            // From the middle of the underside, out, up, over the rim, down the inside, to the middle of the floor.
            let profile = [[0.0, -h], [r, -h], [r, h], [r - w, h], [r - w, w - h], [0.0, w - h]];
            recording
                .log(format!("{path}/shape_0"), &lathe(&profile).with_albedo_factor(colour(solid.rgba).0))
        }
    }
}

/// A solid of revolution about z of a profile of (radius, height), flat between profile points.
fn lathe(profile: &[[f32; 2]]) -> rerun::Mesh3D {
    const SIDES: u32 = 40;
    let (mut places, mut normals, mut triangles) = (Vec::new(), Vec::new(), Vec::new());
    for pair in profile.windows(2) {
        let [[r0, z0], [r1, z1]] = [pair[0], pair[1]];
        let length = (r1 - r0).hypot(z1 - z0).max(f32::EPSILON);
        let (out, up) = ((z1 - z0) / length, (r0 - r1) / length);
        let first = places.len() as u32;
        for side in 0..=SIDES {
            let (sin, cos) = (side as f32 / SIDES as f32 * std::f32::consts::TAU).sin_cos();
            for [r, z] in [[r0, z0], [r1, z1]] {
                places.push([r * cos, r * sin, z]);
                normals.push([out * cos, out * sin, up]);
            }
            if side < SIDES {
                let k = first + 2 * side;
                triangles.push([k, k + 2, k + 1]);
                triangles.push([k + 1, k + 2, k + 3]);
            }
        }
    }
    rerun::Mesh3D::new(places).with_vertex_normals(normals).with_triangle_indices(triangles)
}
