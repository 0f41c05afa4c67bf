//! The ROS 2 messages of an arm, in CDR as ROS sends them: a four-byte header, then XCDR1, little endian.

use hiroz_cdr::{BigEndian, LittleEndian};
use serde::{Deserialize, Serialize};
use vela_embodiment::{Error, Result, Stamp};

/// `builtin_interfaces/msg/Time`, also `Duration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds.
    pub sec: i32,
    /// The rest, ns.
    pub nanosec: u32,
}

impl Time {
    /// In seconds.
    pub fn secs(self) -> f64 {
        f64::from(self.sec) + f64::from(self.nanosec) * 1e-9
    }
}

impl From<Stamp> for Time {
    fn from(stamp: Stamp) -> Self {
        let sec = i32::try_from(stamp.0 / 1_000_000_000).unwrap_or(i32::MAX);
        Self { sec, nanosec: (stamp.0 % 1_000_000_000) as u32 }
    }
}

/// `std_msgs/msg/Header`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// When, on the sender's clock.
    pub stamp: Time,
    /// In which frame.
    pub frame_id: String,
}

/// `sensor_msgs/msg/JointState`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JointState {
    /// When.
    pub header: Header,
    /// Joint names.
    pub name: Vec<String>,
    /// rad or m.
    pub position: Vec<f64>,
    /// rad/s or m/s; may be empty.
    pub velocity: Vec<f64>,
    /// N m or N; may be empty.
    pub effort: Vec<f64>,
}

/// `sensor_msgs/msg/CompressedImage`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedImage {
    /// When, and which camera.
    pub header: Header,
    /// `jpeg` or `png`.
    pub format: String,
    /// The file's bytes.
    #[serde(with = "octets")]
    pub data: Vec<u8>,
}

/// `sensor_msgs/msg/Image`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// When, and which camera.
    pub header: Header,
    /// Rows.
    pub height: u32,
    /// Pixels of a row.
    pub width: u32,
    /// `rgb8`, `bgr8`, `mono8`, ...
    pub encoding: String,
    /// Byte order of pixels wider than a byte.
    pub is_bigendian: u8,
    /// Bytes of a row, padding included.
    pub step: u32,
    /// `[height, step]` bytes.
    #[serde(with = "octets")]
    pub data: Vec<u8>,
}

/// The same, its bytes where they came: a raw picture is large.
#[derive(Deserialize)]
pub(super) struct ImageRef<'a> {
    _header: Header,
    pub(super) height: u32,
    pub(super) width: u32,
    pub(super) encoding: String,
    pub(super) is_bigendian: u8,
    pub(super) step: u32,
    pub(super) data: &'a [u8],
}

#[cfg(test)]
impl<'a> ImageRef<'a> {
    /// Without a header.
    pub(super) fn of(
        encoding: &str,
        is_bigendian: u8,
        (width, height): (u32, u32),
        step: u32,
        data: &'a [u8],
    ) -> Self {
        Self {
            _header: Header::default(),
            height,
            width,
            encoding: encoding.into(),
            is_bigendian,
            step,
            data,
        }
    }
}

/// A compressed one, in the same way.
#[derive(Deserialize)]
pub(super) struct CompressedRef<'a> {
    _header: Header,
    _format: String,
    pub(super) data: &'a [u8],
}

/// `std_msgs/msg/Bool`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bool {
    /// The value.
    pub data: bool,
}

/// `std_msgs/msg/MultiArrayDimension`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimension {
    /// Its name.
    pub label: String,
    /// Its length.
    pub size: u32,
    /// Numbers from one of its elements to the next times its length.
    pub stride: u32,
}

/// `std_msgs/msg/MultiArrayLayout`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// From the outermost; empty for a plain row.
    pub dim: Vec<Dimension>,
    /// Numbers before the first.
    pub data_offset: u32,
}

/// `std_msgs/msg/Float64MultiArray`: what a forward command controller takes, one number per joint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Float64MultiArray {
    /// Its shape; controllers ignore it.
    pub layout: Layout,
    /// The numbers.
    pub data: Vec<f64>,
}

/// `geometry_msgs/msg/TransformStamped`: the child's frame in the parent's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransformStamped {
    /// When, and the parent.
    pub header: Header,
    /// The child.
    pub child_frame_id: String,
    /// x, y, z of the child's origin, m.
    pub translation: [f64; 3],
    /// x, y, z, w of a unit quaternion.
    pub rotation: [f64; 4],
}

