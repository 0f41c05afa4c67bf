//! A deterministic tabletop world: arm, contacts, cameras, tasks and scripted experts.
//!
//! The base frame of the arm is the world frame: x forward, y left, z up, the table's top at z = 0; metres, radians.

pub mod drawing;
pub mod scene;
pub mod state;
