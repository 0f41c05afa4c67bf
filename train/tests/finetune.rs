//! Fine-tuning on SmolVLA's shape: a fresh adapter changes nothing, what no list names stays as it is, what is exported is the
//! trained policy to whoever opens it, and a run that was cut off goes on as if it had not been.

use std::path::{Path, PathBuf};
use vela_embodiment::{Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_nn::{DType, Device, Tensor, random};
use vela_policy::{SmolVla, Storage, VlaInputs, VlaParts};
use vela_train::Result;
use vela_train::finetune::{
    Asked, Finetune, FinetuneConfig, Frozen, Moment, Moments, PictureQuestions, Questions, QuestionsConfig,
    TakenFrom, statistics,
};

type Outcome<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smolvla")
}

/// An SO-101 with the cameras that the checkpoint knows.
fn robot() -> Outcome<Embodiment> {
    let mut robot = Embodiment::so101()?;
    for (camera, name) in robot.cameras.iter_mut().zip(["camera1", "camera2"]) {
        (camera.name, camera.width, camera.height) = (name.into(), 80, 48);
    }
    Ok(robot)
}

/// Moments that are made up: a picture is all of one shade, and the arm goes where the shade says.
struct Shades;

impl Moments for Shades {
    fn count(&self) -> usize {
        16
    }

    fn moment(&self, at: usize, horizon: usize) -> Result<Moment> {
        let shade = at as u8 * 16;
        let frame = |camera: &str| Frame {
            camera: camera.into(),
            width: 80,
            height: 48,
            rgb: vec![shade; 80 * 48 * 3].into(),
            stamp: Stamp(0),
        };
        let goal = f64::from(shade) / 255.0 - 0.5;
        Ok(Moment {
            observation: Observation {
                frames: vec![frame("camera1"), frame("camera2")],
                joint_positions: vec![0.1; 6],
                instruction: if at.is_multiple_of(2) { "go" } else { "go there now" }.into(),
                stamp: Stamp(0),
            },
            actions: vec![vec![goal; 6]; horizon],
            recorded: horizon.saturating_sub(at % 3).max(1),
        })
    }
}

fn config() -> FinetuneConfig {
    FinetuneConfig {
        seed: 7,
        base: base(),
        data: PathBuf::new(),
        embodiment: TakenFrom::Checkpoint,
        draws: 1,
        statistics: TakenFrom::Checkpoint,
        frozen: Frozen::F32,
        questions: None,
        train: vec!["model.action_out_proj".into()],
        adapt: vec![r"lm_expert\.layers\.\d+\.self_attn\.[qv]_proj".into()],
        rank: 4,
        alpha: 8.0,
        steps: 60,
        batch: 8,
        shards: 4,
        learning_rate: 5e-3,
        warmup_steps: 5,
        weight_decay: 0.0,
        clip_norm: 1.0,
        ema: 0.9,
        checkpoint_every: 10,
    }
}

fn start(config: &FinetuneConfig) -> Outcome<Finetune> {
    Ok(Finetune::new(config, VlaParts::open(&base(), &robot()?, config.frozen.into())?)?)
}

/// The loss on all moments, always with the same noise and times.
fn loss(run: &Finetune) -> Outcome<f32> {
    let all: Vec<usize> = (0..Shades.count()).collect();
    Ok(run.loss(&Shades, &all, &mut random::stream(1, "judge"))?.to_scalar::<f32>()?)
}

