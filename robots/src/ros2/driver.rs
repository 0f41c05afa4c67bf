//! An arm that speaks ROS 2 over zenoh, driven: joint states in; trajectories, forward commands or a gripper's goals out.
//!
//! The arm is known by its topics; stamps are given here, on arrival, less what a message was late. Every target that is
//! sent has passed the gate like that of any other arm.

use super::calendar::Calendar;
use super::delay::Arrivals;
use super::gripper::{GripperAction, GripperReport, GripperWay};
use super::keys::{self, Distribution, EndpointKind, MessageType, Topic};
use super::messages::{
    self, Float64MultiArray, Header, JointState, JointTrajectory, Layout, Time, TrajectoryPoint,
};
use super::node::{DRIVER, Declaring};
use super::rivals::require_alone;
use super::{DOMAIN, EMERGENCY_STOP, Outlet, TRAJECTORY};
use crate::link::failed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Error, JointReading, JointSide, MonotonicClock, Result,
    Stamp,
};
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::Subscriber;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// What a controller takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// `trajectory_msgs/msg/JointTrajectory`: a joint trajectory controller.
    Trajectory,
    /// `std_msgs/msg/Float64MultiArray`: a forward command controller.
    Forward,
}

impl CommandKind {
    fn message(self) -> &'static MessageType {
        match self {
            Self::Trajectory => &keys::JOINT_TRAJECTORY,
            Self::Forward => &keys::FLOAT64_MULTI_ARRAY,
        }
    }
}

/// One controller of an arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// What it takes.
    pub kind: CommandKind,
    /// Where.
    pub topic: String,
    /// Our names of its joints in its order; empty: ours.
    #[serde(default)]
    pub joints: Vec<String>,
}

/// The topics of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RosConfig {
    /// The ROS domain.
    pub domain: u32,
    /// The arm's distribution: `humble`, `jazzy`, `kilted` or `rolling`.
    pub distribution: Distribution,
    /// `sensor_msgs/msg/JointState` from the arm.
    pub joint_states: String,
    /// Its controller: of all joints, or of all but the gripper's if that has its own.
    pub command: Command,
    /// The gripper's own controller, if it has one.
    pub gripper: Option<Command>,
    /// Or the gripper's action.
    pub gripper_action: Option<GripperAction>,
    /// The arm's own names of our joints, where they differ.
    pub joint_names: BTreeMap<String, String>,
    /// `std_msgs/msg/Bool`: true presses the emergency stop.
    pub emergency_stop: String,
    /// Publish `/robot_description` and `/tf` for it: for an arm without a robot state publisher.
    pub describe: bool,
}

impl Default for RosConfig {
    fn default() -> Self {
        Self {
            domain: DOMAIN,
            distribution: Distribution::default(),
            joint_states: "/joint_states".into(),
            command: Command { kind: CommandKind::Trajectory, topic: TRAJECTORY.into(), joints: Vec::new() },
            gripper: None,
            gripper_action: None,
            joint_names: BTreeMap::new(),
            emergency_stop: EMERGENCY_STOP.into(),
            describe: false,
        }
    }
}

impl RosConfig {
    /// The arm's own names of all joints, in our order.
    pub(super) fn names(&self, embodiment: &Embodiment) -> Result<Vec<String>> {
        for joint in self.joint_names.keys() {
            embodiment.joint_index(joint)?;
        }
        let own = |joint: &&str| self.joint_names.get(*joint).cloned().unwrap_or((*joint).to_owned());
        Ok(embodiment.joint_names().iter().map(own).collect())
    }

    /// Its controllers with the places of their joints: every joint has exactly one, but a gripper with an action.
    ///
    /// # Errors
    /// A joint is unknown, missing, or commanded twice; the gripper has two controllers, or one and the robot no gripper.
    pub fn controllers(&self, embodiment: &Embodiment) -> Result<Vec<(&Command, Vec<usize>)>> {
        let alone = self.gripper_place(embodiment)?;
        let rest: Vec<usize> = (0..embodiment.joints.len()).filter(|k| Some(*k) != alone).collect();
        let mut controllers =
            vec![(&self.command, ordered("ros2.command", &self.command, rest, embodiment)?)];
        if let (Some(command), Some(place)) = (&self.gripper, alone) {
            controllers.push((command, ordered("ros2.gripper", command, vec![place], embodiment)?));
        }
        Ok(controllers)
    }

