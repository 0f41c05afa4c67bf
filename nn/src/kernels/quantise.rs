//! Float32 rows to the formats that weights may be kept in, and rows of noise.

use super::simd::dispatch;
use crate::quant::{Blocks, Format, Keep, size_of};
use crate::{Error, Result, threads};
use std::sync::{Mutex, PoisonError};

/// The formats that float32 rows can be brought to.
pub const KEPT: [Format; 4] = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0];

/// A matrix `[rows, columns]` in one of [`KEPT`], of rows that `fill` writes in float32. Rows that are no multiple of the format's
/// block end in zeros up to one.
///
/// # Errors
/// Another format; an empty matrix.
pub fn made(
    keep: impl Into<Keep>,
    [rows, columns]: [usize; 2],
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Blocks> {
    let keep = keep.into();
    let format = keep.format();
    if !KEPT.contains(&format) {
        let known = KEPT.map(Format::name).join(", ");
        return Err(Error::invalid(format!(
            "weights can be kept as one of {known}, not as {}",
            format.name()
        )));
    }
    let padded = columns.next_multiple_of(format.block_len());
    let mut bytes = vec![0; size_of(format, &[rows, padded])?];
    let row_bytes = format.row_bytes(padded);
    // Enough rows for a task to be worth a hand-over.
    let each = (1 << 16) / columns + 1;
    {
        let parts: Vec<Mutex<&mut [u8]>> = bytes.chunks_mut(each * row_bytes).map(Mutex::new).collect();
        threads::for_each(parts.len(), |part| {
            let mut values = vec![0.0; padded];
            let mut bytes = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
            for (i, out) in bytes.chunks_exact_mut(row_bytes).enumerate() {
                fill(part * each + i, &mut values[..columns]);
                write_row(keep, &values, out);
            }
        });
    }
    Blocks::new(format, &[rows, padded], bytes)
}

fn write_row(keep: Keep, values: &[f32], out: &mut [u8]) {
    match keep {
        Keep::As(Format::F16) => halves(values, out),
        Keep::As(Format::Bf16) => brain_halves(values, out),
        Keep::As(Format::Q8_0) => eights(values, 127.0, out),
        Keep::Reduced => eights(values, 63.0, out),
        _ => {
            for (to, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *to = v.to_le_bytes();
            }
        }
    }
}

fn halves(values: &[f32], out: &mut [u8]) {
    for (to, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *to = half::f16::from_f32(*v).to_le_bytes();
    }
}

dispatch!(fn brain_halves(values: &[f32], out: &mut [u8]) = brain_halves_body);
#[inline(always)]
fn brain_halves_body<const FMA: bool>(values: &[f32], out: &mut [u8]) {
    for (to, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        let bits = v.to_bits();
        // To the nearest, ties to even; of a NaN the upper half, which stays one.
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        *to = (if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }).to_le_bytes();
    }
}

dispatch!(
    /// Blocks of Q8_0: a half-precision factor and 32 numbers of at most `most`.
    fn eights(values: &[f32], most: f32, out: &mut [u8]) = eights_body
);
#[inline(always)]
fn eights_body<const FMA: bool>(values: &[f32], most: f32, out: &mut [u8]) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest whole number
    for (values, block) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let mut largest = [0f32; 16];
        for part in values.as_chunks::<16>().0 {
            largest.iter_mut().zip(part).for_each(|(l, v)| *l = if v.abs() > *l { v.abs() } else { *l });
        }
        let largest = largest.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
        let inverse = if largest > 0.0 { most / largest } else { 0.0 };
        // A NaN or an infinity anywhere must not be lost: the factor carries it.
        let factor = if values.iter().all(|v| v.is_finite()) { largest / most } else { f32::NAN };
        block[..2].copy_from_slice(&half::f16::from_f32(factor).to_le_bytes());
        for (q, v) in block[2..].iter_mut().zip(values) {
            let rounded = (v * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
            *q = (rounded as i8).cast_unsigned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(row: usize, out: &mut [f32]) {
        let value = |i: usize| ((row * 31 + i * 7) as f32 * 0.37).sin() * 0.3;
        out.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
    }

    #[test]
    fn every_format_comes_back_within_its_rounding() -> Result<()> {
        for (keep, bound) in [
            (Keep::As(Format::F32), 0.0),
            (Keep::As(Format::F16), 2e-4),
            (Keep::As(Format::Bf16), 1.3e-3),
            (Keep::As(Format::Q8_0), 1.3e-3),
            (Keep::Reduced, 2.5e-3),
        ] {
            let blocks = made(keep, [300, 64], course)?;
            let back = blocks.tensor()?.to_vec2::<f32>()?;
            let mut want = [0.0; 64];
            for (row, back) in back.iter().enumerate() {
                course(row, &mut want);
                let far = back.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far <= bound, "{keep:?} {far}");
            }
        }
        let infinite = |_: usize, out: &mut [f32]| out.fill(f32::NAN);
        for format in KEPT {
            assert!(made(format, [1, 32], infinite)?.tensor()?.to_vec2::<f32>()?[0][0].is_nan());
        }
        assert!(made(Format::Q4_0, [1, 32], course).is_err_and(|e| e.to_string().contains("Q8_0")));
        let padded = made(Format::Q8_0, [2, 33], course)?;
        assert_eq!(padded.shape(), [2, 64]);
        assert!(padded.tensor()?.to_vec2::<f32>()?[1][33..].iter().all(|v| *v == 0.0));
        assert!(made(Format::Q8_0, [2, 0], course).is_err());
        Ok(())
    }
}
