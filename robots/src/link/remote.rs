//! A policy in another session, seen from the robot.

use super::{Keys, answered, failed};
use crate::resolve::require_policy_fits;
use crate::wire::{answer, ask, hello, load};
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, ActionSpace, Clock, Embodiment, Error, InferOptions, MonotonicClock, Observation, Policy,
    PolicySpec, Result,
};
use zenoh::qos::Priority;
use zenoh::query::{ConsolidationMode, QueryTarget};
use zenoh::sample::{Sample, SampleKind};
use zenoh::{Session, Wait};

/// How often a waiting call looks whether the policy is still alive.
const LOOK: Duration = Duration::from_millis(10);

/// Policies have this long to say how busy they are, s.
const LOAD_SECS: f64 = 0.2;

/// Who is there.
#[derive(Default)]
struct Presence {
    /// Tokens, the one that has been there longest first.
    tokens: Vec<String>,
    /// The token of the policy whose contract was compared: it is asked for as long as it answers.
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

/// A policy behind zenoh. It may come, go and come back: while none is there every question fails at once, and when one
/// comes the contracts are compared before the first question. Of several the least busy one is asked, and for as long
/// as it answers only that one; when it does not, the question goes to another at once.
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
            if let Some(token) = self.choose(&[]) {
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
        !self.presence().tokens.is_empty()
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of the policy to ask: the one that was greeted, else the least busy one that has not `failed`, of
    /// equals the one that has been there longest.
    fn choose(&self, failed: &[String]) -> Option<String> {
        {
            let presence = self.presence();
            if presence.greeted.is_some() || presence.tokens.is_empty() {
                return presence.greeted.clone();
            }
        }
        let loads = self.loads();
        // Who says how busy it is has a token, which may still be on its way.
        let deadline = self.clock.now().plus_secs(LOAD_SECS);
        let all_known = |tokens: &[String]| loads.keys().all(|token| tokens.contains(token));
        let mut tokens = self.presence().tokens.clone();
        while !all_known(&tokens) && self.clock.now() < deadline {
            std::thread::sleep(LOOK);
            tokens.clone_from(&self.presence().tokens);
        }
        tokens.retain(|token| !failed.contains(token));
        let of = |token: &String| loads.get(token).copied().unwrap_or(f64::INFINITY);
        tokens.into_iter().min_by(|a, b| of(a).total_cmp(&of(b)))
    }

    /// How busy each policy says it is, by its token.
    fn loads(&self) -> BTreeMap<String, f64> {
        let mut loads = BTreeMap::new();
        let (sender, replies) = channel();
        let asked = self
            .session
            .get(Keys::new(&self.base, "*").load)
            .target(QueryTarget::All)
            .consolidation(ConsolidationMode::None)
            .timeout(Duration::from_secs_f64(LOAD_SECS))
            .callback(move |reply| {
                if let Ok(sample) = reply.result()
                    && let Ok(load) = load::decode(&sample.payload().to_bytes())
                {
                    let _ = sender.send((sample.key_expr().to_string(), load.busy));
                }
            })
            .wait();
        let deadline = self.clock.now().plus_secs(LOAD_SECS);
        // The sender goes when the last policy has answered.
        while asked.is_ok() {
            let left = deadline.secs_since(self.clock.now()).max(0.0);
            let Ok((key, busy)) = replies.recv_timeout(Duration::from_secs_f64(left)) else { break };
            loads.insert(self.keys(&key).alive, busy);
        }
        loads
    }

    /// The keys beside any one of them.
    fn keys(&self, key: &str) -> Keys {
        let id = key.rsplit('/').nth(1).unwrap_or_default();
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
        let mut presence = self.presence();
        presence.greeted = presence.tokens.iter().find(|known| *known == token).cloned();
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
                // Nobody listens any more when the deadline has passed.
                let _ = sender.send(answered(&reply));
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
                Err(RecvTimeoutError::Timeout)
                    if !self.presence().tokens.iter().any(|known| known == token) =>
                {
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
        let mut failed: Vec<String> = Vec::new();
        let mut first = None;
        while let Some(token) = self.choose(&failed) {
            match self.question(&token, history, options) {
                // Another one may be there and may answer.
                Err(error @ (Error::Link(_) | Error::Mismatch(_))) if !failed.contains(&token) => {
                    self.presence().greeted.take_if(|greeted| *greeted == token);
                    failed.push(token);
                    first.get_or_insert(error);
                }
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| Error::Link(format!("no policy at {}", self.base))))
    }
}

impl RemotePolicy {
    /// One question to the policy with this token.
    fn question(
        &mut self,
        token: &str,
        history: &[Observation],
        options: &InferOptions,
    ) -> Result<ActionChunk> {
        if self.presence().greeted.as_deref() != Some(token) {
            self.greet(token)?;
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
        let bytes = self.ask(&self.keys(token).chunk, token, ask::encode(&question)?)?;
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
