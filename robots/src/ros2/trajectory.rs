//! What ROS 2 controllers are told, as plans for the gate: trajectories and plain setpoints.

use super::messages::JointTrajectory;
use crate::resolve::Plan;
use vela_embodiment::{Embodiment, Error, Result, Stamp};

/// A trajectory may last this long, s.
const LONGEST_SECS: f64 = 120.0;
/// A setpoint that was reached stands for this long, s: the next may come at 5 Hz.
const SETPOINT_SECS: f64 = 0.25;

/// The plan that follows `trajectory` from `current` (rad or m, all joints) at `now`: linear between its points, one
/// target per control tick; joints that it does not name stay where they are.
///
/// # Errors
/// A joint is unknown or named twice, points are missing, ragged, not finite, out of order or too far away in time.
pub fn plan_of(
    trajectory: &JointTrajectory,
    robot: &Embodiment,
    current: &[f64],
    now: Stamp,
) -> Result<Plan> {
    let shape = |what: &str, expected: String, got: String| Error::Shape { what: what.into(), expected, got };
    let mut places = Vec::new();
    for name in &trajectory.joint_names {
        let place = robot.joint_index(name)?;
        if places.contains(&place) {
            let (expected, got) = ("each joint once".into(), format!("'{name}' twice"));
            return Err(shape("trajectory's joints", expected, got));
        }
        places.push(place);
    }
    // Where each joint is at which second, from now on.
    let mut way = vec![(0.0, current.to_vec())];
    for (k, point) in trajectory.points.iter().enumerate() {
        if point.positions.len() != places.len() {
            let what = format!("point {k} of the trajectory");
            return Err(shape(
                &what,
                format!("{} positions", places.len()),
                point.positions.len().to_string(),
            ));
        }
        if point.positions.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite(format!("point {k} of the trajectory")));
        }
        let secs = point.time_from_start.secs();
        let (before, mut joints) = way.last().cloned().unwrap_or((0.0, current.to_vec()));
        if !(before..=LONGEST_SECS).contains(&secs) || (k > 0 && secs == before) {
            let expected = format!("later than {before} s, at most {LONGEST_SECS} s");
            return Err(shape(
                &format!("time of point {k} of the trajectory"),
                expected,
                format!("{secs} s"),
            ));
        }
        for (place, position) in places.iter().zip(&point.positions) {
            joints[*place] = *position;
        }
        way.push((secs, joints));
    }
    if trajectory.points.is_empty() || places.is_empty() {
        return Err(shape("trajectory", "at least one joint and one point".into(), "none".into()));
    }
    let period_secs = robot.period_secs();
    let end = way.last().map_or(0.0, |(secs, _)| *secs);
    let ticks = (end / period_secs).ceil().max(1.0) as u32;
    let targets = (1..=ticks).map(|tick| at(&way, f64::from(tick) * period_secs)).collect();
    Ok(Plan { targets, period_secs, observation_stamp: now, command: true })
}

/// The plan that goes to a setpoint for the joints at `places` (`targets`, rad or m, one each) and stays there: as long
/// as the slowest joint needs at half of its speed, and long enough for the next setpoint to come. The others stay.
///
/// # Errors
/// The wrong number of targets, or one that is not finite.
pub fn setpoint_of(
    targets: &[f64],
    places: &[usize],
    robot: &Embodiment,
    current: &[f64],
    now: Stamp,
) -> Result<Plan> {
    if targets.len() != places.len() {
        let names: Vec<&str> = places.iter().map(|place| robot.joints[*place].name.as_str()).collect();
        return Err(Error::Shape {
            what: "joint commands".into(),
            expected: format!("{} numbers ({})", places.len(), names.join(", ")),
            got: targets.len().to_string(),
        });
    }
    let (mut joints, mut secs) = (current.to_vec(), 0.0_f64);
    for (place, target) in places.iter().zip(targets) {
        let (name, limits) = (&robot.joints[*place].name, &robot.joints[*place].limits);
        if !target.is_finite() {
            return Err(Error::NotFinite(format!("command of joint '{name}'")));
        }
        let inside = target.clamp(limits.lower, limits.upper);
        secs = secs.max((inside - joints[*place]).abs() / (0.5 * limits.velocity));
        joints[*place] = *target;
    }
    let period_secs = robot.period_secs();
    let ticks = ((secs + SETPOINT_SECS).min(LONGEST_SECS) / period_secs).ceil();
    let targets = vec![joints; ticks as usize];
    Ok(Plan { targets, period_secs, observation_stamp: now, command: true })
}

