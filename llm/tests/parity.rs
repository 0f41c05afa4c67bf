//! Llama against the reference run in `tests/golden/llama`, stage by stage.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use vela_llm::{Cache, Decoder, trace};
use vela_nn::parity::{compare, judge};
use vela_nn::{Error, Mask, Result};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

#[test]
fn llama_agrees_at_every_stage_and_writes_the_same_tokens() -> Result<()> {
    let dir = case("llama");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let stages = trace::trace(&dir, &golden)?;
    let verdict = judge(&golden, &stages)?;
    assert!(verdict.pass && verdict.present == 6, "{verdict:?}");
    Ok(())
}

fn model() -> Result<(Decoder, Tensor)> {
    let dir = case("llama");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let decoder = trace::load(&dir)?;
    let embeds = decoder.embed(&golden["in.input_ids"].to_dtype(DType::U32)?)?;
    Ok((decoder, embeds))
}

fn positions(from: usize, to: usize) -> Result<Tensor> {
    Ok(Tensor::arange(from as u32, to as u32, &Device::Cpu)?)
}

#[test]
fn prefill_and_decode_equal_one_full_forward() -> Result<()> {
    let (decoder, embeds) = model()?;
    let t = embeds.dim(1)?;
    let full = decoder.forward(&embeds, &positions(0, t)?, &Mask::Causal, &mut Cache::new())?;
    for split in [1, 7, t - 1] {
        let mut cache = Cache::new();
        let mut parts = Vec::new();
        let head = embeds.narrow(1, 0, split)?;
        parts.push(decoder.forward(&head, &positions(0, split)?, &Mask::Causal, &mut cache)?);
        for at in split..t {
            let one = embeds.narrow(1, at, 1)?;
            parts.push(decoder.forward(&one, &positions(at, at + 1)?, &Mask::Causal, &mut cache)?);
        }
        assert_eq!(cache.len(), t);
        assert!(compare("", &Tensor::cat(&parts, 1)?, &full)?.max_abs_over_spread < 1e-5);
    }
    Ok(())
}

#[test]
fn batch_n_equals_n_singles() -> Result<()> {
    let (decoder, embeds) = model()?;
    let t = embeds.dim(1)?;
    let other = (&embeds * 0.5)?;
    let run = |x: &Tensor| decoder.forward(x, &positions(0, t)?, &Mask::Causal, &mut Cache::new());
    let both = run(&Tensor::cat(&[&embeds, &other], 0)?)?;
    assert!(compare("", &both.narrow(0, 0, 1)?, &run(&embeds)?)?.max_abs_over_spread < 1e-5);
    assert!(compare("", &both.narrow(0, 1, 1)?, &run(&other)?)?.max_abs_over_spread < 1e-5);
    Ok(())
}

#[test]
fn rope_style_is_half_split_for_llama() -> Result<()> {
    // Element i turns with element i + d/2, not with its neighbour: a unit vector along 0 at position 1 has its
    // sine at d/2.
    let (decoder, _) = model()?;
    let d = decoder.config().head_dim;
    let mut unit = vec![0f32; d];
    unit[0] = 1.0;
    let x = Tensor::from_vec(unit, (1, 1, d), &Device::Cpu)?;
    let y = decoder.angles(&positions(1, 2)?)?.apply_packed(&x, 1)?.flatten_all()?.to_vec1::<f32>()?;
    assert!((y[0] - 1f32.cos()).abs() < 1e-6 && (y[d / 2] - 1f32.sin()).abs() < 1e-6 && y[1] == 0.0);
    Ok(())
}

#[test]
fn filling_the_cache_gives_the_same_keys_and_values_as_a_forward() -> Result<()> {
    let (decoder, embeds) = model()?;
    let t = embeds.dim(1)?;
    let (mut filled, mut full) = (Cache::new(), Cache::new());
    decoder.fill(&embeds, &positions(0, t)?, &Mask::None, &mut filled)?;
    decoder.forward(&embeds, &positions(0, t)?, &Mask::None, &mut full)?;
    for layer in 0..decoder.config().layers {
        let (Some((k, v)), Some((fk, fv))) = (filled.layer(layer), full.layer(layer)) else {
            return Err(Error::invalid(format!("layer {layer} is missing")));
        };
        assert!(
            compare("", k, fk)?.max_abs_over_spread < 1e-6 && compare("", v, fv)?.max_abs_over_spread < 1e-6
        );
    }
    assert!(filled.layer(decoder.config().layers).is_none());
    Ok(())
}
