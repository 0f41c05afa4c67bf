//! `vela episodes`: what is in a LeRobot dataset, whether it is sound, and new datasets made of old ones.

use crate::video::Video;
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use vela_episodes::check::{check, exact_stats, repair};
use vela_episodes::copy::copy;
use vela_episodes::{Dataset, FeatureStats, PictureFormat};

/// LeRobot datasets (v3.0 and v2.1): inspect, check, convert, merge, split, statistics.
#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What is in a dataset: robot, rate, columns, episodes, sentences.
    Inspect(One),
    /// Read every row and decode every picture; exit status 1 when something is wrong.
    Check {
        #[command(flatten)]
        one: One,
        /// First mend what a killed recording left: bring its frames in, cut off what no episode claims.
        #[arg(long)]
        repair: bool,
    },
    /// Write it anew as v3.0: every column, statistics with quantiles, pictures untouched unless another form is asked
    /// for.
    Convert {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        video: Video,
        /// Store pictures as PNG inside parquet: videos are decoded.
        #[arg(long, conflicts_with = "video")]
        images: bool,
        /// The new dataset's folder.
        #[arg(long)]
        out: PathBuf,
    },
    /// Put datasets of one robot, rate and set of columns behind one another, as a new one.
    Merge {
        /// The datasets, in order.
        #[arg(required = true)]
        datasets: Vec<PathBuf>,
        /// The new dataset's folder.
        #[arg(long)]
        out: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make new datasets of parts of one.
    Split {
        #[command(flatten)]
        one: One,
        /// The folder of the new datasets' folders.
        #[arg(long)]
        out: PathBuf,
        /// Names with shares of the episodes or with ranges of them: train=0.8,val=0.2 or train=0:40,val=40:50.
        #[arg(long)]
        parts: String,
    },
    /// Statistics over all frames, quantiles exact.
    Stats(One),
}

#[derive(clap::Args)]
struct One {
    /// The dataset's folder.
    dataset: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Inspect(one) => inspect(one),
        Verb::Check { one, repair } => look_over(one, *repair),
        Verb::Convert { one, video, images, out } => {
            let dataset = Dataset::open(&one.dataset)?;
            let pictures = if *images { Some(PictureFormat::Png) } else { video.format() };
            let made = write(&[(&dataset, 0..dataset.len())], out, pictures)?;
            tell(&[made], one.json);
            Ok(())
        }
        Verb::Merge { datasets, out, json } => {
            let opened = datasets.iter().map(|path| Ok(Dataset::open(path)?)).collect::<Result<Vec<_>>>()?;
            let whole: Vec<_> = opened.iter().map(|dataset| (dataset, 0..dataset.len())).collect();
            let made = write(&whole, out, None)?;
            tell(&[made], *json);
            Ok(())
        }
        Verb::Split { one, out, parts } => {
            let dataset = Dataset::open(&one.dataset)?;
            let parts = parse_parts(parts, dataset.len())?;
            let made =
                parts.into_iter().map(|(name, range)| write(&[(&dataset, range)], &out.join(name), None));
            tell(&made.collect::<Result<Vec<_>>>()?, one.json);
            Ok(())
        }
        Verb::Stats(one) => stats(one),
    }
}

/// A new dataset: its folder, episodes and frames.
type Made = (PathBuf, usize, usize);

fn write(sources: &[(&Dataset, Range<usize>)], out: &Path, pictures: Option<PictureFormat>) -> Result<Made> {
    let sources: Vec<_> =
        sources.iter().map(|(dataset, range)| (*dataset, range.clone().collect())).collect();
    let bar = bar(sources.iter().map(|(_, episodes): &(_, Vec<usize>)| episodes.len()).sum())?;
    let copied = copy(&sources, out, pictures, &mut || bar.inc(1))
        .with_context(|| format!("writing {}", out.display()))?;
    bar.finish_and_clear();
    Ok((out.to_owned(), copied.episodes, copied.frames))
}

