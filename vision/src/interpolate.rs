//! Grids of tokens at another size, as `torch.nn.functional.interpolate` does it (`align_corners=False`).

use crate::Filter;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result};

/// How a grid changes size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// From the two nearest along each axis.
    Bilinear,
    /// From the four nearest along each axis, a = -0.75.
    Bicubic,
    /// A triangle as wide as the shrinking asks for.
    BilinearAntialiased,
    /// A cubic as wide as the shrinking asks for, a = -0.5.
    BicubicAntialiased,
}

impl Interpolation {
    /// Weights `[to, from]`, row by row.
    fn matrix(self, from: usize, to: usize) -> Vec<f32> {
        let mut matrix = vec![0.0f32; to * from];
        for (i, row) in matrix.chunks_exact_mut(from.max(1)).enumerate() {
            let filter = match self {
                Self::BilinearAntialiased => Some(Filter::Bilinear),
                Self::BicubicAntialiased => Some(Filter::Bicubic),
                _ => None,
            };
            if let Some(filter) = filter {
                let (first, weights) = filter.weights(from, to, i);
                weights.iter().enumerate().for_each(|(k, w)| row[first + k] += *w as f32);
                continue;
            }
            let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
            // Beyond the edge the edge goes on; linear weights start at it.
            let at = if self == Self::Bilinear { at.max(0.0) } else { at };
            let (low, t) = (at.floor(), at - at.floor());
            let taps: Vec<(i64, f64)> = if self == Self::Bilinear {
                vec![(0, 1.0 - t), (1, t)]
            } else {
                (-1..3).map(|k| (k, cubic((k as f64 - t).abs()))).collect()
            };
            for (k, weight) in taps {
                let index = (low as i64 + k).clamp(0, from as i64 - 1) as usize;
                row[index] += weight as f32;
            }
        }
        matrix
    }
}

/// Keys' cubic with a = -0.75 (Keys 1981).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    }
}

/// `grid [rows * columns, width]`, row by row, at another size: `[new rows * new columns, width]`. Differentiable.
pub fn resize_grid(
    grid: &Tensor,
    (rows, columns): (usize, usize),
    (new_rows, new_columns): (usize, usize),
    how: Interpolation,
) -> Result<Tensor> {
    let (n, width) = grid.dims2()?;
    if n != rows * columns || n == 0 || new_rows * new_columns == 0 {
        let expected = format!("[{rows} * {columns}, width], to become {new_rows} by {new_columns}");
        return Err(Error::shape("grid", expected, grid.dims()));
    }
    if (rows, columns) == (new_rows, new_columns) {
        return Ok(grid.clone());
    }
    let down = Tensor::from_vec(how.matrix(rows, new_rows), (new_rows, rows), &Device::Cpu)?;
    let across = Tensor::from_vec(how.matrix(columns, new_columns), (new_columns, columns), &Device::Cpu)?;
    let grid = down.matmul(&grid.reshape((rows, columns * width))?)?; // [new_rows, columns * width]
    let grid = grid.reshape((new_rows, columns, width))?.transpose(0, 1)?.contiguous()?;
    let grid = across.matmul(&grid.reshape((columns, new_rows * width))?)?; // [new_columns, new_rows * width]
    let grid = grid.reshape((new_columns, new_rows, width))?.transpose(0, 1)?.contiguous()?;
    Ok(grid.reshape((new_rows * new_columns, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_grid_stays_flat_and_a_ramp_keeps_its_middle() -> Result<()> {
        use Interpolation::{Bicubic, BicubicAntialiased, Bilinear, BilinearAntialiased};
        for how in [Bilinear, Bicubic, BilinearAntialiased, BicubicAntialiased] {
            for to in [(1, 2), (3, 5), (7, 9)] {
                let flat = resize_grid(
                    &Tensor::ones((12, 2), candle_core::DType::F32, &Device::Cpu)?,
                    (3, 4),
                    to,
                    how,
                )?;
                assert!(
                    flat.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| (x - 1.0).abs() < 1e-6),
                    "{how:?}"
                );
            }
            let ramp = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((4, 1))?;
            let half = resize_grid(&ramp, (1, 4), (1, 2), how)?.flatten_all()?.to_vec1::<f32>()?;
            assert!((half[0] + half[1] - 3.0).abs() < 1e-5, "{how:?} {half:?}");
        }
        let wrong = Tensor::ones((5, 1), candle_core::DType::F32, &Device::Cpu)?;
        assert!(resize_grid(&wrong, (2, 3), (1, 1), Bilinear).is_err());
        Ok(())
    }
}
