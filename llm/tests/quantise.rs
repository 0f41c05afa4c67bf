//! Quantised folders: every family is written, loads again and says nearly the same; factors change nothing by
//! themselves; what is too much is refused and leaves nothing behind.

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use std::path::{Path, PathBuf};
use vela_llm::quantise::{Bits, FILE, Report, Sample, Settings, quantise};
use vela_llm::{Cache, Decoder, load};
use vela_nn::quant::Format;
use vela_nn::random::stream;
use vela_nn::{Gguf, Mask, Result};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Sizes of the reference models, and larger ones that divide into blocks.
const WIDER: [(u64, u64); 9] =
    [(12, 16), (24, 32), (48, 64), (56, 64), (72, 96), (80, 96), (96, 128), (144, 192), (192, 256)];

fn wider(size: u64) -> u64 {
    WIDER.iter().find(|(from, _)| *from == size).map_or(size, |(_, to)| *to)
}

/// A reference model made wider: its numbers over and over.
fn model(name: &str) -> std::result::Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = vela_llm::trace::config_json(&case(name))?;
    for key in [
        "hidden_size",
        "n_embd",
        "intermediate_size",
        "ffn_dim",
        "word_embed_proj_dim",
        "head_dim",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
    ] {
        if let Some(size) = config[key].as_u64() {
            config[key] = wider(size).into();
        }
    }
    std::fs::write(dir.path().join("config.json"), config.to_string())?;
    let mut tensors = candle_core::safetensors::load(case(name).join("model.safetensors"), &Device::Cpu)?;
    for tensor in tensors.values_mut() {
        let shape: Vec<usize> = tensor.dims().iter().map(|n| wider(*n as u64) as usize).collect();
        let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let values: Vec<f32> = values.into_iter().cycle().take(shape.iter().product()).collect();
        *tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
    }
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
    Ok(dir)
}

/// Something to read, whatever the tokens mean.
fn sample(count: usize) -> Sample {
    let mut rng = stream(7, "text");
    Sample { start: vec![1], ids: (0..count).map(|_| rng.random_range(3..90)).collect() }
}

fn settings(bits: Bits) -> Settings {
    Settings { bits, group: 32, max_loss_increase: 10.0 }
}

fn made(model: &Path, out: &Path, settings: &Settings) -> Result<Report> {
    quantise(model, out, &sample(600), settings, &mut |_, _, _| {})
}

fn logits(decoder: &Decoder) -> Result<Vec<f32>> {
    let ids = Tensor::new(&[[5u32, 9, 2, 80, 31, 7, 12]], &Device::Cpu)?;
    let positions = Tensor::arange(0u32, 7, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
    Ok(decoder.logits(&decoder.normalise(&hidden)?)?.flatten_all()?.to_vec1()?)
}

/// The root mean square of the difference over that of what is wanted.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    (square(&mut got.iter().zip(want).map(|(a, b)| a - b)) / square(&mut want.iter().copied())).sqrt()
}

#[test]
fn every_family_is_written_and_loads_again() -> Outcome {
    let families = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "opt",
        "phi",
        "phi3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
    ];
    for name in families {
        let model = model(name)?;
        let want = logits(&load(model.path())?)?;
        for (bits, bound) in [(Bits::Eight, 0.05), (Bits::Four, 0.6)] {
            let dir = tempfile::tempdir()?;
            let out = dir.path().join("small");
            let report = made(model.path(), &out, &settings(bits))?;
            let far = distance(&logits(&load(&out)?)?, &want);
            assert!(far < bound, "{name} {bits:?}: {far}");
            assert!(report.matrices > 0 && report.error_over_plain <= 1.0, "{name} {report:?}");
            assert!((report.nll[1] - report.nll[0]).abs() < 0.3, "{name} {report:?}");
            // What is written: blocks where rows divide into them, float32 else, and a header.
            let file = Gguf::open(&out.join(FILE))?;
            let blocks = file.tensors().values().filter(|t| t.format() == bits.format()).count();
            assert!(blocks >= report.matrices, "{name}");
            let payload: usize = file.tensors().values().map(|t| t.bytes().len()).sum();
            let header = 200 + file.names().iter().map(|n| n.len() + 96).sum::<usize>();
            assert!(report.bytes[1] as usize <= payload + header, "{name} {report:?}");
            assert!(out.join("config.json").is_file() && out.join("quantised.json").is_file());
            assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        }
    }
    Ok(())
}

/// A folder whose model reads a few channels far louder than the others: a norm makes them so, its matrices undo half.
fn outliers(name: &str) -> std::result::Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let dir = model(name)?;
    let file = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
    let loud: Vec<f32> = (0..64).map(|c| if c % 16 == 3 { 40.0 } else { 1.0 }).collect();
    let loud = Tensor::new(loud, &Device::Cpu)?;
    for (name, tensor) in &mut tensors {
        if name.ends_with("input_layernorm.weight") || name.ends_with("post_attention_layernorm.weight") {
            *tensor = tensor.mul(&loud)?;
        }
        if ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().any(|p| name.contains(p)) {
            *tensor = tensor.broadcast_div(&loud.sqrt()?)?;
        }
    }
    candle_core::safetensors::save(&tensors, &file)?;
    Ok(dir)
}