fn tell(made: &[Made], as_json: bool) {
    if as_json {
        let list: Vec<_> = made
            .iter()
            .map(|(folder, episodes, frames)| {
                json!({"dataset": folder, "episodes": episodes, "frames": frames})
            })
            .collect();
        println!("{}", json!({ "written": list }));
        return;
    }
    for (folder, episodes, frames) in made {
        println!("{}: {episodes} episodes, {frames} frames", folder.display());
    }
}

fn bar(episodes: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} episodes, {eta} left")?;
    Ok(ProgressBar::new(episodes as u64).with_style(style))
}

/// `train=0.8,val=0.2` or `train=0:40,val=40:50`, for a dataset of `episodes`.
fn parse_parts(text: &str, episodes: usize) -> Result<Vec<(String, Range<usize>)>> {
    let expected = "expected --parts like train=0.8,val=0.2 or train=0:40,val=40:50";
    let mut parts: Vec<(String, Range<usize>)> = Vec::new();
    let mut share = 0.0;
    for part in text.split(',') {
        let Some((name, what)) = part.split_once('=') else { bail!("{expected}, got '{part}'") };
        let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if name.is_empty() || !plain || parts.iter().any(|(other, _)| other == name) {
            bail!("{expected} with a name of its own for each part, got '{name}'");
        }
        let range = match what.split_once(':') {
            Some((from, to)) => {
                let number = |text: &str| text.parse().with_context(|| format!("{expected}, got '{part}'"));
                number(from)?..number(to)?
            }
            None => {
                let own: f64 = what.parse().with_context(|| format!("{expected}, got '{part}'"))?;
                let from = share;
                share += own;
                if !(own > 0.0 && share < 1.0 + 1e-9) {
                    bail!("{expected} with shares that add up to at most 1, got '{text}'");
                }
                let place = |share: f64| (share * episodes as f64).round() as usize;
                place(from)..place(share)
            }
        };
        if range.is_empty() || range.end > episodes {
            bail!(
                "part '{name}': expected some of the episodes 0:{episodes}, got {}:{}",
                range.start,
                range.end
            );
        }
        parts.push((name.to_owned(), range));
    }
    Ok(parts)
}

fn inspect(one: &One) -> Result<()> {
    let dataset = Dataset::open(&one.dataset)?;
    let mut sentences: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for entry in dataset.entries() {
        let count = sentences.entry(entry.task()).or_default();
        *count = (count.0 + 1, count.1 + entry.length);
    }
    let seconds = dataset.total_frames() as f64 / dataset.fps();
    let robot = dataset.robot_type().unwrap_or("not said");
    if one.json {
        let columns: Vec<_> = dataset
            .columns()
            .into_iter()
            .map(|column| json!({"key": column.key, "dtype": column.dtype, "shape": column.shape}))
            .collect();
        let episodes: Vec<_> = dataset
            .entries()
            .iter()
            .map(|e| json!({"episode": e.index, "tasks": e.tasks, "frames": e.length, "extra": e.extra}))
            .collect();
        println!(
            "{}",
            json!({"version": dataset.version().name(), "robot": dataset.robot_type(), "fps": dataset.fps(),
                "frames": dataset.total_frames(), "seconds": seconds, "state": dataset.state_names(),
                "action": dataset.action_names(), "units": dataset.units(), "columns": columns, "episodes": episodes,
                "described_by_vela": dataset.embodiment().is_some(), "interrupted": dataset.has_leftover()})
        );
        return Ok(());
    }
    println!("{}: LeRobot {}, robot {robot}", one.dataset.display(), dataset.version().name());
    let (episodes, frames, fps) = (dataset.len(), dataset.total_frames(), dataset.fps());
    println!("{episodes} episodes, {frames} frames at {fps} per second ({seconds:.0} s)");
    if dataset.has_leftover() {
        println!("a recording was killed: `vela episodes check --repair` brings its frames in");
    }
    println!("state:  {}", dataset.state_names().join(", "));
    println!("action: {}", dataset.action_names().join(", "));
    if let Some(units) = dataset.units() {
        println!("joints: {units}");
    }
    for column in dataset.columns() {
        println!("  {:<28} {:<8} {:?}", column.key, column.dtype, column.shape);
    }
    for (task, (episodes, frames)) in sentences {
        println!("  '{task}': {episodes} episodes, {frames} frames");
    }
    Ok(())
}

