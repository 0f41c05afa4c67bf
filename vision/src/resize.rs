//! Resizing as Pillow does it: antialiased, on bytes, with 22-bit fixed-point weights, first across and then
//! down, rounded to bytes in between. The arithmetic of Pillow's `Resample.c`, re-stated.

use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result};

/// RGB bytes with their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// `[height, width, 3]`, row by row from the top.
    pub rgb: Vec<u8>,
}

/// A resampling filter, numbered as in `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum Filter {
    /// 1: three-lobed Lanczos.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: cubic with a = -0.5.
    Bicubic,
}

impl TryFrom<u64> for Filter {
    type Error = String;
    fn try_from(number: u64) -> std::result::Result<Self, String> {
        match number {
            1 => Ok(Self::Lanczos),
            2 => Ok(Self::Bilinear),
            3 => Ok(Self::Bicubic),
            other => Err(format!("resample: expected 1 (lanczos), 2 (bilinear) or 3 (bicubic), got {other}")),
        }
    }
}

impl From<Filter> for u64 {
    fn from(filter: Filter) -> u64 {
        match filter {
            Filter::Lanczos => 1,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
        }
    }
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        match self {
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    }

    /// Per output pixel: the first input pixel and the fixed-point weights from there on.
    fn taps(self, from: usize, to: usize) -> Vec<(usize, Vec<i64>)> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        (0..to)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                let first = ((centre - support + 0.5) as i64).max(0) as usize;
                let last = (((centre + support + 0.5) as i64).max(0) as usize).min(from);
                let raw: Vec<f64> =
                    (first..last).map(|x| self.weight((x as f64 - centre + 0.5) / stretch)).collect();
                let sum: f64 = raw.iter().sum();
                let fixed = |w: &f64| {
                    let scaled = w / sum * f64::from(1 << PRECISION);
                    (scaled + if *w < 0.0 { -0.5 } else { 0.5 }) as i64
                };
                (first, raw.iter().map(fixed).collect())
            })
            .collect()
    }
}

const PRECISION: u32 = 22;

impl Picture {
    /// Checks that the bytes fit the size.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if width * height == 0 || rgb.len() != width * height * 3 {
            return Err(Error::invalid(format!(
                "picture: expected {width}x{height} RGB, got {} bytes",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// The picture at another size (at least 1 by 1).
    pub fn resize(&self, width: usize, height: usize, filter: Filter) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let sum = |values: &mut dyn Iterator<Item = (u8, i64)>| {
            let total = values.fold(1i64 << (PRECISION - 1), |acc, (value, w)| acc + i64::from(value) * w);
            (total >> PRECISION).clamp(0, 255) as u8
        };
        let mut wide = Vec::with_capacity(width * self.height * 3);
        if width == self.width {
            wide.clone_from(&self.rgb);
        } else {
            let taps = filter.taps(self.width, width);
            for row in self.rgb.chunks_exact(self.width * 3) {
                for (first, weights) in &taps {
                    for channel in 0..3 {
                        let at = |k: usize| row[(first + k) * 3 + channel];
                        wide.push(sum(&mut weights.iter().enumerate().map(|(k, w)| (at(k), *w))));
                    }
                }
            }
        }
        if height == self.height {
            return Self { width, height, rgb: wide };
        }
        let mut rgb = Vec::with_capacity(width * height * 3);
        for (first, weights) in &filter.taps(self.height, height) {
            for column in 0..width * 3 {
                let at = |k: usize| wide[(first + k) * width * 3 + column];
                rgb.push(sum(&mut weights.iter().enumerate().map(|(k, w)| (at(k), *w))));
            }
        }
        Self { width, height, rgb }
    }

    /// The part `[top, top + height) x [left, left + width)`, cut at the border.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        let right = (left + width).min(self.width);
        let bottom = (top + height).min(self.height);
        let (left, top) = (left.min(right), top.min(bottom));
        let rgb = (top..bottom)
            .flat_map(|y| &self.rgb[(y * self.width + left) * 3..(y * self.width + right) * 3])
            .copied()
            .collect();
        Self { width: right - left, height: bottom - top, rgb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_and_sizes_fit() -> Result<()> {
        let flat = Picture::new(7, 5, vec![77; 105])?;
        for filter in [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic] {
            for (width, height) in [(3, 2), (14, 20), (7, 1)] {
                let got = flat.resize(width, height, filter);
                assert_eq!(got, Picture::new(width, height, vec![77; width * height * 3])?);
            }
        }
        Ok(())
    }
}
