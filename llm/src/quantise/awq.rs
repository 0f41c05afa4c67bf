//! Factors on the columns of matrices that make rounding hurt less where much is read (AWQ; Lin et al.,
//! arXiv:2306.00978).

use super::round::{Bits, rounded, rows};
use candle_core::{Device, Tensor};
use vela_nn::{Result, linear};

/// Powers of the mean magnitude that are tried: 0 (plain rounding), 0.05 and so on up to 1.
const STEPS: usize = 20;

/// A matrix `[output, input]` in float32.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub values: Vec<f32>,
    pub input: usize,
}

/// What a search found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// By column, above 0.
    pub factors: Vec<f32>,
    /// The power.
    pub power: f32,
    /// The sum of squared errors of what the matrices give, plainly rounded and with the factors.
    pub errors: [f64; 2],
}

/// Factors for matrices that read the same: `means [input]` are the columns' mean magnitudes, `x [n, input]` some of
/// the rows. Columns with the same number in `tied` get the same factor.
pub(super) fn search(
    matrices: &[&Matrix],
    (bits, group): (Bits, usize),
    means: &[f32],
    x: &Tensor,
    tied: Option<&[usize]>,
) -> Result<Found> {
    let magnitudes = tied.map_or_else(|| means.to_vec(), |tied| shared(means, tied));
    let mut best: Option<Found> = None;
    for step in 0..=STEPS {
        let power = step as f32 / STEPS as f32;
        let factors = factors(&magnitudes, power);
        let mut error = 0.0;
        for matrix in matrices {
            error += harm(matrix, bits, group, &factors, x)?;
        }
        let plain = best.as_ref().map_or(error, |best| best.errors[0]);
        if best.as_ref().is_none_or(|best| error < best.errors[1]) {
            best = Some(Found { factors, power, errors: [plain, error] });
        }
    }
    let none = || Found { factors: vec![1.0; means.len()], power: 0.0, errors: [0.0; 2] };
    Ok(best.unwrap_or_else(none))
}

/// The mean over the columns that share a row.
fn shared(means: &[f32], tied: &[usize]) -> Vec<f32> {
    let most = tied.iter().max().map_or(0, |most| most + 1);
    let (mut sums, mut counts) = (vec![0f32; most], vec![0f32; most]);
    for (mean, row) in means.iter().zip(tied) {
        sums[*row] += mean;
        counts[*row] += 1.0;
    }
    tied.iter().map(|row| sums[*row] / counts[*row]).collect()
}

/// Magnitudes to a power, centred on 1. Columns that are hardly ever read count for a hundredth of the mean.
fn factors(magnitudes: &[f32], power: f32) -> Vec<f32> {
    let mean = magnitudes.iter().sum::<f32>() / magnitudes.len().max(1) as f32;
    let raised: Vec<f32> = magnitudes.iter().map(|m| m.max(0.01 * mean).powf(power)).collect();
    let low = raised.iter().copied().fold(f32::INFINITY, f32::min);
    let high = raised.iter().copied().fold(0f32, f32::max);
    let centre = (low * high).sqrt();
    if centre > 0.0 && centre.is_finite() {
        raised.iter().map(|r| r / centre).collect()
    } else {
        vec![1.0; magnitudes.len()]
    }
}

/// The squared error of what a matrix gives for `x` when it is rounded under these factors.
fn harm(matrix: &Matrix, bits: Bits, group: usize, factors: &[f32], x: &Tensor) -> Result<f64> {
    let input = matrix.input;
    let mut values = matrix.values.clone();
    scale(&mut values, factors);
    rounded(bits, group, &mut values, input);
    rows(&mut values, input, |row| row.iter_mut().zip(factors).for_each(|(v, f)| *v /= f));
    values.iter_mut().zip(&matrix.values).for_each(|(v, was)| *v -= was);
    let error = Tensor::from_vec(values, (matrix.values.len() / input.max(1), input), &Device::Cpu)?;
    let y = linear(x, &error, None)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(y.iter().map(|e| f64::from(*e) * f64::from(*e)).sum())
}

/// Multiplies the columns of rows.
pub(super) fn scale(values: &mut [f32], factors: &[f32]) {
    rows(values, factors.len(), |row| row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use vela_nn::random::stream;

    #[test]
    fn channels_that_stand_out_are_spared() -> Result<()> {
        let mut rng = stream(3, "awq");
        let (output, input, n) = (48, 64, 40);
        let mut noise =
            |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random::<f32>() - 0.5).collect() };
        let matrix = Matrix { values: noise(output * input), input };
        let mut x = noise(n * input);
        // Two channels fifty times as loud as the others.
        x.chunks_mut(input).for_each(|row| [5, 40].iter().for_each(|c| row[*c] *= 50.0));
        let means: Vec<f32> = (0..input)
            .map(|c| x.iter().skip(c).step_by(input).map(|v| v.abs()).sum::<f32>() / n as f32)
            .collect();
        let x = Tensor::from_vec(x, (n, input), &Device::Cpu)?;
        for bits in [Bits::Four, Bits::Eight] {
            let found = search(&[&matrix], (bits, 32), &means, &x, None)?;
            assert!(found.errors[1] < 0.5 * found.errors[0], "{bits:?} {:?}", found.errors);
            assert!(found.power > 0.0 && found.factors[5] > 1.0 && found.factors[6] < found.factors[5]);
        }
        // Of equally loud channels nothing is gained, and nothing lost.
        let flat = search(&[&matrix], (Bits::Four, 32), &vec![1.0; input], &x, None)?;
        assert_eq!(flat.errors[0], flat.errors[1]);
        // Tied columns stay alike.
        let tied: Vec<usize> = (0..input).map(|c| c / 2).collect();
        let found = search(&[&matrix], (Bits::Four, 32), &means, &x, Some(&tied))?;
        assert!(found.factors.as_chunks::<2>().0.iter().all(|[a, b]| a == b));
        assert!(found.errors[1] <= found.errors[0]);
        Ok(())
    }
}