fn look_over(one: &One, mend: bool) -> Result<()> {
    let repaired = if mend { Some(repair(&one.dataset)?) } else { None };
    let dataset = Dataset::open(&one.dataset)?;
    let bar = bar(dataset.len())?;
    let found = check(&dataset, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if one.json {
        let repaired = repaired.map(|done| {
            json!({"recovered_frames": done.recovered_frames, "cut_rows": done.cut_rows,
                "removed_files": done.removed_files})
        });
        println!(
            "{}",
            json!({"episodes": found.episodes, "frames": found.frames, "problems": found.problems,
                "repaired": repaired})
        );
    } else {
        if let Some(done) = repaired {
            let (frames, rows, files) = (done.recovered_frames, done.cut_rows, done.removed_files);
            println!(
                "repair: {frames} frames brought in, {rows} rows cut off, {files} half-written files removed"
            );
        }
        found.problems.iter().for_each(|problem| println!("  {problem}"));
        println!("{} episodes, {} frames read", found.episodes, found.frames);
    }
    match found.problems.len() {
        0 => Ok(()),
        1 => bail!("{}: one problem", one.dataset.display()),
        n => bail!("{}: {n} problems", one.dataset.display()),
    }
}

fn stats(one: &One) -> Result<()> {
    let dataset = Dataset::open(&one.dataset)?;
    let bar = bar(dataset.len())?;
    let stats = exact_stats(&dataset, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if one.json {
        let map: serde_json::Map<String, Value> =
            stats.iter().map(|(key, stats)| (key.clone(), stats.to_json(false))).collect();
        println!("{}", json!({"episodes": dataset.len(), "frames": dataset.total_frames(), "stats": map}));
        return Ok(());
    }
    println!(
        "{:<34} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "min", "1 %", "median", "99 %", "max", "mean"
    );
    for (key, stats) in &stats {
        table(key, stats, &names(&dataset, key, stats.mean.len()));
    }
    Ok(())
}

fn names(dataset: &Dataset, key: &str, wide: usize) -> Vec<String> {
    let known = match key {
        "observation.state" => dataset.state_names().to_vec(),
        "action" => dataset.action_names().to_vec(),
        _ if wide == 1 => vec![String::new()],
        _ if wide == 3 && dataset.columns().iter().any(|c| c.key == key && c.shape.len() == 3) => {
            ["red", "green", "blue"].map(str::to_owned).to_vec()
        }
        _ => Vec::new(),
    };
    if known.len() == wide { known } else { (0..wide).map(|k| k.to_string()).collect() }
}

fn table(key: &str, stats: &FeatureStats, names: &[String]) {
    for (k, name) in names.iter().enumerate() {
        let row = [&stats.min, &stats.q01, &stats.q50, &stats.q99, &stats.max, &stats.mean];
        let row: Vec<String> = row.iter().map(|values| format!("{:>10.4}", values[k])).collect();
        println!("{:<34} {}", format!("{key} {name}"), row.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_shares_or_ranges_and_nothing_else() -> Result<()> {
        let parts = parse_parts("train=0.8,val=0.2", 10)?;
        assert_eq!(parts, [("train".to_owned(), 0..8), ("val".to_owned(), 8..10)]);
        assert_eq!(parse_parts("a=2:5", 5)?, [("a".to_owned(), 2..5)]);
        for wrong in ["", "train", "a=x", "a=0.9,b=0.2", "a=0:11", "a=3:3", "../a=0:1", "a=0:1,a=1:2"] {
            assert!(parse_parts(wrong, 10).is_err(), "{wrong}");
        }
        Ok(())
    }
}
