//! A picture as floating-point planes, and the resizing that torch does: bilinear, without antialiasing.

use crate::Picture;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result};

/// A picture as `[3, height, width]` values, row by row from the top.
#[derive(Clone, Debug, PartialEq)]
pub struct Planes {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
    /// `3 * height * width` values, plane after plane in the order R, G, B.
    pub data: Vec<f32>,
}

/// How a byte becomes a number: `(byte * factor - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Usually 1/255.
    pub factor: f64,
    /// Per colour, after the factor.
    pub mean: [f32; 3],
    /// Per colour.
    pub std: [f32; 3],
}

impl Scale {
    /// What each byte becomes, per colour; rounded where the reference rounds.
    pub fn table(&self) -> [[f32; 256]; 3] {
        let value = |c: usize, byte: usize| ((byte as f64 * self.factor) as f32 - self.mean[c]) / self.std[c];
        std::array::from_fn(|c| std::array::from_fn(|byte| value(c, byte)))
    }
}

/// Where padding goes when a picture keeps its aspect in a box of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadSide {
    /// All padding on the left and on top; the content is at the bottom right (SmolVLA).
    LeftTop,
    /// Half on each side, an odd pixel on the right and at the bottom (pi0).
    Centred,
}

impl Planes {
    /// RGB bytes `[height, width, 3]` as values from 0 to 1.
    ///
    /// # Errors
    /// The number of bytes is not `3 * height * width`, or the picture is empty.
    pub fn from_rgb(rgb: &[u8], width: usize, height: usize) -> Result<Self> {
        let area = width * height;
        if area == 0 || rgb.len() != area * 3 {
            return Err(Error::invalid(format!(
                "picture: expected {width}x{height} RGB, got {} bytes",
                rgb.len()
            )));
        }
        let mut data = vec![0.0; area * 3];
        for (i, pixel) in rgb.chunks_exact(3).enumerate() {
            for (channel, &value) in pixel.iter().enumerate() {
                data[channel * area + i] = f32::from(value) / 255.0;
            }
        }
        Ok(Self { height, width, data })
    }

    /// A picture's bytes, scaled.
    pub fn scaled(picture: &Picture, scale: &Scale) -> Self {
        let table = scale.table();
        let pixels = picture.rgb.as_chunks::<3>().0;
        let plane = |c: usize| pixels.iter().map(move |pixel| usize::from(pixel[c]));
        let data = (0..3).flat_map(|c| plane(c).map(move |byte| table[c][byte])).collect();
        Self { height: picture.height, width: picture.width, data }
    }

    /// The same from a `[3, height, width]` tensor.
    pub fn from_tensor(pixels: &Tensor) -> Result<Self> {
        let (channels, height, width) = pixels.dims3()?;
        if channels != 3 || height * width == 0 {
            return Err(Error::invalid(format!(
                "picture: expected [3, height, width], got {:?}",
                pixels.dims()
            )));
        }
        Ok(Self { height, width, data: pixels.flatten_all()?.to_vec1()? })
    }

