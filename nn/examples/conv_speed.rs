//! Billions of multiply-adds per second of the convolutions of ResNet-18 and of a U-Net over a chunk, on this machine.
//! `cargo run --release -p vela-nn --example conv_speed -- [THREADS]`.

use std::time::Instant;
use vela_nn::{Conv, Result, random, threads};

fn main() -> Result<()> {
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    threads::set(count);
    // Name, batch, input channels, output channels, height, width, kernel, stride.
    for (name, b, c, o, h, w, k, stride) in [
        ("stem 7x7/2", 2, 3, 64, 480, 640, 7, 2),
        ("stage 1 3x3", 2, 64, 64, 120, 160, 3, 1),
        ("stage 2 3x3", 2, 128, 128, 60, 80, 3, 1),
        ("stage 3 3x3", 2, 256, 256, 30, 40, 3, 1),
        ("stage 4 3x3", 2, 512, 512, 15, 20, 3, 1),
        ("past 1x1/2", 2, 64, 128, 120, 160, 1, 2),
        ("u-net 512 over 16", 1, 512, 512, 1, 16, 5, 1),
        ("u-net 1024 over 8", 1, 1024, 1024, 1, 8, 5, 1),
        ("u-net 2048 over 4", 1, 2048, 2048, 1, 4, 5, 1),
    ] {
        let (kh, pads) = if h == 1 { (1, [0, k / 2]) } else { (k, [k / 2; 2]) };
        let weight = random::normal(1, "weight", (o, c, kh, k))?;
        let conv = Conv::from_tensors(weight, None, [if h == 1 { 1 } else { stride }, stride], pads)?;
        let x = random::normal(2, "x", (b, c, h, w))?;
        let y = conv.forward_then(&x, None, true)?;
        let work = y.elem_count() as f64 * (c * kh * k) as f64;
        let mut best = f64::INFINITY;
        for _ in 0..7 {
            let start = Instant::now();
            conv.forward_then(&x, None, true)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let bytes = (o * c * kh * k * 4) as f64;
        println!(
            "{name:<20} {:>8.2} ms {:>7.1} G multiply-adds/s {:>7.1} GB/s of weights",
            best * 1e3,
            work / best / 1e9,
            bytes / best / 1e9
        );
    }
    Ok(())
}
