//! `vela bench vla`: one chunk of actions of a policy, stage by stage, beside what the machine can do at most.

use super::{processor_ms, resident_mb};
use crate::stats::quantile;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use vela_embodiment::{Clock, MonotonicClock};
use vela_nn::peaks;
use vela_policy::cost::Cost;
use vela_policy::quantised::ActionError;
use vela_policy::stages::{Setting, Stages, of_arch, of_folder};
use vela_policy::storage::form_of;
use vela_policy::{Storage, arch};

#[derive(clap::Args)]
pub struct Args {
    /// A policy folder.
    #[arg(long, conflicts_with = "arch", required_unless_present = "arch")]
    model: Option<PathBuf>,
    /// A published shape with made-up weights.
    #[arg(long, value_parser = arch::KNOWN)]
    arch: Option<String>,
    /// Cameras; 2 if the policy does not say (1 of diffusion and openvla).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    views: Option<u32>,
    /// Denoising steps; the policy's own if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// How matrices are kept: eight bits meet activations in eight bits. f32 unless the folder itself is in fewer bits.
    #[arg(long, value_parser = ["f32", "bf16", "int8"])]
    dtype: Option<String>,
    /// Chunks to measure, after one that does not count.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Measure too how far the actions are from those with matrices in float32, on the same inputs.
    #[arg(long)]
    error: bool,
    /// Threads of the kernels; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Milliseconds are medians, but for the 99 % quantile of whole chunks and for processor time, which is a mean and which a
/// busy machine changes less. Shares are multiply-adds per second over what the
/// threads could do together: in float32, or in eight bits where weights are kept so.
#[derive(Serialize)]
struct Measured {
    vision_ms: f64,
    prefix_ms: f64,
    denoise_ms: f64,
    chunk_ms: Quantiles,
    chunk_cpu_ms: Option<f64>,
    rss_mb: f64,
    peak_share: f64,
    stage_shares: Shares,
    giga_macs: f64,
    dtype: String,
    threads: usize,
    chunks: u32,
    load_ms: f64,
    /// Over the spread of the actions.
    #[serde(skip_serializing_if = "Option::is_none")]
    action_error: Option<ActionError>,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

#[derive(Serialize)]
struct Shares {
    vision: f64,
    prefix: f64,
    denoise: f64,
}

pub fn run(args: &Args) -> Result<()> {
    vela_nn::threads::set(args.threads);
    let measured = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let Measured { stage_shares: shares, chunk_ms, .. } = &measured;
    for (stage, ms, share) in [
        ("vision", measured.vision_ms, shares.vision),
        ("prefix", measured.prefix_ms, shares.prefix),
        ("denoise", measured.denoise_ms, shares.denoise),
        ("chunk", chunk_ms.p50, measured.peak_share),
    ] {
        println!("{stage:<8} {ms:9.1} ms  {:5.1} % of the machine's peak", share * 100.0);
    }
    println!("99 % of {} chunks within {:.1} ms", measured.chunks, chunk_ms.p99);
    if let Some(ms) = measured.chunk_cpu_ms {
        println!("{ms:.0} ms of processor time a chunk");
    }
    if let Some(ActionError { rms, worst }) = measured.action_error {
        println!("actions move by {:.3} % of their spread, {:.3} % at worst", rms * 100.0, worst * 100.0);
    }
    println!(
        "{:.1} billion multiply-adds a chunk, matrices in {}, {} thread(s), {:.0} MB resident, ready in {:.0} ms",
        measured.giga_macs, measured.dtype, measured.threads, measured.rss_mb, measured.load_ms
    );
    Ok(())
}

fn measure(args: &Args) -> Result<Measured> {
    let clock = MonotonicClock::new();
    let form = args.model.as_deref().map(form_of).transpose()?.flatten();
    let (storage, dtype) = match (&args.dtype, form) {
        (None, Some(form)) => (Storage::Plain, form),
        (dtype, _) => {
            let storage = Storage::from_name(dtype.as_deref().unwrap_or("f32"))?;
            (storage, storage.name().to_owned())
        }
    };
    let setting =
        Setting { views: args.views.map(|n| n as usize), steps: args.steps.map(|n| n as usize), storage };
    let start = clock.now();
    let make = |setting: &Setting| match (&args.model, &args.arch) {
        (Some(dir), _) => Ok(of_folder(dir, setting)?),
        (None, Some(name)) => Ok(of_arch(name, setting)?),
        (None, None) => bail!("expected --model or --arch"),
    };
    let mut network = make(&setting)?;
    let load_ms = clock.now().secs_since(start) * 1e3;
    let peaks = peaks::measure();
    let threads = vela_nn::threads::current();
    let per_core = if dtype == Storage::Int8.name() { peaks.integer_macs } else { peaks.float_macs };
    let peak = per_core * threads as f64;

    // Whatever is made at a first use is made before it counts.
    chunk(&clock, network.as_mut())?;
    let busy = processor_ms();
    let times: Vec<[f64; 3]> =
        (0..args.chunks).map(|_| chunk(&clock, network.as_mut())).collect::<Result<_>>()?;
    let busy = processor_ms().zip(busy).map(|(now, before)| (now - before) / f64::from(args.chunks));
    let stage = |i: usize| quantile(&times.iter().map(|t| t[i]).collect::<Vec<_>>(), 0.5);
    let whole: Vec<f64> = times.iter().map(|t| t.iter().sum()).collect();
    let [vision_ms, prefix_ms, denoise_ms] = [stage(0), stage(1), stage(2)];
    let chunk_ms = Quantiles { p50: quantile(&whole, 0.5), p99: quantile(&whole, 0.99) };
    let share = |macs: f64, ms: f64| if macs > 0.0 { macs / (ms / 1e3) / peak } else { 0.0 };
    let cost: Cost = network.cost();
    let rss_mb = resident_mb().context("the resident memory is not to be had on this system")?;
    let action_error = match args.error {
        true => {
            let got = network.answer()?;
            // One at a time: a network in float32 is large.
            drop(network);
            let mut exact = make(&Setting { storage: Storage::Float32, ..setting })?;
            chunk(&clock, exact.as_mut())?;
            Some(ActionError::between(&exact.answer()?, &got)?)
        }
        false => None,
    };
    Ok(Measured {
        peak_share: share(cost.total(), chunk_ms.p50),
        stage_shares: Shares {
            vision: share(cost.vision, vision_ms),
            prefix: share(cost.prefix, prefix_ms),
            denoise: share(cost.denoise, denoise_ms),
        },
        vision_ms,
        prefix_ms,
        denoise_ms,
        chunk_ms,
        chunk_cpu_ms: busy,
        rss_mb,
        giga_macs: cost.total() / 1e9,
        dtype,
        threads,
        chunks: args.chunks,
        load_ms,
        action_error,
    })
}

/// Milliseconds of each stage of one chunk.
fn chunk(clock: &MonotonicClock, network: &mut dyn Stages) -> Result<[f64; 3]> {
    let start = clock.now();
    network.see()?;
    let seen = clock.now();
    network.read()?;
    let read = clock.now();
    network.answer()?;
    Ok([seen.secs_since(start), read.secs_since(seen), clock.now().secs_since(read)].map(|secs| secs * 1e3))
}
