//! One joint from tick to tick: the nearest to what is asked from which it can still stop inside its limits.

use super::verdict::TripReason;
use crate::Limits;

/// A joint's target, its speed and how that changes: rad or m, per s, per s^2.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Motion {
    pub(super) position: f64,
    pub(super) speed: f64,
    pub(super) acceleration: f64,
}

/// Below this a speed is rest, rad/s or m/s.
const REST: f64 = 1e-12;
/// What rounding may cost, rad or m (or per s).
const SLACK: f64 = 1e-9;
/// A stop that takes more ticks than this is none.
const LONGEST_STOP: usize = 10_000;

/// The fastest speed at which a tick of `dt` may begin that brings something `distance` nearer, if later ticks may
/// each take `rate * dt` off the speed and it is to end exactly there.
pub(super) fn approach(distance: f64, rate: f64, dt: f64) -> f64 {
    let unit = rate * dt * dt;
    // After a tick at `m` times the rate and more, `m` ticks of braking cover `unit * m * (m + 1) / 2`.
    let m = ((0.25 + 2.0 * distance / unit).sqrt() - 0.5).floor().max(0.0);
    (distance + unit * m * (m + 1.0) / 2.0) / ((m + 1.0) * dt)
}

/// The speed toward a target that is asked `asked` fast and that itself moves at `pace`: no faster than lets the joint
/// still come to move with it. What a joint at `speed` can reach and follow within a tick stays as it is.
fn brake_for_target(asked: f64, pace: f64, speed: f64, limits: &Limits, dt: f64) -> f64 {
    // Where the target was a tick ago, seen from the joint.
    let behind = (asked - pace) * dt;
    let most = limits.acceleration * dt;
    let reached = asked.abs() <= limits.velocity && (asked - speed).abs() <= most;
    if behind.abs() <= most * dt || (reached && pace.abs() > REST) {
        return asked;
    }
    let speed = pace + behind.signum() * approach(behind.abs(), limits.acceleration, dt);
    speed.clamp(asked.min(0.0), asked.max(0.0))
}

impl Motion {
    /// A tick later at another speed.
    fn at_speed(self, speed: f64, dt: f64) -> Self {
        let speed = if speed.abs() < REST { 0.0 } else { speed };
        Self { position: self.position + speed * dt, speed, acceleration: (speed - self.speed) / dt }
    }

    /// One tick of the quickest stop.
    pub(super) fn braked(self, limits: &Limits, dt: f64) -> Self {
        let most = limits.acceleration;
        match limits.jerk {
            None => self.at_speed(0.0_f64.clamp(self.speed - most * dt, self.speed + most * dt), dt),
            Some(jerk) => {
                let most = approach(self.speed.abs(), jerk, dt).min(most);
                let wanted = (-self.speed / dt).clamp(-most, most);
                let possible = wanted.clamp(self.acceleration - jerk * dt, self.acceleration + jerk * dt);
                self.at_speed(self.speed + possible * dt, dt)
            }
        }
    }

    /// Whether the joint stands and nothing pulls at it.
    pub(super) fn rests(self, limits: &Limits, dt: f64) -> bool {
        self.speed == 0.0 && limits.jerk.is_none_or(|jerk| self.acceleration.abs() <= jerk * dt)
    }

    /// Whether this motion and the stop from it stay in the joint's speed and between `bounds`.
    fn can_stop(mut self, bounds: (f64, f64), limits: &Limits, dt: f64) -> bool {
        // Far from every limit it need not be played: no stop speeds up by more, lasts longer or goes further than this.
        let (most, jerk) = (limits.acceleration, limits.jerk.unwrap_or(f64::INFINITY));
        let turning = most / jerk + dt;
        let fastest = self.speed.abs() + most * turning;
        let distance = fastest * (fastest / most + 3.0 * turning + 3.0 * dt);
        if fastest <= limits.velocity
            && self.position - distance >= bounds.0
            && self.position + distance <= bounds.1
        {
            return true;
        }
        for _ in 0..LONGEST_STOP {
            let inside = self.position >= bounds.0 - SLACK && self.position <= bounds.1 + SLACK;
            if !inside || self.speed.abs() > limits.velocity + SLACK {
                return false;
            }
            if self.rests(limits, dt) {
                return true;
            }
            self = self.braked(limits, dt);
        }
        false
    }

