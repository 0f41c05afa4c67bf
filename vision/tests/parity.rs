//! SigLIP against the reference run in `tests/golden/siglip`, stage by stage.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::{Error, Result};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// The largest difference over the spread of the reference.
fn difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    assert_eq!(got.dims(), want.dims());
    let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
    let (got, want) = (values(got)?, values(want)?);
    let mean = want.iter().sum::<f32>() / want.len() as f32;
    let spread = (want.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / want.len() as f32).sqrt();
    Ok(got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / spread)
}

#[test]
fn siglip_agrees_at_every_stage() -> Result<()> {
    let dir = case("siglip");
    let golden: HashMap<String, Tensor> =
        candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    let config = serde_json::from_str(&text).unwrap_or_default();
    let stages = vela_vision::trace::trace(&dir, &config, &golden)?;
    let outputs: Vec<_> = golden.iter().filter(|(name, _)| name.starts_with("out.")).collect();
    assert_eq!(outputs.len(), 15);
    for (name, want) in outputs {
        let got = stages.get(name).ok_or_else(|| Error::invalid(format!("{name} is left out")))?;
        let difference = difference(got, want)?;
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-4, "{name}: {difference}");
    }
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
        assert!(difference(&one, &both.narrow(0, i, 1)?)? < 1e-5);
    }
    Ok(())
}
