//! Rerun, and nothing but rerun: what a robot sees and does, in 3-D and over time.
//!
//! [`Show`] is a handle that hands what happened to a thread of its own, so that showing never slows the control
//! loop. The recording goes to a file, to the viewer, to both, or to memory for tests.

mod blueprint;
mod curves;
mod error;
mod scribe;
mod show;
mod solid;

pub use curves::Curves;
pub use error::{Error, Result};
pub use show::{Backlog, Destination, Report, Show, Tick};
pub use solid::{Form, Solid, srgb_from_linear};
