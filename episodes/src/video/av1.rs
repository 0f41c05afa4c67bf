//! AV1 by `re_rav1d`, on one thread: a group of pictures is small, and the other cores have other work.

use super::colour::{Matrix, Plane, rgb};
use re_rav1d::dav1d::pixel::{MatrixCoefficients, YUVRange};
use re_rav1d::dav1d::{Decoder, Picture, PixelLayout, PlanarImageComponent, Settings};

/// How often the decoder may ask to be emptied before it takes one packet.
const TRIES: usize = 64;

/// RGB bytes of the pictures in these packets, the first one a key frame; `head` goes before it. No picture may be
/// larger than `most_pixels`.
pub(super) fn decode(
    head: &[u8],
    packets: Vec<Vec<u8>>,
    most_pixels: u32,
) -> std::result::Result<Vec<Vec<u8>>, String> {
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_frame_size_limit(most_pixels.max(1));
    let mut decoder = Decoder::with_settings(&settings).map_err(|e| e.to_string())?;
    let mut pictures = Vec::with_capacity(packets.len());
    let mut drain = |decoder: &mut Decoder| -> std::result::Result<(), String> {
        loop {
            match decoder.get_picture() {
                Ok(picture) => pictures.push(picture_rgb(&picture)?),
                Err(error) if error.is_again() => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    for (k, packet) in packets.into_iter().enumerate() {
        let packet = if k == 0 { [head, &packet].concat() } else { packet };
        let mut sent = decoder.send_data(packet, None, None, None);
        let mut tries = 0;
        while let Err(error) = sent {
            tries += 1;
            if !error.is_again() || tries > TRIES {
                return Err(error.to_string());
            }
            drain(&mut decoder)?;
            sent = decoder.send_pending_data();
        }
        drain(&mut decoder)?;
    }
    Ok(pictures)
}

fn picture_rgb(picture: &Picture) -> std::result::Result<Vec<u8>, String> {
    if picture.bit_depth() != 8 || picture.pixel_layout() != PixelLayout::I420 {
        let got = format!("{} bits, {:?}", picture.bit_depth(), picture.pixel_layout());
        return Err(format!("expected 8 bits and 4:2:0, got {got}"));
    }
    let parts = [PlanarImageComponent::Y, PlanarImageComponent::U, PlanarImageComponent::V];
    let planes = parts.map(|part| (picture.plane(part), picture.stride(part) as usize));
    let [y, u, v] = [0, 1, 2].map(|k| Plane { bytes: planes[k].0.as_ref(), stride: planes[k].1 });
    let full = picture.color_range() == YUVRange::Full;
    let matrix = match picture.matrix_coefficients() {
        MatrixCoefficients::BT709 => Matrix::Bt709,
        _ => Matrix::Bt601,
    };
    rgb(picture.width(), picture.height(), [y, u, v], matrix, full)
}
