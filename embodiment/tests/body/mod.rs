//! An arm's body as a checker sees it: forward kinematics by matrices and distances of its own, nothing of the gate's.

use nalgebra::{Matrix4, Point3, Rotation3, Translation3, Vector3};
use vela_embodiment::{Embodiment, JointKind, Result, RobotModel, Zone};

/// A capsule is looked at in this many equal parts against a zone. What a pass at right angles could hide between two
/// points is less than 0.03 mm for the SO-101's capsules.
const PARTS: u32 = 32;

/// The robot whose poses are judged.
pub struct Body {
    robot: Embodiment,
    model: RobotModel,
    /// For each joint of the model, its place in a joint vector.
    place: Vec<Option<usize>>,
    tip: usize,
    /// The link of each capsule.
    links: Vec<usize>,
    /// Which capsules may not touch.
    pairs: Vec<(usize, usize)>,
}

/// How far a pose is beyond what the robot may, m; negative: how far from it.
#[derive(Clone, Copy, Debug)]
pub struct Depths {
    /// The tip beyond its workspace.
    pub workspace: f64,
    /// The tip or a capsule inside a zone.
    pub keep_out: f64,
    /// Two capsules inside each other.
    pub touch: f64,
}

impl Body {
    pub fn new(robot: &Embodiment) -> Result<Self> {
        let model = RobotModel::from_urdf(&robot.urdf)?;
        let names = robot.joint_names();
        let place =
            model.joints.iter().map(|joint| names.iter().position(|name| *name == joint.name)).collect();
        let links = robot.safety.capsules.iter().map(|capsule| model.link_index(&capsule.link));
        let links = links.collect::<Result<Vec<usize>>>()?;
        let apart = |(a, b): &(usize, usize)| {
            let ends = [links[*a], links[*b]];
            let joined = |parent, child| ends == [parent, child] || ends == [child, parent];
            ends[0] != ends[1] && !model.joints.iter().any(|joint| joined(joint.parent, joint.child))
        };
        let pairs = (0..links.len()).flat_map(|a| (0..a).map(move |b| (a, b))).filter(apart).collect();
        Ok(Self { tip: model.link_index(&robot.tip_link)?, robot: robot.clone(), model, place, pairs, links })
    }

    pub fn depths(&self, positions: &[f64]) -> Depths {
        let mut frames = vec![Matrix4::identity(); self.model.links.len()];
        for (joint, place) in self.model.joints.iter().zip(&self.place) {
            let along = joint.axis.into_inner() * place.map_or(0.0, |k| positions[k]);
            let moved = match joint.kind {
                Some(JointKind::Prismatic) => Translation3::from(along).to_homogeneous(),
                _ => Rotation3::new(along).to_homogeneous(),
            };
            frames[joint.child] = frames[joint.parent] * joint.parent_from_joint.to_homogeneous() * moved;
        }
        let safety = &self.robot.safety;
        let lines = safety.capsules.iter().zip(&self.links).map(|(capsule, link)| {
            let at = |point: [f64; 3]| frames[*link].transform_point(&Point3::from(point));
            (at(capsule.from_m), at(capsule.to_m), capsule.radius_m)
        });
        let lines: Vec<Line> = lines.collect();
        let tip = frames[self.tip].transform_point(&Point3::origin());
        let mut depths =
            Depths { workspace: f64::NEG_INFINITY, keep_out: f64::NEG_INFINITY, touch: f64::NEG_INFINITY };
        for axis in 0..3 {
            let beyond =
                (safety.workspace_min_m[axis] - tip[axis]).max(tip[axis] - safety.workspace_max_m[axis]);
            depths.workspace = depths.workspace.max(beyond);
        }
        for zone in &safety.keep_out {
            let tip = (tip, tip, 0.0);
            let inside = lines.iter().chain([&tip]).map(|line| inside(zone, line));
            depths.keep_out = inside.fold(depths.keep_out, f64::max);
        }
        for (a, b) in &self.pairs {
            let (a, b) = (&lines[*a], &lines[*b]);
            depths.touch = depths.touch.max(a.2 + b.2 - apart(a, b));
        }
        depths
    }
}

/// A straight line between two points and how thick it is, m.
type Line = (Point3<f64>, Point3<f64>, f64);

/// How far a thick line is inside a box, m.
fn inside(zone: &Zone, (from, to, radius): &Line) -> f64 {
    let depth = |point: Point3<f64>| {
        let beyond = Vector3::from_fn(|k, _| (zone.min_m[k] - point[k]).max(point[k] - zone.max_m[k]));
        // In the box the nearest face counts, outside the nearest point.
        if beyond.max() < 0.0 { -beyond.max() } else { -beyond.map(|d| d.max(0.0)).norm() }
    };
    let parts = if from == to { 0 } else { PARTS };
    let points = (0..=parts).map(|k| from + (to - from) * (f64::from(k) / f64::from(PARTS)));
    radius + points.map(depth).fold(f64::NEG_INFINITY, f64::max)
}

/// The distance of two lines, m: along their common perpendicular where that meets both, else from one of the ends.
fn apart(a: &Line, b: &Line) -> f64 {
    let (u, v, w) = (a.1 - a.0, b.1 - b.0, b.0 - a.0);
    let normal = u.cross(&v);
    let square = normal.norm_squared();
    let (s, t) = (w.cross(&v).dot(&normal), w.cross(&u).dot(&normal));
    if square > 1e-18 && (0.0..=square).contains(&s) && (0.0..=square).contains(&t) {
        return w.dot(&normal).abs() / square.sqrt();
    }
    [(a.0, b), (a.1, b), (b.0, a), (b.1, a)]
        .map(|(end, line)| to_line(end, line))
        .into_iter()
        .fold(f64::INFINITY, f64::min)
}

/// The distance of a point from a line, m.
fn to_line(point: Point3<f64>, line: &Line) -> f64 {
    let along = line.1 - line.0;
    let part = (point - line.0).dot(&along) / along.norm_squared().max(1e-18);
    (line.0 + along * part.clamp(0.0, 1.0) - point).norm()
}
