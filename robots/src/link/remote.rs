//! A policy in another session, seen from the robot.

use super::{Keys, failed};
use crate::resolve::require_policy_fits;
use crate::wire::{answer, ask, hello};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, ActionSpace, Clock, Embodiment, Error, InferOptions, MonotonicClock, Observation, Policy,
    PolicySpec, Result,
};
use zenoh::qos::Priority;
use zenoh::sample::{Sample, SampleKind};
use zenoh::{Session, Wait};

/// How often a waiting call looks whether the policy is still alive.
const LOOK: Duration = Duration::from_millis(10);

/// Who is there.
#[derive(Default)]
struct Presence {
    /// Tokens, the one that has been there longest first.
    tokens: Vec<String>,
    /// The token of the policy whose contract was compared.
    greeted: Option<String>,
}

impl Presence {
    fn saw(&mut self, token: &str, kind: SampleKind) {
        self.tokens.retain(|known| known != token);
        match kind {
            SampleKind::Put => self.tokens.push(token.to_owned()),
            SampleKind::Delete => {}
        }
        // Who left and came back, or is another, is greeted again.
        if self.greeted.as_deref() == Some(token) {
            self.greeted = None;
        }
    }
}

/// A policy behind zenoh. It may come, go and come back: while it is away every question fails at once, and when it
/// returns the contracts are compared again before the first question.
pub struct RemotePolicy {
    session: Session,
    base: String,
    robot: Embodiment,
    spec: PolicySpec,
    timeout: Duration,
    sequence: u64,
    thought_secs: f64,
    presence: Arc<Mutex<Presence>>,
    clock: MonotonicClock,
    _watcher: zenoh::pubsub::Subscriber<()>,
}

impl RemotePolicy {
    /// Watches for the policy of the arm with this base key; does not wait for it. Until it is there,
    /// [`Policy::spec`] is a placeholder for this robot.
    ///
    /// # Errors
    /// The session is closed or the key is no key.
    pub fn new(session: &Session, base: &str, robot: &Embodiment, timeout_secs: f64) -> Result<Self> {
        let watched = Keys::new(base, "*").alive;
        let presence = Arc::new(Mutex::new(Presence::default()));
        let watcher = session
            .liveliness()
            .declare_subscriber(watched.as_str())
            .history(true)
            .callback({
                let presence = presence.clone();
                move |sample: Sample| {
                    let mut presence = presence.lock().unwrap_or_else(PoisonError::into_inner);
                    presence.saw(sample.key_expr().as_str(), sample.kind());
                }
            })
            .wait()
            .map_err(|e| failed(&format!("watching {watched}"), e))?;
        Ok(Self {
            session: session.clone(),
            base: base.to_owned(),
            robot: robot.clone(),
            spec: PolicySpec {
                embodiment: robot.clone(),
                space: ActionSpace::JointPositions,
                horizon: 1,
                execute: 1,
                history: 1,
                checkpoint: "not known yet".into(),
            },
            timeout: Duration::from_secs_f64(timeout_secs.clamp(0.001, 3600.0)),
            sequence: 0,
            thought_secs: 0.0,
            presence,
            clock: MonotonicClock::new(),
            _watcher: watcher,
        })
    }

