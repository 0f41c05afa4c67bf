//! `vela train policy` by hand: what was recorded is learnt, and what was learnt is a policy to replay with.

use std::path::Path;
use std::process::{Command, Output};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(words: &[&str]) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_vela")).current_dir(env!("CARGO_MANIFEST_DIR")).args(words).output()
}

fn json(words: &[&str]) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
    let done = vela(words)?;
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        return Err(format!("{words:?}: {errors}").into());
    }
    Ok(serde_json::from_slice(&done.stdout)?)
}

fn text(path: &Path) -> Result<&str, &'static str> {
    path.to_str().ok_or("a path that is no text")
}

#[test]
fn a_recorded_dataset_teaches_the_policy_inside() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    let (data, out) = (text(&data)?, text(&out)?);
    json(&["record", "--out", data, "--episodes", "1", "--task", "reach", "--json"])?;

    let train = ["train", "policy", "--data", data, "--out", out, "--json", "--steps"];
    let first = json(&[&train[..], &["1"]].concat())?;
    assert_eq!(first["steps"], 1);
    // The same command takes it up again.
    let learnt = json(&[&train[..], &["2"]].concat())?;
    assert_eq!(learnt["steps"], 2);
    assert!(learnt["loss"].as_f64().is_some_and(f64::is_finite), "{learnt}");
    assert!(learnt["adapter"].as_str().is_some_and(|path| Path::new(path).is_dir()), "{learnt}");

    let policy = learnt["policy"].as_str().ok_or("no policy")?;
    let replayed = json(&["replay", data, "--policy", policy, "--every", "8", "--json"])?;
    assert!(replayed["mae_rad"].as_f64().is_some_and(|mae| mae < 0.5), "{replayed}");

    // What cannot be is said in one line.
    let refused = vela(&["train", "policy", "--data", data, "--base", "tests/golden/act", "--out", out])?;
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("'act' cannot be taken apart"), "{errors}");
    Ok(())
}
