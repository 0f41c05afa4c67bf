//! Losses to checkpoints: imitation of an expert, DAgger, and the auxiliary losses that make it quick.
//!
//! Entry points: [`TrainConfig`] (a run as a file), [`Teacher`] (the environment's side), [`Library`] (what was
//! taught so far) and [`Trainer`] (steps, averages, checkpoints); of a small VLM: [`vlm`]; of a head alone, on a
//! frozen trunk: [`Prefixes`] and [`heads`], with a projector inside the trunk: [`Sights`]; of any VLA's folder:
//! [`finetune`]; of a VLM out of parts: [`adapt`].

pub mod adapt;
pub mod auxiliary;
pub mod batch;
pub mod config;
pub mod data;
pub mod error;
pub mod finetune;
pub mod heads;
mod kept;
mod learner;
pub mod lesson;
pub mod prefixes;
pub mod sights;
pub mod trainer;
pub mod two_ways;
pub mod vlm;

pub use config::TrainConfig;
pub use data::Library;
pub use error::{Error, Result};
pub use heads::HeadRun;
pub use lesson::{Driver, Example, Lesson, Teacher};
pub use prefixes::{HeadLessons, Prefixes};
pub use sights::{SightLessons, Sights};
pub use trainer::{Report, Trainer};
