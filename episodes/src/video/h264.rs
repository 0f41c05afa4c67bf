//! H.264 by `openh264`, Cisco's encoder and decoder built from source.

use super::colour::{Matrix, Plane, rgb, yuv};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::encoder::{
    BitRate, Complexity, EncoderConfig, FrameRate, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};
use openh264::formats::{YUVBuffer, YUVSource};

/// Bytes of a unit's length in what we write.
pub(super) const PREFIX: usize = 4;
/// Pictures from one key frame to the next, as LeRobot 0.6.1 has it (`lerobot/configs/video.py`): any picture is
/// decoded from at most two.
pub(crate) const GROUP: u32 = 2;
/// The quantisers that the encoder takes as they are: it raises smaller ones (`GOM_MIN_QP_MODE` in its `rc.h`), and the
/// standard ends at 51.
pub(crate) const QUANTISERS: std::ops::RangeInclusive<u8> = 12..=51;

/// One camera's pictures to samples of a video track. Every picture becomes one sample, and every second a key frame;
/// the quantiser is constant, so that what a picture looks like does not depend on the ones before it.
pub(crate) struct Encoder {
    inner: openh264::encoder::Encoder,
    width: usize,
    height: usize,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "H.264 encoder of {}x{}", self.width, self.height)
    }
}

impl Encoder {
    /// An encoder of pictures of even sides, whose next picture is a key frame.
    pub(crate) fn new(qp: u8, width: u32, height: u32) -> std::result::Result<Self, String> {
        if !QUANTISERS.contains(&qp) || !width.is_multiple_of(2) || !height.is_multiple_of(2) {
            return Err(format!("no H.264 of {width}x{height} with quantiser {qp}"));
        }
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Bufferbased)
            .qp(QpRange::new(qp, qp))
            // Both only count for the control of the rate, which has no choice left.
            .bitrate(BitRate::from_bps(20_000_000))
            .max_frame_rate(FrameRate::from_hz(30.0))
            .skip_frames(false)
            .intra_frame_period(IntraFramePeriod::from_num_frames(GROUP))
            .scene_change_detect(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .complexity(Complexity::Low)
            .num_threads(1)
            .vui(VuiConfig::bt601());
        let api = OpenH264API::from_source();
        let inner = openh264::encoder::Encoder::with_api_config(api, config).map_err(|e| e.to_string())?;
        Ok(Self { inner, width: width as usize, height: height as usize })
    }

    /// The sample of an RGB picture `[height, width, 3]`: its units behind their lengths, a key frame's with the
    /// parameter sets before it.
    pub(crate) fn encode(&mut self, rgb: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let (width, height) = (self.width, self.height);
        if rgb.len() != width * height * 3 {
            return Err(format!("expected {width}x{height} RGB, got {} bytes", rgb.len()));
        }
        let planes = YUVBuffer::from_vec(yuv(rgb, width, height), width, height);
        let coded = self.inner.encode(&planes).map_err(|e| e.to_string())?;
        let mut sample = Vec::new();
        for layer in (0..coded.num_layers()).filter_map(|k| coded.layer(k)) {
            for unit in (0..layer.nal_count()).filter_map(|k| layer.nal_unit(k)) {
                let unit = unit.strip_prefix(&START_CODE).ok_or("the encoder gave a unit without a start")?;
                sample.extend((unit.len() as u32).to_be_bytes());
                sample.extend(unit);
            }
        }
        if sample.is_empty() { Err("the encoder left a picture out".into()) } else { Ok(sample) }
    }
}

/// What a unit holds (ITU-T H.264, table 7-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitKind {
    /// A part of a key frame.
    Key,
    SequenceSet,
    PictureSet,
    Other,
}

impl UnitKind {
    pub(super) fn of(unit: &[u8]) -> Self {
        match unit.first().map(|byte| byte & 31) {
            Some(5) => Self::Key,
            Some(7) => Self::SequenceSet,
            Some(8) => Self::PictureSet,
            _ => Self::Other,
        }
    }
}

/// Calls `see` with the RGB bytes of each of the samples that [`Encoder::encode`] gave, the first a key frame.
pub(crate) fn decode_each(samples: &[&[u8]], see: &mut dyn FnMut(&[u8])) -> std::result::Result<(), String> {
    let is_key = |sample: &&[u8]| {
        units(sample, PREFIX).is_some_and(|all| all.iter().any(|unit| UnitKind::of(unit) == UnitKind::Key))
    };
    for group in samples.chunk_by(|_, next| !is_key(next)) {
        let pictures = decode(&[], PREFIX, group)?;
        if pictures.len() != group.len() {
            return Err(format!("expected {} pictures, the decoder gave {}", group.len(), pictures.len()));
        }
        pictures.iter().for_each(|rgb| see(rgb));
    }
    Ok(())
}

/// RGB bytes of the pictures in these packets, the first one a key frame. Units stand behind lengths of `prefix` bytes;
/// the parameter sets in `sets` behind start codes.
pub(super) fn decode(
    sets: &[u8],
    prefix: usize,
    packets: &[impl AsRef<[u8]>],
) -> std::result::Result<Vec<Vec<u8>>, String> {
    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let api = OpenH264API::from_source();
    let mut decoder = Decoder::with_api_config(api, config).map_err(|e| e.to_string())?;
    let mut pictures = Vec::with_capacity(packets.len());
    for (k, packet) in packets.iter().enumerate() {
        let mut stream = if k == 0 { sets.to_vec() } else { Vec::new() };
        for unit in units(packet.as_ref(), prefix).ok_or("a unit's length leads out of its sample")? {
            stream.extend(START_CODE);
            stream.extend(unit);
        }
        if let Some(picture) = decoder.decode(&stream).map_err(|e| e.to_string())? {
            pictures.push(picture_rgb(&picture)?);
        }
    }
    for picture in decoder.flush_remaining().map_err(|e| e.to_string())? {
        pictures.push(picture_rgb(&picture)?);
    }
    Ok(pictures)
}

/// What stands before each unit of a stream.
pub(super) const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// The units of a sample, each behind its length.
pub(super) fn units(sample: &[u8], prefix: usize) -> Option<Vec<&[u8]>> {
    let mut rest = sample;
    let mut units = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at_checked(prefix)?;
        let length = length.iter().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
        let (unit, after) = after.split_at_checked(length)?;
        units.push(unit);
        rest = after;
    }
    Some(units)
}

fn picture_rgb(picture: &DecodedYUV<'_>) -> std::result::Result<Vec<u8>, String> {
    let (width, height) = picture.dimensions();
    let (a, b, c) = picture.strides();
    let [y, u, v] =
        [(picture.y(), a), (picture.u(), b), (picture.v(), c)].map(|(bytes, stride)| Plane { bytes, stride });
    rgb(width as u32, height as u32, [y, u, v], Matrix::Bt601, false)
}
