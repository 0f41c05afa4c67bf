//! `vela train`: the tabletop policy from nothing: expert episodes, steps, DAgger rounds.

use crate::teacher::TabletopTeacher;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use vela_embodiment::{ActionSpace, Embodiment, Policy};
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::{DecoderConfig, Tokenizer};
use vela_nn::{Activation, NormConfig, RopeConfig, threads};
use vela_policy::{ExpertConfig, FlowConfig, Normaliser, VlaConfig, VlaPolicy};
use vela_sim::language::vocabulary;
use vela_sim::tasks::TaskKind;
use vela_train::batch::deltas;
use vela_train::{Driver, Lesson, Library, Report, Teacher, TrainConfig, Trainer};
use vela_vision::{Pooling, VisionConfig};

/// Train the tabletop policy. Stop it at any time; the same command takes it up again.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// The run: a TOML file.
    #[arg(long, default_value = "configs/train/tabletop.toml")]
    config: PathBuf,
    /// Where lessons, checkpoints and the exported policy go.
    #[arg(long, default_value = "out/tabletop")]
    out: PathBuf,
    /// Begin with the weights of this policy folder, of the same sizes and statistics, in place of random ones.
    #[arg(long)]
    init: Option<PathBuf>,
    /// Learn from the learner's episodes of an earlier run too: its folder of lessons.
    #[arg(long)]
    earlier: Option<PathBuf>,
    /// Make the expert's lessons and stop.
    #[arg(long)]
    lessons_only: bool,
    /// Stop after this many steps in all (the run's own number by default).
    #[arg(long)]
    steps: Option<usize>,
    /// Threads; the result does not depend on them. 0: as many as there are.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// What else can be trained.
#[derive(clap::Subcommand)]
enum Other {
    Policy(crate::train_policy::Args),
    Vlm(crate::train_vlm::Args),
}

