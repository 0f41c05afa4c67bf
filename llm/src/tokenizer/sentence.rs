//! SentencePiece's merging (Kudo & Richardson, arXiv:1808.06226): of all neighbours whose union is a piece, those with the
//! best union are merged first.
//!
//! As byte-pair encoding, every way to cut a piece in two is a merge. The library keeps each merge in a table, and every
//! text twice: of 262,144 pieces that is half a second to build and ten times the bytes. Here a pair is looked up by the text
//! of its union, and texts lie once, one behind the other.

use super::gguf::{Token as Piece, wrong};
use super::spelling::byte_token;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};
use tokenizers::Token;
use tokenizers::models::bpe::{BPE, Merges};
use vela_nn::Result;

/// No id in a slot; no rank of a piece that no merge makes.
const NONE: u32 = u32::MAX;

/// Pieces by number and by text. Of equal texts the last one counts.
pub struct Sentence {
    /// All texts, one behind the other.
    texts: String,
    /// Where each text ends.
    ends: Vec<u32>,
    /// Ids at the hash of their text, or at the next free slot behind; a power of two, at most half of them taken.
    slots: Vec<u32>,
    hasher: RandomState,
    /// Different texts.
    count: usize,
    /// By id: which piece is made before which.
    ranks: Vec<u32>,
    unknown: Option<u32>,
    /// Letters that are no pieces are spelt in bytes.
    bytes: bool,
}

/// A part of a text on its way to a token.
struct Symbol {
    id: u32,
    /// Bytes of the text; 0 when its left neighbour has taken it in.
    len: usize,
    before: Option<usize>,
    behind: Option<usize>,
}

/// A merge that may be made, ordered as they are: by the rank of the union, the bytes of its left part, and the place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    rank: u32,
    left_len: usize,
    at: usize,
    id: u32,
}

impl Sentence {
    /// `merged` says which pieces a merge may make, `unknown` what stands for letters that are not to be had.
    ///
    /// # Errors
    /// More than four gigabytes of texts.
    pub fn new(pieces: &[Piece], merged: impl Fn(&Piece) -> bool, unknown: Option<&str>) -> Result<Self> {
        let size = pieces.iter().map(|piece| piece.text.len()).sum();
        let mut made = Self {
            texts: String::with_capacity(size),
            ends: Vec::with_capacity(pieces.len()),
            slots: vec![NONE; (2 * pieces.len()).next_power_of_two().max(2)],
            hasher: RandomState::new(),
            count: 0,
            ranks: vec![NONE; pieces.len()],
            unknown: None,
            bytes: pieces.iter().any(|piece| byte_token(piece.text).is_some()),
        };
        for (id, piece) in (0..).zip(pieces) {
            made.texts.push_str(piece.text);
            let end = u32::try_from(made.texts.len()).map_err(|_| wrong("tokens", "texts of over 4 GiB"))?;
            made.ends.push(end);
            let slot = made.slot(piece.text);
            made.count += usize::from(made.slots[slot] == NONE);
            made.slots[slot] = id;
        }
        let mut order: Vec<&Piece> = pieces.iter().filter(|piece| merged(piece)).collect();
        order.sort_by(|a, b| b.score.total_cmp(&a.score));
        for (rank, piece) in (0..).zip(order) {
            if let Some(id) = made.id(piece.text) {
                made.ranks[id as usize] = rank;
            }
        }
        made.unknown = unknown.and_then(|text| made.id(text));
        Ok(made)
    }

    /// The slot of a text: that of its id, or the free one where it would be.
    fn slot(&self, text: &str) -> usize {
        let last = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & last;
        while self.slots[slot] != NONE && self.text(self.slots[slot]) != Some(text) {
            slot = (slot + 1) & last;
        }
        slot
    }

