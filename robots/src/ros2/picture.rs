//! The picture in a ROS 2 message, as RGB, in a buffer that the last ones have left.

use super::cameras::ImageKind;
use super::messages::{self, CompressedRef, ImageRef};
use super::pixels;
use std::io::Cursor;
use std::sync::Arc;
use vela_embodiment::{Camera, Error, Frame, Result, Stamp};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// What begins every JPEG file.
const JPEG: [u8; 2] = [0xff, 0xd8];
/// Buffers that are kept: one is being filled, the others are on their way to a policy or a dataset.
const KEPT: usize = 4;

/// Whether a picture is at its place, or why not.
type Filled = std::result::Result<(), String>;

/// The picture in one message, as RGB: what is done with every message of a camera's topic.
///
/// # Errors
/// The message is torn, or its picture is not of the camera's size or in an encoding that nobody here knows.
pub fn frame_of(camera: &Camera, kind: ImageKind, stamp: Stamp, bytes: &[u8]) -> Result<Frame> {
    Pictures::default().unpack(camera, kind, stamp, bytes).map_err(Error::Robot)
}

/// The pictures of one camera. Their memory comes back, so that the system need not zero the pages of a new buffer
/// for each.
#[derive(Default)]
pub(super) struct Pictures {
    kept: Vec<Arc<[u8]>>,
}

impl Pictures {
    /// The picture in a message; it must have the camera's size. The error says which camera.
    pub(super) fn unpack(
        &mut self,
        camera: &Camera,
        kind: ImageKind,
        stamp: Stamp,
        bytes: &[u8],
    ) -> std::result::Result<Frame, String> {
        let mut rgb = self.buffer(camera.width as usize * camera.height as usize * 3);
        let name = camera.name.clone();
        let filled = match Arc::get_mut(&mut rgb) {
            Some(place) => fill(camera, kind, bytes, place),
            None => Err("its buffer is somebody else's".into()),
        };
        filled.map_err(|why| format!("picture of camera '{name}': {why}"))?;
        if self.kept.len() < KEPT {
            self.kept.push(rgb.clone());
        }
        Ok(Frame { camera: name, width: camera.width, height: camera.height, rgb, stamp })
    }

    /// A buffer of so many bytes that nobody else holds, whatever is in it.
    fn buffer(&mut self, bytes: usize) -> Arc<[u8]> {
        let free = self.kept.iter_mut().position(|rgb| rgb.len() == bytes && Arc::get_mut(rgb).is_some());
        match free {
            Some(place) => self.kept.swap_remove(place),
            None => std::iter::repeat_n(0, bytes).collect(),
        }
    }
}

/// Writes the RGB bytes of a message, `[height, width, 3]`, to their place.
fn fill(camera: &Camera, kind: ImageKind, bytes: &[u8], rgb: &mut [u8]) -> Filled {
    match kind {
        ImageKind::Compressed => {
            let message: CompressedRef = messages::decode(bytes).map_err(|e| e.to_string())?;
            if message.data.starts_with(&JPEG) {
                jpeg(camera, message.data, rgb)
            } else {
                file(camera, message.data, rgb)
            }
        }
        ImageKind::Raw => raw(camera, &messages::decode(bytes).map_err(|e| e.to_string())?, rgb),
    }
}

fn right_size(camera: &Camera, width: u32, height: u32) -> Filled {
    let (w, h) = (camera.width, camera.height);
    if (width, height) != (w, h) {
        return Err(format!("expected {w}x{h}, got {width}x{height}"));
    }
    Ok(())
}

/// A JPEG of any colours, straight to its place.
fn jpeg(camera: &Camera, data: &[u8], rgb: &mut [u8]) -> Filled {
    // Cameras that leave out what comes after the last block are as many as those that do not.
    let options = DecoderOptions::default().set_strict_mode(false).jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    // Looked at before anything is decoded: a small file may claim a huge picture.
    let size = decoder.info().ok_or("a JPEG without a size")?;
    right_size(camera, size.width.into(), size.height.into())?;
    decoder.decode_into(rgb).map_err(|e| e.to_string())
}

/// A PNG file, or whatever else the image library knows.
fn file(camera: &Camera, data: &[u8], rgb: &mut [u8]) -> Filled {
    use image::ImageDecoder;
    let reader = image::ImageReader::new(Cursor::new(data)).with_guessed_format();
    let decoder = reader.map_err(|e| e.to_string())?.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    right_size(camera, width, height)?;
    let decoded = image::DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    rgb.copy_from_slice(&decoded.into_rgb8());
    Ok(())
}

