//! Adapters: beside the weights, merged into them, and worked out by hand, they give the same; what cannot be is
//! refused.

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_llm::config::Module;
use vela_llm::engine::{Engine, EngineConfig, Request};
use vela_llm::generate::{Options, Session, run};
use vela_llm::{Cache, Decoder, DecoderConfig, Lora, load, lora, trace};
use vela_nn::parity::compare;
use vela_nn::random::stream;
use vela_nn::{Error, Mask, Result, Weights};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;
type Tensors = HashMap<String, Tensor>;

/// A clock that stands still.
fn clock() -> vela_llm::engine::Clock {
    Arc::new(|| 0)
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn config(name: &str) -> Result<DecoderConfig> {
    DecoderConfig::from_hf(&trace::config_json(&case(name))?)
}

/// Random numbers, about as large as `spread`.
fn noise(seed: u64, name: &str, shape: (usize, usize), spread: f32) -> Result<Tensor> {
    let mut rng = stream(seed, name);
    let values = (0..shape.0 * shape.1).map(|_| spread * (2.0 * rng.random::<f32>() - 1.0));
    Ok(Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)?)
}

/// The tensors of an adapter for these matrices.
fn adapter(config: &DecoderConfig, modules: &[Module], rank: usize, seed: u64) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for module in modules {
        let name = format!("base_model.model.{}", config.full_name(module));
        let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
        tensors.insert(a.clone(), noise(seed, &a, (rank, module.input), 0.25)?);
        tensors.insert(b.clone(), noise(seed, &b, (module.output, rank), 0.25)?);
    }
    Ok(tensors)
}

fn folder(config: &Value, tensors: &Tensors) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).map_err(Error::invalid)?;
    candle_core::safetensors::save(tensors, dir.path().join("adapter_model.safetensors"))?;
    Ok(dir)
}

/// What PEFT writes for every matrix of the layers.
fn everything(rank: usize, more: &Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 6, "lora_dropout": 0.1, "bias": "none",
        "target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_dora": false, "modules_to_save": null,
        "init_lora_weights": true, "base_model_name_or_path": "somewhere", "megatron_core": "megatron.core",
        "layer_replication": null, "rank_pattern": {}, "alpha_pattern": {}, "loftq_config": {}});
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    config
}

fn logits(decoder: &Decoder, embeds: &Tensor) -> Result<Tensor> {
    let positions = Tensor::arange(0, embeds.dim(1)? as u32, &Device::Cpu)?;
    let hidden = decoder.forward(embeds, &positions, &Mask::Causal, &mut Cache::new())?;
    decoder.logits(&decoder.normalise(&hidden)?)
}

fn inputs(name: &str, decoder: &Decoder) -> Result<Tensor> {
    let golden = candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?;
    decoder.embed(&golden["in.input_ids"].to_dtype(DType::U32)?)
}

fn same(what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    let difference = compare("", got, want)?.max_abs_over_spread;
    assert!(difference < 3e-5, "{what}: {difference:e} of the spread");
    Ok(())
}

/// The checkpoint with `scale · B · A` added to every adapted weight, number by number in double precision.
fn by_hand(name: &str, config: &DecoderConfig, adapter: &Tensors, scale: f64) -> Result<Decoder> {
    let mut tensors = candle_core::safetensors::load(case(name).join("model.safetensors"), &Device::Cpu)?;
    for module in config.modules() {
        let full = config.full_name(&module);
        let part = |which: &str| adapter.get(&format!("base_model.model.{full}.lora_{which}.weight"));
        let (Some(a), Some(b)) = (part("A"), part("B")) else { continue };
        let (a, b) = (a.to_vec2::<f32>()?, b.to_vec2::<f32>()?);
        let Some(weight) = tensors.get_mut(&format!("{full}.weight")) else {
            return Err(Error::invalid(format!("{name} has no {full}")));
        };
        let mut rows = weight.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (i, b) in b.iter().enumerate() {
            for j in 0..module.input {
                let added: f64 = b.iter().zip(&a).map(|(b, a)| f64::from(*b) * f64::from(a[j])).sum();
                let place = if config.names.table().transposed { &mut rows[j][i] } else { &mut rows[i][j] };
                *place = (f64::from(*place) + scale * added) as f32;
            }
        }
        *weight = Tensor::new(rows, &Device::Cpu)?;
    }
    vela_llm::load::from_weights(&Weights::from_tensors(tensors), config)
}

