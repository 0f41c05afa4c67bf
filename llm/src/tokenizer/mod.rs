//! Text to token ids and back: a `tokenizer.json`, or the vocabulary inside a GGUF file, run by the `tokenizers` crate.

mod gguf;
mod model;
mod sentence;
mod spelling;
mod stream;
mod unigram;

pub use stream::TextStream;

use model::{Inner, Model};
use serde_json::json;
use spelling::Spelling;
use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::ModelWrapper;
use vela_nn::{Error, Result};

/// A tokenizer. Word-level ones refuse words that they do not know.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    json: OnceLock<Vec<u8>>,
    unknown: Option<u32>,
    special: HashSet<u32>,
    spelling: Option<Spelling>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Self::from_bytes(&bytes)
    }

    /// The same from bytes, such as those inside the binary.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        let _: serde::de::IgnoredAny = serde_json::from_slice(bytes).map_err(|e| Error::parse(FILE, e))?;
        // The library panics on some parts of the wrong kind.
        let read = std::panic::catch_unwind(|| Inner::from_bytes(bytes))
            .map_err(|_| Error::parse(FILE, "it has a part that the tokenizer library cannot read"))?;
        Self::new(read.map_err(|e| Error::parse(FILE, e))?)
    }

    fn new(inner: Inner) -> Result<Self> {
        let unknown = match inner.get_model() {
            Model::Library(model) => match &**model {
                ModelWrapper::WordLevel(words) => inner.token_to_id(&words.unk_token),
                _ => None,
            },
            Model::Sentence(_) => None,
        };
        let special =
            inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let spelling = Spelling::of(inner.get_decoder())?;
        Ok(Self { inner, json: OnceLock::new(), unknown, special, spelling })
    }

    /// A word-level tokenizer over `words` (lower case): id 0 pads, id 1 is the unknown word, the rest are
    /// the words in the given order.
    ///
    /// # Errors
    /// A word twice, or with white space or capitals in it.
    pub fn word_level(words: &[&str]) -> Result<Self> {
        let mut vocab = serde_json::Map::new();
        for (id, word) in ["[PAD]", "[UNK]"].iter().chain(words).enumerate() {
            if id > 1 && (word.is_empty() || word.chars().any(|c| c.is_whitespace() || c.is_uppercase())) {
                return Err(Error::invalid(format!("word {word:?}: expected one word in lower case")));
            }
            if vocab.insert((*word).to_owned(), json!(id)).is_some() {
                return Err(Error::invalid(format!("word {word:?} is there twice")));
            }
        }
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
        });
        let bytes = serde_json::to_vec(&file).map_err(|e| Error::parse("tokenizer.json", e))?;
        Self::from_bytes(&bytes)
    }

    /// As a `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        // Writing what was built out of plain maps and strings cannot fail.
        self.json.get_or_init(|| self.inner.to_string(true).map(String::into_bytes).unwrap_or_default())
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, if it has one.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether both give every id to the same token.
    pub fn same_tokens(&self, other: &Self) -> bool {
        let count = self.vocab_size();
        count == other.vocab_size() && (0..count as u32).all(|id| self.token(id) == other.token(id))
    }

    /// Whether an id stands for no text (end of turn, padding and the like).
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Token ids of a text, with the special tokens that the file's post-processor adds.
    ///
    /// # Errors
    /// A word-level tokenizer names the words it does not know and those it does.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Token ids of a text that already has all its special tokens, such as a rendered chat: none are added, those
    /// that are spelt out are recognised.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add: bool) -> Result<Vec<u32>> {
        let Some(unknown) = self.unknown else {
            let encoding = self.inner.encode_fast(text, add).map_err(|e| Error::parse("tokenizer", e))?;
            return Ok(encoding.get_ids().to_vec());
        };
        let encoding = self.inner.encode(text, add).map_err(|e| Error::parse("tokenizer", e))?;
        let strangers: Vec<&str> = encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .filter(|(id, _)| **id == unknown)
            .filter_map(|(_, (from, to))| text.get(*from..*to))
            .collect();
        if !strangers.is_empty() {
            return Err(Error::invalid(format!(
                "unknown word{} '{}' in \"{text}\"; known words: {}",
                if strangers.len() > 1 { "s" } else { "" },
                strangers.join("', '"),
                self.words().join(", ")
            )));
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// The words of a word-level tokenizer, in alphabetical order; special tokens in square brackets are left out.
    pub fn words(&self) -> Vec<String> {
        let vocab = self.inner.get_vocab(false);
        let mut words: Vec<String> = vocab.into_keys().filter(|word| !word.starts_with('[')).collect();
        words.sort();
        words
    }

    /// The text of token ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::parse("tokenizer", e))
    }

    /// The text of token ids, special tokens spelt out.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| Error::parse("tokenizer", e))
    }

    /// The bytes that an id adds to a text; a character may be spread over several ids. At the very start of a text some
    /// tokenizers drop one space, see [`TextStream`].
    ///
    /// # Errors
    /// An id that the vocabulary does not have; a kind of tokenizer whose text is not the sum of its tokens.
    pub fn piece(&self, id: u32) -> Result<Vec<u8>> {
        let token = self.inner.id_to_token(id).ok_or_else(|| {
            Error::invalid(format!("token id {id} is out of range; the tokenizer has {}", self.vocab_size()))
        })?;
        Ok(self.spelling()?.bytes(&token))
    }

    fn spelling(&self) -> Result<Spelling> {
        self.spelling.ok_or_else(|| {
            Error::invalid("this tokenizer's decoder is of a kind that cannot be read token by token")
        })
    }

    /// Whether [`Tokenizer::piece`] works.
    pub fn has_pieces(&self) -> bool {
        self.spelling.is_some()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
