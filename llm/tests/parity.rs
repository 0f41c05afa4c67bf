//! Every text family against its reference run in `tests/golden`, stage by stage.

use candle_core::Device;
use std::path::PathBuf;
use vela_llm::trace;
use vela_nn::Result;
use vela_nn::parity::judge;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// All `out.*`: float stages within the bound, generated tokens equal.
fn agrees(name: &str, stages: usize) -> Result<()> {
    let dir = case(name);
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let verdict = judge(&golden, &trace::trace(&dir, &golden)?)?;
    let worst = verdict.stages.iter().map(|stage| stage.max_abs_over_spread).fold(0.0, f32::max);
    println!("{name}: worst stage {worst:.1e} of the spread");
    assert!(verdict.pass && verdict.present == stages, "{name}: {verdict:#?}");
    Ok(())
}

macro_rules! families {
    ($($name:ident: $stages:literal)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            agrees(stringify!($name), $stages)
        })*
    };
}

families! {
    gemma: 6
    gemma2: 8
    gemma3_text: 8
    gpt2: 6
    llama: 6
    llama_leftpad: 6
    llama_linear: 6
    llama_llama3: 6
    mistral: 6
    mixtral: 6
    opt: 6
    phi: 6
    phi3: 6
    qwen2: 6
    qwen2_moe: 6
    qwen3: 6
    qwen3_moe: 6
    t5: 9
}
