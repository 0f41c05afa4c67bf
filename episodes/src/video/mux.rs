//! Writing an mp4 file of one video track: every picture shown at exactly its number over the rate.

use super::av1;
use super::h264::{self, PREFIX, UnitKind};
use crate::layout::{io, refuse, write_whole};
use crate::picture::PictureFormat;
use mp4_atom::{
    Av01, Av1c, Avc1, Avcc, Codec, Dinf, Dref, DrefEntry, Encode, Ftyp, Hdlr, Mdhd, Mdia, Minf, Moov, Mvhd,
    Stbl, Stco, Stsc, StscEntry, Stsd, Stss, Stsz, StszSamples, Stts, SttsEntry, Tkhd, Trak, Url, Visual,
    Vmhd,
};
use std::io::Write;
use std::path::Path;
use vela_embodiment::Result;

/// Ticks of the file's clock from one picture to the next: whole at every rate, and fine enough for 30000/1001.
const TICKS: u32 = 100_000;

/// A file of samples as [`super::h264::Encoder`] or [`super::av1::Encoder`] gives them, the first a key frame, `fps`
/// pictures per second. Written whole or not at all; its tables stand before the pictures, so that players need not
/// seek.
///
/// # Errors
/// A sample is not of that codec, the description of the stream changes, or the file cannot be written.
pub(crate) fn write(
    path: &Path,
    (width, height): (u32, u32),
    fps: f64,
    format: PictureFormat,
    samples: &[&[u8]],
) -> Result<()> {
    let mut track = Track::default();
    for (k, sample) in samples.iter().enumerate() {
        let added = match format {
            PictureFormat::Av1 { .. } => track.add_av1(sample),
            _ => track.add_h264(sample),
        };
        added.map_err(|why| refuse(path, format!("picture {k}: {why}")))?;
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
    /// What a decoder needs before the first sample: AV1's sequence header, or H.264's sequence and picture sets.
    described: Vec<u8>,
    picture_set: Vec<u8>,
    is_av1: bool,
}

/// Notes what a decoder needs; it may not change.
fn describe(set: &mut Vec<u8>, unit: &[u8]) -> std::result::Result<(), String> {
    if set.is_empty() {
        set.extend(unit);
    } else if set != unit {
        return Err("the description of the stream is not that of the pictures before it".into());
    }
    Ok(())
}

impl Track {
    fn add_h264(&mut self, sample: &[u8]) -> std::result::Result<(), String> {
        let before = self.media.len();
        let mut is_key = false;
        for unit in h264::units(sample, PREFIX).ok_or("torn")? {
            match UnitKind::of(unit) {
                UnitKind::SequenceSet => describe(&mut self.described, unit)?,
                UnitKind::PictureSet => describe(&mut self.picture_set, unit)?,
                kind => {
                    is_key |= kind == UnitKind::Key;
                    self.media.extend((unit.len() as u32).to_be_bytes());
                    self.media.extend(unit);
                }
            }
        }
        self.close(before, is_key);
        Ok(())
    }

    fn add_av1(&mut self, sample: &[u8]) -> std::result::Result<(), String> {
        self.is_av1 = true;
        let before = self.media.len();
        let mut is_key = false;
        for (kind, unit) in av1::units(sample).ok_or("torn")? {
            if kind == av1::SEQUENCE_HEADER {
                describe(&mut self.described, unit)?;
                is_key = true;
            }
            if kind != av1::TEMPORAL_DELIMITER {
                self.media.extend(unit);
            }
        }
        self.close(before, is_key);
        Ok(())
    }

    fn close(&mut self, before: usize, is_key: bool) {
        self.sizes.push((self.media.len() - before) as u32);
        if is_key {
            self.keys.push(self.sizes.len() as u32);
        }
    }

    /// How the samples are coded (ISO/IEC 14496-15 for H.264, "AV1 Codec ISO Media File Format Binding" for AV1).
    fn codec(&self, visual: Visual) -> mp4_atom::Result<Codec> {
        let described = self.described.clone();
        if self.is_av1 {
            // Profile 0, 8 bits, 4:2:0; the level is left open, as the encoder leaves it.
            let av1c = Av1c {
                seq_level_idx_0: 31,
                chroma_subsampling_x: true,
                chroma_subsampling_y: true,
                config_obus: described,
                ..Av1c::default()
            };
            return Ok(Codec::Av01(Av01 { visual, av1c, ..Av01::default() }));
        }
        let avcc = Avcc::new(&described, &self.picture_set)?;
        let (btrt, colr, pasp, taic, fiel, spatial) = (None, None, None, None, None, None);
        Ok(Codec::Avc1(Avc1 { visual, avcc, btrt, colr, pasp, taic, fiel, spatial }))
    }

    /// Everything before the pictures.
    fn head(&self, size: (u16, u16), clock: u32) -> std::result::Result<Vec<u8>, String> {
        let length = u32::try_from(self.media.len() + 8);
        let length = length.map_err(|_| "expected less than 4 GB of video in one episode")?;
        let coded = |offset: u32| -> mp4_atom::Result<Vec<u8>> {
            let mut head = Vec::new();
            let brands = [b"isom", b"iso2", if self.is_av1 { b"av01" } else { b"avc1" }, b"mp41"]
                .map(Into::into)
                .to_vec();
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

    /// ISO/IEC 14496-12.
    fn tables(&self, (width, height): (u16, u16), clock: u32, offset: u32) -> mp4_atom::Result<Moov> {
        let count = self.sizes.len() as u32;
        let duration = u64::from(count) * u64::from(TICKS);
        let visual = Visual { data_reference_index: 1, width, height, ..Visual::default() };
        let all_in_one = StscEntry { first_chunk: 1, samples_per_chunk: count, sample_description_index: 1 };
        let samples = Stbl {
            stsd: Stsd { codecs: vec![self.codec(visual)?] },
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
