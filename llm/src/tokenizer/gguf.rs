//! A tokenizer from the vocabulary inside a GGUF file (keys `tokenizer.ggml.*` of ggml's docs/gguf.md).
//!
//! The file holds tokens, scores and merges, and only the name of the rule that cuts text before merging. Those rules are
//! facts of the models that brought them; llama.cpp's `llama-vocab.cpp` lists them by the same names.

use super::model::{Inner, Model};
use super::sentence::Sentence;
use super::{Tokenizer, unigram};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use vela_nn::gguf::Value;
use vela_nn::{Error, Result};

/// Metadata of a GGUF file.
type Metadata = BTreeMap<String, Value>;

/// Token types of `tokenizer.ggml.token_type`.
const UNKNOWN: usize = 2;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging.
struct Cut {
    /// The names it goes by.
    names: &'static [&'static str],
    /// Applied one after the other; what matches stands alone.
    splits: &'static [&'static str],
    /// Characters are composed first (Unicode NFC).
    compose: bool,
    /// A piece that is a token needs no merging.
    whole_tokens: bool,
    /// The begin token comes first unless the file says otherwise.
    begin: bool,
}

const fn cut(names: &'static [&'static str], splits: &'static [&'static str]) -> Cut {
    Cut { names, splits, compose: false, whole_tokens: false, begin: false }
}

