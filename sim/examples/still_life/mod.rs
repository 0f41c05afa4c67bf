//! A hand-made drawing for the examples: the arm over the table, something of everything around it.

use nalgebra::{Isometry3, Vector3};
use vela_embodiment::{Embodiment, Geometry, Result};
use vela_sim::drawing::{Drawing, Drawn, Mark, Solid};
use vela_sim::scene::{Colour, Looks};

/// The arm with these joints (rad) over a table of objects.
pub fn drawing(joints: &[f64]) -> Result<Drawing> {
    let kinematics = Embodiment::so101()?.kinematics()?;
    let poses = kinematics.base_from_links(joints);
    let model = kinematics.model();
    let mut solids = Vec::new();
    for (link, pose) in model.links.iter().zip(&poses) {
        for visual in &link.visuals {
            let solid = match visual.geometry {
                Geometry::Box(size) => Solid::Box((0.5 * size).cast()),
                Geometry::Cylinder { radius, length } => {
                    Solid::Cylinder { radius: radius as f32, half_length: 0.5 * length as f32 }
                }
                _ => continue,
            };
            let [r, g, b, _] = visual.rgba;
            let world_from_solid = (pose * visual.link_from_shape).cast();
            solids.push(Drawn { solid, world_from_solid, albedo: [r, g, b] });
        }
    }
    let cube = Solid::Box(Vector3::repeat(0.0135));
    let cylinder = Solid::Cylinder { radius: 0.0135, half_length: 0.015 };
    let ball = Solid::Sphere { radius: 0.0135 };
    let bowl = Solid::Bowl { radius: 0.045, half_height: 0.0125, wall: 0.003 };
    for (solid, x, y, z, yaw, colour) in [
        (cube.clone(), 0.17, -0.12, 0.0135, 0.3, Colour::Red),
        (cube.clone(), 0.26, -0.05, 0.0135, 0.8, Colour::Orange),
        (ball.clone(), 0.22, -0.13, 0.0135, 0.0, Colour::Yellow),
        (cylinder.clone(), 0.17, 0.13, 0.015, 0.0, Colour::Green),
        (bowl, 0.24, 0.09, 0.0125, 0.0, Colour::Blue),
        (ball, 0.24, 0.09, 0.017, 0.0, Colour::Red),
        (cube, 0.21, 0.0, 0.0135, 0.1, Colour::Purple),
        (cylinder, 0.15, -0.05, 0.015, 0.0, Colour::Yellow),
    ] {
        let world_from_solid = Isometry3::new(Vector3::new(x, y, z), Vector3::z() * yaw);
        solids.push(Drawn { solid, world_from_solid, albedo: colour.albedo() });
    }
    let marks = vec![
        Mark { xy_m: [0.2, -0.12], half_m: 0.04, albedo: [0.16, 0.30, 0.34] },
        Mark { xy_m: [0.2, 0.12], half_m: 0.04, albedo: [0.34, 0.22, 0.30] },
    ];
    let gripper = model.link_index("gripper")?;
    Ok(Drawing { solids, marks, world_from_gripper: poses[gripper].cast(), looks: Looks::default() })
}

/// The gripper open above the middle of the workspace, pointing down.
pub const ABOVE: [f64; 6] = [0.0, -0.25, 0.62, 1.2, 0.0, 0.6];
