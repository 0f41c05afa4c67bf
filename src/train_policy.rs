//! `vela train policy`: a policy that somebody trained learns from a recorded dataset.

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use vela_embodiment::Embodiment;
use vela_episodes::{Dataset, SI_UNITS};
use vela_nn::threads;
use vela_policy::VlaParts;
use vela_train::finetune::{
    Finetune, FinetuneConfig, FinetuneReport, Moments, PictureQuestions, RecordedMoments, TakenFrom, embody,
    statistics,
};

/// Fine-tune a policy folder on a LeRobot dataset. Stop it at any time; the same command takes it up again.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a TOML file.
    #[arg(long, default_value = "configs/train/finetune.toml")]
    config: PathBuf,
    /// The policy folder to begin with, in place of the run's.
    #[arg(long)]
    base: Option<PathBuf>,
    /// The dataset, in place of the run's.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where checkpoints, the policy and the adapter go.
    #[arg(long, default_value = "out/finetune")]
    out: PathBuf,
    /// Stop after this many steps in all (the run's own number by default).
    #[arg(long)]
    steps: Option<usize>,
    /// Threads; the result does not depend on them. 0: as many as there are.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Serialize)]
struct Learnt {
    steps: usize,
    parameters: usize,
    frames: usize,
    /// Mean loss of the last steps, at most a hundred.
    loss: Option<f32>,
    policy: PathBuf,
    adapter: Option<PathBuf>,
}

/// Steps whose loss is put together.
const TOGETHER: usize = 100;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    threads::set(args.threads);
    let mut config = FinetuneConfig::load(&args.config)?;
    config.base = args.base.clone().unwrap_or(config.base);
    config.data = args.data.clone().unwrap_or(config.data);
    let dataset = Dataset::open(&config.data)?;
    let robot = robot(&dataset)?;
    let moments = RecordedMoments::new(&dataset)?;
    let units = dataset.units().unwrap_or(SI_UNITS);
    if units != SI_UNITS && [config.statistics, config.embodiment] == [TakenFrom::Checkpoint; 2] {
        eprintln!(
            "the dataset is in {units}: the base's statistics must be of the same, or statistics = 'dataset'"
        );
    }
    if config.embodiment == TakenFrom::Dataset {
        let begun = args.out.join("begun");
        if !begun.exists() {
            std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
            embody(&config.base, &robot, &moments, &moments.sentences(), config.seed, &begun)?;
        }
        config.base = begun;
    }
    let mut parts = VlaParts::open(&config.base, &robot, config.frozen.into())?;
    if config.statistics == TakenFrom::Dataset {
        let (space, horizon) = (parts.config().space.clone(), parts.config().horizon);
        parts.set_statistics(statistics(&moments, &space, horizon)?)?;
    }
    let mut run = Finetune::new(&config, parts)?;
    keep_apart(&config.base, &args.out)?;
    if let Some(own) = &config.questions {
        run.ask(Box::new(PictureQuestions::load(&own.data)?))?;
    }
    let state = args.out.join("state.safetensors");
    if state.exists() {
        run.resume(&state)?;
        eprintln!("taken up at step {}", run.steps());
    }
    let (episodes, all) = (moments.episodes(), dataset.len());
    eprintln!(
        "{} numbers learn from {} frames of {episodes} episodes ({} failed ones left out)",
        run.parameters(),
        moments.count(),
        all - episodes
    );
    let last = args.steps.unwrap_or(usize::MAX).min(config.steps);
    let bar = ProgressBar::new(last as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left  {msg}")?);
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(args.out.join("log.jsonl"))?;
    let mut losses = Vec::new();
    while run.steps() < last {
        let report: FinetuneReport = run.step(&moments)?;
        bar.set_position(report.step as u64);
        bar.set_message(format!("loss {:.4}", report.loss));
        losses.push(report.loss);
        writeln!(log, "{}", serde_json::to_string(&report)?)?;
        if report.step.is_multiple_of(config.checkpoint_every) || report.step == last {
            run.save(&state)?;
            run.export(&args.out)?;
        }
    }
    bar.finish_and_clear();
    let newest = losses.get(losses.len().saturating_sub(TOGETHER)..).unwrap_or_default();
    let adapter = args.out.join("adapter");
    let learnt = Learnt {
        steps: run.steps(),
        parameters: run.parameters(),
        frames: moments.count(),
        loss: (!newest.is_empty()).then(|| newest.iter().sum::<f32>() / newest.len() as f32),
        policy: args.out.join("policy"),
        adapter: adapter.is_dir().then_some(adapter),
    };
    if args.json {
        println!("{}", serde_json::to_string(&learnt)?);
        return Ok(());
    }
    println!("{} after {} steps", learnt.policy.display(), learnt.steps);
    if let Some(loss) = learnt.loss {
        println!("loss {loss:.4} over the last {} steps", newest.len());
    }
    Ok(())
}

/// Refuses to write the policy into the folder that it is begun from, or one into the other.
fn keep_apart(base: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let base = base.canonicalize().with_context(|| format!("reading {}", base.display()))?;
    let policy = out.canonicalize().with_context(|| format!("reading {}", out.display()))?.join("policy");
    if policy.starts_with(&base) || base.starts_with(&policy) {
        bail!(
            "--out {}: its policy would lie over the base {}: expected another folder",
            out.display(),
            base.display()
        );
    }
    Ok(())
}

/// The robot that a dataset describes.
fn robot(dataset: &Dataset) -> Result<Embodiment> {
    let Some(own) = dataset.embodiment() else {
        bail!(
            "{}: the dataset does not describe its robot (no meta/embodiment.json), so that nobody knows its units: \
             expected one that vela recorded",
            dataset.folder().display()
        );
    };
    // Descriptions in datasets carry no URDF, which a policy does not need.
    Ok(own.clone())
}
