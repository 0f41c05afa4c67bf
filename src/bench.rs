//! `vela bench`: how fast this machine runs a model, and what it could do at most.

mod llm;
mod robot;
mod tower;
mod vla;
mod vlm;

use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};
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
    Llm(llm::Args),
    /// A model that sees: a picture and a question to the first word, the second question.
    Vlm(vlm::Args),
    /// A policy: one chunk of actions, stage by stage.
    Vla(vla::Args),
    /// What stands between a camera and a joint beside the model, and how well the control loop keeps time.
    Robot(robot::Args),
    /// A vision encoder: pictures to tokens.
    Tower(tower::Args),
    /// The likeliest continuation of prompts given as token ids, with logits: for comparison with another runtime.
    Greedy(Greedy),
    /// What one core can do at most: bytes from memory, float32 and eight-bit multiply-adds, per second.
    Machine,
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

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Llm(args) => llm::run(args)?,
        What::Vla(args) => vla::run(args)?,
        What::Vlm(args) => vlm::run(args)?,
        What::Robot(args) => robot::run(args)?,
        What::Tower(args) => tower::run(args)?,
        What::Greedy(args) => {
            vela_nn::threads::set(args.threads);
            println!("{}", serde_json::to_string(&greedy(args)?)?);
        }
        What::Machine => println!("{}", serde_json::to_string(&vela_nn::peaks::measure())?),
    }
    Ok(())
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
