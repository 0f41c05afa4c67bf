//! Datasets that LeRobot itself made (0.3.3: v2.1, 0.6.1: v3.0, both by `tests/peers/lerobot_make.py`): read, checked,
//! converted, merged, split; and mangled.

use std::path::{Path, PathBuf};
use vela_embodiment::{Error, Result};
use vela_episodes::check::{check, exact_stats, repair};
use vela_episodes::copy::copy;
use vela_episodes::{Dataset, Version};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|source| Error::Io { path: "temporary folder".into(), source })
}

/// The frames are those that the script describes.
fn check_frames(dataset: &Dataset, episodes: &[usize]) -> Result<()> {
    assert_eq!(dataset.len(), episodes.len());
    assert_eq!(dataset.state_names(), ["shoulder_pan", "gripper"]);
    assert_eq!((dataset.fps(), dataset.robot_type()), (10.0, Some("so101")));
    for (place, made) in episodes.iter().enumerate() {
        let recording = dataset.episode(place)?;
        assert_eq!(recording.frames.len(), 4 + made);
        assert_eq!(recording.task, ["push the cube", "lift the ball", "push the cube"][*made]);
        for (k, frame) in recording.frames.iter().enumerate() {
            let (e, k) = (*made as f64, k as f64);
            assert_eq!(frame.observation.joint_positions, [e + k / 16.0, k / 8.0]);
            assert_eq!(frame.action, [e + k / 16.0 + 0.5, -k / 8.0]);
            assert!((frame.timestamp_secs - k / 10.0).abs() < 1e-6 && !frame.intervention);
            let rgb = &frame.observation.frames[0].rgb;
            let pixels = (0..6 * 8 * 3).map(|b| (b * 3 + 40 * made + 11 * k as usize) as u8);
            assert!(rgb.iter().copied().eq(pixels), "episode {made}, frame {k}");
        }
    }
    Ok(())
}

#[test]
fn both_versions_are_read_alike_and_sound() -> Result<()> {
    for (name, version) in [("lerobot_v21", Version::V21), ("lerobot_v30", Version::V30)] {
        let dataset = Dataset::open(&golden(name))?;
        assert_eq!(dataset.version(), version);
        check_frames(&dataset, &[0, 1, 2])?;
        let found = check(&dataset, &mut || ())?;
        assert_eq!((found.frames, found.problems), (15, Vec::<String>::new()), "{name}");
        let error = dataset.episode(3).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("unknown episode '3'"), "{error}");
    }
    Ok(())
}

/// The video datasets, in which the largest difference from pyav's pixels is that of two ways to spread colour.
const FILMS: [&str; 3] = ["lerobot_v30_av1", "lerobot_v30_h264", "lerobot_v21_av1"];

fn check_films(dataset: &Dataset, decoded: &Path) -> Result<()> {
    let io = |source| Error::Io { path: decoded.display().to_string(), source };
    let pixels = std::fs::read(decoded).map_err(io)?;
    let every_fifth = (0..3).flat_map(|episode| (0..4 + episode).map(move |k| (episode, k))).step_by(5);
    let golden: Vec<((usize, usize), &[u8])> = every_fifth.zip(pixels.chunks(64 * 48 * 3)).collect();
    assert_eq!(golden.len(), 3);
    // Backwards: any picture is found by its time, without those before it.
    for ((episode, k), golden) in golden.into_iter().rev() {
        let rgb = dataset.encoded(episode)?.rgb(0, k)?;
        let off: Vec<u8> = rgb.iter().zip(golden).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = off.iter().map(|x| f64::from(*x)).sum::<f64>() / off.len() as f64;
        let most = off.iter().max().copied().unwrap_or(255);
        assert!(rgb.len() == golden.len() && mean < 1.5 && most < 8, "{episode} {k}: {mean} {most}");
    }
    Ok(())
}

#[test]
fn videos_are_read_by_time_with_the_pixels_that_pyav_sees() -> Result<()> {
    for name in FILMS {
        let dataset = Dataset::open(&golden(name))?;
        check_films(&dataset, &golden(name).join("decoded.rgb"))?;
        let recording = dataset.episode(2)?;
        assert_eq!((recording.frames.len(), recording.frames[5].action[1]), (6, -5.0 / 8.0));
        assert_eq!(check(&dataset, &mut || ())?.problems, Vec::<String>::new(), "{name}");
    }
    Ok(())
}

