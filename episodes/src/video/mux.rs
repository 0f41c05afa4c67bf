//! Writing an mp4 file of one video track: every picture shown at exactly its number over the rate.

use super::h264::{PREFIX, UnitKind, units};
use crate::layout::{io, refuse, write_whole};
use mp4_atom::{
    Avc1, Avcc, Codec, Dinf, Dref, DrefEntry, Encode, Ftyp, Hdlr, Mdhd, Mdia, Minf, Moov, Mvhd, Stbl, Stco,
    Stsc, StscEntry, Stsd, Stss, Stsz, StszSamples, Stts, SttsEntry, Tkhd, Trak, Url, Visual, Vmhd,
};
use std::io::Write;
use std::path::Path;
use vela_embodiment::Result;

/// Ticks of the file's clock from one picture to the next: whole at every rate, and fine enough for 30000/1001.
const TICKS: u32 = 100_000;

/// A file of H.264 samples as [`super::h264::Encoder`] gives them, the first a key frame, `fps` pictures per second.
/// Written whole or not at all; its tables stand before the pictures, so that players need not seek.
///
/// # Errors
/// A sample is not H.264, the parameter sets change, or the file cannot be written.
pub(crate) fn write_h264(
    path: &Path,
    (width, height): (u32, u32),
    fps: f64,
    samples: &[&[u8]],
) -> Result<()> {
    let mut track = Track::default();
    for (k, sample) in samples.iter().enumerate() {
        track.add(sample).map_err(|why| refuse(path, format!("picture {k}: {why}")))?;
    }
    let clock = (fps * f64::from(TICKS)).round();
    let sides = [width, height].map(u16::try_from);
    let ([Ok(width), Ok(height)], true) = (sides, clock >= 1.0 && clock <= f64::from(u32::MAX)) else {
        return Err(refuse(path, format!("no mp4 of {width}x{height} at {fps} pictures per second")));
    };
    let head = track.head((width, height), clock as u32).map_err(|why| refuse(path, why))?;
    write_whole(path, |file| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(io(path));
        write(&head)?;
        write(&track.media)
    })
}

/// The samples, one after another, and what the tables say of them.
#[derive(Default)]
struct Track {
    media: Vec<u8>,
    sizes: Vec<u32>,
    /// Numbers of the key frames, from 1.
    keys: Vec<u32>,
    sequence_set: Vec<u8>,
    picture_set: Vec<u8>,
}

impl Track {
    fn add(&mut self, sample: &[u8]) -> std::result::Result<(), String> {
        let before = self.media.len();
        let mut is_key = false;
        for unit in units(sample, PREFIX).ok_or("torn")? {
            let kind = UnitKind::of(unit);
            let set = match kind {
                UnitKind::SequenceSet => &mut self.sequence_set,
                UnitKind::PictureSet => &mut self.picture_set,
                UnitKind::Key | UnitKind::Other => {
                    is_key |= kind == UnitKind::Key;
                    self.media.extend((unit.len() as u32).to_be_bytes());
                    self.media.extend(unit);
                    continue;
                }
            };
            if set.is_empty() {
                set.extend(unit);
            } else if set != unit {
                return Err("its parameter sets are not those of the pictures before it".into());
            }
        }
        self.sizes.push((self.media.len() - before) as u32);
        if is_key {
            self.keys.push(self.sizes.len() as u32);
        }
        Ok(())
    }

    /// Everything before the pictures.
    fn head(&self, size: (u16, u16), clock: u32) -> std::result::Result<Vec<u8>, String> {
        let length = u32::try_from(self.media.len() + 8);
        let length = length.map_err(|_| "expected less than 4 GB of video in one episode")?;
        let coded = |offset: u32| -> mp4_atom::Result<Vec<u8>> {
            let mut head = Vec::new();
            let brands = [b"isom", b"iso2", b"avc1", b"mp41"].map(Into::into).to_vec();
            let kind = Ftyp { major_brand: b"isom".into(), minor_version: 512, compatible_brands: brands };
            kind.encode(&mut head)?;
            self.tables(size, clock, offset)?.encode(&mut head)?;
            Ok(head)
        };
        // Where the pictures begin is in the tables before them; their length does not depend on it.
        let place = coded(0).map_err(|e| e.to_string())?.len() + 8;
        let mut head = coded(place as u32).map_err(|e| e.to_string())?;
        head.extend(length.to_be_bytes());
        head.extend(b"mdat");
        Ok(head)
    }

    /// ISO/IEC 14496-12, and 14496-15 for the description of H.264.
    fn tables(&self, (width, height): (u16, u16), clock: u32, offset: u32) -> mp4_atom::Result<Moov> {
        let count = self.sizes.len() as u32;
        let duration = u64::from(count) * u64::from(TICKS);
        let visual = Visual { data_reference_index: 1, width, height, ..Visual::default() };
        let avc1 = Avc1 {
            visual,
            avcc: Avcc::new(&self.sequence_set, &self.picture_set)?,
            btrt: None,
            colr: None,
            pasp: None,
            taic: None,
            fiel: None,
            spatial: None,
        };
        let all_in_one = StscEntry { first_chunk: 1, samples_per_chunk: count, sample_description_index: 1 };
        let samples = Stbl {
            stsd: Stsd { codecs: vec![Codec::Avc1(avc1)] },
            stts: Stts { entries: vec![SttsEntry { sample_count: count, sample_delta: TICKS }] },
            stss: Some(Stss { entries: self.keys.clone() }),
            stsc: Stsc { entries: vec![all_in_one] },
            stsz: Stsz { samples: StszSamples::Different { sizes: self.sizes.clone() } },
            stco: Some(Stco { entries: vec![offset] }),
            ..Stbl::default()
        };
        let in_this_file = Dinf { dref: Dref { entries: vec![DrefEntry::Url(Url::default())] } };
        let media = Mdia {
            mdhd: Mdhd { timescale: clock, duration, language: "und".into(), ..Mdhd::default() },
            hdlr: Hdlr { handler: b"vide".into(), name: "video".into() },
            minf: Minf { vmhd: Some(Vmhd::default()), dinf: in_this_file, stbl: samples, ..Minf::default() },
        };
        let header = Tkhd {
            track_id: 1,
            duration,
            enabled: true,
            in_movie: true,
            width: width.into(),
            height: height.into(),
            ..Tkhd::default()
        };
        let track = Trak { tkhd: header, mdia: media, ..Trak::default() };
        let header = Mvhd {
            timescale: clock,
            duration,
            rate: 1.into(),
            volume: 1.into(),
            next_track_id: 2,
            ..Mvhd::default()
        };
        Ok(Moov { mvhd: header, trak: vec![track], ..Moov::default() })
    }
}
