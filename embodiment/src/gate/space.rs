//! Where the arm's body may be: the tip's workspace, keep-out zones, and capsules that must not touch each other.

use super::verdict::TripReason;
use crate::{Embodiment, JointKind, Kinematics, Result, Safety, Zone};
use nalgebra::{Point3, Vector3};

/// A capsule with its link's index.
#[derive(Clone, Debug)]
struct Body {
    link: usize,
    from: Point3<f64>,
    to: Point3<f64>,
    radius: f64,
}

/// The rules of one robot.
#[derive(Clone, Debug)]
pub(super) struct Space {
    kinematics: Kinematics,
    safety: Safety,
    bodies: Vec<Body>,
    /// Which bodies may not touch.
    pairs: Vec<(usize, usize)>,
    /// No part of the arm moves further when a joint moves by 1, m per rad or m.
    reach: f64,
}

/// The rule that is broken most.
#[derive(Clone, Copy, Debug)]
struct Breach {
    /// How far, m.
    depth: f64,
    rule: Rule,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Where the tip is, m.
    Workspace([f64; 3]),
    /// Which zone, and which body (none: the tip).
    KeepOut(usize, Option<usize>),
    /// Which pair.
    Touch(usize),
}

impl Space {
    pub(super) fn new(robot: &Embodiment) -> Result<Self> {
        let kinematics = robot.kinematics()?;
        let safety = robot.safety.clone();
        let mut bodies = Vec::with_capacity(safety.capsules.len());
        for capsule in &safety.capsules {
            bodies.push(Body {
                link: kinematics.model().link_index(&capsule.link)?,
                from: capsule.from_m.into(),
                to: capsule.to_m.into(),
                radius: capsule.radius_m,
            });
        }
        let joined = |a: usize, b: usize| {
            let ends = |j: &crate::ModelJoint| (j.parent, j.child) == (a, b) || (j.parent, j.child) == (b, a);
            a == b || kinematics.model().joints.iter().any(ends)
        };
        let all = (0..bodies.len()).flat_map(|a| (a + 1..bodies.len()).map(move |b| (a, b)));
        let pairs = all.filter(|(a, b)| !joined(bodies[*a].link, bodies[*b].link)).collect();
        let offsets = kinematics.model().joints.iter().map(|joint| {
            let slides = joint.kind == Some(JointKind::Prismatic);
            let longest = if slides { joint.lower.abs().max(joint.upper.abs()) } else { 0.0 };
            joint.parent_from_joint.translation.vector.norm() + longest
        });
        let longest = bodies.iter().map(|b| b.from.coords.norm().max(b.to.coords.norm()) + b.radius);
        let reach = (offsets.sum::<f64>() + longest.fold(0.0, f64::max)).max(1.0);
        Ok(Self { kinematics, safety, bodies, pairs, reach })
    }

    /// Why the arm, now at `positions`, may not go this way (poses, tick by tick), if it may not: somewhere it would
    /// break a rule by more than it does already.
    pub(super) fn refuses(&self, positions: &[f64], way: &[Vec<f64>]) -> Option<(TripReason, String)> {
        let first = self.worst(way.first()?);
        let mut now = None;
        for (k, pose) in way.iter().enumerate() {
            // Too near to the first pose to break what is far away there.
            let turned: f64 = pose.iter().zip(&way[0]).map(|(a, b)| (a - b).abs()).sum();
            if k > 0 && first.depth + 2.0 * self.reach * turned < 0.0 {
                continue;
            }
            let breach = if k == 0 { first } else { self.worst(pose) };
            if breach.depth > SLACK_M
                && breach.depth > now.get_or_insert_with(|| self.worst(positions).depth).max(0.0) + SLACK_M
            {
                return Some(self.say(breach));
            }
        }
        None
    }

    /// The rule that is broken most, or, with a negative depth, that is nearest to being broken.
    fn worst(&self, positions: &[f64]) -> Breach {
        let mut worst = Breach { depth: f64::NEG_INFINITY, rule: Rule::Workspace([0.0; 3]) };
        let mut see = |depth: f64, rule: Rule| {
            if depth > worst.depth {
                worst = Breach { depth, rule };
            }
        };
        let s = &self.safety;
        let tip = self.kinematics.base_from_tip(positions).translation.vector;
        for axis in 0..3 {
            let beyond = (s.workspace_min_m[axis] - tip[axis]).max(tip[axis] - s.workspace_max_m[axis]);
            see(beyond, Rule::Workspace(tip.into()));
        }
        for (k, zone) in s.keep_out.iter().enumerate() {
            see(-outside(zone, &tip.into()), Rule::KeepOut(k, None));
        }
        if self.bodies.is_empty() {
            return worst;
        }
        let links = self.kinematics.base_from_links(positions);
        let lines: Vec<_> =
            self.bodies.iter().map(|b| (links[b.link] * b.from, links[b.link] * b.to)).collect();
        for (k, zone) in s.keep_out.iter().enumerate() {
            for (b, (from, to)) in lines.iter().enumerate() {
                let radius = self.bodies[b].radius;
                // No point of the line is nearer than its middle by more than half its length.
                let least = outside(zone, &nalgebra::center(from, to)) - 0.5 * (to - from).norm();
                let gap = if least > radius { least } else { line_outside(zone, from, to) };
                see(radius - gap, Rule::KeepOut(k, Some(b)));
            }
        }
        for (k, (a, b)) in self.pairs.iter().enumerate() {
            let gap = between(&lines[*a], &lines[*b]);
            see(self.bodies[*a].radius + self.bodies[*b].radius - gap, Rule::Touch(k));
        }
        worst
    }

