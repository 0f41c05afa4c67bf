//! Who commands the arm: of each joint the node whose command plays, and nobody else until it has ended. Commands for
//! the arm and for its gripper, which come from different endpoints, play side by side.
//!
//! A command has ended when its last target is past or when the emergency stop was pressed. Nobody is kept away by a
//! commander that has gone: what it sent plays on, until another commands.

use super::keys;
use crate::resolve::Plan;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vela_embodiment::{EmergencyStop, Error, Result, Stamp};

/// The present commanders of one arm.
#[derive(Debug)]
pub(super) struct Commanders {
    stop: EmergencyStop,
    /// One per joint.
    seats: Mutex<Vec<Option<Seat>>>,
    publishers: Mutex<Publishers>,
}

/// An endpoint's identity and what it commanded last.
#[derive(Clone, Debug)]
struct Seat {
    who: [u8; 16],
    plan: Arc<Plan>,
    /// How often the emergency stop had been pressed by then.
    presses: u64,
}

/// Who publishes, by the tokens of publishers; of some commanders no token is known.
#[derive(Debug, Default)]
struct Publishers {
    here: BTreeSet<[u8; 16]>,
    gone: BTreeSet<[u8; 16]>,
}

/// So many of those that have gone are remembered.
const GONE: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Commanders {
    /// Of an arm with so many joints and this emergency stop.
    pub(super) fn new(joints: usize, stop: &EmergencyStop) -> Self {
        Self { stop: stop.clone(), seats: Mutex::new(vec![None; joints]), publishers: Mutex::default() }
    }

    /// Takes note that the publisher with this token is here, or not any more.
    pub(super) fn saw(&self, token: &str, here: bool) {
        let mut publishers = lock(&self.publishers);
        let gid = keys::gid_of(token);
        if here {
            publishers.gone.remove(&gid);
            publishers.here.insert(gid);
        } else if publishers.here.remove(&gid) {
            publishers.gone.insert(gid);
        }
        while publishers.gone.len() > GONE {
            publishers.gone.pop_first();
        }
    }

    /// Gives the joints at `places` to `who` for as long as `plan` lasts; messages without an identity count as one
    /// sender. Returns what all joints are to do now: what was commanded last of each that still plays, and where
    /// nothing plays to stay at `current` (rad or m).
    ///
    /// # Errors
    /// The emergency stop is pressed, or the command of another that is still there moves one of them.
    pub(super) fn take(
        &self,
        who: [u8; 16],
        places: &[usize],
        plan: Plan,
        now: Stamp,
        current: &[f64],
    ) -> Result<Plan> {
        // Counted before it is looked at: a press in between ends this command too.
        let presses = self.stop.presses();
        if self.stop.pressed() {
            return Err(Error::Robot(format!("emergency stop: {}: refused", self.stop.reason())));
        }
        let mut seats = lock(&self.seats);
        for seat in seats.iter_mut() {
            seat.take_if(|seat| seat.presses != presses || seat.plan.end() <= now);
        }
        for seat in places.iter().filter_map(|place| seats[*place].as_ref()) {
            if seat.who != who && !lock(&self.publishers).gone.contains(&seat.who) {
                let left = seat.plan.end().secs_since(now);
                return Err(Error::Robot(format!(
                    "another node commands the arm for {left:.1} s more: refused"
                )));
            }
        }
        let (period_secs, plan) = (plan.period_secs, Arc::new(plan));
        for place in places {
            seats[*place] = Some(Seat { who, plan: plan.clone(), presses });
        }
        let playing: Vec<Option<&Plan>> =
            seats.iter().map(|seat| seat.as_ref().map(|seat| &*seat.plan)).collect();
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
    use crate::ros2::keys::{EndpointKind, Entity, FLOAT64_MULTI_ARRAY, Topic};

    fn plan(from_secs: f64, secs: f64, to: [f64; 2]) -> Plan {
        let ticks = (secs * 10.0).round() as usize;
        let targets = vec![to.to_vec(); ticks];
        Plan { targets, period_secs: 0.1, observation_stamp: Stamp::from_secs(from_secs), command: true }
    }

    #[test]
    fn one_commander_at_a_time() {
        let (commanders, at) = (Commanders::new(2, &EmergencyStop::default()), Stamp::from_secs);
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
        let (commanders, at) = (Commanders::new(2, &EmergencyStop::default()), Stamp::from_secs);
        commanders.take([1; 16], &[0], plan(0.0, 1.0, [5.0, 9.0]), at(0.0), &[0.0, 0.5])?;
        let both = commanders.take([2; 16], &[1], plan(0.5, 1.0, [9.0, 7.0]), at(0.5), &[4.0, 0.5])?;
        assert_eq!(both.targets.len(), 10);
        assert_eq!((&both.targets[0], &both.targets[9]), (&vec![5.0, 7.0], &vec![5.0, 7.0]));
        // What has ended before stays where it is now, not where it was sent then.
        let one = commanders.take([1; 16], &[1], plan(3.0, 0.2, [9.0, 6.0]), at(3.0), &[3.5, 0.5])?;
        assert_eq!(one.targets, vec![vec![3.5, 6.0]; 2]);
        Ok(())
    }

    #[test]
    fn a_stop_frees_every_seat_and_what_played_before_never_plays_again() -> Result<()> {
        let stop = EmergencyStop::default();
        let (commanders, at) = (Commanders::new(2, &stop), Stamp::from_secs);
        let take = |who: u8, joint: usize, now: f64| {
            commanders.take([who; 16], &[joint], plan(now, 60.0, [5.0, 9.0]), at(now), &[0.0, 0.5])
        };
        take(1, 0, 0.0)?;
        assert!(take(2, 0, 1.0).is_err_and(|e| e.to_string().contains("for 59.0 s more")));
        stop.press("smoke");
        for who in [1, 2] {
            let text = take(who, 0, 2.0).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains("emergency stop: smoke: refused"), "{text}");
        }
        stop.release();
        // The first one's joint stays where it is now.
        assert_eq!(take(3, 1, 3.0)?.targets[0], [0.0, 9.0]);
        assert_eq!(take(2, 0, 3.0)?.targets[0], [5.0, 9.0]);
        assert!(take(1, 0, 3.0).is_err_and(|e| e.to_string().contains("for 60.0 s more")));
        // Pressed and released between two commands.
        stop.press("again");
        stop.release();
        assert_eq!(take(1, 0, 4.0)?.targets[0], [5.0, 0.5]);
        Ok(())
    }

    #[test]
    fn who_has_gone_keeps_nobody_away_and_what_it_sent_plays_on() -> Result<()> {
        let (commanders, at) = (Commanders::new(2, &EmergencyStop::default()), Stamp::from_secs);
        let take = |who: [u8; 16], joint: usize, now: f64, to: f64| {
            commanders.take(who, &[joint], plan(now, 60.0, [to; 2]), at(now), &[0.0, 0.5])
        };
        let topic = Topic::new("/commands", &FLOAT64_MULTI_ARRAY);
        let token = |zid: &str| Entity::node(0, zid, "x").endpoint_token(3, EndpointKind::Publisher, &topic);
        let (first, second) = (token("a1"), token("b2"));
        let (ours, theirs) = (keys::gid_of(&first), keys::gid_of(&second));
        commanders.saw(&first, true);
        commanders.saw(&second, true);
        take(ours, 0, 0.0, 1.0)?;
        assert!(take(theirs, 0, 1.0, 2.0).is_err(), "two that are there: one is refused");
        commanders.saw(&first, false);
        assert_eq!(take(theirs, 1, 2.0, 3.0)?.targets[0], [1.0, 3.0]);
        assert_eq!(take(theirs, 0, 2.0, 2.0)?.targets[0], [2.0, 3.0]);
        commanders.saw(&first, true);
        assert!(take(ours, 0, 3.0, 1.0).is_err());
        commanders.saw(&second, false);
        take(ours, 0, 4.0, 1.0)?;
        // Of a sender without a token nobody knows when it goes: its command ends by itself.
        take([0; 16], 1, 65.0, 1.0)?;
        assert!(take(ours, 1, 66.0, 1.0).is_err());
        Ok(())
    }
}
