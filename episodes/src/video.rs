//! Pictures of an mp4 file by their time: AV1, as LeRobot writes it, and H.264; both are also written.

pub(crate) mod av1;
mod colour;
pub(crate) mod h264;
pub(crate) mod mux;

use crate::layout::{guarded, io, refuse};
use h264::START_CODE;
use re_mp4::{Mp4, StsdBoxContent, TrackKind};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use vela_embodiment::{Error, Result};

/// How the samples are coded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Codec {
    /// The OBUs that stand in front of the first sample.
    Av1(Vec<u8>),
    /// Parameter sets, each behind a start code, and how many bytes tell a unit's length.
    H264(Vec<u8>, usize),
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    offset: u64,
    size: u64,
    is_sync: bool,
    /// When it is shown, s from the file's first picture.
    secs: f64,
}

/// A video file whose pictures are decoded as they are asked for, a group at a time.
#[derive(Debug)]
pub(crate) struct Movie {
    path: PathBuf,
    codec: Codec,
    width: u32,
    height: u32,
    /// In the order in which they are decoded.
    samples: Vec<Sample>,
    group: Mutex<Group>,
}

/// The pictures that can be decoded without others: those from one key frame to the next.
#[derive(Debug, Default)]
struct Group {
    /// Number of its first sample.
    first: usize,
    /// When each is shown, and its RGB bytes, in order of time.
    pictures: Vec<(f64, Vec<u8>)>,
}

impl Movie {
    /// Reads the tables of a file.
    ///
    /// # Errors
    /// It is not an mp4 file with one video track of AV1 or H.264.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        guarded(path, || Self::read_tables(path))
    }

    fn read_tables(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(io(path))?;
        let length = file.metadata().map_err(io(path))?.len();
        let mp4 = Mp4::read(BufReader::new(file), length)
            .map_err(|e| refuse(path, format!("torn or not an mp4 file: {e}")))?;
        let track = mp4.tracks().values().find(|track| track.kind == Some(TrackKind::Video));
        let track = track.ok_or_else(|| refuse(path, "expected a video track, got none"))?;
        let codec = match &track.trak(&mp4).mdia.minf.stbl.stsd.contents {
            StsdBoxContent::Av01(content) => Codec::Av1(content.av1c.config_obus.clone()),
            StsdBoxContent::Avc1(content) => {
                let config = &content.avcc;
                let sets = config.sequence_parameter_sets.iter().chain(&config.picture_parameter_sets);
                let sets = sets.flat_map(|set| [&START_CODE[..], &set.bytes].concat()).collect();
                Codec::H264(sets, usize::from(config.length_size_minus_one & 3) + 1)
            }
            other => {
                let name = other.codec_string().unwrap_or_else(|| "an unknown one".into());
                return Err(refuse(path, format!("expected video coded as AV1 or H.264, got {name}")));
            }
        };
        let samples: Vec<Sample> = track
            .samples
            .iter()
            .map(|sample| Sample {
                offset: sample.offset,
                size: sample.size,
                is_sync: sample.is_sync,
                secs: sample.composition_timestamp as f64 / sample.timescale.max(1) as f64,
            })
            .collect();
        let torn = samples.iter().any(|s| s.offset.checked_add(s.size).is_none_or(|end| end > length));
        if torn || !samples.first().is_some_and(|sample| sample.is_sync) {
            return Err(refuse(path, "torn: expected pictures that lie inside the file, a key frame first"));
        }
        let (width, height) = (u32::from(track.width), u32::from(track.height));
        Ok(Self { path: path.to_owned(), codec, width, height, samples, group: Mutex::default() })
    }

    /// Pixels from left to right, and from top to bottom.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// RGB bytes, `[height, width, 3]`, of the picture that is shown `secs` after the file's first, give or take
    /// `tolerance_secs`.
    ///
    /// # Errors
    /// There is none, or it cannot be decoded.
    pub(crate) fn frame(&self, secs: f64, tolerance_secs: f64) -> Result<Vec<u8>> {
        let near = |at: f64| (at - secs).abs() <= tolerance_secs;
        let nearest = (0..self.samples.len())
            .min_by(|a, b| {
                (self.samples[*a].secs - secs).abs().total_cmp(&(self.samples[*b].secs - secs).abs())
            })
            .filter(|sample| near(self.samples[*sample].secs))
            .ok_or_else(|| refuse(&self.path, format!("expected a picture at {secs:.4} s, there is none")))?;
        let first = (0..=nearest).rev().find(|k| self.samples[*k].is_sync).unwrap_or_default();
        // A panic of another thread can at worst have left an old group.
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if group.pictures.is_empty() || group.first != first {
            *group = Group { first, pictures: guarded(&self.path, || self.decode(first))? };
        }
        let at = self.samples[nearest].secs;
        let found = group.pictures.iter().find(|(secs, _)| *secs == at);
        found.map(|(_, rgb)| rgb.clone()).ok_or_else(|| self.refuse(first, "the picture is missing"))
    }

    fn refuse(&self, first: usize, why: impl std::fmt::Display) -> Error {
        refuse(&self.path, format!("pictures from {:.4} s on: {why}", self.samples[first].secs))
    }

    /// The group that begins with this sample.
    fn decode(&self, first: usize) -> Result<Vec<(f64, Vec<u8>)>> {
        let beyond = (first + 1..self.samples.len()).find(|k| self.samples[*k].is_sync);
        let samples = &self.samples[first..beyond.unwrap_or(self.samples.len())];
        let mut file = File::open(&self.path).map_err(io(&self.path))?;
        let mut packets = Vec::with_capacity(samples.len());
        for sample in samples {
            let mut packet = vec![0; sample.size as usize];
            file.seek(SeekFrom::Start(sample.offset)).map_err(io(&self.path))?;
            file.read_exact(&mut packet).map_err(io(&self.path))?;
            packets.push(packet);
        }
        let pictures = match &self.codec {
            Codec::Av1(head) => av1::decode(head, packets, self.width.saturating_mul(self.height)),
            Codec::H264(sets, prefix) => h264::decode(sets, *prefix, &packets),
        };
        let pictures = pictures.map_err(|why| self.refuse(first, why))?;
        if pictures.len() != samples.len() {
            let why = format!("expected {} of them, the decoder gave {}", samples.len(), pictures.len());
            return Err(self.refuse(first, why));
        }
        // Decoders give pictures in the order in which they are shown.
        let mut times: Vec<f64> = samples.iter().map(|sample| sample.secs).collect();
        times.sort_by(f64::total_cmp);
        Ok(times.into_iter().zip(pictures).collect())
    }
}
