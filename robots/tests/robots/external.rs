//! An environment in another process: here behind a second zenoh session, with the same messages.

use crate::arm::{FakeArm, frames};
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{
    Embodiment, Environment, Episode, Error, GateConfig, Outcome, Result, Robot, SafetyGate, Stamp,
};
use vela_robots::wire::hello::{Hello, decode_hello, encode_hello};
use vela_robots::wire::world::{self, Moment};
use vela_robots::{External, ExternalExpert, RolloutOptions, loopback_pair, rollout_expert};
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait};

/// What `robots/python/vela_gym.py` says, as `scripts/golden_gym.py` kept it.
#[test]
fn the_python_package_speaks_the_same_wire() -> Result<()> {
    let said = |name: &str| {
        let path = format!("{}/../tests/golden/gym/{name}.bin", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).map_err(|source| Error::Io { path, source })
    };
    let hello = decode_hello(&said("hello")?)?;
    let joints = &hello.embodiment.joints;
    assert_eq!((hello.robot.as_str(), joints.len()), ("still-1", 2));
    assert_eq!((joints[1].limits.lower, joints[1].limits.upper), (-1.0, 1.0));
    let first = world::decode_moment(&said("moment_first")?)?;
    assert_eq!((first.tick, first.instruction.as_str(), first.finished), (0, "stand", false));
    assert_eq!((&first.joints, &first.applied), (&vec![0.25, -0.5], &vec![0.25, -0.5]));
    let (tick, frames) = world::decode_view(&said("view")?)?;
    assert_eq!((tick, frames.len(), frames[0].camera.as_str()), (0, 1, "front"));
    assert_eq!((frames[0].width, frames[0].height, &*frames[0].rgb), (2, 1, &[0, 1, 2, 3, 4, 5][..]));
    assert_eq!(world::decode_label(&said("label")?)?, (0, vec![0.5, 0.5]));
    let last = world::decode_moment(&said("moment_last")?)?;
    assert_eq!((last.tick, last.success, last.finished, last.applied), (2, true, true, vec![0.3, 0.4]));
    Ok(())
}

/// What stands behind the wire: joints that are where they are sent, done when the first one passes 0.2 rad.
struct World {
    embodiment: Embodiment,
    joints: Vec<f64>,
    tick: u64,
    seed: u64,
    /// Steps to skip without a word.
    skip: bool,
    /// Seconds that it claims, in place of its own.
    claims: Option<f64>,
}

impl World {
    fn moment(&self) -> Result<Vec<u8>> {
        world::encode_moment(&Moment {
            tick: self.tick,
            instruction: format!("go on from seed {}", self.seed),
            joints: self.joints.clone(),
            applied: self.joints.clone(),
            success: self.joints[0] > 0.2,
            finished: self.joints[0] > 0.2,
            seconds: self.claims.unwrap_or(self.tick as f64 * self.embodiment.period_secs()),
        })
    }

    fn answer(&mut self, name: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match name {
            "hello" => encode_hello(&Hello { robot: "7-1".into(), embodiment: self.embodiment.clone() }),
            "reset" => {
                (self.seed, self.tick) = (world::decode_reset(payload)?.seed, 0);
                self.joints.fill(0.0);
                self.moment()
            }
            "step" => {
                let (tick, actions) = world::decode_step(payload)?;
                assert_eq!(tick, self.tick);
                self.joints.clone_from(&actions[0]);
                self.tick += 1 + u64::from(self.skip);
                self.moment()
            }
            "view" => world::encode_view(self.tick, &frames(&self.embodiment, Stamp(0))),
            "label" => {
                let mut targets = self.joints.clone();
                // Faster than the joint may go.
                targets[0] += 1.0;
                world::encode_label(self.tick, &targets)
            }
            other => Err(Error::Robot(format!("unknown query {other}"))),
        }
    }
}

fn serve(session: &Session, world: &Arc<Mutex<World>>) -> Result<Queryable<()>> {
    let world = world.clone();
    let queryable = session.declare_queryable("test/gym/env/*").callback(move |query: Query| {
        let name = query.key_expr().as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let payload = query.payload().map(|p| p.to_bytes().into_owned()).unwrap_or_default();
        let answer = world.lock().unwrap_or_else(PoisonError::into_inner).answer(&name, &payload);
        let _ = match answer {
            Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
            Err(error) => query.reply_err(error.to_string()).wait(),
        };
    });
    queryable.wait().map_err(|e| Error::Link(e.to_string()))
}

