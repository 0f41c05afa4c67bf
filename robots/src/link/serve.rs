//! A policy that answers robots over zenoh.
//!
//! Every robot is a guest of its own: its contract is compared when it says hello, its questions are numbered, and
//! nothing of one shows in the answers to another. They take turns ([`super::line`]). A question that nobody waits for
//! any more, because its time is up or the robot has asked again, is refused without a thought.

use super::busy::Busy;
use super::guests::Guests;
use super::line::{Line, Place};
use super::{Keys, base_of, failed};
use crate::wire::load::Load;
use crate::wire::{answer, ask, hello, load};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, Clock, Error, MonotonicClock, Observation, Policy, PolicySpec, Result, Stamp,
};
use zenoh::key_expr::KeyExpr;
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait};

/// So many robots may wait, each with one question.
const WAITING: usize = 32;
/// Load is measured over this long, s.
pub(super) const LOAD_SECS: f64 = 5.0;
/// Whoever is welcomed is expected to cost so much of it, s: two robots that come at once must not choose the same.
const EXPECTED_SECS: f64 = 0.5;
/// So many refusals are told one by one while the policy thinks.
const NEWS: usize = 256;
/// So many robots are counted one by one.
const COUNTED: usize = 1024;
/// So many thoughts are kept.
const KEPT: usize = 100_000;

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
    /// A question could not be answered, and why; the robot knows.
    Refused(String),
}

/// What became of a robot's questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Chunks sent.
    pub answered: u64,
    /// Questions refused, for whatever reason.
    pub refused: u64,
    /// Of them those that had waited for longer than the robot does, refused without a thought.
    pub stale: u64,
    /// Of them those whose robot had asked again before their turn came, refused without a thought.
    pub superseded: u64,
}

/// How the serving went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeReport {
    /// Chunks sent.
    pub answered: u64,
    /// Questions refused, for whatever reason.
    pub refused: u64,
    /// The same and more of each robot, by its base key (the first 1024).
    pub robots: BTreeMap<String, Served>,
    /// Seconds of thought per chunk (the first 100,000).
    pub infer_secs: Vec<f64>,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Plain,
    Stale,
    Superseded,
}

/// A question that came.
struct Question {
    query: Query,
    ask: ask::Ask,
    base: String,
    came: Stamp,
}

/// What the callbacks and the thinking thread share.
struct Desk {
    spec: PolicySpec,
    clock: MonotonicClock,
    guests: Mutex<Guests>,
    line: Line<Question>,
    busy: Mutex<Busy>,
    told: Mutex<(ServeReport, Vec<ServeEvent>)>,
}

