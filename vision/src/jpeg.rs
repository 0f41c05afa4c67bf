//! JPEG files to RGB, to the bit as libjpeg-turbo and Pillow give it: baseline and progressive, 8 bits, Huffman codes.
//!
//! Other decoders in Rust round their transform and their upsampling in ways of their own; the largest differences are
//! some steps of 255, which a preprocessing that is exact afterwards would only hand on.

mod bits;
mod frame;
mod pixels;
mod scan;

use bits::Codes;
use frame::Frame;
use pixels::Colours;
use scan::{Scan, Tables, ZIGZAG};

/// More scans than any encoder writes: a small file can name thousands, each of which goes over the whole picture.
const SCANS: usize = 100;

/// What was read up to now.
#[derive(Default)]
struct Reader {
    codes: Tables,
    steps: [Option<[u16; 64]>; 4],
    restart: usize,
    jfif: bool,
    adobe: Option<u8>,
    frame: Option<Frame>,
    scans: usize,
}

/// RGB bytes of a JPEG file of this width and height. The error says what is wrong with it.
pub(crate) fn decode(bytes: &[u8], size: (usize, usize)) -> Result<Vec<u8>, String> {
    let mut reader = Reader::default();
    let mut at = 2;
    loop {
        let [0xFF, marker, ..] = bytes.get(at..).unwrap_or_default() else {
            return Err("expected a marker".into());
        };
        match marker {
            0xFF => at += 1,
            0x01 | 0xD0..=0xD8 => at += 2,
            0xD9 => break,
            _ => {
                let length = match bytes.get(at + 2..at + 4) {
                    Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
                    _ => 0,
                };
                let body = bytes.get(at + 4..at + 2 + length).ok_or("a segment is cut short")?;
                at += 2 + length;
                if *marker == 0xDA {
                    at = reader.scan(body, bytes, at)?;
                } else {
                    reader.segment(*marker, body, size)?;
                }
            }
        }
    }
    let frame = reader.frame.as_ref().ok_or("there is no picture in it")?;
    pixels::rgb(frame, reader.colours(frame))
}

impl Reader {
    fn segment(&mut self, marker: u8, body: &[u8], size: (usize, usize)) -> Result<(), String> {
        match marker {
            0xC4 => self.codes(body),
            0xDB => self.steps(body),
            0xDD => {
                let [high, low] = body else { return Err("a broken restart interval".into()) };
                self.restart = u16::from_be_bytes([*high, *low]).into();
                Ok(())
            }
            0xC0..=0xC2 if self.frame.is_some() => Err("a second picture inside the first".into()),
            0xC0..=0xC2 => {
                self.frame = Some(Frame::new(body, marker == 0xC2, size)?);
                Ok(())
            }
            0xC3..=0xCF => Err("expected a baseline or progressive JPEG with Huffman codes".into()),
            0xE0 => {
                self.jfif |= body.starts_with(b"JFIF\0");
                Ok(())
            }
            0xEE => {
                if let [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..] = body {
                    self.adobe = Some(*transform);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Huffman tables.
    fn codes(&mut self, mut body: &[u8]) -> Result<(), String> {
        while let [kind, rest @ ..] = body {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or("a short Huffman table")?;
            let symbols: usize = counts.iter().map(|n| usize::from(*n)).sum();
            let table =
                self.codes.get_mut(usize::from(kind >> 4)).and_then(|t| t.get_mut(usize::from(kind & 15)));
            *table.ok_or("a Huffman table with a number that does not exist")? =
                Some(Codes::new(counts, rest)?);
            body = &rest[symbols..];
        }
        Ok(())
    }

    /// Quantisation tables.
    fn steps(&mut self, mut body: &[u8]) -> Result<(), String> {
        while let [kind, rest @ ..] = body {
            let width = 1 + usize::from(kind >> 4 != 0);
            let values = rest.get(..64 * width).ok_or("a short quantisation table")?;
            let mut steps = [0; 64];
            for (place, value) in ZIGZAG.iter().zip(values.chunks_exact(width)) {
                steps[usize::from(*place)] = value.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            }
            let table = self.steps.get_mut(usize::from(kind & 15));
            *table.ok_or("a quantisation table with a number that does not exist")? = Some(steps);
            body = &rest[64 * width..];
        }
        Ok(())
    }

    /// A scan's header, and its coded data from `at`; returns where they end.
    fn scan(&mut self, body: &[u8], bytes: &[u8], at: usize) -> Result<usize, String> {
        self.scans += 1;
        if self.scans > SCANS {
            return Err(format!("expected at most {SCANS} scans"));
        }
        let frame = self.frame.as_mut().ok_or("a scan before the picture's size")?;
        let [count, rest @ ..] = body else { return Err("a short scan header".into()) };
        let count = usize::from(*count);
        if !(1..=frame.components.len()).contains(&count) || rest.len() != 2 * count + 3 {
            return Err("a broken scan header".into());
        }
        let (parts, last) = rest.split_at(2 * count);
        let mut scan = Scan { parts: Vec::new(), band: (0, 63), bits: (0, 0) };
        for part in parts.chunks_exact(2) {
            let index = frame
                .components
                .iter()
                .position(|c| c.id == part[0])
                .ok_or("a scan of an unknown component")?;
            let (constant, others) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            if constant > 3 || others > 3 || scan.parts.iter().any(|(before, ..)| *before == index) {
                return Err("a broken scan header".into());
            }
            let component = &mut frame.components[index];
            if component.steps.is_none() {
                component.steps = self.steps[component.table];
            }
            if component.steps.is_none() {
                return Err("a quantisation table is missing".into());
            }
            scan.parts.push((index, constant, others));
        }
        if frame.progressive {
            scan.band = (last[0].into(), last[1].into());
            scan.bits = (u32::from(last[2] >> 4), u32::from(last[2] & 15));
            let (from, to) = scan.band;
            let alone = if from == 0 { to == 0 } else { to >= from && to < 64 && count == 1 };
            if !alone || scan.bits.1 > 13 {
                return Err("a broken scan header".into());
            }
        }
        scan.read(frame, &self.codes, self.restart, bytes, at)
    }

    /// What libjpeg takes the components for.
    fn colours(&self, frame: &Frame) -> Colours {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match (ids.len(), self.adobe) {
            (1, _) => Colours::Grey,
            (4, None | Some(0)) => Colours::Cmyk,
            (4, _) => Colours::Ycck,
            (_, Some(0)) if !self.jfif => Colours::Rgb,
            (_, None) if !self.jfif && ids == *b"RGB" => Colours::Rgb,
            _ => Colours::Ycc,
        }
    }
}
