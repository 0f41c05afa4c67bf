//! A commander's seat is free when its trajectory was stopped and when the commander has gone.

use crate::arm::eventually;
use crate::faults::{bench, moving, running};
use vela_embodiment::{Embodiment, Error, Result};
use vela_robots::loopback_pair;
use vela_robots::ros2::keys::{self, Attachment, EndpointKind, Entity, Topic};
use vela_robots::ros2::messages::{JointTrajectory, Time, TrajectoryPoint, encode};
use vela_robots::ros2::{DOMAIN, Node, TRAJECTORY};
use zenoh::liveliness::LivelinessToken;
use zenoh::{Session, Wait};

fn link(error: zenoh::Error) -> Error {
    Error::Link(error.to_string())
}

/// A node with one publisher, as `rmw_zenoh` shows it: its token, and the identity in its messages.
struct Commander {
    session: Session,
    topic: Topic,
    gid: [u8; 16],
    _token: LivelinessToken,
}

impl Commander {
    fn new(session: &Session, name: &str, number: u32) -> Result<Self> {
        let topic = Topic::new(TRAJECTORY, &keys::JOINT_TRAJECTORY);
        let node = Entity::node(DOMAIN, &session.zid().to_string(), name);
        let token = node.endpoint_token(number, EndpointKind::Publisher, &topic);
        let gid = keys::gid_of(&token);
        let token = session.liveliness().declare_token(token).wait().map_err(link)?;
        Ok(Self { session: session.clone(), topic, gid, _token: token })
    }

    /// Sends one joint somewhere in 60 s, rad.
    fn say(&self, joint: &str, to: f64) -> Result<()> {
        let trajectory = JointTrajectory {
            joint_names: vec![joint.into()],
            points: vec![TrajectoryPoint {
                positions: vec![to],
                time_from_start: Time { sec: 60, nanosec: 0 },
                ..TrajectoryPoint::default()
            }],
            ..JointTrajectory::default()
        };
        let attachment = Attachment { sequence: 1, stamp: vela_embodiment::Stamp(1), gid: self.gid };
        let put = self.session.put(self.topic.key(DOMAIN), encode(&trajectory)?);
        put.attachment(attachment.encode().as_slice()).wait().map_err(link)
    }
}

#[test]
fn a_seat_is_free_when_its_commander_has_gone_and_when_the_arm_was_stopped() -> Result<()> {
    let (robot, others) = loopback_pair()?;
    let run = bench(moving(0.0)?.0, 1e9)?;
    let node = Node::start(&robot, &Embodiment::so101()?, &run.handle)?;
    assert!(eventually(|| running(&run.handle)));
    let first = Commander::new(&others, "first", 1)?;
    let second = Commander::new(&others, "second", 2)?;
    let at = |k: usize| run.handle.joints().map_or(0.0, |reading| reading.positions[k]);
    let goes = |who: &Commander, joint: &str, k: usize| {
        let from = at(k);
        eventually(|| {
            let sent = who.say(joint, 1.0).is_ok();
            std::thread::sleep(std::time::Duration::from_millis(100));
            sent && at(k) > from + 0.002
        })
    };
    assert!(goes(&first, "shoulder_pan", 0), "{:?}", node.refusals());
    // Both are there: one is refused.
    let refused = node.refusals().0;
    second.say("wrist_roll", 1.0)?;
    assert!(eventually(|| node.refusals().0 == refused + 1), "{:?}", node.refusals());
    assert!(node.refusals().1.is_some_and(|why| why.contains("another node commands the arm")));
    assert_eq!(at(4), 0.0);
    // The first one goes: what it sent plays on until the second commands, most of a minute before its end.
    drop(first);
    let from = at(0);
    assert!(eventually(|| at(0) > from + 0.002));
    assert!(goes(&second, "wrist_roll", 4), "{:?}", node.refusals());
    // The arm is stopped and released: a third may command at once, and nothing of before plays again.
    let third = Commander::new(&others, "third", 3)?;
    let refused = node.refusals().0;
    third.say("wrist_flex", 1.0)?;
    assert!(eventually(|| node.refusals().0 == refused + 1), "{:?}", node.refusals());
    let stop = run.handle.emergency_stop();
    stop.press("smoke");
    assert!(eventually(|| !running(&run.handle)));
    second.say("wrist_roll", 1.0)?;
    assert!(eventually(|| node.refusals().1.is_some_and(|why| why.contains("emergency stop: smoke"))));
    stop.release();
    assert!(eventually(|| running(&run.handle)));
    let stood = at(4);
    assert!(goes(&third, "wrist_flex", 3), "{:?}", node.refusals());
    assert!((at(4) - stood).abs() < 1e-3, "{} {stood}", at(4));
    second.say("wrist_roll", 1.0)?;
    assert!(eventually(|| node.refusals().1.is_some_and(|why| why.contains("another node commands"))));
    drop(node);
    run.within_limits()?;
    Ok(())
}