/// A plain picture; its rows may be padded.
fn raw(camera: &Camera, message: &ImageRef, rgb: &mut [u8]) -> Filled {
    right_size(camera, message.width, message.height)?;
    pixels::unpack(message, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros2::messages::{CompressedImage, Image};
    use rand::Rng;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/ros2/image.cdr");

    fn camera(width: u32, height: u32) -> Camera {
        Camera { name: "front".into(), width, height }
    }

    fn said(camera: &Camera, message: &Image) -> String {
        let bytes = messages::encode(message).unwrap_or_default();
        frame_of(camera, ImageKind::Raw, Stamp(0), &bytes).err().map(|e| e.to_string()).unwrap_or_default()
    }

    /// 3x2 pixels of bgr8, whose rows of nine bytes are padded to twelve, as ROS 2 wrote it.
    #[test]
    fn a_padded_bgr_picture_becomes_rgb() -> Result<()> {
        let frame = frame_of(&camera(3, 2), ImageKind::Raw, Stamp(5), GOLDEN)?;
        assert_eq!(frame.rgb[..], [2, 1, 0, 5, 4, 3, 8, 7, 6, 14, 13, 12, 17, 16, 15, 20, 19, 18]);
        assert_eq!(
            (frame.width, frame.height, frame.stamp, frame.camera.as_str()),
            (3, 2, Stamp(5), "front")
        );
        let image: Image = messages::decode(GOLDEN)?;
        let plain = Image { encoding: "rgb8".into(), ..image.clone() };
        let frame = frame_of(&camera(3, 2), ImageKind::Raw, Stamp(5), &messages::encode(&plain)?)?;
        assert_eq!(frame.rgb[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
        let grey = Image { encoding: "mono8".into(), ..image };
        let frame = frame_of(&camera(3, 2), ImageKind::Raw, Stamp(5), &messages::encode(&grey)?)?;
        assert_eq!(frame.rgb[..], [0, 0, 0, 1, 1, 1, 2, 2, 2, 12, 12, 12, 13, 13, 13, 14, 14, 14]);
        Ok(())
    }

    /// The same pixels as the library's own way.
    #[test]
    fn jpeg_and_png_of_any_colour_become_rgb() -> Result<()> {
        let image = image::RgbImage::from_fn(5, 4, |x, y| image::Rgb([x as u8 * 40, y as u8 * 50, 90]));
        let image = image::DynamicImage::ImageRgb8(image);
        let kinds = [
            (image.clone(), image::ImageFormat::Jpeg),
            (image.to_luma8().into(), image::ImageFormat::Jpeg),
            (image.to_rgba8().into(), image::ImageFormat::Png),
            (image, image::ImageFormat::Png),
        ];
        for (image, format) in kinds {
            let mut data = Cursor::new(Vec::new());
            image.write_to(&mut data, format).map_err(|e| Error::Robot(e.to_string()))?;
            let data = data.into_inner();
            let wanted = image::load_from_memory(&data).map_err(|e| Error::Robot(e.to_string()))?;
            let message = CompressedImage { format: "?".into(), data, ..CompressedImage::default() };
            let bytes = messages::encode(&message)?;
            let frame = frame_of(&camera(5, 4), ImageKind::Compressed, Stamp(5), &bytes)?;
            assert_eq!(frame.rgb[..], wanted.into_rgb8().into_raw()[..], "{format:?}");
            let small = frame_of(&camera(4, 4), ImageKind::Compressed, Stamp(5), &bytes);
            assert!(small.is_err_and(|e| e.to_string().contains("expected 4x4, got 5x4")));
        }
        Ok(())
    }

    #[test]
    fn a_picture_that_does_not_fit_is_refused_in_a_sentence() -> Result<()> {
        let (eye, image) = (camera(3, 2), messages::decode::<Image>(GOLDEN)?);
        let of = |change: &dyn Fn(&mut Image)| {
            let mut image = image.clone();
            change(&mut image);
            said(&eye, &image)
        };
        assert!(said(&camera(4, 2), &image).contains("picture of camera 'front': expected 4x2, got 3x2"));
        assert!(of(&|m| m.encoding = "16UC1".into()).contains("got '16UC1'"));
        assert!(of(&|m| m.step = 8).contains("expected rows of at least 9 bytes, got a step of 8"));
        assert!(of(&|m| m.step = 10).contains("expected 2 rows of 10 bytes, got 24 bytes"));
        assert!(of(&|m| m.data.truncate(23)).contains("expected 2 rows of 12 bytes, got 23 bytes"));
        assert!(
            of(&|m| (m.width, m.height, m.step) = (u32::MAX, u32::MAX, u32::MAX)).contains("expected 3x2")
        );
        // One kind where the other is expected.
        let wrong = frame_of(&eye, ImageKind::Compressed, Stamp(0), GOLDEN);
        assert!(wrong.is_err_and(|e| e.to_string().contains("picture of camera 'front'")));
        for seed in 0..10_000 {
            let mut rng = vela_embodiment::stream(seed, "torn pictures");
            let mut bytes = GOLDEN.to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = if rng.random() { 0xff } else { rng.random() };
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            let kind = if rng.random() { ImageKind::Raw } else { ImageKind::Compressed };
            if let Ok(frame) = frame_of(&eye, kind, Stamp(0), &bytes) {
                assert_eq!(frame.rgb.len(), 18);
            }
        }
        Ok(())
    }

    /// A frame that somebody still holds keeps its pixels; what was given back serves again.
    #[test]
    fn a_buffer_serves_again_only_when_nobody_holds_it() -> std::result::Result<(), String> {
        let (eye, mut pictures) = (camera(3, 2), Pictures::default());
        let mut next = || pictures.unpack(&eye, ImageKind::Raw, Stamp(0), GOLDEN);
        let held: Vec<Frame> = (0..2 * KEPT).map(|_| next()).collect::<std::result::Result<_, _>>()?;
        let places: Vec<_> = held.iter().map(|frame| frame.rgb.as_ptr()).collect();
        assert!((1..places.len()).all(|k| !places[..k].contains(&places[k])), "one buffer, two frames");
        drop(held);
        let again = next()?.rgb.as_ptr();
        assert!(places.contains(&again));
        assert!(pictures.kept.len() <= KEPT);
        Ok(())
    }
}
