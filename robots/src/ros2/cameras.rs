//! Cameras that speak ROS 2 over zenoh: compressed or raw images in, frames out.

use super::keys;
use super::messages::{self, CompressedImage, ImageRef};
use crate::control::Latest;
use crate::link::failed;
use crate::priority::{self, Urgency};
use image::ImageDecoder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vela_embodiment::{Camera, Clock, Embodiment, Error, Frame, FrameSource, Result, Stamp};
use zenoh::bytes::ZBytes;
use zenoh::pubsub::Subscriber;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// How a camera sends its pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// `sensor_msgs/msg/CompressedImage`: JPEG or PNG.
    #[default]
    Compressed,
    /// `sensor_msgs/msg/Image`: `rgb8`, `bgr8` or `mono8`.
    Raw,
}

/// One camera's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraTopic {
    /// Its name.
    pub topic: String,
    /// What comes there.
    #[serde(default)]
    pub kind: ImageKind,
}

/// How long a picture may let itself be waited for.
const PATIENCE: Duration = Duration::from_millis(900);

/// What the ear of a camera heard last.
type Heard = Latest<(Stamp, ZBytes)>;
/// What was unpacked last.
type Unpacked = Latest<std::result::Result<Frame, String>>;

/// One camera: its ear, and a thread that unpacks what it hears.
struct Eye {
    name: String,
    unpacked: Arc<Unpacked>,
    seen: u64,
    closed: Arc<AtomicBool>,
    _inlet: Subscriber<()>,
}

impl Eye {
    fn open(
        session: &Session,
        camera: &Camera,
        domain: u32,
        topic: &CameraTopic,
        clock: &Arc<dyn Clock>,
        real_time: bool,
    ) -> Result<Self> {
        let (heard, unpacked) = (Arc::new(Heard::default()), Arc::new(Unpacked::default()));
        let closed = Arc::new(AtomicBool::new(false));
        let key = keys::any_type(domain, &topic.topic);
        let inlet = session.declare_subscriber(key.as_str()).callback({
            let (heard, clock) = (heard.clone(), clock.clone());
            move |sample: Sample| heard.put((clock.now(), sample.payload().clone()))
        });
        let inlet = inlet.wait().map_err(|e| failed(&key, e))?;
        let unpacking = {
            let (unpacked, closed) = (unpacked.clone(), closed.clone());
            let (camera, kind) = (camera.clone(), topic.kind);
            move || {
                if real_time {
                    // The control loop's thread asks for the same and says what came of it.
                    let _ = priority::ask(Urgency::Picture);
                }
                unpack(&camera, kind, &heard, &unpacked, &closed);
            }
        };
        let name = camera.name.clone();
        let thread = std::thread::Builder::new().name(format!("vela-eye-{name}"));
        thread
            .spawn(unpacking)
            .map_err(|e| Error::Robot(format!("cannot start the thread of camera '{name}': {e}")))?;
        Ok(Self { name, unpacked, seen: 0, closed, _inlet: inlet })
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Unpacks every picture as it comes, or the newest one when they come faster than that.
fn unpack(camera: &Camera, kind: ImageKind, heard: &Heard, unpacked: &Unpacked, closed: &AtomicBool) {
    let mut seen = 0;
    while !closed.load(Ordering::Acquire) {
        let Some((number, (stamp, bytes))) = heard.wait_newer(seen, Duration::from_millis(100)) else {
            continue;
        };
        seen = number;
        unpacked.put(frame_of(camera, kind, stamp, &bytes.to_bytes()));
    }
}

/// Cameras on topics.
pub struct TopicCameras {
    eyes: Vec<Eye>,
}

impl TopicCameras {
    /// Listens to a topic per camera of the embodiment, by the camera's name; stamps are on `clock`, on arrival. Each
    /// picture is unpacked on a thread of its camera's own, which asks for a priority just under the control loop's if
    /// it is to be in `real_time`.
    ///
    /// # Errors
    /// A camera has no topic or a topic no camera; the session is closed.
    pub fn listen(
        session: &Session,
        embodiment: &Embodiment,
        domain: u32,
        topics: &BTreeMap<String, CameraTopic>,
        clock: &Arc<dyn Clock>,
        real_time: bool,
    ) -> Result<Self> {
        let join = |names: Vec<&str>| names.join(", ");
        let known: Vec<&str> = embodiment.cameras.iter().map(|camera| camera.name.as_str()).collect();
        if let Some(name) = topics.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::Unknown { kind: "camera", name: name.clone(), known: join(known) });
        }
        let mut eyes = Vec::with_capacity(embodiment.cameras.len());
        for camera in &embodiment.cameras {
            let topic = topics.get(&camera.name).ok_or_else(|| Error::Unknown {
                kind: "topic of camera",
                name: camera.name.clone(),
                known: join(topics.keys().map(String::as_str).collect()),
            })?;
            eyes.push(Eye::open(session, camera, domain, topic, clock, real_time)?);
        }
        Ok(Self { eyes })
    }
}

