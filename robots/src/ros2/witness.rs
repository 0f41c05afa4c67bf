//! An arm heard by a third: what its joints are and what it is told, by whoever tells it. Nothing is sent to it.

use super::delay::Arrivals;
use super::driver::{CommandKind, RosConfig, reading_of};
use super::keys::{self, Attachment};
use super::messages::{self, Float64MultiArray, JointState, JointTrajectory};
use super::node::DRIVER;
use super::{BY_COMMAND, BY_POLICY, JOINT_COMMANDS, plan_of};
use crate::link::failed;
use crate::resolve::Plan;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vela_embodiment::{Clock, Embodiment, Error, JointReading, Result, Stamp};
use zenoh::pubsub::Subscriber;
use zenoh::sample::{Sample, SampleKind};
use zenoh::{Session, Wait};

/// What an arm says that it was sent goes for this long before what others are heard to ask of it, s.
const OWN_WORD_SECS: f64 = 1.0;
/// Joints older than this are not the present ones, s.
const STALE_SECS: f64 = 0.5;

/// The arm at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Its joints.
    pub reading: JointReading,
    /// Where they are told to be, rad or m, in the embodiment's order.
    pub targets: Vec<f64>,
    /// Whether a person or another program told them, in the place of a policy that has told them before.
    pub intervention: bool,
}

/// What a message does.
type Act = Box<dyn Fn(&[u8], &Sample, Stamp) + Send + Sync>;

/// Listens to an arm for as long as it is there.
pub struct Witness {
    robot: Embodiment,
    heard: Arc<Mutex<Heard>>,
    _ears: Vec<Subscriber<()>>,
}

/// What was told of one joint.
#[derive(Clone)]
struct Told {
    plan: Arc<Plan>,
    by_policy: bool,
}

#[derive(Default)]
struct Heard {
    joints: Option<std::result::Result<JointReading, String>>,
    /// What the arm says it was sent: targets, and whether a command was.
    own: Option<(JointReading, bool)>,
    /// What was asked of each joint last.
    told: Vec<Option<Told>>,
    /// Publishers of vela's drivers: what they ask is what a policy wants.
    drivers: BTreeSet<[u8; 16]>,
    policy_heard: bool,
    refused: Option<String>,
}

impl Heard {
    /// Takes a plan for the joints at `places` from the publisher `who`.
    fn tell(&mut self, places: &[usize], plan: Plan, who: Option<[u8; 16]>) {
        let by_policy = who.is_some_and(|gid| self.drivers.contains(&gid));
        self.policy_heard |= by_policy;
        let told = Told { plan: Arc::new(plan), by_policy };
        for place in places {
            self.told[*place] = Some(told.clone());
        }
    }

