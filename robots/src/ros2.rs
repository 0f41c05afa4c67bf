//! The arm as a ROS 2 robot on zenoh: what `rmw_zenoh` nodes see, without a bridge and without ROS.
//!
//! [`Node`] gives any arm of ours that voice; [`driver`] and [`cameras`] drive an arm that has it already. What goes out
//! is stamped as ROS 2 tools expect it, since 1970: the arm's own clock, and the date on which it began. Of the
//! stamps that come in only differences count.

pub mod actions;
mod calendar;
pub mod cameras;
mod commanders;
mod delay;
pub mod driver;
pub mod gripper;
mod inlets;
mod interest;
pub mod keys;
pub mod messages;
mod node;
mod picture;
mod pixels;
mod rivals;
mod service;
mod trajectory;
mod witness;

use crate::link::failed;
use calendar::Calendar;
use keys::{Attachment, Topic};
use messages::{Bool, Time};
use serde::Serialize;
use vela_embodiment::{EmergencyStop, Result, Stamp};
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::CongestionControl;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

pub(crate) use interest::listen_openly;
pub use node::Node;
pub use picture::frame_of;
pub use trajectory::{plan_of, setpoint_of};
pub use witness::{Moment, Witness};

/// The ROS domain of a machine where nobody set another.
pub const DOMAIN: u32 = 0;
/// `std_msgs/msg/String`: what the arm is asked to do.
pub const INSTRUCTION: &str = "/instruction";
/// `trajectory_msgs/msg/JointTrajectory`, as a joint trajectory controller takes it.
pub const TRAJECTORY: &str = "/arm_controller/joint_trajectory";
/// `std_msgs/msg/Float64MultiArray`, as a forward command controller takes it: the joints in the robot's order, without
/// the gripper's.
pub const FORWARD: &str = "/forward_position_controller/commands";
/// `std_msgs/msg/Float64MultiArray`, the gripper's joint alone.
pub const GRIPPER: &str = "/gripper_controller/commands";
/// `sensor_msgs/msg/JointState`: the targets that an arm of ours was sent at a tick, after the gate, rad or m. The header's
/// frame is who wanted them: [`BY_POLICY`], [`BY_COMMAND`] or, when the gate held the arm, [`BY_NOBODY`].
pub const JOINT_COMMANDS: &str = "/joint_commands";
/// The policy.
pub const BY_POLICY: &str = "policy";
/// A person or another program, in the policy's place.
pub const BY_COMMAND: &str = "command";
/// Nobody: the arm holds.
pub const BY_NOBODY: &str = "hold";
/// `std_msgs/msg/Bool`: true presses the emergency stop. Nothing on it releases one.
pub const EMERGENCY_STOP: &str = "/emergency_stop";

/// Makes a `true` on a ROS 2 topic press `stop`, for as long as what it returns is there. A `false` does nothing:
/// many such topics repeat it.
///
/// # Errors
/// The session is closed or the topic is no key.
pub fn listen_for_stop(
    session: &Session,
    domain: u32,
    topic: &str,
    stop: &EmergencyStop,
) -> Result<Subscriber<()>> {
    let key = keys::any_type(domain, topic);
    let (stop, topic) = (stop.clone(), topic.to_owned());
    let inlet = session.declare_subscriber(key.as_str()).callback(move |sample: Sample| {
        match messages::decode::<Bool>(&sample.payload().to_bytes()) {
            Ok(Bool { data: false }) => {}
            Ok(Bool { data: true }) => stop.press(&format!("pressed on {topic}")),
            // Somebody wanted something of this topic: not to know what is no reason to go on.
            Err(error) => stop.press(&format!("{topic}: {error}")),
        }
    });
    inlet.wait().map_err(|e| failed(&key, e))
}

/// One publisher with its count and its identity.
struct Outlet {
    publisher: Publisher<'static>,
    sequence: i64,
    gid: [u8; 16],
    calendar: Calendar,
}

impl Outlet {
    fn open(
        session: &Session,
        topic: &Topic,
        domain: u32,
        gid: [u8; 16],
        calendar: Calendar,
    ) -> Result<Self> {
        let key = topic.key(domain);
        let publisher = session
            .declare_publisher(key.clone())
            .congestion_control(CongestionControl::Drop)
            .express(!topic.is_best_effort())
            .wait()
            .map_err(|e| failed(&key, e))?;
        Ok(Self { publisher, sequence: 0, gid, calendar })
    }

    fn listened_to(&self) -> bool {
        self.publisher.matching_status().wait().is_ok_and(|status| status.matching())
    }

    /// Publishes a message of this moment of the arm's clock; it is made for the moment's date.
    fn put<T: Serialize>(&mut self, stamp: Stamp, message: impl FnOnce(Time) -> T) -> Result<()> {
        self.sequence += 1;
        let date = self.calendar.date(stamp);
        let attachment = Attachment { sequence: self.sequence, stamp: date, gid: self.gid };
        self.publisher
            .put(messages::encode(&message(Time::from(date)))?)
            .attachment(attachment.encode().as_slice())
            .wait()
            .map_err(|e| failed(self.publisher.key_expr().as_str(), e))
    }
}
