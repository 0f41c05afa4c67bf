//! Throughput of the engine: one request at a time against several at once, in turns, medians of the rounds.
//!
//! `engine_bench [--model DIR_OR_GGUF] [--concurrency 8] [--prompt-tokens 32] [--tokens 64] [--threads 2] [--rounds 3]
//! [--kind f32|f16|int8]`; without a model, random weights of SmolLM2-135M's shape in float32. One JSON line.

use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use vela_llm::engine::{Engine, EngineConfig, PagedKind, Request};
use vela_llm::{Decoder, DecoderConfig};
use vela_nn::{Tensor, Weights, threads};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Options {
    model: Option<PathBuf>,
    concurrency: usize,
    prompt_tokens: usize,
    tokens: usize,
    threads: usize,
    rounds: usize,
    kind: PagedKind,
}

fn options() -> Outcome<Options> {
    let (kind, threads) = (PagedKind::F32, 2);
    let mut options =
        Options { model: None, concurrency: 8, prompt_tokens: 32, tokens: 64, threads, rounds: 3, kind };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name}: expected a value"))?;
        match name.as_str() {
            "--model" => options.model = Some(value.into()),
            "--concurrency" => options.concurrency = value.parse()?,
            "--prompt-tokens" => options.prompt_tokens = value.parse()?,
            "--tokens" => options.tokens = value.parse()?,
            "--threads" => options.threads = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--kind" => options.kind = serde_json::from_value(json!(value))?,
            other => return Err(format!("{other}: not an option").into()),
        }
    }
    Ok(options)
}

/// Random constant weights of SmolLM2-135M's shape.
fn random_model() -> Outcome<Decoder> {
    let config = DecoderConfig::from_hf(&json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 8192
    }))?;
    let fresh = Weights::fresh(1);
    Decoder::new(Some(&fresh), &fresh.pp("model"), &config)?;
    let tensors: HashMap<String, Tensor> =
        fresh.trainable().iter().map(|(name, var)| (name.clone(), var.as_tensor().detach())).collect();
    let weights = Weights::from_tensors(tensors);
    Ok(Decoder::new(Some(&weights), &weights.pp("model"), &config)?)
}

/// Answers `count` requests at once; generated tokens per second.
fn run(engine: &Engine, options: &Options, count: usize, round: usize) -> Outcome<f64> {
    let vocab = 40_000;
    let started = Instant::now();
    let mut answers = Vec::new();
    for k in 0..count {
        let salt = (round * 131 + k * 17) as u32;
        let prompt: Vec<u32> =
            (0..options.prompt_tokens as u32).map(|i| (i * 7919 + salt * 104_729) % vocab).collect();
        answers.push(engine.submit(Request::new(&prompt, options.tokens))?);
    }
    let tokens: usize = answers.into_iter().map(|answer| answer.wait().usage.generated_tokens).sum();
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> Outcome<()> {
    let options = options()?;
    threads::set(options.threads);
    let decoder = match &options.model {
        Some(path) => vela_llm::model::load(path)?.decoder,
        None => Arc::new(random_model()?),
    };
    let config = EngineConfig { prefix_cache: false, kind: options.kind, ..EngineConfig::default() };
    let start = Instant::now();
    let clock = Arc::new(move || start.elapsed().as_nanos() as u64);
    let engine = Engine::start(decoder, config, clock)?;
    run(&engine, &options, options.concurrency, 99)?;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        one.push(run(&engine, &options, 1, round)?);
        many.push(run(&engine, &options, options.concurrency, round)?);
    }
    let m = engine.metrics();
    let (one, many) = (median(one), median(many));
    println!(
        "{}",
        json!({
            "concurrency": options.concurrency, "threads": options.threads, "prompt_tokens": options.prompt_tokens,
            "tokens": options.tokens, "one_tok_s": one, "many_tok_s": many, "ratio": many / one,
            "ttft_p50_ms": m.first_token.quantile_secs(0.5) * 1e3, "per_token_p50_ms": m.per_token.quantile_secs(0.5) * 1e3,
            "per_token_p99_ms": m.per_token.quantile_secs(0.99) * 1e3,
        })
    );
    Ok(())
}