/// `tf2_msgs/msg/TFMessage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TfMessage {
    /// One per link.
    pub transforms: Vec<TransformStamped>,
}

/// `std_msgs/msg/String`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The text.
    pub data: String,
}

/// `trajectory_msgs/msg/JointTrajectory`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JointTrajectory {
    /// When it was made.
    pub header: Header,
    /// The joints that it moves.
    pub joint_names: Vec<String>,
    /// Where they should be, in time order.
    pub points: Vec<TrajectoryPoint>,
}

/// `trajectory_msgs/msg/JointTrajectoryPoint`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrajectoryPoint {
    /// rad or m, one per named joint.
    pub positions: Vec<f64>,
    /// May be empty.
    pub velocities: Vec<f64>,
    /// May be empty.
    pub accelerations: Vec<f64>,
    /// May be empty.
    pub effort: Vec<f64>,
    /// From the start of the trajectory.
    pub time_from_start: Time,
}

/// Bytes as one piece: number by number a raw picture takes milliseconds.
mod octets {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Octets;
        impl Visitor<'_> for Octets {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Octets)
    }
}

fn refuse(why: String) -> Error {
    Error::Parse { what: "ROS 2 message".into(), why }
}

/// Header and CDR of a message.
///
/// # Errors
/// A sequence is longer than CDR can say.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let body = hiroz_cdr::to_vec::<T, LittleEndian>(message, 256).map_err(|e| refuse(e.to_string()))?;
    let mut bytes = vec![0, 1, 0, 0];
    bytes.extend(body);
    Ok(bytes)
}

