//! A gripper behind `control_msgs/action/GripperCommand`, as `ros2_control`'s gripper controllers have it: every target
//! has passed the gate and becomes a goal, the next goal replaces the one before, and a hold cancels it.

use super::actions::{
    CancelGoalResponse, Feedback, GetResultRequest, GetResultResponse, GoalId, GoalInfo, GoalStatus,
    GripperState, SendGoalRequest, SendGoalResponse,
};
use super::calendar::Calendar;
use super::keys::{self, EndpointKind, Topic};
use super::messages::{self, Time};
use super::node::Declaring;
use super::service::ServiceClient;
use crate::link::failed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{Clock, Error, Joint, MonotonicClock, Result, Stamp};
use zenoh::Wait;
use zenoh::pubsub::Subscriber;
use zenoh::sample::{Sample, SampleKind};

/// A controller says within this time whether it takes a goal.
const PATIENCE: Duration = Duration::from_secs(2);
/// And within this one how it ended.
const LONGEST_GOAL: Duration = Duration::from_secs(3600);
/// A single held tick is a hiccup of the machine; a goal is cancelled at this one in a row.
const HELD_TICKS: u32 = 2;

/// The gripper's action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GripperAction {
    /// Its name, for example `/gripper_controller/gripper_cmd`.
    pub name: String,
    /// How hard the gripper may push, N m or N.
    pub max_effort: f64,
    /// A goal is sent when the target is further than this from the last one, rad or m. By default a hundredth of the
    /// joint's range.
    pub min_change: Option<f64>,
    /// And at most so many a second.
    #[serde(default = "max_hz")]
    pub max_hz: f64,
}

fn max_hz() -> f64 {
    5.0
}

impl GripperAction {
    /// Refuses figures that make no goal.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |field: &str, expected: &str, got: &dyn std::fmt::Display| {
            let (expected, got) = (expected.to_owned(), got.to_string());
            Err(Error::Shape { what: format!("ros2.gripper_action.{field}"), expected, got })
        };
        let positive = |x: f64| x > 0.0 && x.is_finite();
        if !self.name.starts_with('/') || self.name.ends_with('/') {
            return refuse(
                "name",
                "an action's full name, such as /gripper_controller/gripper_cmd",
                &self.name,
            );
        }
        if !(self.max_effort >= 0.0 && self.max_effort.is_finite()) {
            return refuse("max_effort", "0 or more N m or N", &self.max_effort);
        }
        match self.min_change {
            Some(change) if !positive(change) => refuse("min_change", "more than 0 rad or m", &change),
            _ if !positive(self.max_hz) => refuse("max_hz", "more than 0 goals a second", &self.max_hz),
            _ => Ok(()),
        }
    }
}

/// How the gripper's goals went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GripperReport {
    /// The action's name.
    pub action: String,
    /// Goals that were sent.
    pub goals: u64,
    /// Goals that the controller cancelled because the arm held.
    pub canceled: u64,
    /// What became of the newest goal so far.
    pub status: GoalStatus,
    /// The newest that the controller said of the gripper, if it said anything.
    pub state: Option<GripperState>,
}

impl std::fmt::Display for GripperReport {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { action, goals, canceled, status, state } = self;
        write!(f, "gripper {action}: {goals} goals, {canceled} cancelled; the last one is {status}")?;
        match state {
            Some(state) if state.stalled => write!(f, ", stalled at {:.4}", state.position),
            Some(state) => write!(f, ", at {:.4}", state.position),
            None => Ok(()),
        }
    }
}

/// The newest goal.
#[derive(Clone, Copy)]
struct Goal {
    id: GoalId,
    accepted: bool,
    canceled: bool,
}

/// What the threads of zenoh and the control loop share.
struct State {
    /// Types and hashes of whoever serves the action, by token.
    servers: BTreeMap<String, String>,
    /// A refused goal or one without an answer.
    trouble: Option<String>,
    /// Until it has ended.
    goal: Option<Goal>,
    report: GripperReport,
}

/// The action's client.
struct Client {
    config: GripperAction,
    /// Type and hash of the service that takes goals.
    wanted: String,
    send_goal: ServiceClient,
    get_result: ServiceClient,
    cancel_goal: ServiceClient,
    clock: Arc<MonotonicClock>,
    state: Mutex<State>,
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a goal; what is said of it comes later.
    fn send(self: &Arc<Self>, id: GoalId, position: f64, now: Stamp) {
        let goal = SendGoalRequest { goal_id: id, position, max_effort: self.config.max_effort };
        let client = self.clone();
        self.send_goal.call(&goal, now, PATIENCE, move |answer| client.answered(&goal, answer));
    }

