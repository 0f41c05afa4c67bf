//! Our own small VLA: one path for training and inference, from memory and from its folder.

use candle_core::{Device, Tensor};
use vela_embodiment::{ActionSpace, Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::{DecoderConfig, Tokenizer};
use vela_nn::{Activation, Error, NormConfig, Result, RopeConfig, Weights, random};
use vela_policy::rtc::{Pull, Schedule, Until};
use vela_policy::{
    ExpertConfig, FlowConfig, Guide, Normaliser, Prefix, Scaling, Vla, VlaConfig, VlaInputs, VlaPolicy,
    folder,
};
use vela_vision::{Pooling, VisionConfig};

const WORDS: [&str; 6] = ["touch", "push", "the", "red", "green", "cube"];

/// As trained for the tabletop, only smaller; pictures of the embodiment's size.
fn config(self_attention_every: usize) -> VlaConfig {
    let decoder = DecoderConfig {
        vocab: WORDS.len() + 2,
        width: 24,
        inner_width: 32,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        norm: NormConfig::RmsNorm { eps: 1e-5, one_plus: false },
        activation: Activation::Silu,
        rope: RopeConfig::new(6, 10_000.0),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tied: true,
        ..DecoderConfig::default()
    };
    let unit = |std: f32| Normaliser {
        scaling: Scaling::MeanStd,
        first: vec![0.1; 6],
        second: vec![std; 6],
        eps: 1e-8,
    };
    VlaConfig {
        kind: "vela_vla".into(),
        vision: VisionConfig {
            image_size: 96,
            patch_size: 24,
            channels: 3,
            width: 16,
            inner_width: 24,
            layers: 2,
            heads: 2,
            norm: NormConfig::LayerNorm { eps: 1e-6, bias: true },
            activation: Activation::GeluTanh,
            final_norm: true,
            pooling: Pooling::None,
            ..VisionConfig::default()
        },
        projector: ProjectorConfig {
            input: 16,
            output: 24,
            shuffle: 2,
            projection: Projection::Mlp { hidden: 24, activation: Activation::GeluTanh },
        },
        expert: ExpertConfig {
            layers: DecoderConfig { vocab: 1, width: 16, inner_width: 24, ..decoder.clone() },
            self_attention_every,
            causal: false,
            action_dims: 6,
            time_periods: [4e-3, 4.0],
        },
        decoder,
        flow: FlowConfig { steps: 4, ..FlowConfig::default() },
        cameras: vec!["front".into(), "wrist".into()],
        camera_embeddings: true,
        state_dims: 6,
        image_scale: 5.0,
        word_scale: 5.0,
        prompt_suffix: String::new(),
        space: ActionSpace::JointDeltas,
        horizon: 5,
        execute: 3,
        state: unit(0.5),
        action: unit(0.2),
        rtc: None,
    }
}

/// Three moments; the second sentence is shorter than the others.
fn inputs() -> Result<VlaInputs> {
    let words = vec![2u32, 4, 5, 7, 3, 7, 0, 0, 3, 4, 6, 7];
    let word_valid = (0..12).map(|i| i != 6 && i != 7).collect();
    Ok(VlaInputs {
        frames: random::uniform(1, "frames", -1.0, 1.0, vec![3, 2, 3, 96, 96])?,
        words: Tensor::from_vec(words, (3, 4), &Device::Cpu)?,
        word_valid,
        state: random::normal(1, "state", (3, 6))?,
    })
}

fn single(all: &VlaInputs, row: usize, words: usize) -> Result<VlaInputs> {
    Ok(VlaInputs {
        frames: all.frames.narrow(0, row, 1)?,
        words: all.words.narrow(0, row, 1)?.narrow(1, 0, words)?.contiguous()?,
        word_valid: vec![true; words],
        state: all.state.narrow(0, row, 1)?,
    })
}

fn far(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

fn sampled(vla: &Vla, prefix: &Prefix, noise: &Tensor) -> Result<Tensor> {
    vla.sample(prefix, noise, &mut |_, _, _| {})
}

#[test]
fn batch_n_equals_n_singles_without_padding() -> Result<()> {
    for every in [1, 2] {
        let vla = Vla::new(&Weights::fresh(3), &config(every))?;
        let all = inputs()?;
        let noise = random::normal(2, "noise", (3, 5, 6))?;
        let together = sampled(&vla, &vla.prefix(&all)?, &noise)?;
        for (row, words) in [(0, 4), (1, 2), (2, 4)] {
            let prefix = vla.prefix(&single(&all, row, words)?)?;
            let alone = sampled(&vla, &prefix, &noise.narrow(0, row, 1)?)?;
            let difference = far(&alone, &together.narrow(0, row, 1)?)?;
            assert!(difference < 1e-4, "row {row}: {difference}");
        }
    }
    Ok(())
}

#[test]
fn draws_that_share_a_prefix_do_not_see_each_other() -> Result<()> {
    for (every, causal) in [(1, false), (2, false), (2, true)] {
        let mut config = config(every);
        config.expert.causal = causal;
        let vla = Vla::new(&Weights::fresh(3), &config)?;
        let prefix = vla.prefix(&inputs()?)?;
        let actions = random::normal(4, "actions", (3, 5, 6))?;
        let noise = random::normal(2, "noise", (6, 5, 6))?;
        let times = random::uniform(2, "times", 0.0, 1.0, 6)?;
        let together = vla.flow_loss(&prefix, &actions, &noise, &times)?.to_scalar::<f32>()?;
        let mut sum = 0.0;
        for draw in 0..2u32 {
            let rows = Tensor::new(&[draw, 2 + draw, 4 + draw], &Device::Cpu)?;
            let (noise, times) = (noise.index_select(&rows, 0)?, times.index_select(&rows, 0)?);
            sum += vla.flow_loss(&prefix, &actions, &noise, &times)?.to_scalar::<f32>()?;
        }
        assert!((together - sum / 2.0).abs() < 1e-5 * together, "{together} {sum}");
    }
    Ok(())
}

#[test]
fn the_loss_reaches_every_parameter_that_the_chunk_depends_on() -> Result<()> {
    for every in [1, 2] {
        let weights = Weights::fresh(3);
        let vla = Vla::new(&weights, &config(every))?;
        let prefix = vla.prefix(&inputs()?)?;
        let actions = random::normal(4, "actions", (3, 5, 6))?;
        let noise = random::normal(2, "noise", (6, 5, 6))?;
        let times = random::uniform(2, "times", 0.0, 1.0, 6)?;
        let gradients = vla.flow_loss(&prefix, &actions, &noise, &times)?.backward()?;
        // The decoder's last layer only gives keys and values.
        let last = "vlm_with_expert.vlm.model.text_model.layers.2.";
        let idle = |name: &str| {
            name.ends_with("text_model.norm.weight")
                || name.strip_prefix(last).is_some_and(|part| {
                    ["q_proj", "o_proj", "mlp", "post_attention"].iter().any(|idle| part.contains(idle))
                })
        };
        for (name, var) in weights.trainable() {
            let gradient = gradients.get(var.as_tensor());
            assert_eq!(gradient.is_none(), idle(&name), "{name}");
            if let Some(gradient) = gradient {
                assert!(gradient.abs()?.sum_all()?.to_scalar::<f32>()? > 0.0, "{name}");
            }
        }
    }
    Ok(())
}

fn seen(embodiment: &Embodiment, instruction: &str) -> Observation {
    let frame = |camera: &vela_embodiment::Camera| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: (0..camera.width * camera.height * 3).map(|i| (i % 253) as u8).collect::<Vec<u8>>().into(),
        stamp: Stamp(5),
    };
    Observation {
        frames: embodiment.cameras.iter().map(frame).collect(),
        joint_positions: vec![0.1; 6],
        instruction: instruction.into(),
        stamp: Stamp(7),
    }
}

fn written(dir: &std::path::Path, weights: &Weights) -> Result<()> {
    let config = config(2);
    let _ = Vla::new(weights, &config)?;
    let tensors: Vec<_> =
        weights.trainable().iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let embodiment = Embodiment::so101().map_err(Error::invalid)?;
    folder::save(dir, &config, &Tokenizer::word_level(&WORDS)?, &embodiment, &tensors)
}

#[test]
fn a_folder_comes_back_and_the_same_seed_gives_the_same_bytes() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    written(dir.path(), &Weights::fresh(9))?;
    let mut policy = VlaPolicy::load(dir.path())?;
    let observation = seen(&policy.spec().embodiment.clone(), "touch the green cube");
    let mut ask = |seed: u64| {
        policy.infer(std::slice::from_ref(&observation), &InferOptions { seed, ..InferOptions::default() })
    };
    let first = ask(1).map_err(Error::invalid)?;
    assert_eq!((first.horizon(), first.observation_stamp, first.seed), (5, Stamp(7), 1));
    assert_eq!(first.space, ActionSpace::JointDeltas);
    assert_eq!(first, ask(1).map_err(Error::invalid)?);
    assert_ne!(first.actions, ask(2).map_err(Error::invalid)?.actions);
    let mut again = VlaPolicy::load(dir.path())?;
    let options = InferOptions { seed: 1, ..InferOptions::default() };
    let same = again.infer(&[observation], &options).map_err(Error::invalid)?;
    assert_eq!(first, same);
    Ok(())
}

