//! The plain pixels of a `sensor_msgs/msg/Image` as RGB, by the names in `sensor_msgs/image_encodings.hpp`.

use super::messages::ImageRef;

/// What is written here. The newer names of the two YUV 4:2:2 orders are beside those that are in every distribution.
const KNOWN: &str =
    "rgb8, bgr8, rgba8, bgra8, mono8, mono16, 8UC1, yuv422 (uyvy), yuv422_yuy2 (yuyv) or nv21";

/// How pixels lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// So many bytes a pixel, and where in them red, green and blue are.
    Colours(usize, [usize; 3]),
    Grey,
    /// Two bytes a pixel, the higher one first or last.
    Grey16 {
        big_endian: bool,
    },
    /// Two pixels in four bytes: where in them the two luminances, U and V are.
    Yuv422([usize; 4]),
    /// Luminances; below all of them a row of V and U for every two rows.
    Nv21,
}

impl Layout {
    fn named(encoding: &str, is_bigendian: u8) -> Result<Self, String> {
        Ok(match encoding {
            "rgb8" => Self::Colours(3, [0, 1, 2]),
            "bgr8" => Self::Colours(3, [2, 1, 0]),
            "rgba8" => Self::Colours(4, [0, 1, 2]),
            "bgra8" => Self::Colours(4, [2, 1, 0]),
            "mono8" | "8UC1" => Self::Grey,
            "mono16" => Self::Grey16 { big_endian: is_bigendian != 0 },
            "yuv422" | "uyvy" => Self::Yuv422([1, 3, 0, 2]),
            "yuv422_yuy2" | "yuyv" => Self::Yuv422([0, 2, 1, 3]),
            "nv21" => Self::Nv21,
            "8UC3" => {
                return Err(
                    "the encoding 8UC3 does not say which colour comes first: expected rgb8 or bgr8".into()
                );
            }
            mosaic if mosaic.starts_with("bayer_") => {
                let mosaic: String = mosaic.chars().take(20).collect();
                return Err(format!(
                    "'{mosaic}' is the sensor's mosaic and no picture yet: image_proc's debayer_node \
                     (image_proc::DebayerNode) makes one of it, on the topic image_color"
                ));
            }
            other => {
                let other: String = other.chars().take(20).collect();
                return Err(format!("expected the encoding {KNOWN}, got '{other}'"));
            }
        })
    }

    /// Bytes of a row of so many pixels.
    fn row(self, width: usize) -> usize {
        match self {
            Self::Colours(channels, _) => width * channels,
            Self::Grey | Self::Nv21 => width,
            Self::Grey16 { .. } | Self::Yuv422(_) => width * 2,
        }
    }

    /// Rows of a picture with so many rows of pixels.
    fn rows(self, height: usize) -> usize {
        if self == Self::Nv21 { height + height / 2 } else { height }
    }

    /// Colours that two pixels share need pixels in twos.
    fn fits(self, width: usize, height: usize) -> bool {
        match self {
            Self::Yuv422(_) => width.is_multiple_of(2),
            Self::Nv21 => width.is_multiple_of(2) && height.is_multiple_of(2),
            _ => true,
        }
    }
}

/// Writes the pixels of a message to `rgb`, which has the picture's own size; rows may be padded.
pub(super) fn unpack(message: &ImageRef, rgb: &mut [u8]) -> Result<(), String> {
    let layout = Layout::named(&message.encoding, message.is_bigendian)?;
    let (width, height, step) = (message.width as usize, message.height as usize, message.step as usize);
    if !layout.fits(width, height) {
        let name = &message.encoding;
        return Err(format!("expected an even size of a picture in {name}, got {width}x{height}"));
    }
    let (row, rows) = (layout.row(width), layout.rows(height));
    if step < row {
        return Err(format!("expected rows of at least {row} bytes, got a step of {step}"));
    }
    if step.checked_mul(rows) != Some(message.data.len()) {
        return Err(format!("expected {rows} rows of {step} bytes, got {} bytes", message.data.len()));
    }
    if row == 0 {
        return Ok(());
    }
    let (pixels, chroma) = message.data.split_at(step * height);
    for (k, (padded, place)) in pixels.chunks_exact(step).zip(rgb.chunks_exact_mut(width * 3)).enumerate() {
        let pixels = &padded[..row];
        match layout {
            Layout::Colours(3, [0, 1, 2]) => place.copy_from_slice(pixels),
            Layout::Colours(channels, [r, g, b]) => {
                each(place, pixels, channels, |from| [from[r], from[g], from[b]]);
            }
            Layout::Grey => each(place, pixels, 1, |from| [from[0]; 3]),
            Layout::Grey16 { big_endian: true } => {
                each(place, pixels, 2, |from| [eight_bits(u16::from_be_bytes([from[0], from[1]])); 3]);
            }
            Layout::Grey16 { big_endian: false } => {
                each(place, pixels, 2, |from| [eight_bits(u16::from_le_bytes([from[0], from[1]])); 3]);
            }
            Layout::Yuv422([first, second, u, v]) => {
                for (pair, from) in place.chunks_exact_mut(6).zip(pixels.chunks_exact(4)) {
                    pair[..3].copy_from_slice(&colour(from[first], from[u], from[v]));
                    pair[3..].copy_from_slice(&colour(from[second], from[u], from[v]));
                }
            }
            Layout::Nv21 => {
                let shared = chroma[k / 2 * step..].chunks_exact(2);
                for ((pair, from), vu) in place.chunks_exact_mut(6).zip(pixels.chunks_exact(2)).zip(shared) {
                    pair[..3].copy_from_slice(&colour(from[0], vu[1], vu[0]));
                    pair[3..].copy_from_slice(&colour(from[1], vu[1], vu[0]));
                }
            }
        }
    }
    Ok(())
}

