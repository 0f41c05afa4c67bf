//! How late a message came, and whether it came before.
//!
//! A publisher's clock and ours may differ by anything, so one message tells nothing of its own. Of a row of them the
//! quickest counts as on time; what another took longer than that is its lateness. That the first ones are late already
//! nobody can see.

use super::keys::Attachment;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{Result, Stamp};
use zenoh::sample::Sample;

/// A publisher's clock may be slower than ours by this, s per s: no drift becomes a lateness. For the same reason
/// a lateness that stays is forgotten at this pace: 0.4 s of it after 800 s.
const DRIFT: f64 = 5e-4;
/// So many publishers of one topic are remembered.
const PUBLISHERS: usize = 32;

/// The messages of one topic, by publisher. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Arrivals {
    last: Arc<Mutex<BTreeMap<[u8; 16], Last>>>,
    repeats: Arc<AtomicU64>,
}

/// The newest message of a publisher.
#[derive(Clone, Copy)]
struct Last {
    sequence: i64,
    /// On the publisher's clock.
    stamp: Stamp,
    /// On ours.
    arrival: Stamp,
    late_secs: f64,
}

impl Arrivals {
    /// When a message that came at `arrival` would have come if it had been on time; `None` if it is the newest one
    /// again, or an older one. One without an attachment, or without a stamp in it, is on time.
    ///
    /// # Errors
    /// Its attachment is none of ROS 2's.
    pub(super) fn on_time(&self, sample: &Sample, arrival: Stamp) -> Result<Option<Stamp>> {
        let Some(bytes) = sample.attachment() else { return Ok(Some(arrival)) };
        Ok(self.hear(&Attachment::decode(&bytes.to_bytes())?, arrival))
    }

    fn hear(&self, said: &Attachment, arrival: Stamp) -> Option<Stamp> {
        let mut all = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.get(&said.gid).copied();
        // Whoever begins to count anew has a newer stamp.
        if last.is_some_and(|last| said.sequence <= last.sequence && said.stamp <= last.stamp) {
            self.repeats.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let late_secs = last.filter(|_| said.stamp > Stamp(0)).map_or(0.0, |last| last.then(said, arrival));
        let newest = Last { sequence: said.sequence, stamp: said.stamp, arrival, late_secs };
        if last.is_none() && all.len() == PUBLISHERS {
            let oldest = all.iter().min_by_key(|(_, last)| last.arrival).map(|(gid, _)| *gid);
            oldest.and_then(|gid| all.remove(&gid));
        }
        all.insert(said.gid, newest);
        Some(arrival.plus_secs(-late_secs))
    }

    /// How many messages came again or after a newer one.
    pub(super) fn repeats(&self) -> u64 {
        self.repeats.load(Ordering::Relaxed)
    }
}

impl Last {
    /// How late the next message is, s: as this one, and by what more time has passed between the two here than there.
    fn then(&self, next: &Attachment, arrival: Stamp) -> f64 {
        let (here, there) = (arrival.secs_since(self.arrival), next.stamp.secs_since(self.stamp));
        // Nothing on its way sets stamps back: the clock was. A clock set forward makes all before it late, and this
        // one on time.
        if there < 0.0 { self.late_secs } else { (self.late_secs + here * (1.0 - DRIFT) - there).max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages whose publisher's clock shows `there`, s, and that come when ours shows `here`; how late each is, ms.
    #[derive(Default)]
    struct Row {
        arrivals: Arrivals,
        sequence: i64,
    }

    impl Row {
        fn say(&mut self, there: f64, here: f64) -> i64 {
            self.sequence += 1;
            self.again(self.sequence, there, here).unwrap_or(-1)
        }

        fn again(&self, sequence: i64, there: f64, here: f64) -> Option<i64> {
            let said = Attachment { sequence, stamp: Stamp::from_secs(there), gid: [1; 16] };
            let here = Stamp::from_secs(here);
            let stamp = self.arrivals.hear(&said, here)?;
            Some((here.secs_since(stamp) * 1e3).round() as i64)
        }
    }

    const UNIX_SECS: f64 = 1.8e9;

    #[test]
    fn an_even_delay_is_seen_whatever_the_clocks_show() {
        for ahead in [UNIX_SECS, 0.0] {
            let mut row = Row::default();
            let mut said = |from: u32, to: u32, delay: f64| -> Vec<i64> {
                let at = |k: u32| 10.0 + 0.01 * f64::from(k);
                (from..to).map(|k| row.say(ahead + at(k), at(k) + delay)).collect()
            };
            assert!(said(0, 100, 0.002).iter().all(|late| *late == 0));
            let late = said(100, 1100, 0.402);
            assert!(late.iter().all(|late| (394..=400).contains(late)), "{late:?}");
            // They come on time again, and one of them a little late.
            assert!(said(1100, 1200, 0.002).iter().all(|late| *late == 0));
            assert_eq!(said(1200, 1201, 0.032), [30]);
            assert_eq!(said(1201, 1202, 0.002), [0]);
        }
    }

    #[test]
    fn a_clock_that_drifts_or_is_set_makes_nothing_late_for_long() {
        // Half an hour at 200 parts in a million too slow, and too fast.
        for rate in [1.0 - 2e-4, 1.0 + 2e-4] {
            let mut row = Row::default();
            let late =
                (0..18_000).map(|k| 0.1 * f64::from(k)).map(|t| row.say(UNIX_SECS + rate * t, t)).max();
            assert_eq!(late, Some(0));
        }
        let mut row = Row::default();
        row.say(100.0, 0.0);
        // Set back by an hour it is what it was, on time or late.
        assert_eq!((row.say(100.1, 0.1), row.say(40.0, 0.2), row.say(40.1, 0.3)), (0, 0, 0));
        assert_eq!((row.say(40.2, 0.7), row.say(10.0, 0.8), row.say(10.1, 0.9)), (300, 300, 300));
        // Set forward it is on time, and what is late from then on is seen.
        assert_eq!((row.say(9999.0, 1.0), row.say(9999.1, 1.1), row.say(9999.2, 1.5)), (0, 0, 300));
        // Whoever says no time is on time.
        assert_eq!((row.say(0.0, 1.6), row.say(0.0, 9.0)), (0, 0));
    }

    #[test]
    fn what_came_before_is_dropped_and_counted_and_who_begins_anew_is_heard() {
        let mut row = Row::default();
        assert_eq!((row.say(5.0, 1.0), row.say(5.1, 1.1)), (0, 0));
        assert_eq!(row.again(2, 5.1, 1.11), None, "repeated");
        assert_eq!(row.again(1, 5.0, 1.12), None, "overtaken");
        assert_eq!(row.arrivals.repeats(), 2);
        assert_eq!(row.again(1, 5.2, 1.2), Some(0), "it counts anew");
        // However many there are, the one that is heard is not forgotten.
        for other in 0..1000_u128 {
            let gid = (other << 8).to_le_bytes();
            row.arrivals.hear(&Attachment { sequence: 1, stamp: Stamp(1), gid }, Stamp::from_secs(1.3));
            assert_eq!(row.again(2 + other as i64, 5.3 + 1e-4 * other as f64, 1.3), Some(0));
        }
        assert_eq!(row.again(1, 5.0, 1.4), None);
        let remembered = row.arrivals.last.lock().map_or(0, |all| all.len());
        assert_eq!(remembered, PUBLISHERS);
    }
}
