//! From parts to a VLM that is asked published questions, over the built binary: a tiny one.

#[path = "../train/tests/tiny_vlm/mod.rs"]
mod tiny_vlm;

use serde_json::Value;
use std::process::{Command, Output};
use tiny_vlm::{Outcome, run, write_parts, write_questions};

fn vela(args: &[&str]) -> Outcome<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_vela")).args(args).output()?)
}

#[test]
fn parts_are_trained_together_and_asked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    write_parts(&dir.path().join("parts"))?;
    write_questions(&dir.path().join("data"))?;
    let config = run(&dir.path().join("parts"), &dir.path().join("data"));
    std::fs::write(path("run.toml"), toml::to_string(&config)?)?;
    let trained =
        vela(&["train", "vlm", "--config", &path("run.toml"), "--out", &path("out"), "--threads", "1"])?;
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let (model, data) = (path("out/model"), path("data"));
    let score = |more: &[&str]| -> Outcome<Value> {
        let mut args = vec!["eval", "vqa", "--model", &model, "--data", &data, "--threads", "1", "--json"];
        args.extend(more);
        let output = vela(&args)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let report = score(&[])?;
    assert_eq!((&report["pictures"], &report["questions"]), (&3.into(), &9.into()));
    let right = |part: &str| report["all"][part]["right"].as_u64();
    // What can be said without looking: one colour of three, twice two verdicts of three.
    assert_eq!(right("question_only"), Some(5));
    assert!(right("picture") >= Some(8), "{report:#}");
    assert!(right("grey") < right("picture"), "{report:#}");
    assert_eq!(report["kinds"]["colour"]["picture"]["all"], 3);
    assert_eq!(report["kinds"]["yes or no, denied"]["picture"]["all"], 3);
    assert_eq!(score(&["--limit", "1"])?["questions"], 3);
    for (args, want) in [
        (["eval", "vqa", "--data", &data, "--model", "builtin"], "expected --model FOLDER"),
        (["eval", "vqa", "--data", &path("parts"), "--model", &model], "questions.json"),
    ] {
        let output = vela(&args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(want), "{said}");
    }
    Ok(())
}
