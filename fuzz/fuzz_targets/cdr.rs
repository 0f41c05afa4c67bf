//! ROS 2 messages, those of the gripper's action, and what rides beside them: the first byte says as which message the rest is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vela_robots::ros2::actions::{
    CancelGoalResponse, Feedback, GetResultRequest, GetResultResponse, GoalInfo, GripperState,
    SendGoalRequest, SendGoalResponse,
};
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

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 17 {
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
        _ => {
            if let Ok(beside) = Attachment::decode(rest) {
                assert_eq!(Attachment::decode(&beside.encode()).ok(), Some(beside));
            }
        }
    }
});
