//! The safety gate: no target reaches a motor without having passed it. On by default, in front of every driver and of
//! the sim.
//!
//! Every tick the gate turns what was asked into a target that obeys the limits of position, speed, acceleration and
//! jerk, and from which the arm can always still stop inside its limits, its workspace and outside of what it must not
//! touch: the gate plays the whole stop before it lets a motion begin, so that the next tick's stop is sure. A plan
//! that begins far away is approached so that the arm comes to rest there. What cannot be trusted (a NaN, a stale plan,
//! a motion out of the workspace, an emergency stop) becomes a hold: the arm brakes within its limits and stands.

mod motion;
mod space;
mod stop;
mod verdict;

pub use stop::EmergencyStop;
pub use verdict::{Checked, Trip, TripReason, Verdict};

use crate::{Action, Embodiment, Error, GateConfig, Result, RobotModel, Stamp};
use motion::Motion;
use space::Space;
use std::collections::BTreeMap;

/// An arm may stand this far outside its range when it is taken over, rad or m; it is moved inside.
const OUTSIDE_AT_START: f64 = 0.1;

/// The gate of one robot. It remembers the last targets and speeds that it let through.
#[derive(Clone, Debug)]
pub struct SafetyGate {
    embodiment: Embodiment,
    space: Space,
    /// N m or N; infinite where nobody set one.
    effort_limits: Vec<f64>,
    targets: Vec<f64>,
    speeds: Vec<f64>,
    accelerations: Vec<f64>,
    /// What was asked at the last tick, inside the joints' range: how a plan moves tells a far target from a fast one.
    asked: Vec<f64>,
    /// How fast that moved, rad/s or m/s.
    paces: Vec<f64>,
    efforts: Vec<f64>,
    last_tick: Option<Stamp>,
    emergency: EmergencyStop,
    /// When the emergency stop was last seen pressed.
    pressed: Option<Stamp>,
    counts: BTreeMap<TripReason, u64>,
    /// The poses of the stop that is being looked at, `[ticks][joints]`: kept, so that a tick allocates little.
    way: Vec<Vec<f64>>,
}

impl SafetyGate {
    /// A gate for a robot that stands still at `measured` (rad or m), with its own limits as `config` narrows them.
    ///
    /// # Errors
    /// `config` is wider than the robot's limits, `measured` has the wrong length, is not finite or far out of range.
    pub fn new(embodiment: &Embodiment, config: GateConfig, measured: &[f64]) -> Result<Self> {
        let embodiment = config.narrow(embodiment)?;
        let model = RobotModel::from_urdf(&embodiment.urdf)?;
        let mut effort_limits = Vec::with_capacity(embodiment.joints.len());
        for joint in &embodiment.joints {
            let urdf = Some(model.joint(&joint.name)?.effort).filter(|effort| *effort > 0.0);
            effort_limits.push(joint.limits.effort.or(urdf).unwrap_or(f64::INFINITY));
        }
        let mut gate = Self {
            space: Space::new(&embodiment)?,
            embodiment,
            effort_limits,
            targets: Vec::new(),
            speeds: Vec::new(),
            accelerations: Vec::new(),
            asked: Vec::new(),
            paces: Vec::new(),
            efforts: Vec::new(),
            last_tick: None,
            emergency: EmergencyStop::default(),
            pressed: None,
            counts: BTreeMap::new(),
            way: Vec::new(),
        };
        gate.rearm(measured)?;
        Ok(gate)
    }