#[test]
fn factors_help_where_channels_stand_out() -> Outcome {
    let model = outliers("llama")?;
    let out = tempfile::tempdir()?;
    let report = made(model.path(), &out.path().join("small"), &settings(Bits::Four))?;
    assert!(report.error_over_plain < 0.7, "{report:?}");
    assert!(report.factors[0] > 0, "{report:?}");
    Ok(())
}

#[test]
fn groups_may_be_wider_and_cost_accuracy() -> Outcome {
    let (dir, llama) = (tempfile::tempdir()?, model("llama")?);
    let want = logits(&load(llama.path())?)?;
    let mut far = Vec::new();
    for group in [32, 64] {
        let out = dir.path().join(group.to_string());
        made(llama.path(), &out, &Settings { group, ..settings(Bits::Four) })?;
        far.push(distance(&logits(&load(&out)?)?, &want));
    }
    assert!(far[0] < far[1], "{far:?}");
    Ok(())
}

#[test]
fn quantising_twice_gives_the_same_bytes() -> Outcome {
    let (dir, qwen) = (tempfile::tempdir()?, model("qwen2")?);
    let mut files = Vec::new();
    for name in ["a", "b"] {
        made(qwen.path(), &dir.path().join(name), &settings(Bits::Four))?;
        files.push(std::fs::read(dir.path().join(name).join(FILE))?);
    }
    assert!(files[0] == files[1]);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("small");
    let refusal = |model: &Path, out: &Path, sample: &Sample, settings: &Settings| {
        quantise(model, out, sample, settings, &mut |_, _, _| {})
            .map_or_else(|e| e.to_string(), |report| format!("{report:?}"))
    };
    let folder = model("llama")?;
    let llama = folder.path().to_path_buf();
    let strict = Settings { max_loss_increase: -1.0, ..settings(Bits::Four) };
    let text = refusal(&llama, &out, &sample(600), &strict);
    assert!(
        text.contains("the loss grew by") && text.contains("-1 is allowed: nothing was written"),
        "{text}"
    );
    let odd = Settings { group: 48, ..settings(Bits::Four) };
    assert!(refusal(&llama, &out, &sample(600), &odd).contains("group: expected a multiple of 32, got 48"));
    let text = refusal(&llama, &out, &Sample { start: vec![], ids: vec![3, 4] }, &settings(Bits::Four));
    assert!(text.contains("too short"), "{text}");
    let text = refusal(&llama, &out, &Sample { start: vec![], ids: vec![9999; 40] }, &settings(Bits::Four));
    assert!(text.contains("9999"), "{text}");
    for (name, what) in [
        ("t5", "got an encoder-decoder ('t5')"),
        ("smolvlm", "got a model that sees ('smolvlm')"),
        ("llava", "got a model that sees ('llava')"),
        ("qwen2_vl", "got a model that sees ('qwen2_vl')"),
        ("blip2_t5", "got a model that sees ('blip-2')"),
        ("siglip", "got a model that sees ('siglip')"),
        ("dinov2", "text model_type 'dinov2' is not known; known: llama"),
    ] {
        let text = refusal(&case(name), &out, &sample(600), &settings(Bits::Four));
        assert!(text.contains(what) && !text.contains('\n'), "{name}: {text}");
        assert!(text.starts_with("text model_type") || text.contains("expected a text decoder"), "{text}");
    }
    let text = refusal(dir.path(), &out, &sample(600), &settings(Bits::Four));
    assert!(text.contains("expected a model folder"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);

    made(&llama, &out, &settings(Bits::Eight))?;
    assert!(refusal(&llama, &out, &sample(600), &settings(Bits::Four)).contains("does not exist yet"));
    let again = refusal(&out, &dir.path().join("smaller"), &sample(600), &settings(Bits::Four));
    assert!(again.contains("expected a model folder with config.json and safetensors"), "{again}");

    // A file of another layout, and one that was cut off.
    let bytes = std::fs::read(out.join(FILE))?;
    std::fs::write(out.join(FILE), &bytes[..bytes.len() / 2])?;
    assert!(load(&out).is_err_and(|e| e.to_string().contains("do not fit")));
    let other = Gguf::open(&case("gguf_llama").join("model.gguf"))?;
    vela_nn::gguf::write(&out.join(FILE), other.metadata(), other.tensors())?;
    assert!(load(&out).is_err_and(|e| e.to_string().contains("vela.layout is missing")));
    Ok(())
}

#[test]
fn factors_behind_gelu_are_kept_beside_the_matrix() -> Outcome {
    let (dir, gpt2) = (tempfile::tempdir()?, model("gpt2")?);
    let out = dir.path().join("small");
    let report = made(gpt2.path(), &out, &settings(Bits::Four))?;
    let file = Gguf::open(&out.join(FILE))?;
    // Stored [input, output] by the original, [output, input] here.
    let fed = file.tensor("transformer.h.0.mlp.c_fc.weight")?;
    assert_eq!((fed.format(), fed.shape()), (Format::Q4_1, [256, 64].as_slice()));
    let kept = file.names().iter().filter(|name| name.ends_with("mlp.c_proj.input_scale")).count();
    assert_eq!(kept, report.factors[1], "{report:?}");
    assert!(kept > 0 && file.names().iter().all(|name| !name.ends_with("c_attn.input_scale")));
    Ok(())
}
