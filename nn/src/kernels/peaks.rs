//! What one core of this machine can do at most: bytes read from memory, float32 and eight-bit multiply-adds.

use super::pages::Pages;
use super::quant::{Level, levels};
use super::quant_simd::{Portable, Simd};
use super::simd::dispatch;
use std::hint::black_box;
use std::time::Instant;

/// The best of many runs of `work`, each short enough that some are not interrupted; `work` does `amount` of something.
fn best(amount: f64, mut work: impl FnMut(usize)) -> f64 {
    let once = |i: usize| {
        let start = Instant::now();
        work(i);
        amount / start.elapsed().as_secs_f64()
    };
    (0..64).map(once).fold(0.0, f64::max)
}

/// Bytes read per second from a buffer that no cache holds.
pub fn bandwidth() -> f64 {
    const PART: usize = 2 << 20;
    // Mapped, so that it goes back to the system at once.
    let Ok(mut buffer) = Pages::<u64>::zeroed(24 * PART) else { return 0.0 };
    buffer.fill(1);
    let parts: Vec<&[u64]> = buffer.chunks_exact(PART).collect();
    best((PART * 8) as f64, |i| {
        black_box(sum(black_box(parts[i % parts.len()])));
    })
}

dispatch!(fn sum(values: &[u64]) -> u64 = sum_body);
#[inline(always)]
fn sum_body<const FMA: bool>(values: &[u64]) -> u64 {
    let mut lanes = [0u64; 64];
    for chunk in values.as_chunks::<64>().0 {
        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane = lane.wrapping_add(*v));
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

const ROUNDS: usize = 20_000;

/// Float32 and eight-bit multiply-adds per second, by the best instruction set.
pub fn macs() -> [f64; 2] {
    let x = black_box([3i8; 64]);
    let level = levels().last();
    let sums = match level {
        #[cfg(target_arch = "x86_64")]
        Some(Level::Vnni) => 12,
        _ => 6,
    };
    [(sums * 16, true), (sums * 2 / 3 * 4 * 64, false)].map(|(count, float)| {
        best((ROUNDS * count) as f64, |_| match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `levels` saw the features.
            Some(Level::Vnni) => unsafe { vnni(&x, float) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Some(Level::Avx2) => unsafe { avx2(&x, float) },
            // SAFETY: plain arrays run everywhere.
            _ => unsafe { rounds::<Portable, 6>(&x, float) },
        })
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn vnni(x: &[i8; 64], float: bool) {
    // SAFETY: this function has the features.
    unsafe { rounds::<super::quant_x86::Vnni, 12>(x, float) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(x: &[i8; 64], float: bool) {
    // SAFETY: this function has the features.
    unsafe { rounds::<super::quant_x86::Avx2, 6>(x, float) }
}

/// `SUMS` sums in float32, two thirds as many in integers (which need registers beside them): as many as have a register.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
unsafe fn rounds<S: Simd, const SUMS: usize>(x: &[i8; 64], float: bool) {
    // SAFETY: `x` holds 64 bytes, of which four are read at multiples of four; the set is the caller's promise.
    unsafe {
        let mut sums = [S::splat(1.0); SUMS];
        if float {
            let factor = S::splat(black_box(0.999));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, factor, factor);
                }
            }
        } else {
            let w = S::bytes(x.as_ptr().cast());
            let mut dots = [S::zero(); SUMS];
            for _ in 0..ROUNDS {
                // The sums side by side: one alone would wait for each product before the next.
                let mut pairs = [S::no_pairs(); SUMS];
                let x = black_box(x.as_ptr());
                for j in 0..4 {
                    for (i, pairs) in pairs.iter_mut().take(SUMS * 2 / 3).enumerate() {
                        *pairs = S::dot::<false>(*pairs, w, x.add(4 * (i + j)));
                    }
                }
                for (dot, pairs) in dots.iter_mut().zip(pairs).take(SUMS * 2 / 3) {
                    *dot = S::widen(*dot, pairs);
                }
            }
            for (sum, dot) in sums.iter_mut().zip(dots) {
                *sum = S::floats(dot);
            }
        }
        for sum in sums {
            let mut out = [0.0; 16];
            S::store(out.as_mut_ptr(), sum);
            black_box(out);
        }
    }
}
