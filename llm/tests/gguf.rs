//! A GGUF model against the reference run in `tests/golden/gguf_llama`, and its fast products against its exact ones.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use vela_llm::{Cache, gguf};
use vela_nn::parity::{compare, judge};
use vela_nn::quant::Precision;
use vela_nn::{Gguf, Mask, Result};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf_llama")
}

#[test]
fn a_gguf_file_agrees_at_every_stage_and_writes_the_same_tokens() -> Result<()> {
    let golden = candle_core::safetensors::load(folder().join("golden.safetensors"), &Device::Cpu)?;
    let file = gguf::find(&folder()).unwrap_or_default();
    let verdict = judge(&golden, &gguf::trace(&file, &golden)?)?;
    assert!(verdict.pass && verdict.present == 13, "{verdict:?}");
    Ok(())
}

#[test]
fn fast_products_stay_near_the_exact_ones() -> Result<()> {
    let file = Gguf::open(&folder().join("model.gguf"))?;
    let ids = Tensor::arange(1u32, 40, &Device::Cpu)?.unsqueeze(0)?;
    let run = |precision: Precision| -> Result<Tensor> {
        let decoder = gguf::decoder(&file, precision)?;
        let positions = Tensor::arange(0u32, 39, &Device::Cpu)?;
        let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
        decoder.logits(&decoder.normalise(&hidden)?)
    };
    let stage = compare("logits", &run(Precision::Fast)?, &run(Precision::Exact)?)?;
    assert!(stage.cosine > 0.9995 && stage.max_abs_over_spread > 0.0, "{stage:?}");
    Ok(())
}

#[test]
fn a_quantised_decoder_holds_no_other_types() -> Result<()> {
    let file = Gguf::open(&folder().join("model.gguf"))?;
    let config = gguf::config(&file)?;
    assert_eq!((config.width, config.heads, config.kv_heads, config.layers), (256, 8, 4, 2));
    assert!(!config.tied);
    let decoder = gguf::decoder(&file, Precision::Fast)?;
    let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu)?;
    assert_eq!(decoder.embed(&ids)?.dtype(), DType::F32);
    Ok(())
}