/// Seeds of the glances: far from those of the episodes.
const GLANCES_FROM: u64 = 100_000;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.other {
        Some(Other::Policy(args)) => return crate::train_policy::run(args),
        Some(Other::Vlm(args)) => return crate::train_vlm::run(args),
        None => {}
    }
    threads::set(args.threads);
    let config = TrainConfig::load(&args.config)?;
    let embodiment = Embodiment::so101()?;
    let teacher = TabletopTeacher {
        embodiment: embodiment.clone(),
        horizon: config.horizon,
        execute: config.execute,
        randomised: config.randomised,
        tasks: TaskKind::ALL.to_vec(),
    };
    let lessons = args.out.join("lessons");
    std::fs::create_dir_all(&lessons).with_context(|| format!("creating {}", lessons.display()))?;
    let mut library = Library::default();
    let from = config.first_lesson;
    let experts = from..from + config.expert_lessons as u64;
    teach(&teacher, &lessons, "expert", experts, Who::Expert, &mut library)?;
    let glances = from + GLANCES_FROM..from + GLANCES_FROM + config.glances as u64;
    teach(&teacher, &lessons, "glance", glances, Who::Nobody, &mut library)?;
    if let Some(dir) = &args.earlier {
        let count = earlier(dir, &mut library)?;
        eprintln!("{count} lessons of the learner of {}", dir.display());
    }
    if args.lessons_only {
        println!("{} moments in {} lessons", library.len(), library.lessons().len());
        return Ok(());
    }
    let words = vocabulary()?;
    let tokenizer = Tokenizer::word_level(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let vla = match &args.init {
        Some(dir) => VlaConfig {
            horizon: config.horizon,
            execute: config.execute,
            ..VlaPolicy::load(dir)?.config().clone()
        },
        None if config.expert_only => bail!("expert_only: expected --init, a policy to begin with"),
        None => tabletop_vla(&config, &library, &tokenizer)?,
    };
    let mut trainer = Trainer::new(&config, &vla, &tokenizer, &embodiment)?;
    let state = args.out.join("state.safetensors");
    if state.exists() {
        trainer.resume(&state)?;
        eprintln!("taken up at step {}", trainer.steps());
    } else if let Some(dir) = &args.init {
        trainer.start_from(dir)?;
    }
    eprintln!("{} parameters, {} moments", trainer.parameters(), library.len());
    let curves = Curves::open(&args.out, trainer.steps())?;
    let last = args.steps.unwrap_or(usize::MAX).min(config.total_steps());
    let bar = ProgressBar::new(last as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left  {msg}")?);
    for round in 0..=config.dagger_rounds {
        if round > 0 {
            let first =
                from + config.expert_lessons as u64 + (round as u64 - 1) * config.dagger_lessons as u64;
            let seeds = first..first + config.dagger_lessons as u64;
            let student = trainer.student()?;
            let made = move || -> Box<dyn Policy> { Box::new(student.clone()) };
            teach(&teacher, &lessons, &format!("round-{round}"), seeds, Who::Student(&made), &mut library)?;
        }
        let until = (config.first_steps + round * config.round_steps).min(last);
        while trainer.steps() < until {
            let report = trainer.step(&library)?;
            bar.set_position(report.step as u64);
            if report.step % 10 == 0 {
                curves.add(&report)?;
                let parts = report.parts().map(|(name, value)| format!("  {name} {value:.4}"));
                bar.set_message(format!("loss {:.4}{}", report.loss, parts.collect::<String>()));
            }
            if report.step % config.checkpoint_every == 0 || report.step == until {
                trainer.save(&state)?;
                let policy = args.out.join("policy");
                trainer.export(&policy)?;
                std::fs::write(policy.join("simulator.txt"), format!("{}\n", vela_sim::fingerprint()?))?;
            }
        }
        if trainer.steps() >= last {
            break;
        }
    }
    bar.finish_and_clear();
    println!("{} after {} steps", args.out.join("policy").display(), trainer.steps());
    Ok(())
}

/// The run's curves, in two forms: `log.jsonl`, one line per ten steps, and `curves.rrd` for rerun.
struct Curves {
    log: PathBuf,
    recording: vela_viz::Curves,
}

impl Curves {
    /// Takes up the curves up to `step`; later points, of a run that was stopped before it saved, are dropped.
    fn open(out: &Path, step: usize) -> Result<Self> {
        let log = out.join("log.jsonl");
        let old = if log.exists() { std::fs::read_to_string(&log)? } else { String::new() };
        let kept: Vec<Report> = old
            .lines()
            .filter_map(|line| serde_json::from_str::<Report>(line).ok())
            .filter(|report| report.step <= step)
            .collect();
        std::fs::write(&log, "")?;
        let curves = Self { log, recording: vela_viz::Curves::open(&out.join("curves.rrd"))? };
        kept.iter().try_for_each(|report| curves.add(report))?;
        Ok(curves)
    }

    fn add(&self, report: &Report) -> Result<()> {
        let mut points = vec![
            ("loss", f64::from(report.loss)),
            ("gradient_norm", f64::from(report.gradient_norm)),
            ("learning_rate", report.learning_rate),
        ];
        points.extend(report.parts().map(|(name, value)| (name, f64::from(value))));
        self.recording.add(report.step, &points)?;
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.log)?;
        Ok(writeln!(file, "{}", serde_json::to_string(report)?)?)
    }
}

/// Who plays some lessons.
#[derive(Clone, Copy)]
enum Who<'a> {
    Expert,
    Nobody,
    /// Learners that this makes, one for each thread.
    Student(&'a (dyn Fn() -> Box<dyn Policy> + Sync)),
}