    /// Where the joints are told to be at `now`, or whose command is missing.
    fn targets(&self, robot: &Embodiment, now: Stamp) -> std::result::Result<(Vec<f64>, bool), String> {
        if let Some((sent, commanded)) = &self.own
            && now.secs_since(sent.stamp) < OWN_WORD_SECS
        {
            return Ok((sent.positions.clone(), *commanded && self.policy_heard));
        }
        let due = now.plus_secs(robot.period_secs());
        let (mut targets, mut intervention) = (Vec::with_capacity(self.told.len()), false);
        for (k, (told, joint)) in self.told.iter().zip(&robot.joints).enumerate() {
            let Some(Told { plan, by_policy }) = told else {
                let why = self.refused.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                return Err(format!("nobody has commanded joint '{}' yet{why}", joint.name));
            };
            // A controller stays at the end of what it was told.
            let row = plan.at(due);
            let target = row.as_ref().or(plan.targets.last()).and_then(|row| row.get(k));
            targets.push(*target.ok_or_else(|| format!("an empty command of joint '{}'", joint.name))?);
            intervention |= !by_policy && self.policy_heard;
        }
        Ok((targets, intervention))
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    /// Listens to the topics of an arm that speaks ROS 2, or, with the default `config`, of one that `vela robot` or
    /// `vela sim` gives that voice. Stamps are on `clock`, on arrival, of joints less what they were late.
    ///
    /// # Errors
    /// A configured joint is unknown, or the session is closed.
    pub fn listen(
        session: &Session,
        robot: &Embodiment,
        config: &RosConfig,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self> {
        let names = config.names(robot)?;
        let told = vec![None; robot.joints.len()];
        let heard = Arc::new(Mutex::new(Heard { told, ..Heard::default() }));
        let mut ears = Vec::new();
        let mut hear = |topic: &str, act: Act| {
            let key = keys::any_type(config.domain, topic);
            let clock = clock.clone();
            let ear = session.declare_subscriber(key.as_str()).callback(move |sample: Sample| {
                act(&sample.payload().to_bytes(), &sample, clock.now());
            });
            ears.push(ear.wait().map_err(|e| failed(&key, e))?);
            Ok::<(), Error>(())
        };
        hear(&config.joint_states, {
            let (heard, names, arrivals) = (heard.clone(), names.clone(), Arrivals::default());
            Box::new(move |bytes, sample, now| {
                let Some(stamp) = arrivals.on_time(sample, now).transpose() else { return };
                let reading = stamp
                    .and_then(|stamp| reading_of(&messages::decode::<JointState>(bytes)?, &names, stamp));
                lock(&heard).joints = Some(reading.map_err(|error| error.to_string()));
            })
        })?;
        hear(JOINT_COMMANDS, {
            let heard = heard.clone();
            let names: Vec<String> = robot.joint_names().into_iter().map(str::to_owned).collect();
            Box::new(move |bytes, _, now| {
                let sent = messages::decode::<JointState>(bytes).and_then(|state| {
                    let reading = reading_of(&state, &names, now)?;
                    Ok((reading, state.header.frame_id))
                });
                // Another's topic of this name is none of ours.
                let Ok((reading, by)) = sent else { return };
                let mut heard = lock(&heard);
                heard.policy_heard |= by == BY_POLICY;
                heard.own = Some((reading, by == BY_COMMAND));
            })
        })?;
        for (command, places) in config.controllers(robot)? {
            let read = reader(command.kind, places, names.clone(), robot.clone());
            let (heard, topic) = (heard.clone(), command.topic.clone());
            let act = move |bytes: &[u8], sample: &Sample, now: Stamp| {
                let mut heard = lock(&heard);
                // Before the arm has said where it is, nobody can know where it is to go.
                let Some(Ok(reading)) = heard.joints.clone() else { return };
                let who = sample.attachment().and_then(|a| Attachment::decode(&a.to_bytes()).ok());
                match read(bytes, &reading.positions, now) {
                    Ok((places, plan)) => heard.tell(&places, plan, who.map(|attachment| attachment.gid)),
                    Err(error) => heard.refused = Some(format!("{topic}: {error}")),
                }
            };
            hear(&command.topic, Box::new(act))?;
        }
        ears.push(watch_drivers(session, config.domain, &heard)?);
        Ok(Self { robot: robot.clone(), heard, _ears: ears })
    }

    /// The arm at `now`.
    ///
    /// # Errors
    /// In words what is missing: joints that are fresh, or a command of a joint.
    pub fn moment(&self, now: Stamp) -> std::result::Result<Moment, String> {
        let heard = lock(&self.heard);
        let reading = match &heard.joints {
            Some(Ok(reading)) => reading.clone(),
            Some(Err(why)) => return Err(format!("the arm's joint states: {why}")),
            None => return Err("no joint states came from the arm".into()),
        };
        let age = now.secs_since(reading.stamp);
        if age > STALE_SECS {
            return Err(format!("joints: the newest reading is {age:.2} s old"));
        }
        let (targets, intervention) = heard.targets(&self.robot, now)?;
        Ok(Moment { reading, targets, intervention })
    }
}

/// Makes a plan for all joints, and the places of those that it is for, from a command's bytes.
type Read = Box<dyn Fn(&[u8], &[f64], Stamp) -> Result<(Vec<usize>, Plan)> + Send + Sync>;

fn reader(kind: CommandKind, places: Vec<usize>, names: Vec<String>, robot: Embodiment) -> Read {
    match kind {
        CommandKind::Trajectory => Box::new(move |bytes, current, now| {
            let mut trajectory: JointTrajectory = messages::decode(bytes)?;
            for name in &mut trajectory.joint_names {
                if let Some(place) = names.iter().position(|own| own == name) {
                    name.clone_from(&robot.joints[place].name);
                }
            }
            let plan = plan_of(&trajectory, &robot, current, now)?;
            let named = trajectory.joint_names.iter().map(|name| robot.joint_index(name));
            Ok((named.collect::<Result<_>>()?, plan))
        }),
        CommandKind::Forward => Box::new(move |bytes, current, now| {
            let numbers = messages::decode::<Float64MultiArray>(bytes)?.data;
            if numbers.len() != places.len() || numbers.iter().any(|x| !x.is_finite()) {
                return Err(Error::Shape {
                    what: "joint commands".into(),
                    expected: format!("{} numbers", places.len()),
                    got: format!("{numbers:?}"),
                });
            }
            let mut row = current.to_vec();
            for (place, number) in places.iter().zip(numbers) {
                row[*place] = number;
            }
            let period_secs = robot.period_secs();
            let plan = Plan { targets: vec![row], period_secs, observation_stamp: now, command: true };
            Ok((places.clone(), plan))
        }),
    }
}

/// Keeps the publishers of vela's drivers known.
fn watch_drivers(session: &Session, domain: u32, heard: &Arc<Mutex<Heard>>) -> Result<Subscriber<()>> {
    let key = keys::publishers(domain);
    let watcher = session.liveliness().declare_subscriber(key.as_str()).history(true).callback({
        let heard = heard.clone();
        move |sample: Sample| {
            let token = sample.key_expr().as_str();
            let a_driver = token.split('/').nth(8).is_some_and(|node| node.starts_with(DRIVER));
            if a_driver && sample.kind() == SampleKind::Put {
                lock(&heard).drivers.insert(keys::gid_of(token));
            }
        }
    });
    watcher.wait().map_err(|e| failed(&key, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(secs: f64, target: f64) -> Plan {
        let targets = vec![vec![target; 6]];
        Plan { targets, period_secs: 1.0 / 30.0, observation_stamp: Stamp::from_secs(secs), command: true }
    }

    #[test]
    fn whoever_commands_in_the_place_of_a_driver_has_taken_over() -> Result<()> {
        let robot = Embodiment::so101()?;
        let mut heard = Heard { told: vec![None; 6], ..Heard::default() };
        let now = Stamp::from_secs(1.0);
        assert!(heard.targets(&robot, now).is_err_and(|why| why.contains("'shoulder_pan' yet")));
        // Without a policy it is a demonstration, and nobody's place is taken.
        let (person, driver) = (Some([7; 16]), Some([1; 16]));
        heard.tell(&[0, 1, 2, 3, 4, 5], to(1.0, 0.1), person);
        assert_eq!(heard.targets(&robot, now), Ok((vec![0.1; 6], false)));
        heard.drivers.insert([1; 16]);
        heard.tell(&[0, 1, 2, 3, 4, 5], to(1.0, 0.2), driver);
        assert_eq!(heard.targets(&robot, now), Ok((vec![0.2; 6], false)));
        heard.tell(&[5], to(1.0, 0.3), person);
        assert_eq!(heard.targets(&robot, now), Ok((vec![0.2, 0.2, 0.2, 0.2, 0.2, 0.3], true)));
        // What the arm itself says goes before that, for as long as it says it.
        let positions = vec![0.4; 6];
        heard.own = Some((JointReading { positions, stamp: now, ..JointReading::default() }, true));
        assert_eq!(heard.targets(&robot, now), Ok((vec![0.4; 6], true)));
        assert_eq!(heard.targets(&robot, Stamp::from_secs(3.0)).map(|(targets, _)| targets[5]), Ok(0.3));
        Ok(())
    }
}
