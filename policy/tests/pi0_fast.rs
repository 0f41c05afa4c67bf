//! pi0-FAST, for which there is no reference run: its mechanism against a script of ours in NumPy (`reference/pi0_fast.py`),
//! and folders as policies.

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vela_embodiment::Embodiment;
use vela_nn::{Error, Result};
use vela_policy::*;

fn case() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/pi0")
}

fn write(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, value.to_string()).map_err(Error::invalid)
}

/// A pi0-FAST folder of the PaliGemma of pi0's reference run, with an action tokenizer of one character per token.
fn folder(change: impl Fn(&mut Value)) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    for name in ["tokenizer.json", "tokenizer_config.json", "tiny_dims.json"] {
        std::fs::copy(case().join(name), dir.path().join(name)).map_err(Error::invalid)?;
    }
    for entry in std::fs::read_dir(case()).map_err(Error::invalid)? {
        let path = entry.map_err(Error::invalid)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains("normalizer") {
            std::fs::copy(&path, dir.path().join(name)).map_err(Error::invalid)?;
        }
    }
    let text = |name: &str| -> Result<Value> {
        let text = std::fs::read_to_string(case().join(name)).map_err(Error::invalid)?;
        serde_json::from_str(&text).map_err(Error::invalid)
    };
    let mut config = text("config.json")?;
    for (name, value) in [
        ("type", json!("pi0_fast")),
        ("max_decoding_steps", json!(12)),
        ("fast_skip_tokens", json!(8)),
        ("temperature", json!(0.0)),
        ("action_tokenizer_name", json!("lerobot/fast-action-tokenizer")),
    ] {
        config[name] = value;
    }
    change(&mut config);
    write(&dir.path().join("config.json"), &config)?;
    let mut before = text("policy_preprocessor.json")?;
    let steps = before["steps"].as_array_mut().ok_or_else(|| Error::invalid("no steps"))?;
    for step in steps {
        if step["registry_name"] == "pi0_new_line_processor" {
            step["registry_name"] = json!("pi0_fast_prepare_state_tokenizer_processor_step");
        }
    }
    write(&dir.path().join("policy_preprocessor.json"), &before)?;
    write(&dir.path().join("policy_postprocessor.json"), &text("policy_postprocessor.json")?)?;
    let tensors = candle_core::safetensors::load(case().join("model.safetensors"), &Device::Cpu)?;
    let paligemma = tensors.into_iter().filter(|(name, _)| name.contains("with_expert.paligemma.")).collect();
    candle_core::safetensors::save(&paligemma, dir.path().join("model.safetensors"))?;

    // Characters 0 to 63 as byte-level BPE writes them, no pairs joined.
    let letter = |byte: u32| char::from_u32(if byte > 32 { byte } else { byte + 256 }).unwrap_or_default();
    let vocab: serde_json::Map<String, Value> =
        (0..64).map(|byte| (letter(byte).to_string(), json!(byte))).collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}});
    let codec = dir.path().join("fast-action-tokenizer");
    std::fs::create_dir(&codec).map_err(Error::invalid)?;
    write(&codec.join("tokenizer.json"), &tokenizer)?;
    write(&codec.join("processor_config.json"), &json!({"scale": 10, "min_token": -20, "vocab_size": 64}))?;
    Ok(dir)
}

fn expected() -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/pi0_fast.json");
    let text = std::fs::read_to_string(path).map_err(Error::invalid)?;
    serde_json::from_str(&text).map_err(Error::invalid)
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(Error::invalid)
}

