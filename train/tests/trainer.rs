//! The trainer on a tiny network: it learns, it stops and resumes bit for bit, and thread counts change nothing.

use vela_embodiment::{ActionSpace, Camera, Embodiment};
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::{DecoderConfig, Tokenizer};
use vela_nn::{Activation, NormConfig, RopeConfig, threads};
use vela_policy::{ExpertConfig, FlowConfig, Normaliser, Scaling, VlaConfig};
use vela_train::config::ModelSizes;
use vela_train::{Example, Lesson, Library, Result, TrainConfig, Trainer};
use vela_vision::{Pooling, VisionConfig};

const SIZE: usize = 16;
const HORIZON: usize = 4;

fn run() -> TrainConfig {
    TrainConfig {
        seed: 3,
        first_lesson: 0,
        horizon: HORIZON,
        execute: 2,
        expert_only: false,
        expert_lessons: 0,
        glances: 0,
        dagger_rounds: 0,
        dagger_lessons: 0,
        dagger_share: 0.5,
        early_share: 0.4,
        vision_steps: 2,
        frozen_steps: 2,
        first_steps: 60,
        round_steps: 0,
        batch: 8,
        shards: 4,
        flow_draws: 2,
        learning_rate: 3e-3,
        warmup_steps: 5,
        weight_decay: 0.01,
        clip_norm: 1.0,
        ema: 0.9,
        patch_weight: 0.5,
        grounding_weight: 0.5,
        position_weight: 1.0,
        checkpoint_every: 10,
        randomised: 0.0,
        model: ModelSizes {
            patch: 4,
            vision_width: 16,
            vision_inner_width: 32,
            vision_layers: 1,
            vision_heads: 2,
            shuffle: 2,
            width: 16,
            inner_width: 32,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            expert_width: 16,
            expert_inner_width: 32,
            flow_steps: 3,
            image_scale: 1.0,
        },
    }
}

fn network() -> VlaConfig {
    let norm = NormConfig::RmsNorm { eps: 1e-5, one_plus: false };
    let decoder = DecoderConfig {
        vocab: 8,
        width: 16,
        inner_width: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        norm,
        activation: Activation::Silu,
        rope: RopeConfig::new(8, 10_000.0),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tied: true,
        ..DecoderConfig::default()
    };
    let identity = Normaliser { scaling: Scaling::Identity, first: vec![], second: vec![], eps: 1e-8 };
    VlaConfig {
        kind: "vela_vla".into(),
        vision: VisionConfig {
            image_size: SIZE,
            patch_size: 4,
            channels: 3,
            width: 16,
            inner_width: 32,
            layers: 1,
            heads: 2,
            norm: NormConfig::LayerNorm { eps: 1e-6, bias: true },
            activation: Activation::GeluTanh,
            final_norm: true,
            pooling: Pooling::None,
            ..VisionConfig::default()
        },
        projector: ProjectorConfig {
            input: 16,
            output: 16,
            shuffle: 2,
            projection: Projection::Mlp { hidden: 16, activation: Activation::GeluTanh },
        },
        expert: ExpertConfig {
            layers: DecoderConfig { vocab: 1, ..decoder.clone() },
            self_attention_every: 1,
            causal: false,
            action_dims: 6,
            time_periods: [4e-3, 4.0],
        },
        decoder,
        flow: FlowConfig { steps: 3, ..FlowConfig::default() },
        cameras: vec!["front".into(), "wrist".into()],
        camera_embeddings: true,
        state_dims: 6,
        image_scale: 1.0,
        word_scale: 4.0,
        prompt_suffix: String::new(),
        space: ActionSpace::JointDeltas,
        horizon: HORIZON,
        execute: 2,
        state: identity.clone(),
        action: identity,
        rtc: None,
    }
}

/// Two kinds of moments: the word and the picture decide which way to go.
fn library() -> Library {
    library_of(HORIZON)
}

