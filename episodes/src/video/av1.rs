//! AV1 by `rav1e` and `re_rav1d`, each on one thread: a group of pictures is small, and the other cores have other
//! work.

use super::colour::{Matrix, Plane, rgb, yuv};
use super::h264::GROUP;
use rav1e::prelude::{
    ColorDescription, ColorPrimaries, Config, Context, EncoderConfig, EncoderStatus,
    MatrixCoefficients as Weights, PixelRange, Rational, SceneDetectionSpeed, TransferCharacteristics,
};
use re_rav1d::dav1d::pixel::{MatrixCoefficients, YUVRange};
use re_rav1d::dav1d::{Decoder, Picture, PixelLayout, PlanarImageComponent, Settings};

/// The qualities that may be asked for, on the scale of the encoder that LeRobot uses (SVT-AV1's `crf`).
pub(crate) const QUALITIES: std::ops::RangeInclusive<u8> = 1..=63;

/// One camera's pictures to samples of a video track, each second one a key frame. The encoder holds back some pictures
/// before it gives the first sample, and takes its time (0.2 s for one of 640x480, 6 ms for one of 96x96, without
/// assembler): it serves to convert, not to record.
pub(crate) struct Encoder {
    inner: Context<u8>,
    width: usize,
    height: usize,
    samples: Vec<Vec<u8>>,
}

impl Encoder {
    /// An encoder of pictures of even sides. `crf` counts as SVT-AV1 counts it: in steps of four of the standard's
    /// quantiser index (`quantizer_to_qindex` there).
    pub(crate) fn new(crf: u8, fps: f64, width: u32, height: u32) -> std::result::Result<Self, String> {
        let (width, height) = (width as usize, height as usize);
        let mut config = EncoderConfig::with_speed_preset(10);
        config.speed_settings.scene_detection_mode = SceneDetectionSpeed::None;
        (config.width, config.height) = (width, height);
        // Only the control of the rate would ask for it, and there is none.
        config.time_base = Rational::new(1, fps.round().max(1.0) as u64);
        config.quantizer = (usize::from(crf) * 4).min(255);
        (config.min_key_frame_interval, config.max_key_frame_interval) = (0, u64::from(GROUP));
        config.low_latency = true;
        config.pixel_range = PixelRange::Limited;
        config.color_description = Some(ColorDescription {
            color_primaries: ColorPrimaries::BT601,
            transfer_characteristics: TransferCharacteristics::BT601,
            matrix_coefficients: Weights::BT601,
        });
        let config = Config::new().with_encoder_config(config).with_threads(1);
        let inner = config.new_context().map_err(|e| e.to_string())?;
        Ok(Self { inner, width, height, samples: Vec::new() })
    }

    /// Takes the next RGB picture `[height, width, 3]`.
    pub(crate) fn push(&mut self, rgb: &[u8]) -> std::result::Result<(), String> {
        let (width, height) = (self.width, self.height);
        if rgb.len() != width * height * 3 {
            return Err(format!("expected {width}x{height} RGB, got {} bytes", rgb.len()));
        }
        let planes = yuv(rgb, width, height);
        let (luma, chroma) = planes.split_at(width * height);
        let (u, v) = chroma.split_at(chroma.len() / 2);
        let mut frame = self.inner.new_frame();
        for (plane, (bytes, stride)) in
            frame.planes.iter_mut().zip([(luma, width), (u, width / 2), (v, width / 2)])
        {
            plane.copy_from_raw_u8(bytes, stride, 1);
        }
        self.inner.send_frame(frame).map_err(|e| e.to_string())?;
        self.drain()
    }

    /// A sample for every picture.
    pub(crate) fn finish(mut self) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.inner.flush();
        self.drain()?;
        Ok(self.samples)
    }

    fn drain(&mut self) -> std::result::Result<(), String> {
        loop {
            match self.inner.receive_packet() {
                Ok(packet) if packet.input_frameno == self.samples.len() as u64 => {
                    self.samples.push(packet.data);
                }
                Ok(packet) => return Err(format!("picture {} came out of turn", packet.input_frameno)),
                Err(EncoderStatus::Encoded) => {}
                Err(EncoderStatus::NeedMoreData | EncoderStatus::LimitReached) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Kinds of units (AV1 specification, 6.2.2): the description of the stream, which stands before each key frame, and
/// the mark between two samples, which an mp4 file leaves out.
pub(super) const SEQUENCE_HEADER: u8 = 1;
pub(super) const TEMPORAL_DELIMITER: u8 = 2;

/// The units of a sample, each whole and with its kind (AV1 specification, 5.3); none where one does not say its
/// length.
pub(super) fn units(sample: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut rest = sample;
    let mut units = Vec::new();
    while let Some(head) = rest.first() {
        let mut at = 1 + usize::from(head & 4 != 0);
        let mut length = 0usize;
        for k in 0..8 {
            let byte = *rest.get(at).filter(|_| head & 2 != 0)?;
            length |= usize::from(byte & 127) << (7 * k);
            at += 1;
            if byte < 128 {
                break;
            }
        }
        let (unit, after) = rest.split_at_checked(at.checked_add(length)?)?;
        units.push((head >> 3 & 15, unit));
        rest = after;
    }
    Some(units)
}

/// How often the decoder may ask to be emptied before it takes one packet.
const TRIES: usize = 64;

/// RGB bytes of the pictures in these packets, the first one a key frame; `head` goes before it. No picture may be
/// larger than `most_pixels`.
pub(super) fn decode(
    head: &[u8],
    packets: Vec<Vec<u8>>,
    most_pixels: u32,
) -> std::result::Result<Vec<Vec<u8>>, String> {
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_frame_size_limit(most_pixels.max(1));
    let mut decoder = Decoder::with_settings(&settings).map_err(|e| e.to_string())?;
    let mut pictures = Vec::with_capacity(packets.len());
    let mut drain = |decoder: &mut Decoder| -> std::result::Result<(), String> {
        loop {
            match decoder.get_picture() {
                Ok(picture) => pictures.push(picture_rgb(&picture)?),
                Err(error) if error.is_again() => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    for (k, packet) in packets.into_iter().enumerate() {
        let packet = if k == 0 { [head, &packet].concat() } else { packet };
        let mut sent = decoder.send_data(packet, None, None, None);
        let mut tries = 0;
        while let Err(error) = sent {
            tries += 1;
            if !error.is_again() || tries > TRIES {
                return Err(error.to_string());
            }
            drain(&mut decoder)?;
            sent = decoder.send_pending_data();
        }
        drain(&mut decoder)?;
    }
    Ok(pictures)
}

fn picture_rgb(picture: &Picture) -> std::result::Result<Vec<u8>, String> {
    if picture.bit_depth() != 8 || picture.pixel_layout() != PixelLayout::I420 {
        let got = format!("{} bits, {:?}", picture.bit_depth(), picture.pixel_layout());
        return Err(format!("expected 8 bits and 4:2:0, got {got}"));
    }
    let parts = [PlanarImageComponent::Y, PlanarImageComponent::U, PlanarImageComponent::V];
    let planes = parts.map(|part| (picture.plane(part), picture.stride(part) as usize));
    let [y, u, v] = [0, 1, 2].map(|k| Plane { bytes: planes[k].0.as_ref(), stride: planes[k].1 });
    let full = picture.color_range() == YUVRange::Full;
    let matrix = match picture.matrix_coefficients() {
        MatrixCoefficients::BT709 => Matrix::Bt709,
        _ => Matrix::Bt601,
    };
    rgb(picture.width(), picture.height(), [y, u, v], matrix, full)
}
