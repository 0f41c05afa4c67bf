//! SigLIP against the reference run in `tests/golden/siglip`, stage by stage.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::Result;
use vela_nn::parity::{compare, judge};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

#[test]
fn siglip_agrees_at_every_stage() -> Result<()> {
    let dir = case("siglip");
    let golden: HashMap<String, Tensor> =
        candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    let config = serde_json::from_str(&text).unwrap_or_default();
    let stages = vela_vision::trace::trace(&dir, &config, &golden)?;
    let verdict = judge(&golden, &stages)?;
    assert!(verdict.pass && verdict.present == 15, "{verdict:?}");
    Ok(())
}

#[test]
fn batch_n_equals_n_singles() -> Result<()> {
    let dir = case("siglip");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let weights = vela_nn::Weights::load_dir(&dir)?;
    let model = vela_vision::Siglip::new(&weights, &config)?;
    let pixels = &golden["in.pixel_values"];
    let both = model.vision().forward(pixels)?;
    for i in 0..pixels.dim(0)? {
        let one = model.vision().forward(&pixels.narrow(0, i, 1)?)?;
        assert!(compare("", &one, &both.narrow(0, i, 1)?)?.max_abs_over_spread < 1e-5);
    }
    Ok(())
}
