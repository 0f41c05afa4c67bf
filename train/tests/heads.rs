//! Heads on what a frozen trunk made: kept prefixes are the live trunk's, and of two equally good ways regression gives the
//! average, which goes through the obstacle, where tokens in turn, diffusion and flow take one or the other.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use vela_embodiment::{Frame, InferOptions, Observation, Policy, Stamp};
use vela_nn::Weights;
use vela_policy::{BodyConfig, BodyKind, HeadCard, HeadConfig, HeadKind, HeadPolicy, Trained, VlaPolicy};
use vela_train::heads::fit;
use vela_train::two_ways::{budget, kinds, learn};
use vela_train::{Example, HeadRun, Lesson, Prefixes, Result};

fn trunk() -> Result<VlaPolicy> {
    Ok(VlaPolicy::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tabletop"))?)
}

/// Pictures of noise and joints near the middle.
fn lesson(moments: usize) -> Lesson {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut example = || Example {
        frames: (0..2 * 96 * 96 * 3).map(|_| rng.random()).collect(),
        state: (0..6).map(|_| rng.random_range(-0.2..0.2)).collect(),
        actions: (0..16 * 6).map(|_| rng.random_range(-0.3..0.3)).collect(),
        labels: vec![0; 2 * 96 * 96],
        truth: [0.0; 7],
    };
    let examples = (0..moments).map(|_| example()).collect();
    Lesson { instruction: "touch the red cube".into(), examples, success: true }
}

#[test]
fn kept_prefixes_are_the_live_trunk_s_and_a_head_learns_from_them_and_survives_the_disk() -> Result<()> {
    let (mut trunk, lesson) = (trunk()?, lesson(4));
    let made = Prefixes::of_lesson(&mut trunk, &lesson)?;
    let dir = tempfile::tempdir().map_err(vela_nn::Error::invalid)?;
    let path = dir.path().join("prefixes.safetensors");
    Prefixes::join(&[made.clone(), made])?.save(&path)?;
    assert!(Prefixes::load(&path, "another trunk").is_err_and(|e| e.to_string().contains("another trunk")));
    let kept = Prefixes::load(&path, &trunk.spec().checkpoint)?;
    assert_eq!(kept.len(), 8);
    let frame = |name: &str, from: usize| Frame {
        camera: name.into(),
        width: 96,
        height: 96,
        rgb: lesson.examples[2].frames[from..from + 96 * 96 * 3].into(),
        stamp: Stamp(0),
    };
    let seen = Observation {
        frames: vec![frame("front", 0), frame("wrist", 96 * 96 * 3)],
        joint_positions: lesson.examples[2].state.iter().map(|q| f64::from(*q)).collect(),
        instruction: lesson.instruction.clone(),
        stamp: Stamp(0),
    };
    let live = trunk.conditioning(&seen, None)?;
    let stored = kept.hidden.narrow(0, 6, 1)?.to_dtype(candle_core::DType::F32)?;
    let off = (&live - stored)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(off < 5e-3, "a 16-bit float's rounding at most: {off}");

    let lessons = kept.lessons(1)?;
    let body = BodyConfig {
        kind: BodyKind::Transformer,
        conditioning: live.dim(2)?,
        width: 16,
        layers: 1,
        heads: 2,
    };
    let head = HeadConfig { kind: HeadKind::Regression, body, horizon: 1, dims: 6 };
    let weights = Weights::fresh(1);
    let built = head.build(&weights)?;
    let run = HeadRun { seed: 1, steps: 60, batch: 8, shards: 2, learning_rate: 1e-2 };
    let mut losses = Vec::new();
    let draw = |rows: usize, rng: &mut ChaCha8Rng| lessons.draw(rows, rng);
    fit(built.as_ref(), &weights, &run, &draw, &mut |_, loss| losses.push(loss))?;
    assert!(losses[59] < 0.5 * losses[0], "{} to {}", losses[0], losses[59]);
    let (action, trunk_hash) = (lessons.scaling.clone(), kept.trunk.clone());
    let card = HeadCard { head, execute: 1, action, trunk: trunk_hash, projector: None };
    let tensors: Vec<_> =
        weights.trainable().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    card.save(dir.path(), "one", &tensors)?;
    let mut policy = HeadPolicy::load(trunk.clone(), dir.path(), "one")?;
    let (first, again) =
        (policy.infer(std::slice::from_ref(&seen), &InferOptions::default())?, policy.decode(&live, 0)?);
    assert_eq!((first.actions.len(), &first.actions), (1, &again));
    let other = HeadCard { trunk: "another".into(), ..policy.card().clone() };
    let trained = Trained { head: built, projector: None };
    assert!(HeadPolicy::assemble(trunk, trained, other, "x").is_err_and(|e| e.to_string().contains("another")));
    Ok(())
}

#[test]
fn around_an_obstacle_the_average_fails_and_a_choice_arrives() -> Result<()> {
    for kind in kinds()? {
        // Tokens take longer; one kind of each sort is enough here, `vela eval heads` has all.
        if ["tokens", "tokens_at_once", "fast"].contains(&kind.name()) {
            continue;
        }
        let tally = learn(&kind, &budget(700), 100, &mut |_, _| {})?.tally;
        println!("{}: {tally:?}", kind.name());
        if kind.name() == "regression" {
            assert!(tally.rate < 0.1, "{tally:?}");
        } else {
            assert!(tally.rate > 0.8 && tally.left > 20 && tally.right > 20, "{}: {tally:?}", kind.name());
        }
    }
    Ok(())
}