#[test]
fn the_same_chunk_at_any_thread_count() -> Result<()> {
    let vla = Vla::new(&Weights::fresh(3), &config(1))?;
    let noise = random::normal(2, "noise", (3, 5, 6))?;
    let run = |threads| {
        vela_nn::threads::with_threads(threads, || -> Result<Vec<f32>> {
            Ok(sampled(&vla, &vla.prefix(&inputs()?)?, &noise)?.flatten_all()?.to_vec1()?)
        })
    };
    assert_eq!(run(1)?, run(2)?);
    Ok(())
}

#[test]
fn bad_folders_and_questions_get_one_clear_error() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    let wrong =
        |what: &str| VlaPolicy::load(dir.path()).err().map(|e| format!("{what}: {e}")).unwrap_or_default();
    assert!(wrong("empty").contains("config.json"));
    written(dir.path(), &Weights::fresh(9))?;
    let mut policy = VlaPolicy::load(dir.path())?;
    let embodiment = policy.spec().embodiment.clone();
    let mut refused = |observation: &Observation| {
        let answer = policy.infer(std::slice::from_ref(observation), &InferOptions::default());
        answer.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let error = refused(&seen(&embodiment, "touch the purple cube"));
    assert!(error.contains("'purple'") && error.contains("cube, green, push, red, the, touch"), "{error}");
    let mut blind = seen(&embodiment, "touch the red cube");
    blind.frames.remove(0);
    assert!(refused(&blind).contains("front"));
    let mut lost = seen(&embodiment, "touch the red cube");
    lost.joint_positions[3] = f64::NAN;
    assert!(refused(&lost).contains("not finite"));
    assert!(policy.infer(&[], &InferOptions::default()).is_err());

    let weights = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).map_err(Error::invalid)?;
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&weights, bytes).map_err(Error::invalid)?;
    assert!(wrong("torn").contains("safetensors"));
    std::fs::write(dir.path().join("config.json"), b"{\"type\": \"teapot\"}").map_err(Error::invalid)?;
    assert!(wrong("other").contains("config.json"));
    Ok(())
}