/// Joints at `secs`, linear between the points around it.
fn at(way: &[(f64, Vec<f64>)], secs: f64) -> Vec<f64> {
    let after = way.partition_point(|(t, _)| *t < secs);
    match (after.checked_sub(1).and_then(|before| way.get(before)), way.get(after)) {
        (Some((t0, a)), Some((t1, b))) => {
            let part = (secs - t0) / (t1 - t0);
            a.iter().zip(b).map(|(a, b)| a + (b - a) * part).collect()
        }
        (Some((_, last)), None) | (None, Some((_, last))) => last.clone(),
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros2::messages::{Time, TrajectoryPoint};

    fn trajectory(names: &[&str], points: &[(f64, f64)]) -> JointTrajectory {
        JointTrajectory {
            joint_names: names.iter().map(ToString::to_string).collect(),
            points: points
                .iter()
                .map(|(secs, position)| TrajectoryPoint {
                    positions: vec![*position; names.len()],
                    time_from_start: Time { sec: *secs as i32, nanosec: (secs.fract() * 1e9) as u32 },
                    ..TrajectoryPoint::default()
                })
                .collect(),
            ..JointTrajectory::default()
        }
    }

    #[test]
    fn named_joints_move_on_straight_lines_and_the_others_stay() -> Result<()> {
        let robot = Embodiment::so101()?;
        let plan =
            plan_of(&trajectory(&["gripper"], &[(1.0, 1.0), (2.0, 0.0)]), &robot, &[0.25; 6], Stamp(0))?;
        assert_eq!(plan.targets.len(), 60);
        assert!((plan.targets[29][5] - 1.0).abs() < 1e-9 && (plan.targets[59][5]).abs() < 1e-6);
        assert!((plan.targets[14][5] - 0.625).abs() < 1e-9);
        assert!(plan.targets.iter().all(|row| row[0] == 0.25));
        Ok(())
    }

    #[test]
    fn a_setpoint_lasts_as_long_as_the_way_and_a_little_more() -> Result<()> {
        let robot = Embodiment::so101()?;
        // 3 rad/s at most, so 1.5 rad take a second at half of it.
        let plan = setpoint_of(&[0.25 + 1.5], &[1], &robot, &[0.25; 6], Stamp(7))?;
        assert_eq!((plan.targets.len(), plan.observation_stamp, plan.command), (38, Stamp(7), true));
        assert_eq!(plan.targets[0], [0.25, 1.75, 0.25, 0.25, 0.25, 0.25]);
        assert_eq!(
            setpoint_of(&[0.25; 6], &[0, 1, 2, 3, 4, 5], &robot, &[0.25; 6], Stamp(0))?.targets.len(),
            8
        );
        let said = |targets: &[f64]| {
            let plan = setpoint_of(targets, &[0, 5], &robot, &[0.0; 6], Stamp(0));
            plan.map_or_else(|e| e.to_string(), |plan| plan.targets.len().to_string())
        };
        assert!(said(&[0.0]).contains("expected 2 numbers (shoulder_pan, gripper), got 1"));
        assert!(said(&[0.0, f64::NAN]).contains("command of joint 'gripper' is not finite"));
        assert!(said(&[1e300, -1e300]).parse::<usize>().is_ok_and(|ticks| ticks < 3600));
        Ok(())
    }

    #[test]
    fn nonsense_is_refused_in_words() -> Result<()> {
        let robot = Embodiment::so101()?;
        let said = |t: &JointTrajectory| {
            plan_of(t, &robot, &[0.0; 6], Stamp(0)).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(said(&trajectory(&["elbow"], &[(1.0, 0.0)])).contains("unknown joint 'elbow'"));
        assert!(said(&trajectory(&["gripper", "gripper"], &[(1.0, 0.0)])).contains("twice"));
        assert!(said(&trajectory(&["gripper"], &[])).contains("at least one"));
        assert!(said(&trajectory(&["gripper"], &[(1.0, f64::NAN)])).contains("not finite"));
        assert!(said(&trajectory(&["gripper"], &[(2.0, 0.0), (1.0, 0.0)])).contains("later than 2 s"));
        assert!(said(&trajectory(&["gripper"], &[(1000.0, 0.0)])).contains("at most 120 s"));
        Ok(())
    }
}
