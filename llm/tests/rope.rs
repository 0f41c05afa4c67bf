//! Rotary scalings, read from a config, against what `transformers` makes of the same config in double precision
//! (`scripts/golden_rope.py`).

use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;
use vela_llm::DecoderConfig;
use vela_nn::{Error, Result, Rope};

const FAR: f64 = 1e-6;

fn close(what: &str, got: &[f32], want: &[f64], far: impl Fn(f64) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= far(*want), "{what} at {i}: {got} for {want}");
    }
}

/// All numbers of a list, or of a list of lists.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => value.as_f64().into_iter().collect(),
    }
}

#[test]
fn scalings_turn_as_transformers_does() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/rope/golden.json");
    let wrong = |e: &dyn std::fmt::Display| Error::invalid(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(&e))?;
    let cases: Vec<Value> = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
    let mut runs = 0;
    for case in &cases {
        let name = &case["name"];
        let rope = Rope::new(DecoderConfig::from_hf(&case["config"])?.rope)?;
        for run in case["runs"].as_array().into_iter().flatten() {
            let positions: Vec<u32> = numbers(&run["positions"]).into_iter().map(|p| p as u32).collect();
            let first = positions.iter().position(|p| *p == 1).ok_or_else(|| wrong(&"no position 1"))?;
            let angles = rope.at(&Tensor::new(positions, &Device::Cpu)?)?;
            let (cos, sin) = (angles.cos()?.squeeze(0)?, angles.sin()?.squeeze(0)?);
            let (c, s) = (cos.flatten_all()?.to_vec1::<f32>()?, sin.flatten_all()?.to_vec1::<f32>()?);
            let factor = run["attention_factor"].as_f64().unwrap_or(f64::NAN);
            let size = |_: f64| FAR * factor.max(1.0);
            close(&format!("{name}: cos"), &c, &numbers(&run["cos"]), size);
            close(&format!("{name}: sin"), &s, &numbers(&run["sin"]), size);
            // At position 0 nothing is turned, at position 1 by the frequencies themselves: each to its own digits.
            close(&format!("{name}: factor"), &c[..1], &[factor], |want| FAR * want);
            let (c, s) = (cos.get(first)?.to_vec1::<f32>()?, sin.get(first)?.to_vec1::<f32>()?);
            let turns: Vec<f32> = c.iter().zip(&s).map(|(c, s)| s.atan2(*c)).collect();
            close(&format!("{name}: turns"), &turns, &numbers(&run["inverse_frequencies"]), |want| {
                FAR * want
            });
            runs += 1;
        }
    }
    assert_eq!((cases.len(), runs), (14, 23));
    Ok(())
}
