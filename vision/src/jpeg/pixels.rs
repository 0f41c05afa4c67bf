//! Coefficients to pixels, with the rounding of libjpeg's "islow" transform, its triangle upsampling and its colours.

use super::frame::{Component, Frame};

/// How three or four components become RGB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    Rgb,
    Ycc,
    /// Inverted, as Adobe writes it.
    Cmyk,
    Ycck,
}

/// The samples of a component, with those that only fill up its last blocks.
struct Plane<'a> {
    of: &'a Component,
    samples: Vec<u8>,
    /// How many pixels a sample covers, across and down.
    covers: (usize, usize),
}

impl<'a> Plane<'a> {
    fn new(frame: &Frame, of: &'a Component, steps: &[u16; 64]) -> Self {
        let stride = of.blocks.0 * 8;
        let mut samples = vec![0; stride * of.blocks.1 * 8];
        for (row, line) in samples.chunks_exact_mut(stride * 8).enumerate() {
            for (column, block) in of.coefficients[row * of.blocks.0..].iter().take(of.blocks.0).enumerate() {
                transform(block, steps, &mut line[column * 8..], stride);
            }
        }
        Self { of, samples, covers: (frame.most.0 / of.sampling.0, frame.most.1 / of.sampling.1) }
    }

    /// The samples of a row that belong to the picture.
    fn line(&self, row: usize) -> &[u8] {
        &self.samples[row * self.of.blocks.0 * 8..][..self.of.width]
    }

    /// A row of the picture. `sums` is a place for what comes between.
    fn row(&self, y: usize, sums: &mut Vec<u16>, out: &mut [u8]) {
        let (across, down) = self.covers;
        let near = self.line(y / down);
        // The row on the other side of the pixel's middle; at the border the same again.
        let far = || match y % 2 {
            0 => self.line((y / 2).saturating_sub(1)),
            _ => self.line((y / 2 + 1).min(self.of.height - 1)),
        };
        let wide = self.of.width > 2;
        match (across, down) {
            (1, 1) => out.copy_from_slice(near),
            (1, 2) => {
                let bias = 1 + (y % 2) as u16;
                for ((out, near), far) in out.iter_mut().zip(near).zip(far()) {
                    *out = ((3 * u16::from(*near) + u16::from(*far) + bias) >> 2) as u8;
                }
            }
            (2, 1) if wide => {
                sums.clear();
                sums.extend(near.iter().map(|x| u16::from(*x)));
                between(sums, [1, 2], 2, out);
            }
            (2, 2) if wide => {
                sums.clear();
                sums.extend(near.iter().zip(far()).map(|(near, far)| 3 * u16::from(*near) + u16::from(*far)));
                between(sums, [8, 7], 4, out);
            }
            _ => {
                for (out, sample) in out.chunks_mut(across).zip(near) {
                    out.fill(*sample);
                }
            }
        }
    }
}

/// Two pixels for each value: three parts of it and one part of the neighbour on that side.
fn between(values: &[u16], bias: [u16; 2], shift: u32, out: &mut [u8]) {
    let last = values.len() - 1;
    let mut put = |x: usize, before: u16, after: u16| {
        let value = 3 * values[x];
        for (out, sum) in out[2 * x..].iter_mut().zip([value + before + bias[0], value + after + bias[1]]) {
            *out = (sum >> shift) as u8;
        }
    };
    put(0, values[0], values[1]);
    for x in 1..last {
        put(x, values[x - 1], values[x + 1]);
    }
    put(last, values[last - 1], values[last]);
}

/// The RGB bytes of a frame whose scans are all read.
pub(super) fn rgb(frame: &Frame, colours: Colours) -> Result<Vec<u8>, String> {
    let mut planes = Vec::new();
    for component in &frame.components {
        let steps = component.steps.as_ref().ok_or("a component without a scan")?;
        planes.push(Plane::new(frame, component, steps));
    }
    let mut rgb = vec![0; frame.width * frame.height * 3];
    let mut rows: [_; 4] = std::array::from_fn(|_| vec![0; frame.width]);
    let mut sums = Vec::new();
    for (y, out) in rgb.chunks_exact_mut(frame.width * 3).enumerate() {
        for (plane, row) in planes.iter().zip(&mut rows) {
            plane.row(y, &mut sums, row);
        }
        match colours {
            Colours::Grey => paint(out, &rows, |[a, ..]| [a; 3]),
            Colours::Rgb => paint(out, &rows, |[a, b, c, _]| [a, b, c]),
            Colours::Ycc => paint(out, &rows, |[a, b, c, _]| from_ycc(a, b, c)),
            Colours::Cmyk => paint(out, &rows, |[a, b, c, black]| over_black([a, b, c], black)),
            Colours::Ycck => {
                paint(out, &rows, |[a, b, c, black]| over_black(from_ycc(a, b, c).map(|x| 255 - x), black))
            }
        }
    }
    Ok(rgb)
}

