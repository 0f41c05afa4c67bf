//! A policy that answers a robot over zenoh.

use super::{Keys, failed};
use crate::wire::load::Load;
use crate::wire::{answer, ask, hello, load};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, Clock, Error, MonotonicClock, Observation, Policy, PolicySpec, Result, Stamp,
};
use zenoh::query::Query;
use zenoh::{Session, Wait};

/// Questions that may wait while the policy thinks; one robot has one in flight.
const WAITING: usize = 4;

/// Load is measured over this long, s.
const LOAD_SECS: f64 = 5.0;
/// Whoever is welcomed is expected to cost so much of it, s: two robots that come at once must not choose the same.
const EXPECTED_SECS: f64 = 0.5;

/// How busy this policy is.
#[derive(Default)]
struct Busy {
    clock: MonotonicClock,
    /// Until when it thought, and for how long, s.
    thoughts: Mutex<VecDeque<(Stamp, f64)>>,
    /// Questions without an answer.
    waiting: AtomicUsize,
}

impl Busy {
    fn note(&self, secs: f64) {
        let mut thoughts = self.thoughts.lock().unwrap_or_else(PoisonError::into_inner);
        thoughts.push_back((self.clock.now(), secs.min(LOAD_SECS)));
    }

    fn load(&self) -> Load {
        let mut thoughts = self.thoughts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        while thoughts.front().is_some_and(|(then, _)| now.secs_since(*then) > LOAD_SECS) {
            thoughts.pop_front();
        }
        let thought: f64 = thoughts.iter().map(|(_, secs)| secs).sum();
        Load { busy: thought / LOAD_SECS + self.waiting.load(Ordering::Acquire) as f64 }
    }
}

/// A question that was taken; it counts as waiting until this is dropped.
struct Waited<'a>(&'a Busy);

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a serving policy tells.
#[derive(Clone, Debug, PartialEq)]
pub enum ServeEvent {
    /// A chunk went out.
    Answered {
        /// The sentence that it answers.
        instruction: String,
        /// Seconds of thought.
        infer_secs: f64,
    },
    /// A question could not be answered; the robot knows.
    Refused(String),
}

/// How the serving went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeReport {
    /// Chunks sent.
    pub answered: u64,
    /// Questions refused.
    pub refused: u64,
    /// Seconds of thought per chunk (the first 100,000).
    pub infer_secs: Vec<f64>,
}

/// Answers the robot with this base key until `shutdown`.
///
/// # Errors
/// The session is closed or the key is no key. Bad questions and a failing policy are answered, not returned.
pub fn serve_policy(
    session: &Session,
    base: &str,
    policy: &mut dyn Policy,
    shutdown: &AtomicBool,
    listener: &mut dyn FnMut(ServeEvent),
) -> Result<ServeReport> {
    let keys = Keys::new(base, &session.zid().to_string());
    let spec = policy.spec().clone();
    let busy = Arc::new(Busy::default());
    let _load = session
        .declare_queryable(keys.load.as_str())
        .callback({
            let busy = busy.clone();
            move |query: Query| {
                if let Ok(bytes) = load::encode(&busy.load()) {
                    let _ = query.reply(query.key_expr().clone(), bytes).wait();
                }
            }
        })
        .wait()
        .map_err(|e| failed(&keys.load, e))?;
    // Dropping these at the end takes them back; the token goes first because it was declared last.
    let _hello = session
        .declare_queryable(keys.hello.as_str())
        .callback({
            let (spec, busy) = (spec.clone(), busy.clone());
            move |query: Query| {
                busy.note(EXPECTED_SECS);
                welcome(&query, &spec);
            }
        })
        .wait()
        .map_err(|e| failed(&keys.hello, e))?;
    let (sender, questions) = sync_channel::<Query>(WAITING);
    let _chunk = session
        .declare_queryable(keys.chunk.as_str())
        .callback({
            let busy = busy.clone();
            move |query: Query| {
                // Counted before it is there to be taken.
                busy.waiting.fetch_add(1, Ordering::AcqRel);
                if let Err(TrySendError::Full(query) | TrySendError::Disconnected(query)) =
                    sender.try_send(query)
                {
                    busy.waiting.fetch_sub(1, Ordering::AcqRel);
                    let _ = query.reply_err("the policy is busy").wait();
                }
            }
        })
        .wait()
        .map_err(|e| failed(&keys.chunk, e))?;
    let token = session.liveliness().declare_token(keys.alive.as_str());
    let _token = token.wait().map_err(|e| failed(&keys.alive, e))?;

    let watch = MonotonicClock::new();
    let mut report = ServeReport::default();
    while !shutdown.load(Ordering::Acquire) {
        let query = match questions.recv_timeout(Duration::from_millis(50)) {
            Ok(query) => query,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Link("the zenoh session was closed".into()));
            }
        };
        let _waited = Waited(&busy);
        let question = match ask::decode(&payload(&query)) {
            Ok(question) => question,
            Err(error) => {
                report.refused += 1;
                let why = error.to_string();
                let _ = query.reply_err(why.as_str()).wait();
                listener(ServeEvent::Refused(why));
                continue;
            }
        };
        let start = watch.now();
        let chunk = think(policy, &spec, &question).map_err(|error| error.to_string());
        let infer_secs = watch.now().secs_since(start);
        busy.note(infer_secs);
        let event = match &chunk {
            Ok(_) => {
                let instruction = question.history.last().map(|o| o.instruction.clone()).unwrap_or_default();
                ServeEvent::Answered { instruction, infer_secs }
            }
            Err(why) => ServeEvent::Refused(why.clone()),
        };
        let reply = answer::Answer { sequence: question.sequence, infer_secs, chunk };
        let sent = match answer::encode(&reply) {
            Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
            Err(error) => query.reply_err(error.to_string()).wait(),
        };
        let event = match sent {
            Ok(()) => event,
            Err(error) => ServeEvent::Refused(format!("the answer could not be sent: {error}")),
        };
        match event {
            ServeEvent::Answered { .. } => {
                report.answered += 1;
                if report.infer_secs.len() < 100_000 {
                    report.infer_secs.push(infer_secs);
                }
            }
            ServeEvent::Refused(_) => report.refused += 1,
        }
        listener(event);
    }
    Ok(report)
}

fn payload(query: &Query) -> Cow<'_, [u8]> {
    query.payload().map(|payload| payload.to_bytes()).unwrap_or_default()
}

fn welcome(query: &Query, spec: &PolicySpec) {
    let said = hello::decode_hello(&payload(query))
        .and_then(|hello| hello::encode_welcome(&hello::Welcome::to(&hello, spec)));
    // A robot that has gone needs no answer.
    let _ = match said {
        Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
        Err(error) => query.reply_err(error.to_string()).wait(),
    };
}

/// What comes from outside is checked before the policy sees it.
fn think(policy: &mut dyn Policy, spec: &PolicySpec, question: &ask::Ask) -> Result<ActionChunk> {
    if question.history.len() != spec.history {
        return Err(Error::Shape {
            what: "observations in the question".into(),
            expected: spec.history.to_string(),
            got: question.history.len().to_string(),
        });
    }
    question.history.iter().try_for_each(|observation: &Observation| observation.check(&spec.embodiment))?;
    policy.infer(&question.history, &question.options)
}