#[test]
fn fresh_adapters_are_the_folder_itself_and_training_lowers_the_loss() -> Outcome {
    let mut run = start(&config())?;
    // The same from the folder's own network.
    let parts = VlaParts::open(&base(), &robot()?, Storage::Plain)?;
    let own = parts.config().clone();
    let (mut inputs, mut actions, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..Shades.count() {
        let moment = Shades.moment(at, own.horizon)?;
        inputs.push(parts.policy().inputs(&moment.observation)?);
        for row in &moment.actions {
            let row: Vec<f32> = row.iter().map(|x| *x as f32).collect();
            let mut row = own.action.normalise(&row)?;
            row.resize(own.expert.action_dims, 0.0);
            actions.extend(row);
        }
        counts.push(moment.recorded);
    }
    let (b, horizon, dims) = (counts.len(), own.horizon, own.expert.action_dims);
    let rng = &mut random::stream(1, "judge");
    let noise = own.flow.draw_noise(b * horizon * dims, rng);
    let noise = Tensor::from_vec(noise, (b, horizon, dims), &Device::Cpu)?;
    let times = Tensor::from_vec(own.flow.draw_times(b, rng)?, b, &Device::Cpu)?;
    let actions = Tensor::from_vec(actions, (b, horizon, dims), &Device::Cpu)?;
    let vla = parts.policy().vla();
    let prefix = vla.prefix(&VlaInputs::together(&inputs)?)?;
    let want = vla.flow_loss_within(&prefix, &actions, &noise, &times, &counts)?.to_scalar::<f32>()?;
    let before = loss(&run)?;
    assert!((before - want).abs() < 1e-5 * want, "{before} and {want}");
    // What was not recorded does not count.
    let all = vla.flow_loss(&prefix, &actions, &noise, &times)?.to_scalar::<f32>()?;
    assert!((all - want).abs() > 1e-4 * want, "{all} and {want}");

    for _ in 0..60 {
        run.step(&Shades)?;
    }
    let after = loss(&run)?;
    assert!(after < 0.8 * before, "{before} to {after}");
    Ok(())
}

#[test]
fn what_is_exported_opens_and_only_what_was_named_has_changed() -> Outcome {
    let mut run = start(&config())?;
    for _ in 0..5 {
        run.step(&Shades)?;
    }
    let dir = tempfile::tempdir()?;
    run.export(dir.path())?;
    let read = |path: &Path| candle_core::safetensors::load(path.join("model.safetensors"), &Device::Cpu);
    let (before, after) = (read(&base())?, read(&dir.path().join("policy"))?);
    assert_eq!(before.len(), after.len());
    let mut changed = Vec::new();
    for (name, old) in &before {
        let off = (old.to_dtype(DType::F32)? - after[name].to_dtype(DType::F32)?)?.abs()?.max_all()?;
        if off.to_scalar::<f32>()? > 0.0 {
            changed.push(name.as_str());
        }
    }
    changed.sort_unstable();
    // Two matrices in each of three layers, and a projection with its bias.
    assert_eq!(changed.len(), 8, "{changed:?}");
    assert!(
        changed.iter().all(|n| n.contains("q_proj") || n.contains("v_proj") || n.contains("action_out_proj"))
    );

    // The folder is a policy, and the adapter on its own is the same change.
    let mut policy = SmolVla::load(&dir.path().join("policy"), Storage::Plain)?.policy(&robot()?)?;
    let observation = Shades.moment(3, 10)?.observation;
    policy.infer(&[observation], &InferOptions::default())?;
    let adapter = dir.path().join("adapter");
    let stated: serde_json::Value =
        serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json"))?)?;
    assert_eq!((&stated["r"], &stated["lora_alpha"]), (&4.into(), &8.0.into()));
    let pairs = candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &Device::Cpu)?;
    for module in stated["target_modules"].as_array().ok_or("no modules")? {
        let module = module.as_str().ok_or("not a name")?;
        let part = |which: &str| &pairs[&format!("base_model.model.{module}.lora_{which}.weight")];
        let added = (part("B").matmul(part("A"))? * 2.0)?;
        let name = format!("{module}.weight");
        let off = ((&before[&name] + added)? - &after[&name])?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-6, "{name}: {off}");
    }
    assert_eq!(pairs.len(), 12);
    Ok(())
}

#[test]
fn a_run_that_was_cut_off_goes_on_bit_for_bit_at_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state.safetensors");
    let mut whole = start(&config())?;
    for _ in 0..6 {
        whole.step(&Shades)?;
    }
    let mut first = start(&config())?;
    for _ in 0..3 {
        first.step(&Shades)?;
    }
    first.save(&state)?;
    let mut second = start(&config())?;
    second.resume(&state)?;
    for _ in 0..3 {
        vela_nn::threads::with_threads(1, || second.step(&Shades))?;
    }
    assert_eq!((second.steps(), loss(&second)?), (6, loss(&whole)?));
    // Another run's file is refused.
    let other = FinetuneConfig { rank: 2, ..config() };
    assert!(start(&other)?.resume(&state).is_err_and(|e| e.to_string().contains("lora_A")));
    Ok(())
}

