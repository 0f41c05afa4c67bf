//! `vela quantize` and `vela chat --lora` over the built binary, on a tiny model that babbles letters.

use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::{Command, Output};
use vela_llm::{Decoder, DecoderConfig};
use vela_nn::{Device, Tensor, Var, Weights};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A small Llama with random weights and a letter for each of its 128 tokens.
fn model() -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = json!({"model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": false});
    std::fs::write(dir.path().join("config.json"), config.to_string())?;
    let (weights, config) = (Weights::fresh(5), DecoderConfig::from_hf(&config)?);
    Decoder::new(Some(&weights), &weights.pp("model"), &config)?;
    // Larger than training starts with: the letters then differ.
    let larger = |(name, var): (String, Var)| Ok((name, (var.as_tensor().detach() * 3.0)?));
    let tensors = weights.trainable().into_iter().map(larger).collect::<vela_nn::Result<Vec<_>>>()?;
    vela_nn::save(&dir.path().join("model.safetensors"), &tensors)?;
    let mut letters: Vec<String> = ["<pad>", "<s>", "</s>"].map(str::to_owned).to_vec();
    letters.extend((33..127u8).map(|byte| char::from(byte).to_string()));
    letters.extend((0..31u32).filter_map(|at| char::from_u32(0x120 + at)).map(String::from));
    let vocab: Map<String, Value> =
        letters.iter().enumerate().map(|(id, letter)| (letter.clone(), json!(id))).collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    Ok(dir)
}

fn vela(args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    Ok(Command::new(env!("CARGO_BIN_EXE_vela")).args(args).output()?)
}

fn said(args: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let output = vela(args)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn babble(model: &Path, more: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let model = model.display().to_string();
    let args = ["chat", "--model", &model, "--prompt", "say it", "--raw", "--max-tokens", "20", "--json"];
    let answer = said(&[&args, more].concat())?;
    answer["text"].as_str().map(str::to_owned).ok_or_else(|| "no text".into())
}

#[test]
fn a_policy_in_fewer_bits_is_inspected_benched_and_verified_like_any_other() -> Outcome {
    let out = tempfile::tempdir()?;
    let (small, golden) = (out.path().join("small"), "tests/golden/pi0");
    let small = small.display().to_string();
    let write = ["quantize", "--model", golden, "--out", &small, "--json", "--on", golden, "--bits"];
    let refused = vela(&[&write[..], &["8", "--max-error", "1e-7"]].concat())?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("nothing was written"), "{why}");
    assert!(!vela(&[&write[..], &["4"]].concat())?.status.success());
    let report = said(&[&write[..], &["16"]].concat())?;
    assert!(report["error"]["rms"].as_f64().is_some_and(|rms| rms > 0.0 && rms < 0.01), "{report}");
    let inspected = said(&["inspect", &small, "--json"])?;
    assert!(inspected.to_string().contains("fewer bits (bf16)"), "{inspected}");
    let benched = said(&["bench", "vla", "--model", &small, "--chunks", "1", "--json"])?;
    assert_eq!(benched["dtype"], json!("bf16"));
    // Every stage is there; they are near, and not as near as float32 has to be.
    let verified = vela(&["verify", &small, golden, "--json"])?;
    let verdict: Value = serde_json::from_slice(&verified.stdout)?;
    assert!(
        !verified.status.success() && verdict["left_out"].as_array().is_some_and(Vec::is_empty),
        "{verdict}"
    );
    Ok(())
}

#[test]
fn a_quantised_folder_is_written_measured_and_talked_with() -> Outcome {
    let dir = model()?;
    let out = tempfile::tempdir()?;
    let small = out.path().join("small");
    let (from, to) = (dir.path().display().to_string(), small.display().to_string());
    let report = said(&["quantize", "--model", &from, "--out", &to, "--bits", "8", "--json"])?;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let (before, after) = (number(&report["nll"][0]), number(&report["nll"][1]));
    assert!((after - before).abs() < 0.1 && number(&report["error_over_plain"]) <= 1.0, "{report}");
    assert!((number(&report["perplexity"][1]).ln() - after).abs() < 1e-6, "{report}");
    assert!(number(&report["bytes"][1]) < 0.6 * number(&report["bytes"][0]), "{report}");
    assert_eq!(number(&report["bytes"][1]) as u64, std::fs::metadata(small.join("quantised.gguf"))?.len());
    assert!(!babble(&small, &[])?.is_empty());
    let about = said(&["inspect", &to, "--json"])?;
    assert!(about["stored"]["Q8_0"].as_u64() > Some(0) && about["tokens"]["count"] == 128, "{about}");
    // Into the same place again: refused.
    let again = vela(&["quantize", "--model", &from, "--out", &to, "--bits", "4"])?;
    assert!(String::from_utf8_lossy(&again.stderr).contains("does not exist yet"));
    Ok(())
}

