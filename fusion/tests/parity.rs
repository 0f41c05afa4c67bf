//! SmolVLM against the reference run in `tests/golden/smolvlm`, stage by stage.

use candle_core::Device;
use std::path::PathBuf;
use vela_nn::Result;
use vela_nn::parity::{compare, judge};
use vela_vision::{Picture, Planes, TilingConfig};

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
    let text = std::fs::read_to_string(dir.join("preprocessor_config.json")).unwrap_or_default();
    let image = &golden["in.image"];
    let (height, width, _) = image.dims3()?;
    let picture = Picture::new(width, height, image.flatten_all()?.to_vec1()?)?;
    let tiles = TilingConfig::from_json(&text)?.apply(&picture)?;
    let number = |name: &str| -> Result<usize> { Ok(golden[name].to_vec1::<i64>()?[0] as usize) };
    assert_eq!((tiles.rows, tiles.columns), (number("in.rows")?, number("in.cols")?));
    let got = Planes::stack(&tiles.pictures, &Device::Cpu)?.unsqueeze(0)?;
    let difference = compare("pixels", &got, &golden["in.pixel_values"])?.max_abs_over_spread;
    println!("pixel_values: {difference:.1e}");
    assert!(difference < 1e-4, "{difference}");
    Ok(())
}