    /// Starts again from an arm that stands still at `measured`; counts and the emergency stop stay.
    ///
    /// # Errors
    /// `measured` has the wrong length, is not finite or more than 0.1 rad or m out of a joint's range.
    pub fn rearm(&mut self, measured: &[f64]) -> Result<()> {
        if measured.len() != self.embodiment.joints.len() {
            return Err(Error::Shape {
                what: "measured joints".into(),
                expected: self.embodiment.joints.len().to_string(),
                got: measured.len().to_string(),
            });
        }
        if measured.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite("a measured joint".into()));
        }
        for (joint, q) in self.embodiment.joints.iter().zip(measured) {
            let (lower, upper) = (joint.limits.lower, joint.limits.upper);
            if *q < lower - OUTSIDE_AT_START || *q > upper + OUTSIDE_AT_START {
                return Err(Error::Shape {
                    what: format!("joint '{}' at the start", joint.name),
                    expected: format!("within {lower:.3} to {upper:.3} (move the arm there by hand)"),
                    got: format!("{q:.3}"),
                });
            }
        }
        let limits = self.embodiment.joints.iter().map(|joint| joint.limits);
        self.targets = measured.iter().zip(limits).map(|(q, l)| q.clamp(l.lower, l.upper)).collect();
        self.speeds = vec![0.0; measured.len()];
        self.accelerations = vec![0.0; measured.len()];
        self.asked.clone_from(&self.targets);
        self.paces.clone_from(&self.speeds);
        self.last_tick = None;
        Ok(())
    }

    /// Makes the gate listen to this emergency stop.
    pub fn listen_to(&mut self, stop: &EmergencyStop) {
        self.emergency = stop.clone();
    }

    /// The emergency stop that the gate listens to.
    pub fn emergency_stop(&self) -> EmergencyStop {
        self.emergency.clone()
    }

    /// What the joints push with, N m or N, positive toward greater positions, in the embodiment's order; empty when
    /// the robot does not say. The next ticks go by it until it is told again.
    pub fn feel(&mut self, efforts: &[f64]) {
        self.efforts.clear();
        self.efforts.extend_from_slice(efforts);
    }

    /// How often each reason occurred.
    pub fn counts(&self) -> &BTreeMap<TripReason, u64> {
        &self.counts
    }

    /// The robot with the limits that this gate keeps.
    pub fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    /// The targets that were last let through, rad or m.
    pub fn targets(&self) -> &[f64] {
        &self.targets
    }

    /// The speeds that belong to them, rad/s or m/s: all zero once the arm has braked.
    pub fn speeds(&self) -> &[f64] {
        &self.speeds
    }

    /// One tick: `asked` is the plan's action and the stamp of the observation that it answers, or `None` when
    /// there is no plan. Times are on the robot's clock.
    pub fn check(&mut self, asked: Option<(&Action, Stamp)>, now: Stamp) -> Verdict {
        self.decide(asked.ok_or("no plan for this tick"), now)
    }

    /// One tick without a plan, and why there is none: the arm brakes and stands.
    pub fn hold(&mut self, why: &str, now: Stamp) -> Verdict {
        self.decide(Err(why), now)
    }

    fn decide(&mut self, asked: std::result::Result<(&Action, Stamp), &str>, now: Stamp) -> Verdict {
        let mut trips = Vec::new();
        let trusted = self.trusted(asked, now);
        self.last_tick = Some(now);
        let (next, held) = match trusted {
            Ok(action) => {
                let next = self.follow(&action.joint_targets, &mut trips, now);
                self.plan_way(&next);
                match self.space.refuses(&self.targets, &self.way) {
                    None => (next, false),
                    Some((reason, detail)) => {
                        trips.push(Trip::new(reason, detail, now));
                        (self.brake(), true)
                    }
                }
            }
            Err(trip) => {
                trips.push(trip);
                (self.brake(), true)
            }
        };
        for trip in &trips {
            *self.counts.entry(trip.reason).or_default() += 1;
        }
        for (k, motion) in next.iter().enumerate() {
            (self.targets[k], self.speeds[k], self.accelerations[k]) =
                (motion.position, motion.speed, motion.acceleration);
        }
        if held {
            self.asked.clone_from(&self.targets);
            self.paces.clone_from(&self.speeds);
        }
        let value = Action { joint_targets: self.targets.clone() };
        let action = Checked { value, held, trips: trips.clone() };
        Verdict { action, held, trips }
    }

    /// The action, unless there is none or it cannot be trusted.
    fn trusted<'a>(
        &mut self,
        asked: std::result::Result<(&'a Action, Stamp), &str>,
        now: Stamp,
    ) -> std::result::Result<&'a Action, Trip> {
        let period = self.embodiment.period_secs();
        let refuse = |reason, detail: String| Err(Trip::new(reason, detail, now));
        let mistimed = |reason, detail: String, secs: f64| {
            // To the microsecond.
            let measured_ms = Some((secs * 1e6).round() / 1e3);
            Err(Trip { measured_ms, ..Trip::new(reason, detail, now) })
        };
        if self.emergency.pressed() {
            self.pressed = Some(now);
            return refuse(TripReason::EmergencyStop, self.emergency.reason());
        }
        if let Some(last) = self.last_tick.filter(|last| now.secs_since(*last) < 0.5 * period) {
            let detail = format!("less than half a period of {period:.4} s after the last action");
            return mistimed(TripReason::Rate, detail, now.secs_since(last));
        }
        let (action, observed) = match asked {
            Ok(asked) => asked,
            Err(why) => return refuse(TripReason::NoPlan, why.to_owned()),
        };
        let n = self.targets.len();
        for (what, m) in [("targets", action.joint_targets.len()), ("efforts", self.efforts.len())] {
            if m != n && !(what == "efforts" && m == 0) {
                return refuse(TripReason::Shape, format!("expected {n} {what}, got {m}"));
            }
        }
        for (what, values) in [("target", &action.joint_targets), ("effort", &self.efforts)] {
            if let Some(k) = values.iter().position(|x| !x.is_finite()) {
                let name = &self.embodiment.joints[k].name;
                return refuse(TripReason::NotFinite, format!("{what} of joint '{name}'"));
            }
        }
        let age = now.secs_since(observed);
        let most = self.embodiment.safety.max_observation_age_secs;
        if age > most {
            let detail = format!("the plan's observation is more than {most} s old");
            return mistimed(TripReason::Stale, detail, age);
        }
        if age < -period {
            let detail = "the plan's observation is from a time that has not come".to_owned();
            return mistimed(TripReason::Stale, detail, age);
        }
        if self.pressed.is_some_and(|pressed| observed <= pressed) {
            let detail = "the plan is from before the emergency stop's release".to_owned();
            return refuse(TripReason::Stale, detail);
        }
        Ok(action)
    }

    fn motion(&self, joint: usize) -> Motion {
        Motion {
            position: self.targets[joint],
            speed: self.speeds[joint],
            acceleration: self.accelerations[joint],
        }
    }

    /// One tick of the quickest stop of every joint.
    fn brake(&self) -> Vec<Motion> {
        let dt = self.embodiment.period_secs();
        let braked = self.embodiment.joints.iter().enumerate().map(|(k, joint)| {
            let next = self.motion(k).braked(&joint.limits, dt);
            Motion { position: next.position.clamp(joint.limits.lower, joint.limits.upper), ..next }
        });
        braked.collect()
    }

    /// The motions nearest to `wanted` (rad or m) that the joints' limits allow for this tick.
    fn follow(&mut self, wanted: &[f64], trips: &mut Vec<Trip>, now: Stamp) -> Vec<Motion> {
        let dt = self.embodiment.period_secs();
        let mut next = Vec::with_capacity(wanted.len());
        for (k, joint) in self.embodiment.joints.iter().enumerate() {
            let (motion, l) = (self.motion(k), &joint.limits);
            let mut note = |reason, asked: f64, allowed: f64| {
                let detail =
                    format!("joint '{}': asked {}, allowed {}", joint.name, figure(asked), figure(allowed));
                trips.push(Trip::new(reason, detail, now));
            };
            let mut target = wanted[k];
            // A joint that pushes too hard may only give way.
            let effort = self.efforts.get(k).copied().unwrap_or(0.0);
            if effort.abs() > self.effort_limits[k] {
                let gives_way =
                    if effort > 0.0 { target.min(motion.position) } else { target.max(motion.position) };
                note(TripReason::Effort, effort, self.effort_limits[k]);
                target = gives_way;
            }
            let inside = target.clamp(l.lower, l.upper);
            let pace = (inside - self.asked[k]) / dt;
            // What moves faster than the joint ever could, or starts more suddenly than its jerk allows, has jumped.
            let sudden = l
                .jerk
                .is_some_and(|jerk| (pace - self.paces[k]).abs() > l.acceleration.min(jerk * dt) * dt + 1e-9);
            let jumped = pace.abs() > l.velocity || sudden;
            (self.asked[k], self.paces[k]) = (inside, pace);
            let pace = if jumped { 0.0 } else { pace };
            next.push(motion.toward(target, pace, l, dt, &mut note));
        }
        next
    }

    /// Fills `way` with these motions and the stop that could follow them.
    fn plan_way(&mut self, next: &[Motion]) {
        let dt = self.embodiment.period_secs();
        let joints = &self.embodiment.joints;
        let mut motions = next.to_vec();
        self.way.clear();
        loop {
            self.way.push(motions.iter().map(|motion| motion.position).collect());
            let mut rests = true;
            for (motion, joint) in motions.iter_mut().zip(joints) {
                rests &= motion.rests(&joint.limits, dt);
                *motion = motion.braked(&joint.limits, dt);
            }
            if rests {
                return;
            }
        }
    }
}

/// A number for a message: four places, and none of the hundreds of digits of a hostile one.
fn figure(x: f64) -> String {
    if x.abs() < 1e6 { format!("{x:.4}") } else { format!("{x:e}") }
}

#[cfg(test)]
mod tests;
