//! Torn and mutated messages: never a panic, never more memory than a small multiple of what came.

use super::{answer, ask, hello, world};
use rand::Rng;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Episode, Frame, InferOptions, Observation, PolicySpec, Result,
    Stamp, stream,
};

pub(super) fn sample_ask() -> ask::Ask {
    let frame = |camera: &str| Frame {
        camera: camera.into(),
        width: 2,
        height: 2,
        rgb: (0..12).collect::<Vec<u8>>().into(),
        stamp: Stamp(5),
    };
    let observation = Observation {
        frames: vec![frame("front"), frame("wrist")],
        joint_positions: vec![0.5, -1.0],
        instruction: "pick up the grün cube".into(),
        stamp: Stamp(7),
    };
    ask::Ask {
        robot: "5f-3".into(),
        sequence: 9,
        patience_secs: 0.5,
        history: vec![observation.clone(), observation],
        options: InferOptions { seed: 3, delay_ticks: 2, unexecuted: vec![vec![1.0, 2.0], vec![3.0, 4.0]] },
    }
}

pub(super) fn sample_answer() -> answer::Answer {
    answer::Answer {
        sequence: 9,
        infer_secs: 0.01,
        chunk: Ok(ActionChunk {
            space: ActionSpace::JointDeltas,
            actions: vec![vec![0.1, 0.2], vec![0.3, 0.4], vec![0.5, 0.6]],
            period_secs: 1.0 / 30.0,
            observation_stamp: Stamp(7),
            seed: 3,
            checkpoint: "abc".into(),
        }),
    }
}

pub(super) fn sample_spec() -> Result<PolicySpec> {
    Ok(PolicySpec {
        embodiment: Embodiment::so101()?,
        space: ActionSpace::JointPositions,
        horizon: 16,
        execute: 8,
        history: 1,
        checkpoint: "abc".into(),
    })
}

/// Decodes as everything; whatever still decodes must encode again.
fn try_all(bytes: &[u8]) {
    if let Ok(ask) = ask::decode(bytes) {
        assert!(ask::encode(&ask).is_ok());
        let bound = bytes.len() * 64;
        assert!(ask.history.iter().map(|o| o.joint_positions.len()).sum::<usize>() < bound);
    }
    if let Ok(answer) = answer::decode(bytes) {
        assert!(answer::encode(&answer).is_ok());
    }
    if let Ok(hello) = hello::decode_hello(bytes) {
        assert!(hello::encode_hello(&hello).is_ok());
    }
    let _ = hello::decode_welcome(bytes);
    if let Ok(episode) = world::decode_reset(bytes) {
        assert!(world::encode_reset(&episode).is_ok());
    }
    if let Ok((tick, actions)) = world::decode_step(bytes) {
        assert!(world::encode_step(tick, &actions).is_ok());
    }
    if let Ok(moment) = world::decode_moment(bytes) {
        assert!(world::encode_moment(&moment).is_ok());
    }
    if let Ok((tick, frames)) = world::decode_view(bytes) {
        assert!(world::encode_view(tick, &frames).is_ok());
    }
    if let Ok((tick, targets)) = world::decode_label(bytes) {
        assert!(world::encode_label(tick, &targets).is_ok());
    }
}

#[test]
fn ten_thousand_torn_messages_never_panic() -> Result<()> {
    let spec = sample_spec()?;
    let robot = hello::Hello { robot: "5f-3".into(), embodiment: spec.embodiment.clone() };
    let moment = world::Moment {
        tick: 3,
        instruction: "go on".into(),
        joints: vec![0.5, -1.0],
        applied: vec![0.25, 1.0],
        success: true,
        finished: false,
        seconds: 0.3,
    };
    let whole = [
        world::encode_reset(&Episode { task: "pick".into(), seed: 7, randomise: true })?,
        world::encode_step(3, &[vec![0.5, -1.0], vec![0.25, 1.0]])?,
        world::encode_moment(&moment)?,
        world::encode_view(3, &sample_ask().history[0].frames)?,
        world::encode_label(3, &[0.5, -1.0])?,
        ask::encode(&sample_ask())?,
        answer::encode(&sample_answer())?,
        hello::encode_hello(&robot)?,
        hello::encode_welcome(&hello::Welcome::to(&robot, &spec))?,
    ];
    for seed in 0..10_000 {
        let mut rng = stream(seed, "torn messages");
        let mut bytes = whole[rng.random_range(0..whole.len())].clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match rng.random_range(0..5) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] = rng.random(),
                2 if !bytes.is_empty() => bytes[at] ^= 1 << rng.random_range(0..8),
                // Length prefixes of arrays, maps and byte strings that promise gigabytes.
                3 => drop(
                    bytes.splice(at..at, [[0xdd, 0xdf, 0xc6][seed as usize % 3], 0xff, 0xff, 0xff, 0xff]),
                ),
                _ => bytes.extend((0..rng.random_range(0..40)).map(|_| rng.random::<u8>())),
            }
        }
        try_all(&bytes);
    }
    Ok(())
}

#[test]
fn wrong_magic_version_kind_and_length_each_say_so() -> Result<()> {
    let good = answer::encode(&sample_answer())?;
    let said = |bytes: &[u8]| answer::decode(bytes).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said(b"").contains("a header alone has 6"));
    assert!(said(b"GET / HTTP/1.1").contains("starts with VELA"));
    let mut newer = good.clone();
    newer[5] = 9;
    assert!(said(&newer).contains("expected version 2, got 9"));
    assert!(said(&ask::encode(&sample_ask())?).contains("expected answer, got ask"));
    assert!(said(&good[..good.len() - 1]).contains("torn"));
    Ok(())
}