    fn answered(self: &Arc<Self>, goal: &SendGoalRequest, answer: Result<SendGoalResponse>) {
        let mut state = self.lock();
        let Some(newest) = state.goal.as_mut().filter(|newest| newest.id == goal.goal_id) else { return };
        let trouble = match answer {
            Ok(SendGoalResponse { accepted: true, .. }) => {
                newest.accepted = true;
                state.report.status = GoalStatus::Accepted;
                drop(state);
                let (client, id) = (self.clone(), goal.goal_id);
                let request = GetResultRequest { goal_id: id };
                let ended = move |answer| client.ended(id, answer);
                return self.get_result.call(&request, self.clock.now(), LONGEST_GOAL, ended);
            }
            Ok(_) => format!(
                "'{}' refused the goal {:.4} with max_effort {}",
                self.config.name, goal.position, goal.max_effort
            ),
            Err(error) => format!("goal {:.4}: {error}", goal.position),
        };
        state.goal = None;
        state.report.status = GoalStatus::Unknown;
        state.trouble = Some(trouble);
    }

    fn ended(&self, id: GoalId, answer: Result<GetResultResponse>) {
        let mut state = self.lock();
        // The result of a goal that was replaced says nothing about the newest.
        if state.goal.is_none_or(|goal| goal.id != id) {
            return;
        }
        state.goal = None;
        match answer {
            Ok(result) => {
                state.report.status = GoalStatus::of(result.status);
                state.report.state = Some(result.state);
            }
            Err(_) => state.report.status = GoalStatus::Unknown,
        }
    }

    fn hear(&self, sample: &Sample) {
        let Ok(feedback) = messages::decode::<Feedback>(&sample.payload().to_bytes()) else { return };
        let mut state = self.lock();
        if state.goal.is_some_and(|goal| goal.id == feedback.goal_id) {
            state.report.status = GoalStatus::Executing;
            state.report.state = Some(feedback.state);
        }
    }

    fn cancel(self: &Arc<Self>, id: GoalId, now: Stamp) {
        let client = self.clone();
        let request = GoalInfo { goal_id: id, stamp: Time::default() };
        self.cancel_goal.call(&request, now, PATIENCE, move |answer: Result<CancelGoalResponse>| {
            // Other codes and no answer: the goal has ended, or the controller goes on to where the gate let it.
            if answer.is_ok_and(|answer| answer.return_code == 0) {
                client.lock().report.canceled += 1;
            }
        });
    }

    /// Somebody came or went who serves the action.
    fn meet(&self, sample: &Sample) {
        let token = sample.key_expr().as_str();
        let kind: Vec<&str> = token.rsplit('/').skip(1).take(2).collect();
        let [hash, dds] = kind.as_slice() else { return };
        let mut state = self.lock();
        match sample.kind() {
            SampleKind::Put => {
                state.servers.insert(token.to_owned(), format!("{dds}/{hash}"));
                // Whoever comes anew is asked anew.
                state.trouble = None;
            }
            SampleKind::Delete => {
                state.servers.remove(token);
            }
        }
    }
}

impl State {
    /// Why the gripper cannot be commanded, if it cannot.
    fn trouble(&self, config: &GripperAction, wanted: &str) -> Option<String> {
        if self.servers.values().any(|kind| kind == wanted) {
            return self.trouble.clone();
        }
        let other = self.servers.values().next();
        let other = other.map_or(String::new(), |kind| format!(", but one of {kind}"));
        Some(format!("no controller serves '{}' as {wanted}{other}", config.name))
    }
}

/// The gripper's end of the control loop.
pub(super) struct GripperWay {
    client: Arc<Client>,
    /// The gripper's joint.
    pub(super) place: usize,
    min_change: f64,
    /// The target of the newest goal; `None`: the gripper was left where it happened to be.
    asked: Option<f64>,
    sent: Option<Stamp>,
    number: u64,
    held_ticks: u32,
    trouble: Option<String>,
    _ears: [Subscriber<()>; 2],
}

impl GripperWay {
    /// Declares the client of the action of the gripper's `joint` at `place`; the controller need not be there yet.
    pub(super) fn open(
        declaring: &mut Declaring,
        config: &GripperAction,
        joint: &Joint,
        place: usize,
        clock: &Arc<MonotonicClock>,
    ) -> Result<Self> {
        let name = |part: &str| format!("{}/_action/{part}", config.name);
        let goals = Topic::new(&name("send_goal"), &keys::GRIPPER_SEND_GOAL);
        let (session, domain) = (declaring.session(), declaring.domain());
        let calendar = Calendar::beside(&**clock);
        let client = Arc::new(Client {
            config: config.clone(),
            wanted: goals.clone().in_distribution(declaring.distribution()).type_and_hash(),
            send_goal: ServiceClient::open(declaring, &goals, calendar)?,
            get_result: ServiceClient::open(
                declaring,
                &Topic::new(&name("get_result"), &keys::GRIPPER_GET_RESULT),
                calendar,
            )?,
            cancel_goal: ServiceClient::open(
                declaring,
                &Topic::new(&name("cancel_goal"), &keys::CANCEL_GOAL),
                calendar,
            )?,
            clock: clock.clone(),
            state: Mutex::new(State {
                servers: BTreeMap::new(),
                trouble: None,
                goal: None,
                report: GripperReport {
                    action: config.name.clone(),
                    goals: 0,
                    canceled: 0,
                    status: GoalStatus::Unknown,
                    state: None,
                },
            }),
        });
        let feedback = Topic::new(&name("feedback"), &keys::GRIPPER_FEEDBACK);
        declaring.endpoint(EndpointKind::Subscription, &feedback)?;
        let key = keys::any_type(domain, &feedback.name);
        let hearing = session.declare_subscriber(key.as_str()).callback({
            let client = client.clone();
            move |sample: Sample| client.hear(&sample)
        });
        let hearing = hearing.wait().map_err(|e| failed(&key, e))?;
        let key = keys::servers(domain, &goals.name);
        let meeting = session.liveliness().declare_subscriber(key.as_str()).history(true).callback({
            let client = client.clone();
            move |sample: Sample| client.meet(&sample)
        });
        let meeting = meeting.wait().map_err(|e| failed(&key, e))?;
        let range = joint.limits.upper - joint.limits.lower;
        Ok(Self {
            client,
            place,
            min_change: config.min_change.unwrap_or(0.01 * range),
            asked: None,
            sent: None,
            number: 0,
            held_ticks: 0,
            trouble: None,
            _ears: [hearing, meeting],
        })
    }

