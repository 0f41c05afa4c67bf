//! The safety gate: the only maker of a checked action. On by default in front of every driver and of the sim.
//!
//! Every tick the gate turns what was asked into a target that obeys position, velocity and acceleration limits
//! and from which the arm can always still stop inside its position limits. What cannot be trusted (a NaN, a
//! stale plan, a target outside the workspace) becomes a hold: the arm brakes within its acceleration limit.

use crate::{Action, Embodiment, Error, Kinematics, Result, Stamp};
use nalgebra::Vector3;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value that the gate has passed. Nobody else can make one.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<T>(T);

impl<T> Checked<T> {
    /// What was passed.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Takes what was passed.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Why the gate stepped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TripReason {
    /// A target outside the joint's range was moved to it.
    Position,
    /// A target too far for one tick was brought nearer.
    Velocity,
    /// A change of speed too great for one tick was made smaller.
    Acceleration,
    /// The tip would leave the workspace: hold.
    Workspace,
    /// A target is not a finite number: hold.
    NotFinite,
    /// The wrong number of targets: hold.
    Shape,
    /// The plan answers an observation that is too old: hold.
    Stale,
    /// There is no plan: hold.
    NoPlan,
    /// Two actions in less than half a control period: hold.
    Rate,
}

/// One intervention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    /// Why.
    pub reason: TripReason,
    /// Which joint or value, asked and allowed.
    pub detail: String,
    /// When.
    pub stamp: Stamp,
}

/// What the gate made of one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The action to send; always within the limits.
    pub action: Checked<Action>,
    /// Whether the asked action was replaced by a hold.
    pub held: bool,
    /// Why, if the gate stepped in at all.
    pub trips: Vec<Trip>,
}

/// Limits that are not the joints' own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// A plan may answer an observation of at most this age, s.
    pub max_observation_age_secs: f64,
    /// Lowest corner of the tip's workspace in the base frame, m.
    pub workspace_min_m: [f64; 3],
    /// Highest corner of the tip's workspace in the base frame, m.
    pub workspace_max_m: [f64; 3],
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            max_observation_age_secs: 1.5,
            workspace_min_m: [-0.6, -0.6, -0.005],
            workspace_max_m: [0.6, 0.6, 0.7],
        }
    }
}

/// The gate of one robot. It remembers the last targets and speeds that it let through.
#[derive(Clone, Debug)]
pub struct SafetyGate {
    embodiment: Embodiment,
    kinematics: Kinematics,
    config: GateConfig,
    targets: Vec<f64>,
    speeds: Vec<f64>,
    last_tick: Option<Stamp>,
    counts: BTreeMap<TripReason, u64>,
}

impl SafetyGate {
    /// A gate for a robot that stands still at `measured` (rad or m).
    ///
    /// # Errors
    /// `measured` has the wrong length or is not finite.
    pub fn new(embodiment: &Embodiment, config: GateConfig, measured: &[f64]) -> Result<Self> {
        let mut gate = Self {
            kinematics: embodiment.kinematics()?,
            embodiment: embodiment.clone(),
            config,
            targets: Vec::new(),
            speeds: Vec::new(),
            last_tick: None,
            counts: BTreeMap::new(),
        };
        gate.rearm(measured)?;
        Ok(gate)
    }