    /// A tick toward `wanted` (rad or m), which was `pace * dt` before it a tick ago. Says what was in the way: the
    /// reason, what was asked and what is allowed.
    pub(super) fn toward(
        self,
        wanted: f64,
        pace: f64,
        limits: &Limits,
        dt: f64,
        note: &mut dyn FnMut(TripReason, f64, f64),
    ) -> Self {
        let l = limits;
        let inside = wanted.clamp(l.lower, l.upper);
        if (inside - wanted).abs() > 1e-6 {
            note(TripReason::Position, wanted, inside);
        }
        let asked = (inside - self.position) / dt;
        let speed = asked.clamp(-l.velocity, l.velocity);
        if (speed - asked).abs() > 1e-6 {
            note(TripReason::Velocity, asked, speed);
        }
        let braking = brake_for_target(asked, pace, self.speed, l, dt);
        let speed = if braking == asked { speed } else { braking.clamp(-l.velocity, l.velocity) };
        let v = self.speed;
        let eased = speed.clamp(v - l.acceleration * dt, v + l.acceleration * dt);
        if (eased - speed).abs() > 1e-6 {
            note(TripReason::Acceleration, (speed - v) / dt, (eased - v) / dt);
        }
        let next = match l.jerk {
            None => {
                // Fast enough to still stop before the limit: v dt + v^2 / (2 a) <= distance.
                let stoppable = |distance: f64| {
                    let d = distance.max(0.0);
                    l.acceleration * ((dt * dt + 2.0 * d / l.acceleration).sqrt() - dt)
                };
                let (down, up) = (stoppable(self.position - l.lower), stoppable(l.upper - self.position));
                let target = self.position + eased.clamp(-down, up) * dt;
                Self { position: target, ..self }
            }
            Some(jerk) => {
                let (least, most) = (self.acceleration - jerk * dt, self.acceleration + jerk * dt);
                let wished = (eased - v) / dt;
                let possible = wished.clamp(least, most);
                if (possible - wished).abs() > 1e-3 {
                    note(
                        TripReason::Jerk,
                        (wished - self.acceleration) / dt,
                        (possible - self.acceleration) / dt,
                    );
                }
                // A target that stands still is not passed either.
                let bounds = match pace.abs() < REST {
                    true if asked > 0.0 => (l.lower, l.upper.min(inside)),
                    true => (l.lower.max(inside), l.upper),
                    false => (l.lower, l.upper),
                };
                self.nearest(possible, bounds, l, dt)
            }
        };
        let position = next.position.clamp(l.lower, l.upper);
        let speed = (position - self.position) / dt;
        Self { position, speed, acceleration: (speed - v) / dt }
    }

    /// The acceleration nearest to `wished` from which the joint can still stop; braking at once when there is none.
    fn nearest(self, wished: f64, bounds: (f64, f64), limits: &Limits, dt: f64) -> Self {
        let with = |acceleration: f64| self.at_speed(self.speed + acceleration * dt, dt);
        let whole = with(wished);
        if whole.can_stop(bounds, limits, dt) {
            return whole;
        }
        let mut sure = self.braked(limits, dt);
        if !sure.can_stop(bounds, limits, dt) {
            return sure;
        }
        let mut too_much = wished;
        for _ in 0..20 {
            let half = with(0.5 * (sure.acceleration + too_much));
            match half.can_stop(bounds, limits, dt) {
                true => sure = half,
                false => too_much = half.acceleration,
            }
        }
        sure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DT: f64 = 1.0 / 30.0;

    fn limits(jerk: Option<f64>) -> Limits {
        Limits { lower: -2.0, upper: 2.0, velocity: 3.0, acceleration: 30.0, jerk, effort: None }
    }

    #[test]
    fn the_fastest_approach_ends_exactly_there() {
        for distance in [1e-6, 0.01, 0.0333, 0.034, 0.1, 0.5, 3.0] {
            let mut left = distance;
            let mut speed = approach(left, 30.0, DT);
            while left > 1e-12 {
                let next = approach(left, 30.0, DT);
                assert!(next <= speed + 1e-9 && speed - next <= 30.0 * DT + 1e-9);
                speed = next;
                left -= speed * DT;
                assert!(left > -1e-9, "{distance}: passed by {left}");
            }
            assert!(speed <= 30.0 * DT + 1e-9, "{distance}: it arrives at {speed}");
        }
    }

    /// Seen once: a plan that began far away was passed by up to 0.08 rad.
    #[test]
    fn a_far_target_is_never_passed() {
        for jerk in [None, Some(900.0), Some(100.0)] {
            for far in [0.05, 0.3, 1.0, 1.9, -0.7, -1.9] {
                let (mut joint, mut arrived) = (Motion::default(), None);
                for tick in 0..200 {
                    joint = joint.toward(far, 0.0, &limits(jerk), DT, &mut |_, _, _| {});
                    let beyond = (joint.position - far) * far.signum();
                    assert!(beyond < 1e-6, "{far} with jerk {jerk:?}: passed by {beyond}");
                    if beyond > -1e-3 && arrived.is_none() {
                        arrived = Some(tick);
                    }
                }
                assert!(arrived.is_some_and(|tick| tick < 60), "{far}, {jerk:?}: {arrived:?}, {joint:?}");
            }
        }
    }

    #[test]
    fn a_target_that_moves_is_caught_up_with_and_then_followed_exactly() {
        let (mut joint, mut wanted) = (Motion::default(), 0.3);
        for tick in 0..30 {
            let before = wanted;
            wanted += 1.5 * DT;
            let pace = if tick == 0 { 0.0 } else { (wanted - before) / DT };
            joint = joint.toward(wanted, pace, &limits(None), DT, &mut |_, _, _| {});
            assert!(joint.position < wanted + 0.02);
            assert!(
                tick < 15 || (joint.position - wanted).abs() < 1e-9,
                "{tick}: {}",
                joint.position - wanted
            );
        }
    }

    #[test]
    fn a_stop_from_any_motion_ends() {
        for jerk in [None, Some(2000.0), Some(300.0)] {
            for speed in [-3.0, -0.4, 1e-7, 0.7, 3.0] {
                for acceleration in [-30.0, 0.0, 12.0, 30.0] {
                    let mut joint = Motion { position: 0.0, speed, acceleration };
                    let ticks = (0..500).take_while(|_| {
                        joint = joint.braked(&limits(jerk), DT);
                        !joint.rests(&limits(jerk), DT)
                    });
                    assert!(ticks.count() < 60, "{jerk:?} {speed} {acceleration}");
                }
            }
        }
    }
}
