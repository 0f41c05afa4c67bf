//! `vela quantize`: a text model's or a policy's weights in few bits, and what that costs.

mod policy;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use vela_llm::Tokenizer;
use vela_llm::quantise::{Bits, Sample, Settings, expect_text_decoder, quantise};
use vela_nn::threads;
use vela_policy::describe::is_policy;

/// What calibration reads unless it is told otherwise.
const TEXT: &str = include_str!("calibration.txt");

/// Write a text decoder or a policy with its weights in few bits, into a folder that loads wherever the model does.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder of a text decoder, or a policy folder, with safetensors.
    #[arg(long)]
    model: PathBuf,
    /// The folder to write; it must not exist yet.
    #[arg(long)]
    out: PathBuf,
    /// Bits of a weight: 4 or 8 of a text model, 8 or 16 (bf16) of a policy.
    #[arg(long, value_parser = ["4", "8", "16"])]
    bits: String,
    /// Weights of a row that share their levels: a multiple of 32.
    #[arg(long, default_value_t = 32)]
    group: usize,
    /// A text of the kind that the model will read. Its last quarter measures the loss; the rest calibrates.
    #[arg(long)]
    calibrate: Option<PathBuf>,
    /// Of a policy: what its actions are measured on, a reference run as `vela verify` takes it or a LeRobot dataset
    /// of its robot. Without it, noise, which is harder than pictures.
    #[arg(long)]
    on: Option<PathBuf>,
    /// Of a policy: refuse to write if its actions move by more of their spread (root mean square).
    #[arg(long, default_value_t = 0.01)]
    max_error: f64,
    /// Of a policy: the share of its numbers that may stay as they are, where they move the actions most.
    #[arg(long, default_value_t = 0.25)]
    most_kept: f64,
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
    threads::with_threads(count, || match is_policy(&args.model) {
        true => policy::make(args),
        false => make(args),
    })
}

fn make(args: &Args) -> Result<()> {
    expect_text_decoder(&args.model)?;
    let bits = match args.bits.as_str() {
        "4" => Bits::Four,
        "8" => Bits::Eight,
        _ => bail!("--bits: expected 4 or 8 of a text model, got {}", args.bits),
    };
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
