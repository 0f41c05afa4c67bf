//! SmolVLM against the reference run in `tests/golden/smolvlm`, stage by stage.

use candle_core::Device;
use std::path::PathBuf;
use vela_nn::Result;
use vela_nn::parity::{compare, judge};
use vela_vision::Preprocessor;
use vela_vision::trace::{picture, prepared};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

#[test]
fn smolvlm_agrees_at_every_stage_and_writes_the_same_tokens() -> Result<()> {
    let dir = case("smolvlm");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let stages = vela_fusion::trace::trace(&dir, &golden)?;
    let verdict = judge(&golden, &stages)?;
    assert!(verdict.pass && verdict.present == 18, "{verdict:?}");
    Ok(())
}

#[test]
fn smolvlm_cuts_a_picture_into_the_same_tiles() -> Result<()> {
    let dir = case("smolvlm");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let made = prepared(&Preprocessor::load(&dir)?, &picture(&golden["in.image"])?)?;
    for (name, got) in &made {
        let difference = compare(name, got, &golden[&format!("in.{name}")])?.max_abs_over_spread;
        assert!(difference == 0.0, "{name}: {difference}");
    }
    Ok(())
}
