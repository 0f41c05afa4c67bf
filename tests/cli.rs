//! End to end, over the built binary: what each verb prints, what it leaves behind, and how it fails.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    Ok(Command::new(env!("CARGO_BIN_EXE_vela")).args(args).output()?)
}

/// Runs a verb that must succeed and print JSON.
fn json(args: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let output = vela(args)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The one sentence of a verb that must fail with status 1.
fn complaint(args: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let output = vela(args)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {words}");
    assert!(words.starts_with("vela: ") && !words.contains("panicked"), "{words}");
    Ok(words)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_verb_explains_itself_and_wrong_usage_is_status_2() -> Outcome {
    for verb in ["demo", "eval", "sim", "act", "record", "replay", "train", "verify"] {
        let help = vela(&[verb, "--help"])?;
        assert!(help.status.success() && help.stdout.len() > 200, "{verb} --help");
    }
    assert_eq!(vela(&["juggle"])?.status.code(), Some(2));
    assert_eq!(vela(&["eval", "--episodes", "many"])?.status.code(), Some(2));
    // What a live arm's recording has no use for is refused, and said why in the help.
    let live = ["record", "--out", "nowhere", "--task", "x", "--robot", "arm.toml"];
    for rest in [&["--sim"][..], &["--seed", "3"], &["--policy", "builtin"]] {
        let refused = vela(&[&live[..], rest].concat())?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{words}");
        assert!(words.contains("'--robot <FILE>' cannot be used with") && words.contains(rest[0]), "{words}");
    }
    let help = String::from_utf8_lossy(&vela(&["record", "--help"])?.stdout).into_owned();
    assert!(help.contains("it runs as `vela act`") && help.contains("the file's `policy_units`"), "{help}");
    let env = ["record", "--out", "nowhere", "--sim", "--env", "vela/gym"];
    assert_eq!(vela(&env)?.status.code(), Some(2));
    Ok(())
}

/// Seen once: `vela … | head` panicked.
#[test]
fn what_nobody_reads_ends_quietly_and_a_full_disk_is_an_error() -> Outcome {
    let model = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tabletop"));
    let dir = tempfile::tempdir()?;
    let picture = text(&dir.path().join("a.png"));
    let verbs: [&[&str]; 3] = [
        &["inspect", &model],
        &["sim", "--seed", "7", "--json", "--snapshot", &picture],
        &["eval", "--policy", "expert", "--task", "reach", "--episodes", "1"],
    ];
    for args in verbs {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_vela")).args(args).stdout(writer).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(141), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full")?;
    let output = Command::new(env!("CARGO_BIN_EXE_vela")).args(verbs[0]).stdout(full).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("vela: writing to standard output"), "{said}");
    // Nobody hears the complaint either: still status 1 and no panic.
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let deaf =
        Command::new(env!("CARGO_BIN_EXE_vela")).args(["replay", "nowhere"]).stderr(writer).status()?;
    assert_eq!(deaf.code(), Some(1));
    Ok(())
}

#[test]
fn a_snapshot_is_a_picture_and_the_truth_and_repeats() -> Outcome {
    let dir = tempfile::tempdir()?;
    let picture = |name: &str| text(&dir.path().join(name));
    let [first, again] = ["a.png", "b.png"].map(picture);
    let scene = json(&["sim", "--snapshot", &first, "--seed", "7", "--json"])?;
    let objects = scene["objects"].as_array().ok_or("no objects")?;
    assert!(objects.len() >= 3, "{scene}");
    for object in objects {
        assert!(object["color"].is_string() && object["shape"].is_string());
        assert_eq!(object["position_m"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(scene, json(&["sim", "--snapshot", &again, "--seed", "7", "--json"])?);
    assert_eq!(std::fs::read(&first)?, std::fs::read(&again)?);
    let size = image::image_dimensions(&first)?;
    assert_eq!(size, (640, 480));
    Ok(())
}

#[test]
fn the_expert_s_rates_are_counted_with_an_interval() -> Outcome {
    let report = json(&["eval", "--policy", "expert", "--episodes", "10", "--json"])?;
    let tasks = report["tasks"].as_array().ok_or("no tasks")?;
    assert_eq!(tasks.len(), 5);
    assert!(report["rate"].as_f64().ok_or("no rate")? >= 0.9, "{report}");
    for task in tasks {
        assert_eq!(task["episodes"], 10);
        let interval = task["ci95"].as_array().ok_or("no interval")?;
        assert!(interval[0].as_f64() <= task["rate"].as_f64());
    }
    Ok(())
}

#[test]
fn the_built_in_policy_plays_a_suite() -> Outcome {
    let args = ["eval", "--task", "reach", "--episodes", "3", "--json"];
    let report = json(&args)?;
    assert_eq!(report["tasks"][0]["task"], "reach");
    assert!(report["policy_ms"]["p50"].as_f64().ok_or("no latency")? > 0.0);
    let again = json(&args)?;
    assert_eq!(report["tasks"], again["tasks"], "the same seeds give the same episodes");
    Ok(())
}

#[test]
fn a_recording_is_replayed_and_compared_with_a_policy() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = text(&dir.path().join("data"));
    let rrd = dir.path().join("replay.rrd");
    let recorded =
        json(&["record", "--sim", "--out", &data, "--episodes", "2", "--task", "reach", "--json"])?;
    assert_eq!(recorded["episodes"], 2);
    let shown = json(&["replay", &data, "--rrd", &text(&rrd), "--json"])?;
    assert_eq!(shown["frames"], recorded["frames"]);
    assert!(std::fs::metadata(&rrd)?.len() > 10_000);
    let compare = || -> Result<Value, Box<dyn std::error::Error>> {
        let mut compared = json(&["replay", &data, "--policy", "builtin", "--json"])?;
        let took = compared.as_object_mut().and_then(|all| all.remove("latency_ms"));
        assert!(took.is_some_and(|ms| ms["p50"].as_f64().is_some_and(|p50| p50 > 0.0)));
        Ok(compared)
    };
    let compared = compare()?;
    assert!(compared["mae_rad"].as_f64().ok_or("no error")? < 1.0);
    assert_eq!(compared, compare()?);
    // An arm's own file narrows the gate, for the policy's chunks and for what is played again.
    let robot = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml");
    let trips = |gate: &str| -> Result<[u64; 2], Box<dyn std::error::Error>> {
        let arm = dir.path().join("arm.toml");
        std::fs::write(&arm, format!("robot = '{}'\n[ros2]\n{gate}", text(&robot)))?;
        let args =
            ["replay", &data, "--policy", "builtin", "--robot", &text(&arm), "--sim", "--episode", "0"];
        let told = json(&[&args[..], &["--json"]].concat())?;
        let ticks = [&told["gate"]["tripped_ticks"], &told["sim"][0]["tripped_ticks"]];
        Ok(ticks.map(|ticks| ticks.as_u64().unwrap_or(u64::MAX)))
    };
    let (wide, narrow) = (trips("")?, trips("[gate.joints.shoulder_lift]\nvelocity = 0.02\n")?);
    assert!(narrow[0] > wide[0] + 5 && narrow[1] > wide[1] + 5, "{wide:?} {narrow:?}");
    // Adding to it works; another robot's data would be refused by the dataset's own tests.
    let more = json(&["record", "--out", &data, "--episodes", "1", "--task", "reach", "--json"])?;
    assert_eq!(more["episodes"], 3);
    Ok(())
}

#[test]
fn the_demo_moves_the_arm_over_zenoh_and_records_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let rrd = dir.path().join("demo.rrd");
    let report = json(&["demo", "--task", "reach", "--rrd", &text(&rrd), "--json"])?;
    let episode = &report["episodes"][0];
    assert!(episode["chunks"].as_u64().ok_or("no chunks")? >= 1, "{report}");
    assert!(episode["ticks"].as_u64().ok_or("no ticks")? >= 5, "{report}");
    assert!(std::fs::metadata(&rrd)?.len() > 10_000);
    Ok(())
}

#[test]
fn sim_and_act_meet_in_two_processes() -> Outcome {
    let sim = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["sim", "--task", "reach", "--wait-secs", "60", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut act = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["act", "--for-secs", "120"])
        .stderr(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    let output = sim.wait_with_output()?;
    act.kill()?;
    act.wait()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert!(report["chunks"].as_u64().ok_or("no chunks")? >= 1, "{report}");
    assert!(started.elapsed() < Duration::from_secs(100));
    Ok(())
}

#[test]
fn bad_input_gets_one_clear_sentence() -> Outcome {
    let dir = tempfile::tempdir()?;
    let here = text(dir.path());
    assert!(complaint(&["demo", "--task", "juggle"])?.contains("known: reach, push, pick, place, stack"));
    assert!(complaint(&["demo", "--task", "fold the shirt"])?.contains("fold"));
    assert!(complaint(&["eval", "--suite", "kitchen"])?.contains("known: tabletop"));
    assert!(complaint(&["eval", "--policy", "nowhere"])?.contains("known: builtin, expert"));
    assert!(complaint(&["eval", "--policy", &here])?.contains("config.json"));
    assert!(complaint(&["replay", &here])?.contains("info.json"));
    assert!(complaint(&["train", "--config", "nowhere.toml"])?.contains("nowhere.toml"));
    Ok(())
}

#[test]
fn a_torn_or_foreign_checkpoint_is_refused_with_every_difference() -> Outcome {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tabletop");
    let dir = tempfile::tempdir()?;
    let copy = dir.path();
    for entry in std::fs::read_dir(&shipped)? {
        let entry = entry?;
        std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
    }
    let eval = ["eval", "--task", "reach", "--episodes", "1", "--policy", &text(copy)];
    let weights = std::fs::read(copy.join("model.safetensors"))?;
    std::fs::write(copy.join("model.safetensors"), &weights[..weights.len() / 2])?;
    complaint(&eval)?;
    std::fs::write(copy.join("model.safetensors"), &weights)?;
    // Another robot: its joints have other names.
    let embodiment = std::fs::read_to_string(copy.join("embodiment.json"))?;
    std::fs::write(copy.join("embodiment.json"), embodiment.replace("elbow_flex", "knee"))?;
    assert!(complaint(&eval)?.contains("knee"));
    std::fs::write(copy.join("embodiment.json"), &embodiment)?;
    // A deeper network than the weights: the missing tensors are named.
    let config = std::fs::read_to_string(copy.join("config.json"))?;
    let mut deeper: Value = serde_json::from_str(&config)?;
    let layers = deeper["decoder"]["layers"].as_u64().ok_or("no layers")?;
    deeper["decoder"]["layers"] = (layers + 1).into();
    std::fs::write(copy.join("config.json"), deeper.to_string())?;
    let words = complaint(&eval)?;
    assert!(words.contains("missing") && words.contains(&format!("layers.{layers}.")), "{words}");
    Ok(())
}
