//! The shape of the SO-101's two jaws, and how to turn them to an object.

use super::motion::{Reacher, Tip, wrap};
use crate::scene::ObjectKind;
use crate::state::{ObjectState, WorldState};
use nalgebra::{Vector2, Vector3};
use std::f64::consts::{FRAC_PI_2, PI};

/// Gripper joint with room for an object between the jaws, rad.
pub(super) const OPEN: f64 = 0.7;
/// Gripper joint that is asked for when something is to be held, rad: 4 mm inside every object, a firm grip that
/// crushes nothing.
pub(super) const GRIP: f64 = 0.10;
/// Gripper joint of a closed gripper that pushes, rad.
pub(super) const SHUT: f64 = -0.1;
/// The jaws are parallel at this gripper joint, 27 mm apart, rad.
const PARALLEL: f64 = 0.195;
/// From the tip to the jaw's hinge along the gripper, m, halved: how fast the middle between the jaws moves.
const HALF_LEVER_M: f64 = 0.0313;
/// Half the width of a jaw, m.
pub(super) const JAW_HALF_WIDTH_M: f64 = 0.011;
/// Middle of the closed jaws on the tip's z axis, m.
pub(super) const SHUT_MIDDLE_M: f64 = -0.010;
/// Most turn of the wrist that a grasp may ask for, rad.
const MOST_ROLL: f64 = 2.4;

/// Middle between the jaws on the tip's z axis at a gripper joint, m.
pub(super) fn middle_m(gripper: f64) -> f64 {
    HALF_LEVER_M * (gripper.clamp(0.1, 1.1) - PARALLEL).tan()
}

/// Horizontal direction of a yaw.
pub(super) fn direction(yaw: f64) -> Vector2<f64> {
    Vector2::new(yaw.cos(), yaw.sin())
}

/// Yaw at which to grasp an object: across parallel faces, little turn of the wrist, jaws clear of neighbours.
pub(super) fn grasp_yaw(reacher: &Reacher, state: &WorldState, tip: &Tip, target: &ObjectState) -> f64 {
    let at = target.base_from_object.translation.vector.xy();
    let heading = reacher.pointing.heading(at);
    let present = wrap(tip.yaw - reacher.pointing.heading(tip.pose.translation.vector.xy()));
    let others: Vec<&ObjectState> = state
        .objects
        .iter()
        .filter(|o| (o.kind, o.colour) != (target.kind, target.colour))
        .filter(|o| (o.base_from_object.translation.vector.xy() - at).norm() < 0.12)
        .collect();
    let cost = |yaw: f64| {
        let roll = wrap(yaw - heading);
        let far = if roll.abs() > MOST_ROLL { 100.0 } else { 0.0 };
        let crowd: f64 = others.iter().map(|other| crowding(yaw, at, other)).sum();
        roll.abs() + 0.4 * wrap(roll - present).abs() + 3.0 * crowd + far
    };
    let yaws = candidates(target, heading);
    yaws.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(heading)
}

/// Yaws at which the jaws meet an object squarely.
fn candidates(target: &ObjectState, heading: f64) -> Vec<f64> {
    let turn = target.base_from_object.rotation;
    let axes = [turn * Vector3::x(), turn * Vector3::y(), turn * Vector3::z()];
    match target.kind {
        ObjectKind::Cube => {
            // Any horizontal edge; the cube may lie on any of its faces.
            let level = axes.iter().min_by(|a, b| a.z.abs().total_cmp(&b.z.abs()));
            let yaw = level.map_or(heading, |axis| axis.y.atan2(axis.x));
            (0..4).map(|k| yaw + f64::from(k) * FRAC_PI_2).collect()
        }
        ObjectKind::Cylinder if axes[2].z.abs() < 0.7 => {
            let yaw = axes[2].y.atan2(axes[2].x) + FRAC_PI_2;
            vec![yaw, yaw + PI]
        }
        _ => (-6..=6).map(|k| heading + f64::from(k) * PI / 12.0).collect(),
    }
}

/// How far a neighbour reaches into the places of the open jaws, in centimetres.
fn crowding(yaw: f64, at: Vector2<f64>, other: &ObjectState) -> f64 {
    let off = other.base_from_object.translation.vector.xy() - at;
    let along = off.dot(&direction(yaw));
    let across = off.dot(&direction(yaw + FRAC_PI_2)).abs();
    let radius = match other.kind {
        ObjectKind::Cube => 0.019,
        ObjectKind::Bowl => 0.045,
        ObjectKind::Cylinder | ObjectKind::Ball => 0.0135,
    };
    let side = (across - JAW_HALF_WIDTH_M).max(0.0);
    [-0.035, 0.037]
        .into_iter()
        .map(|jaw| {
            let gap = side.hypot(((along - jaw).abs() - 0.006).max(0.0));
            (radius + 0.004 - gap).max(0.0) * 100.0
        })
        .fold(0.0, f64::max)
}