#[test]
fn unmerged_equals_merged_equals_dense() -> Outcome {
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
    for (seed, name) in families.into_iter().enumerate() {
        let (config, rank) = (config(name)?, 3);
        let tensors = adapter(&config, &config.modules(), rank, seed as u64)?;
        let rslora = seed % 2 == 1;
        let scale = if rslora { 6.0 / (rank as f64).sqrt() } else { 6.0 / rank as f64 };
        // PEFT notes how GPT-2 stores its matrices; the adapter's own are as everybody's.
        let more = json!({"use_rslora": rslora, "fan_in_fan_out": name == "gpt2"});
        let dir = folder(&everything(rank, &more), &tensors)?;
        let lora = Arc::new(Lora::load(dir.path(), &config)?);
        assert_eq!(lora.len(), config.modules().len());
        let base = load(&case(name))?;
        let adapted = base.with_adapter(lora.clone())?;
        let embeds = inputs(name, &base)?;
        let want = logits(&by_hand(name, &config, &tensors, scale)?, &embeds)?;
        let far = compare("", &logits(&base, &embeds)?, &want)?.max_abs_over_spread;
        assert!(far > 0.01, "{name}: the adapter changes next to nothing: {far}");
        same(name, &logits(&adapted, &embeds)?, &want)?;
        same(name, &logits(&lora::merged(&case(name), dir.path())?, &embeds)?, &want)?;
        assert!(adapted.with_adapter(lora).is_err());
    }
    Ok(())
}

#[test]
fn only_what_is_named_is_adapted() -> Outcome {
    let config = config("llama")?;
    let base = load(&case("llama"))?;
    let embeds = inputs("llama", &base)?;
    let is =
        |names: &'static [&str]| move |module: &Module| names.iter().any(|name| module.name.ends_with(name));
    let first = |module: &Module| module.layer == 0 && module.name.ends_with("q_proj");
    type Named = Box<dyn Fn(&Module) -> bool>;
    let some: [(Value, Named); 5] = [
        (json!({"target_modules": ["q_proj", "mlp.down_proj"]}), Box::new(is(&["q_proj", "down_proj"]))),
        (json!({"target_modules": r".*\.(?!mlp)[^.]+\.[vo]_proj"}), Box::new(is(&["v_proj", "o_proj"]))),
        (json!({"target_modules": ["q_proj"], "layers_to_transform": [0]}), Box::new(first)),
        (json!({"target_modules": ["q_proj"], "layers_to_transform": 0}), Box::new(first)),
        (json!({"exclude_modules": ".*mlp.*"}), Box::new(is(&["q_proj", "k_proj", "v_proj", "o_proj"]))),
    ];
    for (more, named) in some {
        let modules: Vec<Module> = config.modules().into_iter().filter(|m| named(m)).collect();
        let tensors = adapter(&config, &modules, 2, 5)?;
        let dir = folder(&everything(2, &more), &tensors)?;
        let lora = Lora::load(dir.path(), &config)?;
        assert_eq!(lora.len(), modules.len(), "{more}");
        let want = logits(&by_hand("llama", &config, &tensors, 3.0)?, &embeds)?;
        same(&more.to_string(), &logits(&base.with_adapter(Arc::new(lora))?, &embeds)?, &want)?;
    }

    // One matrix of another rank and strength: both are scaled by 6 / 2 here.
    let q: Vec<Module> = config.modules().into_iter().filter(is(&["q_proj"])).collect();
    let v: Vec<Module> = config.modules().into_iter().filter(is(&["v_proj"])).collect();
    let mut tensors = adapter(&config, &q, 2, 5)?;
    tensors.extend(adapter(&config, &v, 4, 5)?);
    let more = json!({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 12}});
    let dir = folder(&everything(2, &more), &tensors)?;
    let want = logits(&by_hand("llama", &config, &tensors, 3.0)?, &embeds)?;
    let lora = Arc::new(Lora::load(dir.path(), &config)?);
    same("patterns", &logits(&base.with_adapter(lora)?, &embeds)?, &want)?;
    Ok(())
}