#[test]
fn copies_keep_video_files_and_find_their_pictures_in_them() -> Result<()> {
    for name in FILMS {
        let dir = temporary()?;
        let [whole, part] = ["whole", "part"].map(|name| dir.path().join(name));
        let source = Dataset::open(&golden(name))?;
        copy(&[(&source, vec![0, 1, 2])], &whole, None, &mut || ())?;
        let copied = Dataset::open(&whole)?;
        assert_eq!(copied.version(), Version::V30);
        check_films(&copied, &golden(name).join("decoded.rgb"))?;
        assert_eq!(check(&copied, &mut || ())?.problems, Vec::<String>::new(), "{name}");
        let mean = flat(&copied.stats()?["observation.images.front"]["mean"]);
        assert!(mean.len() == 3 && mean.iter().all(|x| (0.1..0.7).contains(x)), "{mean:?}");
        copy(&[(&copied, vec![2]), (&copied, vec![1])], &part, None, &mut || ())?;
        let part = Dataset::open(&part)?;
        assert_eq!(part.encoded(0)?.rgb(0, 4)?, source.encoded(2)?.rgb(0, 4)?);
        assert_eq!(part.encoded(1)?.rgb(0, 4)?, source.encoded(1)?.rgb(0, 4)?);
    }
    Ok(())
}

#[test]
fn v21_becomes_v30_with_the_statistics_that_lerobot_computed() -> Result<()> {
    let dir = temporary()?;
    let out = dir.path().join("converted");
    let old = Dataset::open(&golden("lerobot_v21"))?;
    let copied = copy(&[(&old, vec![0, 1, 2])], &out, None, &mut || ())?;
    assert_eq!((copied.episodes, copied.frames), (3, 15));
    let new = Dataset::open(&out)?;
    assert_eq!(new.version(), Version::V30);
    check_frames(&new, &[0, 1, 2])?;
    assert_eq!(check(&new, &mut || ())?.problems, Vec::<String>::new());
    assert_eq!(new.columns(), old.columns());
    // LeRobot's own statistics of the same frames in v3.0, every number of every column.
    let (ours, theirs) = (new.stats()?, Dataset::open(&golden("lerobot_v30"))?.stats()?);
    for column in new.columns() {
        let [ours, theirs] = [&ours[&column.key], &theirs[&column.key]];
        for name in ["min", "max", "mean", "std", "count"] {
            let (a, b) = (flat(&ours[name]), flat(&theirs[name]));
            let same =
                a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-6 * (1.0 + y.abs()));
            assert!(same, "{} {name}: {a:?} against {b:?}", column.key);
        }
        // LeRobot reads quantiles off a histogram, which says little of four frames; ours are those of the values.
        let order: Vec<Vec<f64>> =
            ["min", "q01", "q10", "q50", "q90", "q99", "max"].iter().map(|name| flat(&ours[*name])).collect();
        assert!(order.windows(2).all(|pair| pair[0].iter().zip(&pair[1]).all(|(a, b)| a <= b)), "{order:?}");
    }
    Ok(())
}

fn flat(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(list) => list.iter().flat_map(flat).collect(),
        serde_json::Value::Bool(flag) => vec![f64::from(u8::from(*flag))],
        other => other.as_f64().into_iter().collect(),
    }
}

#[test]
fn merged_and_split_datasets_hold_the_same_frames() -> Result<()> {
    let dir = temporary()?;
    let [merged, part] = ["merged", "part"].map(|name| dir.path().join(name));
    let (old, new) = (Dataset::open(&golden("lerobot_v21"))?, Dataset::open(&golden("lerobot_v30"))?);
    copy(&[(&new, vec![0, 1, 2]), (&old, vec![2, 0])], &merged, None, &mut || ())?;
    let all = Dataset::open(&merged)?;
    check_frames(&all, &[0, 1, 2, 2, 0])?;
    assert_eq!(check(&all, &mut || ())?.problems, Vec::<String>::new());
    assert_eq!(all.tasks().len(), 2, "sentences are not doubled");
    copy(&[(&all, vec![1])], &part, None, &mut || ())?;
    let one = Dataset::open(&part)?;
    check_frames(&one, &[1])?;
    assert_eq!(check(&one, &mut || ())?.problems, Vec::<String>::new());
    let stats = exact_stats(&one, &mut || ())?;
    let state = stats.iter().find(|(key, _)| key == "observation.state").map(|(_, stats)| stats.clone());
    let state = state.unwrap_or_default();
    // 0, 1/8, 1/4, 3/8, 1/2.
    assert_eq!((state.q50[1], state.q10[1], state.max[1], state.count), (0.25, 0.05, 0.5, 5));
    // A second dataset in the same folder is refused, and so is one with other columns.
    assert!(
        copy(&[(&all, vec![1])], &part, None, &mut || ()).is_err_and(|e| e.to_string().contains("already"))
    );
    let renamed = dir.path().join("renamed");
    copy(&[(&new, vec![0])], &renamed, None, &mut || ())?;
    let info = renamed.join("meta/info.json");
    let io = |source| Error::Io { path: "test".into(), source };
    let text = std::fs::read_to_string(&info).map_err(io)?;
    std::fs::write(&info, text.replace("gripper.pos", "jaw.pos").replace("\"fps\": 10", "\"fps\": 20"))
        .map_err(io)?;
    let other = Dataset::open(&renamed)?;
    let why = copy(&[(&new, vec![0]), (&other, vec![0])], &dir.path().join("no"), None, &mut || ());
    let why = why.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(why.contains("20 frames per second against 10") && why.contains("jaw.pos"), "{why}");
    Ok(())
}

