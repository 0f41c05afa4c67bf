//! `vela bench`: how fast this machine runs a model, and what it could do at most.

mod vla;

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};
use vela_embodiment::{Clock, MonotonicClock, Stamp};
use vela_llm::generate::Session;
use vela_llm::model;
use vela_llm::sampling::best;

/// Measure speed on this machine.
#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A text model: reading a prompt, writing tokens.
    Llm(Llm),
    /// A policy: one chunk of actions, stage by stage.
    Vla(vla::Args),
    /// The likeliest continuation of prompts given as token ids, with logits: for comparison with another runtime.
    Greedy(Greedy),
    /// What one core can do at most: bytes from memory, float32 and eight-bit multiply-adds, per second.
    Machine,
}

#[derive(ClapArgs)]
struct Llm {
    /// A GGUF file or a model folder.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to write.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// Threads of the kernels; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(ClapArgs)]
struct Greedy {
    /// A GGUF file or a model folder.
    #[arg(long)]
    model: PathBuf,
    /// A JSON file with a list of prompts, each a list of token ids.
    #[arg(long)]
    prompts: PathBuf,
    /// Tokens to write after each.
    #[arg(long, default_value_t = 32)]
    count: usize,
    /// Threads of the kernels; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// A continuation. The margin of a token is how far its logit is above the second best.
#[derive(Serialize)]
struct Continued {
    ids: Vec<u32>,
    margins: Vec<f32>,
    first_logits: Vec<f32>,
}

/// What was measured. Speeds are per second of time that passed; the two costs are processor time, which a busy machine
/// changes less.
#[derive(Serialize)]
struct Measured {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    ttft_ms: f64,
    rss_mb: f64,
    threads: usize,
    load_ms: f64,
    prefill_cpu_ms_per_token: Option<f64>,
    decode_cpu_ms_per_token: Option<f64>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Llm(args) => {
            vela_nn::threads::set(args.threads);
            let measured = llm(args)?;
            if args.json {
                println!("{}", serde_json::to_string(&measured)?);
            } else {
                println!("reading   {:8.1} tokens/s", measured.prefill_tok_s);
                println!("writing   {:8.1} tokens/s", measured.decode_tok_s);
                println!(
                    "first token after {:.0} ms; loaded in {:.0} ms",
                    measured.ttft_ms, measured.load_ms
                );
                println!("{:.0} MB resident, {} thread(s)", measured.rss_mb, measured.threads);
            }
        }
        What::Vla(args) => vla::run(args)?,
        What::Greedy(args) => {
            vela_nn::threads::set(args.threads);
            println!("{}", serde_json::to_string(&greedy(args)?)?);
        }
        What::Machine => println!("{}", serde_json::to_string(&vela_nn::peaks::measure())?),
    }
    Ok(())
}

fn llm(args: &Llm) -> Result<Measured> {
    let clock = MonotonicClock::new();
    let milliseconds = |from: Stamp| clock.now().secs_since(from) * 1e3;
    let start = clock.now();
    let decoder = model::load(&args.model)?.decoder;
    let load_ms = milliseconds(start);
    let (prompt, count) = (args.prompt_tokens as usize, args.decode_tokens as usize);
    let vocab = decoder.config().vocab;
    // Numbers that lie far apart, so that no two neighbours are alike.
    let ids: Vec<u32> = (0..prompt).map(|i| ((i + 1) * 7919 % vocab) as u32).collect();
    let last = |logits: Vec<Vec<f32>>| match logits.last() {
        Some(logits) => Ok(best(logits)?),
        None => bail!("the model gave no logits"),
    };
    // Whatever is made at a first use is made before the clock runs.
    last(Session::new(decoder.clone(), 8)?.read(&ids[..ids.len().min(4)], 1)?)?;
    let mut session = Session::new(decoder, prompt + count + 1)?;

    let (start, busy) = (clock.now(), processor_ms());
    let mut next = last(session.read(&ids, 1)?)?;
    let (ttft_ms, prefill_cpu) = (milliseconds(start), since(busy));

    let (start, busy) = (clock.now(), processor_ms());
    for _ in 0..count {
        next = last(session.read(&[next], 1)?)?;
    }
    let (decode_ms, decode_cpu) = (milliseconds(start), since(busy));
    Ok(Measured {
        prefill_tok_s: prompt as f64 / ttft_ms * 1e3,
        decode_tok_s: count as f64 / decode_ms * 1e3,
        ttft_ms,
        rss_mb: resident_mb().context("the resident memory is not to be had on this system")?,
        threads: vela_nn::threads::current(),
        load_ms,
        prefill_cpu_ms_per_token: prefill_cpu.map(|ms| ms / prompt as f64),
        decode_cpu_ms_per_token: decode_cpu.map(|ms| ms / count as f64),
    })
}

fn greedy(args: &Greedy) -> Result<Vec<Continued>> {
    let text = std::fs::read_to_string(&args.prompts)
        .with_context(|| format!("cannot read {}", args.prompts.display()))?;
    let prompts: Vec<Vec<u32>> = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected a list of lists of token ids", args.prompts.display()))?;
    let decoder = model::load(&args.model)?.decoder;
    let one = |prompt: &Vec<u32>| -> Result<Continued> {
        let mut session = Session::new(decoder.clone(), prompt.len() + args.count)?;
        let mut read = |ids: &[u32]| -> Result<Vec<f32>> {
            session.read(ids, 1)?.pop().context("the model gave no logits")
        };
        let mut logits = read(prompt)?;
        let mut made = Continued { ids: Vec::new(), margins: Vec::new(), first_logits: logits.clone() };
        while made.ids.len() < args.count {
            let next = best(&logits)?;
            let first = logits[next as usize];
            let others = logits.iter().enumerate().filter(|(id, _)| *id != next as usize);
            let second = others.fold(f32::NEG_INFINITY, |most, (_, x)| most.max(*x));
            made.ids.push(next);
            made.margins.push(first - second);
            if made.ids.len() < args.count {
                logits = read(&[next])?;
            }
        }
        Ok(made)
    };
    prompts.iter().map(one).collect()
}

fn since(before: Option<f64>) -> Option<f64> {
    Some(processor_ms()? - before?)
}

/// Processor time of this process so far, to 10 ms (Linux).
fn processor_ms() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold spaces; user and system time are the 12th and 13th field after it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * 10.0)
}

/// Memory of this process that is resident now, in MB (Linux).
fn resident_mb() -> Option<f64> {
    let text = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
