//! A GGUF model against the reference run in `tests/golden/gguf_llama`, and its fast products against its exact ones.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use vela_llm::config::Window;
use vela_llm::{Cache, DecoderConfig, gguf};
use vela_nn::gguf::{Value, write};
use vela_nn::parity::{compare, judge};
use vela_nn::quant::Precision;
use vela_nn::{Error, Gguf, Mask, Result};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf_llama")
}

#[test]
fn a_gguf_file_agrees_at_every_stage_and_writes_the_same_tokens() -> Result<()> {
    let golden = candle_core::safetensors::load(folder().join("golden.safetensors"), &Device::Cpu)?;
    let file = gguf::find(&folder()).unwrap_or_default();
    let verdict = judge(&golden, &gguf::trace(&file, &golden)?)?;
    assert!(verdict.pass && verdict.present == 13, "{verdict:?}");
    Ok(())
}

#[test]
fn fast_products_stay_near_the_exact_ones() -> Result<()> {
    let file = Gguf::open(&folder().join("model.gguf"))?;
    let ids = Tensor::arange(1u32, 40, &Device::Cpu)?.unsqueeze(0)?;
    let run = |precision: Precision| -> Result<Tensor> {
        let decoder = gguf::decoder(&file, precision)?;
        let positions = Tensor::arange(0u32, 39, &Device::Cpu)?;
        let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
        decoder.logits(&decoder.normalise(&hidden)?)
    };
    let stage = compare("logits", &run(Precision::Fast)?, &run(Precision::Exact)?)?;
    assert!(stage.cosine > 0.9995 && stage.max_abs_over_spread > 0.0, "{stage:?}");
    Ok(())
}

#[test]
fn a_quantised_decoder_holds_no_other_types() -> Result<()> {
    let file = Gguf::open(&folder().join("model.gguf"))?;
    let config = gguf::config(&file)?;
    assert_eq!((config.width, config.heads, config.kv_heads, config.layers), (256, 8, 4, 2));
    assert!(!config.tied);
    let decoder = gguf::decoder(&file, Precision::Fast)?;
    let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu)?;
    assert_eq!(decoder.embed(&ids)?.dtype(), DType::F32);
    Ok(())
}

/// What a copy of the file with other metadata says.
fn config_with(changes: &[(&str, Value)]) -> Result<DecoderConfig> {
    let file = Gguf::open(&folder().join("model.gguf"))?;
    let mut metadata = file.metadata().clone();
    metadata.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let failed = |e| Error::Io { path: std::env::temp_dir(), source: e };
    let dir = tempfile::tempdir().map_err(failed)?;
    let path = dir.path().join("model.gguf");
    write(&path, &metadata, file.tensors())?;
    gguf::config(&Gguf::open(&path)?)
}

#[test]
fn a_window_is_read_whatever_the_architecture() -> Result<()> {
    // Mistral comes under the name of Llama.
    let (size, pattern) = ("llama.attention.sliding_window", "llama.attention.sliding_window_pattern");
    let of = |changes: &[(&str, Value)]| Ok::<_, Error>(config_with(changes)?.window);
    let window =
        |full_layers: &[usize]| Some(Window { size: 4096, full_layers: full_layers.to_vec(), rope: None });
    let wide = || (size, Value::Unsigned(4096));
    assert_eq!(of(&[])?, None);
    assert_eq!(of(&[(size, Value::Unsigned(0))])?, None);
    assert_eq!(of(&[wide()])?, window(&[]));
    assert_eq!(of(&[wide(), (pattern, Value::Unsigned(2))])?, window(&[1]));
    assert_eq!(of(&[wide(), (pattern, Value::Unsigned(0))])?, window(&[]));
    assert_eq!(of(&[wide(), (pattern, Value::BoolList(vec![false, true]))])?, window(&[0]));
    assert_eq!(config_with(&[("llama.attention.scale", Value::Float(0.25))])?.scale(), 0.25);
    Ok(())
}

#[test]
fn what_metadata_ask_for_in_vain_is_said() {
    let text = |text: &str| Value::Text(text.into());
    let (size, pattern) = ("llama.attention.sliding_window", "llama.attention.sliding_window_pattern");
    type Case<'a> = (&'a [(&'a str, Value)], &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        (
            &[("general.architecture", text("teapot"))],
            &["architecture 'teapot' is not known", "qwen3", "gemma3"],
        ),
        (&[("general.architecture", Value::Unsigned(1))], &["general.architecture is no text"]),
        (
            &[("llama.rope.scaling.type", text("spiral"))],
            &["rope scaling 'spiral' is not known", "none, linear, yarn"],
        ),
        (
            &[("llama.rope.scaling.type", Value::Bool(true))],
            &["rope.scaling.type: expected a name, got Bool"],
        ),
        (&[("llama.expert_count", Value::Unsigned(8))], &["metadata llama.expert_used_count is missing"]),
        (
            &[("general.architecture", text("qwen3moe"))],
            &["architecture 'qwen3moe' is not known", "known: llama, gpt2, qwen2", "t5"],
        ),
        (
            &[("general.architecture", text("opt"))],
            &["GGUF has no architecture for OPT", "expected its Hugging Face folder"],
        ),
        (&[(size, text("wide"))], &["sliding_window: expected one count for all layers, got Text"]),
        (
            &[(size, Value::Unsigned(8)), (pattern, Value::BoolList(vec![true]))],
            &["sliding_window_pattern: expected a count or 2 truth values, got BoolList"],
        ),
    ];
    for (changes, said) in cases {
        let words = config_with(changes).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.iter().all(|part| words.contains(part)), "{changes:?}: {words}");
    }
}
