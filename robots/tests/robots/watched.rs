//! Every tick of a control loop that has ended: was it inside the limits, when did it hold, when did it move.

use crate::toll::{Toll, excess_rad};
use vela_embodiment::{Embodiment, Result, Stamp};
use vela_robots::{ControlEvent, ControlReport, State};

/// One tick.
struct Seen {
    stamp: Stamp,
    holding: bool,
    /// Sent elsewhere than the tick before, and not to come to a stop for good.
    moving: bool,
}

/// A loop's ticks, all of them inside the limits.
pub struct Watched {
    each: Vec<Seen>,
    /// Of the measured joints, rad.
    pub excess_rad: f64,
    /// Ticks of the loop that nobody saw.
    unseen: u64,
}

/// Looks at every tick of a loop that has ended: position, speed and acceleration of what was sent, and where the joints
/// were measured.
pub fn within_limits(
    report: &ControlReport,
    events: impl IntoIterator<Item = ControlEvent>,
) -> Result<Watched> {
    let robot = Embodiment::so101()?;
    let dt = robot.period_secs();
    assert_eq!(report.events_dropped, 0);
    let mut watched = Watched { each: Vec::new(), excess_rad: 0.0, unseen: 0 };
    let (mut q, mut v) = (Vec::new(), vec![0.0; 6]);
    let (mut holding, mut stopped) = (true, false);
    for event in events {
        let tick = match event {
            ControlEvent::Tick(tick) => tick,
            ControlEvent::State { state, .. } => {
                holding = matches!(state, State::Holding { .. });
                stopped |= matches!(state, State::Stopped { .. });
                continue;
            }
            _ => continue,
        };
        assert!(!tick.held || !tick.trips.is_empty(), "a hold without a reason");
        watched.excess_rad = watched.excess_rad.max(excess_rad(&robot, &tick.joints));
        if q.is_empty() {
            q.clone_from(&tick.joints);
        }
        let mut moving = false;
        for (k, joint) in robot.joints.iter().enumerate() {
            let (l, next) = (&joint.limits, tick.targets[k]);
            let speed = (next - q[k]) / dt;
            assert!(next >= l.lower && next <= l.upper && speed.abs() <= l.velocity + 1e-6);
            assert!((speed - v[k]).abs() <= l.acceleration * dt + 1e-6);
            moving |= !stopped && (next - q[k]).abs() > 1e-9;
            (q[k], v[k]) = (next, speed);
        }
        watched.each.push(Seen { stamp: tick.stamp, holding, moving });
    }
    assert!(v.iter().all(|speed| speed.abs() < 1e-6), "it ends standing: {v:?}");
    assert!(watched.excess_rad == 0.0, "measured {} rad outside its limits", watched.excess_rad);
    watched.unseen = report.ticks - watched.each.len() as u64;
    assert_eq!(watched.unseen, 0, "no tick is unseen");
    Ok(watched)
}

impl Watched {
    /// How many ticks there were.
    pub fn ticks(&self) -> usize {
        self.each.len()
    }

    /// The first hold after `fault`, the first motion after that hold and after `healed`.
    pub fn toll(&self, fault: Stamp, healed: Stamp) -> Toll {
        let held = self.each.iter().position(|seen| seen.stamp >= fault && seen.holding);
        let after = &self.each[held.unwrap_or(self.each.len())..];
        let moved = after.iter().find(|seen| seen.stamp >= healed && seen.moving && !seen.holding);
        Toll {
            held_secs: held.map(|at| self.each[at].stamp.secs_since(fault)),
            moved_secs: moved.map(|seen| seen.stamp.secs_since(healed)),
            counted: format!("{} of {} ticks unseen", self.unseen, self.ticks()),
            excess_rad: Some(self.excess_rad),
        }
    }

    /// Of a fault that goes on and on: the longest time from a hold to the next motion, and what was counted.
    pub fn lasting(&self, counted: &str) -> Toll {
        let mut longest: Option<f64> = None;
        let mut since = None;
        // Before the first motion nothing is a hold.
        for seen in self.each.iter().skip_while(|seen| seen.holding) {
            if seen.holding {
                since = since.or(Some(seen.stamp));
            } else if seen.moving {
                let secs = since.take().map(|begun| seen.stamp.secs_since(begun));
                longest = [longest, secs].into_iter().flatten().reduce(f64::max);
            }
        }
        let held =
            longest.map_or_else(|| "never held".into(), |secs| format!("longest hold {:.0} ms", secs * 1e3));
        Toll { counted: format!("{held}, {counted}"), excess_rad: Some(self.excess_rad), ..Toll::default() }
    }
}
