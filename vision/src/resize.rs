//! Resizing as Pillow does it: antialiased, on bytes, with fixed-point weights, first across and then down, rounded to
//! bytes in between. The arithmetic of Pillow's `Resample.c`, re-stated; torch's differs in the precision alone.

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
    /// 0: the pixel under the centre, no antialiasing.
    Nearest,
    /// 1: three-lobed Lanczos.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: cubic with a = -0.5.
    Bicubic,
    /// 4: every pixel under the output pixel counts the same.
    Box,
    /// 5: Hamming window.
    Hamming,
}

const FILTERS: [Filter; 6] =
    [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];

impl TryFrom<u64> for Filter {
    type Error = String;
    fn try_from(number: u64) -> std::result::Result<Self, String> {
        let known = usize::try_from(number).ok().and_then(|i| FILTERS.get(i));
        known.copied().ok_or_else(|| {
            let names = "0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming";
            format!("resample: expected one of {names}; got {number}")
        })
    }
}

impl From<Filter> for u64 {
    fn from(filter: Filter) -> u64 {
        filter as u64
    }
}

/// Whose fixed-point arithmetic: they differ by one step of 255 here and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// Weights of 22 bits after the point (Pillow; the reference's image processors without `Fast`).
    #[default]
    Pillow,
    /// 16-bit weights with as many bits after the point as fit (torch on bytes; torchvision, `Fast` processors).
    Torch,
}

