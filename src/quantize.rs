//! `vela quantize`: a text model's weights in few bits, and what that costs.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use vela_llm::Tokenizer;
use vela_llm::quantise::{Bits, Sample, Settings, quantise};
use vela_nn::threads;

/// What calibration reads unless it is told otherwise.
const TEXT: &str = include_str!("calibration.txt");

/// Write a text model with its weights in 8 or 4 bits, into a folder that loads wherever the model does.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder with safetensors.
    #[arg(long)]
    model: PathBuf,
    /// The folder to write; it must not exist yet.
    #[arg(long)]
    out: PathBuf,
    /// Bits of a weight.
    #[arg(long, value_parser = ["4", "8"])]
    bits: String,
    /// Weights of a row that share their levels: a multiple of 32.
    #[arg(long, default_value_t = 32)]
    group: usize,
    /// A text of the kind that the model will read. Its last quarter measures the loss; the rest calibrates.
    #[arg(long)]
    calibrate: Option<PathBuf>,
    /// Refuse to write if the loss grows by more, in nats per token.
    #[arg(long, default_value_t = 0.2, allow_negative_numbers = true)]
    max_loss_increase: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Threads; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let count = if args.threads == 0 { threads::current() } else { args.threads };
    threads::with_threads(count, || make(args))
}

fn make(args: &Args) -> Result<()> {
    let bits = if args.bits == "4" { Bits::Four } else { Bits::Eight };
    let settings = Settings { bits, group: args.group, max_loss_increase: args.max_loss_increase };
    let text = match &args.calibrate {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let sample = Sample::read(&Tokenizer::load(&args.model.join("tokenizer.json"))?, &text)?;
    let bar = ProgressBar::no_length()
        .with_style(ProgressStyle::with_template("{msg:>16} {wide_bar} {pos}/{len}, {elapsed}")?);
    let done = quantise(&args.model, &args.out, &sample, &settings, &mut |what, done, all| {
        bar.set_length(all as u64);
        bar.set_message(what.to_owned());
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = done?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{}: {:.1} MB, from {:.1}; {} matrices in {} bits",
        args.out.display(),
        megabytes(report.bytes[1]),
        megabytes(report.bytes[0]),
        report.matrices,
        args.bits
    );
    println!(
        "perplexity {:.3}, before {:.3}; loss {:.4} nats per token, before {:.4} ({} tokens)",
        report.perplexity[1], report.perplexity[0], report.nll[1], report.nll[0], report.evaluation_tokens
    );
    println!(
        "squared error of the layers {:.2} of plain rounding's ({} tokens; factors folded {}, kept {})",
        report.error_over_plain, report.calibration_tokens, report.factors[0], report.factors[1]
    );
    Ok(())
}
