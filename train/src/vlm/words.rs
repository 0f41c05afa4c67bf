//! The words of a small VLM: a tokenizer that has its own words whole and all others letter by letter, and its chat template.

use serde_json::{Map, Value, json};
use vela_llm::Tokenizer;
use vela_nn::{Error, Result};

/// Special tokens, in the order of their ids.
pub(super) const SPECIALS: [&str; 9] = [
    "<pad>",
    "<unk>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    END,
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
];
/// Ends a turn.
pub(super) const END: &str = "<end_of_utterance>";

/// Pictures lead a turn, wherever the user put them: so it was trained.
pub const CHAT_TEMPLATE: &str = "\
{% for message in messages %}<|{{ message['role'] }}|>\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}<end_of_utterance>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Single letters and marks; what is none of them is spelt in bytes.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz0123456789.,?!:;'-()";

/// A byte-pair tokenizer that has each of `words` (lower case) as one token and reads everything else letter by letter or
/// byte by byte; letter case does not matter.
///
/// # Errors
/// A word with anything but small letters and digits in it.
pub fn tokenizer(words: &[String]) -> Result<Tokenizer> {
    if let Some(word) =
        words.iter().find(|w| w.is_empty() || !w.bytes().all(|c| LETTERS.as_bytes().contains(&c)))
    {
        return Err(Error::invalid(format!("word {word:?}: expected small letters and digits")));
    }
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let next = vocab.len();
        vocab.entry(token).or_insert(json!(next));
    };
    SPECIALS.iter().for_each(|token| add((*token).to_owned()));
    (0..=255u8).for_each(|byte| add(format!("<0x{byte:02X}>")));
    ["▁".to_owned()].into_iter().chain(LETTERS.chars().map(String::from)).for_each(&mut add);
    // Merges that all begin at a word's start: a word grows letter by letter as long as it begins a known one.
    let mut merges: Vec<Value> = Vec::new();
    for word in words.iter().cloned().chain((0..10).map(|digit: u8| digit.to_string())) {
        let mut known = "▁".to_owned();
        for letter in word.chars() {
            let merge = json!([known, letter.to_string()]);
            if !merges.contains(&merge) {
                merges.push(merge);
            }
            known.push(letter);
            add(known.clone());
        }
    }
    let added: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges}
    });
    let bytes = serde_json::to_vec(&file).map_err(|e| Error::parse("tokenizer.json", e))?;
    Tokenizer::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Result<Tokenizer> {
        tokenizer(&["red", "cube", "cubes", "is", "there", "a"].map(str::to_owned))
    }

    #[test]
    fn known_words_are_whole_and_others_are_spelt() -> Result<()> {
        let tokenizer = made()?;
        let tokens = |text: &str| -> Result<Vec<String>> {
            Ok(tokenizer.encode_rendered(text)?.iter().filter_map(|id| tokenizer.token(*id)).collect())
        };
        assert_eq!(tokens("Is there a red cube?")?, ["▁is", "▁there", "▁a", "▁red", "▁cube", "?"]);
        assert_eq!(tokens("redder")?, ["▁red", "d", "e", "r"]);
        assert_eq!(tokens("<|user|><image>cubes 7")?, ["<|user|>", "<image>", "▁cubes", "▁7"]);
        for text in ["a teapot, ääh! 茶 \"now\"", "red\ncube", "is there a red cube", "x"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode_rendered(text)?)?, text.to_lowercase());
        }
        assert!(super::tokenizer(&["two words".to_owned()]).is_err());
        Ok(())
    }
}
