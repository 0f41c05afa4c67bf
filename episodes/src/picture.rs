//! A camera's pictures to what is stored of them, and back.

use crate::video::{av1, h264};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use vela_embodiment::{Camera, Error, Result};

/// How pictures are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PictureFormat {
    /// Inside parquet. Lossless: what is read is what was seen.
    #[default]
    Png,
    /// Inside parquet. Smaller and lossy.
    Jpeg {
        /// 1 (worst) to 100.
        quality: u8,
    },
    /// In an mp4 file of each camera and episode, as H.264 with 4:2:0 colours. Smallest and lossy; the sides of the
    /// pictures must be even.
    H264 {
        /// The quantiser of every picture: 12 (best) to 51 (smallest).
        qp: u8,
    },
    /// In mp4 files as well, as AV1, which LeRobot writes. For conversion only: its encoder is too slow to record with.
    Av1 {
        /// 1 (best) to 63 (smallest), as SVT-AV1 counts.
        crf: u8,
    },
}

impl PictureFormat {
    /// Video of a usual quality.
    pub const VIDEO: Self = Self::H264 { qp: 20 };
    /// AV1 of LeRobot's quality.
    pub const AV1: Self = Self::Av1 { crf: 30 };

    pub(crate) fn is_video(self) -> bool {
        matches!(self, Self::H264 { .. } | Self::Av1 { .. })
    }

    /// What the stored bytes of one picture are.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            PictureFormat::Png => "png",
            PictureFormat::Jpeg { .. } => "jpg",
            PictureFormat::H264 { .. } => "h264",
            PictureFormat::Av1 { .. } => "av1",
        }
    }

    /// Refuses cameras whose pictures cannot be stored like this; each is named.
    pub(crate) fn check(self, cameras: &[Camera]) -> Result<()> {
        let (name, quality, known) = match self {
            Self::Png | Self::Jpeg { .. } => return Ok(()),
            Self::H264 { qp } => ("H.264", qp, h264::QUANTISERS),
            Self::Av1 { crf } => ("AV1", crf, av1::QUALITIES),
        };
        if !known.contains(&quality) {
            return Err(Error::Shape {
                what: format!("quantiser of {name} video"),
                expected: format!("{} (best) to {}", known.start(), known.end()),
                got: quality.to_string(),
            });
        }
        let is_wrong = |camera: &&Camera| {
            let (long, short) = (camera.width.max(camera.height), camera.width.min(camera.height));
            let even = long.is_multiple_of(2) && short.is_multiple_of(2);
            !even || short < 16 || long > 3840 || short > 2160
        };
        let wrong = cameras.iter().filter(is_wrong);
        let wrong: Vec<String> = wrong.map(|c| format!("{}x{} of '{}'", c.width, c.height, c.name)).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Shape {
            what: format!("pictures as {name} video"),
            expected: "even sides, from 16x16 to 3840x2160".into(),
            got: wrong.join(", "),
        })
    }

    /// Refuses what cannot be coded as fast as cameras see.
    pub(crate) fn require_live(self) -> Result<()> {
        match self {
            Self::Av1 { .. } => Err(Error::Shape {
                what: "video to record".into(),
                expected: "h264, which can be converted to av1 later".into(),
                got: "av1, whose encoder is slower than cameras".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// What turns one camera's pictures into stored bytes, one after another.
#[derive(Debug)]
pub(crate) enum Coder {
    /// Each for itself.
    Still(PictureFormat),
    /// Each a sample of a video track: the first a key frame, the others perhaps not.
    Film(Box<h264::Encoder>),
}

impl Coder {
    pub(crate) fn new(format: PictureFormat, camera: &Camera) -> Result<Self> {
        format.require_live()?;
        let PictureFormat::H264 { qp } = format else { return Ok(Self::Still(format)) };
        let encoder = h264::Encoder::new(qp, camera.width, camera.height);
        Ok(Self::Film(Box::new(encoder.map_err(|why| unencoded(&camera.name, why))?)))
    }

    /// The stored bytes of the next picture, `[height, width, 3]`.
    pub(crate) fn encode(&mut self, rgb: &[u8], camera: &Camera) -> Result<Vec<u8>> {
        let (width, height, colour) = (camera.width, camera.height, ExtendedColorType::Rgb8);
        let mut bytes = Vec::with_capacity(rgb.len() / 2);
        let done = match self {
            Self::Film(encoder) => {
                return encoder.encode(rgb).map_err(|why| unencoded(&camera.name, why));
            }
            Self::Still(PictureFormat::Jpeg { quality }) => {
                JpegEncoder::new_with_quality(&mut bytes, *quality).write_image(rgb, width, height, colour)
            }
            Self::Still(_) => {
                PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
                    .write_image(rgb, width, height, colour)
            }
        };
        done.map_err(|e| unencoded(&camera.name, e.to_string()))?;
        Ok(bytes)
    }
}

pub(crate) fn unencoded(camera: &str, why: String) -> Error {
    Error::Parse { what: format!("frame of camera '{camera}'"), why }
}

/// Calls `see` with the RGB bytes of each picture of a camera that a [`Coder`] gave for `extension`, in order.
pub(crate) fn decode_each(
    extension: &str,
    pictures: &[&[u8]],
    camera: &Camera,
    what: &str,
    see: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    if extension == PictureFormat::VIDEO.extension() {
        return h264::decode_each(pictures, see)
            .map_err(|why| Error::Parse { what: format!("{what}, camera '{}'", camera.name), why });
    }
    for (frame, bytes) in pictures.iter().enumerate() {
        see(&decode(bytes, camera, &format!("{what}, frame {frame}"))?);
    }
    Ok(())
}

/// RGB bytes, `[height, width, 3]`, of a PNG or JPEG picture of that camera; `what` names it in errors.
pub(crate) fn decode(bytes: &[u8], camera: &Camera, what: &str) -> Result<Vec<u8>> {
    let picture = image::load_from_memory(bytes)
        .map_err(|e| Error::Parse { what: what.to_owned(), why: e.to_string() })?
        .into_rgb8();
    if picture.dimensions() != (camera.width, camera.height) {
        let (width, height) = picture.dimensions();
        return Err(Error::Shape {
            what: what.to_owned(),
            expected: format!("{}x{}", camera.width, camera.height),
            got: format!("{width}x{height}"),
        });
    }
    Ok(picture.into_raw())
}
