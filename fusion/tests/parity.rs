//! SmolVLM against the reference run in `tests/golden/smolvlm`, stage by stage.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use vela_nn::{Error, Result};
use vela_vision::{Picture, Planes, TilingConfig};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    assert_eq!(got.dims(), want.dims());
    let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
    let (got, want) = (values(got)?, values(want)?);
    let mean = want.iter().sum::<f32>() / want.len() as f32;
    let spread = (want.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / want.len() as f32).sqrt();
    Ok(got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / spread)
}

#[test]
fn smolvlm_agrees_at_every_stage_and_writes_the_same_tokens() -> Result<()> {
    let dir = case("smolvlm");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let stages = vela_fusion::trace::trace(&dir, &golden)?;
    for (name, want) in golden.iter().filter(|(name, _)| name.starts_with("out.")) {
        let got = stages.get(name).ok_or_else(|| Error::invalid(format!("{name} is left out")))?;
        if want.dtype() == DType::I64 {
            assert_eq!(got.to_vec2::<i64>()?, want.to_vec2::<i64>()?, "{name}");
            continue;
        }
        let difference = difference(got, want)?;
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-4, "{name}: {difference}");
    }
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
    let difference = difference(&got, &golden["in.pixel_values"])?;
    println!("pixel_values: {difference:.1e}");
    assert!(difference < 1e-4, "{difference}");
    Ok(())
}