impl FrameSource for TopicCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        let newest = |eye: &mut Eye| {
            let name = &eye.name;
            let newer = eye.unpacked.wait_newer(eye.seen, PATIENCE);
            let (number, frame) =
                newer.ok_or_else(|| Error::Robot(format!("camera '{name}' sent nothing for 0.9 s")))?;
            eye.seen = number;
            frame.map_err(Error::Robot)
        };
        self.eyes.iter_mut().map(newest).collect()
    }
}

/// The picture in a message; it must have the camera's size.
fn frame_of(
    camera: &Camera,
    kind: ImageKind,
    stamp: Stamp,
    bytes: &[u8],
) -> std::result::Result<Frame, String> {
    let pixels = match kind {
        ImageKind::Compressed => {
            messages::decode(bytes).map_err(|e| e.to_string()).and_then(|m| file(camera, &m))
        }
        ImageKind::Raw => messages::decode(bytes).map_err(|e| e.to_string()).and_then(|m| raw(camera, &m)),
    };
    let name = camera.name.clone();
    let rgb = pixels.map_err(|why| format!("picture of camera '{name}': {why}"))?;
    Ok(Frame { camera: name, width: camera.width, height: camera.height, rgb, stamp })
}

fn right_size(camera: &Camera, width: u32, height: u32) -> std::result::Result<(), String> {
    let (w, h) = (camera.width, camera.height);
    if (width, height) != (w, h) {
        return Err(format!("expected {w}x{h}, got {width}x{height}"));
    }
    Ok(())
}

/// RGB of a JPEG or PNG file, `[height, width, 3]`.
fn file(camera: &Camera, message: &CompressedImage) -> std::result::Result<Arc<[u8]>, String> {
    let reader = image::ImageReader::new(Cursor::new(&message.data)).with_guessed_format();
    let decoder = reader.map_err(|e| e.to_string())?.into_decoder().map_err(|e| e.to_string())?;
    // Looked at before anything is decoded: a small file may claim a huge picture.
    let (width, height) = decoder.dimensions();
    right_size(camera, width, height)?;
    if decoder.color_type() != image::ColorType::Rgb8 {
        let decoded = image::DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
        return Ok(decoded.into_rgb8().into_raw().into());
    }
    let bytes = width as usize * height as usize * 3;
    let mut rgb: Arc<[u8]> = std::iter::repeat_n(0, bytes).collect();
    let place = Arc::get_mut(&mut rgb).ok_or("the picture is somebody else's")?;
    decoder.read_image(place).map_err(|e| e.to_string())?;
    Ok(rgb)
}

/// RGB of a plain picture, `[height, width, 3]`; its rows may be padded.
fn raw(camera: &Camera, message: &ImageRef) -> std::result::Result<Arc<[u8]>, String> {
    right_size(camera, message.width, message.height)?;
    let channels = match message.encoding.as_str() {
        "rgb8" | "bgr8" => 3,
        "mono8" => 1,
        other => {
            let other: String = other.chars().take(20).collect();
            return Err(format!("expected the encoding rgb8, bgr8 or mono8, got '{other}'"));
        }
    };
    let (row, step) = (message.width as usize * channels, message.step as usize);
    if step < row {
        return Err(format!("expected rows of at least {row} bytes, got a step of {step}"));
    }
    let expected = step.checked_mul(message.height as usize);
    if expected != Some(message.data.len()) {
        let (height, bytes) = (message.height, message.data.len());
        return Err(format!("expected {height} rows of {step} bytes, got {bytes} bytes"));
    }
    if message.encoding == "rgb8" && step == row {
        return Ok(message.data.into());
    }
    let mut rgb = Vec::with_capacity(camera.width as usize * camera.height as usize * 3);
    for padded in message.data.chunks_exact(step) {
        match message.encoding.as_str() {
            "rgb8" => rgb.extend_from_slice(&padded[..row]),
            "bgr8" => padded[..row].chunks_exact(3).for_each(|bgr| rgb.extend([bgr[2], bgr[1], bgr[0]])),
            _ => padded[..row].iter().for_each(|grey| rgb.extend([*grey; 3])),
        }
    }
    Ok(rgb.into())
}

#[cfg(test)]
mod tests {
    use super::{frame_of as frame_or_why, *};
    use crate::ros2::messages::Image;
    use rand::Rng;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/ros2/image.cdr");

    fn frame_of(camera: &Camera, kind: ImageKind, stamp: Stamp, bytes: &[u8]) -> Result<Frame> {
        frame_or_why(camera, kind, stamp, bytes).map_err(Error::Robot)
    }

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

    /// Decoded in place when it is RGB, converted when it is not: the same pixels as the library's own way.
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
}