    /// Bilinear with half-pixel centres (`align_corners=False`) and no antialiasing, as
    /// `torch.nn.functional.interpolate` does when it is given a size.
    pub fn resize_bilinear(&self, width: usize, height: usize) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let taps = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
            let scale = from as f32 / to as f32;
            (0..to)
                .map(|i| {
                    let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
                    let low = (at as usize).min(from - 1);
                    (low, (low + 1).min(from - 1), at - low as f32)
                })
                .collect()
        };
        let (rows, columns) = (taps(self.height, height), taps(self.width, width));
        let mut data = Vec::with_capacity(3 * width * height);
        for plane in self.data.chunks_exact(self.width * self.height) {
            for &(top, bottom, down) in &rows {
                let (top, bottom) = (&plane[top * self.width..], &plane[bottom * self.width..]);
                for &(left, right, across) in &columns {
                    let upper = top[left] * (1.0 - across) + top[right] * across;
                    let lower = bottom[left] * (1.0 - across) + bottom[right] * across;
                    data.push(upper * (1.0 - down) + lower * down);
                }
            }
        }
        Self { height, width, data }
    }

    /// Shrinks or grows the picture into a box, keeping its aspect, and fills the rest with `value`.
    pub fn resize_with_pad(&self, width: usize, height: usize, side: PadSide, value: f32) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let ratio = (self.width as f64 / width as f64).max(self.height as f64 / height as f64);
        // Truncated, as the reference does it; never nothing, never more than the box.
        let fit = |from: usize, most: usize| ((from as f64 / ratio) as usize).clamp(1, most);
        let inner = self.resize_bilinear(fit(self.width, width), fit(self.height, height));
        let (spare_width, spare_height) = (width - inner.width, height - inner.height);
        let (left, top) = match side {
            PadSide::LeftTop => (spare_width, spare_height),
            PadSide::Centred => (spare_width / 2, spare_height / 2),
        };
        let mut data = vec![value; 3 * width * height];
        for channel in 0..3 {
            for row in 0..inner.height {
                let from = (channel * inner.height + row) * inner.width;
                let to = (channel * height + top + row) * width + left;
                data[to..to + inner.width].copy_from_slice(&inner.data[from..from + inner.width]);
            }
        }
        Self { height, width, data }
    }

    /// `(x - mean) / std` per plane.
    pub fn normalise(&mut self, mean: [f32; 3], std: [f32; 3]) {
        let area = self.width * self.height;
        for (channel, plane) in self.data.chunks_exact_mut(area).enumerate() {
            plane.iter_mut().for_each(|x| *x = (*x - mean[channel]) / std[channel]);
        }
    }

    /// From [0, 1] to [-1, 1]: what SigLIP's statistics of one half amount to.
    pub fn to_signed_range(&mut self) {
        self.data.iter_mut().for_each(|x| *x = *x * 2.0 - 1.0);
    }

    /// Pictures of one size as one tensor `[n, 3, height, width]`.
    ///
    /// # Errors
    /// No picture, or pictures of different sizes.
    pub fn stack(pictures: &[Self], device: &Device) -> Result<Tensor> {
        let Some(first) = pictures.first() else {
            return Err(Error::invalid("pictures: expected at least one, got none"));
        };
        let (height, width) = (first.height, first.width);
        if let Some(odd) = pictures.iter().find(|p| (p.height, p.width) != (height, width)) {
            let got = format!("{}x{}", odd.width, odd.height);
            return Err(Error::invalid(format!("pictures: expected all {width}x{height}, got one of {got}")));
        }
        let data: Vec<f32> = pictures.iter().flat_map(|p| p.data.iter().copied()).collect();
        Ok(Tensor::from_vec(data, (pictures.len(), 3, height, width), device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Result<Planes> {
        let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i % 251) as u8 + 1).collect();
        Planes::from_rgb(&rgb, width, height)
    }

    #[test]
    fn padding_side_is_left_and_top_for_smolvla_and_centred_for_pi0() -> Result<()> {
        let picture = ramp(8, 4)?;
        let left_top = picture.resize_with_pad(8, 8, PadSide::LeftTop, 0.0);
        assert!(left_top.data[..4 * 8].iter().all(|x| *x == 0.0));
        assert_eq!(left_top.data[4 * 8..8 * 8], picture.data[..4 * 8]);
        let centred = picture.resize_with_pad(8, 7, PadSide::Centred, 0.0);
        assert!(centred.data[..8].iter().all(|x| *x == 0.0) && centred.data[8] > 0.0);
        assert!(centred.data[5 * 8..7 * 8].iter().all(|x| *x == 0.0));
        Ok(())
    }

    #[test]
    fn image_range_is_minus_one_to_one_and_padding_becomes_minus_one() -> Result<()> {
        let mut picture =
            Planes::from_rgb(&[0, 128, 255], 1, 1)?.resize_with_pad(2, 1, PadSide::LeftTop, 0.0);
        picture.to_signed_range();
        assert_eq!(picture.data[0], -1.0);
        assert_eq!((picture.data[1], picture.data[5]), (-1.0, 1.0));
        let mut other = Planes::from_rgb(&[0, 128, 255], 1, 1)?;
        other.normalise([0.5; 3], [0.5; 3]);
        assert!((other.data[1] - picture.data[3]).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn a_short_picture_is_refused() {
        assert!(Planes::from_rgb(&[0; 5], 1, 2).is_err_and(|e| e.to_string().contains("1x2")));
        assert!(Planes::from_rgb(&[], 0, 0).is_err());
    }
}
