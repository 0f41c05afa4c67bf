//! `vela eval heads` and `vela eval rtc` end to end: what they print, with little work.

use serde_json::Value;
use std::process::Command;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn vela(words: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let out = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(words)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

#[test]
fn the_heads_that_ship_play_and_the_two_ways_are_judged() -> Outcome {
    let report = vela(&[
        "eval",
        "heads",
        "--json",
        "--episodes",
        "2",
        "--heads",
        "regression-chunk,flow-step,flow-pixel-shuffle,flow-q-former",
        "--two-ways-steps",
        "2",
        "--scenes",
        "3",
    ])?;
    let heads = report["heads"].as_array().ok_or("no heads")?;
    for (row, (head, chunked)) in heads.iter().zip([("regression", true), ("flow", false)]) {
        assert_eq!((row["head"].as_str(), row["chunked"].as_bool()), (Some(head), Some(chunked)));
        assert_eq!(row["ci95"].as_array().map(Vec::len), Some(2), "{row}");
        assert_eq!(row["episodes"], 2);
        let positive = |key: &str| row[key].as_f64().is_some_and(|x| x > 0.0);
        assert!(
            row["rate"].is_number() && ["chunk_ms", "head_ms", "jerk", "bytes"].into_iter().all(positive),
            "{row}"
        );
    }
    let projectors = report["projectors"].as_array().ok_or("no projectors")?;
    let names: Vec<&str> = projectors.iter().filter_map(|row| row["projector"].as_str()).collect();
    assert_eq!(names, ["pixel-shuffle", "q-former"]);
    for row in projectors {
        let positive = |key: &str| row[key].as_f64().is_some_and(|x| x > 0.0);
        let figures = ["chunk_ms", "head_ms", "jerk", "bytes", "projector_parameters"];
        assert!(row["rate"].is_number() && figures.into_iter().all(positive), "{row}");
        assert_eq!((&row["head"], &row["tokens_per_picture"]), (&"flow".into(), &36.into()));
        assert_eq!(row["ci95"].as_array().map(Vec::len), Some(2), "{row}");
    }
    let ways = report["two_ways"].as_array().ok_or("no ways")?;
    let names: Vec<&str> = ways.iter().filter_map(|row| row["head"].as_str()).collect();
    assert_eq!(names, ["tokens", "tokens_at_once", "fast", "regression", "diffusion", "flow"]);
    let counted = |row: &Value| row["rate"].is_number() && row["left"].is_u64() && row["right"].is_u64();
    assert!(ways.iter().all(counted), "{ways:?}");
    Ok(())
}

#[test]
fn an_unknown_head_is_refused_with_those_that_are_known() -> Outcome {
    let out = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["eval", "heads", "--heads", "flow-mlp,flow-linear"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    let told =
        why.contains("unknown head 'flow-linear'") && why.contains("flow-step") && why.contains("flow-mlp");
    assert!(out.status.code() == Some(1) && told, "{why}");
    Ok(())
}

#[test]
fn delayed_chunks_are_played_with_and_without_real_time_chunking() -> Outcome {
    let report = vela(&["eval", "rtc", "--json", "--episodes", "2", "--delay-ms", "200"])?;
    let rows = report["rtc"].as_array().ok_or("no rows")?;
    let seen: Vec<_> = rows.iter().map(|row| (row["delay_ms"].as_u64(), row["rtc"].as_bool())).collect();
    let each = |ms| [(Some(ms), Some(false)), (Some(ms), Some(true))];
    assert_eq!(seen, [each(0), each(200)].concat());
    let jump = |k: usize| rows[k]["jump"]["p50"].as_f64().unwrap_or(f64::NAN);
    // The same episodes and the same noise every time.
    assert!(jump(3) < jump(2), "with {} and without {}", jump(3), jump(2));
    Ok(())
}

#[test]
fn real_time_chunking_is_switched_where_policies_play() -> Outcome {
    let eval = ["eval", "--task", "reach", "--episodes", "2", "--json", "--delay-ms", "200"];
    let plain = vela(&eval)?;
    let off = vela(&[&eval[..], &["--rtc", "off"]].concat())?;
    assert_eq!((&plain["delay_ms"], &plain["tasks"]), (&200.into(), &off["tasks"]));
    let report = vela(&[&eval[..], &["--rtc"]].concat())?;
    assert_eq!(report["tasks"][0]["episodes"], 2);
    for words in [
        ["eval", "--policy", "tests/golden/act", "--rtc"],
        ["demo", "--head", "flow-chunk", "--rtc"],
        ["act", "--policy", "tests/golden/act", "--rtc"],
        ["eval", "--policy", "expert", "--rtc"],
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_vela"))
            .args(words)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()?;
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && why.contains("real-time chunking"), "{words:?}: {why}");
    }
    Ok(())
}