    /// Waits until the policy is there and its contract fits.
    ///
    /// # Errors
    /// Nobody came in `secs`, or the policy is for another robot: every difference.
    pub fn wait_ready(&mut self, secs: f64) -> Result<()> {
        let deadline = self.clock.now().plus_secs(secs);
        loop {
            if let Some(token) = self.token() {
                match self.greet(&token) {
                    // It may have gone between its token and our question.
                    Err(Error::Link(_)) if self.clock.now() < deadline => {}
                    other => return other,
                }
            }
            if self.clock.now() >= deadline {
                return Err(Error::Link(format!("no policy at {} within {secs:.1} s", self.base)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether a policy is there now.
    pub fn alive(&self) -> bool {
        self.token().is_some()
    }

    /// The token of the policy to ask.
    fn token(&self) -> Option<String> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner).tokens.first().cloned()
    }

    /// The keys beside a token.
    fn keys(&self, token: &str) -> Keys {
        let id = token.rsplit('/').nth(1).unwrap_or_default();
        Keys::new(&self.base, id)
    }

    /// Seconds that the policy itself thought about the last answer, link excluded.
    pub fn thought_secs(&self) -> f64 {
        self.thought_secs
    }

    /// Compares contracts with the policy that has this token.
    fn greet(&mut self, token: &str) -> Result<()> {
        let greeting = hello::encode_hello(&hello::Hello { embodiment: self.robot.clone() })?;
        let welcome = self.ask(&self.keys(token).hello, token, greeting)?;
        let spec = hello::decode_welcome(&welcome)?.into_spec()?;
        require_policy_fits(&self.robot, &spec)?;
        self.spec = spec;
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.greeted = presence.tokens.first().filter(|first| *first == token).cloned();
        Ok(())
    }

    /// One query and its reply.
    fn ask(&self, key: &str, token: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
        let (sender, replies) = channel();
        self.session
            .get(key)
            .payload(payload)
            .priority(Priority::InteractiveHigh)
            .express(true)
            // Ours ends first and says it in our words.
            .timeout(self.timeout + Duration::from_secs(1))
            .callback(move |reply| {
                let bytes = match reply.result() {
                    Ok(sample) => Ok(sample.payload().to_bytes().into_owned()),
                    Err(error) => Err(String::from_utf8_lossy(&error.payload().to_bytes()).into_owned()),
                };
                // Nobody listens any more when the deadline has passed.
                let _ = sender.send(bytes);
            })
            .wait()
            .map_err(|e| failed(&format!("asking {key}"), e))?;
        let deadline = self.clock.now().plus_secs(self.timeout.as_secs_f64());
        loop {
            match replies.recv_timeout(LOOK) {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(why)) => return Err(Error::Link(format!("{key}: {why}"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Link(format!("{key}: the policy gave no answer")));
                }
                Err(RecvTimeoutError::Timeout) if self.token().as_deref() != Some(token) => {
                    return Err(Error::Link(format!("{key}: the policy went away")));
                }
                Err(RecvTimeoutError::Timeout) if self.clock.now() >= deadline => {
                    let secs = self.timeout.as_secs_f64();
                    return Err(Error::Link(format!("{key}: no answer within {secs:.2} s")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Policy for RemotePolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let (token, greeted) = {
            let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
            (presence.tokens.first().cloned(), presence.greeted.clone())
        };
        let Some(token) = token else { return Err(Error::Link(format!("no policy at {}", self.base))) };
        if greeted.as_ref() != Some(&token) {
            self.greet(&token)?;
            if history.len() != self.spec.history {
                let (wanted, got) = (self.spec.history, history.len());
                return Err(Error::Policy(format!(
                    "it wants {wanted} observations, this question has {got}"
                )));
            }
        }
        self.sequence += 1;
        let question =
            ask::Ask { sequence: self.sequence, history: history.to_vec(), options: options.clone() };
        let bytes = self.ask(&self.keys(&token).chunk, &token, ask::encode(&question)?)?;
        let reply = answer::decode(&bytes)?;
        if reply.sequence != self.sequence {
            let (wanted, got) = (self.sequence, reply.sequence);
            return Err(Error::Link(format!("expected the answer to question {wanted}, got that to {got}")));
        }
        self.thought_secs = reply.infer_secs;
        let chunk = reply.chunk.map_err(Error::Policy)?;
        if chunk.checkpoint != self.spec.checkpoint {
            return Err(Error::Policy(format!(
                "the chunk is by checkpoint '{}', agreed was '{}'",
                chunk.checkpoint, self.spec.checkpoint
            )));
        }
        Ok(chunk)
    }
}
