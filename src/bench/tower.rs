//! `vela bench tower`: pictures through a vision encoder, beside what the machine can do at most.

use super::{processor_ms, since};
use crate::stats::quantile;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::Serialize;
use std::path::{Path, PathBuf};
use vela_embodiment::{Clock, MonotonicClock};
use vela_llm::trace::config_json;
use vela_nn::parity::compare;
use vela_nn::{Weights, peaks, random};
use vela_policy::{Storage, cost};
use vela_vision::Vit;

#[derive(clap::Args)]
pub struct Args {
    /// A folder of one encoder as the `transformers` library saves it: config.json and model.safetensors.
    #[arg(long)]
    model: PathBuf,
    /// A safetensors file with `in.pixel_values` [b, 3, h, w] and, if they are to be compared, `out.last_hidden_state`;
    /// without it one picture of noise.
    #[arg(long)]
    golden: Option<PathBuf>,
    /// How matrices are kept.
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16", "int8"])]
    dtype: String,
    /// Runs to measure, after one that does not count.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Threads of the kernels; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured, of all pictures of one run together.
#[derive(Serialize)]
struct Measured {
    tower_ms: Vec<f64>,
    p50_ms: f64,
    cpu_ms: Option<f64>,
    giga_macs: f64,
    /// Of what the threads' multiply-add units could do at most in float32, or in eight bits if `dtype` says so. (A processor
    /// that multiplies bfloat16 in pairs can do twice as many of those.)
    peak_share: f64,
    pictures: usize,
    dtype: &'static str,
    threads: usize,
    /// Between the last hidden state and the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    cosine: Option<f32>,
    /// The largest difference, over the reference's spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_abs_over_spread: Option<f32>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    vela_nn::threads::set(args.threads);
    let storage = Storage::from_name(&args.dtype)?;
    let tower = Vit::whole(&storage.of_tower(Weights::load_dir(&args.model)?)?, &config_json(&args.model)?)?;
    let (pixels, want) = inputs(args.golden.as_deref(), &tower)?;
    let pictures = pixels.dim(0)?;
    let peaks = peaks::measure();
    let per_core = if storage == Storage::Int8 { peaks.integer_macs } else { peaks.float_macs };
    let macs = pictures as f64 * cost::tower(tower.config(), tower.config().layers);

    let clock = MonotonicClock::new();
    let got = tower.forward(&pixels)?;
    let compared = want.map(|want| compare("last_hidden_state", &got, &want)).transpose()?;
    let busy = processor_ms();
    let mut times = Vec::new();
    for _ in 0..args.runs {
        let start = clock.now();
        tower.forward(&pixels)?;
        times.push(clock.now().secs_since(start) * 1e3);
    }
    let threads = vela_nn::threads::current();
    let p50_ms = quantile(&times, 0.5);
    let measured = Measured {
        peak_share: macs / (p50_ms / 1e3) / (per_core * threads as f64),
        tower_ms: times,
        p50_ms,
        cpu_ms: since(busy).map(|ms| ms / f64::from(args.runs)),
        giga_macs: macs / 1e9,
        pictures,
        dtype: storage.name(),
        threads,
        cosine: compared.as_ref().map(|stage| stage.cosine),
        max_abs_over_spread: compared.as_ref().map(|stage| stage.max_abs_over_spread),
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let share = measured.peak_share * 100.0;
    println!("{p50_ms:.1} ms for {pictures} picture(s), {share:.0} % of the peak of {threads} thread(s)");
    if let Some(stage) = compared {
        let (cosine, off) = (stage.cosine, stage.max_abs_over_spread);
        println!("cosine {cosine:.6} to the reference, {off:.1e} of its spread at worst");
    }
    Ok(())
}

/// Pixels to read and, if there are any, the tokens to compare with.
fn inputs(golden: Option<&Path>, tower: &Vit) -> Result<(Tensor, Option<Tensor>)> {
    let Some(path) = golden else {
        let (channels, edge) = (tower.config().channels, tower.config().image_size);
        return Ok((random::normal(0, "pixels", (1, channels, edge, edge))?, None));
    };
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let pixels = tensors.remove("in.pixel_values");
    let pixels = pixels.with_context(|| format!("{}: expected in.pixel_values", path.display()))?;
    Ok((pixels, tensors.remove("out.last_hidden_state")))
}
