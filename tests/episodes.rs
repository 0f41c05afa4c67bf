//! Recording that is killed, disks that are full, `vela episodes` and `vela replay`: over the built binary.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vela_embodiment::{Action, Embodiment, Frame, Observation, Stamp};
use vela_episodes::{Dataset, DatasetWriter, check};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    Ok(Command::new(env!("CARGO_BIN_EXE_vela")).args(args).output()?)
}

fn json(args: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let output = vela(args)?;
    if !output.status.success() {
        return Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn golden(name: &str) -> String {
    text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

/// Frames that a reader finds in an interrupted recording, by its length in bytes: whole frames only.
fn pending(data: &Path) -> u64 {
    std::fs::metadata(data.join("meta/.pending")).map_or(0, |file| file.len())
}

/// Kills a recording when `ready` holds and says whether it was still running.
fn kill_when(
    data: &Path,
    more: &[&str],
    ready: &dyn Fn() -> bool,
) -> Result<bool, Box<dyn std::error::Error>> {
    let mut recording = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["record", "--out", &text(data), "--episodes", "50", "--task", "pick", "--json"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    while !ready() && recording.try_wait()?.is_none() {
        if started.elapsed() > Duration::from_secs(120) {
            recording.kill()?;
            return Err("the recording never came to that".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let running = recording.try_wait()?.is_none();
    // SIGKILL: nothing is flushed, nothing is tidied up.
    recording.kill()?;
    recording.wait()?;
    Ok(running)
}

#[test]
fn a_recording_killed_at_any_moment_keeps_its_frames_and_opens() -> Outcome {
    // Two PNG pictures of 96x96 are less than 45 kB.
    killed_at_any_moment(&[], [20_000, 900_000], 45_000)
}

#[test]
fn a_recording_of_video_killed_at_any_moment_keeps_its_frames_and_opens() -> Outcome {
    killed_at_any_moment(&["--video", "h264"], [5_000, 60_000], 12_000)
}

/// `few` and `many` bytes are those of some frames and of many; a frame has at most `largest`.
fn killed_at_any_moment(form: &[&str], [few, many]: [u64; 2], largest: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let data: PathBuf = dir.path().join("data");
    let committed = |data: &Path| Dataset::open(data).map_or(0, |dataset| dataset.len());
    let mut episodes = 0;
    for moment in 0..6 {
        // In the first frames of an episode, far inside it, around its commit.
        let already = committed(&data);
        let ready = || match moment % 3 {
            0 => pending(&data) > few,
            1 => pending(&data) > many,
            _ => committed(&data) > already + 1,
        };
        assert!(kill_when(&data, form, &ready)?, "moment {moment}: it ended by itself");
        // What was committed opens as it is, before anything is mended.
        let dataset = Dataset::open(&data)?;
        assert!(dataset.len() >= episodes, "moment {moment}");
        for index in 0..dataset.len() {
            dataset.episode(index)?;
        }
        let waiting = pending(&data);
        let output = vela(&["episodes", "check", &text(&data), "--repair", "--json"])?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        assert!(output.status.success(), "moment {moment}: {report}");
        assert_eq!(report["problems"], serde_json::json!([]), "moment {moment}");
        let recovered = report["repaired"]["recovered_frames"].as_u64().ok_or("no count")?;
        let mended = Dataset::open(&data)?;
        assert_eq!(mended.len(), dataset.len() + usize::from(recovered > 0), "moment {moment}");
        // Around the commit, the frames that wait may be committed already.
        if waiting > many && moment % 3 != 2 {
            // So many whole frames must have been there.
            assert!(recovered > many / largest, "moment {moment}: {recovered} of {waiting} bytes");
        }
        if recovered > 0 {
            let last = mended.episode(mended.len() - 1)?;
            assert_eq!(last.frames.len() as u64, recovered);
            assert!(last.extra["interrupted"] == true || last.extra["success"].is_boolean());
        }
        episodes = mended.len();
        eprintln!(
            "fault: SIGKILL while recording{}: {recovered} frames of the open episode kept ({waiting} bytes), \
             {} whole episodes kept",
            form.iter().map(|word| format!(" {word}")).collect::<String>(),
            dataset.len()
        );
    }
    assert!(episodes >= 6, "{episodes}");
    // Recording goes on in what is left.
    let args = ["record", "--out", &text(&data), "--episodes", "1", "--task", "reach", "--json"];
    assert_eq!(json(&args)?["episodes"], episodes as u64 + 1);
    assert!(check::check(&Dataset::open(&data)?, &mut || ())?.problems.is_empty());
    Ok(())
}

#[test]
fn a_full_disk_is_one_clear_error_and_loses_nothing() -> Outcome {
    // 1.5 MB.
    full_disk("", 3000)
}

#[test]
fn a_full_disk_loses_no_video() -> Outcome {
    // 100 kB: less than the pictures of one episode.
    full_disk("--video h264", 200)
}

/// No file may grow beyond so many blocks of 512 bytes: what a full disk does, for one process alone.
fn full_disk(form: &str, blocks: u32) -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = text(&dir.path().join("data"));
    let first = ["record", "--out", &data, "--episodes", "1", "--task", "reach", "--json"];
    json(&first.into_iter().chain(form.split_whitespace()).collect::<Vec<_>>())?;
    let before = Dataset::open(Path::new(&data))?.episode(0)?;
    let limited = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec {} record --out {data} --episodes 40 --task pick --json {form}",
        env!("CARGO_BIN_EXE_vela")
    );
    let output = Command::new("sh").args(["-c", &limited]).output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.starts_with("vela: ") && words.contains("data") && words.trim().lines().count() == 1,
        "{words}"
    );
    assert!(words.contains("File too large"), "{words}");
    let left = Dataset::open(Path::new(&data))?;
    assert_eq!(left.episode(0)?, before);
    for index in 0..left.len() {
        left.episode(index)?;
    }
    let committed = left.len();
    let repaired = json(&["episodes", "check", &data, "--repair", "--json"])?;
    assert_eq!(repaired["problems"], serde_json::json!([]));
    assert_eq!(repaired["episodes"], committed as u64 + 1, "the frames of the last episode are there");
    let kept = Dataset::open(Path::new(&data))?.episode(committed)?.frames.len();
    eprintln!(
        "fault: disk full while recording {form}: {committed} whole episodes kept, {kept} frames of the open one"
    );
    Ok(())
}

#[test]
fn pictures_become_video_and_pictures_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [data, film, back, parts, all, live] =
        ["data", "film", "back", "parts", "all", "live"].map(|name| text(&dir.path().join(name)));
    let form = ["--video", "h264", "--video-qp", "16"];
    let record = |out: &str, form: &[&str]| -> Result<Value, Box<dyn std::error::Error>> {
        let args = ["record", "--out", out, "--episodes", "2", "--task", "reach", "--json"];
        json(&[&args[..], form].concat())
    };
    record(&data, &[])?;
    record(&live, &form)?;
    json(&[&["episodes", "convert", &data, "--out", &film, "--json"][..], &form].concat())?;
    json(&["episodes", "convert", &film, "--out", &back, "--images", "--json"])?;
    json(&["episodes", "split", &film, "--out", &parts, "--parts", "a=0:1,b=1:2", "--json"])?;
    let part = |name: &str| text(&Path::new(&parts).join(name));
    json(&["episodes", "merge", &part("b"), &part("a"), "--out", &all, "--json"])?;
    let dtype = |folder: &str| -> Result<Value, Box<dyn std::error::Error>> {
        let said = json(&["episodes", "inspect", folder, "--json"])?;
        let columns = said["columns"].as_array().ok_or("no columns")?;
        let front = columns.iter().find(|column| column["key"] == "observation.images.front");
        Ok(front.ok_or("no camera")?["dtype"].clone())
    };
    for (folder, kind) in
        [(&data, "image"), (&film, "video"), (&back, "image"), (&all, "video"), (&live, "video")]
    {
        assert_eq!(dtype(folder)?, kind);
        assert_eq!(json(&["episodes", "check", folder, "--json"])?["problems"], serde_json::json!([]));
    }
    let [seen, film, back, all, live] =
        [data, film, back, all, live].map(|folder| Dataset::open(Path::new(&folder)));
    let (seen, film, back, all, live) = (seen?, film?, back?, all?, live?);
    // Statistics are those of the pictures that were seen, whatever became of them.
    assert_eq!(film.stats()?["observation.images.front"], seen.stats()?["observation.images.front"]);
    assert_eq!(live.stats()?, seen.stats()?);
    let mut worst = f64::INFINITY;
    for (index, merged) in [(0, 1), (1, 0)] {
        let (a, b, c) = (seen.episode(index)?, film.episode(index)?, back.episode(index)?);
        assert_eq!(b.frames, c.frames, "decoded once is decoded for good");
        assert_eq!(all.episode(merged)?.frames, b.frames);
        assert_eq!(live.episode(index)?.frames, b.frames, "recorded as video or made video is the same");
        for (a, b) in a.frames.iter().zip(&b.frames) {
            assert_eq!((&a.action, a.timestamp_secs), (&b.action, b.timestamp_secs));
            for (a, b) in a.observation.frames.iter().zip(&b.observation.frames) {
                let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
                let mean = a.rgb.iter().zip(&*b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64;
                worst = f64::min(worst, 10.0 * (255.0 * 255.0 / mean).log10());
            }
        }
    }
    println!("the simulator's pictures at quantiser 16: worst {worst:.1} dB");
    assert!(worst > 33.0, "{worst:.1} dB");
    // From one codec to the other; what is recorded is H.264.
    let [av1, none] = ["av1", "none"].map(|name| text(&dir.path().join(name)));
    json(&["episodes", "convert", &golden("lerobot_v30_h264"), "--video", "av1", "--out", &av1, "--json"])?;
    let info: Value = serde_json::from_slice(&std::fs::read(Path::new(&av1).join("meta/info.json"))?)?;
    let said = &info["features"]["observation.images.front"]["info"];
    assert_eq!(
        (&said["video.codec"], &said["video.g"], &said["video.crf"]),
        (&"av1".into(), &2.into(), &30.into())
    );
    assert_eq!(json(&["episodes", "check", &av1, "--json"])?["problems"], serde_json::json!([]));
    let output = vela(&["record", "--out", &none, "--video", "av1"])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected h264") && !Path::new(&none).exists());
    let output = vela(&["record", "--out", &part("c"), "--video-qp", "20"])?;
    assert_eq!(output.status.code(), Some(2), "a quality needs a codec");
    Ok(())
}

#[test]
fn episodes_are_converted_merged_split_and_counted() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [new, all, parts] = ["new", "all", "parts"].map(|name| text(&dir.path().join(name)));
    let old = golden("lerobot_v21");
    assert_eq!(json(&["episodes", "inspect", &old, "--json"])?["version"], "v2.1");
    assert_eq!(json(&["episodes", "convert", &old, "--out", &new, "--json"])?["written"][0]["frames"], 15);
    let seen = json(&["episodes", "inspect", &new, "--json"])?;
    assert_eq!((&seen["version"], &seen["fps"]), (&"v3.0".into(), &10.0.into()));
    assert_eq!(seen["episodes"][1]["tasks"][0], "lift the ball");
    let merged = json(&["episodes", "merge", &new, &golden("lerobot_v30"), "--out", &all, "--json"])?;
    assert_eq!(merged["written"][0]["episodes"], 6);
    let split = ["episodes", "split", &all, "--out", &parts, "--parts", "train=0.5,val=4:6", "--json"];
    let made = json(&split)?;
    assert_eq!((&made["written"][0]["episodes"], &made["written"][1]["episodes"]), (&3.into(), &2.into()));
    let train = text(&Path::new(&parts).join("train"));
    assert_eq!(json(&["episodes", "check", &train, "--json"])?["problems"], serde_json::json!([]));
    let stats = json(&["episodes", "stats", &train, "--json"])?;
    assert_eq!(stats["stats"]["observation.state"]["max"], serde_json::json!([2.3125, 0.625]));
    assert_eq!(stats["stats"]["action"]["q50"][0], 1.6875);
    for args in [
        vec!["episodes", "convert", &old, "--out", &new],
        vec!["episodes", "split", &all, "--out", &parts, "--parts", "a=0.7,b=0.7"],
        vec!["episodes", "inspect", &parts],
    ] {
        let output = vela(&args)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.starts_with("vela: "), "{args:?}: {words}");
    }
    Ok(())
}

/// Takes out what may differ between two runs.
fn without_timings(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|key, _| !key.ends_with("_ms"));
        map.values_mut().for_each(without_timings);
    }
}

