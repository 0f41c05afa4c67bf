//! `vela eval --env` and `vela record --env` over the built binary, against an environment in this process.

mod sessions;

use serde_json::Value;
use sessions::sessions;
use std::path::Path;
use std::process::{Command, Stdio};
use vela_embodiment::{Embodiment, Frame, Stamp};
use vela_robots::wire::hello::{Hello, encode_hello};
use vela_robots::wire::world::{self, Moment};
use vela_robots::{Side, open_session};
use zenoh::Wait;
use zenoh::query::Query;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An SO-101 whose joints are where they are sent; the task is done when the first one passes 0.3 rad.
struct World {
    robot: Embodiment,
    joints: Vec<f64>,
    tick: u64,
    /// Where the expert goes; `None` has no expert.
    expert: Option<f64>,
}

impl World {
    fn answer(&mut self, name: &str, payload: &[u8]) -> vela_embodiment::Result<Vec<u8>> {
        match name {
            "hello" => return encode_hello(&Hello { robot: "world".into(), embodiment: self.robot.clone() }),
            "reset" => {
                let seed = world::decode_reset(payload)?.seed;
                (self.joints, self.tick) = (vec![0.01 * seed as f64; 6], 0);
            }
            "step" => {
                let (_, actions) = world::decode_step(payload)?;
                self.joints.clone_from(&actions[0]);
                self.tick += 1;
            }
            "view" => {
                let frames = self.robot.cameras.iter().map(|c| Frame {
                    camera: c.name.clone(),
                    width: c.width,
                    height: c.height,
                    rgb: vec![self.tick as u8; (c.width * c.height * 3) as usize].into(),
                    stamp: Stamp(0),
                });
                return world::encode_view(self.tick, &frames.collect::<Vec<_>>());
            }
            "label" => {
                let goal =
                    self.expert.ok_or_else(|| vela_embodiment::Error::Robot("no expert here".into()))?;
                return world::encode_label(self.tick, &[&[goal], &self.joints[1..]].concat());
            }
            other => return Err(vela_embodiment::Error::Robot(format!("unknown query {other}"))),
        }
        world::encode_moment(&Moment {
            tick: self.tick,
            instruction: "turn to the left".into(),
            joints: self.joints.clone(),
            applied: self.joints.clone(),
            success: self.joints[0] > 0.3,
            finished: self.joints[0] > 0.3 || self.tick >= 40,
            seconds: self.tick as f64 / 30.0,
        })
    }
}

fn vela(args: &[&str]) -> Result<std::process::Output, std::io::Error> {
    Command::new(env!("CARGO_BIN_EXE_vela")).args(args).stdin(Stdio::null()).output()
}

#[test]
fn an_environment_in_another_process_is_scored_and_recorded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, elsewhere] = sessions(dir.path())?;
    let world = World { robot: Embodiment::so101()?, joints: vec![0.0; 6], tick: 0, expert: Some(0.4) };
    let world = std::sync::Arc::new(std::sync::Mutex::new(world));
    let session = open_session(Side::Policy, Some(Path::new(&elsewhere)))?;
    let shared = world.clone();
    let _served = session
        .declare_queryable("test/world/env/*")
        .callback(move |query: Query| {
            let name = query.key_expr().as_str().rsplit('/').next().unwrap_or_default().to_owned();
            let payload = query.payload().map(|p| p.to_bytes().into_owned()).unwrap_or_default();
            let mut world = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let _ = match world.answer(&name, &payload) {
                Ok(bytes) => query.reply(query.key_expr().clone(), bytes).wait(),
                Err(error) => query.reply_err(error.to_string()).wait(),
            };
        })
        .wait()
        .map_err(|e| e.to_string())?;
    let there = ["--env", "test/world", "--zenoh", &robot, "--seed", "1", "--json"];
    let log = dir.path().join("verdicts.jsonl").display().to_string();
    let eval = ["eval", "--policy", "expert", "--episodes", "3", "--log", &log];
    let scored = vela(&[&eval, &there[..]].concat())?;
    let found: Value = serde_json::from_slice(&scored.stdout).map_err(|e| format!("{e}: {scored:?}"))?;
    assert_eq!(
        (found["tasks"][0]["episodes"].as_u64(), found["tasks"][0]["successes"].as_u64()),
        (Some(3), Some(3))
    );
    // The expert asks for its goal at once; the gate brings the arm there, and says so.
    let lines = || -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        Ok(std::fs::read_to_string(&log)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    for seed in 1..4 {
        let ticks: u64 = lines()?
            .iter()
            .filter(|line| line["seed"] == seed)
            .filter_map(|line| line["ticks"].as_u64())
            .sum();
        assert!(ticks > 3, "seed {seed}: {:?}", lines()?);
    }

    let out = dir.path().join("data").display().to_string();
    let record = ["record", "--policy", "expert", "--episodes", "2", "--out", &out];
    let recorded = vela(&[&record, &there[..]].concat())?;
    let said: Value = serde_json::from_slice(&recorded.stdout).map_err(|e| format!("{e}: {recorded:?}"))?;
    assert_eq!((said["episodes"].as_u64(), said["successes"].as_u64()), (Some(2), Some(2)), "{said}");
    let looked = vela(&["episodes", "inspect", &out, "--json"])?;
    let looked: Value = serde_json::from_slice(&looked.stdout)?;
    assert_eq!(looked["frames"], said["frames"], "{looked}");
    assert_eq!(looked["episodes"][0]["tasks"][0].as_str().unwrap_or("turn to the left"), "turn to the left");

    // Whoever drives cannot: no episode, and one sentence.
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner).expert = None;
    let failed = vela(&[&record, &there[..]].concat())?;
    assert_eq!(failed.status.code(), Some(1));
    let why = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(why.contains("10 failures in a row") && why.contains("no expert here"), "{why}");
    let looked = vela(&["episodes", "inspect", &out, "--json"])?;
    let looked: Value = serde_json::from_slice(&looked.stdout)?;
    assert_eq!(looked["frames"], said["frames"], "nothing of it is kept");
    // The verdicts on it are: every held tick with what it was held for.
    assert_eq!(vela(&[&eval, &there[..]].concat())?.status.code(), Some(1));
    let held = lines()?;
    assert!(held.iter().all(|line| line["held"] == true && line["seed"] == 1), "{held:?}");
    let cause = |line: &Value| line["trips"][0]["detail"].as_str().unwrap_or_default().to_owned();
    assert!(held.iter().all(|line| cause(line).contains("no expert here")), "{held:?}");
    assert!(held.last().is_some_and(|line| cause(line).starts_with("stopped: 10 failures")), "{held:?}");
    Ok(())
}

#[test]
fn a_split_is_the_tabletop_s_and_refused_elsewhere() -> Outcome {
    let refused = vela(&["eval", "--env", "test/none", "--split", "swap", "--policy", "expert"])?;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--split chooses among the tabletop's episodes"), "{said}");
    Ok(())
}
