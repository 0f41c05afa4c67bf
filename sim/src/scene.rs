//! What stands on the table: plain data, sampled by the tasks, built by the world, drawn by the cameras.

use serde::{Deserialize, Serialize};

/// The colours that a sentence can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    /// red
    Red,
    /// green
    Green,
    /// blue
    Blue,
    /// yellow
    Yellow,
    /// purple
    Purple,
    /// orange
    Orange,
}

/// The things that a sentence can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A cube of 27 mm edge.
    Cube,
    /// An upright cylinder of 13.5 mm radius and 30 mm height.
    Cylinder,
    /// A ball of 13.5 mm radius.
    Ball,
    /// An open bowl of 45 mm outer radius and 25 mm height.
    Bowl,
}

impl Colour {
    /// All of them.
    pub const ALL: [Colour; 6] =
        [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple, Colour::Orange];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Yellow => "yellow",
            Colour::Purple => "purple",
            Colour::Orange => "orange",
        }
    }

    /// Its linear RGB albedo, 0 to 1.
    pub fn albedo(self) -> [f32; 3] {
        match self {
            Colour::Red => [0.75, 0.03, 0.03],
            Colour::Green => [0.04, 0.45, 0.06],
            Colour::Blue => [0.03, 0.10, 0.70],
            Colour::Yellow => [0.85, 0.65, 0.02],
            Colour::Purple => [0.30, 0.04, 0.45],
            Colour::Orange => [0.90, 0.25, 0.01],
        }
    }
}

impl ObjectKind {
    /// What an arm can pick up.
    pub const MOVABLE: [ObjectKind; 3] = [ObjectKind::Cube, ObjectKind::Cylinder, ObjectKind::Ball];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            ObjectKind::Cube => "cube",
            ObjectKind::Cylinder => "cylinder",
            ObjectKind::Ball => "ball",
            ObjectKind::Bowl => "bowl",
        }
    }

    /// Height of its centre above the table when it stands there, m.
    pub fn rest_height_m(self) -> f64 {
        match self {
            ObjectKind::Cube => 0.0135,
            ObjectKind::Cylinder => 0.015,
            ObjectKind::Ball => 0.0135,
            ObjectKind::Bowl => 0.0125,
        }
    }
}

/// One object at the start of an episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its shape.
    pub kind: ObjectKind,
    /// Its colour.
    pub colour: Colour,
    /// Centre on the table, m.
    pub xy_m: [f64; 2],
    /// Turn about the vertical, rad.
    pub yaw_rad: f64,
}

/// A named area of the table, drawn as a flat square.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Zone {
    /// Its name in a sentence: "left", "right".
    pub name: String,
    /// Centre, m.
    pub xy_m: [f64; 2],
    /// Half its edge, m.
    pub half_m: f64,
}

/// How it looks: fixed by default, drawn per episode under domain randomisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Looks {
    /// Direction towards the light (need not be of length one).
    pub towards_light: [f32; 3],
    /// Strength of the light; 1 is the default.
    pub light: f32,
    /// Ambient share, 0 to 1.
    pub ambient: f32,
    /// Linear RGB albedo of the table.
    pub table: [f32; 3],
    /// Linear RGB of the background.
    pub background: [f32; 3],
    /// Added to every object's albedo, per channel.
    pub tint: [f32; 3],
    /// Camera displacement, m, in each camera's own frame.
    pub camera_shift_m: [f32; 3],
    /// Camera rotation vector, rad, in each camera's own frame.
    pub camera_turn_rad: [f32; 3],
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            towards_light: [0.35, 0.45, 1.0],
            light: 1.0,
            ambient: 0.35,
            table: [0.42, 0.36, 0.29],
            background: [0.62, 0.68, 0.74],
            tint: [0.0; 3],
            camera_shift_m: [0.0; 3],
            camera_turn_rad: [0.0; 3],
        }
    }
}

/// How things rub and weigh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Physics {
    /// Multiplies every friction coefficient.
    pub friction_scale: f64,
    /// Multiplies every object's mass.
    pub mass_scale: f64,
}

impl Default for Physics {
    fn default() -> Self {
        Self { friction_scale: 1.0, mass_scale: 1.0 }
    }
}

/// Everything that decides an episode but the arm's motion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// What stands on the table.
    pub objects: Vec<Object>,
    /// Named areas.
    pub zones: Vec<Zone>,
    /// The arm's joints at the start, rad.
    pub start_joints: Vec<f64>,
    /// How it looks.
    pub looks: Looks,
    /// How it rubs and weighs.
    pub physics: Physics,
}
