//! The questions that wait for a policy: the newest of each robot, and the robots take turns.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A line of robots, each with its newest question. Who asks again keeps its place with the new question, and who was
/// answered joins at the end: a robot that asks all the time comes no more often than the others.
#[derive(Debug)]
pub(super) struct Line<T> {
    places: usize,
    waiting: Mutex<VecDeque<(String, T)>>,
    joined: Condvar,
}

/// What became of a question that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<T> {
    /// It waits.
    Waits,
    /// It waits in the place of the same robot's last one, which nobody wants any more.
    Instead(T),
    /// It does not wait: so many robots do already.
    Full(T),
}

impl<T> Line<T> {
    /// For so many robots.
    pub(super) fn new(places: usize) -> Self {
        Self { places, waiting: Mutex::default(), joined: Condvar::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(String, T)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a robot's question; never waits.
    pub(super) fn join(&self, robot: &str, question: T) -> Place<T> {
        let mut waiting = self.waiting();
        if let Some((_, last)) = waiting.iter_mut().find(|(name, _)| name == robot) {
            return Place::Instead(std::mem::replace(last, question));
        }
        if waiting.len() >= self.places {
            return Place::Full(question);
        }
        waiting.push_back((robot.to_owned(), question));
        drop(waiting);
        self.joined.notify_one();
        Place::Waits
    }

    /// Takes the question whose turn it is; waits for one at most `patience`.
    pub(super) fn next(&self, patience: Duration) -> Option<T> {
        let (mut waiting, _) = self
            .joined
            .wait_timeout_while(self.waiting(), patience, |waiting| waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front().map(|(_, question)| question)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn robots_take_turns_each_with_its_newest_question() {
        let line = Line::new(2);
        assert_eq!(line.join("chatty", 0), Place::Waits);
        assert_eq!(line.join("calm", 100), Place::Waits);
        assert_eq!(line.join("chatty", 1), Place::Instead(0));
        let mut answered = Vec::new();
        for round in 0..4 {
            // Ten questions of the one and one of the other, for each that is answered.
            for question in 1..=10 {
                line.join("chatty", 10 * round + question);
            }
            answered.extend(line.next(Duration::ZERO));
            line.join("calm", 100 + round);
        }
        assert_eq!((answered, line.len()), (vec![10, 100, 30, 102], 2));
    }

    #[test]
    fn a_full_line_takes_no_other_robot() {
        let line = Line::new(1);
        assert_eq!(line.join("a", 1), Place::Waits);
        assert_eq!(line.join("b", 2), Place::Full(2));
        assert_eq!(line.join("a", 3), Place::Instead(1));
        assert_eq!((line.next(Duration::ZERO), line.next(Duration::from_millis(1))), (Some(3), None));
        assert_eq!(line.join("b", 4), Place::Waits);
    }
}
