//! LeRobot datasets: read, write, record, stats.
//!
//! Read are v3.0 and v2.1, with pictures inside parquet or in mp4 files (AV1, H.264). Recorded is v3.0, one row group
//! per episode: pictures are PNG (or JPEG) bytes inside parquet, or H.264 in one mp4 file per episode and camera. Copies
//! keep pictures and video files as they are unless another form is asked for, AV1 among them.
//! Numbers are stored as LeRobot stores them, in 32-bit floats; ours are rad and m, which `meta/info.json` says.
//! `meta/embodiment.json`, `meta/.pending`, `meta/vela_verdicts.jsonl` and the column `vela/extra` of the episodes' table
//! are ours; LeRobot passes over all four.

pub mod check;
mod columns;
pub mod compare;
pub mod copy;
mod dataset;
mod info;
mod journal;
mod layout;
mod lines;
mod meta;
mod picture;
pub mod recorder;
mod rows;
mod rulings;
pub mod stats;
mod store;
mod table;
mod video;
mod writer;
mod writing;

pub use compare::ActionError;
pub use dataset::{Column, Dataset, EpisodeEntry};
pub use info::SI_UNITS;
pub use layout::Version;
pub use picture::PictureFormat;
pub use recorder::Recorder;
pub use rows::{EncodedEpisode, Recorded, Recording};
pub use rulings::Ruling;
pub use stats::FeatureStats;
pub use vela_embodiment::{Error, Result};
pub use writer::DatasetWriter;
pub use writing::{Step, Writing};
