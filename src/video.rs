//! `--video`: pictures of a dataset as video instead of stills inside parquet.

use clap::ValueEnum;
use std::path::Path;
use vela_embodiment::{Embodiment, Result};
use vela_episodes::{DatasetWriter, PictureFormat};

/// What a dataset's videos are coded with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Codec {
    /// H.264, which every player and LeRobot reads.
    H264,
}

/// How pictures are stored.
#[derive(clap::Args)]
pub struct Video {
    /// Store pictures as video, one mp4 file per camera and episode: smaller, and lossy. Without it they are PNG in a new
    /// dataset, and as they are in one that is added to.
    #[arg(long, value_name = "CODEC")]
    video: Option<Codec>,
    /// With --video: the quantiser of every picture, 12 (best) to 51 (smallest); 20 by default.
    #[arg(long, value_name = "QP", requires = "video")]
    video_qp: Option<u8>,
}

impl Video {
    /// What was asked for.
    pub fn format(&self) -> Option<PictureFormat> {
        self.video.map(|Codec::H264| match self.video_qp {
            Some(qp) => PictureFormat::H264 { qp },
            None => PictureFormat::VIDEO,
        })
    }

    /// A writer of a dataset with such pictures.
    pub fn writer(&self, out: &Path, robot: &Embodiment) -> Result<DatasetWriter> {
        let fps = robot.control_hz.round() as u32;
        match self.format() {
            Some(format) => DatasetWriter::create_with(out, robot, fps, format),
            None => DatasetWriter::create(out, robot, fps),
        }
    }
}
