//! `vela replay`: recorded episodes, shown again, played again, and where a policy would have done something else.

mod compared;
mod condition;
mod on_sim;
mod shown;

use crate::chooser;
use crate::stats::quantile;
use anyhow::{Context, Result, bail};
use compared::Compared;
use condition::Condition;
use indicatif::{ProgressBar, ProgressStyle};
use on_sim::{Followed, play};
use serde_json::{Value, json};
use shown::Shown;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vela_embodiment::{Embodiment, GateConfig, PolicySpec};
use vela_episodes::{Dataset, EncodedEpisode};
use vela_robots::{ArmFile, JointScales, PolicyUnits, require_policy_fits};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::Split;

/// Moments of worst disagreement that are told.
const WORST: usize = 5;

/// Show recorded episodes, play them on the simulated arm, and compare a policy with them observation by observation.
#[derive(clap::Args)]
pub struct Args {
    /// A LeRobot dataset, v3.0 or v2.1.
    dataset: PathBuf,
    /// One episode only.
    #[arg(long)]
    episode: Option<usize>,
    /// Compare with this policy: builtin, or a policy folder.
    #[arg(long)]
    policy: Option<String>,
    /// What the dataset's robot is: a file as in configs/robots (the built-in SO-101 where the dataset says that it is
    /// one), or the arm's own file, which `vela robot --config` takes. Needed for --policy and --sim. The dataset's
    /// numbers are in the units that it says, else in the arm's policy_units, else rad and m; its arm's file is needed
    /// where they are LeRobot's. What its [gate] narrows, the gate's figures are of.
    #[arg(long, value_name = "FILE")]
    robot: Option<PathBuf>,
    /// Infer at every this many frames.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Seed of the policy's noise: two runs give the same bytes, but for what is under keys that end in _ms.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Exit status 1 when this holds, like mae>0.05; may be given more than once. Figures: mae and max (rad or m),
    /// mae.JOINT, mae@STEP, splice and splice_mean (rad or m), trips (ticks), latency_p50_ms, latency_p99_ms.
    #[arg(long)]
    fail_if: Vec<Condition>,
    /// Send what was sent once more, to the simulated arm.
    #[arg(long)]
    sim: bool,
    /// Write a rerun recording.
    #[arg(long)]
    rrd: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.every == 0 {
        bail!("--every must be at least 1");
    }
    if !args.fail_if.is_empty() && args.policy.is_none() {
        bail!("--fail-if needs a --policy to compare with");
    }
    let dataset = Dataset::open(&args.dataset)?;
    let body = body(args, &dataset)?;
    let robot = body.as_ref().map(|body| &body.robot);
    let chosen: Vec<usize> = match args.episode {
        Some(k) if k < dataset.len() => vec![k],
        Some(k) => bail!("episode {k} is not there: the dataset holds {}", dataset.len()),
        None => (0..dataset.len()).collect(),
    };
    let (mut asked, mut table) = (None, None);
    let gate = body.as_ref().map(Body::gate).unwrap_or_default();
    if let Some(Body { robot, arm, .. }) = &body {
        if let Some(name) = &args.policy {
            let mut policy = chooser::policy(name, robot)?;
            require_policy_fits(robot, policy.spec())?;
            if let Some(arm) = arm {
                policy = arm.translated(policy, robot)?;
            }
            asked = Some((policy, Compared::new(robot, gate.clone(), args.seed, args.every)?));
        }
        if args.sim {
            table = Some((Tabletop::blind(robot, Split::Train)?, robot));
        }
    }
    let open = |path: &PathBuf| Shown::open(path, robot, &dataset);
    let show = args.rrd.as_ref().map(open).transpose()?;
    let (mut followed, mut shown) = (Vec::new(), Vec::new());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} episodes, {eta} left")?;
    let bar = ProgressBar::new(chosen.len() as u64).with_style(style);
    for k in chosen {
        let mut recorded = dataset.encoded(k).with_context(|| format!("episode {k}"))?;
        if let Some(body) = &body {
            body.in_rad(&mut recorded);
        }
        let plans = match &mut asked {
            Some((policy, compared)) => compared.episode(&recorded, policy.as_mut())?,
            None => Vec::new(),
        };
        if let Some((table, robot)) = &mut table {
            followed.push(play(table, robot, &gate, &recorded)?);
        }
        if let Some(show) = &show {
            let worst = asked.as_ref().and_then(|(_, compared)| compared.worst_of(k));
            show.episode(&recorded, &plans, worst)?;
        }
        shown.push(described(&recorded));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(show) = show {
        show.finish()?;
    }
    let asked = asked.as_ref().map(|(policy, compared)| (policy.spec(), compared));
    let mut held = Vec::new();
    if let Some((_, compared)) = asked {
        let figures = figures(compared);
        for condition in &args.fail_if {
            if let Some(value) = condition.holds(&figures)? {
                held.push((condition, value));
            }
        }
    }
    let failed: Vec<&str> = held.iter().map(|(condition, _)| condition.text()).collect();
    if args.json {
        println!("{}", report(args, &shown, asked, &followed, &failed));
    } else {
        print(&shown, asked.map(|(_, compared)| compared), &followed);
    }
    let words: Vec<String> = held
        .iter()
        .map(|(condition, value)| format!("--fail-if {} holds: it is {value:.5}", condition.text()))
        .collect();
    if words.is_empty() { Ok(()) } else { bail!("{}", words.join("; ")) }
}