    /// The place of the gripper's joint, if the gripper has a controller or an action of its own.
    fn gripper_place(&self, embodiment: &Embodiment) -> Result<Option<usize>> {
        let refuse = |what: &str, why: String| Err(Error::Parse { what: what.into(), why });
        let what = match (&self.gripper, &self.gripper_action) {
            (None, None) => return Ok(None),
            (Some(_), None) => "ros2.gripper",
            (None, Some(action)) => {
                action.check()?;
                "ros2.gripper_action"
            }
            (Some(_), Some(_)) => {
                return refuse("ros2", "expected [ros2.gripper] or [ros2.gripper_action], got both".into());
            }
        };
        match &embodiment.gripper {
            Some(gripper) => Ok(Some(embodiment.joint_index(&gripper.joint)?)),
            None => refuse(what, format!("the robot '{}' has no gripper", embodiment.name)),
        }
    }
}

/// The joints of a controller in its order; they must be those at `places`.
fn ordered(what: &str, command: &Command, places: Vec<usize>, embodiment: &Embodiment) -> Result<Vec<usize>> {
    if command.joints.is_empty() {
        return Ok(places);
    }
    let own: Vec<usize> =
        command.joints.iter().map(|joint| embodiment.joint_index(joint)).collect::<Result<_>>()?;
    let mut sorted = own.clone();
    sorted.sort_unstable();
    if sorted != places {
        let names: Vec<&str> = places.iter().map(|place| embodiment.joints[*place].name.as_str()).collect();
        return Err(Error::Shape {
            what: format!("{what}.joints"),
            expected: format!("each of {} once", names.join(", ")),
            got: command.joints.join(", "),
        });
    }
    Ok(own)
}

/// What came from the arm.
type Heard = Option<std::result::Result<JointReading, String>>;

/// One controller that we speak to.
struct Way {
    kind: CommandKind,
    /// Places of its joints in ours, in its order.
    places: Vec<usize>,
    /// Its own names of them.
    names: Vec<String>,
    outlet: Outlet,
}

/// The joints of an arm that speaks ROS 2.
pub struct RosArm {
    embodiment: Embodiment,
    heard: Arc<Mutex<Heard>>,
    /// The newest of it that the control loop has seen: it never waits for whoever is hearing the next.
    last: Heard,
    ways: Vec<Way>,
    gripper: Option<GripperWay>,
    clock: Arc<MonotonicClock>,
    arrivals: Arrivals,
    _inlet: Subscriber<()>,
    _tokens: Vec<LivelinessToken>,
}