const CUTS: [Cut; 9] = [
    cut(&["gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "modern-bert"], &[GPT2]),
    cut(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], &[DIGIT, GPT2]),
    Cut {
        whole_tokens: true,
        begin: true,
        ..cut(&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"], &[LLAMA3])
    },
    cut(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    Cut { compose: true, ..cut(&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"], &[QWEN2]) },
    Cut { compose: true, ..cut(&["qwen35"], &[QWEN35]) },
    Cut { whole_tokens: true, begin: true, ..cut(&["tekken"], &[TEKKEN]) },
    cut(&["gpt-4o", "llama4"], &[GPT4O]),
    // What llama.cpp does when the file names no rule.
    cut(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

impl Tokenizer {
    /// The tokenizer of a GGUF file, from its metadata: byte-level BPE (`gpt2`), SentencePiece-like (`llama`) or unigram
    /// (`t5`).
    ///
    /// # Errors
    /// A kind or a cutting rule that is not known, lists of unequal length, ids out of range.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let file = File { metadata };
        let kind = file.text("model")?;
        let tokens = file.tokens()?;
        let (mut inner, begin) = match kind {
            "gpt2" => file.byte_level(&tokens)?,
            "llama" => file.sentence_piece(&tokens)?,
            "t5" => (unigram::tokenizer(&file, &tokens)?, false),
            other => {
                let known = "gpt2, llama, t5";
                return Err(wrong("model", format!("expected one of {known}, got '{other}'")));
            }
        };
        let added = |kinds: &[usize], special: bool| -> Vec<AddedToken> {
            let chosen = tokens.iter().filter(|token| kinds.contains(&token.kind));
            chosen.map(|token| AddedToken::from(token.text, special).normalized(false)).collect()
        };
        let specials = added(&[UNKNOWN, CONTROL], true);
        inner.add_special_tokens(specials).map_err(|e| wrong("tokens", e))?;
        inner.add_tokens(added(&[USER_DEFINED], false)).map_err(|e| wrong("tokens", e))?;
        if let Some(frame) = file.frame(&tokens, begin, kind == "t5")? {
            inner.with_post_processor(Some(part::<PostProcessorWrapper>(frame)?));
        }
        Self::new(inner)
    }
}

pub(super) struct Token<'a> {
    pub text: &'a str,
    pub kind: usize,
    pub score: f64,
}

pub(super) struct File<'a> {
    metadata: &'a Metadata,
}

pub(super) fn wrong(key: &str, reason: impl std::fmt::Display) -> Error {
    Error::parse(format!("tokenizer.ggml.{key}"), reason)
}

pub(super) fn part<T: DeserializeOwned>(value: Json) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::parse("tokenizer", e))
}

impl<'a> File<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Result<&str> {
        let value = self.get(key).ok_or_else(|| wrong(key, "is missing"))?;
        value.as_text().ok_or_else(|| wrong(key, "expected a text"))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, "expected true or false")),
        }
    }

    /// Numbers beside the tokens; `default` for each if the file has none.
    fn numbers(&self, key: &str, count: usize, default: f64) -> Result<Vec<f64>> {
        let Some(value) = self.get(key) else { return Ok(vec![default; count]) };
        let numbers = value.as_numbers().ok_or_else(|| wrong(key, "expected a list of numbers"))?;
        if numbers.len() == count {
            Ok(numbers)
        } else {
            Err(wrong(key, format!("expected {count}, one per token, got {}", numbers.len())))
        }
    }

    fn tokens(&self) -> Result<Vec<Token<'a>>> {
        let value = self.get("tokens").ok_or_else(|| wrong("tokens", "is missing"))?;
        let texts = value.as_texts().ok_or_else(|| wrong("tokens", "expected a list of texts"))?;
        let kinds = self.numbers("token_type", texts.len(), 1.0)?;
        let scores = self.numbers("scores", texts.len(), 0.0)?;
        let token =
            |((text, kind), score): ((&'a String, f64), f64)| Token { text, kind: kind as usize, score };
        Ok(texts.iter().zip(kinds).zip(scores).map(token).collect())
    }

    fn byte_level(&self, tokens: &[Token]) -> Result<(Inner, bool)> {
        let name = if self.get("pre").is_some() { self.text("pre")? } else { "default" };
        let cut = CUTS.iter().find(|cut| cut.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names.iter().copied()).collect();
            wrong("pre", format!("'{name}' is not known; known: {}", known.join(", ")))
        })?;
        let value = self.get("merges").ok_or_else(|| wrong("merges", "is missing"))?;
        let texts = value.as_texts().ok_or_else(|| wrong("merges", "expected a list of texts"))?;
        let mut merges: Merges = Vec::with_capacity(texts.len());
        for merge in texts {
            // A token may begin with a space, never end with one.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let (left, right) =
                at.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?))).ok_or_else(|| {
                    wrong("merges", format!("expected two tokens with a space between, got {merge:?}"))
                })?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let model = BPE::builder()
            .vocab_and_merges(vocab(tokens), merges)
            .ignore_merges(cut.whole_tokens)
            .build()
            .map_err(|e| wrong("merges", e))?;
        let mut inner = Inner::new(Model::Library(Box::new(model.into())));
        if cut.compose {
            let normaliser = part::<NormalizerWrapper>(json!({"type": "NFC"}))?;
            inner.with_normalizer(Some(normaliser)).map_err(|e| Error::parse("tokenizer", e))?;
        }
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false});
        let mut steps: Vec<Json> = cut.splits.iter().map(split).collect();
        steps.push(bytes.clone());
        let cutter = json!({"type": "Sequence", "pretokenizers": steps});
        inner.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(cutter)?));
        inner.with_decoder(Some(part::<DecoderWrapper>(bytes)?));
        Ok((inner, cut.begin))
    }

    /// SentencePiece's pieces; control and unknown tokens are not made of others.
    fn sentence_piece(&self, tokens: &[Token]) -> Result<(Inner, bool)> {
        let merged = |token: &Token| token.kind != CONTROL && token.kind != UNKNOWN;
        let unknown = self.special(tokens, "unknown_token_id")?.map(|token| token.text);
        let model = Sentence::new(tokens, merged, unknown)?;
        let mut inner = Inner::new(Model::Sentence(Arc::new(model)));
        let spaced = self.flag("add_space_prefix", true)?;
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normaliser = match spaced {
            true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}),
            false => space,
        };
        let normaliser = part::<NormalizerWrapper>(normaliser)?;
        inner.with_normalizer(Some(normaliser)).map_err(|e| Error::parse("tokenizer", e))?;
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if spaced {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let decoder = json!({"type": "Sequence", "decoders": steps});
        inner.with_decoder(Some(part::<DecoderWrapper>(decoder)?));
        Ok((inner, true))
    }

    /// The token that a key names, if the file has the key.
    pub fn special<'t, 's>(&self, tokens: &'t [Token<'s>], key: &str) -> Result<Option<&'t Token<'s>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = value.as_count().ok_or_else(|| wrong(key, "expected a token id"))?;
        let token = tokens.get(id as usize).ok_or_else(|| {
            wrong(key, format!("token id {id} is out of range; there are {} tokens", tokens.len()))
        })?;
        Ok(Some(token))
    }

    /// The special tokens around a text, as a post-processor; `None` if there are none.
    fn frame(&self, tokens: &[Token], begin: bool, end: bool) -> Result<Option<Json>> {
        let wanted = |flag: &str, key: &str, default: bool| -> Result<Option<(String, u64)>> {
            if !self.flag(flag, default)? {
                return Ok(None);
            }
            let id = self.get(key).and_then(Value::as_count).unwrap_or_default();
            match self.special(tokens, key)? {
                Some(token) => Ok(Some((token.text.to_owned(), id))),
                // What is only usual may be left out; what the file asks for must be there.
                None if self.get(flag).is_none() => Ok(None),
                None => Err(wrong(key, format!("is missing, and {flag} is set"))),
            }
        };
        let first = wanted("add_bos_token", "bos_token_id", begin)?;
        let last = wanted("add_eos_token", "eos_token_id", end)?;
        if first.is_none() && last.is_none() {
            return Ok(None);
        }
        let piece = |(text, _): &(String, u64)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let body = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let around = |bodies: &[Json]| -> Vec<Json> {
            first.iter().map(piece).chain(bodies.iter().cloned()).chain(last.iter().map(piece)).collect()
        };
        let specials: serde_json::Map<String, Json> = first
            .iter()
            .chain(&last)
            .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        Ok(Some(json!({"type": "TemplateProcessing", "single": around(&[body("A")]),
            "pair": around(&[body("A"), body("B")]), "special_tokens": specials})))
    }
}

fn vocab(tokens: &[Token]) -> Vocab {
    tokens.iter().enumerate().map(|(id, token)| (token.text.to_owned(), id as u32)).collect()
}