/// The robot that a dataset was recorded with, and what its numbers mean.
struct Body {
    robot: Embodiment,
    /// Where its own file was named.
    arm: Option<ArmFile>,
    scales: JointScales,
}

impl Body {
    /// What its own file narrows.
    fn gate(&self) -> GateConfig {
        self.arm.as_ref().map(|arm| arm.gate.clone()).unwrap_or_default()
    }

    /// An episode as it was stored, in rad and m.
    fn in_rad(&self, recorded: &mut EncodedEpisode) {
        for row in recorded.states.iter_mut().chain(&mut recorded.actions) {
            *row = self.scales.ours(row);
        }
    }
}

/// The robot that the dataset was recorded with, if it is known, and what the dataset's numbers are. `None` where
/// either is not known and nobody needs it.
fn body(args: &Args, dataset: &Dataset) -> Result<Option<Body>> {
    let (arm, robot) = match &args.robot {
        Some(file) => {
            let (arm, robot) = named(file)?;
            let place = args.dataset.display();
            let differs = || format!("{place} was not recorded with the robot of {}", file.display());
            dataset.require_same(&robot).with_context(differs)?;
            (arm, Some(robot))
        }
        None => (None, builtin(args, dataset)?),
    };
    let Some(robot) = robot else { return Ok(None) };
    let units = match (dataset.units(), &arm) {
        (Some(words), _) => PolicyUnits::from_words(words)?,
        (None, Some(arm)) => arm.policy_units,
        (None, None) => PolicyUnits::Radians,
    };
    let scales = match &arm {
        Some(arm) => arm.scales(&robot, units)?,
        None if units == PolicyUnits::Radians => JointScales::new(&robot, units, None)?,
        None if args.robot.is_none() && args.policy.is_none() && !args.sim => return Ok(None),
        None => bail!(
            "{} is in {}: expected the file of its arm as --robot FILE (the one that `vela robot --config` takes), whose \
             calibration and policy_units say what that is in rad",
            args.dataset.display(),
            units.words()
        ),
    };
    Ok(Some(Body { robot, arm, scales }))
}

/// The robot of a file: the robot's own, or an arm's that names it.
pub(crate) fn named(file: &Path) -> Result<(Option<ArmFile>, Embodiment)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    // An arm's file names its robot's; a file that is no TOML is refused below.
    if toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key("robot")) {
        let (arm, robot) = ArmFile::load(file)?;
        return Ok((Some(arm), robot));
    }
    Ok((None, Embodiment::load(file)?))
}

/// The built-in robot where the dataset was recorded with it.
fn builtin(args: &Args, dataset: &Dataset) -> Result<Option<Embodiment>> {
    let place = args.dataset.display();
    // Descriptions in datasets carry no URDF; the built-in one serves where the robot is the same.
    let builtin = Embodiment::so101()?;
    let described = dataset.embodiment().is_some();
    let same = dataset.require_same(&builtin);
    match same {
        Ok(()) if described => Ok(Some(builtin)),
        _ if args.policy.is_none() && !args.sim => Ok(None),
        Err(error) if described => Err(error).with_context(|| {
            format!("{place} was not recorded with the built-in so101; expected its robot as --robot FILE")
        }),
        _ => bail!(
            "{place} does not describe its robot (no meta/embodiment.json), so that nobody knows its units: expected \
             its robot as --robot FILE"
        ),
    }
}

/// What there is to say of an episode without any policy.
fn described(recorded: &EncodedEpisode) -> Value {
    let interventions = recorded.interventions.iter().filter(|marked| **marked).count();
    json!({"episode": recorded.index, "task": recorded.tasks.first().map(|task| task.to_string()),
        "frames": recorded.len(), "interventions": interventions, "extra": recorded.extra})
}

/// The numbers that a condition may name.
fn figures(compared: &Compared) -> BTreeMap<String, f64> {
    let nan = f64::NAN;
    let splice = compared.splices.iter().copied().fold(nan, f64::max);
    let mean = compared.splices.iter().sum::<f64>() / compared.splices.len() as f64;
    let worst = compared.error.worst().iter().flatten().copied().fold(nan, f64::max);
    let latency =
        |q| if compared.infer_secs.is_empty() { nan } else { quantile(&compared.infer_secs, q) * 1e3 };
    let mut figures = BTreeMap::from([
        ("mae".to_owned(), compared.error.mean().unwrap_or(nan)),
        ("max".to_owned(), worst),
        ("splice".to_owned(), splice),
        ("splice_mean".to_owned(), mean),
        ("trips".to_owned(), compared.tripped_ticks as f64),
        ("latency_p50_ms".to_owned(), latency(0.5)),
        ("latency_p99_ms".to_owned(), latency(0.99)),
    ]);
    for (joint, mae) in compared.error.joints().iter().zip(compared.error.by_joint()) {
        figures.insert(format!("mae.{joint}"), mae);
    }
    for (step, mae) in compared.error.by_step().into_iter().enumerate() {
        figures.insert(format!("mae@{step}"), mae);
    }
    figures
}

