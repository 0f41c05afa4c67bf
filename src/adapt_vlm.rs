//! `vela train vlm` of a run with `parts`: a projector and an adapter between an encoder and a text model that stay.

use crate::train_vlm::Args;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::Path;
use vela_train::adapt::{AdaptConfig, AdaptReport, Adaptation, Features, PictureSet};

/// Steps whose counts are put together in the log.
const TOGETHER: usize = 10;

/// Whether a run's file is of this kind: it names the folder of the parts.
pub fn is_meant(config: &Path) -> bool {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key("parts"))
}

/// Trains, and writes checkpoints and the model's folder.
pub fn run(args: &Args) -> Result<()> {
    let config = AdaptConfig::load(&args.config)?;
    let mut set = PictureSet::load(&config.data, "train")?;
    set.pictures.truncate(config.first_pictures.unwrap_or(usize::MAX));
    let mut adaptation = Adaptation::new(&config, &set)?;
    let bar = |count: usize, what: &str| -> Result<ProgressBar> {
        let style = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left  {{msg}}");
        Ok(ProgressBar::new(count as u64).with_style(ProgressStyle::with_template(&style)?))
    };
    let seen = bar(set.pictures.len(), "pictures")?;
    let features =
        Features::of(adaptation.parts(), &set, &args.out.join("features.safetensors"), &|| seen.inc(1))?;
    seen.finish_and_clear();
    let state = args.out.join("state.safetensors");
    if state.exists() {
        adaptation.resume(&state)?;
        eprintln!("taken up at step {}", adaptation.steps());
    }
    let (projector, adapter) = adaptation.parameters();
    eprintln!(
        "projector of {projector} parameters, adapter of {adapter}; {} pictures, {} questions",
        set.pictures.len(),
        set.questions()
    );
    let last = args.steps.unwrap_or(usize::MAX).min(config.steps);
    let steps = bar(last, "steps")?;
    let log = args.out.join("log.jsonl");
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut sum = AdaptReport::default();
    while adaptation.steps() < last {
        let report = adaptation.step(&set, &features)?;
        steps.set_position(report.step as u64);
        sum.loss += report.loss / TOGETHER as f32;
        (sum.step, sum.learning_rate) = (report.step, report.learning_rate);
        for (kind, (right, all)) in report.right {
            let counts = sum.right.entry(kind).or_default();
            *counts = (counts.0 + right, counts.1 + all);
        }
        if report.step % TOGETHER == 0 {
            writeln!(log, "{}", serde_json::to_string(&sum)?)?;
            let (right, all) = sum.right.values().fold((0, 0), |s, (r, a)| (s.0 + r, s.1 + a));
            steps.set_message(format!("loss {:.4}, {right} of {all} right", sum.loss));
            sum = AdaptReport::default();
        }
        if report.step % config.checkpoint_every == 0 || report.step == last {
            adaptation.save(&state)?;
            assemble(&config.parts, &adaptation, &args.out.join("model"))?;
        }
    }
    steps.finish_and_clear();
    println!("{} after {} steps", args.out.join("model").display(), adaptation.steps());
    Ok(())
}

/// The model's folder: the parts' files (linked where the disk allows it), projector and adapter.
fn assemble(parts: &Path, adaptation: &Adaptation, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(parts).with_context(|| parts.display().to_string())? {
        let entry = entry?;
        let (from, to) = (entry.path(), dir.join(entry.file_name()));
        if !to.exists() && std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        }
    }
    Ok(adaptation.export(dir)?)
}