#[test]
fn what_follows_is_as_likely_as_without_a_cache_in_numpy() -> Result<()> {
    let dir = folder(|_| {})?;
    let (_, _, model) = Pi0Fast::open(dir.path(), Storage::Plain)?;
    let want = expected()?;
    let pixels: Vec<f32> = (0..2 * 3 * 56 * 56).map(|i| (f64::from(i) * 0.37).sin() as f32).collect();
    let pictures = Tensor::from_vec(pixels, (2, 3, 56, 56), &Device::Cpu)?;
    let (prompt, given): (Vec<u32>, Vec<u32>) = (numbers(&want["prompt"])?, numbers(&want["given"])?);
    let rows: Vec<Vec<f32>> = numbers(&want["logits"])?;
    let want_logits = Tensor::new(rows, &Device::Cpu)?;
    let stage = vela_nn::parity::compare("logits", &model.follow(&pictures, &prompt, &given)?, &want_logits)?;
    println!("{stage:?}");
    assert!(stage.pass, "{stage:?}");
    let mut rng = vela_nn::random::stream(1, "unused");
    let said = model.say(&pictures, &prompt, 1, 0.0, &mut rng)?;
    assert_eq!(said, [want["said"].as_u64().unwrap_or_default() as u32]);
    Ok(())
}

#[test]
fn fast_tokens_are_the_cosines_that_numpy_makes_of_them_and_nothing_else_is_an_action() -> Result<()> {
    let dir = folder(|_| {})?;
    let (_, _, model) = Pi0Fast::open(dir.path(), Storage::Plain)?;
    let want = expected()?;
    let tokenizer = vela_llm::Tokenizer::load(&dir.path().join("tokenizer.json"))?;
    let coefficients: Vec<i64> = numbers(&want["coefficients"])?;
    // 340 words, the last 8 skipped: action token 0 is 331.
    let codes = coefficients.iter().map(|c| (331 - (c + 20)) as u32);
    let end = tokenizer.encode("|")?;
    let mut said = tokenizer.encode("Action: ")?;
    said.extend(codes.clone());
    said.extend(&end);
    said.push(7);
    let actions: Vec<f32> = numbers(&want["actions"])?;
    let close = |got: &[f32]| got.iter().zip(&actions).all(|(a, b)| (a - b).abs() < 1e-6);
    let got = model.actions(&said)?;
    assert!(got.len() == 60 && close(&got), "{got:?}");
    // Too many tokens: what is over is dropped.
    let full: Vec<u32> = tokenizer.encode("Action: ")?.into_iter().chain(codes).chain([311; 70]).collect();
    assert!(close(&model.actions(&full)?));
    let silent: Vec<u32> = said[1..].to_vec();
    assert!(model.actions(&silent).is_err_and(|e| e.to_string().contains("begins 'Action:'")));
    said.insert(said.len() - 2, 40);
    assert!(model.actions(&said).is_err_and(|e| e.to_string().contains("no action token")));
    assert_eq!(Pi0Fast::prompt(" pick_up", &[-1.5, 0.0]), "Task: pick up, State: -1 128;\n");
    Ok(())
}

#[test]
fn a_folder_is_a_policy_that_says_that_it_was_never_compared() -> Result<()> {
    let dir = folder(|config| config["validate_action_token_prefix"] = json!(false))?;
    let summary = describe(dir.path())?;
    assert_eq!((summary.kind.as_str(), summary.compared), ("pi0_fast", false));
    assert!(summary.to_string().contains("structure only, never compared"), "{summary}");
    assert!(summary.head.contains("FAST tokens, at most 12"), "{}", summary.head);
    let mut robot = Embodiment::so101().map_err(Error::invalid)?;
    for (camera, name) in robot.cameras.iter_mut().zip(["base", "wrist"]) {
        camera.name = name.into();
    }
    let policy = open(dir.path(), &robot, &Choices::default())?;
    assert_eq!((policy.spec().horizon, policy.spec().execute), (10, 10));
    std::fs::remove_dir_all(dir.path().join("fast-action-tokenizer")).map_err(Error::invalid)?;
    let error = Pi0Fast::open(dir.path(), Storage::Plain).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("the action tokenizer 'lerobot/fast-action-tokenizer'"), "{error}");
    Ok(())
}
