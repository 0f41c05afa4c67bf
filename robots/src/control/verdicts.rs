//! The gate's verdicts on their way to a log: what is said again and again goes in stretches, and what a slow log misses
//! is counted and told.

use super::TickReport;
use crate::rollout::RolloutEvent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use vela_embodiment::{Stamp, Trip};

/// A verdict that is said again and again is told as often as this, s: what a kill of the process can lose of it.
const TOLD_AGAIN_SECS: f64 = 1.0;

/// Ticks in a row on which the gate said the same, and not a plain pass. The first tick of a verdict is a stretch of its
/// own, told at once; those that repeat it follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// The first tick.
    pub first_tick: u64,
    /// The last one.
    pub last_tick: u64,
    /// When the first one started.
    pub stamp: Stamp,
    /// Whether the gate replaced what was asked by a hold.
    pub held: bool,
    /// What the plan asked on the first tick, if there was one, rad or m.
    pub asked: Option<Vec<f64>>,
    /// What was sent to the arm on the first tick, rad or m.
    pub targets: Vec<f64>,
    /// Why, on the first tick; on the others only stamps and measured times differ.
    pub trips: Vec<Trip>,
}

impl Stretch {
    /// One tick of a control loop, if the gate did not plainly pass it.
    fn of(tick: &TickReport) -> Option<Self> {
        let said = tick.held || !tick.trips.is_empty();
        said.then(|| Self {
            first_tick: tick.tick,
            last_tick: tick.tick,
            stamp: tick.stamp,
            held: tick.held,
            asked: tick.asked.clone(),
            targets: tick.targets.clone(),
            trips: tick.trips.clone(),
        })
    }

    /// The same of a rollout's tick; of what else happens in one it is `None`.
    fn of_rollout(event: &RolloutEvent<'_>) -> Option<Self> {
        let RolloutEvent::Tick { tick, asked, verdict, applied, .. } = event else { return None };
        // Whatever is no plain pass has a reason, and that a stamp.
        verdict.trips.first().map(|trip| Self {
            first_tick: *tick as u64,
            last_tick: *tick as u64,
            stamp: trip.stamp,
            held: verdict.held,
            asked: asked.map(|action| action.joint_targets.clone()),
            targets: applied.joint_targets.clone(),
            trips: verdict.trips.clone(),
        })
    }

    /// How many ticks it has.
    pub fn ticks(&self) -> u64 {
        self.last_tick - self.first_tick + 1
    }

    fn is_said_by(&self, tick: &Self) -> bool {
        let same = |(a, b): (&Trip, &Trip)| a.reason == b.reason && a.detail == b.detail;
        self.held == tick.held
            && self.trips.len() == tick.trips.len()
            && self.trips.iter().zip(&tick.trips).all(same)
    }
}

/// Folds what the gate says tick by tick into stretches.
#[derive(Clone, Debug, Default)]
pub struct Stretches {
    /// What it said on the last tick, unless that was a plain pass.
    last: Option<Stretch>,
    /// The ticks since then that said it again and were not told yet.
    repeats: Option<Stretch>,
}

impl Stretches {
    /// Takes the next tick of a rollout and gives what is to be told by now, in its order. Other events are passed over.
    pub fn rollout(&mut self, event: &RolloutEvent<'_>) -> [Option<Stretch>; 2] {
        match event {
            RolloutEvent::Tick { .. } => self.tick(Stretch::of_rollout(event)),
            _ => [None, None],
        }
    }

    /// What has not been told yet at the end of it all.
    pub fn rest(&mut self) -> Option<Stretch> {
        self.last = None;
        self.repeats.take()
    }

    /// The next tick, `None` if it was plainly passed.
    fn tick(&mut self, tick: Option<Stretch>) -> [Option<Stretch>; 2] {
        let Some(tick) = tick else { return [self.rest(), None] };
        if self.last.as_ref().is_some_and(|last| last.is_said_by(&tick)) {
            let (last_tick, stamp) = (tick.last_tick, tick.stamp);
            let repeats = self.repeats.get_or_insert(tick);
            repeats.last_tick = last_tick;
            let due = stamp.secs_since(repeats.stamp) >= TOLD_AGAIN_SECS;
            [if due { self.repeats.take() } else { None }, None]
        } else {
            [self.repeats.take(), self.last.insert(tick).clone().into()]
        }
    }
}

/// What a log gets.
#[derive(Clone, Debug, PartialEq)]
pub enum VerdictEntry {
    /// The gate stepped in.
    Stretch(Stretch),
    /// So many ticks' verdicts are missing here, because the log was too slow for too long.
    Lost(u64),
}

/// The verdicts of a loop, in their order, until it has ended.
#[derive(Debug)]
pub struct Verdicts {
    entries: Receiver<VerdictEntry>,
    lost_at_the_end: Arc<AtomicU64>,
}

impl Iterator for Verdicts {
    type Item = VerdictEntry;

    /// Waits for the next one.
    fn next(&mut self) -> Option<VerdictEntry> {
        self.entries.recv().ok().or_else(|| {
            let lost = self.lost_at_the_end.swap(0, Ordering::AcqRel);
            (lost > 0).then_some(VerdictEntry::Lost(lost))
        })
    }
}