/// Makes the lessons of some seeds, or reads those that are there, and adds them in order.
fn teach(
    teacher: &TabletopTeacher,
    dir: &Path,
    name: &str,
    seeds: std::ops::Range<u64>,
    who: Who<'_>,
    library: &mut Library,
) -> Result<()> {
    let bar = ProgressBar::new(seeds.end - seeds.start)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} lessons ({prefix}), {eta} left")?)
        .with_prefix(name.to_owned());
    let cameras = &teacher.embodiment.cameras;
    let shape = [cameras.len(), cameras[0].height as usize, cameras[0].width as usize];
    let lessons: Vec<Lesson> = seeds
        .into_par_iter()
        .map_init(
            || match who {
                Who::Student(make) => Some(make()),
                _ => None,
            },
            |student, seed| -> Result<Lesson> {
                let path = dir.join(format!("{name}-{seed:06}.safetensors"));
                let lesson = if path.exists() {
                    Lesson::load(&path)?
                } else {
                    let driver = match (who, student) {
                        (_, Some(policy)) => Driver::Student(policy.as_mut()),
                        (Who::Nobody, _) => Driver::Nobody,
                        _ => Driver::Expert,
                    };
                    let lesson = threads::with_threads(1, || teacher.lesson(seed, driver))?;
                    lesson.save(&path, &shape)?;
                    lesson
                };
                bar.inc(1);
                Ok(lesson)
            },
        )
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    let (count, good) = (lessons.len(), lessons.iter().filter(|lesson| lesson.success).count());
    for lesson in lessons {
        match who {
            Who::Student(_) => library.add_student(lesson),
            Who::Expert | Who::Nobody => library.add_expert(lesson),
        }
    }
    match who {
        Who::Nobody => eprintln!("{name}: {count} first moments"),
        _ => eprintln!("{name}: {good} of {count} lessons ended in success"),
    }
    Ok(())
}

/// Adds the lessons of every DAgger round in `dir`, in order; says how many.
fn earlier(dir: &Path, library: &mut Library) -> Result<usize> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("round-")));
    paths.sort();
    for path in &paths {
        library.add_student(Lesson::load(path)?);
    }
    Ok(paths.len())
}

/// The network that ships, with the statistics of the first lessons.
fn tabletop_vla(config: &TrainConfig, library: &Library, tokenizer: &Tokenizer) -> Result<VlaConfig> {
    let examples = || library.lessons().iter().flat_map(|lesson| &lesson.examples);
    let states: Vec<Vec<f32>> = examples().map(|e| e.state.clone()).collect();
    let actions: Vec<Vec<f32>> = examples().flat_map(deltas).collect();
    let m = &config.model;
    let layer_norm = NormConfig::LayerNorm { eps: 1e-6, bias: true };
    let decoder = DecoderConfig {
        vocab: tokenizer.vocab_size(),
        width: m.width,
        inner_width: m.inner_width,
        layers: m.layers,
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.head_dim,
        norm: NormConfig::RmsNorm { eps: 1e-5, one_plus: false },
        activation: Activation::Silu,
        rope: RopeConfig::new(m.head_dim, 10_000.0),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tied: true,
        ..DecoderConfig::default()
    };
    Ok(VlaConfig {
        kind: "vela_vla".into(),
        vision: VisionConfig {
            image_size: 96,
            patch_size: m.patch,
            channels: 3,
            width: m.vision_width,
            inner_width: m.vision_inner_width,
            layers: m.vision_layers,
            heads: m.vision_heads,
            norm: layer_norm,
            activation: Activation::GeluTanh,
            final_norm: true,
            pooling: Pooling::None,
            ..VisionConfig::default()
        },
        projector: ProjectorConfig {
            input: m.vision_width,
            output: m.width,
            shuffle: m.shuffle,
            projection: Projection::Mlp { hidden: m.width, activation: Activation::GeluTanh },
        },
        expert: ExpertConfig {
            layers: DecoderConfig {
                vocab: 1,
                width: m.expert_width,
                inner_width: m.expert_inner_width,
                ..decoder.clone()
            },
            self_attention_every: 1,
            causal: false,
            action_dims: 6,
            time_periods: [4e-3, 4.0],
        },
        decoder,
        flow: FlowConfig { steps: m.flow_steps, ..FlowConfig::default() },
        cameras: vec!["front".into(), "wrist".into()],
        camera_embeddings: true,
        state_dims: 6,
        image_scale: m.image_scale,
        word_scale: (m.width as f32).sqrt(),
        prompt_suffix: String::new(),
        space: ActionSpace::JointDeltas,
        horizon: config.horizon,
        execute: config.execute,
        state: Normaliser::mean_std(&states, 1e-2)?,
        action: Normaliser::mean_std(&actions, 1e-2)?,
        rtc: None,
    })
}