#[test]
fn an_environment_behind_zenoh_is_played_in_lockstep_through_the_gate() -> Result<()> {
    let (ours, theirs) = loopback_pair()?;
    let embodiment = FakeArm::lockstep()?.embodiment;
    let joints = vec![0.0; embodiment.joints.len()];
    let there = World { embodiment: embodiment.clone(), joints, tick: 0, seed: 0, skip: false, claims: None };
    let there = Arc::new(Mutex::new(there));
    let nobody = External::connect(&ours, "test/gym", &embodiment, 0.3).err().map(|e| e.to_string());
    assert!(nobody.is_some_and(|why| why.contains("no environment within 0 s")));
    let _served = serve(&theirs, &there)?;

    let mut other = embodiment.clone();
    other.control_hz = 50.0;
    let refused = External::connect(&ours, "test/gym", &other, 5.0).err().map(|e| e.to_string());
    assert!(refused.as_ref().is_some_and(|why| why.contains("50")), "{refused:?}");

    let mut environment = External::connect(&ours, "test/gym", &embodiment, 5.0)?;
    assert!(environment.observe().is_err_and(|e| e.to_string().contains("has not been reset")));
    let episode = Episode { task: "go".into(), seed: 7, randomise: false };
    let options = RolloutOptions { observe_every_tick: true, ..RolloutOptions::default() };
    let mut fastest = 0.0_f64;
    let mut before = 0.0;
    let played =
        rollout_expert(&mut environment, &mut ExternalExpert, &episode, &options, &mut |_, event| {
            if let vela_robots::RolloutEvent::Tick { applied, observation, .. } = event {
                fastest = fastest.max((applied.joint_targets[0] - before) * embodiment.control_hz);
                before = applied.joint_targets[0];
                assert!(observation.is_some_and(|seen| seen.frames.len() == embodiment.cameras.len()));
            }
        })?;
    assert!(played.outcome.success && played.stopped.is_none(), "{played:?}");
    assert_eq!(played.instruction, "go on from seed 7");
    assert!(fastest <= embodiment.joints[0].limits.velocity + 1e-9, "the gate stands in front: {fastest}");
    assert_eq!(environment.outcome().seconds, played.ticks as f64 * embodiment.period_secs());

    // Someone else drives it: noticed at the next tick.
    environment.reset(&episode)?;
    there.lock().unwrap_or_else(PoisonError::into_inner).skip = true;
    let mut gate = SafetyGate::new(&embodiment, GateConfig::default(), &[0.0; 6])?;
    let verdict = gate.check(None, environment.clock().now());
    let said = environment.apply(verdict.action).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("expected the environment after 1 ticks, it is after 2"), "{said}");
    assert_eq!(environment.outcome(), Outcome::default());
    Ok(())
}

#[test]
fn an_environment_that_is_busy_or_says_nonsense_is_refused_in_a_sentence() -> Result<()> {
    let (ours, theirs) = loopback_pair()?;
    let embodiment = FakeArm::lockstep()?.embodiment;
    let joints = vec![0.0; embodiment.joints.len()];
    let (claims, skip) = (Some(f64::NAN), false);
    let world = World { embodiment: embodiment.clone(), joints, tick: 0, seed: 0, skip, claims };
    let world = Arc::new(Mutex::new(world));
    {
        // It keeps the query, as one does that computes.
        let (sender, kept) = std::sync::mpsc::channel();
        let busy = theirs.declare_queryable("test/gym/env/*").callback(move |query| {
            let _ = sender.send(query);
        });
        let _busy = busy.wait().map_err(|e| Error::Link(e.to_string()))?;
        let said = External::connect(&ours, "test/gym", &embodiment, 0.5).err().map(|e| e.to_string());
        let said = said.unwrap_or_default();
        assert!(said.contains("somebody is there, but gave no answer within 1 s"), "{said}");
        drop(kept);
    }
    let _served = serve(&theirs, &world)?;
    let mut environment = External::connect(&ours, "test/gym", &embodiment, 5.0)?;
    let said = environment.reset(&Episode { task: "go".into(), seed: 1, randomise: false });
    let said = said.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("seconds since its reset (NaN)"), "{said}");
    Ok(())
}