/// The message in these bytes, little or big endian.
///
/// # Errors
/// They are torn or of another type, in one sentence.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    // The last two bytes of the header are options (FastDDS: bytes of padding at the end).
    let decoded = match bytes {
        [0, 1, _, _, body @ ..] => hiroz_cdr::from_bytes::<T, LittleEndian>(body),
        [0, 0, _, _, body @ ..] => hiroz_cdr::from_bytes::<T, BigEndian>(body),
        [a, b, _, _, ..] => return Err(refuse(format!("expected CDR 00 00 or 00 01, got {a:02x} {b:02x}"))),
        _ => return Err(refuse(format!("{} bytes came, the header alone has 4", bytes.len()))),
    };
    decoded.map(|(message, _)| message).map_err(|e| refuse(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    const JOINTS: &[u8] = include_bytes!("../../../tests/golden/ros2/joint_state.cdr");
    const IMAGE: &[u8] = include_bytes!("../../../tests/golden/ros2/compressed_image.cdr");
    const TEXT: &[u8] = include_bytes!("../../../tests/golden/ros2/string.cdr");
    const TRAJECTORY: &[u8] = include_bytes!("../../../tests/golden/ros2/joint_trajectory.cdr");

    const PICTURE: &[u8] = include_bytes!("../../../tests/golden/ros2/image.cdr");
    const NUMBERS: &[u8] = include_bytes!("../../../tests/golden/ros2/float64_multi_array.cdr");
    const YES: &[u8] = include_bytes!("../../../tests/golden/ros2/bool.cdr");
    const FRAMES: &[u8] = include_bytes!("../../../tests/golden/ros2/tf_message.cdr");

    fn joints() -> JointState {
        JointState {
            header: Header { stamp: Time { sec: 1, nanosec: 2 }, frame_id: "base".into() },
            name: vec!["shoulder_pan".into(), "gripper".into()],
            position: vec![0.5, -1.25],
            velocity: vec![0.125, 3.0],
            effort: vec![],
        }
    }

    fn trajectory() -> JointTrajectory {
        let point = |sec: i32| TrajectoryPoint {
            positions: vec![0.1 * f64::from(sec + 1), -0.2],
            velocities: if sec == 0 { vec![1.0] } else { vec![] },
            time_from_start: Time { sec, nanosec: 500_000_000 },
            ..TrajectoryPoint::default()
        };
        JointTrajectory {
            header: Header { stamp: Time { sec: 5, nanosec: 0 }, frame_id: "b".into() },
            joint_names: vec!["shoulder_pan".into(), "gripper".into()],
            points: vec![point(0), point(1)],
        }
    }

    /// Alignment gaps hold whatever was in memory when ROS wrote them; ours hold zeros.
    fn same_but_gaps(ours: &[u8], ros: &[u8]) {
        let ros_trimmed = &ros[..ours.len().min(ros.len())];
        // ROS reserves a little more than a message needs and sends what was there.
        assert!(ros.len() - ros_trimmed.len() < 24, "{} bytes against {}", ours.len(), ros.len());
        let differing = ours.iter().zip(ros_trimmed).filter(|(a, b)| a != b && **a != 0).count();
        assert_eq!(differing, 0);
        assert_eq!(ours[..4], ros[..4].iter().take(3).chain(&[0]).copied().collect::<Vec<_>>()[..]);
    }

    #[test]
    fn we_read_what_ros_2_wrote_and_write_the_same() -> Result<()> {
        let image = CompressedImage {
            header: Header { stamp: Time { sec: 3, nanosec: 4 }, frame_id: "front".into() },
            format: "rgb8; jpeg compressed bgr8".into(),
            data: vec![0xff, 0xd8, 0xff, 0xd9, 7],
        };
        let text = Text { data: "pick up the green cube, bitte schön".into() };
        assert_eq!(decode::<JointState>(JOINTS)?, joints());
        assert_eq!(decode::<CompressedImage>(IMAGE)?, image);
        assert_eq!(decode::<Text>(TEXT)?, text);
        assert_eq!(decode::<JointTrajectory>(TRAJECTORY)?, trajectory());
        same_but_gaps(&encode(&joints())?, JOINTS);
        same_but_gaps(&encode(&image)?, IMAGE);
        same_but_gaps(&encode(&text)?, TEXT);
        same_but_gaps(&encode(&trajectory())?, TRAJECTORY);
        Ok(())
    }

    #[test]
    fn pictures_numbers_and_frames_are_those_of_ros_2_too() -> Result<()> {
        let header =
            |sec, nanosec, frame: &str| Header { stamp: Time { sec, nanosec }, frame_id: frame.into() };
        let picture = Image {
            header: header(3, 4, "front"),
            height: 2,
            width: 3,
            encoding: "bgr8".into(),
            is_bigendian: 0,
            step: 12,
            data: (0..24).collect(),
        };
        let numbers = Float64MultiArray {
            layout: Layout {
                dim: vec![Dimension { label: "joints".into(), size: 2, stride: 2 }],
                data_offset: 0,
            },
            data: vec![0.5, -1.25],
        };
        let frame = |sec, parent: &str, child: &str, x| TransformStamped {
            header: header(sec, 7, parent),
            child_frame_id: child.into(),
            translation: [x, -0.25, 0.125],
            rotation: [0.0, 0.0, 0.6, 0.8],
        };
        let frames = TfMessage {
            transforms: vec![frame(1, "base", "arm", 0.5), frame(2, "arm", "gripper_frame", 1.5)],
        };
        assert_eq!(decode::<Image>(PICTURE)?, picture);
        assert_eq!(decode::<Float64MultiArray>(NUMBERS)?, numbers);
        assert_eq!(decode::<Bool>(YES)?, Bool { data: true });
        assert_eq!(decode::<TfMessage>(FRAMES)?, frames);
        same_but_gaps(&encode(&picture)?, PICTURE);
        same_but_gaps(&encode(&numbers)?, NUMBERS);
        same_but_gaps(&encode(&Bool { data: true })?, YES);
        same_but_gaps(&encode(&frames)?, FRAMES);
        Ok(())
    }

    #[test]
    fn torn_messages_are_refused_without_a_panic() {
        assert!(decode::<Text>(b"").is_err_and(|e| e.to_string().contains("header alone")));
        assert!(decode::<Text>(b"\x00\x07\x00\x00").is_err_and(|e| e.to_string().contains("00 07")));
        for seed in 0..10_000 {
            let mut rng = vela_embodiment::stream(seed, "torn cdr");
            let all = [JOINTS, IMAGE, TEXT, TRAJECTORY, PICTURE, NUMBERS, YES, FRAMES];
            let mut bytes = all[rng.random_range(0..all.len())].to_vec();
            for _ in 0..rng.random_range(1..5) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = if rng.random() { 0xff } else { rng.random() };
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            let _ = (decode::<JointState>(&bytes), decode::<CompressedImage>(&bytes));
            let _ = (decode::<Text>(&bytes), decode::<JointTrajectory>(&bytes));
            let _ = (decode::<Image>(&bytes), decode::<Float64MultiArray>(&bytes));
            let _ = (decode::<Bool>(&bytes), decode::<TfMessage>(&bytes));
        }
    }
}
