//! Who commands the arm: of each joint the node whose command plays, and nobody else until it has ended. Commands for
//! the arm and for its gripper, which come from different endpoints, play side by side.

use crate::resolve::Plan;
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{Error, Result, Stamp};

/// The present commanders of one arm.
#[derive(Debug)]
pub(super) struct Commanders {
    /// One per joint.
    seats: Mutex<Vec<Option<Seat>>>,
}

/// An endpoint's identity and what it commanded last.
#[derive(Clone, Debug)]
struct Seat {
    who: [u8; 16],
    plan: Arc<Plan>,
}

impl Commanders {
    pub(super) fn new(joints: usize) -> Self {
        Self { seats: Mutex::new(vec![None; joints]) }
    }

    /// Gives the joints at `places` to `who` for as long as `plan` lasts; messages without an identity count as one
    /// sender. Returns what all joints are to do now: what was commanded last of each that still plays, and where
    /// nothing plays to stay at `current` (rad or m).
    ///
    /// # Errors
    /// Another's command still moves one of them.
    pub(super) fn take(
        &self,
        who: [u8; 16],
        places: &[usize],
        plan: Plan,
        now: Stamp,
        current: &[f64],
    ) -> Result<Plan> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        for seat in places.iter().filter_map(|place| seats[*place].as_ref()) {
            let left = seat.plan.end().secs_since(now);
            if seat.who != who && left > 0.0 {
                return Err(Error::Robot(format!(
                    "another node commands the arm for {left:.1} s more: refused"
                )));
            }
        }
        let (period_secs, plan) = (plan.period_secs, Arc::new(plan));
        for place in places {
            seats[*place] = Some(Seat { who, plan: plan.clone() });
        }
        let playing: Vec<Option<&Plan>> = seats
            .iter()
            .map(|seat| seat.as_ref().map(|seat| &*seat.plan).filter(|plan| plan.end() > now))
            .collect();
        let longest = playing.iter().flatten().map(|plan| plan.end().secs_since(now)).fold(0.0, f64::max);
        // A thousandth of a tick absorbs the rounding of stamps.
        let ticks = (longest / period_secs - 1e-3).ceil().max(1.0) as u32;
        let target = |joint: usize, tick: u32| {
            let plan = playing[joint]?;
            let row = plan.at(now.plus_secs(f64::from(tick) * period_secs));
            row.as_ref().or(plan.targets.last()).map(|row| row[joint])
        };
        let row = |tick| (0..current.len()).map(|k| target(k, tick).unwrap_or(current[k])).collect();
        let targets = (1..=ticks).map(row).collect();
        Ok(Plan { targets, period_secs, observation_stamp: now, command: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from_secs: f64, secs: f64, to: [f64; 2]) -> Plan {
        let ticks = (secs * 10.0).round() as usize;
        let targets = vec![to.to_vec(); ticks];
        Plan { targets, period_secs: 0.1, observation_stamp: Stamp::from_secs(from_secs), command: true }
    }

    #[test]
    fn one_commander_at_a_time() {
        let (commanders, at) = (Commanders::new(2), Stamp::from_secs);
        let take = |who: u8, now: f64, secs: f64| {
            let taken = commanders.take([who; 16], &[0, 1], plan(now, secs, [1.0; 2]), at(now), &[0.0; 2]);
            taken.map_or_else(|e| e.to_string(), |plan| plan.targets.len().to_string())
        };
        assert_eq!(take(1, 0.0, 2.0), "20");
        assert!(take(2, 1.0, 2.0).contains("for 1.0 s more"));
        assert_eq!(take(1, 1.0, 0.5), "5");
        assert_eq!(take(2, 1.6, 1.4), "14");
    }

    #[test]
    fn arm_and_gripper_play_side_by_side_and_then_stay() -> Result<()> {
        let (commanders, at) = (Commanders::new(2), Stamp::from_secs);
        commanders.take([1; 16], &[0], plan(0.0, 1.0, [5.0, 9.0]), at(0.0), &[0.0, 0.5])?;
        let both = commanders.take([2; 16], &[1], plan(0.5, 1.0, [9.0, 7.0]), at(0.5), &[4.0, 0.5])?;
        assert_eq!(both.targets.len(), 10);
        assert_eq!((&both.targets[0], &both.targets[9]), (&vec![5.0, 7.0], &vec![5.0, 7.0]));
        // What has ended before stays where it is now, not where it was sent then.
        let one = commanders.take([1; 16], &[1], plan(3.0, 0.2, [9.0, 6.0]), at(3.0), &[3.5, 0.5])?;
        assert_eq!(one.targets, vec![vec![3.5, 6.0]; 2]);
        Ok(())
    }
}
