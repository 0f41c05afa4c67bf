//! Time: the only place that reads a clock. A stamp never crosses a machine as an instant, only as an echo.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the start of one particular clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp(pub u64);

impl Stamp {
    /// A stamp this many seconds after the clock's start.
    pub fn from_secs(secs: f64) -> Self {
        Self((secs.max(0.0) * 1e9).round() as u64)
    }

    /// Seconds since the clock's start.
    pub fn secs(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// Seconds from `earlier` to this stamp; negative when `earlier` is later.
    pub fn secs_since(self, earlier: Stamp) -> f64 {
        (self.0 as i128 - earlier.0 as i128) as f64 * 1e-9
    }

    /// This stamp moved by `secs` (never below zero).
    pub fn plus_secs(self, secs: f64) -> Self {
        let nanos = self.0 as i128 + (secs * 1e9).round() as i128;
        Self(nanos.clamp(0, u64::MAX as i128) as u64)
    }
}

/// Now by the machine's calendar, since 1970, 0 before: for what other programs read, never for control.
pub fn unix_time() -> Stamp {
    Stamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64))
}

/// The same in whole seconds, for dates that people read.
pub fn unix_seconds() -> i64 {
    (unix_time().0 / 1_000_000_000) as i64
}

/// A source of time: real or virtual.
pub trait Clock: Send + Sync {
    /// Now, on this clock.
    fn now(&self) -> Stamp;
    /// Waits until `stamp`; a virtual clock jumps there at once.
    fn sleep_until(&self, stamp: Stamp);
}

/// The machine's monotonic clock, starting at zero when it is made.
#[derive(Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Stamp {
        Stamp(self.start.elapsed().as_nanos() as u64)
    }

    fn sleep_until(&self, stamp: Stamp) {
        let now = self.now();
        if stamp > now {
            std::thread::sleep(Duration::from_nanos(stamp.0 - now.0));
        }
    }
}

/// A clock that moves only when told to: lockstep simulation and tests.
#[derive(Debug, Default)]
pub struct VirtualClock {
    nanos: AtomicU64,
}

impl VirtualClock {
    /// A clock at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward.
    pub fn advance_secs(&self, secs: f64) {
        self.nanos.fetch_add((secs.max(0.0) * 1e9).round() as u64, Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Stamp {
        Stamp(self.nanos.load(Ordering::SeqCst))
    }

    fn sleep_until(&self, stamp: Stamp) {
        self.nanos.fetch_max(stamp.0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_subtract_in_seconds_both_ways() {
        let (a, b) = (Stamp::from_secs(1.5), Stamp::from_secs(2.0));
        assert!((b.secs_since(a) - 0.5).abs() < 1e-12);
        assert!((a.secs_since(b) + 0.5).abs() < 1e-12);
        assert_eq!(a.plus_secs(0.5), b);
    }

    #[test]
    fn a_virtual_clock_moves_only_when_told() {
        let clock = VirtualClock::new();
        assert_eq!(clock.now(), Stamp(0));
        clock.sleep_until(Stamp::from_secs(1.0));
        clock.advance_secs(0.25);
        assert_eq!(clock.now(), Stamp::from_secs(1.25));
    }
}
