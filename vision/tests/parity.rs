//! Encoders against the reference runs in `tests/golden`, stage by stage.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::parity::{compare, judge};
use vela_nn::{Error, Result, Weights};
use vela_vision::{Towers, VisionConfig, Vit};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn open(name: &str) -> Result<(PathBuf, serde_json::Value, HashMap<String, Tensor>)> {
    let dir = case(name);
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    let config = serde_json::from_str(&text).map_err(|e| Error::parse("config.json", e))?;
    Ok((dir, config, golden))
}

fn agrees(name: &str, outputs: usize) -> Result<()> {
    let (dir, config, golden) = open(name)?;
    let verdict = judge(&golden, &vela_vision::trace::trace(&dir, &config, &golden)?)?;
    let worst = verdict.stages.iter().map(|s| s.max_abs_over_spread).fold(0.0, f32::max);
    println!("{name}: {} stages, worst {worst:.1e}", verdict.stages.len());
    assert!(verdict.pass && verdict.present == outputs, "{verdict:#?}");
    Ok(())
}

macro_rules! cases {
    ($($case:ident: $outputs:literal,)*) => {
        $(#[test] fn $case() -> Result<()> { agrees(stringify!($case), $outputs) })*
    };
}

cases! {
    vit: 6,
    clip: 16,
    siglip: 15,
    siglip2_naflex: 15,
    dinov2: 12,
    dinov2_with_registers: 12,
}

#[test]
fn batch_n_equals_n_singles() -> Result<()> {
    let (dir, config, golden) = open("siglip")?;
    let model = Towers::new(&Weights::load_dir(&dir)?, &config)?;
    let pixels = &golden["in.pixel_values"];
    let both = model.vision().forward(pixels)?;
    for i in 0..pixels.dim(0)? {
        let one = model.vision().forward(&pixels.narrow(0, i, 1)?)?;
        assert!(compare("", &one, &both.narrow(0, i, 1)?)?.max_abs_over_spread < 1e-5);
    }
    Ok(())
}

/// Some versions of the reference library write a tower's tensors as those of the pair that it was part of.
#[test]
fn a_tower_loads_with_and_without_the_prefix_of_a_pair() -> Result<()> {
    let (dir, config, golden) = open("dinov2")?;
    let plain = Weights::load_dir(&dir)?;
    let inside = plain.renamed(|name| format!("vision_model.{name}"))?;
    let pixels = &golden["in.pixel_values"];
    let [plain, inside] = [plain, inside].map(|weights| Vit::whole(&weights, &config)?.forward(pixels));
    let difference = (plain? - inside?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert_eq!(difference, 0.0);
    Ok(())
}

#[test]
fn a_tower_refuses_what_does_not_fit() -> Result<()> {
    let (dir, config, golden) = open("siglip")?;
    let model = Towers::new(&Weights::load_dir(&dir)?, &config)?;
    let small = golden["in.pixel_values"].narrow(2, 0, 42)?;
    assert!(model.vision().forward(&small).is_err_and(|e| e.to_string().contains("[b, 3, 56, 56]")));
    let long = Tensor::zeros((1, 17), candle_core::DType::U32, &Device::Cpu)?;
    assert!(model.embed_texts(&long, &mut |_, _| {}).is_err_and(|e| e.to_string().contains("1 to 16")));
    Ok(())
}

#[test]
fn a_config_that_no_reference_run_covers_is_refused() -> Result<()> {
    let (_, config, _) = open("dinov2")?;
    for (field, value) in
        [("use_swiglu_ffn", true.into()), ("qkv_bias", false.into()), ("norm_type", "rms_norm".into())]
    {
        let mut config: serde_json::Value = config.clone();
        config[field] = value;
        assert!(VisionConfig::from_hf(&config).is_err_and(|e| e.to_string().contains(field)));
    }
    Ok(())
}