#[test]
fn a_nan_in_the_weights_never_becomes_an_action() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    written(dir.path(), &Weights::fresh(9))?;
    let path = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let nan = Tensor::full(f32::NAN, 6, &Device::Cpu)?;
    tensors.insert("action_out_proj.bias".into(), nan);
    candle_core::safetensors::save(&tensors, &path)?;
    let mut policy = VlaPolicy::load(dir.path())?;
    let observation = seen(&policy.spec().embodiment.clone(), "touch the red cube");
    let answer = policy.infer(&[observation], &InferOptions::default());
    assert!(answer.is_err_and(|e| e.to_string().contains("not finite")));
    Ok(())
}

#[test]
fn a_guided_chunk_starts_nearer_to_what_the_arm_is_doing() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    written(dir.path(), &Weights::fresh(9))?;
    let mut policy = VlaPolicy::load(dir.path())?;
    let observation = seen(&policy.spec().embodiment.clone(), "touch the red cube");
    let old = vec![vec![0.4; 6]; 4];
    let options = InferOptions { seed: 1, delay_ticks: 1, unexecuted: old.clone() };
    let mut first = |guide: Option<Guide>| -> Result<f64> {
        policy.set_guide(guide);
        let chunk = policy.infer(std::slice::from_ref(&observation), &options).map_err(Error::invalid)?;
        Ok(chunk.actions[0].iter().map(|delta| (0.1 + delta - old[0][0]).abs()).sum())
    };
    let free = first(None)?;
    let guide = |pull| Some(Guide { schedule: Schedule::Exp, max_weight: 5.0, pull, until: Until::Executed });
    for (pull, share) in [(Pull::Straight, 0.5), (Pull::Through, 0.5), (Pull::Fixed, 1e-5)] {
        let guided = first(guide(pull))?;
        assert!(guided < share * free, "{pull:?}: {guided} against {free}");
    }
    Ok(())
}

