//! A gripper behind `control_msgs/action/GripperCommand`. The controller here is written down from what ROS 2's does: it
//! answers three services, publishes feedback, and a new goal replaces the one before.

use crate::arm::{FakeArm, FakeCameras, FakePolicy, eventually};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    Action, ActionChunk, Embodiment, Error, GateConfig, InferOptions, JointSide, Observation, Policy,
    PolicySpec, Result, SafetyGate,
};
use vela_robots::ros2::actions::{
    CancelGoalResponse, Feedback, GetResultRequest, GetResultResponse, GoalId, GoalInfo, GoalStatus,
    GripperState, SendGoalRequest, SendGoalResponse,
};
use vela_robots::ros2::driver::{RosArm, RosConfig};
use vela_robots::ros2::gripper::GripperAction;
use vela_robots::ros2::keys::{self, Attachment, EndpointKind, Entity, MessageType, Topic};
use vela_robots::ros2::messages::{JointState, Time, decode, encode};
use vela_robots::{ControlOptions, Controller, State, loopback_pair};
use zenoh::liveliness::LivelinessToken;
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait};

const ACTION: &str = "/gripper_controller/gripper_cmd";
const GRIPPER: usize = 5;

fn link(error: zenoh::Error) -> Error {
    Error::Link(error.to_string())
}

#[derive(Default)]
struct Seen {
    goals: Vec<SendGoalRequest>,
    /// The goal on its way, and whoever waits for its result.
    active: Option<GoalId>,
    waiting: BTreeMap<GoalId, Query>,
    cancels: Vec<GoalId>,
    refuses: bool,
    /// Requests whose attachment was not a client's.
    odd: usize,
}

/// A gripper's controller.
struct Fake {
    session: Session,
    seen: Arc<Mutex<Seen>>,
    _services: Vec<Queryable<()>>,
    _token: LivelinessToken,
}

fn topic(part: &str, kind: &MessageType) -> Topic {
    Topic::new(&format!("{ACTION}/_action/{part}"), kind)
}

fn reply(query: &Query, answer: &impl serde::Serialize) {
    let bytes = encode(answer).unwrap_or_default();
    let attachment = query.attachment().map(|bytes| bytes.to_bytes().into_owned()).unwrap_or_default();
    let _ = query.reply(query.key_expr().clone(), bytes).attachment(attachment).wait();
}

fn end(seen: &mut Seen, goal: GoalId, status: i8, state: GripperState) {
    if let Some(query) = seen.waiting.remove(&goal) {
        reply(&query, &GetResultResponse { status, state });
    }
    seen.active = seen.active.filter(|active| *active != goal);
}

const SOMEWHERE: GripperState =
    GripperState { position: 0.0, effort: 0.0, stalled: false, reached_goal: false };

