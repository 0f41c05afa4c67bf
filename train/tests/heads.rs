//! Heads on what a frozen trunk made: kept prefixes are the live trunk's, a projector learns with its head through the
//! frozen decoder, and of two equally good ways regression gives the average, which goes through the obstacle, where
//! tokens in turn, diffusion and flow take one or the other.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use vela_embodiment::{Frame, InferOptions, Observation, Policy, Stamp};
use vela_fusion::{Projection, ProjectorConfig};
use vela_nn::{Activation, Tensor, Weights};
use vela_policy::{
    BodyConfig, BodyKind, FlowConfig, HeadCard, HeadConfig, HeadKind, HeadPolicy, Trained, VlaPolicy,
};
use vela_train::heads::fit;
use vela_train::two_ways::{budget, kinds, learn};
use vela_train::{Example, HeadRun, Lesson, Prefixes, Result, Sights};

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

/// What the robot saw at a lesson's moment.
fn observation(lesson: &Lesson, moment: usize) -> Observation {
    let example = &lesson.examples[moment];
    let frame = |name: &str, from: usize| Frame {
        camera: name.into(),
        width: 96,
        height: 96,
        rgb: example.frames[from..from + 96 * 96 * 3].into(),
        stamp: Stamp(0),
    };
    Observation {
        frames: vec![frame("front", 0), frame("wrist", 96 * 96 * 3)],
        joint_positions: example.state.iter().map(|q| f64::from(*q)).collect(),
        instruction: lesson.instruction.clone(),
        stamp: Stamp(0),
    }
}

/// The largest difference of two tensors.
fn apart(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
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
    let seen = observation(&lesson, 2);
    let live = trunk.conditioning(&seen, None)?;
    let stored = kept.hidden.narrow(0, 6, 1)?.to_dtype(candle_core::DType::F32)?;
    let off = apart(&live, &stored)?;
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
    assert!(
        HeadPolicy::assemble(trunk, trained, other, "x").is_err_and(|e| e.to_string().contains("another"))
    );
    Ok(())
}

#[test]
fn a_projector_and_its_head_learn_through_the_frozen_decoder_and_survive_the_disk() -> Result<()> {
    let mut trunk = trunk()?;
    let long = Lesson { instruction: "put the red cube into the blue bowl".into(), ..lesson(1) };
    let both = [lesson(1), long];
    let sights: Vec<Sights> =
        both.iter().map(|lesson| Sights::of_lesson(&mut trunk, lesson)).collect::<Result<_>>()?;
    let dir = tempfile::tempdir().map_err(vela_nn::Error::invalid)?;
    let path = dir.path().join("sights.safetensors");
    Sights::join(&sights)?.save(&path)?;
    assert!(Sights::load(&path, "another trunk").is_err_and(|e| e.to_string().contains("another trunk")));
    let kept = Sights::load(&path, &trunk.spec().checkpoint)?;
    assert_eq!(kept.patch_tokens.dims(), [2, 2, 144, 128]);

    let lessons = kept.lessons(16)?;
    let body = BodyConfig { kind: BodyKind::Transformer, conditioning: 192, width: 16, layers: 1, heads: 2 };
    let mlp = Projection::Mlp { hidden: 16, activation: Activation::GeluTanh };
    let projector = ProjectorConfig { input: 128, output: 192, shuffle: 4, projection: mlp };
    let card = HeadCard {
        head: HeadConfig { kind: HeadKind::Flow(FlowConfig::default()), body, horizon: 16, dims: 6 },
        execute: 8,
        action: lessons.scaling.clone(),
        trunk: kept.trunk.clone(),
        projector: Some(projector.clone()),
    };
    let weights = Weights::fresh(1);
    let built = card.build(&weights)?;
    let own = built.projector.as_ref().ok_or_else(|| vela_nn::Error::invalid("the card has a projector"))?;

    // Whatever is drawn is what the live trunk makes of one of the two, although one of them is padded.
    let live: Vec<Tensor> = both
        .iter()
        .map(|lesson| Ok(trunk.conditioning(&observation(lesson, 0), Some(own))?))
        .collect::<Result<_>>()?;
    assert_eq!(live[0].dims(), [1, 2 * 9 + 2, 192]);
    assert!(apart(&live[0], &live[1])? > 0.1);
    let (told, actions) = lessons.draw(trunk.vla(), own, [6, 2], &mut ChaCha8Rng::seed_from_u64(3))?;
    assert_eq!((told.dims(), actions.dims()), ([12, 20, 192].as_slice(), [12, 16, 6].as_slice()));
    let mut met = [0; 2];
    for row in 0..12 {
        let row = told.narrow(0, row, 1)?;
        let off = [apart(&row, &live[0])?, apart(&row, &live[1])?];
        let nearer = usize::from(off[1] < off[0]);
        assert!(off[nearer] < 2e-2, "a 16-bit float's rounding at most: {off:?}");
        met[nearer] += 1;
    }
    assert!(met.iter().all(|count| *count > 0 && count % 2 == 0), "each stands twice: {met:?}");

    let run = HeadRun { seed: 1, steps: 60, batch: 8, shards: 2, learning_rate: 5e-3 };
    let before = own.forward(&kept.patch_tokens.get(0)?.to_dtype(candle_core::DType::F32)?)?.detach();
    let mut losses = Vec::new();
    let draw = |rows: usize, rng: &mut ChaCha8Rng| lessons.draw(trunk.vla(), own, [rows, 2], rng);
    fit(built.head.as_ref(), &weights, &run, &draw, &mut |_, loss| losses.push(loss))?;
    assert!(losses[50..].iter().sum::<f32>() < 0.8 * losses[..10].iter().sum::<f32>(), "{losses:?}");
    let after = own.forward(&kept.patch_tokens.get(0)?.to_dtype(candle_core::DType::F32)?)?;
    assert!(apart(&before, &after)? > 1e-3, "the projector has learnt too");

    let tensors: Vec<_> =
        weights.trainable().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    card.save(dir.path(), "one", &tensors)?;
    let mut policy = HeadPolicy::load(trunk.clone(), dir.path(), "one")?;
    assert_eq!(policy.tokens_per_picture(), Some(9));
    let seen = observation(&both[0], 0);
    let told = policy.conditioning(&seen)?;
    assert!(apart(&told, &live[0])? > 1e-3, "its own projector, not the fresh one");
    let (first, again) =
        (policy.infer(std::slice::from_ref(&seen), &InferOptions::default())?, policy.decode(&told, 0)?);
    assert_eq!((first.actions.len(), &first.actions), (16, &again));

    let narrow = HeadCard { projector: Some(ProjectorConfig { output: 96, ..projector }), ..card };
    let refused = HeadPolicy::assemble(trunk, narrow.build(&Weights::fresh(1))?, narrow, "x");
    assert!(refused.is_err_and(|e| e.to_string().contains("expected 128 to 192")));
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
