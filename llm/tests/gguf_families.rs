//! GGUF files of every family against the reference runs in `tests/golden`. Each file is written here from the family's
//! Hugging Face weights, in the way of llama.cpp's `convert_hf_to_gguf.py`, and must give what the reference gave.

mod gguf_common;

use candle_core::{Device, Tensor};
use gguf_common::{Made, Outcome, blocks, converted};
use rand::Rng;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use vela_llm::config::Positions;
use vela_llm::{Cache, EncoderDecoder, gguf, trace};
use vela_nn::gguf::Value;
use vela_nn::parity::{Verdict, compare, judge};
use vela_nn::quant::{Blocks, Format, Precision};
use vela_nn::{Gguf, Linear, Mask, random};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Outcome<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

/// The file, gone with its last reader.
fn opened(made: &Made) -> Outcome<Gguf> {
    let (_dir, path) = made.written()?;
    Ok(Gguf::open(&path)?)
}

/// All `out.*`: float stages within the bound, generated tokens equal.
fn agrees(name: &str, made: &Made, stages: usize) -> Outcome<()> {
    let golden = golden(name)?;
    let (_dir, file) = made.written()?;
    let verdict = judge(&golden, &gguf::trace(&file, &golden)?)?;
    assert!(verdict.pass && verdict.present == stages, "{name}: {verdict:#?}");
    said(name, &verdict);
    Ok(())
}

fn said(name: &str, verdict: &Verdict) {
    let worst = verdict.stages.iter().map(|stage| stage.max_abs_over_spread).fold(0.0, f32::max);
    println!("{name}: at most {worst:.1e} of the spread, over {} stages", verdict.present);
}

macro_rules! families {
    ($($name:ident: $architecture:literal $stages:literal)*) => {
        $(#[test]
        fn $name() -> Outcome<()> {
            let name = stringify!($name);
            agrees(name, &converted(&case(name), $architecture)?, $stages)
        })*
    };
}

families! {
    gemma: "gemma" 6
    gemma2: "gemma2" 8
    gemma3_text: "gemma3" 8
    gpt2: "gpt2" 6
    llama: "llama" 6
    llama_linear: "llama" 6
    llama_llama3: "llama" 6
    mistral: "llama" 6
    qwen2: "qwen2" 6
    qwen3: "qwen3" 6
}

#[test]
fn mixtral() -> Outcome<()> {
    let apart = converted(&case("mixtral"), "llama")?;
    agrees("mixtral", &apart, 6)?;
    let stacked = apart.stacked()?;
    assert_eq!(stacked.tensors["blk.1.ffn_down_exps.weight"].shape(), [4, 48, 56]);
    agrees("mixtral", &stacked, 6)
}

/// The encoder-decoder of a file, all distances from `farthest` on in one bucket.
fn reader(file: &Gguf, farthest: usize) -> Outcome<EncoderDecoder> {
    let mut config = gguf::reader_config(file)?;
    for stack in [&mut config.encoder, &mut config.decoder] {
        let Positions::Relative { max_distance, .. } = &mut stack.positions else {
            return Err("no buckets".into());
        };
        assert_eq!(std::mem::replace(max_distance, farthest), 128);
    }
    let weights = gguf::reader_weights(file, &config, Precision::Exact)?;
    let model = EncoderDecoder::new(&weights, &config)?;
    weights.finish()?;
    Ok(model)
}

#[test]
fn t5() -> Outcome<()> {
    // The reference has a bucket for all distances from 20 on. A file cannot say so: every published T5 has 128.
    let (golden, made) = (golden("t5")?, converted(&case("t5"), "t5")?);
    let verdict = judge(&golden, &trace::encoder_decoder(&reader(&opened(&made)?, 20)?, &golden)?)?;
    assert!(verdict.pass && verdict.present == 9, "{verdict:#?}");
    said("t5", &verdict);
    let (_dir, file) = made.written()?;
    assert!(!judge(&golden, &gguf::trace(&file, &golden)?)?.pass);
    Ok(())
}

/// What a folder gives and what its file gives, every stage of the reference's questions.
fn as_its_folder(dir: &Path, made: &Made) -> Outcome<()> {
    let golden = golden("t5")?;
    let mut want: HashMap<String, Tensor> =
        trace::encoder_decoder(&EncoderDecoder::load(dir)?, &golden)?.into_iter().collect();
    want.extend(golden.into_iter().filter(|(name, _)| name.starts_with("in.")));
    let (_dir, file) = made.written()?;
    let verdict = judge(&want, &gguf::trace(&file, &golden_inputs(&want))?)?;
    assert!(verdict.pass && verdict.present == 10, "{verdict:#?}");
    said("t5 and its folder", &verdict);
    Ok(())
}

