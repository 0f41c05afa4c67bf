//! ROS 2 messages, those of the gripper's action, what rides beside them, and the pictures in them: the first byte says as
//! which message the rest is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vela_embodiment::{Camera, Stamp};
use vela_robots::ros2::actions::{
    CancelGoalResponse, Feedback, GetResultRequest, GetResultResponse, GoalInfo, GripperState,
    SendGoalRequest, SendGoalResponse,
};
use vela_robots::ros2::cameras::ImageKind;
use vela_robots::ros2::frame_of;
use vela_robots::ros2::keys::Attachment;
use vela_robots::ros2::messages::{
    Bool, CompressedImage, Float64MultiArray, Image, JointState, JointTrajectory, Text, TfMessage, decode,
    encode,
};

/// What can be read can be written again and read back, to the same bytes.
macro_rules! round {
    ($message:ty, $bytes:expr) => {
        if let Ok(message) = decode::<$message>($bytes) {
            let once = encode(&message).expect("what was read can be written");
            let again = decode::<$message>(&once).expect("what was written can be read");
            assert_eq!(encode(&again).ok(), Some(once));
        }
    };
}

/// The picture of a message, for a camera of the size that the first two bytes say: up to 64 pixels either way.
fn picture(bytes: &[u8], message: impl Fn(&[u8]) -> (ImageKind, Vec<u8>)) {
    let [width, height, rest @ ..] = bytes else { return };
    let side = |byte: u8| u32::from(byte % 64) + 1;
    let camera = Camera { name: "front".into(), width: side(*width), height: side(*height) };
    let (kind, message) = message(rest);
    if let Ok(frame) = frame_of(&camera, kind, Stamp(0), &message) {
        assert_eq!((frame.width, frame.height), (camera.width, camera.height));
        assert_eq!(frame.rgb.len(), camera.width as usize * camera.height as usize * 3);
    }
}

/// A JPEG, a PNG or whatever it is, in a message that is sound.
fn sent(file: &[u8]) -> Vec<u8> {
    let message = CompressedImage { data: file.to_vec(), ..CompressedImage::default() };
    encode(&message).expect("a short message can be written")
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 20 {
        0 => round!(JointState, rest),
        1 => round!(CompressedImage, rest),
        2 => round!(Image, rest),
        3 => round!(Bool, rest),
        4 => round!(Float64MultiArray, rest),
        5 => round!(JointTrajectory, rest),
        6 => round!(Text, rest),
        7 => round!(TfMessage, rest),
        8 => round!(SendGoalRequest, rest),
        9 => round!(SendGoalResponse, rest),
        10 => round!(GetResultRequest, rest),
        11 => round!(GetResultResponse, rest),
        12 => round!(GripperState, rest),
        13 => round!(Feedback, rest),
        14 => round!(GoalInfo, rest),
        15 => round!(CancelGoalResponse, rest),
        16 => picture(rest, |bytes| (ImageKind::Raw, bytes.to_vec())),
        17 => picture(rest, |bytes| (ImageKind::Compressed, bytes.to_vec())),
        18 => picture(rest, |file| (ImageKind::Compressed, sent(file))),
        _ => {
            if let Ok(beside) = Attachment::decode(rest) {
                assert_eq!(Attachment::decode(&beside.encode()).ok(), Some(beside));
            }
        }
    }
});