fn report(
    args: &Args,
    shown: &[Value],
    asked: Option<(&PolicySpec, &Compared)>,
    followed: &[Followed],
    failed: &[&str],
) -> Value {
    let frames: u64 = shown.iter().filter_map(|episode| episode["frames"].as_u64()).sum();
    let mut report = json!({"episodes": shown.len(), "frames": frames, "recorded": shown});
    if let Some((spec, compared)) = asked {
        let error = &compared.error;
        let ms = |q| quantile(&compared.infer_secs, q) * 1e3;
        let figure = figures(compared);
        let known = |name: &str| figure.get(name).copied().filter(|value| value.is_finite());
        let worst: Vec<Value> = compared
            .worst(WORST)
            .iter()
            .map(|m| {
                json!({"episode": m.episode, "frame": m.frame, "seconds": m.secs, "mae_rad": m.mae,
                    "joint": m.joint, "joint_mae_rad": m.joint_mae})
            })
            .collect();
        let more = json!({
            "policy": args.policy, "checkpoint": spec.checkpoint, "seed": args.seed, "every": args.every,
            "execute": spec.execute, "inferences": compared.moments.len(), "joints": error.joints(),
            "mae_rad": error.mean(), "max_rad": known("max"), "mae_by_joint_rad": error.by_joint(),
            "mae_by_step_rad": error.by_step(), "mae_by_step_and_joint_rad": error.by_step_and_joint(),
            "splice": {"count": compared.splices.len(), "mean_rad": known("splice_mean"),
                "max_rad": known("splice")},
            "gate": {"ticks": compared.gate_ticks, "tripped_ticks": compared.tripped_ticks,
                "trips": compared.trips},
            "latency_ms": {"p50": ms(0.5), "p95": ms(0.95), "p99": ms(0.99), "max": ms(1.0)},
            "worst": worst, "failed": failed
        });
        merge(&mut report, more);
    }
    if args.sim {
        let list: Vec<Value> = followed
            .iter()
            .map(|f| {
                json!({"episode": f.episode, "same_scene": f.same_scene, "mae_rad": f.mae, "max_rad": f.max,
                    "tripped_ticks": f.tripped_ticks, "success": f.success})
            })
            .collect();
        merge(&mut report, json!({ "sim": list }));
    }
    report
}

fn merge(report: &mut Value, more: Value) {
    if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
        report.extend(more);
    }
}

fn print(shown: &[Value], compared: Option<&Compared>, followed: &[Followed]) {
    let frames: u64 = shown.iter().filter_map(|episode| episode["frames"].as_u64()).sum();
    println!("{} episodes, {frames} frames", shown.len());
    if compared.is_none() && followed.is_empty() {
        for episode in shown {
            let (index, task) = (&episode["episode"], episode["task"].as_str().unwrap_or_default());
            let noted =
                if episode["extra"].is_null() { String::new() } else { format!(", {}", episode["extra"]) };
            println!("  {index}: {} frames, '{task}'{noted}", episode["frames"]);
        }
    }
    for f in followed {
        let scene = if f.same_scene { "in its own scene" } else { "in another scene" };
        let success = match f.success {
            Some(true) => ", succeeds again",
            Some(false) => ", does not succeed",
            None => "",
        };
        let (mae, max, trips) = (f.mae, f.max, f.tripped_ticks);
        println!(
            "  sim: episode {} {scene}{success}: joints {mae:.4} rad off, at most {max:.4}; gate {trips} ticks",
            f.episode
        );
    }
    let Some(compared) = compared else { return };
    let Some(mean) = compared.error.mean() else { return };
    println!("{} inferences; mean absolute action error {mean:.4} rad", compared.moments.len());
    let ms = |q| quantile(&compared.infer_secs, q) * 1e3;
    println!("policy latency per chunk: p50 {:.1} ms, p99 {:.1} ms", ms(0.5), ms(0.99));
    for (joint, mae) in compared.error.joints().iter().zip(compared.error.by_joint()) {
        println!("  {joint:<14} {mae:.4} rad");
    }
    for (step, mae) in compared.error.by_step().iter().enumerate() {
        println!("  step {step:<9} {mae:.4} rad");
    }
    let figure = figures(compared);
    if let (Some(mean), Some(max)) = (figure.get("splice_mean"), figure.get("splice")) {
        let count = compared.splices.len();
        println!("{count} splices of one chunk to the next: jump {mean:.4} rad on average, {max:.4} at most");
    }
    println!(
        "gate: stepped in on {} of {} ticks {:?}",
        compared.tripped_ticks, compared.gate_ticks, compared.trips
    );
    for m in compared.worst(WORST) {
        println!(
            "  worst: episode {} at {:.2} s, {:.4} rad; {} {:.4}",
            m.episode, m.secs, m.mae, m.joint, m.joint_mae
        );
    }
}