#[test]
fn an_adapter_of_the_bare_model_has_shorter_names() -> Outcome {
    let config = config("gpt2")?;
    let tensors = adapter(&config, &config.modules(), 2, 1)?;
    let whole = folder(&everything(2, &json!({})), &tensors)?;
    let bare = tensors.into_iter().map(|(name, t)| (name.replace(".transformer.", "."), t)).collect();
    let bare = folder(&everything(2, &json!({})), &bare)?;
    let base = load(&case("gpt2"))?;
    let embeds = inputs("gpt2", &base)?;
    let of = |dir: &Path| logits(&base.with_adapter(Arc::new(Lora::load(dir, &config)?))?, &embeds);
    same("bare", &of(bare.path())?, &of(whole.path())?)?;
    Ok(())
}

#[test]
fn beside_quantised_weights_the_rows_of_gguf_are_minded() -> Outcome {
    let path = case("gguf_llama");
    let Some(path) = vela_llm::gguf::find(&path) else { return Err("no GGUF file".into()) };
    let file = vela_nn::Gguf::open(&path)?;
    let decoder = vela_llm::gguf::decoder(&file, vela_nn::quant::Precision::Exact)?;
    let config = decoder.config().clone();
    let tensors = adapter(&config, &config.modules(), 2, 9)?;
    let dir = folder(&everything(2, &json!({})), &tensors)?;
    let adapted = decoder.with_adapter(Arc::new(Lora::load(dir.path(), &config)?))?;
    let ids = Tensor::new(&[[1u32, 5, 9, 20, 3, 7]], &Device::Cpu)?;
    let embeds = decoder.embed(&ids)?;

    // The same weights as a folder has them: float32, rows of queries and keys put back.
    let names = config.names.table();
    let weights = vela_llm::gguf::weights(&file, &config, vela_nn::quant::Precision::Exact)?;
    let mut dense = Tensors::new();
    for name in weights.names() {
        let tensor = weights.get(weights.shape_of(&name).unwrap_or_default(), &name)?;
        let turned = [names.q, names.k].iter().any(|part| name.ends_with(&format!("{part}.weight")));
        dense.insert(name, if turned { halves(&tensor, config.head_dim)? } else { tensor });
    }
    let mut plain = config.clone();
    plain.rope.style = vela_nn::RopeStyle::HalfSplit;
    let lora = Lora::load(dir.path(), &plain)?;
    let merged = lora.merge(&Weights::from_tensors(dense))?;
    let want = vela_llm::load::from_weights(&merged, &plain)?;
    same("gguf", &logits(&adapted, &embeds)?, &logits(&want, &embeds)?)?;
    Ok(())
}

/// Rows `[heads, d / 2, 2]` to `[heads, 2, d / 2]`.
fn halves(weight: &Tensor, d: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let apart = weight.reshape((rows / d, d / 2, 2, columns))?.transpose(1, 2)?.contiguous()?;
    Ok(apart.reshape((rows, columns))?)
}

fn greedy(decoder: &Arc<Decoder>, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut session = Session::new(decoder.clone(), 128)?;
    let options = Options { max_tokens: count, ..Options::default() };
    let mut made = Vec::new();
    run(&mut session, prompt, &options, None, None, &mut |choice| {
        made.push(choice.token);
        Ok(true)
    })?;
    Ok(made)
}