#[test]
fn what_stays_may_be_held_in_sixteen_bits_and_what_learns_is_not() -> Outcome {
    let half = FinetuneConfig { frozen: Frozen::Bf16, ..config() };
    let (mut run, exact) = (start(&half)?, start(&config())?);
    let (before, other) = (loss(&run)?, loss(&exact)?);
    assert!(before != other && (before - other).abs() < 0.02 * other, "{before} and {other}");
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state.safetensors");
    for step in 0..40 {
        if step == 20 {
            run.save(&state)?;
        }
        run.step(&Shades)?;
    }
    let after = loss(&run)?;
    assert!(after < 0.85 * before, "{before} to {after}");
    let mut again = start(&half)?;
    again.resume(&state)?;
    for _ in 20..40 {
        again.step(&Shades)?;
    }
    assert_eq!(loss(&again)?, after);
    // The folder that comes out has its own numbers where nothing learnt, all of their bits.
    run.export(dir.path())?;
    let read = |path: &Path| candle_core::safetensors::load(path.join("model.safetensors"), &Device::Cpu);
    let (old, new) = (read(&base())?, read(&dir.path().join("policy"))?);
    let mut changed = 0;
    for (name, old) in &old {
        let off = (old.to_dtype(DType::F32)? - new[name].to_dtype(DType::F32)?)?.abs()?.max_all()?;
        changed += usize::from(off.to_scalar::<f32>()? > 0.0);
    }
    assert_eq!(changed, 8);
    // Variables have bits below a sixteen-bit number's last place.
    let states = candle_core::safetensors::load(&state, &Device::Cpu)?;
    let learnt: Vec<_> = states
        .iter()
        .filter(|(name, _)| name.contains("lora_A") || name.contains("action_out_proj.weight"))
        .collect();
    assert!(learnt.len() >= 7, "{:?}", states.keys());
    for (name, tensor) in learnt {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        assert!(values.iter().any(|x| x.to_bits() & 0xffff != 0), "{name}");
    }
    let all = FinetuneConfig { train: vec![".*".into()], adapt: vec![], ..half };
    assert!(start(&all).is_err_and(|e| e.to_string().contains("every tensor learns")));
    Ok(())
}

#[test]
fn what_cannot_learn_is_refused_by_name() -> Outcome {
    let refused = |change: FinetuneConfig| match start(&change) {
        Ok(_) => "accepted".to_owned(),
        Err(e) => e.to_string(),
    };
    let with = |adapt: &str| FinetuneConfig { adapt: vec![adapt.into()], ..config() };
    assert!(refused(with("teapot")).contains("found in the name of no tensor"));
    assert!(refused(with("text_model.embed_tokens")).contains("can be trained, not adapted"));
    assert!(refused(with("input_layernorm")).contains("expected a matrix"));
    assert!(refused(with("action_out_proj")).contains("named by train and by adapt"));
    assert!(refused(with("(")).contains("'('"));
    assert!(refused(FinetuneConfig { shards: 3, ..config() }).contains("must divide"));
    let none = FinetuneConfig { adapt: vec![], train: vec![], ..config() };
    assert!(refused(none).contains("nothing would learn"));
    Ok(())
}

/// Questions about pictures of one shade; the answer is in the picture alone.
struct Bright;

impl Questions for Bright {
    fn count(&self) -> usize {
        8
    }

    fn asked(&self, at: usize) -> Result<Asked> {
        let answer = if at < 4 { "go" } else { "there" };
        Ok(Asked {
            rgb: vec![at as u8 * 36; 40 * 30 * 3],
            size: [40, 30],
            question: "go now".into(),
            answer: answer.into(),
        })
    }
}