fn golden_inputs(all: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let asked = |name: &&String| name.starts_with("in.") || *name == "out.generated";
    all.iter().filter(|(name, _)| asked(name)).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

#[test]
fn t5_of_128_and_with_gates_and_a_head_of_its_own() -> Outcome<()> {
    for gated in [false, true] {
        let dir = tempfile::tempdir()?;
        let mut config = trace::config_json(&case("t5"))?;
        config["relative_attention_max_distance"] = json!(128);
        let mut tensors = candle_core::safetensors::load(case("t5").join("model.safetensors"), &Device::Cpu)?;
        if gated {
            config["feed_forward_proj"] = json!("gated-gelu");
            config["tie_word_embeddings"] = json!(false);
            config["scale_decoder_outputs"] = json!(false);
            for name in
                tensors.keys().filter(|name| name.ends_with(".wi.weight")).cloned().collect::<Vec<_>>()
            {
                let wi = tensors.remove(&name).ok_or("gone")?;
                tensors.insert(name.replace(".wi.", ".wi_0."), wi.flip(&[0])?.contiguous()?);
                tensors.insert(name.replace(".wi.", ".wi_1."), wi);
            }
            tensors.insert("lm_head.weight".into(), tensors["shared.weight"].flip(&[1])?.contiguous()?);
        }
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
        as_its_folder(dir.path(), &converted(dir.path(), "t5")?)?;
    }
    Ok(())
}

#[test]
fn what_no_t5_reads_is_left_and_what_is_missing_is_said() -> Outcome<()> {
    let made = || converted(&case("t5"), "t5");
    let mut with = made()?;
    let bias = with.tensors["dec.blk.0.attn_rel_b.weight"].clone();
    with.tensors.insert("dec.blk.0.cross_attn_rel_b.weight".into(), bias.clone());
    gguf::reader(&opened(&with)?, Precision::Fast)?;
    let said = |change: &dyn Fn(&mut Made)| -> Outcome<String> {
        let mut made = made()?;
        change(&mut made);
        let made = gguf::reader(&opened(&made)?, Precision::Exact);
        Ok(made.err().map(|e| e.to_string()).unwrap_or_default())
    };
    let number = |key: &'static str, n: u64| {
        move |made: &mut Made| drop(made.metadata.insert(format!("t5.{key}"), Value::Unsigned(n)))
    };
    type Case<'a> = (&'a dyn Fn(&mut Made), &'a str);
    let cases: [Case<'_>; 8] = [
        (
            &number("decoder_start_token_id", 128),
            "decoder_start_token_id: expected a token id below 128, got 128",
        ),
        (
            &|made| drop(made.metadata.remove("t5.decoder_start_token_id")),
            "t5.decoder_start_token_id is missing",
        ),
        (&number("attention.relative_buckets_count", 0), "0 buckets of distances up to 128"),
        (&number("attention.head_count_kv", 2), "head_count_kv: expected 4, as many as heads, got 2"),
        (&number("decoder_block_count", 1 << 40), "expected at most 4096"),
        (&number("decoder_block_count", 1), "decoder.block.1"),
        (
            &|made| drop(made.tensors.insert("dec.blk.1.attn_rel_b.weight".into(), bias.clone())),
            "unused      decoder.block.1.layer.0.SelfAttention.relative_attention_bias",
        ),
        (
            &|made| drop(made.tensors.remove("dec.blk.1.cross_attn_k.weight")),
            "block.1.layer.1.EncDecAttention.k",
        ),
    ];
    for (change, words) in cases {
        let said = said(change)?;
        assert!(said.contains(words), "{words}: {said}");
    }
    let file = opened(&made()?)?;
    let words = gguf::decoder(&file, Precision::Exact).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(words.contains("expected a model of one stack, got an encoder-decoder"), "{words}");
    let other = opened(&converted(&case("llama"), "llama")?)?;
    let words = gguf::reader(&other, Precision::Exact).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(words.contains("expected an encoder-decoder (t5), got 'llama'"), "{words}");
    Ok(())
}

