//! Policies in fewer bits: what their actions are measured on, and the table.

use super::Args;
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, safetensors};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use vela_embodiment::InferOptions;
use vela_episodes::Dataset;
use vela_policy::quantise::{Report, Settings, quantise};
use vela_policy::quantised::{actions_on_golden, actions_on_noise};
use vela_policy::{Choices, Storage, open};
use vela_train::finetune::{Moments, RecordedMoments};

/// Moments of a dataset that are looked at.
const MOMENTS: usize = 16;

/// Writes the folder and says what came of it.
pub fn make(args: &Args) -> Result<()> {
    let form = match args.bits.as_str() {
        "8" => Storage::Int8,
        "16" => Storage::Bf16,
        _ => bail!("--bits: expected 8 or 16 of a policy, got {}", args.bits),
    };
    let settings = Settings { form, max_error: args.max_error, most_kept: args.most_kept };
    let report = match &args.on {
        None => write(args, &settings, &mut |dir| actions_on_noise(dir, Storage::Plain))?,
        Some(path) if path.join("meta/info.json").is_file() => {
            let recorded = Recorded::open(path)?;
            let refused = |e: anyhow::Error| vela_nn::Error::invalid(format!("{e:#}"));
            write(args, &settings, &mut |dir| recorded.actions(dir).map_err(refused))?
        }
        Some(path) => {
            let file = if path.is_dir() { path.join("golden.safetensors") } else { path.clone() };
            let golden = safetensors::load(&file, &Device::Cpu)
                .with_context(|| format!("{}: expected a reference run or a dataset", path.display()))?;
            write(args, &settings, &mut |dir| actions_on_golden(dir, &golden, Storage::Plain))?
        }
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(args, &report),
    }
    Ok(())
}

fn write(args: &Args, settings: &Settings, act: &mut vela_policy::quantise::Act) -> Result<Report> {
    let bar = ProgressBar::no_length()
        .with_style(ProgressStyle::with_template("{msg:>16} {wide_bar} {pos}/{len}, {elapsed}")?);
    let done = quantise(&args.model, &args.out, settings, act, &mut |what, done, all| {
        bar.set_length(all as u64);
        bar.set_message(what.to_owned());
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// Moments of a dataset, and how far its actions reach.
struct Recorded {
    dataset: Dataset,
    moments: RecordedMoments,
    /// Standard deviation of each joint's recorded targets, rad or m.
    spread: Vec<f64>,
}

impl Recorded {
    fn open(path: &Path) -> Result<Self> {
        let dataset = Dataset::open(path)?;
        let moments = RecordedMoments::new(&dataset)?;
        let mut rows = Vec::new();
        for at in 0..moments.count() {
            rows.extend(moments.numbers(at, 1)?.actions);
        }
        let joints = rows.first().map_or(0, Vec::len);
        let count = rows.len().max(1) as f64;
        let spread = |joint: usize| {
            let mean = rows.iter().map(|row| row[joint]).sum::<f64>() / count;
            (rows.iter().map(|row| (row[joint] - mean).powi(2)).sum::<f64>() / count).sqrt().max(1e-6)
        };
        Ok(Self { spread: (0..joints).map(spread).collect(), dataset, moments })
    }

    /// What the policy in a folder does at moments that are evenly spread, in standard deviations, `[moments *
    /// horizon, joints]`.
    fn actions(&self, dir: &Path) -> Result<Tensor> {
        let robot = self.dataset.embodiment().context("the dataset does not describe its robot")?;
        let mut policy = open(dir, robot, &Choices::default())?;
        let (count, mut values) = (self.moments.count(), Vec::new());
        let wanted = MOMENTS.min(count);
        for k in 0..wanted {
            let seen = self.moments.moment(k * count / wanted, 1)?.observation;
            let chunk = policy.infer(&[seen], &InferOptions { seed: k as u64, ..InferOptions::default() })?;
            for row in &chunk.actions {
                values.extend(row.iter().zip(&self.spread).map(|(x, spread)| (x / spread) as f32));
            }
        }
        let joints = self.spread.len();
        Ok(Tensor::from_vec(values.clone(), (values.len() / joints.max(1), joints), &Device::Cpu)?)
    }
}

fn print(args: &Args, report: &Report) {
    let [was, now] = report.bytes.map(|bytes| bytes as f64 / 1e6);
    println!("{}: {now:.1} MB, from {was:.1}; weights in {}", args.out.display(), report.form);
    println!("{:<64} {:>12} {:>8}", "matrices", "numbers", "alone");
    for group in &report.groups {
        let kept = if group.kept { "  kept as stored" } else { "" };
        println!("{:<64} {:>12} {:>6.3} %{kept}", group.name, group.numbers, group.alone * 1e2);
    }
    println!(
        "actions move by {:.3} % of their spread ({:.3} % at worst); with nothing kept {:.3} % ({:.3} %)",
        report.error.rms * 1e2,
        report.error.worst * 1e2,
        report.plain.rms * 1e2,
        report.plain.worst * 1e2
    );
}
