//! What others may tell our arm over ROS 2 topics: every command through the gate, one commander at a time.

use super::commanders::Commanders;
use super::keys::{self, Attachment, EndpointKind, Topic};
use super::messages::{self, Float64MultiArray, JointTrajectory, Text};
use super::node::Declaring;
use super::{
    EMERGENCY_STOP, FORWARD, GRIPPER, INSTRUCTION, TRAJECTORY, listen_for_stop, plan_of, setpoint_of,
};
use crate::control::ControlHandle;
use crate::link::failed;
use crate::resolve::Plan;
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{Embodiment, Error, Result, Stamp};
use zenoh::Wait;
use zenoh::pubsub::Subscriber;
use zenoh::sample::{Sample, SampleKind};

/// A sentence is shorter than this many bytes.
const LONGEST_SENTENCE: usize = 1000;

/// The open ears of one arm.
pub(super) struct Inlets {
    refusals: Arc<Mutex<Refusals>>,
    _publishers: Subscriber<()>,
    _ears: Vec<Subscriber<()>>,
}

/// What a message from outside, and from the endpoint with this identity, does.
type Act = Box<dyn Fn(&[u8], [u8; 16]) -> Result<()> + Send + Sync>;

#[derive(Default)]
struct Refusals {
    count: u64,
    last: Option<String>,
}

impl Inlets {
    pub(super) fn open(
        declaring: &mut Declaring,
        embodiment: &Embodiment,
        handle: &ControlHandle,
    ) -> Result<Self> {
        let refusals: Arc<Mutex<Refusals>> = Arc::default();
        let mut ears = Vec::new();
        let stop = Topic::new(EMERGENCY_STOP, &keys::BOOL);
        declaring.endpoint(EndpointKind::Subscription, &stop)?;
        let (session, domain) = (declaring.session(), declaring.domain());
        ears.push(listen_for_stop(session, domain, EMERGENCY_STOP, &handle.emergency_stop())?);
        let commanders = Arc::new(Commanders::new(embodiment.joints.len(), &handle.emergency_stop()));
        let key = keys::publishers(domain);
        let publishers = session.liveliness().declare_subscriber(key.as_str()).history(true).callback({
            let commanders = commanders.clone();
            move |sample: Sample| {
                commanders.saw(sample.key_expr().as_str(), sample.kind() == SampleKind::Put);
            }
        });
        let publishers = publishers.wait().map_err(|e| failed(&key, e))?;
        for (topic, act) in commands(embodiment, handle, &commanders)? {
            declaring.endpoint(EndpointKind::Subscription, &topic)?;
            let (key, refusals) = (keys::any_type(domain, &topic.name), refusals.clone());
            let ear = session.declare_subscriber(key.as_str()).callback(move |sample: Sample| {
                let sent = sample.attachment().map(|bytes| Attachment::decode(&bytes.to_bytes()));
                let who = sent.and_then(Result::ok).map_or([0; 16], |attachment| attachment.gid);
                if let Err(error) = act(&sample.payload().to_bytes(), who) {
                    let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
                    refusals.count += 1;
                    refusals.last = Some(format!("{}: {error}", topic.name));
                }
            });
            ears.push(ear.wait().map_err(|e| failed(&key, e))?);
        }
        Ok(Self { refusals, _publishers: publishers, _ears: ears })
    }

    pub(super) fn refusals(&self) -> (u64, Option<String>) {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        (refusals.count, refusals.last.clone())
    }
}

/// Every topic with what a message on it does.
fn commands(
    embodiment: &Embodiment,
    handle: &ControlHandle,
    commanders: &Arc<Commanders>,
) -> Result<Vec<(Topic, Act)>> {
    let body = Arc::new(embodiment.clone());
    let gripper = body.gripper.as_ref().map(|gripper| body.joint_index(&gripper.joint)).transpose()?;
    let arm: Vec<usize> = (0..body.joints.len()).filter(|joint| Some(*joint) != gripper).collect();
    let mut commands = vec![
        (Topic::new(INSTRUCTION, &keys::STRING), sentence(handle)),
        (Topic::new(TRAJECTORY, &keys::JOINT_TRAJECTORY), {
            let (body, arm) = (body.clone(), arm.clone());
            moving(handle, commanders, move |bytes, current, now| {
                let trajectory: JointTrajectory = messages::decode(bytes)?;
                let plan = plan_of(&trajectory, &body, current, now)?;
                let mut places = Vec::new();
                for name in &trajectory.joint_names {
                    match body.joint_index(name)? {
                        place if Some(place) == gripper => places.push(place),
                        // Who moves one joint of the arm has all of it.
                        _ => places.extend(&arm),
                    }
                }
                Ok((places, plan))
            })
        }),
    ];
    for (name, places) in [(FORWARD, Some(arm)), (GRIPPER, gripper.map(|place| vec![place]))] {
        let Some(places) = places else { continue };
        let body = body.clone();
        let act = moving(handle, commanders, move |bytes, current, now| {
            let numbers = messages::decode::<Float64MultiArray>(bytes)?.data;
            Ok((places.clone(), setpoint_of(&numbers, &places, &body, current, now)?))
        });
        commands.push((Topic::new(name, &keys::FLOAT64_MULTI_ARRAY), act));
    }
    Ok(commands)
}

fn sentence(handle: &ControlHandle) -> Act {
    let handle = handle.clone();
    Box::new(move |bytes, _| {
        let sentence = messages::decode::<Text>(bytes)?.data;
        if sentence.trim().is_empty() || sentence.len() > LONGEST_SENTENCE {
            return Err(Error::Shape {
                what: "instruction".into(),
                expected: format!("a sentence of at most {LONGEST_SENTENCE} bytes"),
                got: format!("{} bytes", sentence.len()),
            });
        }
        handle.set_instruction(sentence.trim());
        Ok(())
    })
}

/// A command: `read` makes a plan and the joints that it is for from its bytes, the measured joints and the time.
fn moving(
    handle: &ControlHandle,
    commanders: &Arc<Commanders>,
    read: impl Fn(&[u8], &[f64], Stamp) -> Result<(Vec<usize>, Plan)> + Send + Sync + 'static,
) -> Act {
    let (handle, commanders) = (handle.clone(), commanders.clone());
    Box::new(move |bytes, who| {
        let reading = handle.joints();
        let reading = reading.ok_or_else(|| Error::Robot("the joints were not read yet".into()))?;
        let now = handle.clock().now();
        let (places, plan) = read(bytes, &reading.positions, now)?;
        handle.follow(commanders.take(who, &places, plan, now, &reading.positions)?)
    })
}
