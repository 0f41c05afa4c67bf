//! The house rules, as tests: layering, file length, first lines, unsafe, paths in documents, configurations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Which of our crates each crate may use (the design's table).
const MAY_USE: [(&str, &[&str]); 12] = [
    ("embodiment", &[]),
    ("nn", &[]),
    ("llm", &["nn"]),
    ("vision", &["nn"]),
    ("fusion", &["nn", "llm", "vision"]),
    ("policy", &["nn", "llm", "vision", "fusion", "embodiment"]),
    ("robots", &["embodiment"]),
    ("sim", &["embodiment"]),
    ("episodes", &["embodiment"]),
    ("train", &["nn", "llm", "vision", "fusion", "policy", "episodes", "robots", "embodiment"]),
    ("serve", &["embodiment", "llm", "fusion", "policy"]),
    ("viz", &["embodiment"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` with one of these endings; build output and hidden folders are left out.
fn files(dir: &Path, endings: &[&str], found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "out" && !name.starts_with('.') {
                files(&path, endings, found)?;
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    Ok(())
}

fn sources() -> std::io::Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    files(root(), &[".rs"], &mut found)?;
    found.sort();
    found.into_iter().map(|path| Ok((path.clone(), std::fs::read_to_string(path)?))).collect()
}

#[test]
fn every_source_file_says_what_it_is_and_is_short() -> Outcome {
    let mut lengths = Vec::new();
    for (path, text) in sources()? {
        assert!(text.starts_with("//!"), "{} has no //! line", path.display());
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines, at most 600", path.display());
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median < 200, "the median file has {median} lines, must stay under 200");
    Ok(())
}

#[test]
fn no_arrow_runs_back_up_the_stairs() -> Outcome {
    for (name, allowed) in MAY_USE {
        let manifest: toml::Table = std::fs::read_to_string(root().join(name).join("Cargo.toml"))?.parse()?;
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(|t| t.as_table()) else { continue };
            for dependency in table.keys() {
                if let Some(ours) = dependency.strip_prefix("vela-") {
                    assert!(allowed.contains(&ours), "{name} may not use {ours}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn features_of_outside_crates_are_declared_once() -> Outcome {
    let mut manifests = Vec::new();
    files(root(), &["Cargo.toml"], &mut manifests)?;
    for path in manifests {
        let manifest: toml::Table = std::fs::read_to_string(&path)?.parse()?;
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(|t| t.as_table()) else { continue };
            for (name, how) in table {
                let keys: Vec<&str> =
                    how.as_table().map(|t| t.keys().map(String::as_str).collect()).unwrap_or_default();
                assert_eq!(keys, ["workspace"], "{}: {name} must be `workspace = true`", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn unsafe_lives_in_the_kernels_with_a_reason() -> Outcome {
    for (path, text) in sources()? {
        let kernels = path.starts_with(root().join("nn/src/kernels"));
        let lines: Vec<&str> = text.lines().collect();
        // The indentation of the `unsafe trait` or `unsafe impl` that the line is in: its promise covers its functions.
        let mut promised: Option<usize> = None;
        for (k, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let indent = code.len() - code.trim_start().len();
            promised = promised.filter(|outer| code.trim().is_empty() || indent > *outer);
            let whole = ["unsafe impl", "unsafe trait"].iter().any(|w| code.contains(w));
            let opens = whole || ["unsafe {", "unsafe fn"].iter().any(|w| code.contains(w));
            if !opens || path.ends_with("tests/house.rs") {
                continue;
            }
            assert!(kernels, "{}:{}: unsafe outside nn/src/kernels", path.display(), k + 1);
            let covered = promised.is_some() && code.contains("unsafe fn");
            let reason =
                lines[k.saturating_sub(8)..=k].iter().any(|l| l.contains("SAFETY") || l.contains("# Safety"));
            assert!(covered || reason, "{}:{}: unsafe without a SAFETY comment", path.display(), k + 1);
            promised = promised.or(whole.then_some(indent));
        }
    }
    Ok(())
}

/// The kernels' own stop-watches: how long a thread spins before it sleeps, and what a core can do at most. No result of a
/// tensor depends on either.
fn is_stopwatch(inside: &Path) -> bool {
    ["nn/src/kernels/pool.rs", "nn/src/kernels/peaks.rs"].iter().any(|path| inside == Path::new(path))
}

#[test]
fn tensors_and_robots_keep_apart() -> Outcome {
    for (path, text) in sources()? {
        let Ok(inside) = path.strip_prefix(root()) else { continue };
        let room = inside.iter().next().unwrap_or_default().to_string_lossy().into_owned();
        let banned: &[&str] = match room.as_str() {
            "robots" | "sim" | "episodes" | "viz" | "embodiment" => &["candle_core", "vela_nn"],
            "nn" | "llm" | "vision" | "fusion" => &["zenoh", "vela_embodiment", "std::time"],
            _ => &[],
        };
        for word in banned {
            if *word == "std::time" && is_stopwatch(inside) {
                continue;
            }
            let named = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(word));
            let measured = inside.components().any(|c| c.as_os_str() == "examples");
            assert!(!named || measured, "{} names {word}", path.display());
        }
    }
    Ok(())
}

#[test]
fn time_is_read_through_one_clock() -> Outcome {
    for (path, text) in sources()? {
        let measures =
            path.components().any(|c| ["examples", "tests"].iter().any(|name| c.as_os_str() == *name));
        let reads = ["Instant::now", "SystemTime::now"].iter().any(|call| text.contains(call));
        assert!(
            !reads
                || measures
                || path.ends_with("embodiment/src/clock.rs")
                || path.strip_prefix(root()).is_ok_and(is_stopwatch),
            "{} reads a clock of its own",
            path.display()
        );
    }
    Ok(())
}

/// Paths in backticks: something with a slash, or a file with an ending that we use.
fn named_paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (k, piece) in text.split('`').enumerate() {
        let plain = !piece.contains(char::is_whitespace)
            && !piece.contains(['{', '<', '*', '$', ':', '=', '(', '|'])
            && !piece.starts_with(['/', '-', '@', '~'])
            && !piece.starts_with("..");
        let path = piece.contains('/')
            || [".rs", ".md", ".toml", ".py", ".sh", ".json", ".urdf"].iter().any(|e| piece.ends_with(e));
        if k % 2 == 1 && plain && path {
            found.push(piece.to_owned());
        }
    }
    found
}

#[test]
fn every_path_in_the_documents_exists() -> Outcome {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(document))?;
        let fenced: String = text.split("```").step_by(2).collect::<Vec<_>>().join(" ");
        for path in named_paths(&fenced) {
            assert!(root().join(&path).exists(), "{document} names {path}, which does not exist");
        }
        for link in fenced.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = !link.starts_with("http") && !link.starts_with('#');
            assert!(!local || root().join(link).exists(), "{document} links to {link}");
        }
    }
    Ok(())
}

