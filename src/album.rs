//! The simulator's pictures with their questions, as the training of a VLM reads them.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng;
use rand::seq::IndexedRandom;
use rayon::prelude::*;
use std::path::Path;
use vela_embodiment::{Embodiment, stream};
use vela_sim::questions::{self, Kind, Phrasing, ask};
use vela_sim::sayings::{self, say};
use vela_sim::sights::{EDGE_PX, Grip, Photo, Photographer, Shown, Thing};
use vela_sim::tasks::Split;
use vela_train::vlm::{Album, QuestionAnswer, Spot};

/// Bytes of one picture.
const BYTES: usize = (EDGE_PX * EDGE_PX * 3) as usize;

/// How often a kind is asked, against the others: what is hard more.
fn often(kind: Kind) -> f64 {
    match kind {
        Kind::Left | Kind::Right | Kind::Nearest => 3.0,
        Kind::Exists | Kind::Count | Kind::Beside => 2.0,
        _ => 1.0,
    }
}

/// Pictures of the tabletop.
pub struct TabletopAlbum {
    rgb: Vec<u8>,
    shown: Vec<Shown>,
}

/// Every word that a question or an answer can hold, in alphabetical order.
pub fn words() -> Vec<String> {
    let mut words = questions::vocabulary();
    words.extend(sayings::WORDS.iter().map(|word| (*word).to_owned()));
    words.sort();
    words.dedup();
    words
}

/// Pictures of the episodes of some seeds, in their order.
pub fn photographs(split: Split, seeds: std::ops::Range<u64>) -> Result<Vec<Vec<Photo>>> {
    let embodiment = Embodiment::so101()?;
    let bar = ProgressBar::new(seeds.end - seeds.start)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} episodes, {eta} left")?);
    let taken = seeds
        .into_par_iter()
        .map_init(
            || Photographer::new(&embodiment, split),
            |photographer, seed| {
                let photographer = photographer.as_mut().map_err(|e| anyhow::anyhow!("{e}"))?;
                let photos = photographer.episode(seed)?;
                bar.inc(1);
                Ok(photos)
            },
        )
        .collect::<Result<Vec<Vec<Photo>>>>();
    bar.finish_and_clear();
    taken
}

impl TabletopAlbum {
    /// The pictures of the first so many training episodes; kept in `dir` and read from there the next time.
    pub fn of_training(dir: &Path, episodes: u64) -> Result<Self> {
        let (pictures, facts) =
            (dir.join(format!("pictures-{episodes}.rgb")), dir.join(format!("facts-{episodes}.json")));
        if facts.exists() {
            let text = std::fs::read_to_string(&facts)?;
            let shown: Vec<Shown> =
                serde_json::from_str(&text).with_context(|| facts.display().to_string())?;
            let rgb = std::fs::read(&pictures).with_context(|| pictures.display().to_string())?;
            anyhow::ensure!(rgb.len() == shown.len() * BYTES, "{}: of another size", pictures.display());
            return Ok(Self { rgb, shown });
        }
        let mut album = Self { rgb: Vec::new(), shown: Vec::new() };
        for photo in photographs(Split::Train, 0..episodes)?.into_iter().flatten() {
            album.rgb.extend(photo.rgb);
            album.shown.push(photo.shown);
        }
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        std::fs::write(&pictures, &album.rgb)?;
        // Last: whoever finds the facts finds the pictures.
        std::fs::write(&facts, serde_json::to_vec(&album.shown)?)?;
        Ok(album)
    }
}

impl Album for TabletopAlbum {
    fn count(&self) -> usize {
        self.shown.len()
    }

    fn picture(&self, index: usize) -> &[u8] {
        &self.rgb[index * BYTES..(index + 1) * BYTES]
    }

    fn spots(&self, index: usize) -> Vec<Spot> {
        let spot = |thing: &Thing| Spot {
            colour: thing.colour as u32,
            shape: thing.kind as u32,
            held: thing.held,
            at_px: thing.at_px,
            pixels: thing.pixels,
        };
        self.shown[index].things.iter().map(spot).collect()
    }

    fn questions(&self, index: usize, count: usize, seed: u64) -> Vec<QuestionAnswer> {
        let mut rng = stream(seed, "questions of a picture");
        let (shown, mut made) = (&self.shown[index], Vec::new());
        let kinds: Vec<Kind> = Kind::ALL.into_iter().chain([Kind::Beside]).collect();
        for k in 0..count * 4 {
            if made.len() == count {
                break;
            }
            // Everything that is there is said of every picture, and what the arm holds wherever it holds something;
            // the rest is drawn.
            let kind = match k {
                0 => Kind::Describe,
                1 if shown.grip == Grip::Holds => Kind::Holding,
                _ => *kinds.choose_weighted(&mut rng, |kind| often(*kind)).unwrap_or(&Kind::Describe),
            };
            made.extend(ask(shown, kind, Phrasing::Trained, &mut rng).map(|asked| QuestionAnswer {
                kind: kind.name(),
                question: asked.question,
                answer: asked.answer,
            }));
        }
        // A conversation may begin with any of them.
        let at = rng.random_range(0..made.len().max(1));
        made.rotate_left(at);
        made
    }

    fn texts(&self, count: usize, seed: u64) -> Vec<QuestionAnswer> {
        let mut rng = stream(seed, "questions without a picture");
        let mut one = || {
            let (question, answer) = say(&mut rng);
            QuestionAnswer { kind: "text", question, answer }
        };
        (0..count).map(|_| one()).collect()
    }
}