#[test]
fn a_loss_beyond_the_threshold_writes_nothing() -> Outcome {
    let dir = model()?;
    let out = tempfile::tempdir()?;
    let (from, to) = (dir.path().display().to_string(), out.path().join("small").display().to_string());
    let text = out.path().join("text.txt");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog ".repeat(30))?;
    let text = text.display().to_string();
    let args =
        ["quantize", "--model", &from, "--out", &to, "--bits", "4", "--calibrate", &text, "--group", "64"];
    let output = vela(&[&args[..], &["--max-loss-increase", "-3"]].concat())?;
    let words = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("the loss grew by") && words.contains("nothing was written"), "{words}");
    assert_eq!(std::fs::read_dir(out.path())?.count(), 1);
    let output = vela(&[&args[..], &["--max-loss-increase", "3"]].concat())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let words = String::from_utf8(output.stdout)?;
    assert!(words.contains("perplexity") && words.contains("in 4 bits"), "{words}");
    assert_eq!(vela(&["quantize", "--model", &from, "--out", "x", "--bits", "5"])?.status.code(), Some(2));
    Ok(())
}

#[test]
fn what_is_no_text_decoder_is_refused_in_one_sentence() -> Outcome {
    let out = tempfile::tempdir()?;
    let small = out.path().join("small").display().to_string();
    // Of neither is there a tokenizer: that is not what they are told.
    for (name, what) in [("t5", "an encoder-decoder ('t5')"), ("smolvlm", "a model that sees ('smolvlm')")] {
        let model = format!("tests/golden/{name}");
        let output = vela(&["quantize", "--model", &model, "--out", &small, "--bits", "4"])?;
        let words = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{words}");
        let said = format!("{model}: expected a text decoder, got {what}");
        assert!(words.contains(&said) && words.trim().lines().count() == 1, "{words}");
    }
    assert_eq!(std::fs::read_dir(out.path())?.count(), 0);
    Ok(())
}

#[test]
fn chat_takes_an_adapter_also_beside_quantised_weights() -> Outcome {
    let dir = model()?;
    let adapter = tempfile::tempdir()?;
    let stated =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 8, "target_modules": ["v_proj"], "bias": "none"});
    std::fs::write(adapter.path().join("adapter_config.json"), stated.to_string())?;
    let mut tensors = Vec::new();
    for layer in 0..2 {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.v_proj");
        let ramp = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        // A: `[rank, width]`; B: `[keys and values, rank]`, two heads of sixteen.
        for (part, shape) in [("lora_A", (1, 64)), ("lora_B", (32, 1))] {
            let values = Tensor::from_vec(ramp(shape.0 * shape.1), shape, &Device::Cpu)?;
            tensors.push((format!("{name}.{part}.weight"), values));
        }
    }
    vela_nn::save(&adapter.path().join("adapter_model.safetensors"), &tensors)?;
    let lora = adapter.path().display().to_string();
    let (plain, adapted) = (babble(dir.path(), &[])?, babble(dir.path(), &["--lora", &lora])?);
    assert_ne!(plain, adapted);
    let out = tempfile::tempdir()?;
    let small = out.path().join("small");
    let (from, to) = (dir.path().display().to_string(), small.display().to_string());
    said(&["quantize", "--model", &from, "--out", &to, "--bits", "8", "--json"])?;
    assert_ne!(babble(&small, &["--lora", &lora])?, babble(&small, &[])?);
    let args = ["chat", "--model", &from, "--prompt", "x", "--raw", "--lora", &from];
    assert!(String::from_utf8_lossy(&vela(&args)?.stderr).contains("adapter_config.json"));
    Ok(())
}
