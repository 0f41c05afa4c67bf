//! The two cameras of the tabletop: one that faces the arm, one that rides on its gripper.
//!
//! A camera's frame is the optical one: x right, y down, z into the picture.

use crate::drawing::Drawing;
use nalgebra::{Isometry3, Matrix3, Point3, Quaternion, Rotation3, Translation3, UnitQuaternion, Vector3};
use vela_embodiment::{Error, Result};

/// The names that [`view`] knows.
pub const NAMES: [&str; 2] = ["front", "wrist"];

/// The widest and highest picture, pixels.
pub const MAX_EDGE: u32 = 4096;

/// Where a camera is and what it spans: a pinhole with square pixels, its axis through the picture's centre.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CameraView {
    /// Its frame: x right, y down, z into the picture; m.
    pub world_from_camera: Isometry3<f32>,
    /// Tangent of half the vertical field of view.
    pub half_fov_tangent: f32,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl CameraView {
    /// Focal length in pixels, the same for both axes.
    pub fn focal_px(&self) -> f32 {
        0.5 * self.height as f32 / self.half_fov_tangent
    }

    /// Where a point (world, m) lands in the picture, `[x, y]` in pixels from the top left corner (pixel
    /// centres at .5); `None` when it is not in front of the camera.
    pub fn project(&self, world: [f32; 3]) -> Option<[f32; 2]> {
        let p = self.world_from_camera.inverse_transform_point(&Point3::from(world));
        let focal = self.focal_px();
        (p.z > 0.0).then(|| {
            [0.5 * self.width as f32 + focal * p.x / p.z, 0.5 * self.height as f32 + focal * p.y / p.z]
        })
    }
}

/// The camera with this name; the drawing's looks displace it.
///
/// # Errors
/// A name that is not in [`NAMES`]; a picture without pixels or with an edge above [`MAX_EDGE`].
pub fn view(name: &str, drawing: &Drawing, width: u32, height: u32) -> Result<CameraView> {
    if !(1..=MAX_EDGE).contains(&width) || !(1..=MAX_EDGE).contains(&height) {
        return Err(Error::Shape {
            what: format!("picture of camera '{name}'"),
            expected: format!("1 to {MAX_EDGE} pixels each way"),
            got: format!("{width}x{height}"),
        });
    }
    match name {
        "front" => Ok(front(drawing, width, height)),
        "wrist" => Ok(wrist(drawing, width, height)),
        _ => Err(Error::Unknown { kind: "camera", name: name.to_owned(), known: NAMES.join(", ") }),
    }
}

/// Faces the arm from the far side of the workspace, high, looking back and down: the world's y runs to the
/// right of the picture. Far away through a long lens, so that a cube is nearly as large at the back as in front.
pub fn front(drawing: &Drawing, width: u32, height: u32) -> CameraView {
    let world_from_camera = look([0.885, 0.0, 0.898], [0.178, 0.0, 0.055], Vector3::z());
    displaced(world_from_camera, 0.157, drawing, width, height)
}

/// Rides beside the gripper and looks along the fingers: the moving jaw is at the top of the picture, the
/// fixed one below it, and what they hold between them.
pub fn wrist(drawing: &Drawing, width: u32, height: u32) -> CameraView {
    let gripper_from_camera = look([0.022, 0.066, 0.014], [0.094, 0.0, 0.014], Vector3::z());
    displaced(drawing.world_from_gripper * gripper_from_camera, 0.70, drawing, width, height)
}

fn displaced(
    world_from_camera: Isometry3<f32>,
    half_fov_tangent: f32,
    drawing: &Drawing,
    width: u32,
    height: u32,
) -> CameraView {
    let shift = Translation3::from(drawing.looks.camera_shift_m);
    let moved = Isometry3::from_parts(shift, turned(Vector3::from(drawing.looks.camera_turn_rad)));
    CameraView { world_from_camera: world_from_camera * moved, half_fov_tangent, width, height }
}

