//! A VLM out of parts that were trained apart: a vision encoder and a text model stay as they are; a projector between
//! them and a LoRA adapter beside the decoder's matrices learn from pictures with questions.
//!
//! Entry points: [`AdaptConfig`] (a run as a file), [`PictureSet`] (the questions), [`Parts`] (the folder: what a
//! picture is to the encoder, how a question is written) and [`Adaptation`] (steps, checkpoints, what is exported).

mod config;
mod features;
mod parts;
mod picture_set;
mod trainer;

pub use config::{AdaptConfig, AdapterConfig};
pub use features::Features;
pub use parts::{Asked, Parts};
pub use picture_set::{PictureQuestions, PictureSet, kind_of};
pub use trainer::{AdaptReport, Adaptation};
