//! `vela bench llm`: how fast a text model reads and writes, one sequence or several at once.

use super::{processor_ms, resident_mb, since};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use vela_embodiment::{Clock, MonotonicClock, Stamp};
use vela_llm::engine::{Answer, BLOCK, Engine, EngineConfig, Event, PagedKind, Request};
use vela_llm::generate::Session;
use vela_llm::sampling::best;
use vela_llm::{Decoder, model};

#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file or a model folder.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to write.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// Sequences at once, each with a prompt of its own; more than one go through the engine that serves.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// How keys and values are kept: f32, f16 or int8; the last two go through the engine as well.
    #[arg(long, value_name = "KIND", default_value = "f32", value_parser = crate::serve::kept)]
    kv: PagedKind,
    /// Threads of the kernels; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured. Speeds are tokens of all sequences per second of time that passed; the two costs are processor time,
/// which a busy machine changes less.
#[derive(Serialize)]
struct Measured {
    prefill_tok_s: f64,
    /// Nothing if all was written by the time that the last sequence had its first token.
    decode_tok_s: Option<f64>,
    /// Until every sequence has its first token.
    ttft_ms: f64,
    rss_mb: f64,
    threads: usize,
    batch: usize,
    load_ms: f64,
    prefill_cpu_ms_per_token: Option<f64>,
    decode_cpu_ms_per_token: Option<f64>,
}

/// One of the two halves of the work.
struct Part {
    tokens: usize,
    ms: f64,
    cpu_ms: Option<f64>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    vela_nn::threads::set(args.threads);
    let clock = MonotonicClock::new();
    let start = clock.now();
    let decoder = model::load(&args.model)?.decoder;
    let load_ms = clock.now().secs_since(start) * 1e3;
    // Whatever is made at a first use is made before the clock runs.
    let prompt = prompt(args, &decoder, 0);
    Session::new(decoder.clone(), 8)?.read(&prompt[..prompt.len().min(4)], 1)?;
    let ([read, wrote], rss) = match (args.batch, args.kv) {
        (1, PagedKind::F32) => one(args, decoder)?,
        _ => several(args, decoder)?,
    };
    let measured = Measured {
        prefill_tok_s: read.tokens as f64 / read.ms * 1e3,
        decode_tok_s: (wrote.tokens > 0).then(|| wrote.tokens as f64 / wrote.ms * 1e3),
        ttft_ms: read.ms,
        rss_mb: rss.context("the resident memory is not to be had on this system")?,
        threads: vela_nn::threads::current(),
        batch: args.batch as usize,
        load_ms,
        prefill_cpu_ms_per_token: read.cpu_ms.map(|ms| ms / read.tokens as f64),
        decode_cpu_ms_per_token: wrote.cpu_ms.filter(|_| wrote.tokens > 0).map(|ms| ms / wrote.tokens as f64),
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    println!("reading   {:8.1} tokens/s", measured.prefill_tok_s);
    match measured.decode_tok_s {
        Some(rate) => println!("writing   {rate:8.1} tokens/s, {} sequence(s) at once", measured.batch),
        None => println!("writing   too short to be measured with {} sequences at once", measured.batch),
    }
    println!("first token after {:.0} ms; loaded in {load_ms:.0} ms", measured.ttft_ms);
    println!("{:.0} MB resident, {} thread(s)", measured.rss_mb, measured.threads);
    Ok(())
}

/// Numbers that lie far apart, so that no two neighbours are alike; another prompt for each sequence.
fn prompt(args: &Args, decoder: &Decoder, sequence: usize) -> Vec<u32> {
    let vocab = decoder.config().vocab;
    (0..args.prompt_tokens as usize)
        .map(|i| ((i + 1) * 7919 + sequence * 104_729) % vocab)
        .map(|id| id as u32)
        .collect()
}

/// One sequence by itself; and the memory that is resident at the end.
fn one(args: &Args, decoder: Arc<Decoder>) -> Result<([Part; 2], Option<f64>)> {
    let ids = prompt(args, &decoder, 0);
    let count = args.decode_tokens as usize;
    let last = |logits: Vec<Vec<f32>>| match logits.last() {
        Some(logits) => Ok(best(logits)?),
        None => bail!("the model gave no logits"),
    };
    let mut session = Session::new(decoder, ids.len() + count + 1)?;
    let watch = Watch::start();
    let mut next = last(session.read(&ids, 1)?)?;
    let read = watch.part(ids.len());
    let watch = Watch::start();
    for _ in 0..count {
        next = last(session.read(&[next], 1)?)?;
    }
    Ok(([read, watch.part(count)], resident_mb()))
}

/// Several at once, through the engine: read until the last has its first token; what is written from then on counts.
fn several(args: &Args, decoder: Arc<Decoder>) -> Result<([Part; 2], Option<f64>)> {
    let (batch, count) = (args.batch as usize, args.decode_tokens as usize);
    let positions = args.prompt_tokens as usize + count + 1;
    let block_bytes = decoder.config().cache_shape(args.kv).block_bytes();
    let config = EngineConfig {
        cache_bytes: (positions.div_ceil(BLOCK) + 1) * batch * block_bytes,
        kind: args.kv,
        max_running: batch,
        context: positions,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let clock = Arc::new(MonotonicClock::new());
    let engine = Engine::start(decoder.clone(), config, Arc::new(move || clock.now().0))?;
    let watch = Watch::start();
    let submit = |sequence| Ok(engine.submit(Request::new(&prompt(args, &decoder, sequence), count))?);
    let mut answers = (0..batch).map(submit).collect::<Result<Vec<Answer>>>()?;
    for answer in &mut answers {
        match answer.next_blocking() {
            Some(Event::Token(_)) => {}
            _ => bail!("a sequence ended before its first token"),
        }
    }
    let read = watch.part(args.prompt_tokens as usize * batch);
    let (watch, before) = (Watch::start(), engine.metrics().generated_tokens);
    for answer in answers {
        answer.wait();
    }
    let wrote = engine.metrics().generated_tokens - before;
    Ok(([read, watch.part(wrote as usize)], resident_mb()))
}

/// Time that passes, of the wall and of the processor.
struct Watch {
    clock: MonotonicClock,
    start: Stamp,
    busy: Option<f64>,
}

impl Watch {
    fn start() -> Self {
        let clock = MonotonicClock::new();
        Self { start: clock.now(), clock, busy: processor_ms() }
    }

    fn part(&self, tokens: usize) -> Part {
        Part { tokens, ms: self.clock.now().secs_since(self.start) * 1e3, cpu_ms: since(self.busy) }
    }
}
