//! A deterministic tabletop world: arm, contacts, cameras, tasks and scripted experts.
//!
//! The base frame of the arm is the world frame: x forward, y left, z up, the table's top at z = 0; metres, radians.

mod arm;
mod bodies;
pub mod camera;
pub mod drawing;
pub mod expert;
pub mod fingerprint;
pub mod language;
mod physics;
mod pointing;
pub mod questions;
pub mod render;
pub mod sayings;
pub mod scene;
pub mod sights;
pub mod state;
pub mod studio;
pub mod tabletop;
pub mod tasks;
pub mod world;

pub use bodies::solid;
pub use fingerprint::fingerprint;
pub use world::World;