#[test]
fn unsound_mixtures_are_one_clear_error_each() -> Outcome<()> {
    let sound = || converted(&case("mixtral"), "llama")?.stacked();
    let said = |change: &dyn Fn(&mut Made)| -> Outcome<String> {
        let mut made = sound()?;
        change(&mut made);
        let file = opened(&made)?;
        let [one, two] = [Precision::Exact, Precision::Fast].map(|precision| {
            gguf::decoder(&file, precision).err().map(|e| e.to_string()).unwrap_or_default()
        });
        assert_eq!(one, two);
        Ok(one)
    };
    let number = |key: &'static str, n: u64| {
        move |made: &mut Made| drop(made.metadata.insert(format!("llama.{key}"), Value::Unsigned(n)))
    };
    let replaced = |name: &'static str, shape: &'static [usize]| {
        move |made: &mut Made| {
            let size = vela_nn::quant::size_of(Format::F32, shape).unwrap_or_default();
            let new = Blocks::new(Format::F32, shape, vec![0; size]);
            made.tensors.extend(new.ok().map(|new| (name.to_owned(), new)));
        }
    };
    let (up, router) = ("blk.1.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight");
    type Case<'a> = (&'a dyn Fn(&mut Made), &'a [&'a str]);
    let cases: [Case<'_>; 15] = [
        (&number("expert_count", 0), &["expert_count is 0, but the file has blk.0.ffn_down_exps.weight"]),
        (
            &|made| drop(made.metadata.remove("llama.expert_count")),
            &["expert_count is missing, but the file has"],
        ),
        (
            &number("expert_count", 1 << 40),
            &["2 of 1099511627776 experts chosen", "expected 1 to 4096 experts"],
        ),
        (
            &number("expert_count", 4096),
            &["blk.0.ffn_gate_inp.weight of 4096 experts", "[4096, 48]", "[4, 48]"],
        ),
        (&number("expert_count", 3), &["blk.0.ffn_gate_inp.weight of 3 experts", "[3, 48]", "[4, 48]"]),
        (&number("expert_used_count", 5), &["5 of 4 experts", "no more of them chosen"]),
        (&number("expert_used_count", 0), &["0 of 4 experts"]),
        (
            &|made| drop(made.metadata.remove("llama.expert_used_count")),
            &["llama.expert_used_count is missing"],
        ),
        (&number("expert_gating_func", 2), &["expert_gating_func: expected one of [0.0, 1.0]", "got 2"]),
        (
            &number("feed_forward_length", 64),
            &["blk.0.ffn_down_exps.weight of 4 experts", "[4, 48, 64]", "[4, 48, 56]"],
        ),
        (&replaced(up, &[3, 56, 48]), &[up, "[4, 56, 48]", "[3, 56, 48]"]),
        (&replaced(up, &[4 * 56, 48]), &[up, "[4, 56, 48]", "[224, 48]"]),
        (&replaced("blk.1.ffn_up.2.weight", &[56, 48]), &["blk.1.ffn_up.2.weight is there twice"]),
        (
            &|made| drop(made.tensors.remove(router)),
            &["4 experts, but there is no blk.0.ffn_gate_inp.weight"],
        ),
        (&|made| drop(made.tensors.remove(up)), &["layers.1.block_sparse_moe.experts.3.w3"]),
    ];
    for (change, words) in cases {
        let said = said(change)?;
        assert!(words.iter().all(|part| said.contains(part)), "{words:?}: {said}");
    }
    let mut other = converted(&case("qwen2"), "qwen2")?;
    other.metadata.insert("qwen2.expert_count".into(), Value::Unsigned(8));
    let words = gguf::config(&opened(&other)?).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        words.contains("qwen2.expert_count: expected none") && words.contains("safetensors only"),
        "{words}"
    );
    // A count of none is what the dense ones may say of themselves.
    let mut dense = converted(&case("llama"), "llama")?;
    dense.metadata.insert("llama.expert_count".into(), Value::Unsigned(0));
    gguf::decoder(&opened(&dense)?, Precision::Exact)?;
    Ok(())
}

/// Rows of blocks with all bits at random, but for the scales.
fn made_up(format: Format, shape: &[usize], name: &str) -> Outcome<Blocks> {
    let mut rng = random::stream(7, name);
    let size = vela_nn::quant::size_of(format, shape)?;
    let mut bytes: Vec<u8> = (0..size).map(|_| rng.random()).collect();
    let spread = if format == Format::Q8_0 { 0.001 } else { 0.015 };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let scale = half::f16::from_f32(spread * rng.random_range(0.5..1.5));
        block[..2].copy_from_slice(&scale.to_le_bytes());
    }
    Ok(Blocks::new(format, shape, bytes)?)
}

