//! Losses to checkpoints: imitation of an expert, DAgger, and the auxiliary losses that make it quick.
//!
//! Entry points: [`TrainConfig`] (a run as a file), [`Teacher`] (the environment's side), [`Library`] (what was
//! taught so far) and [`Trainer`] (steps, averages, checkpoints); of a small VLM: [`vlm`].

pub mod auxiliary;
pub mod batch;
pub mod config;
pub mod data;
pub mod error;
pub mod lesson;
pub mod trainer;
pub mod vlm;

pub use config::TrainConfig;
pub use data::Library;
pub use error::{Error, Result};
pub use lesson::{Driver, Example, Lesson, Teacher};
pub use trainer::{Report, Trainer};
