//! `--video`: pictures of a dataset as video instead of stills inside parquet.

use clap::ValueEnum;
use std::path::Path;
use vela_embodiment::{Embodiment, Result};
use vela_episodes::{DatasetWriter, PictureFormat, SI_UNITS};

/// What a dataset's videos are coded with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Codec {
    /// H.264, which every player and LeRobot reads.
    H264,
    /// AV1, as LeRobot writes it; only to convert to: it takes much time.
    Av1,
}

/// How pictures are stored.
#[derive(clap::Args)]
pub struct Video {
    /// Store pictures as video, one mp4 file per camera and episode: smaller, and lossy. Without it they are PNG in a
    /// new dataset, and as they are in one that is added to.
    #[arg(long, value_name = "CODEC")]
    video: Option<Codec>,
    /// With --video: the quantiser of every picture; of h264 from 12 (best) to 51 (smallest), 20 by default, of av1
    /// from 1 to 63, 30 by default as in LeRobot.
    #[arg(long, value_name = "QP", requires = "video")]
    video_qp: Option<u8>,
}

impl Video {
    /// What was asked for.
    pub fn format(&self) -> Option<PictureFormat> {
        self.video.map(|codec| match (codec, self.video_qp) {
            (Codec::H264, Some(qp)) => PictureFormat::H264 { qp },
            (Codec::H264, None) => PictureFormat::VIDEO,
            (Codec::Av1, Some(crf)) => PictureFormat::Av1 { crf },
            (Codec::Av1, None) => PictureFormat::AV1,
        })
    }

    /// A writer of a dataset with such pictures.
    pub fn writer(&self, out: &Path, robot: &Embodiment) -> Result<DatasetWriter> {
        self.writer_in(out, robot, SI_UNITS)
    }

    /// The same, of joints in these units.
    pub fn writer_in(&self, out: &Path, robot: &Embodiment, units: &str) -> Result<DatasetWriter> {
        let fps = robot.control_hz.round() as u32;
        DatasetWriter::create_in(out, robot, fps, self.format(), units)
    }
}
