//! Files that people send: a right answer or a clear error.

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use std::io::Cursor;
use std::path::Path;
use vela_nn::{Error, Result};
use vela_vision::{Limits, Picture};

fn coded(picture: DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).map_err(|e| Error::parse("test", e))?;
    Ok(bytes.into_inner())
}

fn decode(bytes: &[u8]) -> Result<Picture> {
    Picture::decode(bytes, &Limits::default())
}

/// 8 by 4, red on the left, blue on the right.
fn flag() -> RgbImage {
    RgbImage::from_fn(8, 4, |x, _| if x < 4 { Rgb([250, 10, 20]) } else { Rgb([10, 20, 250]) })
}

fn refused(bytes: &[u8], why: &str) {
    let error = decode(bytes).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains(why), "expected '{why}' in '{error}'");
}

#[test]
fn png_and_webp_come_back_exactly_and_jpeg_nearly() -> Result<()> {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        assert_eq!(decode(&coded(flag().into(), format)?)?, Picture::new(8, 4, flag().into_raw())?);
    }
    let jpeg = decode(&coded(flag().into(), ImageFormat::Jpeg)?)?;
    assert_eq!((jpeg.width, jpeg.height), (8, 4));
    assert!(jpeg.rgb[0] > 150 && jpeg.rgb[2] < 120);
    Ok(())
}

/// Largest difference from what Pillow sees, in steps of 255: none, whatever the coding, the orientation and the channels.
#[test]
fn files_are_what_pillow_sees() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoded");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &candle_core::Device::Cpu)?;
    let files = std::fs::read_dir(&dir).map_err(|source| Error::Io { path: dir.clone(), source })?;
    assert_eq!(files.count(), golden.len() + 2, "the pictures, their pixels and a README");
    let mut wrong = Vec::new();
    for (name, pixels) in &golden {
        let want = vela_vision::trace::picture(pixels)?;
        let got = Picture::open(&dir.join(name), &Limits::default())?;
        assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
        let off = got.rgb.iter().zip(&want.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        if off != Some(0) {
            wrong.push((name, off));
        }
    }
    assert!(golden.len() == 40 && wrong.is_empty(), "of {}: {wrong:?}", golden.len());
    Ok(())
}

#[test]
fn sixteen_bits_grey_and_transparency_become_rgb() -> Result<()> {
    let wide = image::ImageBuffer::from_pixel(2, 1, Rgb([0x1234u16, 0xFFFF, 0x00FF]));
    let got = decode(&coded(DynamicImage::ImageRgb16(wide), ImageFormat::Png)?)?;
    assert_eq!(got.rgb, [0x12, 0xFF, 0, 0x12, 0xFF, 0]);
    let grey = image::ImageBuffer::from_pixel(1, 1, image::Luma([0x80FFu16]));
    assert_eq!(decode(&coded(DynamicImage::ImageLuma16(grey), ImageFormat::Png)?)?.rgb, [0x80; 3]);
    let clear = image::ImageBuffer::from_pixel(1, 1, image::Rgba([1u8, 2, 3, 0]));
    assert_eq!(decode(&coded(DynamicImage::ImageRgba8(clear), ImageFormat::Png)?)?.rgb, [1, 2, 3]);
    Ok(())
}

/// A JPEG with an EXIF segment that says `orientation`.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut tiff = b"Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend([0xFF, 0xE1, 0, (tiff.len() + 2) as u8]);
    bytes.extend(tiff);
    bytes.extend(&jpeg[2..]);
    bytes
}

#[test]
fn pictures_are_turned_upright() -> Result<()> {
    let plain = coded(flag().into(), ImageFormat::Jpeg)?;
    let upright = decode(&plain)?;
    // 6: to be turned clockwise by 90 degrees; what was left is on top then.
    let turned = decode(&with_orientation(&plain, 6))?;
    assert_eq!((turned.width, turned.height), (4, 8));
    assert!(turned.rgb[0] > 150, "red on top: {:?}", &turned.rgb[..3]);
    let mirrored = decode(&with_orientation(&plain, 2))?;
    assert_eq!(mirrored.rgb[..3], upright.rgb[7 * 3..8 * 3]);
    Ok(())
}

