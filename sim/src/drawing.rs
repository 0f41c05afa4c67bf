//! What a camera draws: shapes with poses and colours, free of physics, cheap to send to a camera thread.

use crate::scene::Looks;
use nalgebra::{Isometry3, Vector3};

/// A solid that is drawn, centred on its own frame; metres.
#[derive(Clone, Debug, PartialEq)]
pub enum Solid {
    /// Half edge lengths.
    Box(Vector3<f32>),
    /// Along z.
    Cylinder {
        /// m
        radius: f32,
        /// m
        half_length: f32,
    },
    /// A ball.
    Sphere {
        /// m
        radius: f32,
    },
    /// An open tube along z with a floor at its lower end: a bowl.
    Bowl {
        /// Outer radius, m.
        radius: f32,
        /// Half its height, m.
        half_height: f32,
        /// Thickness of wall and floor, m.
        wall: f32,
    },
}

/// One drawn solid.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// What.
    pub solid: Solid,
    /// Where.
    pub world_from_solid: Isometry3<f32>,
    /// Linear RGB albedo, 0 to 1.
    pub albedo: [f32; 3],
}

/// A flat square painted on the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Centre, m.
    pub xy_m: [f32; 2],
    /// Half its edge, m.
    pub half_m: f32,
    /// Linear RGB albedo.
    pub albedo: [f32; 3],
}

/// One moment of the world as a camera sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// Every solid: the arm's links and the objects.
    pub solids: Vec<Drawn>,
    /// Painted squares.
    pub marks: Vec<Mark>,
    /// The gripper link's frame: the wrist camera rides on it.
    pub world_from_gripper: Isometry3<f32>,
    /// Light, table, camera displacement.
    pub looks: Looks,
}