/// Every pixel of a row, made of so many bytes each.
fn each(place: &mut [u8], pixels: &[u8], bytes: usize, rgb: impl Fn(&[u8]) -> [u8; 3]) {
    for (place, from) in place.chunks_exact_mut(3).zip(pixels.chunks_exact(bytes)) {
        place.copy_from_slice(&rgb(from));
    }
}

/// 0 to 65535 as 0 to 255, rounded, as `cv_bridge` makes mono8 of mono16.
fn eight_bits(grey: u16) -> u8 {
    ((u32::from(grey) + 128) / 257) as u8
}

/// ITU-R BT.601 with luminances of 16 to 235 and colours of 16 to 240, in OpenCV's fixed point (`cvtColor` with
/// `COLOR_YUV2RGB_YUY2` and its sisters): the same bytes.
fn colour(y: u8, u: u8, v: u8) -> [u8; 3] {
    // 1.164, 1.596, -0.813, -0.391 and 2.018 times two to the twentieth.
    const SHIFT: i32 = 20;
    const OF_Y: i32 = 1_220_542;
    const RED_OF_V: i32 = 1_673_527;
    const GREEN_OF_V: i32 = -852_492;
    const GREEN_OF_U: i32 = -409_993;
    const BLUE_OF_U: i32 = 2_116_026;
    let luminance = (i32::from(y) - 16).max(0) * OF_Y;
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    let byte = |chroma: i32| ((luminance + chroma + (1 << (SHIFT - 1))) >> SHIFT).clamp(0, 255) as u8;
    [byte(RED_OF_V * v), byte(GREEN_OF_V * v + GREEN_OF_U * u), byte(BLUE_OF_U * u)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of rows that are padded by `padding` bytes, as RGB.
    fn rgb(
        encoding: &str,
        is_bigendian: u8,
        (width, height): (u32, u32),
        rows: &[&[u8]],
        padding: usize,
    ) -> Result<Vec<u8>, String> {
        let data: Vec<u8> = rows.iter().flat_map(|row| [row, &vec![0xee; padding][..]].concat()).collect();
        let step = (rows[0].len() + padding) as u32;
        let message = ImageRef::of(encoding, is_bigendian, (width, height), step, &data);
        let mut rgb = vec![7; width as usize * height as usize * 3];
        unpack(&message, &mut rgb).map(|()| rgb)
    }

    #[test]
    fn colours_with_an_alpha_and_greys_are_rgb() -> Result<(), String> {
        for padding in [0, 5] {
            let of = |encoding, big, rows: &[&[u8]]| rgb(encoding, big, (2, 2), rows, padding);
            let four: [&[u8]; 2] = [&[1, 2, 3, 9, 4, 5, 6, 0], &[11, 12, 13, 255, 14, 15, 16, 1]];
            assert_eq!(of("rgba8", 0, &four)?, [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
            assert_eq!(of("bgra8", 0, &four)?, [3, 2, 1, 6, 5, 4, 13, 12, 11, 16, 15, 14]);
            let one: [&[u8]; 2] = [&[0, 200], &[255, 3]];
            assert_eq!(of("8UC1", 0, &one)?, [0, 0, 0, 200, 200, 200, 255, 255, 255, 3, 3, 3]);
        }
        Ok(())
    }

    /// Times 255 / 65535 and rounded, as OpenCV 4.13's `convertScaleAbs` says.
    #[test]
    fn sixteen_bits_of_grey_are_scaled_to_eight_in_either_order() -> Result<(), String> {
        let cases: [(u16, u8); 15] = [
            (0, 0),
            (1, 0),
            (127, 0),
            (128, 0),
            (129, 1),
            (255, 1),
            (256, 1),
            (257, 1),
            (385, 1),
            (386, 2),
            (32_768, 128),
            (65_279, 254),
            (65_407, 255),
            (65_408, 255),
            (65_535, 255),
        ];
        let wanted: Vec<u8> = cases.iter().flat_map(|(_, grey)| [*grey; 3]).collect();
        let little: Vec<u8> = cases.iter().flat_map(|(grey, _)| grey.to_le_bytes()).collect();
        let big: Vec<u8> = cases.iter().flat_map(|(grey, _)| grey.to_be_bytes()).collect();
        assert_eq!(rgb("mono16", 0, (15, 1), &[&little], 3)?, wanted);
        assert_eq!(rgb("mono16", 1, (15, 1), &[&big], 0)?, wanted);
        assert_ne!(rgb("mono16", 1, (15, 1), &[&little], 0)?, wanted);
        Ok(())
    }

    /// The bytes that OpenCV 4.13's `cvtColor` gives (`COLOR_YUV2RGB_YUY2`, `_UYVY` and `_NV21`): black, white, and
    /// colours beyond what RGB can say.
    #[test]
    fn yuv_is_what_opencv_makes_of_it() -> Result<(), String> {
        let wanted = [
            [0, 0, 0, 255, 255, 255, 254, 0, 0, 255, 74, 73],
            [0, 0, 255, 197, 197, 255, 203, 0, 0, 255, 225, 20],
        ]
        .concat();
        for padding in [0, 6] {
            let yuyv: [&[u8]; 2] =
                [&[16, 128, 235, 128, 81, 90, 145, 240], &[41, 240, 210, 110, 0, 0, 255, 255]];
            let uyvy: [&[u8]; 2] =
                [&[128, 16, 128, 235, 90, 81, 240, 145], &[240, 41, 110, 210, 0, 0, 255, 255]];
            for (encoding, rows) in [("yuv422_yuy2", yuyv), ("yuyv", yuyv), ("yuv422", uyvy), ("uyvy", uyvy)]
            {
                assert_eq!(rgb(encoding, 0, (4, 2), &rows, padding)?, wanted, "{encoding}");
            }
            let nv21: [&[u8]; 3] = [&[16, 81, 145, 255], &[235, 41, 210, 0], &[240, 90, 54, 34]];
            let wanted = [
                [179, 0, 0, 254, 0, 0, 32, 247, 0, 160, 255, 89],
                [255, 179, 178, 208, 0, 0, 108, 255, 36, 0, 97, 0],
            ]
            .concat();
            assert_eq!(rgb("nv21", 0, (4, 2), &nv21, padding)?, wanted);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_picture_yet_is_refused_with_what_makes_it_one() {
        let why =
            |encoding: &str, size, row: &[u8]| rgb(encoding, 0, size, &[row], 0).err().unwrap_or_default();
        for mosaic in ["bayer_rggb8", "bayer_bggr8", "bayer_gbrg16", "bayer_grbg16"] {
            let said = why(mosaic, (2, 1), &[0; 4]);
            assert!(said.contains(mosaic) && said.contains("image_proc::DebayerNode"), "{said}");
        }
        assert!(why("8UC3", (1, 1), &[0; 3]).contains("expected rgb8 or bgr8"));
        for unknown in ["16UC1", "32FC1", "rgb16", "nv24", "", "RGB8"] {
            let said = why(unknown, (1, 1), &[0; 8]);
            assert!(
                said.contains("expected the encoding rgb8") && said.ends_with(&format!("got '{unknown}'"))
            );
        }
        // Sizes: colours shared by two pixels, rows that are too short, bytes that are missing or too many.
        assert!(why("yuv422", (3, 1), &[0; 6]).contains("even size of a picture in yuv422, got 3x1"));
        assert!(why("nv21", (2, 1), &[0; 2]).contains("even size of a picture in nv21, got 2x1"));
        for (encoding, bytes) in [("rgba8", 8), ("mono16", 4), ("yuv422_yuy2", 4), ("8UC1", 2)] {
            let said = why(encoding, (2, 1), &vec![0; bytes - 1]);
            assert!(said.contains(&format!("at least {bytes} bytes, got a step of {}", bytes - 1)), "{said}");
            let two = rgb(encoding, 0, (2, 1), &[&vec![0; bytes], &vec![0; bytes]], 0).err();
            let expected = format!("expected 1 rows of {bytes} bytes, got {} bytes", 2 * bytes);
            assert_eq!(two, Some(expected));
        }
        let luminances = rgb("nv21", 0, (2, 2), &[&[0; 2], &[0; 2]], 0).err();
        assert_eq!(luminances, Some("expected 3 rows of 2 bytes, got 4 bytes".into()));
    }
}
