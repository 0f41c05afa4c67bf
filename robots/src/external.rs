//! An environment in another process, an external simulator, as one of ours: in lockstep, over zenoh.
//!
//! Under its base key it answers queries: `BASE/env/hello` with what it is, `BASE/env/reset` and `BASE/env/step` with the
//! moment that they lead to, `BASE/env/view` with its pictures (drawn only when someone looks), and `BASE/env/label` with
//! what its expert would do, if it has one; messages are those of [`crate::wire::world`]. `robots/python` is that side for
//! any Gymnasium environment. The gate stands here, in front of it: its limits are those of the robot's own file.

use crate::link::{answered, failed};
use crate::wire::world::{self, Moment};
use crate::wire::{hello, world::decode_moment};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Environment, Episode, Error, Expert, MonotonicClock,
    Observation, Outcome, Result, Robot, VirtualClock,
};
use zenoh::{Session, Wait};

/// What zenoh says in place of an answer that did not come in time.
const TIMEOUT: &str = "Timeout";
/// An answer takes this long at most, s: a reset may build a scene, a view may draw in software.
const PATIENCE_SECS: f64 = 60.0;
/// Between two looks whether the environment is there.
const LOOK: Duration = Duration::from_millis(100);

/// The environment. Its clock is virtual: a control period for each action.
pub struct External {
    session: Session,
    base: String,
    embodiment: Embodiment,
    clock: Arc<VirtualClock>,
    moment: Option<Moment>,
}

impl External {
    /// Waits until an environment answers at this base key, and compares what it is with `robot`, whose limits hold.
    ///
    /// # Errors
    /// None answers within `wait_secs`, or it is another robot: every difference.
    pub fn connect(session: &Session, base: &str, robot: &Embodiment, wait_secs: f64) -> Result<Self> {
        let this = Self {
            session: session.clone(),
            base: base.to_owned(),
            embodiment: robot.clone(),
            clock: Arc::new(VirtualClock::new()),
            moment: None,
        };
        let watch = MonotonicClock::new();
        let theirs = loop {
            let left = (wait_secs - watch.now().secs()).clamp(1.0, PATIENCE_SECS);
            match this.ask_for("hello", Vec::new(), left) {
                Ok(bytes) => break hello::decode_hello(&bytes)?.embodiment,
                Err(Error::Link(why)) if watch.now().secs() > wait_secs => {
                    return Err(Error::Link(format!("no environment within {wait_secs:.0} s: {why}")));
                }
                Err(Error::Link(_)) => std::thread::sleep(LOOK),
                Err(other) => return Err(other),
            }
        };
        robot.require_same(&theirs)?;
        Ok(this)
    }

    /// One query and its reply.
    fn ask(&self, what: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
        self.ask_for(what, payload, PATIENCE_SECS)
    }

    /// One query; whoever is there has this long to reply, s.
    fn ask_for(&self, what: &str, payload: Vec<u8>, secs: f64) -> Result<Vec<u8>> {
        let key = format!("{}/env/{what}", self.base);
        let (sender, replies) = channel();
        self.session
            .get(key.as_str())
            .payload(payload)
            .express(true)
            .timeout(Duration::from_secs_f64(secs))
            .callback(move |reply| {
                let _ = sender.send(answered(&reply));
            })
            .wait()
            .map_err(|e| failed(&format!("asking {key}"), e))?;
        let busy = || Error::Link(format!("{key}: somebody is there, but gave no answer within {secs:.0} s"));
        match replies.recv_timeout(Duration::from_secs_f64(secs + 1.0)) {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(why)) if why == TIMEOUT => Err(busy()),
            Ok(Err(why)) => Err(Error::Robot(format!("environment at {key}: {why}"))),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Link(format!("{key}: nobody answers"))),
            Err(RecvTimeoutError::Timeout) => Err(busy()),
        }
    }

    fn at(&self) -> Result<&Moment> {
        self.moment.as_ref().ok_or_else(|| Error::Robot("the environment has not been reset".into()))
    }

    /// Takes the moment that the environment says it is in.
    fn take(&mut self, bytes: &[u8], tick: u64) -> Result<&Moment> {
        let moment = decode_moment(bytes)?;
        let joints = self.embodiment.joints.len();
        for (what, numbers) in [("joints", &moment.joints), ("applied targets", &moment.applied)] {
            if numbers.len() != joints {
                return Err(Error::Shape {
                    what: format!("{what} of the environment"),
                    expected: joints.to_string(),
                    got: numbers.len().to_string(),
                });
            }
            if numbers.iter().any(|x| !x.is_finite()) {
                return Err(Error::NotFinite(format!("one of the environment's {what}")));
            }
        }
        if !moment.seconds.is_finite() {
            let seconds = moment.seconds;
            return Err(Error::NotFinite(format!("the environment's seconds since its reset ({seconds})")));
        }
        self.same_tick(moment.tick, tick)?;
        Ok(self.moment.insert(moment))
    }

    fn same_tick(&self, theirs: u64, ours: u64) -> Result<()> {
        if theirs == ours {
            return Ok(());
        }
        let why = format!("expected the environment after {ours} ticks, it is after {theirs}");
        Err(Error::Robot(format!("{why}: does someone else drive it?")))
    }
}

impl Robot for External {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn observe(&mut self) -> Result<Observation> {
        let moment = self.at()?;
        let (tick, mut frames) = world::decode_view(&self.ask("view", Vec::new())?)?;
        self.same_tick(tick, moment.tick)?;
        let stamp = self.clock.now();
        frames.iter_mut().for_each(|frame| frame.stamp = stamp);
        let (joint_positions, instruction) = (moment.joints.clone(), moment.instruction.clone());
        let observation = Observation { frames, joint_positions, instruction, stamp };
        observation.check(&self.embodiment)?;
        Ok(observation)
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let tick = self.at()?.tick;
        let bytes = self.ask("step", world::encode_step(tick, &[action.into_inner().joint_targets])?)?;
        let joint_targets = self.take(&bytes, tick + 1)?.applied.clone();
        self.clock.advance_secs(self.embodiment.period_secs());
        Ok(Applied { joint_targets, stamp: self.clock.now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

impl Environment for External {
    fn reset(&mut self, episode: &Episode) -> Result<()> {
        let bytes = self.ask("reset", world::encode_reset(episode)?)?;
        self.take(&bytes, 0).map(|_| ())
    }

    fn outcome(&self) -> Outcome {
        self.moment.as_ref().map_or_else(Outcome::default, |moment| Outcome {
            success: moment.success,
            finished: moment.finished,
            seconds: moment.seconds,
        })
    }
}

/// The environment's own expert.
pub struct ExternalExpert;

impl Expert<External> for ExternalExpert {
    /// The environment's reset is also its expert's.
    fn reset(&mut self) {}

    fn label(&mut self, environment: &External) -> Result<Action> {
        let (tick, joint_targets) = world::decode_label(&environment.ask("label", Vec::new())?)?;
        environment.same_tick(tick, environment.at()?.tick)?;
        Ok(Action { joint_targets })
    }
}
