//! How a vocabulary writes bytes: GPT-2's printable stand-ins, SentencePiece's `▁` and `<0x..>`, or whole words.

use serde_json::Value;
use tokenizers::DecoderWrapper;
use vela_nn::{Error, Result};

/// What a token's letters stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// One letter per byte (Radford et al. 2019; the table of GPT-2's `bytes_to_unicode`).
    ByteLevel,
    /// `▁` is a space, `<0xE2>` a byte (Kudo & Richardson, arXiv:1808.06226); the first space of a text may be dropped.
    Sentence {
        /// Whether a text's first space is dropped.
        drop_first_space: bool,
    },
    /// Words with a space before each but the first.
    Words,
}

impl Spelling {
    /// Reads it off the decoder; `None` if it is of another kind.
    pub fn of(decoder: Option<&DecoderWrapper>) -> Result<Option<Self>> {
        let Some(decoder) = decoder else { return Ok(Some(Self::Words)) };
        let decoder =
            serde_json::to_value(decoder).map_err(|e| Error::parse("tokenizer.json: decoder", e))?;
        let mut steps = Vec::new();
        flatten(&decoder, &mut steps);
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        let drops = |step: &Value| match step["type"].as_str() {
            Some("Strip") => step["start"] == 1 && step["content"] == " ",
            Some("Metaspace") => step["prepend_scheme"] != "never",
            _ => false,
        };
        Ok(if has("ByteLevel") {
            Some(Self::ByteLevel)
        } else if has("Metaspace") || has("ByteFallback") || has("Replace") {
            Some(Self::Sentence { drop_first_space: steps.iter().any(drops) })
        } else {
            None
        })
    }

    /// The bytes of a token.
    pub fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                // An added token is written as it is.
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Sentence { .. } => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::Words => format!(" {token}").into_bytes(),
        }
    }

    /// Whether the first space of a text is dropped.
    pub fn drops_first_space(self) -> bool {
        matches!(self, Self::Words | Self::Sentence { drop_first_space: true })
    }
}

fn flatten(decoder: &Value, steps: &mut Vec<Value>) {
    match decoder["decoders"].as_array() {
        Some(parts) => parts.iter().for_each(|part| flatten(part, steps)),
        None => steps.push(decoder.clone()),
    }
}

/// `<0xE2>` is the byte 0xE2.
pub fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The byte that a letter stands for: printable Latin-1 for itself, the 68 others for 256 and up, in order.
fn byte_of(letter: char) -> Option<u8> {
    let plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let code = u32::from(letter);
    if plain(code) {
        return u8::try_from(code).ok();
    }
    let rank = code.checked_sub(256)? as usize;
    (0..=255u8).filter(|byte| !plain(u32::from(*byte))).nth(rank)
}
