//! Lockstep rollout: a policy or an expert plays one episode in any environment, through the safety gate.
//!
//! The same queue, resolver and gate as in the real-time loop. A policy that fails or answers nonsense makes the arm
//! hold; that is counted and reported, and after too many failures in a row the episode ends with a reason.

mod planner;

use planner::{ExpertPlanner, Planner, PolicyPlanner};
use std::collections::BTreeMap;
use vela_embodiment::{
    Action, ActionChunk, Applied, Environment, Episode, Expert, GateConfig, Observation, Outcome, Policy,
    Result, SafetyGate, TripReason, Verdict,
};

/// Why the arm holds, when nothing has failed.
const NO_PLAN: &str = "no plan for this tick";

/// How to play.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutOptions {
    /// Seed of the policy's sampling noise; each chunk gets its own seed of this stream.
    pub seed: u64,
    /// Ticks of a chunk to carry out before the next one; the policy's own number when absent.
    pub execute: Option<usize>,
    /// Ticks that a chunk takes to arrive: 0 waits for the policy, more plays a late one.
    pub delay_ticks: usize,
    /// End after this many ticks even if the environment does not.
    pub max_ticks: usize,
    /// Observe at every tick (recording, DAgger) and not only when the policy needs it: frames cost time.
    pub observe_every_tick: bool,
    /// The gate's own limits.
    pub gate: GateConfig,
    /// Failures in a row after which the episode ends.
    pub failures_allowed: usize,
}

impl Default for RolloutOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            execute: None,
            delay_ticks: 0,
            max_ticks: 3000,
            observe_every_tick: false,
            gate: GateConfig::default(),
            failures_allowed: 10,
        }
    }
}

/// What the hook of a rollout sees. It also sees the environment, so that an expert can label its state.
#[derive(Debug)]
pub enum RolloutEvent<'a> {
    /// The environment was looked at; it is still in that state.
    Observed(&'a Observation),
    /// The policy answered.
    Chunk {
        /// What it was asked.
        observation: &'a Observation,
        /// What it said, as it said it.
        chunk: &'a ActionChunk,
        /// How long it took, s.
        infer_secs: f64,
    },
    /// The policy or the expert failed; the old plan goes on to its end, then the arm holds.
    Failed(&'a str),
    /// What will be asked of the gate. May be replaced: to mix in an expert's action or noise.
    Asking {
        /// Absolute joint targets; `None` holds.
        asked: &'a mut Option<Action>,
    },
    /// A tick was carried out.
    Tick {
        /// Ticks before this one.
        tick: usize,
        /// What was seen before it, if it was looked at.
        observation: Option<&'a Observation>,
        /// What was asked.
        asked: Option<&'a Action>,
        /// What the gate made of it.
        verdict: &'a Verdict,
        /// What the arm accepted.
        applied: &'a Applied,
    },
}

/// A closure that watches a rollout.
pub type Hook<'h, E> = dyn FnMut(&E, RolloutEvent<'_>) + 'h;

/// How a rollout went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// How the episode stands at its end.
    pub outcome: Outcome,
    /// The sentence it was asked, from the first observation.
    pub instruction: String,
    /// Ticks carried out.
    pub ticks: usize,
    /// Chunks used.
    pub chunks: usize,
    /// Seconds of each inference.
    pub infer_secs: Vec<f64>,
    /// Ticks on which the gate held the arm.
    pub held_ticks: usize,
    /// How often the gate stepped in, by reason.
    pub trips: BTreeMap<TripReason, u64>,
    /// How often the policy or the expert failed.
    pub failures: usize,
    /// The last failure, in words.
    pub last_failure: Option<String>,
    /// Why the episode ended early, if it did.
    pub stopped: Option<String>,
}

/// Plays `episode` with `policy`.
///
/// # Errors
/// The policy does not fit the environment (every difference named), or the environment itself fails. A failing
/// policy is no error here: see [`Rollout::stopped`].
pub fn rollout<E: Environment + ?Sized>(
    environment: &mut E,
    policy: &mut dyn Policy,
    episode: &Episode,
    options: &RolloutOptions,
    hook: &mut Hook<'_, E>,
) -> Result<Rollout> {
    let mut planner = PolicyPlanner::new(environment.embodiment(), policy, options)?;
    play(environment, &mut planner, episode, options, hook)
}

