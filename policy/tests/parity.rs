//! Every reference run in `tests/golden`, through the same door as `vela verify`; SmolVLA's conventions, pinned.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_embodiment::{Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_nn::{Error, Result};
use vela_policy::rtc::{Guidance, Pull, Schedule};
use vela_policy::{Normaliser, Pi0, Scaling, SmolVla, StatePlace, Statistics, Storage, verify};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

#[test]
fn every_stage_of_every_case_agrees_and_none_is_left_out() -> Result<()> {
    let mut failed = Vec::new();
    for (name, outputs) in [
        ("siglip", 15),
        ("llama", 6),
        ("smolvlm", 18),
        ("smolvla", 29),
        ("act", 7),
        ("diffusion", 23),
        ("diffusion_ddim", 13),
        ("pi0", 29),
        ("pi05", 30),
        ("openvla", 18),
    ] {
        let verdict = verify(&case(name), &case(name))?;
        for stage in &verdict.stages {
            println!("{name} {}: {:.1e}", stage.name, stage.max_abs_over_spread);
        }
        let different =
            verdict.stages.iter().filter(|stage| !stage.pass).map(|stage| format!("{name} {stage:?}"));
        failed.extend(different);
        failed.extend(verdict.left_out.iter().map(|stage| format!("{name} left out {stage}")));
        assert_eq!(verdict.present, outputs, "{name}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn smolvla_reads_its_prompt_and_state_as_the_reference_does() -> Result<()> {
    let (model, golden) = (SmolVla::load(&case("smolvla"), Storage::Plain)?, golden("smolvla")?);
    let text = std::fs::read_to_string(case("smolvla").join("golden.json")).unwrap_or_default();
    let strings: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let prompt = format!("{}{}", strings["task"].as_str().unwrap_or_default(), model.config.prompt_suffix);
    assert_eq!(strings["prompt"][0], prompt.as_str());
    let tokens: Vec<u32> = golden["in.observation.language.tokens"]
        .flatten_all()?
        .to_dtype(candle_core::DType::U32)?
        .to_vec1()?;
    assert_eq!(model.tokenizer.encode(&prompt)?, tokens);
    let vector = |name: &str| -> Result<Vec<f32>> { Ok(golden[name].flatten_all()?.to_vec1()?) };
    let state = model.config.state.normalise(&vector("in.raw.observation.state")?)?;
    let want = vector("in.observation.state")?;
    assert!(state.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{state:?} {want:?}");
    Ok(())
}

#[test]
fn a_checkpoint_that_does_not_fit_names_everything_that_is_wrong() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    let io = |e: std::io::Error| Error::invalid(e);
    for file in ["config.json", "golden.safetensors"] {
        std::fs::copy(case("llama").join(file), dir.path().join(file)).map_err(io)?;
    }
    let mut tensors = candle_core::safetensors::load(case("llama").join("model.safetensors"), &Device::Cpu)?;
    let norm = tensors.remove("model.norm.weight");
    tensors
        .insert("stranger".into(), norm.unwrap_or(Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?));
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
    let error = verify(dir.path(), dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("model.norm.weight") && error.contains("stranger"), "{error}");
    std::fs::write(dir.path().join("model.safetensors"), b"torn").map_err(io)?;
    assert!(verify(dir.path(), dir.path()).is_err());
    std::fs::write(dir.path().join("config.json"), br#"{"model_type": "teapot"}"#).map_err(io)?;
    let error = verify(dir.path(), dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("teapot") && error.contains("smolvla"), "{error}");
    Ok(())
}

#[test]
fn every_scaling_agrees_both_ways_degenerate_dimensions_included() -> Result<()> {
    let golden = golden("normalisation")?;
    let flat = |name: &str| -> Result<Vec<f32>> { Ok(golden[name].flatten_all()?.to_vec1()?) };
    let mut statistics = HashMap::new();
    for name in ["mean", "std", "min", "max", "q01", "q10", "q90", "q99"] {
        statistics.insert(format!("x.{name}"), flat(&format!("in.stats.{name}"))?);
    }
    let statistics = Statistics::from_map(statistics);
    for (name, scaling) in [
        ("MEAN_STD", Scaling::MeanStd),
        ("MIN_MAX", Scaling::MinMax),
        ("QUANTILES", Scaling::Quantiles),
        ("QUANTILE10", Scaling::Quantile10),
    ] {
        let normaliser = statistics.normaliser("x", scaling, Normaliser::EPS)?;
        let (x, z) = (golden["in.x"].to_vec2::<f32>()?, golden["in.z"].to_vec2::<f32>()?);
        let normalised: Vec<Vec<f32>> =
            x.iter().map(|row| normaliser.normalise(row)).collect::<Result<_>>()?;
        let back: Vec<Vec<f32>> =
            normalised.iter().map(|row| normaliser.unnormalise(row)).collect::<Result<_>>()?;
        let physical: Vec<Vec<f32>> =
            z.iter().map(|row| normaliser.unnormalise(row)).collect::<Result<_>>()?;
        for (what, got) in [("normalised", normalised), ("back", back), ("unnormalised_z", physical)] {
            let want = flat(&format!("out.{name}.{what}"))?;
            for (a, b) in got.concat().iter().zip(&want) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name} {what}: {a} against {b}");
            }
        }
    }
    Ok(())
}

#[test]
fn guidance_agrees_with_real_time_chunking_of_the_reference() -> Result<()> {
    let golden = golden("rtc_guidance")?;
    let text = std::fs::read_to_string(case("rtc_guidance").join("golden.json")).unwrap_or_default();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let cases = cases.as_array().cloned().unwrap_or_default();
    assert!(!cases.is_empty());
    for (i, case) in cases.iter().enumerate() {
        let schedule = match case["schedule"].as_str() {
            Some("ZEROS") => Schedule::Zeros,
            Some("ONES") => Schedule::Ones,
            Some("LINEAR") => Schedule::Linear,
            Some("EXP") => Schedule::Exp,
            other => return Err(Error::invalid(format!("unknown schedule {other:?}"))),
        };
        let guidance = Guidance {
            left_over: golden[&format!("in.{i}.prev_chunk_left_over")].clone(),
            delay: case["delay"].as_u64().unwrap_or(0) as usize,
            execution_horizon: case["execution_horizon"].as_u64().unwrap_or(0) as usize,
            schedule,
            max_weight: case["max_guidance_weight"].as_f64().unwrap_or(0.0),
            pull: Pull::Straight,
        };
        let time = case["time"].as_f64().unwrap_or(0.0);
        let got = guidance.apply(&golden[&format!("in.{i}.x_t")], &golden[&format!("in.{i}.v_t")], time)?;
        let outputs = golden.iter().filter(|(name, _)| name.starts_with(&format!("out.{i}.")));
        let mut compared = 0;
        for (name, want) in outputs {
            if want.dims() != got.dims() {
                continue;
            }
            let stage = vela_nn::parity::compare(name, &got, want)?;
            println!("{name} {case}: {:.1e}", stage.max_abs_over_spread);
            assert!(stage.pass, "{name} {case} {stage:?}");
            compared += 1;
        }
        assert_eq!(compared, 1, "case {i}");
    }
    Ok(())
}

#[test]
fn a_lerobot_folder_is_a_policy_too() -> Result<()> {
    let mut embodiment = Embodiment::so101().map_err(Error::invalid)?;
    for (camera, name) in embodiment.cameras.iter_mut().zip(["camera1", "camera2"]) {
        (camera.name, camera.width, camera.height) = (name.into(), 80, 48);
    }
    let mut policy = SmolVla::load(&case("smolvla"), Storage::Plain)?.policy(&embodiment)?;
    let golden = golden("smolvla")?;
    let bytes = |name: &str| -> Result<Vec<u8>> {
        let planes = golden[name].squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(planes.iter().map(|x| (x * 255.0).round() as u8).collect())
    };
    let frame = |camera: &str| -> Result<Frame> {
        let rgb = bytes(&format!("in.observation.images.{camera}"))?.into();
        Ok(Frame { camera: camera.into(), width: 80, height: 48, rgb, stamp: Stamp(0) })
    };
    let joints = golden["in.raw.observation.state"].flatten_all()?.to_vec1::<f32>()?;
    let observation = Observation {
        frames: vec![frame("camera2")?, frame("camera1")?],
        joint_positions: joints.iter().map(|q| f64::from(*q)).collect(),
        instruction: "pick up the red cube and place it in the box".into(),
        stamp: Stamp(0),
    };
    let inputs = policy.inputs(&observation)?;
    let pictures = inputs.frames.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(pictures[0], -1.0, "padding is at the top left and black");
    let chunk = policy.infer(&[observation], &InferOptions::default()).map_err(Error::invalid)?;
    assert_eq!((chunk.horizon(), policy.spec().checkpoint.len()), (10, 64));
    Ok(())
}

#[test]
fn pi0_ends_its_prompt_with_a_line_and_pi05_writes_the_state_into_it() -> Result<()> {
    for name in ["pi0", "pi05"] {
        let (model, golden) = (Pi0::load(&case(name), Storage::Plain)?, golden(name)?);
        let text = std::fs::read_to_string(case(name).join("golden.json")).unwrap_or_default();
        let strings: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let task = strings["task"].as_str().unwrap_or_default();
        let vector = |name: &str| -> Result<Vec<f32>> { Ok(golden[name].flatten_all()?.to_vec1()?) };
        let state = model.config.state.normalise(&vector("in.raw.observation.state")?)?;
        let want = vector("in.observation.state")?;
        assert!(state.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{name} {state:?} {want:?}");
        let prompt = match model.vla.state_place() {
            StatePlace::Words => vela_policy::pi0::state_prompt(task, &state),
            _ => format!("{task}{}", model.config.prompt_suffix),
        };
        assert_eq!(strings["prompt"][0], prompt.as_str());
        let integers = |name: &str| -> Result<Vec<u32>> {
            Ok(golden[name].flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1()?)
        };
        let mask = integers("in.observation.language.attention_mask")?;
        let real = mask.iter().filter(|real| **real == 1).count();
        let tokens = integers("in.observation.language.tokens")?;
        assert_eq!(model.tokenizer.encode(&prompt)?, tokens[..real], "{name}");
    }
    Ok(())
}

/// A folder of pi0's kind as a policy: pictures of any size, the state where it belongs, real-time chunking.
#[test]
fn pi0_folders_are_policies_too() -> Result<()> {
    for name in ["pi0", "pi05"] {
        let mut embodiment = Embodiment::so101().map_err(Error::invalid)?;
        for (camera, name) in embodiment.cameras.iter_mut().zip(["base", "wrist"]) {
            (camera.name, camera.width, camera.height) = (name.into(), 64, 48);
        }
        let mut policy = Pi0::load(&case(name), Storage::Plain)?.policy(&embodiment)?;
        let frame = |camera: &str| Frame {
            camera: camera.into(),
            width: 64,
            height: 48,
            rgb: (0..64 * 48 * 3).map(|i| (i % 251) as u8).collect::<Vec<_>>().into(),
            stamp: Stamp(0),
        };
        let observation = Observation {
            frames: vec![frame("base"), frame("wrist")],
            joint_positions: vec![0.2; 6],
            instruction: "pick up the red cube".into(),
            stamp: Stamp(0),
        };
        // 64 by 48 in a box of 56: seven black rows above, seven below.
        let pictures = policy.inputs(&observation)?.frames.flatten_all()?.to_vec1::<f32>()?;
        assert!(pictures[..7 * 56].iter().all(|x| *x == -1.0) && pictures[7 * 56 + 3] > -1.0, "{name}");
        let mut ask = |unexecuted: Vec<Vec<f64>>, delay_ticks| {
            let options = InferOptions { seed: 3, delay_ticks, unexecuted };
            policy.infer(std::slice::from_ref(&observation), &options).map_err(Error::invalid)
        };
        let chunk = ask(Vec::new(), 0)?;
        assert_eq!((&chunk, chunk.horizon()), (&ask(Vec::new(), 0)?, 10));
    }
    Ok(())
}