    /// Starts again from an arm that stands still at `measured`; counts stay.
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
        let limits = self.embodiment.joints.iter().map(|joint| joint.limits);
        self.targets = measured.iter().zip(limits).map(|(q, l)| q.clamp(l.lower, l.upper)).collect();
        self.speeds = vec![0.0; measured.len()];
        self.last_tick = None;
        Ok(())
    }

    /// How often each reason occurred.
    pub fn counts(&self) -> &BTreeMap<TripReason, u64> {
        &self.counts
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
        let mut trips = Vec::new();
        let refused = self.refusal(asked, now);
        self.last_tick = Some(now);
        let wanted = match (&refused, asked) {
            (None, Some((action, _))) => action.joint_targets.clone(),
            _ => self.stopping_targets(),
        };
        let (mut targets, mut speeds) = self.limit(&wanted, refused.is_none().then_some(&mut trips), now);
        let mut held = refused.is_some();
        if let Some((reason, detail)) = refused {
            trips.push(Trip { reason, detail, stamp: now });
        } else if let Some(detail) = self.leaves_workspace(&targets, &speeds) {
            (targets, speeds) = self.limit(&self.stopping_targets(), None, now);
            trips.push(Trip { reason: TripReason::Workspace, detail, stamp: now });
            held = true;
        }
        for trip in &trips {
            *self.counts.entry(trip.reason).or_default() += 1;
        }
        self.targets.clone_from(&targets);
        self.speeds = speeds;
        Verdict { action: Checked(Action { joint_targets: targets }), held, trips }
    }

    fn refusal(&self, asked: Option<(&Action, Stamp)>, now: Stamp) -> Option<(TripReason, String)> {
        let period = self.embodiment.period_secs();
        if let Some(last) = self.last_tick.filter(|last| now.secs_since(*last) < 0.5 * period) {
            let gap = now.secs_since(last);
            return Some((
                TripReason::Rate,
                format!("{gap:.4} s after the last action, period {period:.4} s"),
            ));
        }
        let Some((action, observed)) = asked else {
            return Some((TripReason::NoPlan, "no plan for this tick".into()));
        };
        if action.joint_targets.len() != self.targets.len() {
            let (n, m) = (self.targets.len(), action.joint_targets.len());
            return Some((TripReason::Shape, format!("expected {n} targets, got {m}")));
        }
        if let Some(k) = action.joint_targets.iter().position(|x| !x.is_finite()) {
            return Some((TripReason::NotFinite, format!("joint '{}'", self.embodiment.joints[k].name)));
        }
        let age = now.secs_since(observed);
        if age > self.config.max_observation_age_secs || age < -period {
            let most = self.config.max_observation_age_secs;
            return Some((
                TripReason::Stale,
                format!("the plan's observation is {age:.3} s old, at most {most} s"),
            ));
        }
        None
    }

    /// Targets that ask for rest at once; [`Self::limit`] makes braking of it.
    fn stopping_targets(&self) -> Vec<f64> {
        self.targets.clone()
    }

    /// Targets and speeds (rad or m, per s) nearest to `wanted` that the limits allow for this tick.
    fn limit(&self, wanted: &[f64], mut trips: Option<&mut Vec<Trip>>, now: Stamp) -> (Vec<f64>, Vec<f64>) {
        let dt = self.embodiment.period_secs();
        let mut targets = Vec::with_capacity(wanted.len());
        let mut speeds = Vec::with_capacity(wanted.len());
        for (k, joint) in self.embodiment.joints.iter().enumerate() {
            let (q, v, l) = (self.targets[k], self.speeds[k], &joint.limits);
            let mut note = |reason, asked: f64, allowed: f64| {
                if let Some(trips) = trips.as_deref_mut() {
                    let detail = format!("joint '{}': asked {asked:.4}, allowed {allowed:.4}", joint.name);
                    trips.push(Trip { reason, detail, stamp: now });
                }
            };
            let inside = wanted[k].clamp(l.lower, l.upper);
            if (inside - wanted[k]).abs() > 1e-6 {
                note(TripReason::Position, wanted[k], inside);
            }
            let asked_speed = (inside - q) / dt;
            let mut speed = asked_speed.clamp(-l.velocity, l.velocity);
            if (speed - asked_speed).abs() > 1e-6 {
                note(TripReason::Velocity, asked_speed, speed);
            }
            let eased = speed.clamp(v - l.acceleration * dt, v + l.acceleration * dt);
            if (eased - speed).abs() > 1e-6 {
                note(TripReason::Acceleration, (speed - v) / dt, (eased - v) / dt);
            }
            speed = eased;
            // Fast enough to still stop before the limit: v dt + v^2 / (2 a) <= distance.
            let stoppable = |distance: f64| {
                let d = distance.max(0.0);
                l.acceleration * ((dt * dt + 2.0 * d / l.acceleration).sqrt() - dt)
            };
            speed = speed.clamp(-stoppable(q - l.lower), stoppable(l.upper - q));
            let target = (q + speed * dt).clamp(l.lower, l.upper);
            speeds.push((target - q) / dt);
            targets.push(target);
        }
        (targets, speeds)
    }

    /// Whether the arm, braking from these targets, would carry its tip further out of the workspace than it is.
    fn leaves_workspace(&self, targets: &[f64], speeds: &[f64]) -> Option<String> {
        let stop: Vec<f64> = self
            .embodiment
            .joints
            .iter()
            .zip(targets.iter().zip(speeds))
            .map(|(joint, (q, v))| q + v * v.abs() / (2.0 * joint.limits.acceleration))
            .collect();
        let outside = |positions: &[f64]| {
            let tip: Vector3<f64> = self.kinematics.base_from_tip(positions).translation.vector;
            let beyond = (0..3).map(|axis| {
                (self.config.workspace_min_m[axis] - tip[axis])
                    .max(tip[axis] - self.config.workspace_max_m[axis])
                    .max(0.0)
            });
            (beyond.fold(0.0, f64::max), tip)
        };
        let (beyond, tip) = outside(&stop);
        (beyond > 1e-9 && beyond > outside(&self.targets).0 + 1e-9)
            .then(|| format!("the tip would stop at ({:.3}, {:.3}, {:.3}) m", tip.x, tip.y, tip.z))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn gate() -> Result<SafetyGate> {
        SafetyGate::new(&Embodiment::so101()?, GateConfig::default(), &[0.0; 6])
    }

    fn tick(k: u64) -> Stamp {
        Stamp::from_secs(k as f64 / 30.0)
    }

    #[test]
    fn a_small_step_passes_untouched() -> Result<()> {
        let mut gate = gate()?;
        let action = Action { joint_targets: vec![0.01; 6] };
        let verdict = gate.check(Some((&action, tick(0))), tick(1));
        assert!(!verdict.held && verdict.trips.is_empty());
        assert_eq!(verdict.action.get(), &action);
        Ok(())
    }

    #[test]
    fn nan_wrong_shape_stale_missing_and_hurried_plans_hold() -> Result<()> {
        let good = Action { joint_targets: vec![0.01; 6] };
        let nan = Action { joint_targets: vec![0.0, f64::NAN, 0.0, 0.0, 0.0, 0.0] };
        let short = Action { joint_targets: vec![0.0; 5] };
        for (asked, now, reason) in [
            (Some((&nan, tick(0))), tick(1), TripReason::NotFinite),
            (Some((&short, tick(0))), tick(1), TripReason::Shape),
            (Some((&good, tick(0))), tick(100), TripReason::Stale),
            (None, tick(1), TripReason::NoPlan),
        ] {
            let mut gate = gate()?;
            let verdict = gate.check(asked, now);
            assert!(verdict.held);
            assert_eq!(verdict.trips[0].reason, reason);
            assert_eq!(verdict.action.get().joint_targets, vec![0.0; 6]);
            assert_eq!(gate.counts()[&reason], 1);
        }
        let mut gate = gate()?;
        gate.check(Some((&good, tick(0))), tick(1));
        let hurried = gate.check(Some((&good, tick(0))), tick(1).plus_secs(0.001));
        assert_eq!(hurried.trips[0].reason, TripReason::Rate);
        Ok(())
    }

    #[test]
    fn a_plan_through_the_table_is_held_before_it_gets_there() -> Result<()> {
        let mut gate = gate()?;
        let down = Action { joint_targets: vec![0.0, 1.2, 0.8, 0.0, 0.0, 0.0] };
        let mut held = false;
        for k in 1..200 {
            held |= gate.check(Some((&down, tick(k))), tick(k)).held;
            let z = gate.kinematics.base_from_tip(gate.targets()).translation.z;
            assert!(z > gate.config.workspace_min_m[2] - 1e-6, "tip at {z}");
        }
        assert!(held);
        Ok(())
    }

    /// Random, hostile plans: no target ever leaves the position, velocity or acceleration limits.
    #[test]
    fn no_hostile_plan_gets_past_the_limits() -> Result<()> {
        let mut gate = gate()?;
        let joints = gate.embodiment.joints.clone();
        let dt = gate.embodiment.period_secs();
        let mut rng = crate::stream(1, "hostile");
        let (mut q, mut v) = (vec![0.0; 6], vec![0.0; 6]);
        for k in 1..20_000u64 {
            let mut targets: Vec<f64> = (0..6).map(|_| rng.random_range(-4.0..4.0)).collect();
            match k % 17 {
                0 => targets[3] = f64::NAN,
                1 => targets[2] = 1e300,
                2 => targets[1] = f64::INFINITY,
                _ => {}
            }
            let action = Action { joint_targets: targets };
            let verdict = gate.check((k % 13 != 0).then_some((&action, tick(k))), tick(k));
            for (j, joint) in joints.iter().enumerate() {
                let next = verdict.action.get().joint_targets[j];
                let speed = (next - q[j]) / dt;
                let l = &joint.limits;
                assert!(next >= l.lower && next <= l.upper);
                assert!(speed.abs() <= l.velocity + 1e-6);
                assert!((speed - v[j]).abs() <= l.acceleration * dt + 1e-6, "{} at {k}", joint.name);
                (q[j], v[j]) = (next, speed);
            }
        }
        Ok(())
    }
}
