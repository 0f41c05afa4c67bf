//! How busy a policy is.

use super::serve::LOAD_SECS;
use std::collections::VecDeque;
use vela_embodiment::Stamp;

/// When a policy thought.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// From and until, the oldest first.
    thoughts: VecDeque<(Stamp, Stamp)>,
    /// Since when it thinks.
    since: Option<Stamp>,
}

impl Busy {
    pub(super) fn begin(&mut self, now: Stamp) {
        self.since = Some(now);
    }

    pub(super) fn end(&mut self, now: Stamp) {
        self.thoughts.extend(self.since.take().map(|since| (since, now)));
        while self.thoughts.front().is_some_and(|(_, until)| now.secs_since(*until) > LOAD_SECS) {
            self.thoughts.pop_front();
        }
    }

    /// Whether it thinks now.
    pub(super) fn thinks(&self) -> bool {
        self.since.is_some()
    }

    /// The part of the last [`LOAD_SECS`] that it thought, 0 to 1.
    pub(super) fn part(&self, now: Stamp) -> f64 {
        let begun = now.plus_secs(-LOAD_SECS);
        let present = self.since.map(|since| (since, now));
        let inside = |(since, until): (Stamp, Stamp)| until.secs_since(since.max(begun)).max(0.0);
        self.thoughts.iter().copied().chain(present).map(inside).sum::<f64>() / LOAD_SECS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_thought_lately_counts_and_the_present_thought_too() {
        let (mut busy, at) = (Busy::default(), |secs: f64| Stamp::from_secs(100.0 + secs));
        let part = |busy: &Busy, secs: f64| (1e6 * busy.part(at(secs))).round() / 1e6;
        assert_eq!((part(&busy, 0.0), busy.thinks()), (0.0, false));
        busy.begin(at(0.0));
        assert_eq!((part(&busy, 1.0), busy.thinks()), (0.2, true));
        assert_eq!(part(&busy, 60.0), 1.0, "no thought is busier than all the time");
        busy.end(at(60.0));
        assert_eq!((part(&busy, 60.0), part(&busy, 62.0), part(&busy, 65.0)), (1.0, 0.6, 0.0));
        busy.begin(at(64.0));
        busy.end(at(64.5));
        assert_eq!(part(&busy, 65.0), 0.1);
        busy.begin(at(70.0));
        busy.end(at(70.0));
        assert_eq!((part(&busy, 70.0), busy.thoughts.len()), (0.0, 1));
    }
}
