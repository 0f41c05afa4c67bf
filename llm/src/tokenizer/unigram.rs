//! A unigram vocabulary (Kudo, arXiv:1804.10959) inside a GGUF file: T5's. Text is normalised, and of all ways to spell it in
//! tokens the likeliest is taken.

use super::gguf::{File, Token, part, wrong};
use super::model::{Inner, Model};
use super::spelling::byte_token;
use serde_json::json;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Precompiled, Sequence};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};
use vela_nn::{Error, Result};

/// Bytes of a token. SentencePiece's own bound is 16 characters; the library descends once per byte.
const LONGEST: usize = 512;

/// The tokenizer without its special tokens.
pub(super) fn tokenizer(file: &File, tokens: &[Token]) -> Result<Inner> {
    if let Some(long) = tokens.iter().find(|token| token.text.len() > LONGEST) {
        let got = long.text.len();
        return Err(wrong(
            "tokens",
            format!("expected at most {LONGEST} bytes for a unigram token, got {got}"),
        ));
    }
    let unknown = file
        .special(tokens, "unknown_token_id")?
        .ok_or_else(|| wrong("unknown_token_id", "is missing, and a unigram vocabulary needs it"))?;
    let id = tokens.iter().position(|token| std::ptr::eq(token, unknown));
    let fallback = tokens.iter().any(|token| byte_token(token.text).is_some());
    let vocab = tokens.iter().map(|token| (token.text.to_owned(), token.score)).collect();
    let model = Unigram::from(vocab, id, fallback).map_err(|e| wrong("tokens", e))?;
    let mut inner = Inner::new(Model::Library(Box::new(model.into())));
    inner.with_normalizer(Some(normaliser(file)?)).map_err(|e| Error::parse("tokenizer", e))?;
    let scheme = if file.flag("add_space_prefix", true)? { "always" } else { "never" };
    let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    inner.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(space.clone())?));
    inner.with_decoder(Some(part::<DecoderWrapper>(space)?));
    Ok(inner)
}

/// SentencePiece's normaliser: a table of characters, then no spaces around a text and single ones inside.
fn normaliser(file: &File) -> Result<NormalizerWrapper> {
    let mut steps = Vec::new();
    if let Some(value) = file.get("precompiled_charsmap") {
        let numbers = value.as_numbers().ok_or_else(|| wrong("precompiled_charsmap", "expected bytes"))?;
        let byte =
            |n: &f64| u8::try_from(*n as i64).or_else(|_| i8::try_from(*n as i64).map(i8::cast_unsigned));
        let bytes: Vec<u8> = numbers
            .iter()
            .map(byte)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| wrong("precompiled_charsmap", "expected bytes"))?;
        if !bytes.is_empty() {
            check(&bytes).map_err(|reason| wrong("precompiled_charsmap", reason))?;
            let table = Precompiled::from(&bytes).map_err(|e| wrong("precompiled_charsmap", e))?;
            steps.push(NormalizerWrapper::Precompiled(table));
        }
    }
    if file.flag("remove_extra_whitespaces", false)? {
        steps.push(part(json!({"type": "Strip", "strip_left": true, "strip_right": true}))?);
        steps.push(part(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}))?);
    }
    Ok(NormalizerWrapper::Sequence(Sequence::new(steps)))
}