/// Plays `episode` with `expert`, which is asked at every tick.
///
/// # Errors
/// The environment itself fails.
pub fn rollout_expert<E: Environment + ?Sized>(
    environment: &mut E,
    expert: &mut dyn Expert<E>,
    episode: &Episode,
    options: &RolloutOptions,
    hook: &mut Hook<'_, E>,
) -> Result<Rollout> {
    expert.reset();
    play(environment, &mut ExpertPlanner { expert }, episode, options, hook)
}

fn play<E: Environment + ?Sized>(
    environment: &mut E,
    planner: &mut dyn Planner<E>,
    episode: &Episode,
    options: &RolloutOptions,
    hook: &mut Hook<'_, E>,
) -> Result<Rollout> {
    environment.reset(episode)?;
    let embodiment = environment.embodiment().clone();
    let clock = environment.clock();
    let first = environment.observe()?;
    // An expert reads the state: an environment without pictures will do.
    if planner.needs_observation(clock.now()) || options.observe_every_tick {
        first.check(&embodiment)?;
    }
    let mut gate = SafetyGate::new(&embodiment, options.gate.clone(), &first.joint_positions)?;
    let mut done = Rollout { instruction: first.instruction.clone(), ..Rollout::default() };
    let mut fresh = Some(first);
    let mut failures_in_a_row = 0;
    let mut cause = NO_PLAN.to_owned();
    while done.ticks < options.max_ticks && !environment.outcome().finished && done.stopped.is_none() {
        let now = clock.now();
        let looked = match fresh.take() {
            Some(first) => Some(first),
            None if options.observe_every_tick || planner.needs_observation(now) => {
                Some(environment.observe()?)
            }
            None => None,
        };
        if let Some(observation) = &looked {
            hook(environment, RolloutEvent::Observed(observation));
        }
        let answer = planner.answer(environment, looked.as_ref(), now, &mut |environment, event| {
            if let RolloutEvent::Chunk { infer_secs, .. } = &event {
                done.chunks += 1;
                done.infer_secs.push(*infer_secs);
            }
            hook(environment, event);
        });
        match answer.thought {
            Ok(true) => {
                failures_in_a_row = 0;
                NO_PLAN.clone_into(&mut cause);
            }
            Ok(false) => {}
            Err(error) => {
                let text = error.to_string();
                hook(environment, RolloutEvent::Failed(&text));
                failures_in_a_row += 1;
                done.failures += 1;
                if failures_in_a_row >= options.failures_allowed {
                    done.stopped = Some(format!("{failures_in_a_row} failures in a row, the last: {text}"));
                }
                cause.clone_from(&text);
                done.last_failure = Some(text);
            }
        }
        let stamp = answer.action.as_ref().map_or(now, |(_, stamp)| *stamp);
        let mut asked = answer.action.map(|(action, _)| action);
        hook(environment, RolloutEvent::Asking { asked: &mut asked });
        let verdict = match &asked {
            Some(action) => gate.check(Some((action, stamp)), now),
            None => gate.hold(&cause, now),
        };
        done.held_ticks += usize::from(verdict.held);
        let applied = environment.apply(verdict.action.clone())?;
        hook(
            environment,
            RolloutEvent::Tick {
                tick: done.ticks,
                observation: looked.as_ref(),
                asked: asked.as_ref(),
                verdict: &verdict,
                applied: &applied,
            },
        );
        done.ticks += 1;
    }
    if let Some(why) = done.stopped.clone() {
        brake(environment, &mut gate, &mut done, &format!("stopped: {why}"), hook)?;
    }
    done.outcome = environment.outcome();
    done.trips.clone_from(gate.counts());
    Ok(done)
}

/// Holds until the arm's targets stand still.
fn brake<E: Environment + ?Sized>(
    environment: &mut E,
    gate: &mut SafetyGate,
    done: &mut Rollout,
    why: &str,
    hook: &mut Hook<'_, E>,
) -> Result<()> {
    for _ in 0..environment.embodiment().control_hz.ceil() as usize {
        let verdict = gate.hold(why, environment.clock().now());
        let applied = environment.apply(verdict.action.clone())?;
        let tick = done.ticks;
        let event =
            RolloutEvent::Tick { tick, observation: None, asked: None, verdict: &verdict, applied: &applied };
        hook(environment, event);
        done.ticks += 1;
        done.held_ticks += 1;
        if gate.speeds().iter().all(|speed| speed.abs() < 1e-9) {
            break;
        }
    }
    Ok(())
}