    /// The gripper stands at `position`, rad or m: a goal there changes nothing.
    pub(super) fn stands_at(&mut self, position: f64) {
        self.asked = Some(position);
    }

    /// Why the gripper cannot be commanded, if it cannot: nobody serves the action, a goal was refused, no answer came.
    pub(super) fn trouble(&mut self) -> Option<&str> {
        // The control loop never waits for zenoh's threads.
        if let Ok(state) = self.client.state.try_lock() {
            self.trouble = state.trouble(&self.client.config, &self.client.wanted);
        }
        if self.trouble.is_some() {
            self.asked = None;
        }
        self.trouble.as_deref()
    }

    /// One tick: the gripper is to go to `target` (rad or m), which the gate has passed, or the arm holds.
    pub(super) fn follow(&mut self, target: f64, held: bool, now: Stamp) {
        self.held_ticks = if held { self.held_ticks.saturating_add(1) } else { 0 };
        let Ok(mut state) = self.client.state.try_lock() else { return };
        if held {
            let Some(goal) = state.goal.as_mut() else { return };
            // A goal that is still being answered is cancelled at the tick after.
            if self.held_ticks >= HELD_TICKS && goal.accepted && !goal.canceled {
                goal.canceled = true;
                let id = goal.id;
                drop(state);
                self.client.cancel(id, now);
                self.asked = None;
            }
            return;
        }
        let answering = state.goal.is_some_and(|goal| !goal.accepted);
        let near = self.asked.is_some_and(|asked| (target - asked).abs() <= self.min_change);
        let early = self.sent.is_some_and(|sent| now.secs_since(sent) < 1.0 / self.client.config.max_hz);
        if answering || near || early || state.trouble.is_some() {
            return;
        }
        self.number += 1;
        let id = goal_id(self.client.send_goal.gid(), self.number);
        state.goal = Some(Goal { id, accepted: false, canceled: false });
        state.report.goals += 1;
        drop(state);
        (self.asked, self.sent) = (Some(target), Some(now));
        self.client.send(id, target, now);
    }

    /// How the goals went.
    pub(super) fn report(&self) -> GripperReport {
        self.client.lock().report.clone()
    }
}

impl Drop for GripperWay {
    fn drop(&mut self) {
        let goal = self.client.lock().goal;
        if let Some(goal) = goal.filter(|goal| !goal.canceled) {
            self.client.cancel(goal.id, self.client.clock.now());
        }
    }
}

/// A client's `number`th goal: no two clients have one in common.
fn goal_id(client: [u8; 16], number: u64) -> GoalId {
    let mut id = client;
    for (byte, part) in id.iter_mut().zip(number.to_le_bytes()) {
        *byte ^= part;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_make_no_goal_are_refused_in_words() {
        let good = GripperAction {
            name: "/gripper_controller/gripper_cmd".into(),
            max_effort: 0.0,
            min_change: None,
            max_hz: 5.0,
        };
        assert!(good.check().is_ok());
        let said = |bad: GripperAction| bad.check().err().map(|e| e.to_string()).unwrap_or_default();
        let bad = said(GripperAction { name: "gripper_cmd".into(), ..good.clone() });
        assert!(bad.contains("gripper_action.name: expected an action's full name"), "{bad}");
        assert!(said(GripperAction { max_effort: f64::NAN, ..good.clone() }).contains("got NaN"));
        assert!(
            said(GripperAction { min_change: Some(0.0), ..good.clone() }).contains("more than 0 rad or m")
        );
        assert!(said(GripperAction { max_hz: -1.0, ..good }).contains("more than 0 goals a second"));
    }

    #[test]
    fn no_two_goals_are_the_same() {
        let ids: std::collections::BTreeSet<GoalId> =
            (1..=300).flat_map(|number| [goal_id([7; 16], number), goal_id([8; 16], number)]).collect();
        assert_eq!(ids.len(), 600);
    }
}