impl RosArm {
    /// Listens to the arm and waits for its first joints and its gripper's controller, at most `wait_secs`.
    ///
    /// # Errors
    /// Another driver of vela's has the arm; no joints came, or not ours; nobody serves the gripper's action; a configured
    /// joint is unknown; the session is closed.
    pub fn connect(
        session: &Session,
        embodiment: &Embodiment,
        config: &RosConfig,
        wait_secs: f64,
    ) -> Result<Self> {
        let names = config.names(embodiment)?;
        let controllers = config.controllers(embodiment)?;
        let name = format!("{DRIVER}{}", embodiment.name);
        let clock = Arc::new(MonotonicClock::new());
        let calendar = Calendar::beside(&*clock);
        let mut declaring = Declaring::node(session, config.domain, config.distribution, &name)?;
        let states = Topic::new(&config.joint_states, &keys::JOINT_STATE);
        declaring.endpoint(EndpointKind::Subscription, &states)?;
        // Whoever drives the arm listens to it: [`super::listen_for_stop`].
        let stop = Topic::new(&config.emergency_stop, &keys::BOOL);
        declaring.endpoint(EndpointKind::Subscription, &stop)?;
        let mut ways = Vec::new();
        for (command, places) in controllers {
            ways.push(Way {
                kind: command.kind,
                names: places.iter().map(|place| names[*place].clone()).collect(),
                places,
                outlet: declaring.outlet(&Topic::new(&command.topic, command.kind.message()), calendar)?,
            });
        }
        let topics: Vec<&str> = [Some(&config.command), config.gripper.as_ref()]
            .into_iter()
            .flatten()
            .map(|c| c.topic.as_str())
            .collect();
        require_alone(session, config.domain, &topics)?;
        let gripper = match (&config.gripper_action, config.gripper_place(embodiment)?) {
            (Some(action), Some(place)) => {
                Some(GripperWay::open(&mut declaring, action, &embodiment.joints[place], place, &clock)?)
            }
            _ => None,
        };
        let (heard, arrivals) = (Arc::new(Mutex::new(None)), Arrivals::default());
        let key = keys::any_type(config.domain, &config.joint_states);
        let inlet = session
            .declare_subscriber(key.as_str())
            .callback({
                let (heard, clock, arrivals) = (heard.clone(), clock.clone(), arrivals.clone());
                move |sample: Sample| {
                    let Some(stamp) = arrivals.on_time(&sample, clock.now()).transpose() else { return };
                    let reading = stamp
                        .and_then(|stamp| {
                            let state = messages::decode::<JointState>(&sample.payload().to_bytes())?;
                            reading_of(&state, &names, stamp)
                        })
                        .map_err(|error| error.to_string());
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    // The old one is given back to the memory after the lock.
                    let _old = heard.replace(reading);
                    drop(heard);
                }
            })
            .wait()
            .map_err(|e| failed(&key, e))?;
        let embodiment = embodiment.clone();
        let tokens = declaring.done();
        let mut arm = Self {
            embodiment,
            heard,
            last: None,
            ways,
            gripper,
            clock,
            arrivals,
            _inlet: inlet,
            _tokens: tokens,
        };
        let deadline = arm.clock.now().plus_secs(wait_secs);
        loop {
            match arm.joints() {
                Ok(reading) => {
                    if let Some(gripper) = &mut arm.gripper {
                        gripper.stands_at(reading.positions[gripper.place]);
                    }
                    return Ok(arm);
                }
                Err(error) if arm.clock.now() >= deadline => {
                    return Err(Error::Link(format!("within {wait_secs:.1} s: {error}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl RosArm {
    /// How the gripper's goals went, if it has an action.
    pub fn gripper_report(&self) -> Option<GripperReport> {
        self.gripper.as_ref().map(GripperWay::report)
    }

    /// How many joint states were dropped because they came again or after a newer one.
    pub fn repeats(&self) -> u64 {
        self.arrivals.repeats()
    }
}

impl JointSide for RosArm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn joints(&mut self) -> Result<JointReading> {
        if let Ok(heard) = self.heard.try_lock() {
            self.last.clone_from(&heard);
        }
        match &self.last {
            // An arm whose gripper cannot be commanded holds.
            Some(Ok(reading)) => match self.gripper.as_mut().and_then(GripperWay::trouble) {
                Some(why) => Err(Error::Robot(format!("the arm's gripper: {why}"))),
                None => Ok(reading.clone()),
            },
            Some(Err(why)) => Err(Error::Robot(format!("the arm's joint states: {why}"))),
            None => Err(Error::Robot("no joint states came from the arm".into())),
        }
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let held = action.held();
        let joint_targets = action.into_inner().joint_targets;
        let stamp = self.clock.now();
        if let Some(gripper) = &mut self.gripper {
            gripper.follow(joint_targets[gripper.place], held, stamp);
        }
        for way in &mut self.ways {
            let positions: Vec<f64> = way.places.iter().map(|place| joint_targets[*place]).collect();
            match way.kind {
                CommandKind::Trajectory => {
                    let point = TrajectoryPoint {
                        positions,
                        time_from_start: Time::from(Stamp::from_secs(self.embodiment.period_secs())),
                        ..TrajectoryPoint::default()
                    };
                    // A stamp of zero: begin now.
                    let (header, joint_names) = (Header::default(), way.names.clone());
                    let points = vec![point];
                    way.outlet.put(stamp, |_| JointTrajectory { header, joint_names, points })?;
                }
                CommandKind::Forward => {
                    let numbers = Float64MultiArray { layout: Layout::default(), data: positions };
                    way.outlet.put(stamp, |_| numbers)?;
                }
            }
        }
        Ok(Applied { joint_targets, stamp })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// Our joints out of a message that may hold others too, in any order.
pub(super) fn reading_of(state: &JointState, names: &[String], stamp: Stamp) -> Result<JointReading> {
    let mut reading = JointReading { stamp, ..JointReading::default() };
    for name in names {
        let place = state.name.iter().position(|known| known == name);
        let place = place.ok_or_else(|| Error::Unknown {
            kind: "joint",
            name: name.clone(),
            known: state.name.join(", "),
        })?;
        match state.position.get(place) {
            Some(position) if position.is_finite() => reading.positions.push(*position),
            other => return Err(Error::NotFinite(format!("position of joint '{name}' ({other:?})"))),
        }
        if let Some(effort) = state.effort.get(place) {
            reading.efforts.push(*effort);
        }
    }
    // Efforts of some joints only are no statement about the arm.
    if reading.efforts.len() != names.len() {
        reading.efforts.clear();
    }
    Ok(reading)
}
