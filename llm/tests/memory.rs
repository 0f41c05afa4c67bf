//! An encoder-decoder with a bias by distance reads and writes long texts without a number for each pair of positions.
#![cfg(target_os = "linux")]

use candle_core::{Device, Tensor};
use std::path::Path;
use vela_llm::EncoderDecoder;
use vela_nn::{Error, Mask, Result};

/// The most memory that this process has had, in bytes.
fn most() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| Error::invalid(e.to_string()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse().ok());
    kib.map(|kib: usize| kib << 10).ok_or_else(|| Error::invalid("/proc/self/status: VmHWM is not there"))
}

#[test]
fn long_texts_of_t5_hold_no_matrix_of_scores() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/t5");
    let model = EncoderDecoder::load(&dir)?;
    let run = |t: usize| -> Result<Tensor> {
        let ids: Vec<u32> = (0..t as u32).map(|i| i * 7 % 90).collect();
        let embeds = model.encoder().embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        let encoded = model.encode(&embeds, &Mask::None, &mut |_, _| {})?;
        let mut cache = model.cache(&encoded, Mask::None)?;
        let positions = Tensor::arange(0, t as u32, &Device::Cpu)?;
        model.decoder().forward(&embeds, &positions, &Mask::Causal, &mut cache)
    };
    run(64)?;
    let before = most()?;
    let t = 6144;
    let y = run(t)?;
    let grown = most()? - before;
    let matrix = t * t * size_of::<f32>();
    assert!(grown < matrix / 2, "{grown} bytes; one matrix of one head is {matrix}");
    assert!(y.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite());
    Ok(())
}
