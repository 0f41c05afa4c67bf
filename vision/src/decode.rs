//! Files to pictures: JPEG, PNG and WebP, turned upright, within limits.

use crate::{Picture, jpeg};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use std::io::Cursor;
use std::path::Path;
use vela_nn::{Error, Result};

/// What a file may ask for before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: u64,
    /// Pixels of the picture; checked from the header, before anything is unpacked.
    pub pixels: u64,
}

impl Default for Limits {
    /// 64 MiB and 64 million pixels.
    fn default() -> Self {
        Self { bytes: 64 << 20, pixels: 64_000_000 }
    }
}

impl Picture {
    /// A JPEG, PNG or WebP file in memory as RGB, turned as its EXIF orientation says. Transparency is dropped as it
    /// stands, 16-bit channels keep their high byte, CMYK becomes RGB, of an animation the first frame is taken. The
    /// pixels are Pillow's, but for 16-bit grey, whose conversion clips there.
    ///
    /// # Errors
    /// Another format, a file that is cut short or broken, more than `limits` allow.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let broken = |e: &dyn std::fmt::Display| Error::parse("picture", e);
        if bytes.len() as u64 > limits.bytes {
            let (most, got) = (limits.bytes, bytes.len());
            return Err(Error::invalid(format!("picture: expected at most {most} bytes, got {got}")));
        }
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| broken(&e))?;
        let format = reader.format();
        match format {
            Some(ImageFormat::Jpeg) if !jpeg_is_whole(bytes) => {
                return Err(Error::parse("picture", "the JPEG is cut short: it has no end marker"));
            }
            Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP) => {}
            other => {
                let got = other.map_or("something else".to_owned(), |f| format!("{f:?}"));
                return Err(Error::parse("picture", format!("expected JPEG, PNG or WebP, got {got}")));
            }
        }
        let mut decoder = reader.into_decoder().map_err(|e| broken(&e))?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > limits.pixels {
            let most = limits.pixels;
            return Err(Error::invalid(format!(
                "picture: expected at most {most} pixels, got {width}x{height}"
            )));
        }
        // Of all the formats, 16-bit RGBA and its working copy take the most: 8 bytes a pixel, twice.
        let mut inner = image::Limits::no_limits();
        inner.max_alloc = Some(limits.pixels.saturating_mul(16));
        decoder.set_limits(inner).map_err(|e| broken(&e))?;
        let orientation = decoder.orientation().map_err(|e| broken(&e))?;
        let mut picture = if format == Some(ImageFormat::Jpeg) {
            let rgb = jpeg::decode(bytes, (width as usize, height as usize))
                .map_err(|e| broken(&format!("the JPEG is broken: {e}")))?;
            let rgb =
                RgbImage::from_raw(width, height, rgb).ok_or_else(|| broken(&"the JPEG has no pixels"))?;
            DynamicImage::from(rgb)
        } else {
            DynamicImage::from_decoder(decoder).map_err(|e| broken(&e))?
        };
        picture.apply_orientation(orientation);
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let high = |values: &[u16], channels: usize, colour: [usize; 3]| -> Vec<u8> {
            let pixels = values.chunks_exact(channels);
            pixels.flat_map(|pixel| colour.map(|c| (pixel[c] >> 8) as u8)).collect()
        };
        let rgb = match &picture {
            DynamicImage::ImageLuma16(p) => high(p, 1, [0; 3]),
            DynamicImage::ImageLumaA16(p) => high(p, 2, [0; 3]),
            DynamicImage::ImageRgb16(p) => high(p, 3, [0, 1, 2]),
            DynamicImage::ImageRgba16(p) => high(p, 4, [0, 1, 2]),
            _ => picture.into_rgb8().into_raw(),
        };
        Self::new(width, height, rgb)
    }

    /// The same from a file.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > limits.bytes {
            let (path, most) = (path.display(), limits.bytes);
            return Err(Error::invalid(format!("{path}: expected at most {most} bytes, got {size}")));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        Self::decode(&bytes, limits).map_err(|e| Error::parse(path.display(), e))
    }
}

/// Whether a JPEG's markers run to its end marker: decoders fill what is missing with grey, and a grey half is no answer.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some([0xFF, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xD9 => return true,
            // Fill bytes, and markers without a body.
            0xFF => at += 1,
            0x01 | 0xD0..=0xD8 => at += 2,
            _ => {
                let Some([high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
                if *marker == 0xDA {
                    // Coded data: up to the next marker that is neither a stuffed byte nor a restart.
                    let ends = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7);
                    let Some(next) = bytes.get(at..).and_then(|rest| rest.windows(2).position(ends)) else {
                        return false;
                    };
                    at += next;
                }
            }
        }
    }
    false
}
