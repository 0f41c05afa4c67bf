//! What a fault cost, measured, as one line in one form. `docs/faults.md` is made of these lines.

use vela_embodiment::Embodiment;

/// Of one fault.
#[derive(Default)]
pub struct Toll {
    /// From the fault until the arm held, s.
    pub held_secs: Option<f64>,
    /// From the fault's end until the arm moved again, s.
    pub moved_secs: Option<f64>,
    /// What else was counted: what was lost, what was refused.
    pub counted: String,
    /// How far beyond its range a joint was measured at worst, rad.
    pub excess_rad: Option<f64>,
}

impl Toll {
    /// Prints it.
    pub fn tell(&self, fault: &str) {
        let after = |what: &str, secs: f64| format!("{what} after {:.0} ms", secs * 1e3);
        let parts = [
            self.held_secs.map(|secs| after("held", secs)),
            self.moved_secs.map(|secs| after("moved again", secs)),
            (!self.counted.is_empty()).then(|| self.counted.clone()),
            self.excess_rad.map(|rad| format!("worst joint excess {rad:.4} rad")),
        ];
        eprintln!("fault: {fault}: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
}

/// How far these joints are outside of their ranges at worst, rad; 0 inside.
pub fn excess_rad(robot: &Embodiment, joints: &[f64]) -> f64 {
    let each = robot.joints.iter().zip(joints);
    each.map(|(joint, q)| (joint.limits.lower - q).max(q - joint.limits.upper)).fold(0.0, f64::max)
}
