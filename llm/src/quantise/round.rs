//! Groups of numbers to few levels: eight bits around zero (blocks of Q8_0), four bits from a least value on (Q4_1).

use vela_nn::quant::{Blocks, Format};
use vela_nn::{Error, Result, threads};

/// Numbers in a block of either format.
pub(super) const BLOCK: usize = 32;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Sixteen levels between the least and the largest of a group.
    Four,
    /// 255 levels around zero.
    Eight,
}

impl Bits {
    /// How many.
    pub fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// What the blocks are.
    pub fn format(self) -> Format {
        match self {
            Self::Four => Format::Q4_1,
            Self::Eight => Format::Q8_0,
        }
    }
}

/// How a group's levels lie, as half precision keeps it: `value = factor * level + least`.
#[derive(Clone, Copy)]
struct Levels {
    factor: f32,
    least: f32,
    inverse: f32,
    /// The lowest and the highest.
    range: [f32; 2],
}

impl Levels {
    fn of(bits: Bits, group: &[f32]) -> Self {
        let half = |x: f32| half(x).to_f32();
        let (factor, least, range) = match bits {
            Bits::Eight => {
                let largest = group.iter().fold(0f32, |a, b| a.max(b.abs()));
                (half(largest / 127.0), 0.0, [-127.0, 127.0])
            }
            Bits::Four => {
                let low = half(group.iter().copied().fold(f32::INFINITY, f32::min));
                let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                (half((high - low).max(0.0) / 15.0), low, [0.0, 15.0])
            }
        };
        Self { factor, least, inverse: if factor > 0.0 { 1.0 / factor } else { 0.0 }, range }
    }

    fn level(self, value: f32) -> f32 {
        // Adding 1.5 * 2^23 rounds to the nearest whole number.
        const ROUND: f32 = 12_582_912.0;
        let [low, high] = self.range;
        ((value - self.least) * self.inverse).clamp(low, high) + ROUND - ROUND
    }

    fn value(self, level: f32) -> f32 {
        self.factor * level + self.least
    }
}

fn half(x: f32) -> half::f16 {
    half::f16::from_f32(x)
}

/// Rows of `columns` numbers, each group of a row put to its levels; groups of `group` numbers, the last perhaps
/// shorter.
pub(super) fn rounded(bits: Bits, group: usize, values: &mut [f32], columns: usize) {
    rows(values, columns, |row| {
        for part in row.chunks_mut(group) {
            let levels = Levels::of(bits, part);
            part.iter_mut().for_each(|v| *v = levels.value(levels.level(*v)));
        }
    });
}

/// Hands rows out to the threads of this thread's kernels.
pub(super) fn rows(values: &mut [f32], columns: usize, f: impl Fn(&mut [f32]) + Sync) {
    let count = values.len() / columns.max(1);
    let share = count.div_ceil(threads::current().max(1)).max(1 << 14 >> columns.max(1).ilog2().min(14));
    if count <= share {
        return values.chunks_exact_mut(columns.max(1)).for_each(f);
    }
    std::thread::scope(|scope| {
        for part in values.chunks_mut(share * columns) {
            let f = &f;
            scope.spawn(move || part.chunks_exact_mut(columns).for_each(f));
        }
    });
}

/// A matrix `[rows, columns]` as blocks; `group` is a multiple of the block, whose numbers share their levels.
///
/// # Errors
/// Columns that are no multiple of the block; numbers that are not finite or beyond half precision.
pub(super) fn blocks(bits: Bits, group: usize, values: &[f32], shape: [usize; 2]) -> Result<Blocks> {
    if let Some(bad) = values.iter().find(|v| !v.is_finite() || v.abs() > 65_504.0) {
        return Err(Error::invalid(format!("weights: expected finite numbers of at most 65504, got {bad}")));
    }
    let format = bits.format();
    let mut bytes = Vec::with_capacity(format.row_bytes(shape[1]) * shape[0]);
    for row in values.chunks_exact(shape[1].max(1)) {
        for part in row.chunks(group) {
            let levels = Levels::of(bits, part);
            for block in part.as_chunks::<BLOCK>().0 {
                bytes.extend(half(levels.factor).to_le_bytes());
                match bits {
                    Bits::Eight => bytes.extend(block.map(|v| (levels.level(v) as i8).cast_unsigned())),
                    Bits::Four => {
                        bytes.extend(half(levels.least).to_le_bytes());
                        let level = |i: usize| levels.level(block[i]) as u8;
                        bytes.extend((0..16).map(|i| level(i) | level(i + 16) << 4));
                    }
                }
            }
        }
    }
    Blocks::new(format, &shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use vela_nn::random::stream;

    fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut rng = stream(seed, "round");
        (0..count).map(|_| rng.random::<f32>() * 2.0 - 0.7).collect()
    }

    #[test]
    fn blocks_mean_what_rounding_says_and_the_error_is_bounded() -> Result<()> {
        for bits in [Bits::Four, Bits::Eight] {
            for group in [32, 64, 128] {
                let (values, columns) = (noise(group as u64, 5 * 160), 160);
                let mut fake = values.clone();
                rounded(bits, group, &mut fake, columns);
                let real = blocks(bits, group, &values, [5, columns])?;
                assert_eq!(real.bytes().len(), 5 * bits.format().row_bytes(columns));
                let real = real.tensor()?.flatten_all()?.to_vec1::<f32>()?;
                assert!(fake.iter().zip(&real).all(|(a, b)| (a - b).abs() < 1e-6));
                for (row, back) in values.chunks(columns).zip(real.chunks(columns)) {
                    for (part, back) in row.chunks(group).zip(back.chunks(group)) {
                        let low = part.iter().copied().fold(f32::INFINITY, f32::min);
                        let high = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        let step = match bits {
                            Bits::Four => (high - low) / 15.0,
                            Bits::Eight => high.abs().max(low.abs()) / 127.0,
                        };
                        // Half a step, and what half precision loses of factor (times the level) and least value.
                        let bound = 0.5 * step + 16.0 * step / 1024.0 + low.abs() / 1024.0;
                        let bound = if bits == Bits::Eight {
                            0.5 * step + high.abs().max(low.abs()) / 1024.0
                        } else {
                            bound
                        };
                        assert!(part.iter().zip(back).all(|(a, b)| (a - b).abs() <= bound));
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn equal_numbers_and_zeros_stay_and_what_is_not_finite_is_refused() -> Result<()> {
        for bits in [Bits::Four, Bits::Eight] {
            for value in [0.0, 0.5, -0.25] {
                let back =
                    blocks(bits, 32, &[value; 32], [1, 32])?.tensor()?.flatten_all()?.to_vec1::<f32>()?;
                assert!(back.iter().all(|b| (b - value).abs() <= value.abs() / 512.0), "{value} {back:?}");
            }
            for bad in [f32::NAN, f32::INFINITY, 1e9] {
                assert!(blocks(bits, 32, &[bad; 32], [1, 32]).is_err());
            }
            assert!(blocks(bits, 32, &[0.0; 33], [1, 33]).is_err());
        }
        Ok(())
    }
}
