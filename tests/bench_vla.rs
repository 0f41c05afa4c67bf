//! `vela bench vla`, over the built binary.

use serde_json::Value;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_vela")).args(["bench", "vla"]).args(args).output()
}

#[test]
fn a_published_shape_is_measured_stage_by_stage() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/smolvla");
    for args in [
        vec!["--arch", "act", "--views", "1", "--chunks", "1", "--dtype", "int8", "--json"],
        vec!["--model", folder, "--steps", "3", "--chunks", "2", "--dtype", "bf16", "--error", "--json"],
    ] {
        let output = bench(&args)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let measured: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| measured.pointer(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        for name in ["/vision_ms", "/prefix_ms", "/denoise_ms", "/chunk_ms/p50", "/chunk_ms/p99", "/rss_mb"] {
            assert!(number(name) > 0.0, "{name} in {measured}");
        }
        let moved = number("/action_error/rms");
        assert_eq!(args.contains(&"--error"), moved > 0.0 && moved < 0.02, "{measured}");
        assert!(number("/chunk_ms/p50") <= number("/chunk_ms/p99"));
        for name in ["/peak_share", "/stage_shares/vision", "/stage_shares/prefix", "/stage_shares/denoise"] {
            assert!((0.0..1.5).contains(&number(name)), "{name} in {measured}");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_measured_is_one_sentence() -> std::io::Result<()> {
    let said = |args: &[&str]| -> std::io::Result<(Option<i32>, String)> {
        let output = bench(args)?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    assert_eq!(said(&[])?.0, Some(2));
    assert_eq!(said(&["--arch", "teapot"])?.0, Some(2));
    let (code, error) = said(&["--arch", "act", "--steps", "3"])?;
    assert!(code == Some(1) && error.contains("no denoising steps"), "{error}");
    let (code, error) = said(&["--arch", "diffusion", "--dtype", "int8"])?;
    assert!(code == Some(1) && error.contains("convolutions are float32"), "{error}");
    Ok(())
}