#[test]
fn problems_are_named_and_leftovers_of_a_kill_are_mended() -> Result<()> {
    let dir = temporary()?;
    let folder = dir.path().join("set");
    let io = |source| Error::Io { path: "test".into(), source };
    copy(&[(&Dataset::open(&golden("lerobot_v21"))?, vec![0, 1])], &folder, None, &mut || ())?;
    let info = folder.join("meta/info.json");
    let good = std::fs::read_to_string(&info).map_err(io)?;
    std::fs::write(&info, good.replace("\"total_frames\": 9", "\"total_frames\": 8")).map_err(io)?;
    std::fs::write(folder.join("data/chunk-000/file-000.parquet.new"), "half").map_err(io)?;
    let problems = check(&Dataset::open(&folder)?, &mut || ())?.problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains("half-written") && problems[1].contains("total_frames is 8"),
        "{problems:?}"
    );
    assert_eq!(repair(&folder)?.removed_files, 1);
    assert_eq!(check(&Dataset::open(&folder)?, &mut || ())?.problems, Vec::<String>::new());
    // Times that are not the frame's number over the rate.
    std::fs::write(&info, good.replace("\"fps\": 10", "\"fps\": 11")).map_err(io)?;
    let problems = check(&Dataset::open(&folder)?, &mut || ())?.problems;
    assert!(problems.len() == 2 && problems[0].contains("frame 1 is at 0.1"), "{problems:?}");
    Ok(())
}

/// Bytes changed, cut or doubled anywhere in any file: an error or a dataset, never a panic.
#[test]
fn mangled_datasets_never_panic() -> Result<()> {
    let io = |source| Error::Io { path: "test".into(), source };
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below.max(1) as u64) as usize
    };
    for name in ["lerobot_v21", "lerobot_v30", "lerobot_v30_av1", "lerobot_v30_h264"] {
        let dir = temporary()?;
        let files = copy_folder(&golden(name), dir.path())?;
        for round in 0..400 {
            let path = &files[round % files.len()];
            let whole = std::fs::read(path).map_err(io)?;
            let mut bytes = whole.clone();
            for _ in 0..=draw(4) {
                let place = draw(bytes.len());
                match draw(4) {
                    0 => bytes.truncate(place),
                    1 => bytes.splice(place..place, [draw(256) as u8; 3]).for_each(drop),
                    2 if !bytes.is_empty() => bytes[place] ^= 1 << draw(8),
                    _ if !bytes.is_empty() => bytes[place] = b"0123456789-{}\"\xff"[draw(15)],
                    _ => {}
                }
            }
            std::fs::write(path, &bytes).map_err(io)?;
            if let Ok(dataset) = Dataset::open(dir.path()) {
                let _ = check(&dataset, &mut || ());
                for index in 0..dataset.len().min(4) {
                    let _ = dataset.episode(index);
                }
            }
            std::fs::write(path, &whole).map_err(io)?;
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: from.display().to_string(), source };
    let mut files = Vec::new();
    std::fs::create_dir_all(to).map_err(io)?;
    for entry in std::fs::read_dir(from).map_err(io)? {
        let entry = entry.map_err(io)?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            files.extend(copy_folder(&entry.path(), &target)?);
        } else {
            std::fs::copy(entry.path(), &target).map_err(io)?;
            files.push(target);
        }
    }
    files.sort();
    Ok(files)
}