/// The loop's end: it never waits.
#[derive(Debug)]
pub(super) struct VerdictSink {
    entries: SyncSender<VerdictEntry>,
    stretches: Stretches,
    lost: u64,
    lost_at_the_end: Arc<AtomicU64>,
}

pub(super) fn channel(waiting: usize) -> (VerdictSink, Verdicts) {
    let (sender, entries) = sync_channel(waiting);
    let lost_at_the_end = Arc::new(AtomicU64::new(0));
    let sink = VerdictSink {
        entries: sender,
        stretches: Stretches::default(),
        lost: 0,
        lost_at_the_end: lost_at_the_end.clone(),
    };
    (sink, Verdicts { entries, lost_at_the_end })
}

impl VerdictSink {
    pub(super) fn tick(&mut self, tick: &TickReport) {
        self.stretches.tick(Stretch::of(tick)).into_iter().flatten().for_each(|stretch| self.tell(stretch));
    }

    fn tell(&mut self, stretch: Stretch) {
        if self.lost > 0 && self.entries.try_send(VerdictEntry::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
        let ticks = stretch.ticks();
        // Behind what was lost and could not be told nothing else may come.
        let full = self.lost > 0
            || matches!(
                self.entries.try_send(VerdictEntry::Stretch(stretch)),
                Err(TrySendError::Full(VerdictEntry::Stretch(_)))
            );
        self.lost += if full { ticks } else { 0 };
    }
}

impl Drop for VerdictSink {
    /// The loop has ended, or died.
    fn drop(&mut self) {
        if let Some(rest) = self.stretches.rest() {
            self.tell(rest);
        }
        self.lost_at_the_end.store(self.lost, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_embodiment::TripReason;

    /// A tick of a 10 Hz loop on which the gate said this, or nothing.
    fn tick(number: u64, said: Option<(TripReason, &str)>) -> TickReport {
        let stamp = Stamp::from_secs(number as f64 / 10.0);
        let trip = said.map(|(reason, detail)| Trip::new(reason, detail, stamp));
        TickReport {
            tick: number,
            stamp,
            late_secs: 0.0,
            joints: Vec::new(),
            asked: None,
            commanded: false,
            targets: vec![number as f64],
            held: said.is_some_and(|(reason, _)| reason == TripReason::NoPlan),
            trips: trip.into_iter().collect(),
            frame_age_secs: None,
        }
    }

    const NO_PLAN: Option<(TripReason, &str)> = Some((TripReason::NoPlan, "no plan for this tick"));

    /// First tick, last tick, or how many were lost.
    fn told(entry: VerdictEntry) -> (u64, u64) {
        match entry {
            VerdictEntry::Stretch(stretch) => (stretch.first_tick, stretch.last_tick),
            VerdictEntry::Lost(ticks) => (u64::MAX, ticks),
        }
    }

    #[test]
    fn a_verdict_is_told_at_once_and_its_repeats_in_stretches() {
        let (mut sink, mut verdicts) = channel(100);
        sink.tick(&tick(0, None));
        sink.tick(&tick(1, NO_PLAN));
        assert_eq!(verdicts.next().map(told), Some((1, 1)), "not only when it is over");
        (2..30).for_each(|k| sink.tick(&tick(k, NO_PLAN)));
        sink.tick(&tick(30, Some((TripReason::Velocity, "joint 'a': asked 1, allowed 2"))));
        sink.tick(&tick(31, Some((TripReason::Velocity, "joint 'a': asked 3, allowed 2"))));
        sink.tick(&tick(32, None));
        (33..36).for_each(|k| sink.tick(&tick(k, NO_PLAN)));
        drop(sink);
        let rest: Vec<_> = verdicts.map(told).collect();
        assert_eq!(rest, [(2, 12), (13, 23), (24, 29), (30, 30), (31, 31), (33, 33), (34, 35)]);
    }

    #[test]
    fn what_a_log_that_sleeps_misses_is_told_where_it_is_missing() {
        let other = |k: u64| if k.is_multiple_of(2) { NO_PLAN } else { Some((TripReason::Rate, "hurried")) };
        let (mut sink, mut verdicts) = channel(3);
        (0..10).for_each(|k| sink.tick(&tick(k, other(k))));
        let first: Vec<_> = (0..3).filter_map(|_| verdicts.next()).map(told).collect();
        assert_eq!(first, [(0, 0), (1, 1), (2, 2)]);
        // There is room again: for the seven that are missing, and for two more.
        (10..13).for_each(|k| sink.tick(&tick(k, other(k))));
        drop(sink);
        let rest: Vec<_> = verdicts.map(told).collect();
        assert_eq!(rest, [(u64::MAX, 7), (10, 10), (11, 11), (u64::MAX, 1)]);
    }

    #[test]
    fn an_hour_of_holding_waits_in_a_channel_that_nobody_reads() {
        let (mut sink, verdicts) = channel(4096);
        (0..36_000).for_each(|k| sink.tick(&tick(k, NO_PLAN)));
        drop(sink);
        let entries: Vec<_> = verdicts.collect();
        let ticks = |entry: &VerdictEntry| match entry {
            VerdictEntry::Stretch(stretch) => stretch.ticks(),
            VerdictEntry::Lost(_) => 0,
        };
        assert_eq!(entries.iter().map(ticks).sum::<u64>(), 36_000);
        assert!(entries.len() < 3_600, "{} entries", entries.len());
    }
}
