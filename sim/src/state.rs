//! The physical truth of one moment: what success tests and experts read, and what no policy ever sees.

use crate::scene::{Colour, ObjectKind};
use nalgebra::{Isometry3, Vector3};

/// One object as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectState {
    /// Its shape.
    pub kind: ObjectKind,
    /// Its colour.
    pub colour: Colour,
    /// Where it is; the frame sits in its centre.
    pub base_from_object: Isometry3<f64>,
    /// m/s
    pub velocity: Vector3<f64>,
    /// A part of the gripper (fixed or moving jaw) touches it.
    pub touched: bool,
    /// Both the fixed and the moving jaw touch it.
    pub pinched: bool,
    /// It rests on the table or on the table's painted zone (contact with the table).
    pub on_table: bool,
}

/// The arm and every object at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldState {
    /// Seconds since the reset.
    pub time_secs: f64,
    /// Measured joints in the embodiment's order, rad.
    pub joint_positions: Vec<f64>,
    /// rad/s
    pub joint_speeds: Vec<f64>,
    /// The targets the motors hold now, rad.
    pub joint_targets: Vec<f64>,
    /// The tip's frame in the base.
    pub base_from_tip: Isometry3<f64>,
    /// Objects in the scene's order.
    pub objects: Vec<ObjectState>,
}
