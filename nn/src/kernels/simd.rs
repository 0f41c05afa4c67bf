//! The instruction set, picked at run time, and the vectorised functions that the kernels share.
//!
//! A kernel body is written once, as plain loops over slices that the compiler vectorises, and compiled three times:
//! AVX-512, AVX2 with FMA, portable.

use std::sync::OnceLock;

/// What the processor offers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best level of this processor.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let has_wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return if has_wide { Level::Avx512 } else { Level::Avx2 };
            }
        }
        Level::Portable
    })
}

/// `dispatch!(pub fn name(args) -> result = body)`: `name` calls `body::<FMA>`, an `#[inline(always)]` function, compiled
/// for the instruction set of this processor.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match $crate::kernels::simd::level() {
                    // SAFETY: `level` saw these features on this processor.
                    $crate::kernels::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::simd::Level::Portable => {}
                }
            }
            $body::<false>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Asks for the memory at this byte of `from`, which is read soon; behind its end is none.
#[inline(always)]
pub fn ask(from: &[u8], byte: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has this instruction, and it faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(byte).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, byte);
}

/// Lanes of the explicit reductions.
pub const LANES: usize = 16;

/// `a * b + c`, in one instruction where there is one.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to about 1e-7 relative; zero below -87, clamped above 88. Branch-free, so that it vectorises.
/// Range reduction by Cody and Waite (1980), then a polynomial of degree 6.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, clamped);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = fma::<FMA>(r, 1.0 / 720.0, 1.0 / 120.0);
    let p = fma::<FMA>(p, r, 1.0 / 24.0);
    let p = fma::<FMA>(p, r, 1.0 / 6.0);
    let p = fma::<FMA>(p, r, 0.5);
    let p = fma::<FMA>(p, r, 1.0);
    let p = fma::<FMA>(p, r, 1.0);
    let scaled = f32::from_bits((shifted.to_bits() << 23).wrapping_add(p.to_bits()));
    if x < -87.0 { 0.0 } else { scaled }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `tanh(x)` to about 1e-7 absolute.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp::<FMA>(2.0 * x))
}

/// The sum, in sixteen lanes.
#[inline(always)]
pub fn sum<const FMA: bool>(values: &[f32]) -> f32 {
    reduce(values, |lane, v| lane + v)
}

/// `Σ a b`, in sixteen lanes.
#[inline(always)]
pub fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = fma::<FMA>(*a, *b, lanes[i]);
    }
    fold(lanes)
}

/// The greatest value; negative infinity of none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// A sum of `step(lane, value)` over sixteen lanes.
#[inline(always)]
pub fn reduce(values: &[f32], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], chunk[i]);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, *v);
    }
    fold(lanes)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    dispatch!(fn exps(x: &[f32], y: &mut [f32]) = exps_body);
    #[inline(always)]
    fn exps_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
        x.iter().zip(y).for_each(|(x, y)| *y = exp::<FMA>(*x));
    }

    #[test]
    fn exp_is_accurate() {
        let x: Vec<f32> = (-8700..8700).map(|i| i as f32 * 0.01).collect();
        let mut y = vec![0.0; x.len()];
        exps(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let expected = f64::from(*x).exp();
            assert!(
                (f64::from(*y) - expected).abs() <= 3e-7 * expected,
                "exp({x}) = {y}, expected {expected}"
            );
        }
        let mut edge = [1.0; 3];
        exps(&[f32::NEG_INFINITY, -1e30, 0.0], &mut edge);
        assert_eq!(edge, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn reductions_cover_every_element() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum::<false>(&values), 666.0);
        assert_eq!(dot::<true>(&values, &values), 16206.0);
        assert_eq!(max(&values), 36.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