#[test]
fn training_behind_a_fixed_start_ignores_its_noise_and_answers_keep_it() -> Result<()> {
    let vla = Vla::new(&Weights::fresh(3), &config(1))?;
    let prefix = vla.prefix(&inputs()?)?;
    let (actions, noise) = (random::normal(1, "actions", (3, 5, 6))?, random::normal(2, "noise", (3, 5, 6))?);
    let times = Tensor::new(&[0.3f32, 0.6, 0.9], &Device::Cpu)?;
    let loss = |noise: &Tensor| -> Result<f32> {
        Ok(vla.flow_loss_behind(&prefix, &actions, noise, &times, &[2, 0, 5])?.to_scalar()?)
    };
    let nudged = |row: usize, tick: usize| -> Result<Tensor> {
        let mut values = noise.flatten_all()?.to_vec1::<f32>()?;
        values[(row * 5 + tick) * 6] += 0.5;
        Ok(Tensor::from_vec(values, (3, 5, 6), &Device::Cpu)?)
    };
    let plain = loss(&noise)?;
    assert!(plain.is_finite() && plain > 0.0);
    for (row, tick) in [(0, 1), (2, 4)] {
        assert_eq!(loss(&nudged(row, tick)?)?, plain, "row {row} tick {tick} is given");
    }
    for (row, tick) in [(0, 2), (1, 0)] {
        assert_ne!(loss(&nudged(row, tick)?)?, plain, "row {row} tick {tick} is free");
    }
    Ok(())
}

#[test]
fn a_picture_that_has_not_changed_is_not_read_again_and_the_chunk_is_the_same() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    written(dir.path(), &Weights::fresh(9))?;
    let mut policy = VlaPolicy::load(dir.path())?;
    let first = seen(&policy.spec().embodiment.clone(), "touch the red cube");
    let cameras = first.frames.len();
    let mut later = first.clone();
    let mut pixels = later.frames[1].rgb.to_vec();
    pixels[17] ^= 0x40;
    later.frames[1].rgb = pixels.into();
    later.joint_positions[0] += 0.1;
    let ask = |policy: &mut VlaPolicy, observation: &Observation| {
        policy.infer(std::slice::from_ref(observation), &InferOptions::default()).map_err(Error::invalid)
    };
    ask(&mut policy, &first)?;
    ask(&mut policy, &first)?;
    assert_eq!(policy.encoded(), cameras);
    let remembered = ask(&mut policy, &later)?;
    assert_eq!(policy.encoded(), cameras + 1);
    assert_eq!(remembered, ask(&mut VlaPolicy::load(dir.path())?, &later)?);
    assert_ne!(remembered.actions, ask(&mut policy, &first)?.actions);
    Ok(())
}