impl Fake {
    fn start(session: &Session) -> Result<Self> {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let services = vec![
            serve(session, &topic("send_goal", &keys::GRIPPER_SEND_GOAL), &seen, |seen, query, goal| {
                let goal: SendGoalRequest = goal;
                seen.goals.push(goal);
                let (accepted, stamp) = (!seen.refuses, Time { sec: 1, nanosec: 0 });
                if accepted && let Some(before) = seen.active.replace(goal.goal_id) {
                    end(seen, before, 5, SOMEWHERE);
                    seen.active = Some(goal.goal_id);
                }
                reply(&query, &SendGoalResponse { accepted, stamp });
            })?,
            serve(session, &topic("get_result", &keys::GRIPPER_GET_RESULT), &seen, |seen, query, asked| {
                let GetResultRequest { goal_id } = asked;
                seen.waiting.insert(goal_id, query);
                if seen.active != Some(goal_id) {
                    end(seen, goal_id, 5, SOMEWHERE);
                }
            })?,
            serve(
                session,
                &topic("cancel_goal", &keys::CANCEL_GOAL),
                &seen,
                |seen, query, goal: GoalInfo| {
                    seen.cancels.push(goal.goal_id);
                    reply(&query, &CancelGoalResponse { return_code: 0, goals_canceling: vec![goal] });
                    end(seen, goal.goal_id, 5, SOMEWHERE);
                },
            )?,
        ];
        let node = Entity::node(0, &session.zid().to_string(), "gripper_controller");
        let token =
            node.endpoint_token(1, EndpointKind::Server, &topic("send_goal", &keys::GRIPPER_SEND_GOAL));
        let token = session.liveliness().declare_token(token).wait().map_err(link)?;
        Ok(Self { session: session.clone(), seen, _services: services, _token: token })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how the active goal goes.
    fn tell(&self, state: GripperState) -> Result<()> {
        let Some(goal_id) = self.seen().active else { return Ok(()) };
        let key = topic("feedback", &keys::GRIPPER_FEEDBACK).key(0);
        self.session.put(key, encode(&Feedback { goal_id, state })?).wait().map_err(link)
    }

    /// Ends the active goal.
    fn end(&self, status: i8, state: GripperState) {
        let mut seen = self.seen();
        if let Some(goal) = seen.active {
            end(&mut seen, goal, status, state);
        }
    }
}

fn serve<Q: serde::de::DeserializeOwned>(
    session: &Session,
    service: &Topic,
    seen: &Arc<Mutex<Seen>>,
    act: impl Fn(&mut Seen, Query, Q) + Send + Sync + 'static,
) -> Result<Queryable<()>> {
    let seen = seen.clone();
    let queryable = session.declare_queryable(service.key(0)).complete(true).callback(move |query: Query| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let beside = query.attachment().map(|bytes| Attachment::decode(&bytes.to_bytes()));
        seen.odd += usize::from(!beside.is_some_and(|beside| beside.is_ok_and(|beside| beside.sequence > 0)));
        let asked = query.payload().map(|bytes| decode::<Q>(&bytes.to_bytes()));
        if let Some(Ok(asked)) = asked {
            act(&mut seen, query, asked);
        }
    });
    queryable.wait().map_err(link)
}

