//! `quant_speed [threads]`: speed of the quantised products against the machine's peaks, one JSON line per format and size.

use std::time::Instant;
use vela_nn::quant::{Blocks, Format, Precision};
use vela_nn::{DType, Device, Linear, Result, Tensor, peaks, threads};

fn main() -> Result<()> {
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    threads::set(count);
    let peaks = peaks::measure();
    println!("{}", serde_json::to_string(&peaks).unwrap_or_default());
    let formats = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q8_0,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];
    for format in formats {
        let layer = |rows: usize, columns: usize| -> Result<(Linear, usize)> {
            let bytes = rows * format.row_bytes(columns);
            let numbers = (0..bytes).map(|i| (i * 31 % 251 % 64) as u8).collect();
            Ok((
                Linear::from_blocks(Blocks::new(format, &[rows, columns], numbers)?, Precision::Fast, None)?,
                bytes,
            ))
        };
        // Together far more than a cache holds, each short enough that some runs are not interrupted.
        let layers: Vec<(Linear, usize)> = (0..24).map(|_| layer(4096, 2048)).collect::<Result<_>>()?;
        let x = Tensor::ones((1, 2048), DType::F32, &Device::Cpu)?;
        let decode = best(48, |i| layers[i % layers.len()].0.forward(&x).map(drop))?;
        let bytes = layers[0].1 as f64;
        let (rows, columns) = (1536, if format.block_len() == 256 { 768 } else { 576 });
        let (small, _) = layer(rows, columns)?;
        let x = Tensor::ones((96, columns), DType::F32, &Device::Cpu)?;
        let prefill = best(200, |_| small.forward(&x).map(drop))?;
        let most = if format.block_len() == 1 { peaks.float_macs } else { peaks.integer_macs };
        let macs = (96 * rows * columns) as f64 / prefill;
        println!(
            "{{\"format\":\"{}\",\"threads\":{count},\"decode_gb_s\":{:.2},\"of_peak\":{:.2},\"prefill_gmac_s\":{:.1},\"of_peak_macs\":{:.2}}}",
            format.name(),
            bytes / decode / 1e9,
            bytes / decode / peaks.bytes,
            macs / 1e9,
            macs / most
        );
    }
    Ok(())
}

/// Seconds of the best of several runs.
fn best(runs: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for i in 0..runs {
        let start = Instant::now();
        work(i)?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}
