//! `vela act` for several robots: one process, two arms, each with its own key and questions, on loopback and behind a
//! router, over the built binary.

mod running;

use running::Running;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use vela_embodiment::{ActionChunk, Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_robots::RemotePolicy;
use zenoh::{Session, Wait};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn config(mode: &str, listen: &str, connect: &str) -> String {
    format!(
        "{{mode: '{mode}', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}]}}, \
         scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}, \
         transport: {{link: {{tx: {{lease: 60000}}}}, shared_memory: {{enabled: false}}}}}}"
    )
}

fn open(text: &str) -> Fallible<Session> {
    let config = zenoh::Config::from_json5(text).map_err(|e| e.to_string())?;
    Ok(zenoh::open(config).wait().map_err(|e| e.to_string())?)
}

/// A session of this mode that listens on a free port, and where.
fn listening(mode: &str) -> Fallible<(Session, String)> {
    let mut last = "no port".into();
    // Another process may take the port between our look and zenoh's.
    for _ in 0..5 {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let endpoint = format!("'tcp/127.0.0.1:{port}'");
        match open(&config(mode, &endpoint, "")) {
            Ok(session) => return Ok((session, endpoint)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn act(keys: &[&str], zenoh: &Path) -> Fallible<Running> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(["act", "--json", "--for-secs", "300", "--zenoh"]).arg(zenoh);
    for key in keys {
        command.args(["--key", key]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    Ok(Running(child))
}

fn doctor(zenoh: &Path) -> Fallible<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    let output = command.args(["doctor", "--secs", "0.2", "--json", "--zenoh"]).arg(zenoh).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Question `k` of a robot whose pictures are about this bright; the wrist's never change.
fn question(robot: &Embodiment, bright: u8, k: u8) -> (Observation, InferOptions) {
    let frame = |c: &vela_embodiment::Camera| Frame {
        camera: c.name.clone(),
        width: c.width,
        height: c.height,
        rgb: vec![
            if c.name == "wrist" { bright } else { bright + 10 * k };
            (c.width * c.height * 3) as usize
        ]
        .into(),
        stamp: Stamp(u64::from(k)),
    };
    let observation = Observation {
        frames: robot.cameras.iter().map(frame).collect(),
        joint_positions: vec![0.01 * f64::from(k); robot.joints.len()],
        instruction: "pick up the red cube".into(),
        stamp: Stamp(u64::from(k) + 1),
    };
    (observation, InferOptions { seed: u64::from(bright) + u64::from(k), ..InferOptions::default() })
}

fn asked(remote: &mut RemotePolicy, robot: &Embodiment, bright: u8, k: u8) -> Fallible<ActionChunk> {
    let (observation, options) = question(robot, bright, k);
    Ok(remote.infer(&[observation], &options)?)
}

/// Both robots alone and then in turns: the same answers; what the server and a doctor say of it.
fn two_arms(sessions: [&Session; 2], keys: &[&str], zenoh: &Path) -> Fallible<()> {
    let so101 = Embodiment::so101()?;
    let mut act = act(keys, zenoh)?;
    let mut left = RemotePolicy::new(sessions[0], "vela/left", &so101, 60.0)?;
    let mut right = RemotePolicy::new(sessions[1], "vela/right", &so101, 60.0)?;
    left.wait_ready(60.0)?;
    let alone: Fallible<Vec<_>> = (0..3).map(|k| asked(&mut left, &so101, 20, k)).collect();
    let alone = alone?;
    right.wait_ready(60.0)?;
    let other: Fallible<Vec<_>> = (0..3).map(|k| asked(&mut right, &so101, 120, k)).collect();
    let other = other?;
    assert_ne!(alone, other);
    for k in 0..3 {
        assert_eq!(asked(&mut left, &so101, 20, k)?, alone[usize::from(k)], "left, {k}");
        assert_eq!(asked(&mut right, &so101, 120, k)?, other[usize::from(k)], "right, {k}");
    }
    let seen = &doctor(zenoh)?["seen"];
    assert_eq!(seen["policies"], json!(keys), "{seen}");
    let robots: Vec<&Value> = seen["robots"].as_array().ok_or("no robots")?.iter().collect();
    assert_eq!(robots.iter().map(|robot| &robot["key"]).collect::<Vec<_>>(), ["vela/left", "vela/right"]);
    assert!(robots[0]["asks"].is_string() && robots[0]["asks"] == robots[1]["asks"], "{seen}");
    assert!(Command::new("kill").args(["-INT", &act.0.id().to_string()]).status()?.success());
    let said: Value = serde_json::from_reader(act.0.stdout.take().ok_or("no stdout")?)?;
    let six = json!({"answered": 6, "refused": 0, "stale": 0, "superseded": 0});
    assert_eq!(said["robots"], json!({"vela/left": six, "vela/right": six}), "{said}");
    Ok(())
}

#[test]
fn one_act_serves_two_arms_by_their_keys_on_loopback() -> Fallible<()> {
    let dir = tempfile::tempdir()?;
    let (robots, endpoint) = listening("peer")?;
    let zenoh = dir.path().join("policy.json5");
    std::fs::write(&zenoh, config("peer", "", &endpoint))?;
    two_arms([&robots, &robots], &["vela/left", "vela/right"], &zenoh)
}

#[test]
fn one_act_serves_every_arm_that_matches_its_key_behind_a_router() -> Fallible<()> {
    let dir = tempfile::tempdir()?;
    let (_router, endpoint) = listening("router")?;
    let client = config("client", "", &endpoint);
    let zenoh = dir.path().join("client.json5");
    std::fs::write(&zenoh, &client)?;
    two_arms([&open(&client)?, &open(&client)?], &["vela/*"], &zenoh)
}

#[test]
fn keys_that_match_one_arm_twice_are_refused_before_anything_is_served() -> Fallible<()> {
    let dir = tempfile::tempdir()?;
    let (_robots, endpoint) = listening("peer")?;
    let zenoh = dir.path().join("policy.json5");
    std::fs::write(&zenoh, config("peer", "", &endpoint))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    let keys = ["--key", "vela/*", "--key", "vela/left"];
    let output = command.args(["act", "--for-secs", "60", "--zenoh"]).arg(&zenoh).args(keys).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("match no robot twice, got 'vela/*' and 'vela/left'"), "{said}");
    Ok(())
}
