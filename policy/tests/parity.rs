//! Every reference run in `tests/golden`, through the same door as `vela verify`; SmolVLA's conventions, pinned.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::Result;
use vela_policy::{SmolVla, verify};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

#[test]
fn every_stage_of_every_case_agrees_and_none_is_left_out() -> Result<()> {
    for (name, outputs) in [("siglip", 15), ("llama", 6), ("smolvlm", 18), ("smolvla", 29)] {
        let verdict = verify(&case(name), &case(name))?;
        for stage in &verdict.stages {
            println!("{name} {}: {:.1e}", stage.name, stage.max_abs_over_spread);
        }
        assert!(verdict.left_out.is_empty(), "{name}: {:?}", verdict.left_out);
        let failed: Vec<_> = verdict.stages.iter().filter(|stage| !stage.pass).collect();
        assert!(failed.is_empty(), "{name}: {failed:?}");
        assert_eq!((verdict.present, verdict.pass), (outputs, true), "{name}");
    }
    Ok(())
}

#[test]
fn smolvla_reads_its_prompt_and_state_as_the_reference_does() -> Result<()> {
    let (model, golden) = (SmolVla::load(&case("smolvla"))?, golden("smolvla")?);
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
    let dir = tempfile::tempdir().map_err(vela_nn::Error::invalid)?;
    let io = |e: std::io::Error| vela_nn::Error::invalid(e);
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