/// A camera at `eye` that looks at `target`, with `up` upwards in the picture.
fn look(eye: [f32; 3], target: [f32; 3], up: Vector3<f32>) -> Isometry3<f32> {
    let eye = Vector3::from(eye);
    let forward = (Vector3::from(target) - eye).normalize();
    let right = forward.cross(&up).normalize();
    let down = forward.cross(&right);
    let axes = Rotation3::from_matrix_unchecked(Matrix3::from_columns(&[right, down, forward]));
    Isometry3::from_parts(Translation3::from(eye), UnitQuaternion::from_rotation_matrix(&axes))
}

/// The rotation of a rotation vector, rad, by series instead of the platform's sine, so that pictures have
/// the same bytes everywhere; exact to f32 for the angles of a displaced camera (below one radian).
fn turned(turn: Vector3<f32>) -> UnitQuaternion<f32> {
    let h = 0.25 * turn.norm_squared();
    let cosine = 1.0 - h / 2.0 * (1.0 - h / 12.0 * (1.0 - h / 30.0));
    let sine_over_angle = 0.5 * (1.0 - h / 6.0 * (1.0 - h / 20.0 * (1.0 - h / 42.0)));
    UnitQuaternion::new_normalize(Quaternion::from_parts(cosine, turn * sine_over_angle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Looks;

    fn bare() -> Drawing {
        Drawing {
            solids: Vec::new(),
            marks: Vec::new(),
            world_from_gripper: Isometry3::identity(),
            looks: Looks::default(),
        }
    }

    #[test]
    fn the_front_camera_sees_the_whole_workspace_with_cubes_of_seven_pixels() -> Result<()> {
        let view = view("front", &bare(), 96, 96)?;
        for x in [0.14, 0.28] {
            for y in [-0.15, 0.15] {
                for z in [0.0, 0.12] {
                    let [u, v] = view.project([x, y, z]).unwrap_or([-1.0; 2]);
                    assert!(u > 1.0 && u < 95.0 && v > 1.0 && v < 95.0, "{x} {y} {z} lands at {u} {v}");
                }
                let edge = |y| view.project([x, y, 0.0135]).map_or(0.0, |p| p[0]);
                let pixels = edge(y + 0.0135) - edge(y - 0.0135);
                assert!(pixels >= 7.0, "a cube at {x} {y} is {pixels} wide");
            }
        }
        Ok(())
    }

    #[test]
    fn the_wrist_camera_sees_the_tool_and_both_jaw_tips_in_any_pose() -> Result<()> {
        let mut drawing = bare();
        drawing.world_from_gripper =
            Isometry3::new(Vector3::new(0.2, 0.1, 0.2), Vector3::new(0.3, 1.2, -0.4));
        let view = view("wrist", &drawing, 96, 96)?;
        for point in [[0.086, 0.0, 0.0075], [0.099, 0.0, -0.010], [0.095, 0.0, 0.04]] {
            let world = drawing.world_from_gripper * Point3::from(point);
            let [u, v] = view.project([world.x, world.y, world.z]).unwrap_or([-1.0; 2]);
            assert!(u > 20.0 && u < 76.0 && v > 10.0 && v < 86.0, "{point:?} lands at {u} {v}");
        }
        Ok(())
    }

    #[test]
    fn looks_displace_both_cameras_in_their_own_frames() -> Result<()> {
        let mut drawing = bare();
        drawing.looks.camera_shift_m = [0.01, -0.02, 0.03];
        drawing.looks.camera_turn_rad = [0.05, -0.3, 0.2];
        for name in NAMES {
            let (plain, moved) = (view(name, &bare(), 8, 8)?, view(name, &drawing, 8, 8)?);
            let step = plain.world_from_camera.inv_mul(&moved.world_from_camera);
            assert!((step.translation.vector - Vector3::new(0.01, -0.02, 0.03)).norm() < 1e-6);
            assert!((step.rotation.scaled_axis() - Vector3::new(0.05, -0.3, 0.2)).norm() < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn an_unknown_camera_and_an_empty_picture_are_refused() {
        let refused = |name, w, h| view(name, &bare(), w, h).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused("side", 96, 96).contains("known: front, wrist"));
        assert!(refused("front", 0, 96).contains("got 0x96"));
    }
}
