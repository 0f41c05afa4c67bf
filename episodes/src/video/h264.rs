//! H.264 by `openh264`, Cisco's decoder built from source.

use super::colour::{Matrix, Plane, rgb};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

/// RGB bytes of the pictures in these packets, the first one a key frame. Units stand behind lengths of `prefix` bytes;
/// the parameter sets in `sets` behind start codes.
pub(super) fn decode(
    sets: &[u8],
    prefix: usize,
    packets: &[Vec<u8>],
) -> std::result::Result<Vec<Vec<u8>>, String> {
    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let api = OpenH264API::from_source();
    let mut decoder = Decoder::with_api_config(api, config).map_err(|e| e.to_string())?;
    let mut pictures = Vec::with_capacity(packets.len());
    for (k, packet) in packets.iter().enumerate() {
        let mut stream = if k == 0 { sets.to_vec() } else { Vec::new() };
        units(packet, prefix, &mut stream).ok_or("a unit's length leads out of its sample")?;
        if let Some(picture) = decoder.decode(&stream).map_err(|e| e.to_string())? {
            pictures.push(picture_rgb(&picture)?);
        }
    }
    for picture in decoder.flush_remaining().map_err(|e| e.to_string())? {
        pictures.push(picture_rgb(&picture)?);
    }
    Ok(pictures)
}

/// What stands before each unit of a stream.
pub(super) const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Units behind their lengths become units behind start codes.
fn units(packet: &[u8], prefix: usize, stream: &mut Vec<u8>) -> Option<()> {
    let mut rest = packet;
    while !rest.is_empty() {
        let (length, after) = rest.split_at_checked(prefix)?;
        let length = length.iter().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
        let (unit, after) = after.split_at_checked(length)?;
        stream.extend(START_CODE);
        stream.extend(unit);
        rest = after;
    }
    Some(())
}

fn picture_rgb(picture: &DecodedYUV<'_>) -> std::result::Result<Vec<u8>, String> {
    let (width, height) = picture.dimensions();
    let (a, b, c) = picture.strides();
    let [y, u, v] =
        [(picture.y(), a), (picture.u(), b), (picture.v(), c)].map(|(bytes, stride)| Plane { bytes, stride });
    rgb(width as u32, height as u32, [y, u, v], Matrix::Bt601, false)
}
