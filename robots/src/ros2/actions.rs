//! The messages of `control_msgs/action/GripperCommand`: what `ros2_control`'s gripper controllers take and say.
//!
//! An action is three services and two topics under its name: `NAME/_action/send_goal`, `get_result`, `cancel_goal`,
//! `feedback` and `status`.

use super::messages::Time;
use serde::{Deserialize, Serialize};

/// A goal's identity, its client's choice (`unique_identifier_msgs/msg/UUID`).
pub type GoalId = [u8; 16];

/// `GripperCommand_SendGoal_Request`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SendGoalRequest {
    /// Which goal.
    pub goal_id: GoalId,
    /// Where the gripper's joint should go, rad or m.
    pub position: f64,
    /// How hard it may push, N m or N.
    pub max_effort: f64,
}

/// `GripperCommand_SendGoal_Response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendGoalResponse {
    /// Whether it goes there.
    pub accepted: bool,
    /// Since when.
    pub stamp: Time,
}

/// `GripperCommand_GetResult_Request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetResultRequest {
    /// Which goal.
    pub goal_id: GoalId,
}

/// `GripperCommand_Result` and `GripperCommand_Feedback`: how the gripper stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GripperState {
    /// Where, rad or m.
    pub position: f64,
    /// What it pushes with, N m or N.
    pub effort: f64,
    /// It pushes as hard as it may and does not move: it holds something, or is stuck.
    pub stalled: bool,
    /// It is where it was sent.
    pub reached_goal: bool,
}

/// `GripperCommand_GetResult_Response`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GetResultResponse {
    /// `action_msgs/msg/GoalStatus`; see [`GoalStatus::of`].
    pub status: i8,
    /// How it ended.
    pub state: GripperState,
}

/// `GripperCommand_FeedbackMessage`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// Of which goal.
    pub goal_id: GoalId,
    /// How it goes.
    pub state: GripperState,
}

/// `action_msgs/msg/GoalInfo`, also `action_msgs/srv/CancelGoal_Request`: with a stamp of zero, this one goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoalInfo {
    /// Which goal.
    pub goal_id: GoalId,
    /// When it was accepted.
    pub stamp: Time,
}

/// `action_msgs/srv/CancelGoal_Response`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelGoalResponse {
    /// 0: none was wrong. 1: it will not. 2: it knows no such goal. 3: that one has ended.
    pub return_code: i8,
    /// What it will end.
    pub goals_canceling: Vec<GoalInfo>,
}

/// `action_msgs/msg/GoalStatus`: what became of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GoalStatus {
    /// Nobody says.
    Unknown,
    /// Taken, not begun.
    Accepted,
    /// On its way.
    Executing,
    /// Being given up.
    Canceling,
    /// Done.
    Succeeded,
    /// Given up because somebody asked.
    Canceled,
    /// Given up by the controller. Many do that when the gripper stalls, that is when it holds something.
    Aborted,
}

impl GoalStatus {
    /// The status with this number in ROS.
    pub fn of(number: i8) -> Self {
        match number {
            1 => Self::Accepted,
            2 => Self::Executing,
            3 => Self::Canceling,
            4 => Self::Succeeded,
            5 => Self::Canceled,
            6 => Self::Aborted,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for GoalStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Accepted => "accepted",
            Self::Executing => "executing",
            Self::Canceling => "canceling",
            Self::Succeeded => "succeeded",
            Self::Canceled => "canceled",
            Self::Aborted => "aborted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros2::messages::{decode, encode};
    use rand::Rng;
    use vela_embodiment::Result;

    const SEND_GOAL: &[u8] = include_bytes!("../../../tests/golden/ros2/gripper_send_goal_request.cdr");
    const TAKEN: &[u8] = include_bytes!("../../../tests/golden/ros2/gripper_send_goal_response.cdr");
    const RESULT: &[u8] = include_bytes!("../../../tests/golden/ros2/gripper_get_result_response.cdr");
    const FEEDBACK: &[u8] = include_bytes!("../../../tests/golden/ros2/gripper_feedback.cdr");
    const CANCEL: &[u8] = include_bytes!("../../../tests/golden/ros2/cancel_goal_request.cdr");
    const CANCELED: &[u8] = include_bytes!("../../../tests/golden/ros2/cancel_goal_response.cdr");

    #[test]
    fn goals_and_results_are_those_of_ros_2() -> Result<()> {
        let mut goal_id = [0; 16];
        goal_id.iter_mut().zip(1..).for_each(|(byte, k)| *byte = k);
        let state = GripperState { position: 0.25, effort: -1.5, stalled: true, reached_goal: false };
        let goal = SendGoalRequest { goal_id, position: 0.5, max_effort: 4.0 };
        let taken = SendGoalResponse { accepted: true, stamp: Time { sec: 3, nanosec: 4 } };
        let result = GetResultResponse { status: 6, state };
        let info = GoalInfo { goal_id, stamp: Time { sec: 7, nanosec: 0 } };
        let canceled = CancelGoalResponse { return_code: 3, goals_canceling: vec![info] };
        assert_eq!(decode::<SendGoalRequest>(SEND_GOAL)?, goal);
        assert_eq!(encode(&goal)?, SEND_GOAL);
        assert_eq!(decode::<SendGoalResponse>(TAKEN)?, taken);
        assert_eq!(encode(&taken)?, TAKEN);
        assert_eq!(decode::<GetResultResponse>(RESULT)?, result);
        assert_eq!(encode(&result)?, RESULT);
        assert_eq!(decode::<Feedback>(FEEDBACK)?, Feedback { goal_id, state });
        assert_eq!(encode(&Feedback { goal_id, state })?, FEEDBACK);
        assert_eq!(decode::<GoalInfo>(CANCEL)?, info);
        assert_eq!(encode(&info)?, CANCEL);
        // A byte of what FastDDS leaves between the numbers is whatever lay there.
        assert_eq!(decode::<CancelGoalResponse>(CANCELED)?, canceled);
        assert_eq!(encode(&canceled)?.len(), CANCELED.len());
        assert_eq!(encode(&GetResultRequest { goal_id })?, SEND_GOAL[..20]);
        assert_eq!((GoalStatus::of(6), GoalStatus::of(-1)), (GoalStatus::Aborted, GoalStatus::Unknown));
        Ok(())
    }

    #[test]
    fn torn_answers_are_refused_without_a_panic() {
        for seed in 0..10_000 {
            let mut rng = vela_embodiment::stream(seed, "torn action");
            let all = [SEND_GOAL, TAKEN, RESULT, FEEDBACK, CANCEL, CANCELED];
            let mut bytes = all[rng.random_range(0..all.len())].to_vec();
            for _ in 0..rng.random_range(1..5) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = if rng.random() { 0xff } else { rng.random() };
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            let _ = (decode::<SendGoalResponse>(&bytes), decode::<GetResultResponse>(&bytes));
            let _ = (decode::<Feedback>(&bytes), decode::<CancelGoalResponse>(&bytes));
        }
    }
}
