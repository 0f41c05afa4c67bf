//! One camera frame to PNG or JPEG bytes and back.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use vela_embodiment::{Camera, Error, Frame, Result};

/// How pictures are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PictureFormat {
    /// Lossless: what is read is what was seen.
    #[default]
    Png,
    /// Smaller and lossy.
    Jpeg {
        /// 1 (worst) to 100.
        quality: u8,
    },
}

impl PictureFormat {
    pub(crate) fn extension(self) -> &'static str {
        match self {
            PictureFormat::Png => "png",
            PictureFormat::Jpeg { .. } => "jpg",
        }
    }

    pub(crate) fn encode(self, frame: &Frame) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(frame.rgb.len() / 2);
        let (width, height, colour) = (frame.width, frame.height, ExtendedColorType::Rgb8);
        match self {
            PictureFormat::Png => {
                PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
                    .write_image(&frame.rgb, width, height, colour)
            }
            PictureFormat::Jpeg { quality } => JpegEncoder::new_with_quality(&mut bytes, quality)
                .write_image(&frame.rgb, width, height, colour),
        }
        .map_err(|e| Error::Parse {
            what: format!("frame of camera '{}'", frame.camera),
            why: e.to_string(),
        })?;
        Ok(bytes)
    }
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