fn library_of(horizon: usize) -> Library {
    let mut library = Library::default();
    for (k, word) in ["left", "right"].into_iter().enumerate() {
        let lean = if k == 0 { 0.5 } else { -0.5 };
        let example = Example {
            frames: vec![if k == 0 { 40 } else { 200 }; 2 * SIZE * SIZE * 3],
            state: vec![0.1; 6],
            actions: vec![0.1 + lean; horizon * 6],
            labels: vec![5 | (1 << 5); 2 * SIZE * SIZE],
            truth: [lean, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        };
        library.add_expert(Lesson { instruction: word.into(), examples: vec![example; 3], success: true });
    }
    library
}

fn trainer() -> Result<Trainer> {
    trainer_of(&run(), &network())
}

fn trainer_of(config: &TrainConfig, network: &VlaConfig) -> Result<Trainer> {
    let mut embodiment = Embodiment::so101()?;
    let size = SIZE as u32;
    for Camera { width, height, .. } in &mut embodiment.cameras {
        (*width, *height) = (size, size);
    }
    Trainer::new(config, network, &Tokenizer::word_level(&["left", "right"])?, &embodiment)
}

#[test]
fn the_loss_falls() -> Result<()> {
    let (mut trainer, library) = (trainer()?, library());
    for _ in 0..run().vision_steps {
        let report = trainer.step(&library)?;
        assert_eq!(report.parts().map(|(name, _)| name).collect::<Vec<_>>(), ["patch"]);
    }
    let first = trainer.step(&library)?.loss;
    let mut last = first;
    for _ in trainer.steps()..60 {
        last = trainer.step(&library)?.loss;
    }
    assert!(last < 0.5 * first, "{first} to {last}");
    Ok(())
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_at_any_thread_count() -> Result<()> {
    let library = library();
    let path = std::env::temp_dir().join(format!("vela-state-{}.safetensors", std::process::id()));
    let mut whole = trainer()?;
    for step in 0..6 {
        if step == 3 {
            whole.save(&path)?;
        }
        threads::with_threads(2, || whole.step(&library))?;
    }
    let mut resumed = trainer()?;
    resumed.resume(&path)?;
    assert_eq!(resumed.steps(), 3);
    for _ in 3..6 {
        threads::with_threads(1, || resumed.step(&library))?;
    }
    for ((name, a), (_, b)) in whole.averaged()?.iter().zip(&resumed.averaged()?) {
        let bits = |t: &vela_nn::Tensor| -> Result<Vec<u32>> {
            Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
        };
        assert_eq!(bits(a)?, bits(b)?, "{name}");
    }
    std::fs::write(&path, b"torn")
        .map_err(|source| vela_train::Error::Io { path: path.display().to_string(), source })?;
    assert!(resumed.resume(&path).is_err());
    let _ = std::fs::remove_file(&path);
    Ok(())
}

#[test]
fn a_new_run_begins_with_an_old_policy() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("vela-init-{}", std::process::id()));
    let (mut old, mut new) = (trainer()?, trainer()?);
    for _ in 0..3 {
        old.step(&library())?;
    }
    old.export(&dir)?;
    new.start_from(&dir)?;
    for ((name, a), (_, b)) in old.averaged()?.iter().zip(&new.averaged()?) {
        let difference = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        // Policies are stored as 16-bit floats.
        assert!(difference < 1e-3, "{name}: {difference}");
    }
    let _ = std::fs::remove_dir_all(&dir);
    assert!(new.start_from(&dir).is_err());
    Ok(())
}

#[test]
fn the_expert_alone_learns_longer_chunks_and_stops_and_resumes() -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("vela-expert-{}", std::process::id()));
    let (dir, state) = (scratch.join("policy"), scratch.join("state.safetensors"));
    trainer()?.export(&dir)?;
    let (config, horizon) = (TrainConfig { expert_only: true, ..run() }, 2 * HORIZON);
    let network = VlaConfig { horizon, ..network() };
    let begin = || -> Result<Trainer> {
        let mut trainer = trainer_of(&config, &network)?;
        trainer.start_from(&dir)?;
        Ok(trainer)
    };
    let (mut learner, library) = (begin()?, library_of(horizon));
    let before = learner.averaged()?;
    assert!(learner.parameters() < trainer()?.parameters());
    let first = learner.step(&library)?;
    assert_eq!(first.parts().map(|(name, _)| name).collect::<Vec<_>>(), ["flow"]);
    learner.save(&state)?;
    let second = learner.step(&library)?;
    let mut resumed = begin()?;
    resumed.resume(&state)?;
    assert_eq!(resumed.step(&library)?, second);
    for _ in 2..40 {
        learner.step(&library)?;
    }
    for ((name, a), (_, b)) in before.iter().zip(&learner.averaged()?) {
        let moved = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let own = name.contains("lm_expert") || name.starts_with("action_");
        assert_eq!(own, moved > 0.0, "{name}: {moved}");
    }
    assert_eq!(learner.student()?.config().horizon, horizon);
    assert!(learner.step(&library)?.loss < 0.8 * first.loss);
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(())
}

#[test]
fn no_lessons_are_refused() -> Result<()> {
    let error = trainer()?.step(&Library::default()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("no lessons"), "{error}");
    Ok(())
}