#[test]
fn a_replay_is_a_gate_that_repeats_to_the_byte() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = text(&dir.path().join("data"));
    let rrd = text(&dir.path().join("replay.rrd"));
    json(&["record", "--out", &data, "--episodes", "2", "--task", "reach", "--seed", "3", "--json"])?;
    let args = ["replay", &data, "--policy", "builtin", "--seed", "5", "--sim", "--json"];
    let mut first = json(&args)?;
    let mut again = json(&[&args[..], &["--rrd", &rrd]].concat())?;
    assert!(first["latency_ms"]["p50"].as_f64().ok_or("no latency")? > 0.0);
    without_timings(&mut first);
    without_timings(&mut again);
    assert_eq!(serde_json::to_vec(&first)?, serde_json::to_vec(&again)?);
    assert!(std::fs::metadata(&rrd)?.len() > 10_000);
    // Another seed is other noise.
    let mut other = json(&["replay", &data, "--policy", "builtin", "--seed", "6", "--sim", "--json"])?;
    without_timings(&mut other);
    assert_ne!(first["mae_rad"], other["mae_rad"]);
    let (frames, joints) = (&first["frames"], first["joints"].as_array().ok_or("no joints")?.len());
    assert_eq!((&first["inferences"], &first["gate"]["ticks"], joints), (frames, frames, 6));
    assert_eq!(first["mae_by_joint_rad"].as_array().map(Vec::len), Some(6));
    let steps = first["mae_by_step_rad"].as_array().ok_or("no steps")?.len();
    assert!(steps > 4 && first["splice"]["count"].as_u64() > Some(0), "{first}");
    let worst = first["worst"].as_array().ok_or("no worst")?;
    assert!(worst.len() == 5 && worst[0]["mae_rad"].as_f64() >= worst[4]["mae_rad"].as_f64());
    // The same actions in the same scene: the same arm, but for the 32 bits in which actions are kept.
    for episode in first["sim"].as_array().ok_or("no sim")? {
        assert_eq!((&episode["same_scene"], &episode["success"]), (&true.into(), &true.into()), "{episode}");
        assert!(episode["max_rad"].as_f64().ok_or("no error")? < 1e-3, "{episode}");
    }
    for (condition, holds) in
        [("mae>10", false), ("mae>0.000001", true), ("mae.gripper<10", true), ("trips>=0", true)]
    {
        let output =
            vela(&["replay", &data, "--policy", "builtin", "--episode", "0", "--fail-if", condition])?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(i32::from(holds)), "{condition}: {words}");
        assert_eq!(words.contains("holds"), holds, "{words}");
    }
    let output = vela(&["replay", &data, "--policy", "builtin", "--fail-if", "mea>1"])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("known: latency_p50_ms, latency_p99_ms, mae"));
    assert_eq!(vela(&["replay", &data, "--fail-if", "mae"])?.status.code(), Some(2));
    Ok(())
}