/// One row of pixels from the rows of up to four components.
fn paint(out: &mut [u8], rows: &[Vec<u8>; 4], pixel: impl Fn([u8; 4]) -> [u8; 3]) {
    let [a, b, c, d] = rows;
    for ((((out, a), b), c), d) in out.chunks_exact_mut(3).zip(a).zip(b).zip(c).zip(d) {
        out.copy_from_slice(&pixel([*a, *b, *c, *d]));
    }
}

/// JFIF's colours in 16 bits; the halves that round are where libjpeg has them.
fn from_ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((HALF - 22_554 * cb - 46_802 * cr) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|x| x.clamp(0, 255) as u8)
}

/// Inverted CMYK as Pillow's conversion makes RGB of it.
fn over_black(inks: [u8; 3], black: u8) -> [u8; 3] {
    inks.map(|ink| {
        let product = i32::from(255 - ink) * i32::from(black) + 128;
        (i32::from(black) - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}

/// Bits behind the point of the factors of the transform, and those that are kept between its two passes.
const POINT: u32 = 13;
const KEPT: u32 = 2;

/// One block of samples: the inverse cosine transform, down and then across, each pass as Loeffler, Ligtenberg and
/// Moschytz split it.
fn transform(block: &[i16; 64], steps: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut middle = [0i32; 64];
    for x in 0..8 {
        let column: [i32; 8] =
            std::array::from_fn(|y| i32::from(block[y * 8 + x]) * i32::from(steps[y * 8 + x]));
        let rest = column[1..].iter().fold(0, |any, value| any | value);
        let values = if rest == 0 { [column[0] << KEPT; 8] } else { pass(column, POINT - KEPT) };
        for (y, value) in values.into_iter().enumerate() {
            middle[y * 8 + x] = value;
        }
    }
    for (y, row) in middle.chunks_exact(8).enumerate() {
        let row = std::array::from_fn(|x| row[x]);
        for (out, value) in out[y * stride..].iter_mut().zip(pass(row, POINT + KEPT + 3)) {
            *out = value.saturating_add(128).clamp(0, 255) as u8;
        }
    }
}

/// Eight values of one row or column; the sums are cut by `shift` bits with rounding.
#[inline(always)]
fn pass(v: [i32; 8], shift: u32) -> [i32; 8] {
    let times = |a: i32, factor: i32| a.wrapping_mul(factor);
    let sum = |a: i32, b: i32| a.wrapping_add(b);
    let less = |a: i32, b: i32| a.wrapping_sub(b);
    // Even part.
    let turn = times(sum(v[2], v[6]), 4433);
    let (a, b) = (sum(turn, times(v[2], 6270)), less(turn, times(v[6], 15_137)));
    let (c, d) = (sum(v[0], v[4]) << POINT, less(v[0], v[4]) << POINT);
    let even = [sum(c, a), sum(d, b), less(d, b), less(c, a)];
    // Odd part.
    let both = times(sum(sum(v[7], v[3]), sum(v[5], v[1])), 9633);
    let p = times(sum(v[7], v[1]), -7373);
    let q = times(sum(v[5], v[3]), -20_995);
    let r = sum(times(sum(v[7], v[3]), -16_069), both);
    let s = sum(times(sum(v[5], v[1]), -3196), both);
    let odd = [
        sum(times(v[1], 12_299), sum(p, s)),
        sum(times(v[3], 25_172), sum(q, r)),
        sum(times(v[5], 16_819), sum(q, s)),
        sum(times(v[7], 2446), sum(p, r)),
    ];
    let cut = |x: i32| sum(x, 1 << (shift - 1)) >> shift;
    std::array::from_fn(|n| match n {
        0..4 => cut(sum(even[n], odd[n])),
        _ => cut(less(even[7 - n], odd[7 - n])),
    })
}