/// A thread that panicked left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    fn new(spec: PolicySpec) -> Self {
        Self {
            spec,
            clock: MonotonicClock::new(),
            guests: Mutex::default(),
            line: Line::new(WAITING),
            busy: Mutex::default(),
            told: Mutex::default(),
        }
    }

    fn load(&self) -> Load {
        let now = self.clock.now();
        let expected = lock(&self.guests).expected(now) as f64 * EXPECTED_SECS / LOAD_SECS;
        let waiting = self.line.len() as f64;
        let busy = lock(&self.busy);
        Load { busy: busy.part(now) + f64::from(u8::from(busy.thinks())) + waiting + expected }
    }

    /// Says how busy it is, under the policy's own key: the question was to all.
    fn tell_load(&self, query: &Query, declared: &str, id: &str) {
        let base = robot_of(query).unwrap_or_else(|_| declared.to_owned());
        if let Ok(bytes) = load::encode(&self.load()) {
            let _ = query.reply(Keys::new(&base, id).load, bytes).wait();
        }
    }

    /// Compares contracts with a robot.
    fn welcome(&self, query: &Query) {
        let said = robot_of(query).and_then(|base| {
            let hello = hello::decode_hello(&payload(query))?;
            let welcome = hello::Welcome::to(&hello, &self.spec);
            if let hello::Welcome::Accepted(_) = welcome {
                lock(&self.guests).welcome(&base, &hello.robot, self.clock.now());
            }
            hello::encode_welcome(&welcome)
        });
        // A robot that has gone needs no answer.
        let _ = match said {
            Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
            Err(error) => query.reply_err(error.to_string()).wait(),
        };
    }

    /// Puts a question in the line, or refuses it.
    fn take(&self, query: Query) {
        let came = self.clock.now();
        let base = match robot_of(&query) {
            Ok(base) => base,
            Err(error) => return self.refuse("?", &query, Refusal::Plain, &error.to_string()),
        };
        let ask = ask::decode(&payload(&query)).map_err(|error| error.to_string()).and_then(|ask| {
            lock(&self.guests).admit(&base, &ask.robot, ask.sequence, came)?;
            Ok(ask)
        });
        let ask = match ask {
            Ok(ask) => ask,
            Err(why) => return self.refuse(&base, &query, Refusal::Plain, &why),
        };
        let (who, number) = (format!("{base} {}", ask.robot), ask.sequence);
        match self.line.join(&who, Question { query, ask, base, came }) {
            Place::Waits => {}
            Place::Instead(old) => {
                let (why, old_number) = (Refusal::Superseded, old.ask.sequence);
                let said = format!("question {number} came before the turn of number {old_number}");
                self.refuse(&old.base, &old.query, why, &said);
            }
            Place::Full(question) => {
                let said = format!("the policy is busy: {WAITING} robots wait, at most {WAITING} may");
                self.refuse(&question.base, &question.query, Refusal::Plain, &said);
            }
        }
    }

    fn refuse(&self, base: &str, query: &Query, why: Refusal, said: &str) {
        let _ = query.reply_err(said).wait();
        let mut told = lock(&self.told);
        told.0.count(base, |served| {
            served.refused += 1;
            served.stale += u64::from(why == Refusal::Stale);
            served.superseded += u64::from(why == Refusal::Superseded);
        });
        told.0.refused += 1;
        if told.1.len() < NEWS {
            told.1.push(ServeEvent::Refused(format!("{base}: {said}")));
        }
    }

    /// Thinks about a question and answers it.
    fn answer(&self, question: &Question, policy: &mut dyn Policy) {
        let Question { query, ask, base, came } = question;
        let start = self.clock.now();
        let (waited_secs, patience_secs) = (start.secs_since(*came), ask.patience_secs);
        if waited_secs > patience_secs {
            let said = format!("it waited {waited_secs:.2} s, and its robot waits {patience_secs:.2} s");
            return self.refuse(base, query, Refusal::Stale, &said);
        }
        policy.turn_to(&format!("{base} {}", ask.robot));
        lock(&self.busy).begin(start);
        let chunk = think(policy, &self.spec, ask).map_err(|error| error.to_string());
        let end = self.clock.now();
        lock(&self.busy).end(end);
        let infer_secs = end.secs_since(start);
        let failure = chunk.as_ref().err().cloned();
        let reply = answer::Answer { sequence: ask.sequence, infer_secs, chunk };
        let sent = match answer::encode(&reply) {
            Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
            Err(error) => query.reply_err(error.to_string()).wait(),
        };
        let failure = failure.or(sent.err().map(|error| format!("the answer could not be sent: {error}")));
        let mut told = lock(&self.told);
        match failure {
            None => {
                told.0.answered += 1;
                told.0.count(base, |served| served.answered += 1);
                if told.0.infer_secs.len() < KEPT {
                    told.0.infer_secs.push(infer_secs);
                }
                let instruction = ask.history.last().map(|o| o.instruction.clone()).unwrap_or_default();
                told.1.push(ServeEvent::Answered { instruction, infer_secs });
            }
            Some(why) => {
                told.0.refused += 1;
                told.0.count(base, |served| served.refused += 1);
                told.1.push(ServeEvent::Refused(format!("{base}: {why}")));
            }
        }
    }

    fn tell(&self, listener: &mut dyn FnMut(ServeEvent)) {
        let news = std::mem::take(&mut lock(&self.told).1);
        news.into_iter().for_each(listener);
    }
}

impl ServeReport {
    fn count(&mut self, base: &str, count: impl FnOnce(&mut Served)) {
        if let Some(served) = self.robots.get_mut(base) {
            count(served);
        } else if self.robots.len() < COUNTED {
            count(self.robots.entry(base.to_owned()).or_default());
        }
    }
}

