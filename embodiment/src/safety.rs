//! What a robot may do beyond its joints' own limits: workspace, keep-out zones, capsules; and how a run narrows it.

use crate::{Embodiment, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A box in the base frame that neither the tip nor any capsule of the arm may enter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// What is there, for messages.
    pub name: String,
    /// Lowest corner, m.
    pub min_m: [f64; 3],
    /// Highest corner, m.
    pub max_m: [f64; 3],
}

/// A part of a link's body: everything nearer than `radius_m` to a straight line in the link's frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    /// The link of the URDF that carries it.
    pub link: String,
    /// Where the line begins, m.
    pub from_m: [f64; 3],
    /// Where it ends, m.
    pub to_m: [f64; 3],
    /// m
    pub radius_m: f64,
}

/// The `[safety]` part of a robot's file. It belongs to the robot: no message and no checkpoint carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Safety {
    /// A plan may answer an observation of at most this age, s.
    pub max_observation_age_secs: f64,
    /// Lowest corner of the tip's workspace in the base frame, m.
    pub workspace_min_m: [f64; 3],
    /// Highest corner of the tip's workspace in the base frame, m.
    pub workspace_max_m: [f64; 3],
    /// Boxes to stay out of.
    pub keep_out: Vec<Zone>,
    /// The arm's body. Two capsules may touch only on one link or on two that a joint connects.
    pub capsules: Vec<Capsule>,
}

impl Default for Safety {
    fn default() -> Self {
        Self {
            max_observation_age_secs: 1.5,
            workspace_min_m: [-0.6, -0.6, -0.005],
            workspace_max_m: [0.6, 0.6, 0.7],
            keep_out: Vec::new(),
            capsules: Vec::new(),
        }
    }
}

impl Safety {
    /// Refuses boxes without an inside, capsules without a radius or on links that the robot does not have.
    pub(crate) fn check(&self, robot: &str, links: &crate::RobotModel) -> Result<()> {
        let refuse = |why: String| Error::Parse { what: format!("safety of robot '{robot}'"), why };
        let workspace =
            Zone { name: "workspace".into(), min_m: self.workspace_min_m, max_m: self.workspace_max_m };
        for zone in self.keep_out.iter().chain([&workspace]) {
            if !(0..3).all(|k| zone.min_m[k] < zone.max_m[k]) {
                return Err(refuse(format!("box '{}' is empty: {zone:?}", zone.name)));
            }
        }
        for capsule in &self.capsules {
            links.link_index(&capsule.link)?;
            let numbers = capsule.from_m.iter().chain(&capsule.to_m);
            if !(capsule.radius_m > 0.0 && numbers.chain([&capsule.radius_m]).all(|x| x.is_finite())) {
                return Err(refuse(format!(
                    "the capsule of link '{}' has no body: {capsule:?}",
                    capsule.link
                )));
            }
        }
        if self.max_observation_age_secs.is_nan() || self.max_observation_age_secs <= 0.0 {
            let got = self.max_observation_age_secs;
            return Err(refuse(format!("max_observation_age_secs must be positive, got {got}")));
        }
        Ok(())
    }
}

/// Narrower limits of one joint for one run; what is absent stays the robot's. rad or m, per s, s^2, s^3; N m or N.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Narrowing {
    /// Lowest position.
    pub lower: Option<f64>,
    /// Highest position.
    pub upper: Option<f64>,
    /// Highest speed.
    pub velocity: Option<f64>,
    /// Highest acceleration.
    pub acceleration: Option<f64>,
    /// Highest change of the acceleration.
    pub jerk: Option<f64>,
    /// Highest effort.
    pub effort: Option<f64>,
}

/// What one run narrows. Nothing here can widen what the URDF and the robot's file allow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// A plan may answer an observation of at most this age, s.
    pub max_observation_age_secs: Option<f64>,
    /// Lowest corner of the tip's workspace in the base frame, m.
    pub workspace_min_m: Option<[f64; 3]>,
    /// Highest corner of the tip's workspace in the base frame, m.
    pub workspace_max_m: Option<[f64; 3]>,
    /// More boxes to stay out of.
    pub keep_out: Vec<Zone>,
    /// Narrower joints, by name.
    pub joints: BTreeMap<String, Narrowing>,
}