    /// What the list of pieces has at `id`, counted or not.
    fn text(&self, id: u32) -> Option<&str> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before as usize] as usize);
        self.texts.get(start..end)
    }

    /// The id of a text.
    pub fn id(&self, text: &str) -> Option<u32> {
        Some(self.slots[self.slot(text)]).filter(|id| *id != NONE)
    }

    /// The text of an id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.text(id).filter(|text| self.id(text) == Some(id))
    }

    /// Different pieces.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Ids and their texts.
    pub fn all(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.ends.len() as u32).filter_map(move |id| Some((id, self.token(id)?)))
    }

    /// The tokens of a text.
    pub fn tokens(&self, text: &str) -> Vec<Token> {
        let mut symbols = self.symbols(text);
        self.merge(&mut symbols);
        let mut start = 0;
        let token = |symbol: Symbol| {
            let offsets = (start, start + symbol.len);
            start = offsets.1;
            Token::new(symbol.id, self.text(symbol.id).unwrap_or_default().to_owned(), offsets)
        };
        symbols.into_iter().filter(|symbol| symbol.len > 0).map(token).collect()
    }

    /// The letters of a text: pieces, bytes, or one unknown for all in a row.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut found: Vec<(u32, usize)> = Vec::with_capacity(text.len());
        let mut letter = [0; 4];
        let mut unknown: Option<(u32, usize)> = None;
        for c in text.chars() {
            let c: &str = c.encode_utf8(&mut letter);
            if let Some(id) = self.id(c) {
                found.extend(unknown.take());
                found.push((id, c.len()));
                continue;
            }
            let byte = |byte: u8| Some((self.id(&format!("<{byte:#04X}>"))?, 1));
            match self.bytes.then(|| c.bytes().map(byte).collect::<Option<Vec<_>>>()).flatten() {
                Some(spelt) => found.extend(spelt),
                None => {
                    let before = unknown.map_or(0, |(_, len)| len);
                    unknown = self.unknown.map(|id| (id, before + c.len()));
                }
            }
        }
        found.extend(unknown);
        let count = found.len();
        let symbol = |(i, (id, len)): (usize, (u32, usize))| Symbol {
            id,
            len,
            before: i.checked_sub(1),
            behind: Some(i + 1).filter(|i| *i < count),
        };
        found.into_iter().enumerate().map(symbol).collect()
    }

    /// Merges the best neighbours until there are none.
    fn merge(&self, symbols: &mut [Symbol]) {
        let mut union = String::new();
        let mut merge = |symbols: &[Symbol], at: usize| {
            let (left, right) = (self.text(symbols[at].id)?, self.text(symbols[symbols[at].behind?].id)?);
            if left.is_empty() || right.is_empty() {
                return None;
            }
            union.clear();
            union.push_str(left);
            union.push_str(right);
            let id = self.id(&union)?;
            let rank = self.ranks[id as usize];
            (rank != NONE).then_some(Merge { rank, left_len: left.len(), at, id })
        };
        let mut queue: BinaryHeap<Reverse<Merge>> =
            (0..symbols.len()).filter_map(|at| merge(symbols, at).map(Reverse)).collect();
        while let Some(Reverse(Merge { at, id, .. })) = queue.pop() {
            // What was queued may have been taken in by a neighbour since, or have another neighbour now.
            let now = if symbols[at].len == 0 { None } else { merge(symbols, at) };
            let (Some(behind), true) = (symbols[at].behind, now.is_some_and(|now| now.id == id)) else {
                continue;
            };
            symbols[at].id = id;
            symbols[at].len += std::mem::take(&mut symbols[behind].len);
            symbols[at].behind = symbols[behind].behind;
            if let Some(next) = symbols[at].behind {
                symbols[next].before = Some(at);
            }
            for at in symbols[at].before.into_iter().chain([at]) {
                queue.extend(merge(symbols, at).map(Reverse));
            }
        }
    }

    /// The same as byte-pair encoding with every merge spelt out, as a `tokenizer.json` has it.
    pub fn pairs(&self) -> tokenizers::Result<BPE> {
        let mut ranked: Vec<(u32, &str)> = self
            .all()
            .map(|(id, text)| (self.ranks[id as usize], text))
            .filter(|(rank, _)| *rank != NONE)
            .collect();
        ranked.sort_unstable();
        let mut merges = Merges::new();
        for (_, text) in ranked {
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if self.id(left).is_some() && self.id(right).is_some() {
                    merges.push((left.to_owned(), right.to_owned()));
                }
            }
        }
        let vocab: tokenizers::models::bpe::Vocab =
            self.all().map(|(id, text)| (text.to_owned(), id)).collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(self.bytes).fuse_unk(true);
        match self.unknown.and_then(|id| self.text(id)) {
            Some(unknown) => model.unk_token(unknown.to_owned()).build(),
            None => model.build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Model;

    /// Made-up pieces over a few letters, with equal scores, equal texts and some that no merge makes, beside the library's
    /// byte-pair encoding of them.
    #[test]
    fn merges_as_the_library_does_with_every_merge_spelt_out() -> tokenizers::Result<()> {
        let mut state = 7u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let letters = ["a", "b", "é", "▁", "字"];
        let mut long = 0;
        for round in 0..20 {
            let mut texts: Vec<String> = vec!["<unk>".into()];
            texts.extend(letters[..letters.len() - round % 3].iter().map(|letter| (*letter).to_owned()));
            if round % 2 == 0 {
                texts.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
            }
            for _ in 0..200 {
                texts.push((0..2 + random(4)).map(|_| letters[random(letters.len())]).collect());
            }
            let pieces: Vec<Piece> = texts
                .iter()
                .map(|text| Piece { text, kind: random(8), score: -(random(40) as f64) })
                .collect();
            let ours = Sentence::new(&pieces, |piece| piece.kind != 3, Some("<unk>"))?;
            let theirs = ours.pairs()?;
            assert_eq!(theirs.get_vocab_size(), ours.len());
            for _ in 0..100 {
                let mut letter = || [&letters[..], &["x", "😀", "<0xC3>"]].concat()[random(8)];
                let text: String = (0..40).map(|_| letter()).collect();
                let all = |tokens: Vec<Token>| -> Vec<_> {
                    tokens.into_iter().map(|token| (token.id, token.value, token.offsets)).collect()
                };
                let tokens = all(ours.tokens(&text));
                long += tokens.iter().filter(|(_, text, _)| text.chars().count() > 2).count();
                assert_eq!(tokens, all(theirs.tokenize(&text)?), "round {round}: {text}");
            }
            for (id, piece) in (0..).zip(&pieces) {
                assert_eq!(ours.token(id).map(str::to_owned), theirs.id_to_token(id));
                assert_eq!(ours.id(piece.text), theirs.token_to_id(piece.text));
            }
        }
        assert!(long > 1000, "only {long} long tokens were compared");
        Ok(())
    }
}
