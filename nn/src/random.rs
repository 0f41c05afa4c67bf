//! Seeded, counter-based random tensors: one stream per (seed, purpose), so that no draw disturbs another.

use crate::Result;
use candle_core::{Device, Shape, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// The stream of `purpose` under `seed`; ChaCha8 is counter-based, so its numbers depend on nothing else.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // 64-bit FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/) names the stream.
    rng.set_stream(purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }));
    rng
}

/// Standard normal numbers, `shape`.
pub fn normal(seed: u64, purpose: &str, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut rng = stream(seed, purpose);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| rng.sample(StandardNormal)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Numbers spread evenly over `[low, high)`, `shape`.
pub fn uniform(seed: u64, purpose: &str, low: f32, high: f32, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut rng = stream(seed, purpose);
    let values: Vec<f32> =
        (0..shape.elem_count()).map(|_| low + (high - low) * rng.random::<f32>()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_purpose() -> Result<()> {
        let draw = |seed, purpose| -> Result<Vec<f32>> { Ok(normal(seed, purpose, 8)?.to_vec1()?) };
        assert_eq!(draw(1, "noise")?, draw(1, "noise")?);
        assert_ne!(draw(1, "noise")?, draw(1, "time")?);
        assert_ne!(draw(1, "noise")?, draw(2, "noise")?);
        Ok(())
    }
}