/// A JPEG of one 8x8 block per component, each with a constant value and no compression to speak of.
fn four_component_jpeg(values: [u8; 4]) -> Vec<u8> {
    let segment = |marker: u8, body: &[u8]| {
        let mut bytes = vec![0xFF, marker, 0, (body.len() + 2) as u8];
        bytes.extend(body);
        bytes
    };
    // One code of one bit: 10 bits of difference for the constant part, end of block for the rest.
    let huffman = |class: u8, symbol: u8| {
        let mut body = vec![class, 1];
        body.extend([0; 15]);
        body.push(symbol);
        segment(0xC4, &body)
    };
    let mut bytes = vec![0xFF, 0xD8];
    bytes.extend(segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"));
    bytes.extend(segment(0xDB, &[&[0u8][..], &[1; 64]].concat()));
    let parts: Vec<u8> = (1..=4).flat_map(|id| [id, 0x11, 0]).collect();
    bytes.extend(segment(0xC0, &[&[8u8, 0, 8, 0, 8, 4][..], &parts].concat()));
    bytes.extend(huffman(0x00, 10));
    bytes.extend(huffman(0x10, 0));
    let scan: Vec<u8> = (1..=4).flat_map(|id| [id, 0]).collect();
    bytes.extend(segment(0xDA, &[&[4u8][..], &scan, &[0, 63, 0]].concat()));
    let mut bits = String::new();
    for value in values {
        let level = (i32::from(value) - 128) * 8;
        let magnitude = if level < 0 { level + 1023 } else { level };
        bits += &format!("0{magnitude:010b}0");
    }
    bits += &"1".repeat((8 - bits.len() % 8) % 8);
    for byte in bits.as_bytes().chunks(8) {
        let byte = byte.iter().fold(0u8, |acc, bit| acc << 1 | (bit - b'0'));
        bytes.push(byte);
        if byte == 0xFF {
            bytes.push(0);
        }
    }
    bytes.extend([0xFF, 0xD9]);
    bytes
}

#[test]
fn cmyk_jpeg_becomes_rgb() -> Result<()> {
    // The levels take 10 bits: 1 to 64 or 192 to 255. Adobe stores CMYK inverted: no cyan, all magenta, no yellow, no black.
    let got = decode(&four_component_jpeg([255, 1, 255, 255]))?;
    assert_eq!((got.width, got.height), (8, 8));
    let [r, g, b] = [got.rgb[0], got.rgb[1], got.rgb[2]];
    assert!(r > 250 && g < 5 && b > 250, "magenta: {r} {g} {b}");
    Ok(())
}

#[test]
fn truncated_files_are_refused() -> Result<()> {
    let noisy =
        RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]));
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        let whole = coded(noisy.clone().into(), format)?;
        assert!(decode(&whole).is_ok());
        for kept in [0, 1, 2, 3, 20, whole.len() / 4, whole.len() / 2, whole.len() - 60] {
            assert!(decode(&whole[..kept]).is_err(), "{format:?} cut to {kept} of {} bytes", whole.len());
        }
    }
    let jpeg = coded(noisy.into(), ImageFormat::Jpeg)?;
    refused(&jpeg[..jpeg.len() - 40], "cut short");
    // Cameras write things after the end.
    assert!(decode(&[&jpeg[..], &[0; 100]].concat()).is_ok());
    Ok(())
}

/// Whatever is damaged: pixels or an error, and never a picture of another size.
#[test]
fn damaged_jpegs_are_read_or_refused() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoded");
    let (mut read, mut refusals) = (0, 0);
    for name in ["420.jpg", "420_progressive.jpg", "420_restart.jpg", "411.jpg", "ycck.jpg"] {
        let path = dir.join(name);
        let whole = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
        for at in 2..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            match Picture::decode(&damaged, &Limits { pixels: 10_000, ..Limits::default() }) {
                Ok(got) => read += usize::from(got.rgb.len() == got.width * got.height * 3),
                Err(_) => refusals += 1,
            }
        }
        let half = [&whole[..whole.len() / 2], &[0xFF, 0xD9]].concat();
        assert!(decode(&half).is_err(), "half of {name}");
    }
    assert!(read > 1000 && refusals > 1000, "{read} read, {refusals} refused");
    Ok(())
}

#[test]
fn of_an_animated_webp_the_first_frame_is_seen() -> Result<()> {
    let chunk = |name: &[u8; 4], body: &[u8]| {
        let mut bytes = name.to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    };
    let still = |picture: RgbImage| -> Result<Vec<u8>> {
        Ok(coded(picture.into(), ImageFormat::WebP)?[12..].to_vec()) // after RIFF, size, WEBP
    };
    let mut body = b"WEBP".to_vec();
    body.extend(chunk(b"VP8X", &[2, 0, 0, 0, 7, 0, 0, 3, 0, 0]));
    body.extend(chunk(b"ANIM", &[0; 6]));
    for frame in [flag(), RgbImage::from_pixel(8, 4, Rgb([1, 2, 3]))] {
        let place = [0, 0, 0, 0, 0, 0, 7, 0, 0, 3, 0, 0, 100, 0, 0, 0];
        body.extend(chunk(b"ANMF", &[&place[..], &still(frame)?].concat()));
    }
    let got = decode(&chunk(b"RIFF", &body))?;
    // The decoder lays frames over each other with a rounding of its own.
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    assert!((got.width, got.height) == (8, 4) && got.rgb.iter().zip(flag().iter()).all(near), "{got:?}");
    Ok(())
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

#[test]
fn bombs_are_refused_before_they_unpack() -> Result<()> {
    let mut png = coded(flag().into(), ImageFormat::Png)?;
    // The header claims a hundred thousand pixels each way.
    png[16..24].copy_from_slice(&[0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0]);
    let sum = crc(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&sum);
    refused(&png, "100000x100000");
    let small = Limits { pixels: 31, ..Limits::default() };
    let plain = coded(flag().into(), ImageFormat::Png)?;
    let error = Picture::decode(&plain, &small).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("at most 31 pixels"), "{error}");
    let short = Limits { bytes: 10, ..Limits::default() };
    assert!(Picture::decode(&plain, &short).is_err_and(|e| e.to_string().contains("at most 10 bytes")));
    Ok(())
}

#[test]
fn other_things_are_refused_by_name() {
    refused(b"", "expected JPEG, PNG or WebP");
    refused(b"GIF89a\x01\0\x01\0\0\0\0;", "Gif");
    refused(&[7; 1000], "expected JPEG, PNG or WebP");
}

#[test]
fn one_by_one_and_very_thin_files_are_read() -> Result<()> {
    for (width, height) in [(1, 1), (1, 10_000), (10_000, 1)] {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let picture = RgbImage::from_pixel(width, height, Rgb([80, 80, 80]));
            let got = decode(&coded(picture.into(), format)?)?;
            assert_eq!((got.width, got.height), (width as usize, height as usize));
        }
    }
    Ok(())
}