#[test]
fn every_configuration_parses() -> Outcome {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    files(&root().join("configs"), &[""], &mut found)?;
    for path in found {
        let room = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        match (room.as_str(), ending.as_str()) {
            ("robots", "toml") => {
                vela_embodiment::Embodiment::load(&path)?;
            }
            ("robots", "urdf") => {
                vela_embodiment::RobotModel::from_urdf(&std::fs::read_to_string(&path)?)?;
            }
            ("arms", "toml") => {
                vela_robots::ArmFile::load(&path)?;
            }
            ("zenoh" | "fleet", "json5") => {
                zenoh::Config::from_file(&path).map_err(|e| e.to_string())?;
            }
            ("train", "toml") => match path.file_stem().and_then(|stem| stem.to_str()) {
                Some("vlm") => vela_train::vlm::VlmTrainConfig::load(&path).map(|_| ())?,
                Some("real-vlm") => vela_train::adapt::AdaptConfig::load(&path).map(|_| ())?,
                Some("finetune" | "metaworld") => {
                    vela_train::finetune::FinetuneConfig::load(&path).map(|_| ())?
                }
                _ => vela_train::TrainConfig::load(&path).map(|_| ())?,
            },
            // Inside the binary: parsed whenever a task is named.
            ("tasks", "toml") => {
                vela_sim::language::TaskBook::builtin()?;
            }
            _ => return Err(format!("no test knows how to parse {}", path.display()).into()),
        }
        *kinds.entry(room).or_default() += 1;
    }
    assert!(kinds.contains_key("robots") && kinds.contains_key("zenoh") && kinds.contains_key("train"));
    Ok(())
}

#[test]
fn the_format_is_the_formatter_s() -> Outcome {
    let check = std::process::Command::new(env!("CARGO"))
        .args(["fmt", "--all", "--check"])
        .current_dir(root())
        .output()?;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    Ok(())
}
