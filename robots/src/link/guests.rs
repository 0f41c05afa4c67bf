//! The robots that a policy serves: each was welcomed under its key, and asks questions of rising numbers.

use super::serve::LOAD_SECS;
use std::collections::BTreeMap;
use vela_embodiment::Stamp;

/// So many robots are known; of more the one that was silent for longest has to say hello again.
const KNOWN: usize = 1024;

/// Everyone who was welcomed, by base key and name.
#[derive(Debug, Default)]
pub(super) struct Guests(BTreeMap<(String, String), Guest>);

#[derive(Debug)]
struct Guest {
    /// When it last said something.
    heard: Stamp,
    /// The number of its last question; nothing was asked yet when absent.
    asked: Option<u64>,
}

impl Guests {
    /// A robot whose contract fits came. One that comes again goes on with its numbers.
    pub(super) fn welcome(&mut self, base: &str, robot: &str, now: Stamp) {
        let guest = self.0.entry((base.into(), robot.into())).or_insert(Guest { heard: now, asked: None });
        guest.heard = now;
        if self.0.len() > KNOWN {
            let silent = self.0.iter().min_by_key(|(_, guest)| guest.heard).map(|(who, _)| who.clone());
            if let Some(who) = silent {
                self.0.remove(&who);
            }
        }
    }

    /// Takes note of a robot's question.
    ///
    /// # Errors
    /// The robot was not welcomed, or has asked this or a later one before: why, in words.
    pub(super) fn admit(&mut self, base: &str, robot: &str, sequence: u64, now: Stamp) -> Result<(), String> {
        let Some(guest) = self.0.get_mut(&(base.to_owned(), robot.to_owned())) else {
            return Err(format!("expected a hello of robot '{robot}' at {base} first, got its question"));
        };
        if guest.asked.is_some_and(|last| sequence <= last) {
            let last = guest.asked.unwrap_or_default();
            return Err(format!("expected a question after number {last}, got number {sequence}"));
        }
        (guest.heard, guest.asked) = (now, Some(sequence));
        Ok(())
    }

    /// Robots that have just come and not asked yet.
    pub(super) fn expected(&self, now: Stamp) -> usize {
        let fresh = |guest: &&Guest| guest.asked.is_none() && now.secs_since(guest.heard) < LOAD_SECS;
        self.0.values().filter(fresh).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_per_robot_and_strangers_say_hello_first() {
        let (mut guests, at) = (Guests::default(), Stamp::from_secs);
        let said = |admitted: Result<(), String>| admitted.err().unwrap_or_default();
        assert!(said(guests.admit("vela/a", "1", 1, at(0.0))).contains("expected a hello of robot '1'"));
        guests.welcome("vela/a", "1", at(0.0));
        guests.welcome("vela/b", "2", at(0.0));
        assert_eq!(guests.expected(at(1.0)), 2);
        assert_eq!(guests.admit("vela/a", "1", 7, at(1.0)), Ok(()));
        assert_eq!((guests.expected(at(1.0)), guests.expected(at(9.0))), (1, 0));
        assert_eq!(guests.admit("vela/b", "2", 1, at(1.0)), Ok(()), "another's numbers are its own");
        assert!(said(guests.admit("vela/b", "1", 8, at(1.0))).contains("at vela/b first"));
        for old in [6, 7] {
            let text = said(guests.admit("vela/a", "1", old, at(1.0)));
            assert_eq!(text, format!("expected a question after number 7, got number {old}"));
        }
        // A greeting starts no new count: a question of before must not come again.
        guests.welcome("vela/a", "1", at(2.0));
        assert!(guests.admit("vela/a", "1", 7, at(2.0)).is_err());
        assert_eq!(guests.admit("vela/a", "1", 8, at(2.0)), Ok(()));
    }

    #[test]
    fn of_too_many_robots_the_silent_one_is_forgotten() {
        let mut guests = Guests::default();
        for robot in 0..=KNOWN {
            guests.welcome("vela/a", &robot.to_string(), Stamp(robot as u64));
            // The first one stays in touch.
            assert_eq!(guests.admit("vela/a", "0", robot as u64 + 1, Stamp(robot as u64)), Ok(()));
        }
        assert!(guests.admit("vela/a", "1", 1, Stamp(5000)).is_err());
        assert_eq!(guests.admit("vela/a", "2", 1, Stamp(5000)), Ok(()));
    }
}