#[test]
fn requests_with_different_adapters_share_a_batch() -> Outcome {
    for name in ["llama", "gpt2", "qwen2_moe"] {
        let config = config(name)?;
        let base = Arc::new(load(&case(name))?);
        let lora = |seed: u64| -> Result<Arc<Lora>> {
            let tensors = adapter(&config, &config.modules(), 2, seed)?;
            Lora::load(folder(&everything(2, &json!({})), &tensors)?.path(), &config).map(Arc::new)
        };
        let choices = [None, Some(lora(1)?), Some(lora(2)?)];
        // More than a block in common, so that a prefix of another adapter would be found if it were not kept apart.
        let common: Vec<u32> = (0..20).map(|i| 3 + i * 7 % 90).collect();
        let engine_config = EngineConfig { cache_bytes: 1 << 22, threads: 1, ..EngineConfig::default() };
        let engine = Engine::start(base.clone(), engine_config, clock())?;
        for _ in 0..2 {
            let mut open = Vec::new();
            for end in 0..3u32 {
                for adapter in &choices {
                    let prompt = [common.as_slice(), &[5 + end]].concat();
                    let request = Request { adapter: adapter.clone(), ..Request::new(&prompt, 12) };
                    open.push((prompt, adapter, engine.submit(request)?));
                }
            }
            let mut said = HashSet::new();
            for (prompt, adapter, answer) in open {
                let decoder = match adapter {
                    None => base.clone(),
                    Some(lora) => Arc::new(base.with_adapter(lora.clone())?),
                };
                let want = greedy(&decoder, &prompt, 12)?;
                assert_eq!(answer.wait().tokens(), want, "{name}");
                said.insert(want);
            }
            assert!(said.len() >= 3, "{name}: the adapters say the same");
        }
        assert!(engine.metrics().cached_tokens > 0);
    }
    // An adapter of another model is refused before anything runs.
    let other = config("qwen3")?;
    let tensors = adapter(&other, &other.modules(), 2, 0)?;
    let lora = Lora::load(folder(&everything(2, &json!({})), &tensors)?.path(), &other)?;
    let engine = Engine::start(Arc::new(load(&case("llama"))?), EngineConfig::default(), clock())?;
    let request = Request { adapter: Some(Arc::new(lora)), ..Request::new(&[1], 1) };
    assert!(engine.submit(request).is_err_and(|e| e.to_string().contains("another config")));
    Ok(())
}

fn refusal(config: &DecoderConfig, more: &Value, tensors: &Tensors) -> Result<String> {
    let dir = folder(&everything(2, more), tensors)?;
    Ok(Lora::load(dir.path(), config).map_or_else(|e| e.to_string(), |_| "loaded".to_owned()))
}

#[test]
fn what_does_not_fit_is_reported_at_once() -> Outcome {
    let config = config("llama")?;
    let mut tensors = adapter(&config, &config.modules(), 2, 0)?;
    let name = |rest: &str| format!("base_model.model.model.layers.{rest}.weight");
    tensors.remove(&name("0.self_attn.q_proj.lora_A"));
    tensors.insert(name("1.mlp.up_proj.lora_B"), noise(0, "x", (3, 2), 1.0)?);
    tensors.insert("base_model.model.lm_head.lora_A.weight".into(), noise(0, "x", (2, 4), 1.0)?);
    let text = refusal(&config, &json!({}), &tensors)?;
    assert!(text.contains("1 missing, 1 unused, 1 mis-shaped"), "{text}");
    for part in ["q_proj.lora_A", "lm_head.lora_A", "up_proj.lora_B"] {
        assert!(text.contains(part), "{text}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_by_name() -> Outcome {
    let config = config("llama")?;
    let tensors = adapter(&config, &config.modules(), 2, 0)?;
    for (more, expected) in [
        (json!({"peft_type": "IA3"}), "peft_type: only LORA is supported, got IA3"),
        (json!({"use_dora": true}), "use_dora: DoRA adapters are not supported"),
        (json!({"modules_to_save": ["lm_head", "norm"]}), "modules_to_save: whole modules (lm_head, norm)"),
        (json!({"bias": "lora_only"}), "bias: only none is supported, got lora_only"),
        (json!({"init_lora_weights": "pissa_niter_16"}), "pissa_niter_16 changes the base's weights"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication: not supported"),
        (json!({"trainable_token_indices": [1]}), "trainable_token_indices: not supported"),
        (json!({"lora_bias": true}), "lora_bias: not supported"),
        (json!({"target_modules": null}), "target_modules: expected a list or a regular expression"),
        (json!({"target_modules": ["teapot"]}), "unused"),
        (json!({"target_modules": "(q_proj"}), "not a regular expression"),
        (json!({"r": 0}), "a rank of 0"),
        (json!({"r": -1}), "invalid value"),
        (json!({"rank_pattern": {"q_proj": 2, ".*q_proj": 3}}), "two patterns with different values"),
    ] {
        let text = refusal(&config, &more, &tensors)?;
        assert!(text.contains(expected), "expected '{expected}', got '{text}'");
    }
    assert!(refusal(&config, &json!({"target_modules": ["teapot"]}), &Tensors::new())?.contains("no matrix"));
    let empty = tempfile::tempdir()?;
    let text = Lora::load(empty.path(), &config).map_or_else(|e| e.to_string(), |_| "loaded".into());
    assert!(text.contains("adapter_config.json"), "{text}");
    Ok(())
}