impl GateConfig {
    /// The robot under these narrower limits.
    ///
    /// # Errors
    /// A limit is wider than the robot's own, a joint is unknown, or nothing is left.
    pub fn narrow(&self, robot: &Embodiment) -> Result<Embodiment> {
        let mut narrowed = robot.clone();
        let safety = &mut narrowed.safety;
        let age = &mut safety.max_observation_age_secs;
        lower("max_observation_age_secs", age, self.max_observation_age_secs)?;
        for axis in 0..3 {
            let (least, most) =
                (self.workspace_min_m.map(|m| m[axis]), self.workspace_max_m.map(|m| m[axis]));
            raise("workspace_min_m", &mut safety.workspace_min_m[axis], least)?;
            lower("workspace_max_m", &mut safety.workspace_max_m[axis], most)?;
        }
        safety.keep_out.extend_from_slice(&self.keep_out);
        for (name, own) in &self.joints {
            let index = narrowed.joint_index(name)?;
            let limits = &mut narrowed.joints[index].limits;
            let say = |what: &str| format!("{what} of joint '{name}'");
            raise(&say("lower"), &mut limits.lower, own.lower)?;
            lower(&say("upper"), &mut limits.upper, own.upper)?;
            lower(&say("velocity"), &mut limits.velocity, own.velocity)?;
            lower(&say("acceleration"), &mut limits.acceleration, own.acceleration)?;
            for (what, limit, own) in
                [("jerk", &mut limits.jerk, own.jerk), ("effort", &mut limits.effort, own.effort)]
            {
                let mut value = limit.unwrap_or(f64::INFINITY);
                lower(&say(what), &mut value, own)?;
                *limit = limit.is_some().then_some(value).or(own);
            }
            limits.check().map_err(|why| Error::Parse { what: format!("joint '{name}'"), why })?;
        }
        narrowed.safety.check(&robot.name, &crate::RobotModel::from_urdf(&robot.urdf)?)?;
        Ok(narrowed)
    }
}

fn wider(what: &str, own: f64, limit: f64) -> Error {
    let why = format!("{own} is wider than the robot's {limit}: a run can only narrow");
    Error::Parse { what: what.into(), why }
}

fn lower(what: &str, limit: &mut f64, own: Option<f64>) -> Result<()> {
    match own {
        Some(own) if own <= *limit => *limit = own,
        Some(own) => return Err(wider(what, own, *limit)),
        None => {}
    }
    Ok(())
}

fn raise(what: &str, limit: &mut f64, own: Option<f64>) -> Result<()> {
    match own {
        Some(own) if own >= *limit => *limit = own,
        Some(own) => return Err(wider(what, own, *limit)),
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(config: &GateConfig) -> String {
        let robot = Embodiment::so101();
        robot.and_then(|robot| config.narrow(&robot)).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_run_narrows_every_limit_and_widens_none() -> Result<()> {
        let robot = Embodiment::so101()?;
        assert_eq!(GateConfig::default().narrow(&robot)?, robot);
        let joint = |own: Narrowing| GateConfig {
            joints: BTreeMap::from([("elbow_flex".into(), own)]),
            ..GateConfig::default()
        };
        let some = |x: f64| Some(x);
        let narrow = joint(Narrowing {
            lower: some(-1.0),
            upper: some(1.0),
            velocity: some(0.5),
            acceleration: some(5.0),
            jerk: some(100.0),
            effort: some(1.0),
        });
        let limits = narrow.narrow(&robot)?.joints[2].limits;
        assert_eq!((limits.lower, limits.upper, limits.velocity, limits.acceleration), (-1.0, 1.0, 0.5, 5.0));
        assert_eq!((limits.jerk, limits.effort), (Some(100.0), Some(1.0)));
        for (own, what) in [
            (Narrowing { lower: some(-2.0), ..Narrowing::default() }, "lower of joint 'elbow_flex'"),
            (Narrowing { upper: some(2.0), ..Narrowing::default() }, "upper"),
            (Narrowing { velocity: some(9.0), ..Narrowing::default() }, "velocity"),
            (Narrowing { acceleration: some(31.0), ..Narrowing::default() }, "acceleration"),
            (Narrowing { velocity: some(f64::NAN), ..Narrowing::default() }, "velocity"),
            (Narrowing { velocity: some(0.0), ..Narrowing::default() }, "elbow_flex"),
            (Narrowing { upper: some(-1.69), ..Narrowing::default() }, "elbow_flex"),
        ] {
            assert!(said(&joint(own)).contains(what), "{what}");
        }
        // What was narrowed before is the limit of the next narrowing.
        let twice =
            joint(Narrowing { jerk: some(200.0), ..Narrowing::default() }).narrow(&narrow.narrow(&robot)?);
        assert!(twice.is_err_and(|e| e.to_string().contains("jerk of joint 'elbow_flex': 200 is wider")));
        let age = GateConfig { max_observation_age_secs: some(3.0), ..GateConfig::default() };
        assert!(said(&age).contains("max_observation_age_secs: 3 is wider"));
        let space = GateConfig { workspace_max_m: Some([0.7, 0.1, 0.1]), ..GateConfig::default() };
        assert!(said(&space).contains("workspace_max_m"));
        let unknown = GateConfig {
            joints: BTreeMap::from([("knee".into(), Narrowing::default())]),
            ..GateConfig::default()
        };
        assert!(said(&unknown).contains("unknown joint 'knee'"));
        Ok(())
    }
}