#[test]
fn answers_are_learnt_beside_actions_and_the_actions_draws_stay_the_same() -> Outcome {
    let questions = QuestionsConfig { data: PathBuf::new(), batch: 8, weight: 0.5 };
    let speaking = FinetuneConfig {
        adapt: vec![r"(text_model|lm_expert)\.layers\.\d+\.self_attn\.[qv]_proj".into()],
        train: vec!["model.action_out_proj".into(), "connector".into()],
        questions: Some(questions.clone()),
        ..config()
    };
    let quiet = FinetuneConfig { questions: None, ..speaking.clone() };
    let (mut both, mut alone) = (start(&speaking)?, start(&quiet)?);
    assert!(alone.ask(Box::new(Bright)).is_err_and(|e| e.to_string().contains("does not say how many")));
    both.ask(Box::new(Bright))?;
    let all: Vec<usize> = (0..Bright.count()).collect();
    let before = (loss(&both)?, both.answers(&Bright, &all)?.to_scalar::<f32>()?);
    let (first, other) = (both.step(&Shades)?, alone.step(&Shades)?);
    assert_eq!((first.loss, other.answers), (other.loss, None));
    assert!(first.answers.is_some_and(|said| said > 0.0));
    for _ in 1..60 {
        both.step(&Shades)?;
        alone.step(&Shades)?;
    }
    let after = (loss(&both)?, both.answers(&Bright, &all)?.to_scalar::<f32>()?);
    let forgotten = alone.answers(&Bright, &all)?.to_scalar::<f32>()?;
    println!(
        "actions {} to {}, answers {} to {} ({forgotten} without)",
        before.0, after.0, before.1, after.1
    );
    assert!(after.0 < 0.9 * before.0 && after.1 < 0.8 * before.1 && after.1 < forgotten);
    // Nothing that learns has a part in answers.
    let mut deaf = start(&FinetuneConfig { questions: Some(questions.clone()), ..config() })?;
    assert!(deaf.ask(Box::new(Bright)).is_err_and(|e| e.to_string().contains("among what learns")));
    let uneven = QuestionsConfig { batch: 6, ..questions };
    assert!(start(&FinetuneConfig { questions: Some(uneven), ..speaking }).is_err());
    Ok(())
}

#[test]
fn statistics_of_the_dataset_take_the_checkpoint_s_place_and_are_written_down() -> Outcome {
    let mut parts = VlaParts::open(&base(), &robot()?, Storage::Plain)?;
    let (old, horizon) = (parts.config().action.clone(), parts.config().horizon);
    // A joint that never moves has no deviation, and a state that is always the same has none at all.
    parts.set_statistics(statistics(&Shades, &parts.config().space.clone(), horizon)?)?;
    let new = parts.config().action.clone();
    let goals: Vec<f64> = (0..16).map(|at| f64::from(at as u8 * 16) / 255.0 - 0.5).collect();
    let mean = goals.iter().sum::<f64>() / 16.0;
    assert!(
        (f64::from(new.first[0]) - mean).abs() < 1e-6 && new.first != old.first && new.scaling == old.scaling
    );
    let mut run = Finetune::new(&config(), parts)?;
    run.step(&Shades)?;
    let dir = tempfile::tempdir()?;
    run.export(dir.path())?;
    let written = SmolVla::load(&dir.path().join("policy"), Storage::Plain)?.config;
    assert_eq!((&written.action, written.state.second[0]), (&new, 0.0));
    assert_ne!(start(&config())?.step(&Shades)?.loss, run.step(&Shades)?.loss);
    Ok(())
}

#[test]
fn questions_are_read_from_the_layout_of_easy_vqa() -> Outcome {
    let dir = tempfile::tempdir()?;
    let images = dir.path().join("train/images");
    std::fs::create_dir_all(&images)?;
    image::RgbImage::from_pixel(6, 4, image::Rgb([9, 8, 7])).save(images.join("3.png"))?;
    let list = r#"[["what color is the shape?", "red", 3], ["is there a circle?", "no", 3]]"#;
    std::fs::write(dir.path().join("train/questions.json"), list)?;
    let questions = PictureQuestions::load(dir.path())?;
    let asked = questions.asked(1)?;
    assert_eq!((questions.count(), asked.size, asked.rgb.len()), (2, [6, 4], 72));
    assert_eq!((asked.question.as_str(), asked.answer.as_str()), ("is there a circle?", "no"));
    assert!(questions.asked(2).is_err() && PictureQuestions::load(&images).is_err());
    Ok(())
}