/// Says again and again that all joints are at 0.2.
pub struct Still {
    speaking: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Still {
    pub fn start(session: &Session, robot: &Embodiment) -> Result<Self> {
        let name = robot.joint_names().iter().map(ToString::to_string).collect();
        let state = encode(&JointState { name, position: vec![0.2; 6], ..JointState::default() })?;
        let states = Topic::new("/joint_states", &keys::JOINT_STATE).key(0);
        let said = session.declare_publisher(states).wait().map_err(link)?;
        let speaking = Arc::new(AtomicBool::new(true));
        let thread = std::thread::spawn({
            let speaking = speaking.clone();
            move || {
                while speaking.load(Ordering::SeqCst) {
                    let _ = said.put(state.clone()).wait();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Ok(Self { speaking, thread: Some(thread) })
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.speaking.store(false, Ordering::SeqCst);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn config() -> RosConfig {
    let action = GripperAction { name: ACTION.into(), max_effort: 4.0, min_change: Some(0.05), max_hz: 8.0 };
    RosConfig { gripper_action: Some(action), ..RosConfig::default() }
}

/// The arm, its gate, and a tick at a time in real time.
struct Ticks {
    arm: RosArm,
    gate: SafetyGate,
}

impl Ticks {
    fn new(near: &Session, robot: &Embodiment) -> Result<Self> {
        let arm = RosArm::connect(near, robot, &config(), 20.0)?;
        Ok(Self { arm, gate: SafetyGate::new(robot, GateConfig::default(), &[0.2; 6])? })
    }

    /// One tick toward this gripper's target; `None`: nobody wants anything.
    fn tick(&mut self, gripper: Option<f64>) -> Result<f64> {
        std::thread::sleep(Duration::from_secs_f64(self.arm.embodiment().period_secs()));
        let now = self.arm.clock().now();
        let mut joint_targets = vec![0.2; 6];
        joint_targets[GRIPPER] = gripper.unwrap_or_default();
        let wanted = gripper.map(|_| Action { joint_targets });
        let verdict = self.gate.check(wanted.as_ref().map(|action| (action, now)), now);
        Ok(self.arm.apply(verdict.action)?.joint_targets[GRIPPER])
    }

    fn status(&self) -> Option<GoalStatus> {
        self.arm.gripper_report().map(|report| report.status)
    }
}

#[test]
fn targets_that_passed_the_gate_become_goals_and_their_ends_are_told() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let fake = Fake::start(&far)?;
    let _still = Still::start(&far, &robot)?;
    let mut ticks = Ticks::new(&near, &robot)?;
    // Where it stands anyhow: no goal.
    for _ in 0..5 {
        ticks.tick(Some(0.2))?;
    }
    assert!(fake.seen().goals.is_empty());
    // Far beyond the joint's range: the gate decides where that is.
    let most = robot.joints[GRIPPER].limits.upper;
    let from = ticks.arm.clock().now();
    assert!(eventually(|| ticks.tick(Some(9.0)).is_ok_and(|sent| (sent - most).abs() < 1e-9)));
    assert!(eventually(|| {
        let _ = ticks.tick(Some(9.0));
        fake.seen().goals.last().is_some_and(|goal| (goal.position - most).abs() <= 0.05)
    }));
    let secs = ticks.arm.clock().now().secs_since(from);
    let goals = fake.seen().goals.clone();
    assert!(goals.len() > 1 && goals.len() as f64 <= secs * 8.0 + 1.0, "{} in {secs} s", goals.len());
    for pair in goals.windows(2) {
        assert!(pair[1].position > pair[0].position + 0.05 && pair[1].goal_id != pair[0].goal_id);
    }
    assert!(goals.iter().all(|goal| goal.max_effort == 4.0 && goal.position <= most));
    // On its way, and then it holds something.
    let state = GripperState { position: 1.1, effort: 3.5, stalled: false, reached_goal: false };
    assert!(eventually(|| fake.tell(state).is_ok() && ticks.status() == Some(GoalStatus::Executing)));
    let held = GripperState { stalled: true, effort: 4.0, ..state };
    assert!(eventually(|| {
        fake.end(6, held);
        ticks.status() == Some(GoalStatus::Aborted)
    }));
    let report = ticks.arm.gripper_report();
    assert!(report.is_some_and(|report| report.state == Some(held) && report.goals == goals.len() as u64));
    // A gripper that stalled is no trouble, and a hold has nothing to cancel.
    assert!(ticks.arm.joints().is_ok());
    for _ in 0..5 {
        ticks.tick(None)?;
    }
    let seen = fake.seen();
    assert!(seen.cancels.is_empty() && seen.odd == 0 && seen.waiting.is_empty());
    Ok(())
}

#[test]
fn a_hold_cancels_the_goal_and_what_follows_sends_it_again() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let fake = Fake::start(&far)?;
    let _still = Still::start(&far, &robot)?;
    let mut ticks = Ticks::new(&near, &robot)?;
    assert!(eventually(|| ticks.tick(Some(1.0)).is_ok() && ticks.status() == Some(GoalStatus::Accepted)));
    // One held tick is a hiccup.
    ticks.tick(None)?;
    ticks.tick(Some(1.0))?;
    assert!(fake.seen().cancels.is_empty());
    assert!(eventually(|| ticks.tick(None).is_ok() && ticks.status() == Some(GoalStatus::Canceled)));
    let goals = fake.seen().goals.clone();
    assert_eq!(fake.seen().cancels, [goals[goals.len() - 1].goal_id]);
    assert!(eventually(|| ticks.arm.gripper_report().is_some_and(|report| report.canceled == 1)));
    for _ in 0..10 {
        ticks.tick(None)?;
    }
    assert_eq!(fake.seen().goals.len(), goals.len());
    assert_eq!(fake.seen().cancels.len(), 1);
    assert!(eventually(|| ticks.tick(Some(1.0)).is_ok() && fake.seen().goals.len() > goals.len()));
    // And an arm that is let go of leaves no goal behind.
    assert!(eventually(|| ticks.status() == Some(GoalStatus::Accepted)));
    drop(ticks);
    assert!(eventually(|| fake.seen().cancels.len() == 2));
    Ok(())
}

/// Opens the gripper.
struct Opens(FakePolicy);

impl Policy for Opens {
    fn spec(&self) -> &PolicySpec {
        self.0.spec()
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let mut chunk = self.0.infer(history, options)?;
        chunk.actions.iter_mut().zip(1..).for_each(|(row, k)| row[GRIPPER] = 0.02 * f64::from(k));
        Ok(chunk)
    }
}

#[test]
fn a_refused_goal_is_one_clear_error_and_the_arm_holds() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let fake = Fake::start(&far)?;
    fake.seen().refuses = true;
    let _still = Still::start(&far, &robot)?;
    let arm = RosArm::connect(&near, &robot, &config(), 20.0)?;
    let options = ControlOptions {
        max_frame_age_secs: f64::INFINITY,
        max_joint_age_secs: 5.0,
        stop_after_hold_secs: 0.5,
        start_within_secs: 20.0,
        ..ControlOptions::default()
    };
    let mut cameras = FakeCameras::of(&FakeArm::real_time()?);
    cameras.clock = arm.clock();
    let (controller, _events) = Controller::start(arm, cameras, Opens(FakePolicy::new()?), "open", &options)?;
    let ended = controller.wait();
    let State::Stopped { reason } = ended.report.state else { return Err(Error::Robot("it runs".into())) };
    let why = format!("the arm's gripper: '{ACTION}' refused the goal");
    assert!(reason.contains(&why) && reason.contains("max_effort 4"), "{reason}");
    assert_eq!(fake.seen().goals.len(), 1, "it is not asked over and over");
    Ok(())
}

#[test]
fn who_serves_no_gripper_or_another_one_is_told_and_may_come_back() -> Result<()> {
    let (far, near) = loopback_pair()?;
    let robot = Embodiment::so101()?;
    let _still = Still::start(&far, &robot)?;
    let said =
        || RosArm::connect(&near, &robot, &config(), 0.5).err().map(|e| e.to_string()).unwrap_or_default();
    let nobody = said();
    assert!(nobody.contains(&format!("no controller serves '{ACTION}' as control_msgs::action")), "{nobody}");
    let node = Entity::node(0, &far.zid().to_string(), "other");
    let other = node.endpoint_token(3, EndpointKind::Server, &topic("send_goal", &keys::CANCEL_GOAL));
    let other = far.liveliness().declare_token(other).wait().map_err(link)?;
    let wrong = said();
    assert!(wrong.contains("but one of action_msgs::srv::dds_::CancelGoal_/RIHS01_573d"), "{wrong}");
    other.undeclare().wait().map_err(link)?;

    let fake = Fake::start(&far)?;
    let mut ticks = Ticks::new(&near, &robot)?;
    assert!(eventually(|| ticks.tick(Some(0.6)).is_ok_and(|sent| sent == 0.6)
        && ticks.status() == Some(GoalStatus::Accepted)));
    // `vela doctor` names it too.
    let seen = vela_robots::survey::survey(&near, 0, 0.1)?;
    assert_eq!(seen.actions, [format!("{ACTION} (control_msgs/action/GripperCommand)")]);
    drop(fake);
    assert!(eventually(|| ticks.arm.joints().is_err_and(|e| e.to_string().contains("no controller serves"))));
    // The controller starts anew and is told the target anew.
    let fake = Fake::start(&far)?;
    assert!(eventually(|| ticks.arm.joints().is_ok()));
    assert!(eventually(|| ticks.tick(Some(0.6)).is_ok() && !fake.seen().goals.is_empty()));
    assert!((fake.seen().goals[0].position - 0.6).abs() < 1e-9);
    Ok(())
}
