//! A policy in another session, seen from the robot.

use super::{Keys, answered, failed};
use crate::resolve::require_policy_fits;
use crate::wire::{answer, ask, hello, load};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, ActionSpace, Clock, Embodiment, Error, InferOptions, MonotonicClock, Observation, Policy,
    PolicySpec, Result,
};
use zenoh::liveliness::LivelinessToken;
use zenoh::qos::Priority;
use zenoh::query::{ConsolidationMode, QueryTarget};
use zenoh::sample::{Sample, SampleKind};
use zenoh::{Session, Wait};

/// How often a waiting call looks whether the policy is still alive.
const LOOK: Duration = Duration::from_millis(10);

/// Policies have this long to say how busy they are, s.
const LOAD_SECS: f64 = 0.2;

/// How many links this process has opened.
static LINKS: AtomicU32 = AtomicU32::new(0);

/// Who is there.
#[derive(Default)]
struct Presence {
    /// Policies by their IDs, the one that has been there longest first.
    policies: Vec<String>,
    /// The policy whose contract was compared: it is asked for as long as it answers.
    greeted: Option<String>,
}

impl Presence {
    fn saw(&mut self, id: &str, kind: SampleKind) {
        self.policies.retain(|known| known != id);
        match kind {
            SampleKind::Put => self.policies.push(id.to_owned()),
            SampleKind::Delete => {}
        }
        // Who left and came back, or is another, is greeted again.
        if self.greeted.as_deref() == Some(id) {
            self.greeted = None;
        }
    }
}

/// The ID in a policy's key or token, which may be under a base key with wildcards.
fn id_of(key: &str) -> &str {
    key.rsplit('/').nth(1).unwrap_or_default()
}

fn declare(session: &Session, token: &str) -> Result<LivelinessToken> {
    session.liveliness().declare_token(token.to_owned()).wait().map_err(|e| failed(token, e))
}

/// A policy behind zenoh. It may come, go and come back: while none is there every question fails at once, and when one
/// comes the contracts are compared before the first question. Of several the least busy one is asked, and for as long
/// as it answers only that one; when it does not, the question goes to another at once.
pub struct RemotePolicy {
    session: Session,
    base: String,
    /// This robot's name among those that a policy serves: no other link anywhere has it.
    name: String,
    robot: Embodiment,
    spec: PolicySpec,
    timeout: Duration,
    sequence: u64,
    thought_secs: f64,
    presence: Arc<Mutex<Presence>>,
    clock: MonotonicClock,
    _watcher: zenoh::pubsub::Subscriber<()>,
    _alive: LivelinessToken,
    /// Says whom it asks.
    asks: Option<(String, LivelinessToken)>,
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
                    presence.saw(id_of(sample.key_expr().as_str()), sample.kind());
                }
            })
            .wait()
            .map_err(|e| failed(&format!("watching {watched}"), e))?;
        let name = format!("{}-{}", session.zid(), LINKS.fetch_add(1, Ordering::Relaxed));
        let alive = declare(session, &format!("{base}/robot/{name}/alive"))?;
        Ok(Self {
            session: session.clone(),
            base: base.to_owned(),
            name,
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
            _alive: alive,
            asks: None,
        })
    }

    /// Waits until the policy is there and its contract fits.
    ///
    /// # Errors
    /// Nobody came in `secs`, or the policy is for another robot: every difference.
    pub fn wait_ready(&mut self, secs: f64) -> Result<()> {
        let deadline = self.clock.now().plus_secs(secs);
        loop {
            if let Some(id) = self.choose(&[]) {
                match self.greet(&id) {
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
        !self.presence().policies.is_empty()
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The policy to ask: the one that was greeted, else the least busy one that has not `failed`, of equals the one
    /// that has been there longest.
    fn choose(&self, failed: &[String]) -> Option<String> {
        {
            let presence = self.presence();
            if presence.greeted.is_some() || presence.policies.is_empty() {
                return presence.greeted.clone();
            }
        }
        let loads = self.loads();
        // Who says how busy it is has a token, which may still be on its way.
        let deadline = self.clock.now().plus_secs(LOAD_SECS);
        let all_known = |policies: &[String]| loads.keys().all(|id| policies.contains(id));
        let mut policies = self.presence().policies.clone();
        while !all_known(&policies) && self.clock.now() < deadline {
            std::thread::sleep(LOOK);
            policies.clone_from(&self.presence().policies);
        }
        policies.retain(|id| !failed.contains(id));
        let of = |id: &String| loads.get(id).copied().unwrap_or(f64::INFINITY);
        policies.into_iter().min_by(|a, b| of(a).total_cmp(&of(b)))
    }

    /// How busy each policy says it is, by its ID.
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
                    let _ = sender.send((id_of(sample.key_expr().as_str()).to_owned(), load.busy));
                }
            })
            .wait();
        let deadline = self.clock.now().plus_secs(LOAD_SECS);
        // The sender goes when the last policy has answered.
        while asked.is_ok() {
            let left = deadline.secs_since(self.clock.now()).max(0.0);
            let Ok((id, busy)) = replies.recv_timeout(Duration::from_secs_f64(left)) else { break };
            loads.insert(id, busy);
        }
        loads
    }

    /// Seconds that the policy itself thought about the last answer, link excluded.
    pub fn thought_secs(&self) -> f64 {
        self.thought_secs
    }

    /// Compares contracts with the policy that has this ID.
    fn greet(&mut self, id: &str) -> Result<()> {
        let hello = hello::Hello { robot: self.name.clone(), embodiment: self.robot.clone() };
        let welcome = self.ask(&Keys::new(&self.base, id).hello, id, hello::encode_hello(&hello)?)?;
        let spec = hello::decode_welcome(&welcome)?.into_spec()?;
        require_policy_fits(&self.robot, &spec)?;
        self.spec = spec;
        if self.asks.as_ref().is_none_or(|(asked, _)| asked != id) {
            let token = declare(&self.session, &format!("{}/robot/{}/asks/{id}", self.base, self.name))?;
            self.asks = Some((id.to_owned(), token));
        }
        let mut presence = self.presence();
        presence.greeted = presence.policies.iter().find(|known| *known == id).cloned();
        Ok(())
    }

    /// One query and its reply.
    fn ask(&self, key: &str, id: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
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
                    if !self.presence().policies.iter().any(|known| known == id) =>
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
        while let Some(id) = self.choose(&failed) {
            match self.question(&id, history, options) {
                // Another one may be there and may answer.
                Err(error @ (Error::Link(_) | Error::Mismatch(_))) if !failed.contains(&id) => {
                    self.presence().greeted.take_if(|greeted| *greeted == id);
                    self.asks = None;
                    failed.push(id);
                    first.get_or_insert(error);
                }
                other => return other,
            }
        }
        self.asks = None;
        Err(first.unwrap_or_else(|| Error::Link(format!("no policy at {}", self.base))))
    }
}

impl RemotePolicy {
    /// One question to the policy with this ID.
    fn question(&mut self, id: &str, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        if self.presence().greeted.as_deref() != Some(id) {
            self.greet(id)?;
            if history.len() != self.spec.history {
                let (wanted, got) = (self.spec.history, history.len());
                return Err(Error::Policy(format!(
                    "it wants {wanted} observations, this question has {got}"
                )));
            }
        }
        self.sequence += 1;
        let question = ask::Ask {
            robot: self.name.clone(),
            sequence: self.sequence,
            patience_secs: self.timeout.as_secs_f64(),
            history: history.to_vec(),
            options: options.clone(),
        };
        let bytes = self.ask(&Keys::new(&self.base, id).chunk, id, ask::encode(&question)?)?;
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