    fn say(&self, breach: Breach) -> (TripReason, String) {
        let link = |body: usize| &self.kinematics.model().links[self.bodies[body].link].name;
        match breach.rule {
            Rule::Workspace([x, y, z]) => {
                (TripReason::Workspace, format!("the tip would get to ({x:.3}, {y:.3}, {z:.3}) m"))
            }
            Rule::KeepOut(zone, body) => {
                let name = &self.safety.keep_out[zone].name;
                let who = body.map_or("the tip".into(), |body| format!("link '{}'", link(body)));
                (TripReason::KeepOut, format!("{who} would be {:.3} m inside '{name}'", breach.depth))
            }
            Rule::Touch(pair) => {
                let (a, b) = self.pairs[pair];
                (TripReason::SelfCollision, format!("links '{}' and '{}' would touch", link(a), link(b)))
            }
        }
    }
}

/// Depths that differ by less are the same, m.
const SLACK_M: f64 = 1e-9;

/// How far a point is outside a box, m; negative inside.
fn outside(zone: &Zone, point: &Point3<f64>) -> f64 {
    let mut beyond = Vector3::zeros();
    let mut nearest_face = f64::NEG_INFINITY;
    for axis in 0..3 {
        let d = (zone.min_m[axis] - point[axis]).max(point[axis] - zone.max_m[axis]);
        beyond[axis] = d.max(0.0);
        nearest_face = nearest_face.max(d);
    }
    if nearest_face > 0.0 { beyond.norm() } else { nearest_face }
}

/// The least that any point of a line is outside a box, m: the distance is convex along the line.
fn line_outside(zone: &Zone, from: &Point3<f64>, to: &Point3<f64>) -> f64 {
    let at = |part: f64| outside(zone, &(from + (to - from) * part));
    let (mut low, mut high) = (0.0, 1.0);
    // The answer is right to a thousandth of the line's length to the power of the steps below.
    for _ in 0..40 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if at(a) <= at(b) { high = b } else { low = a }
    }
    at(0.5 * (low + high)).min(at(0.0)).min(at(1.0))
}

/// The distance of two lines between their ends, m.
fn between(first: &(Point3<f64>, Point3<f64>), second: &(Point3<f64>, Point3<f64>)) -> f64 {
    let (u, v, w) = (first.1 - first.0, second.1 - second.0, first.0 - second.0);
    let (a, b, c, d, e) = (u.dot(&u), u.dot(&v), v.dot(&v), u.dot(&w), v.dot(&w));
    let divided = |x: f64, y: f64| if y > 1e-18 { x / y } else { 0.0 };
    // The nearest point of the first line, then of the second to it, then of the first again: exact, because clamping
    // one end fixes the other.
    let s = divided(b * e - c * d, a * c - b * b).clamp(0.0, 1.0);
    let t = divided(b * s + e, c).clamp(0.0, 1.0);
    let s = divided(b * t - d, a).clamp(0.0, 1.0);
    (w + u * s - v * t).norm()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn distances_agree_with_a_search_over_both_lines() {
        let mut rng = crate::stream(5, "lines");
        let mut point =
            || Point3::new(rng.random_range(-1.0..1.0), rng.random(), rng.random_range(-0.5..0.5));
        let zone = Zone { name: "z".into(), min_m: [-0.2, 0.3, -0.1], max_m: [0.2, 0.6, 0.2] };
        for k in 0..200 {
            let (first, mut second) = ((point(), point()), (point(), point()));
            if k % 4 == 0 {
                // Parallel.
                second.1 = second.0 + (first.1 - first.0) * 0.7;
            }
            let parts = || (0..=100).map(|k| f64::from(k) / 100.0);
            let on = |line: &(Point3<f64>, Point3<f64>), part: f64| line.0 + (line.1 - line.0) * part;
            let searched = parts()
                .flat_map(|s| parts().map(move |t| (s, t)))
                .map(|(s, t)| (on(&first, s) - on(&second, t)).norm())
                .fold(f64::INFINITY, f64::min);
            let ours = between(&first, &second);
            assert!(ours <= searched + 1e-9 && searched - ours < 0.02, "{k}: {ours} against {searched}");
            let searched = parts().map(|s| outside(&zone, &on(&first, s))).fold(f64::INFINITY, f64::min);
            let ours = line_outside(&zone, &first.0, &first.1);
            assert!(ours <= searched + 1e-9 && searched - ours < 0.02, "{k}: {ours} against {searched}");
        }
    }
}
