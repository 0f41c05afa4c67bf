//! LeRobot datasets: read, write, record, stats.
//!
//! The format is LeRobot's v3.0 in image mode: pictures are PNG (or JPEG) bytes inside parquet, one row group per
//! episode. Numbers are stored as LeRobot stores them, in 32-bit floats; ours are rad and m, which
//! `meta/info.json` says. `meta/embodiment.json` and the column `vela/extra` of the episodes' table are ours;
//! LeRobot passes over both.

pub mod compare;
mod dataset;
mod layout;
mod meta;
mod picture;
pub mod recorder;
mod rows;
pub mod stats;
mod table;
mod writer;

pub use compare::ActionError;
pub use dataset::{Dataset, EpisodeEntry};
pub use picture::PictureFormat;
pub use recorder::Recorder;
pub use rows::{EncodedEpisode, Recorded, Recording};
pub use stats::FeatureStats;
pub use vela_embodiment::{Error, Result};
pub use writer::DatasetWriter;