/// A recording of Meta-World as `vela record --env` makes it: the hand goes up, its fingers close.
fn meta_world(out: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/metaworld.toml");
    let robot = Embodiment::load(&file)?;
    let mut writer = DatasetWriter::create(out, &robot, robot.control_hz as u32)?;
    for k in 0..12 {
        let joints = |k: i32| vec![0.0, 0.6, 0.2 + 0.002 * f64::from(k), 0.08 * f64::from(k)];
        let frames = robot.cameras.iter().map(|camera| Frame {
            camera: camera.name.clone(),
            width: camera.width,
            height: camera.height,
            rgb: vec![20 * k as u8; (camera.width * camera.height * 3) as usize].into(),
            stamp: Stamp(0),
        });
        let seen = Observation {
            frames: frames.collect(),
            joint_positions: joints(k),
            instruction: "reach the red point".into(),
            stamp: Stamp(0),
        };
        writer.add_frame(&seen, &Action { joint_targets: joints(k + 1) })?;
    }
    writer.end_episode("reach the red point", Value::Null)?;
    Ok(file)
}

#[test]
fn any_dataset_is_shown_and_a_policy_needs_its_robot() -> Outcome {
    let dir = tempfile::tempdir()?;
    let rrd = text(&dir.path().join("shown.rrd"));
    let complaint = |args: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let output = vela(&[&["replay"][..], args].concat())?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.trim().lines().count() == 1, "{args:?}: {words}");
        Ok(words)
    };
    // LeRobot's own, of a robot that nobody described: curves and pictures.
    for name in ["lerobot_v21", "lerobot_v21_av1", "lerobot_v30", "lerobot_v30_av1", "lerobot_v30_h264"] {
        let shown = json(&["replay", &golden(name), "--rrd", &rrd, "--json"])?;
        assert_eq!((&shown["episodes"], &shown["frames"]), (&3.into(), &15.into()), "{name}");
        assert!(std::fs::metadata(&rrd)?.len() > 10_000, "{name}");
    }
    let foreign = golden("lerobot_v30");
    assert_eq!(
        json(&["replay", &foreign, "--episode", "1", "--json"])?["recorded"][0]["task"],
        "lift the ball"
    );
    for more in [["--sim", "--json"], ["--policy", "builtin"]] {
        let words = complaint(&[&[foreign.as_str()][..], &more].concat())?;
        assert!(words.contains("no meta/embodiment.json") && words.contains("--robot FILE"), "{words}");
    }
    // Another robot than the built-in one: its file is needed for a policy alone, and must be the dataset's.
    let data = dir.path().join("hand");
    let hand = text(&meta_world(&data)?);
    let data = text(&data);
    assert_eq!(json(&["replay", &data, "--rrd", &rrd, "--json"])?["frames"], 12);
    assert_eq!(json(&["replay", &data, "--robot", &hand, "--rrd", &rrd, "--json"])?["frames"], 12);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let policy = text(&root.join("models/metaworld"));
    let words = complaint(&[&data, "--policy", &policy])?;
    assert!(
        words.contains("not recorded with the built-in so101") && words.contains("--robot FILE"),
        "{words}"
    );
    assert!(words.contains("hand_x") && words.contains("shoulder_pan"), "{words}");
    let compared = json(&["replay", &data, "--robot", &hand, "--policy", &policy, "--every", "4", "--json"])?;
    assert_eq!(
        (&compared["inferences"], &compared["joints"][3]),
        (&3.into(), &"fingers".into()),
        "{compared}"
    );
    assert!(compared["mae_rad"].as_f64().is_some_and(f64::is_finite), "{compared}");
    let arm = text(&root.join("configs/robots/so101.toml"));
    for dataset in [&data, &foreign] {
        let words = complaint(&[dataset, "--robot", &arm])?;
        assert!(
            words.contains("not recorded with the robot of") && words.contains("shoulder_lift"),
            "{words}"
        );
        assert!(words.contains("against"), "{words}");
    }
    assert!(complaint(&[&data, "--robot", &hand, "--policy", "builtin"])?.contains("shoulder_pan"));
    complaint(&[&data, "--robot", &hand, "--sim"])?;
    Ok(())
}

#[test]
fn a_rescue_is_marked_as_an_intervention() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = text(&dir.path().join("data"));
    let args = ["record", "--out", &data, "--episodes", "1", "--task", "pick", "--policy", "builtin"];
    json(&[&args[..], &["--rescue-secs", "0.3", "--json"]].concat())?;
    let frames = Dataset::open(Path::new(&data))?.episode(0)?.frames;
    let marked = frames.iter().position(|frame| frame.intervention).ok_or("no frame is marked")?;
    assert!((8..=10).contains(&marked), "{marked}");
    assert!(frames[marked..].iter().all(|frame| frame.intervention));
    let shown = json(&["replay", &data, "--json"])?;
    assert_eq!(shown["recorded"][0]["interventions"], frames.len() - marked);
    let output = vela(&["record", "--out", &data, "--rescue-secs", "1"])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("--policy"));
    Ok(())
}
