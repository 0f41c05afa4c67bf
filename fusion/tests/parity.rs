//! VLMs against the reference runs in `tests/golden`, stage by stage.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::Result;
use vela_nn::parity::{compare, judge};
use vela_vision::Preprocessor;
use vela_vision::trace::{picture, prepared};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

/// Every stage agrees, and so does what the folder's preprocessor makes of the picture.
fn agrees(name: &str, outputs: usize) -> Result<()> {
    let (dir, golden) = (case(name), golden(name)?);
    let verdict = judge(&golden, &vela_fusion::trace::trace(&dir, &golden)?)?;
    let worst = verdict.stages.iter().map(|s| s.max_abs_over_spread).fold(0.0, f32::max);
    println!("{name}: {} stages, worst {worst:.1e}", verdict.stages.len());
    let bad: Vec<_> = verdict.stages.iter().filter(|stage| !stage.pass).collect();
    assert!(
        verdict.pass && verdict.present == outputs,
        "{bad:#?} {:?} {}",
        verdict.left_out,
        verdict.present
    );
    let Some(pixels) = golden.get("in.image") else { return Ok(()) };
    for (output, got) in prepared(&Preprocessor::load(&dir)?, &picture(pixels)?)? {
        if let Some(want) = golden.get(&format!("in.{output}")) {
            let difference = compare(&output, &got, want)?.max_abs_over_spread;
            assert!(difference == 0.0, "{name} {output}: {difference}");
        }
    }
    Ok(())
}

macro_rules! cases {
    ($($case:ident: $outputs:literal,)*) => {
        $(#[test] fn $case() -> Result<()> { agrees(stringify!($case), $outputs) })*
    };
}

cases! {
    smolvlm: 18,
    idefics3: 12,
    smolvlm_masked: 12,
    llava: 13,
    llava_next: 13,
    paligemma: 26,
    paligemma2: 13,
    internvl: 12,
    llava_onevision: 24,
    qwen2_vl: 32,
    qwen2_5_vl: 30,
    blip2_opt: 14,
    blip2_t5: 17,
}