/// A table of characters, as the library walks it: the size of a double array (Aoe, 1989) in bytes, its units, then texts
/// that end with 0. The library trusts every step; here each that a text can lead to is taken once.
fn check(bytes: &[u8]) -> std::result::Result<(), String> {
    let unit = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
    let (words, _) = bytes.as_chunks::<4>();
    let Some((size, rest)) = words.split_first() else { return Err("expected a size, got nothing".into()) };
    let (size, room) = (unit(size), rest.len() * 4);
    if size == 0 || !size.is_multiple_of(1024) || size > room {
        return Err(format!("expected a table of a multiple of 1024 bytes within {room}, got {size}"));
    }
    let units: Vec<usize> = rest[..size / 4].iter().map(unit).collect();
    let texts = std::str::from_utf8(&bytes[4 + size..]).map_err(|e| format!("its texts: not UTF-8: {e}"))?;
    let offset = |unit: usize| (unit >> 10) << ((unit & 1 << 9) >> 6);
    let sound = |at: usize| match at < units.len() {
        true => Ok(at),
        false => Err(format!("a step to {at} of {} units", units.len())),
    };
    let mut seen = vec![false; units.len()];
    let mut open = vec![sound(offset(units[0]))?];
    while let Some(at) = open.pop() {
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        for letter in 1..=255 {
            // Whole blocks of 256: no letter leads out of one.
            let next = at ^ letter;
            if units[next] & (1 << 31 | 255) != letter {
                continue;
            }
            let after = sound(next ^ offset(units[next]))?;
            if units[next] >> 8 & 1 == 1 {
                let text = units[after] & !(1 << 31);
                if !texts.is_char_boundary(text) {
                    return Err(format!("a text at {text} of {} bytes", texts.len()));
                }
            }
            open.push(after);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Tokenizer;
    use std::collections::BTreeMap;
    use vela_nn::Result;
    use vela_nn::gguf::Value;

    type Metadata = BTreeMap<String, Value>;

    /// A table that makes an A an a.
    fn table() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[0] = 256 << 10;
        let next = 256 ^ 0x41;
        units[next as usize] = (next ^ 5) << 10 | 1 << 8 | 0x41;
        units[5] = 1 << 31;
        let words = std::iter::once(2048u32).chain(units);
        words.flat_map(u32::to_le_bytes).chain(*b"a\0").collect()
    }

    fn vocabulary(extra: &[(&str, Value)]) -> Metadata {
        let tokens = ["<pad>", "</s>", "<unk>", "▁", "a", "b", "ab", "▁a", "ba", "<x>", "▁b"];
        let scores = vec![0.0, 0.0, 0.0, -4.0, -3.0, -3.5, -4.5, -3.2, -9.0, -1000.0, -6.0];
        let kinds = vec![3, 3, 2, 1, 1, 1, 1, 1, 1, 4, 1];
        let bytes = table().iter().map(|byte| u64::from(*byte)).collect();
        let own = [
            ("model", Value::Text("t5".into())),
            ("tokens", Value::TextList(tokens.map(str::to_owned).to_vec())),
            ("scores", Value::FloatList(scores)),
            ("token_type", Value::UnsignedList(kinds)),
            ("eos_token_id", Value::Unsigned(1)),
            ("unknown_token_id", Value::Unsigned(2)),
            ("remove_extra_whitespaces", Value::Bool(true)),
            ("precompiled_charsmap", Value::UnsignedList(bytes)),
        ];
        own.iter().chain(extra).map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone())).collect()
    }

    #[test]
    fn the_likeliest_spelling_is_taken() -> Result<()> {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(&[]))?;
        // ▁ab: ▁a b (-6.7) before ▁ ab (-8.5) and ▁ a b (-10.5). A text ends with </s>, and begins with nothing.
        assert_eq!(tokenizer.encode("ab")?, [7, 5, 1]);
        assert_eq!(tokenizer.encode_rendered("  Ab   b ")?, [7, 5, 10]);
        // ▁aba: ▁a b a (-9.7) before ▁ ab a (-11.5) and ▁a ba (-12.2).
        assert_eq!(tokenizer.encode_rendered("aba")?, [7, 5, 4]);
        assert_eq!(tokenizer.encode_rendered("a?!b")?, [7, 2, 5]);
        assert_eq!(tokenizer.encode_rendered("a<x>b")?, [7, 9, 10]);
        assert_eq!(tokenizer.decode(&[7, 5, 10, 1])?, "ab b");
        let bare = Tokenizer::from_gguf(&vocabulary(&[
            ("add_space_prefix", Value::Bool(false)),
            ("add_eos_token", Value::Bool(false)),
        ]))?;
        assert_eq!(bare.encode("ab")?, [6]);
        Ok(())
    }

    #[test]
    fn unsound_vocabularies_are_one_clear_error_each() {
        let said = |key: &str, value: Value| {
            let made = Tokenizer::from_gguf(&vocabulary(&[(key, value)]));
            made.err().map(|e| e.to_string()).unwrap_or_default()
        };
        let bytes = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = table();
            change(&mut bytes);
            Value::SignedList(bytes.iter().map(|byte| i64::from(byte.cast_signed())).collect())
        };
        let map = "precompiled_charsmap";
        assert!(said(map, bytes(&|_| {})).is_empty());
        assert!(said(map, Value::Bool(true)).contains("expected bytes"));
        assert!(said(map, Value::UnsignedList(vec![256])).contains("expected bytes"));
        assert!(said(map, bytes(&|b| b.truncate(3))).contains("expected a size"));
        assert!(said(map, bytes(&|b| b[0] = 1)).contains("a multiple of 1024 bytes within 2048, got 2049"));
        assert!(said(map, bytes(&|b| b.truncate(1000))).contains("within 996, got 2048"));
        assert!(said(map, bytes(&|b| b[7] = 0x7f)).contains("of 512 units"));
        assert!(said(map, bytes(&|b| b[4 + 20] = 9)).contains("a text at 9 of 2 bytes"));
        assert!(said(map, bytes(&|b| b[2052] = 0xff)).contains("not UTF-8"));
        assert!(said("unknown_token_id", Value::Unsigned(11)).contains("11 is out of range"));
        let long = (0..11).map(|i| "x".repeat(100 * i)).collect();
        assert!(
            said("tokens", Value::TextList(long)).contains("at most 512 bytes for a unigram token, got 600")
        );
        let mut metadata = vocabulary(&[]);
        metadata.remove("tokenizer.ggml.unknown_token_id");
        let words = Tokenizer::from_gguf(&metadata).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(words.contains("unknown_token_id: is missing"), "{words}");
    }
}
