//! Between RGB and brightness with colour differences.

/// One of the three parts of a picture.
pub(super) struct Plane<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) stride: usize,
}

/// How brightness and colour differences become colours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Matrix {
    Bt601,
    Bt709,
}

/// RGB bytes of a 4:2:0 picture (ITU-R BT.601 and BT.709), each colour standing for its 2x2 pixels.
pub(super) fn rgb(
    width: u32,
    height: u32,
    [y, u, v]: [Plane<'_>; 3],
    matrix: Matrix,
    full: bool,
) -> std::result::Result<Vec<u8>, String> {
    let (width, height) = (width as usize, height as usize);
    let (kr, kb) = match matrix {
        Matrix::Bt601 => (0.299f32, 0.114f32),
        Matrix::Bt709 => (0.2126, 0.0722),
    };
    let kg = 1.0 - kr - kb;
    let (black, light, colour) = if full { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in 0..height {
        let cut = |plane: &Plane<'_>, row: usize, wide: usize| {
            plane.bytes.get(row * plane.stride..).and_then(|rest| rest.get(..wide)).map(<[u8]>::to_vec)
        };
        let half = width.div_ceil(2);
        let (Some(ys), Some(us), Some(vs)) =
            (cut(&y, row, width), cut(&u, row / 2, half), cut(&v, row / 2, half))
        else {
            return Err("a plane is too short".into());
        };
        for column in 0..width {
            let bright = (f32::from(ys[column]) - black) * light;
            let blue = (f32::from(us[column / 2]) - 128.0) * colour * 2.0 * (1.0 - kb);
            let red = (f32::from(vs[column / 2]) - 128.0) * colour * 2.0 * (1.0 - kr);
            let green = -(kb * blue + kr * red) / kg;
            rgb.extend([red, green, blue].map(|c| (bright + c).round().clamp(0.0, 255.0) as u8));
        }
    }
    Ok(rgb)
}

/// The 4:2:0 planes, one after another, of an RGB picture `[height, width, 3]` of even sides: BT.601, limited range, as
/// LeRobot's videos have it, the colour of 2x2 pixels their mean. Weights in 1/65536, rounded to nearest.
pub(super) fn yuv(rgb: &[u8], width: usize, height: usize) -> Vec<u8> {
    let (luma, chroma) = (width * height, width * height / 4);
    let mut planes = vec![0; luma + 2 * chroma];
    let (ys, differences) = planes.split_at_mut(luma);
    let (us, vs) = differences.split_at_mut(chroma);
    for (pair, rows) in rgb.chunks_exact(width * 6).enumerate() {
        let (upper, lower) = rows.split_at(width * 3);
        for (row, line) in [upper, lower].into_iter().enumerate() {
            let from = (2 * pair + row) * width;
            for (y, pixel) in ys[from..from + width].iter_mut().zip(line.chunks_exact(3)) {
                let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(i32::from);
                *y = ((16829 * r + 33039 * g + 6416 * b + (16 << 16) + (1 << 15)) >> 16) as u8;
            }
        }
        let from = pair * width / 2;
        let places = us[from..from + width / 2].iter_mut().zip(&mut vs[from..from + width / 2]);
        for ((u, v), (above, below)) in places.zip(upper.chunks_exact(6).zip(lower.chunks_exact(6))) {
            let sum = |k: usize| [above[k], above[k + 3], below[k], below[k + 3]].map(i32::from).iter().sum();
            let (r, g, b): (i32, i32, i32) = (sum(0), sum(1), sum(2));
            let middle = (128 << 18) + (1 << 17);
            *u = ((middle - 9714 * r - 19071 * g + 28785 * b) >> 18) as u8;
            *v = ((middle + 28784 * r - 24103 * g - 4681 * b) >> 18) as u8;
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plain_colour_comes_back() {
        for k in 0..4096u32 {
            let colour = [k & 15, k >> 4 & 15, k >> 8].map(|part| (part * 17) as u8);
            let planes = yuv(&colour.repeat(8), 4, 2);
            let plane = |from: usize, stride: usize| Plane { bytes: &planes[from..], stride };
            let back = rgb(4, 2, [plane(0, 4), plane(8, 2), plane(10, 2)], Matrix::Bt601, false);
            let back = back.unwrap_or_default();
            let near = back.chunks(3).all(|p| p.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 2));
            assert!(back.len() == 24 && near, "{colour:?} became {back:?}");
        }
    }

    #[test]
    fn the_primaries_of_the_standards_come_out_and_short_planes_are_refused() {
        // BT.601, limited range: white, red and blue as the recommendation tabulates them.
        for ([y, u, v], expected) in [
            ([235, 128, 128], [255, 255, 255]),
            ([16, 128, 128], [0, 0, 0]),
            ([81, 90, 240], [254, 0, 0]),
            ([41, 240, 110], [0, 0, 255]),
        ] {
            let plane = |byte: u8| vec![byte; 4];
            let [y, u, v] = [plane(y), plane(u), plane(v)];
            let planes = || [&y, &u, &v].map(|bytes| Plane { bytes: bytes.as_slice(), stride: 2 });
            let picture = rgb(2, 2, planes(), Matrix::Bt601, false).unwrap_or_default();
            let near = picture.chunks(3).all(|p| p.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1));
            assert!(picture.len() == 12 && near, "{picture:?} against {expected:?}");
            assert!(rgb(2, 4, planes(), Matrix::Bt601, false).is_err());
        }
    }
}
