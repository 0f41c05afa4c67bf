//! From parts to a VLM that is asked published questions, over the built binary: a tiny one.

#[path = "../train/tests/tiny_vlm/mod.rs"]
mod tiny_vlm;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tiny_vlm::{Outcome, run, write_parts, write_questions};
use vela_fusion::{ChatModel, PictureLimits};

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
    // Of each picture's four tokens all, or two.
    assert_eq!(score(&["--merge", "4"])?, report);
    assert_eq!(score(&["--merge", "2"])?["questions"], 9);
    let picture = path("data/test/images/0.png");
    let look = |keep: Option<usize>| -> Outcome<_> {
        let chat = ChatModel::load(Path::new(&model), 0)?.keeping(keep)?;
        let seen = chat.look(&std::fs::read(&picture)?, &PictureLimits::default())?;
        Ok((seen.room.tokens, seen.places.is_some()))
    };
    assert_eq!((look(None)?, look(Some(2))?), ((4, true), (2, false)));
    for (args, want) in [
        (["eval", "vqa", "--data", &data, "--model", "builtin"], "expected --model FOLDER"),
        (["eval", "vqa", "--data", &path("parts"), "--model", &model], "questions.json"),
    ] {
        refused(&args, want)?;
    }
    refused(
        &["eval", "vqa", "--data", &data, "--model", &model, "--merge", "5"],
        "expected 1 to 4 tokens to be kept, got 5",
    )
}

fn refused(args: &[&str], want: &str) -> Outcome {
    let output = vela(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(want), "{said}");
    Ok(())
}

#[test]
fn the_vlm_inside_reads_as_many_tokens_of_a_picture_as_are_asked_for() -> Outcome {
    let report = |more: &[&str]| -> Outcome<Value> {
        let output = vela(&[&["eval", "vqa", "--pictures", "2", "--json"], more].concat())?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let (plain, all) = (report(&[])?, report(&["--merge", "36"])?);
    assert_eq!(plain["kinds"], all["kinds"]);
    assert_eq!((&plain["merge"], &all["merge"]), (&Value::Null, &36.into()));
    for (merge, got) in [("0", "got 0"), ("37", "got 37")] {
        let want = format!("expected 1 to 36 tokens to be kept, {got}");
        refused(&["eval", "vqa", "--pictures", "1", "--merge", merge], &want)?;
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("grey.png");
    image::RgbImage::from_pixel(96, 96, image::Rgb([128; 3])).save(&file)?;
    let picture = file.display().to_string();
    let read = |more: &[&str]| -> Outcome<Option<u64>> {
        let asked = ["ask", &picture, "what is in the picture?", "--max-tokens", "2", "--json"];
        let output = vela(&[&asked, more].concat())?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice::<Value>(&output.stdout)?["prompt_tokens"].as_u64())
    };
    let plain = read(&[])?;
    assert_eq!(read(&["--merge", "36"])?, plain);
    assert_eq!(read(&["--merge", "9"])?, plain.map(|tokens| tokens - 27));
    refused(&["ask", &picture, "what is in the picture?", "--merge", "37"], "expected 1 to 36 tokens")?;
    refused(&["ask", "hello", "--merge", "9"], "--merge: expected a picture")
}
