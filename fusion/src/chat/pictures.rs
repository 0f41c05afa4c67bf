//! Pictures that were encoded, by a hash of their file's bytes; the least recently used are forgotten first.

use super::Places;
use crate::{Encoded, Room, Visual, Vlm};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vela_nn::{DType, Result, hash_of};
use vela_vision::{Limits, Picture, Preprocessor};

/// A picture as the decoder reads it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Of the file's bytes.
    pub hash: u128,
    /// The room that it needs in a text.
    pub room: Room,
    /// Its tokens, `[k, width]` in float32.
    pub encoded: Encoded,
    /// Where its tokens lie, if they have places.
    pub places: Option<Places>,
}

impl Seen {
    /// A hash for the rows from `first` on: a picture's rows may be spread over a prompt.
    pub(super) fn hash_from(&self, first: usize) -> u128 {
        if first == 0 { self.hash } else { short(format!("{:032x} {first}", self.hash).as_bytes()) }
    }
}

/// What happened to pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureStats {
    /// Found among those that are remembered.
    pub hits: u64,
    /// Encoded.
    pub encoded: u64,
    /// Remembered now.
    pub kept: usize,
    /// Bytes of those.
    pub kept_bytes: usize,
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Pictures {
    most_bytes: usize,
    /// Tokens of each picture, if it shall not have all ([`Vlm::encode_merged`]).
    pub keep: Option<usize>,
    kept: Mutex<Kept>,
    /// Held while a picture is unpacked and encoded.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct Kept {
    /// With when each was last used.
    by_hash: HashMap<u128, (Arc<Seen>, u64)>,
    uses: u64,
    stats: PictureStats,
}

impl Pictures {
    pub fn new(most_bytes: usize) -> Self {
        Self { most_bytes, keep: None, kept: Mutex::default(), turn: Mutex::default() }
    }

    pub fn stats(&self) -> PictureStats {
        held(&self.kept).stats
    }

    pub fn look(
        &self,
        vlm: &Vlm,
        preprocessor: &Preprocessor,
        file: &[u8],
        limits: &Limits,
    ) -> Result<Arc<Seen>> {
        let hash = short(file);
        if let Some(seen) = held(&self.kept).find(hash) {
            return Ok(seen);
        }
        let _turn = held(&self.turn);
        // Another may have asked for the same picture meanwhile.
        if let Some(seen) = held(&self.kept).find(hash) {
            return Ok(seen);
        }
        let prepared = preprocessor.apply(&Picture::decode(file, limits)?)?;
        let mut encoded = vlm.encode_merged(&Visual::picture(&prepared)?, self.keep)?;
        encoded.tokens = encoded.tokens.to_dtype(DType::F32)?.contiguous()?;
        // A merged token stands for many places.
        let places = match self.keep {
            None => Places::of(&preprocessor.layout, vlm.config(), &prepared, &encoded),
            Some(_) => None,
        };
        let seen = Arc::new(Seen { hash, room: Room::of(&prepared, &encoded)?, encoded, places });
        held(&self.kept).keep(seen.clone(), self.most_bytes);
        Ok(seen)
    }
}

impl Kept {
    fn find(&mut self, hash: u128) -> Option<Arc<Seen>> {
        self.uses += 1;
        let (seen, used) = self.by_hash.get_mut(&hash)?;
        *used = self.uses;
        self.stats.hits += 1;
        Some(seen.clone())
    }

    fn keep(&mut self, seen: Arc<Seen>, most_bytes: usize) {
        self.stats.encoded += 1;
        self.uses += 1;
        self.stats.kept_bytes += bytes(&seen);
        self.by_hash.insert(seen.hash, (seen, self.uses));
        while self.stats.kept_bytes > most_bytes {
            let oldest = self.by_hash.iter().min_by_key(|(_, (_, used))| *used).map(|(hash, _)| *hash);
            let Some((seen, _)) = oldest.and_then(|hash| self.by_hash.remove(&hash)) else { break };
            self.stats.kept_bytes -= bytes(&seen);
        }
        self.stats.kept = self.by_hash.len();
    }
}

fn bytes(seen: &Seen) -> usize {
    seen.encoded.tokens.elem_count() * size_of::<f32>()
}

/// The first half of a SHA-256.
fn short(bytes: &[u8]) -> u128 {
    u128::from_str_radix(&hash_of(bytes)[..32], 16).unwrap_or_default()
}

/// What a thread that panicked left is whole: each change is made after all that may fail.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