/// Answers the robot with this base key until `shutdown`; [`serve_robots`] with one key.
///
/// # Errors
/// As there.
pub fn serve_policy(
    session: &Session,
    base: &str,
    policy: &mut dyn Policy,
    shutdown: &AtomicBool,
    listener: &mut dyn FnMut(ServeEvent),
) -> Result<ServeReport> {
    serve_robots(session, &[base], policy, shutdown, listener)
}

/// Answers the robots with these base keys until `shutdown`. A key may have wildcards (`vela/*`) and then stands for
/// every robot whose key it matches.
///
/// # Errors
/// The session is closed, there is no key, one is no key or two may match the same robot. Bad questions and a failing
/// policy are answered, not returned.
pub fn serve_robots(
    session: &Session,
    bases: &[&str],
    policy: &mut dyn Policy,
    shutdown: &AtomicBool,
    listener: &mut dyn FnMut(ServeEvent),
) -> Result<ServeReport> {
    require_apart(bases)?;
    let id = session.zid().to_string();
    let desk = Arc::new(Desk::new(policy.spec().clone()));
    let mut doors = Vec::new();
    for base in bases {
        let keys = Keys::new(base, &id);
        doors.push(open(session, &keys.load, {
            let (desk, base, id) = (desk.clone(), (*base).to_owned(), id.clone());
            move |query| desk.tell_load(&query, &base, &id)
        })?);
        let host = desk.clone();
        doors.push(open(session, &keys.hello, move |query| host.welcome(&query))?);
        let host = desk.clone();
        doors.push(open(session, &keys.chunk, move |query| host.take(query))?);
    }
    // Taken back first, because they were declared last.
    let mut tokens = Vec::new();
    for base in bases {
        let alive = Keys::new(base, &id).alive;
        let token = session.liveliness().declare_token(alive.as_str()).wait();
        tokens.push(token.map_err(|e| failed(&alive, e))?);
    }
    while !shutdown.load(Ordering::Acquire) {
        if let Some(question) = desk.line.next(Duration::from_millis(50)) {
            desk.answer(&question, policy);
        } else if session.is_closed() {
            return Err(Error::Link("the zenoh session was closed".into()));
        }
        desk.tell(listener);
    }
    drop(tokens);
    drop(doors);
    desk.tell(listener);
    Ok(std::mem::take(&mut lock(&desk.told).0))
}

fn open(session: &Session, key: &str, act: impl Fn(Query) + Send + Sync + 'static) -> Result<Queryable<()>> {
    session.declare_queryable(key.to_owned()).callback(act).wait().map_err(|e| failed(key, e))
}

/// Refuses keys of which two may be the same robot's: it would find this policy twice.
fn require_apart(bases: &[&str]) -> Result<()> {
    let refuse = |expected: &str, got: String| {
        Err(Error::Shape { what: "robots to serve".into(), expected: expected.into(), got })
    };
    if bases.is_empty() {
        return refuse("at least one base key", "none".into());
    }
    let mut keys: Vec<KeyExpr> = Vec::new();
    for base in bases {
        let key = KeyExpr::try_from(*base).map_err(|e| failed(&format!("base key '{base}'"), e))?;
        if let Some(other) = keys.iter().find(|other| other.intersects(&key)) {
            return refuse("base keys that match no robot twice", format!("'{other}' and '{key}'"));
        }
        keys.push(key);
    }
    Ok(())
}

/// The base key of the robot that asks.
fn robot_of(query: &Query) -> Result<String> {
    let key = query.key_expr();
    match base_of(key.as_str()).filter(|base| !base.contains('*')) {
        Some(base) => Ok(base.to_owned()),
        None => Err(Error::Link(format!("expected the question of one robot, got one to '{key}'"))),
    }
}

fn payload(query: &Query) -> Cow<'_, [u8]> {
    query.payload().map(|payload| payload.to_bytes()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_a_robot_may_match_twice_are_refused() {
        let said = |bases: &[&str]| require_apart(bases).err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(said(&["vela/arm1", "vela/arm2", "shop/*"]), "");
        assert!(said(&[]).contains("expected at least one base key, got none"));
        let twice = said(&["vela/arm1", "vela/*"]);
        assert!(twice.contains("match no robot twice, got 'vela/arm1' and 'vela/*'"), "{twice}");
        assert!(said(&["vela/arm1", "vela/arm1"]).contains("twice"));
        assert!(said(&["vela//arm1"]).contains("base key 'vela//arm1'"));
    }
}
