//! `vela train vlm`: the small VLM from questions about the simulator's pictures. Of a run that names parts, see
//! `adapt_vlm`.

use crate::album::{TabletopAlbum, words};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use vela_nn::{Device, Tensor, threads};
use vela_policy::VlaPolicy;
use vela_train::vlm::{Album, Folder, VlmReport, VlmTrainConfig, VlmTrainer, tokenizer};

/// Train the small VLM, or what joins given parts to one. Stop it at any time; the same command takes it up again.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a TOML file.
    #[arg(long, default_value = "configs/train/vlm.toml")]
    pub config: PathBuf,
    /// Where pictures, checkpoints and the exported model go.
    #[arg(long, default_value = "out/tabletop-vlm")]
    pub out: PathBuf,
    /// Stop after this many steps in all (the run's own number by default).
    #[arg(long)]
    pub steps: Option<usize>,
    /// Threads; the result does not depend on them. 0: as many as there are.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Steps whose counts are put together in the log.
const TOGETHER: usize = 50;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    threads::set(args.threads);
    if crate::adapt_vlm::is_meant(&args.config) {
        return crate::adapt_vlm::run(args);
    }
    let config = VlmTrainConfig::load(&args.config)?;
    let (tower, mut tensors) = tower(&config.tower)?;
    if let Some(start) = &config.start {
        tensors = Folder::tensors(start).with_context(|| start.display().to_string())?;
    }
    let folder = Folder::new(&tower, &config.model, &tokenizer(&words())?)?;
    let album = TabletopAlbum::of_training(&args.out.join("album"), config.episodes as u64)?;
    let mut trainer = VlmTrainer::new(&config, folder, &tensors)?;
    let state = args.out.join("state.safetensors");
    if state.exists() {
        trainer.resume(&state)?;
        eprintln!("taken up at step {}", trainer.steps());
    }
    eprintln!("{} parameters, {} pictures", trainer.parameters(), album.count());
    let last = args.steps.unwrap_or(usize::MAX).min(config.steps);
    let bar = ProgressBar::new(last as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left  {msg}")?);
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(args.out.join("log.jsonl"))?;
    let mut sum = VlmReport::default();
    while trainer.steps() < last {
        let report = trainer.step(&album)?;
        bar.set_position(report.step as u64);
        sum.loss += report.loss / TOGETHER as f32;
        (sum.step, sum.learning_rate) = (report.step, report.learning_rate);
        add(&mut sum.right, report.right);
        if report.step % TOGETHER == 0 {
            writeln!(log, "{}", serde_json::to_string(&sum)?)?;
            let (right, all) = sum.right.values().fold((0, 0), |s, (r, a)| (s.0 + r, s.1 + a));
            bar.set_message(format!("loss {:.4}, {right} of {all} right", sum.loss));
            sum = VlmReport::default();
        }
        if report.step % config.checkpoint_every == 0 || report.step == last {
            trainer.save(&state)?;
            let model = args.out.join("model");
            trainer.export(&model)?;
            std::fs::write(model.join("simulator.txt"), format!("{}\n", vela_sim::fingerprint()?))?;
        }
    }
    bar.finish_and_clear();
    println!("{} after {} steps", args.out.join("model").display(), trainer.steps());
    Ok(())
}

fn add(sum: &mut BTreeMap<String, (usize, usize)>, right: BTreeMap<String, (usize, usize)>) {
    for (kind, (whole, all)) in right {
        let counts = sum.entry(kind).or_default();
        *counts = (counts.0 + whole, counts.1 + all);
    }
}

/// The vision tower of a policy folder: what it is, and its tensors as `vision.*`.
fn tower(dir: &Path) -> Result<(vela_vision::VisionConfig, HashMap<String, Tensor>)> {
    let policy = VlaPolicy::load(dir)?;
    let path = dir.join("model.safetensors");
    let file =
        candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| path.display().to_string())?;
    let ours = |name: String| Some(format!("vision.{}", name.split_once(".vision_model.")?.1));
    let tensors = file.into_iter().filter_map(|(name, tensor)| Some((ours(name)?, tensor))).collect();
    Ok((policy.config().vision.clone(), tensors))
}