#[test]
fn a_matrix_of_a_stack_multiplies_as_its_numbers_do() -> Outcome<()> {
    let (count, rows, columns) = (5, 24, 96);
    let mut rng = random::stream(8, "x");
    let x: Vec<f32> = (0..3 * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
    let x = Tensor::from_vec(x, (3, columns), &Device::Cpu)?;
    for format in [Format::Q8_0, Format::Q4_0] {
        let stack = made_up(format, &[count, rows, columns], format.name())?;
        let (_dir, file) =
            Made { metadata: BTreeMap::new(), tensors: BTreeMap::from([("stack".into(), stack.clone())]) }
                .written()?;
        let file = Gguf::open(&file)?;
        for stack in [&stack, file.tensor("stack")?] {
            for expert in 0..count {
                let (mine, numbers) = (stack.matrix(expert)?, stack.tensor()?.get(expert)?);
                assert_eq!((mine.shape(), mine.format()), (&[rows, columns][..], format));
                let want = x.matmul(&numbers.t()?)?;
                let of =
                    |precision: Precision| Linear::from_blocks(mine.clone(), precision, None)?.forward(&x);
                let exact = compare("exact", &of(Precision::Exact)?, &want)?;
                assert!(exact.max_abs_over_spread < 1e-6, "{format:?} {expert}: {exact:?}");
                let fast = compare("fast", &of(Precision::Fast)?, &want)?;
                assert!(fast.cosine > 0.9995, "{format:?} {expert}: {fast:?}");
                // The same bytes by themselves.
                let alone = Blocks::new(format, &[rows, columns], mine.bytes().to_vec())?;
                let alone = Linear::from_blocks(alone, Precision::Fast, None)?.forward(&x)?;
                assert_eq!(of(Precision::Fast)?.to_vec2::<f32>()?, alone.to_vec2::<f32>()?);
            }
            assert!(stack.matrix(count).is_err() && stack.matrix(0)?.matrix(0)?.matrix(0).is_err());
        }
    }
    Ok(())
}

/// A Mixtral of made-up weights, its experts in this format.
fn mixture(format: Format) -> Outcome<Made> {
    let (width, inner, experts) = (64, 96, 5);
    let numbers = [
        ("block_count", 2),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 64),
        ("expert_count", experts),
        ("expert_used_count", 2),
    ];
    let mut metadata: BTreeMap<String, Value> =
        numbers.iter().map(|(key, n)| (format!("llama.{key}"), Value::Unsigned(*n as u64))).collect();
    metadata.insert("llama.attention.layer_norm_rms_epsilon".into(), Value::Float(1e-5));
    metadata.insert("general.architecture".into(), Value::Text("llama".into()));
    let mut tensors = BTreeMap::new();
    let mut put = |name: String, format: Format, shape: &[usize]| -> Outcome<()> {
        let made = made_up(format, shape, &name)?;
        tensors.insert(name, made);
        Ok(())
    };
    put("token_embd.weight".into(), Format::Q8_0, &[64, width])?;
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        put(name("attn_q"), Format::Q8_0, &[64, width])?;
        put(name("attn_k"), Format::Q8_0, &[32, width])?;
        put(name("attn_v"), Format::Q8_0, &[32, width])?;
        put(name("attn_output"), Format::Q8_0, &[width, 64])?;
        put(name("ffn_gate_exps"), format, &[experts, inner, width])?;
        put(name("ffn_up_exps"), format, &[experts, inner, width])?;
        put(name("ffn_down_exps"), format, &[experts, width, inner])?;
    }
    let mut plain = |name: String, tensor: Tensor| -> Outcome<()> {
        tensors.insert(name, blocks(&tensor)?);
        Ok(())
    };
    let ones = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu)?;
    plain("output_norm.weight".into(), ones.clone())?;
    for layer in 0..2 {
        plain(format!("blk.{layer}.attn_norm.weight"), ones.clone())?;
        plain(format!("blk.{layer}.ffn_norm.weight"), ones.clone())?;
        let router = made_up(Format::Q8_0, &[experts, width], "router")?.tensor()?;
        plain(format!("blk.{layer}.ffn_gate_inp.weight"), router)?;
    }
    Ok(Made { metadata, tensors })
}

fn logits(made: &Made, precision: Precision) -> Outcome<Tensor> {
    let decoder = gguf::decoder(&opened(made)?, precision)?;
    let ids = Tensor::arange(3u32, 35, &Device::Cpu)?.unsqueeze(0)?;
    let positions = Tensor::arange(0u32, 32, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
    Ok(decoder.logits(&decoder.normalise(&hidden)?)?)
}

#[test]
fn quantised_experts_are_what_their_numbers_are() -> Outcome<()> {
    for format in [Format::Q8_0, Format::Q4_0] {
        let made = mixture(format)?;
        let mut plain = Made { metadata: made.metadata.clone(), tensors: made.tensors.clone() };
        for blocks in plain.tensors.values_mut() {
            *blocks = self::blocks(&blocks.tensor()?)?;
        }
        let want = logits(&plain, Precision::Exact)?;
        let exact = compare("exact", &logits(&made, Precision::Exact)?, &want)?;
        assert!(exact.max_abs_over_spread < 1e-5, "{format:?}: {exact:?}");
        let fast = compare("fast", &logits(&made, Precision::Fast)?, &want)?;
        assert!(fast.cosine > 0.999, "{format:?}: {fast:?}");
        println!(
            "{format:?}: exact {:.1e} of the spread, fast at a cosine of {:.5}",
            exact.max_abs_over_spread, fast.cosine
        );
    }
    Ok(())
}