/// One output pixel: the first input pixel, and the weights from there on.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at a signed distance in output pixels.
    pub(crate) fn weight(self, at: f64) -> f64 {
        let x = at.abs();
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        match self {
            Self::Nearest | Self::Box if at > -0.5 && at <= 0.5 => 1.0,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Hamming if x < 1.0 => sinc(x) * (0.54 + 0.46 * (x * std::f64::consts::PI).cos()),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    }

    /// The antialiased weights of output pixel `i` of `to` over `from` input pixels: the first of them, and weights that
    /// add to one.
    pub(crate) fn weights(self, from: usize, to: usize, i: usize) -> (usize, Vec<f64>) {
        let scale = from as f64 / to as f64;
        if self == Self::Nearest {
            return ((((i as f64 + 0.5) * scale) as usize).min(from.saturating_sub(1)), vec![1.0]);
        }
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5) as i64).max(0) as usize;
        let last = (((centre + support + 0.5) as i64).max(0) as usize).min(from);
        let raw: Vec<f64> =
            (first..last).map(|x| self.weight((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = raw.iter().sum();
        let sum = if sum == 0.0 { 1.0 } else { sum };
        (first, raw.iter().map(|w| w / sum).collect())
    }

    /// The output pixels `start .. start + count` of `to` in fixed point, and the bits after the point.
    fn taps(
        self,
        arithmetic: Arithmetic,
        from: usize,
        to: usize,
        start: usize,
        count: usize,
    ) -> (Vec<Tap>, u32) {
        let exact: Vec<(usize, Vec<f64>)> =
            (start..start + count).map(|i| self.weights(from, to, i)).collect();
        let precision = match arithmetic {
            Arithmetic::Pillow => 22,
            Arithmetic::Torch => {
                // Decided by the largest weight of the whole line, not of the part that is wanted.
                let all = (0..to).flat_map(|i| self.weights(from, to, i).1);
                let largest = all.fold(0.0f64, f64::max);
                (1..22)
                    .find(|bits| (0.5 + largest * f64::from(1 << (bits + 1))) as i64 >= 1 << 15)
                    .unwrap_or(22)
            }
        };
        let one = f64::from(1 << precision);
        let fixed = |w: f64| (w * one + if w < 0.0 { -0.5 } else { 0.5 }) as i32;
        let tap = |(first, w): (usize, Vec<f64>)| Tap { first, weights: w.into_iter().map(fixed).collect() };
        (exact.into_iter().map(tap).collect(), precision)
    }
}

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

    /// The picture at another size (at least 1 by 1), as Pillow does it.
    pub fn resize(&self, width: usize, height: usize, filter: Filter) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        self.resize_part((width, height), (0, 0, width, height), filter, Arithmetic::Pillow)
    }

    /// The part (left, top, width, height) of what resizing to `(width, height)` gives; nothing else is worked out, so
    /// that a very long picture costs no more than what is kept of it. The part must lie inside.
    pub(crate) fn resize_part(
        &self,
        (width, height): (usize, usize),
        (left, top, part_width, part_height): (usize, usize, usize, usize),
        filter: Filter,
        arithmetic: Arithmetic,
    ) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.crop(left, top, part_width, part_height);
        }
        let down =
            (height != self.height).then(|| filter.taps(arithmetic, self.height, height, top, part_height));
        // Only the rows that the second pass reads.
        let (first_row, last_row) = match &down {
            Some((taps, _)) => (
                taps.iter().map(|t| t.first).min().unwrap_or(0),
                taps.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0),
            ),
            None => (top, top + part_height),
        };
        let rows = self.crop(0, first_row, self.width, last_row - first_row);
        let wide = if width == self.width {
            rows.crop(left, 0, part_width, rows.height)
        } else {
            let (taps, precision) = filter.taps(arithmetic, self.width, width, left, part_width);
            rows.across(&taps, precision)
        };
        match down {
            Some((taps, precision)) => wide.down(&taps, first_row, precision),
            None => wide,
        }
    }

    fn across(&self, taps: &[Tap], precision: u32) -> Self {
        let mut rgb = Vec::with_capacity(taps.len() * self.height * 3);
        for row in self.rgb.chunks_exact(self.width * 3) {
            for tap in taps {
                let mut sum = [1i32 << (precision - 1); 3];
                for (pixel, w) in row[tap.first * 3..].as_chunks::<3>().0.iter().zip(&tap.weights) {
                    (0..3).for_each(|c| sum[c] += i32::from(pixel[c]) * w);
                }
                rgb.extend(sum.map(|x| (x >> precision).clamp(0, 255) as u8));
            }
        }
        Self { width: taps.len(), height: self.height, rgb }
    }

    fn down(&self, taps: &[Tap], first_row: usize, precision: u32) -> Self {
        let line = self.width * 3;
        let mut rgb = Vec::with_capacity(line * taps.len());
        let mut sums = vec![0i32; line];
        for tap in taps {
            sums.fill(1 << (precision - 1));
            let rows = self.rgb[(tap.first - first_row) * line..].chunks_exact(line);
            for (row, w) in rows.zip(&tap.weights) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += i32::from(*x) * w);
            }
            rgb.extend(sums.iter().map(|x| (x >> precision).clamp(0, 255) as u8));
        }
        Self { width: self.width, height: taps.len(), rgb }
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

    /// The picture on a black canvas (at least as large), its corner at `(left, top)`.
    pub(crate) fn on_canvas(&self, width: usize, height: usize, left: usize, top: usize) -> Self {
        let mut rgb = vec![0; width * height * 3];
        for (y, row) in self.rgb.chunks_exact(self.width * 3).enumerate() {
            let at = ((top + y) * width + left) * 3;
            rgb[at..at + row.len()].copy_from_slice(row);
        }
        Self { width, height, rgb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_and_sizes_fit() -> Result<()> {
        let flat = Picture::new(7, 5, vec![77; 105])?;
        for filter in FILTERS {
            for (width, height) in [(3, 2), (14, 20), (7, 1)] {
                let want = Picture::new(width, height, vec![77; width * height * 3])?;
                assert_eq!(flat.resize(width, height, filter), want);
                let whole = (0, 0, width, height);
                assert_eq!(flat.resize_part((width, height), whole, filter, Arithmetic::Torch), want);
            }
        }
        Ok(())
    }

    #[test]
    fn a_part_is_what_cropping_the_whole_gives() -> Result<()> {
        let picture = Picture::new(9, 31, (0..9 * 31 * 3).map(|i| (i * 37 % 251) as u8).collect())?;
        for filter in FILTERS {
            let whole = picture.resize(12, 17, filter);
            let part = picture.resize_part((12, 17), (3, 5, 6, 7), filter, Arithmetic::Pillow);
            assert_eq!(part, whole.crop(3, 5, 6, 7), "{filter:?}");
        }
        Ok(())
    }

    #[test]
    fn filters_have_pillows_numbers() {
        assert!((0..6).all(|n| Filter::try_from(n).is_ok_and(|f| u64::from(f) == n)));
        assert!(Filter::try_from(6).is_err_and(|e| e.contains("got 6")));
    }
}
