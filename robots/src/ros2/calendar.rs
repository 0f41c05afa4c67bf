//! The stamps of what we say, as ROS 2 tools expect them: since 1970.

use vela_embodiment::{Clock, Stamp, unix_time};

/// The calendar beside a clock of ours. It is looked at once: whatever sets the machine's calendar later, what is said
/// goes on evenly.
#[derive(Clone, Copy)]
pub(super) struct Calendar {
    /// From the clock's zero to 1970, ns.
    began: i128,
}

impl Calendar {
    /// As the machine's is now.
    pub(super) fn beside(clock: &dyn Clock) -> Self {
        Self::showing(unix_time(), clock.now())
    }

    fn showing(date: Stamp, now: Stamp) -> Self {
        Self { began: i128::from(date.0) - i128::from(now.0) }
    }

    /// A moment of the clock, since 1970.
    pub(super) fn date(self, stamp: Stamp) -> Stamp {
        Stamp((self.began + i128::from(stamp.0)).clamp(0, u64::MAX.into()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros2::messages::Time;
    use vela_embodiment::VirtualClock;

    #[test]
    fn dates_follow_the_clock_from_the_day_on_which_it_began() {
        let calendar = Calendar::showing(Stamp::from_secs(1.8e9), Stamp::from_secs(30.0));
        let date = calendar.date(Stamp::from_secs(31.25));
        assert_eq!(Time::from(date), Time { sec: 1_800_000_001, nanosec: 250_000_000 });
        assert_eq!(Calendar::showing(Stamp(0), Stamp(9)).date(Stamp(3)), Stamp(0), "before 1970");

        let clock = VirtualClock::new();
        clock.advance_secs(500.0);
        let calendar = Calendar::beside(&clock);
        assert!(unix_time().secs_since(calendar.date(clock.now())).abs() < 10.0);
        let then = calendar.date(clock.now());
        clock.advance_secs(3.0);
        assert_eq!(calendar.date(clock.now()), then.plus_secs(3.0));
    }
}
