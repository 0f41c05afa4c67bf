//! Text to token ids and back: a `tokenizer.json`, read by the `tokenizers` crate.

use serde_json::json;
use std::path::Path;
use vela_nn::{Error, Result};

/// A tokenizer. Word-level ones refuse words that they do not know.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Self::from_bytes(&bytes)
    }

    /// The same from bytes, such as those inside the binary.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::parse("tokenizer.json", e))?;
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| Error::parse("tokenizer.json", e))?;
        let model = &value["model"];
        let unknown = match (model["type"].as_str(), model["unk_token"].as_str()) {
            (Some("WordLevel"), Some(token)) => inner.token_to_id(token),
            _ => None,
        };
        Ok(Self { inner, json: bytes.to_vec(), unknown })
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
        let bytes = serde_json::to_vec_pretty(&file).map_err(|e| Error::parse("tokenizer.json", e))?;
        Self::from_bytes(&bytes)
    }

    /// The `tokenizer.json` itself.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, if it has one.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token ids of a text, with the special tokens that the file's post-processor adds.
    ///
    /// # Errors
    /// A word-level tokenizer names the words it does not know and those it does.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|e| Error::parse("tokenizer", e))?;
        if let Some(unknown) = self.unknown {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_refused_and_known_words_are_listed() -> Result<()> {
        let tokenizer = Tokenizer::word_level(&["touch", "the", "red", "cube"])?;
        assert_eq!(tokenizer.encode("Touch the  red cube")?, [2, 3, 4, 5]);
        assert_eq!(Tokenizer::from_bytes(tokenizer.json())?.encode("cube")?, [5]);
        let error =
            tokenizer.encode("touch the purple dragon").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("'purple', 'dragon'") && error.contains("cube, red, the, touch"), "{error}");
        assert!(Tokenizer::word_level(&["a", "a"]).is_err());
        assert!(Tokenizer::from_bytes(b"{").is_err());
        Ok(())
    }
}
