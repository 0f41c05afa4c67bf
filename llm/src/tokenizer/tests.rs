//! Tokenizers against reference runs, from `tokenizer.json` and from a GGUF file's keys.

use super::*;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vela_nn::gguf::Value;

type Metadata = BTreeMap<String, Value>;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn json_of(case_name: &str, file: &str) -> Result<Json> {
    let path = case(case_name).join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
    serde_json::from_str(&text).map_err(|e| Error::parse(file, e))
}

fn ids(value: &Json) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|id| id.as_u64().map(|id| id as u32)).collect()
}

/// All strings of a case: ids, decoded text, streamed text.
fn agrees(tokenizer: &Tokenizer, golden: &Json, count: usize) -> Result<()> {
    let cases = golden["encode"].as_array().cloned().unwrap_or_default();
    assert_eq!(cases.len(), count);
    for case in &cases {
        let text = case["text"].as_str().unwrap_or_default();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode_rendered(text)?, expected, "{text:?}");
        assert_eq!(tokenizer.decode_all(&expected)?, case["decoded"], "{text:?}");
        let plain = tokenizer.decode(&expected)?;
        assert_eq!(plain, case["decoded_skip_special"], "{text:?}");
        let mut stream = TextStream::new();
        let mut streamed = String::new();
        for id in &expected {
            let piece = stream.push(tokenizer, *id)?;
            assert!(
                !piece.contains(char::REPLACEMENT_CHARACTER) || plain.contains(char::REPLACEMENT_CHARACTER)
            );
            streamed.push_str(&piece);
        }
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, plain, "{text:?}");
    }
    for chat in golden["chat"].as_array().into_iter().flatten() {
        let text = chat["text"].as_str().unwrap_or_default();
        assert_eq!(tokenizer.encode_rendered(text)?, ids(&chat["ids"]), "{text:?}");
    }
    Ok(())
}

fn texts<'a>(list: impl Iterator<Item = &'a str>) -> Value {
    Value::TextList(list.map(str::to_owned).collect())
}

fn gguf_keys(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Metadata {
    entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

#[test]
fn smollm2_agrees_with_its_tokenizer_json() -> Result<()> {
    let tokenizer = Tokenizer::load(&case("tokenizer_smollm2").join("tokenizer.json"))?;
    agrees(&tokenizer, &json_of("tokenizer_smollm2", "golden.json")?, 200)
}

/// A `tokenizer.json` of byte-level BPE as a GGUF file's keys, its way of cutting under a name.
fn byte_level(case_name: &str, pre: &str) -> Result<Metadata> {
    let file = json_of(case_name, "tokenizer.json")?;
    let id_of = |id: &Json| id.as_u64().unwrap_or_default() as usize;
    let vocab = file["model"]["vocab"].as_object().into_iter().flatten();
    let mut tokens: BTreeMap<usize, (&str, u64)> =
        vocab.map(|(token, id)| (id_of(id), (token.as_str(), 1))).collect();
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        tokens.insert(id_of(&added["id"]), (added["content"].as_str().unwrap_or_default(), 3));
    }
    let merges: Vec<String> = file["model"]["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| match pair.as_array() {
            Some(pair) => pair.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "),
            None => pair.as_str().unwrap_or_default().to_owned(),
        })
        .collect();
    Ok(gguf_keys([
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text(pre.into())),
        ("tokens", texts(tokens.values().map(|(token, _)| *token))),
        ("token_type", Value::UnsignedList(tokens.values().map(|(_, kind)| *kind).collect())),
        ("merges", Value::TextList(merges)),
    ]))
}

#[test]
fn smollm2_agrees_from_gguf_keys() -> Result<()> {
    let mut metadata = byte_level("tokenizer_smollm2", "smollm")?;
    metadata.extend(gguf_keys([("add_bos_token", Value::Bool(false)), ("bos_token_id", Value::Unsigned(1))]));
    agrees(&Tokenizer::from_gguf(&metadata)?, &json_of("tokenizer_smollm2", "golden.json")?, 200)
}

#[test]
fn llama_3_agrees_from_its_tokenizer_json_and_from_gguf_keys() -> Result<()> {
    let golden = json_of("tokenizer_llama3", "golden.json")?;
    let folder = Tokenizer::load(&case("tokenizer_llama3").join("tokenizer.json"))?;
    let named = |pre: &str| -> Result<Tokenizer> {
        let mut metadata = byte_level("tokenizer_llama3", pre)?;
        let begin = folder.id("<|begin_of_text|>").unwrap_or_default();
        metadata.extend(gguf_keys([("bos_token_id", Value::Unsigned(begin.into()))]));
        Tokenizer::from_gguf(&metadata)
    };
    let file = named("llama-bpe")?;
    for tokenizer in [&folder, &file] {
        agrees(tokenizer, &golden, 30)?;
        for case in golden["encode"].as_array().into_iter().flatten() {
            let text = case["text"].as_str().unwrap_or_default();
            assert_eq!(tokenizer.encode(text)?, ids(&case["framed"]), "{text:?}");
        }
    }
    // The texts tell its rule from those that are nearest to it.
    let differs = |tokenizer: &Tokenizer| -> Result<usize> {
        let mut count = 0;
        for case in golden["encode"].as_array().into_iter().flatten() {
            let made = tokenizer.encode_rendered(case["text"].as_str().unwrap_or_default())?;
            count += usize::from(made != ids(&case["ids"]));
        }
        Ok(count)
    };
    for other in ["qwen2", "gpt-2", "dbrx", "gpt-4o", "tekken"] {
        assert!(differs(&named(other)?)? > 0, "{other}");
    }
    Ok(())
}

/// The part of Qwen2.5's vocabulary that the golden texts use, ids and order kept.
fn qwen(pre: &str) -> Result<Metadata> {
    let cut = json_of("tokenizer_qwen25", "vocab.json")?;
    let count = cut["count"].as_u64().unwrap_or_default() as usize;
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[absent {id}]")).collect();
    let mut kinds = vec![5u64; count];
    for (field, kind) in [("tokens", 1), ("control", 3)] {
        for (id, token) in cut[field].as_object().into_iter().flatten() {
            let id: usize = id.parse().map_err(|e| Error::parse("vocab.json", e))?;
            tokens[id] = token.as_str().unwrap_or_default().to_owned();
            kinds[id] = kind;
        }
    }
    let merges = cut["merges"].as_array().into_iter().flatten().filter_map(Json::as_str);
    Ok(gguf_keys([
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text(pre.into())),
        ("tokens", Value::TextList(tokens)),
        ("token_type", Value::UnsignedList(kinds)),
        ("merges", texts(merges)),
    ]))
}

#[test]
fn qwen25_agrees_from_gguf_keys() -> Result<()> {
    agrees(&Tokenizer::from_gguf(&qwen("qwen2")?)?, &json_of("tokenizer_qwen25", "golden.json")?, 200)
}

/// A SentencePiece-like vocabulary small enough to merge by hand.
fn sentence_piece(extra: impl IntoIterator<Item = (&'static str, Value)>) -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![2u64, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    let pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab"];
    tokens.extend(pieces.map(str::to_owned));
    kinds.extend([1; 9]);
    let mut scores = vec![0.0; 259];
    scores.extend([-9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -1.0, -4.0, -5.0]);
    let mut metadata = gguf_keys([
        ("model", Value::Text("llama".into())),
        ("tokens", Value::TextList(tokens)),
        ("token_type", Value::UnsignedList(kinds)),
        ("scores", Value::FloatList(scores)),
        ("bos_token_id", Value::Unsigned(1)),
        ("eos_token_id", Value::Unsigned(2)),
        ("unknown_token_id", Value::Unsigned(0)),
    ]);
    metadata.extend(gguf_keys(extra));
    metadata
}

#[test]
fn sentence_pieces_merge_by_score_and_fall_back_to_bytes() -> Result<()> {
    let tokenizer = Tokenizer::from_gguf(&sentence_piece([]))?;
    let (space, a, bc) = (259, 260, 265);
    // "▁abc": bc has the best score, then ab cannot be, ▁a comes before abc.
    assert_eq!(tokenizer.encode("abc")?, [1, 263, bc]);
    assert_eq!(tokenizer.encode_rendered("bc")?, [space, bc]);
    assert_eq!(tokenizer.encode_rendered("a</s>a")?, [263, 2, 263]);
    // é is the bytes C3 A9.
    assert_eq!(tokenizer.encode_rendered("é")?, [space, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.decode(&[1, 263, bc, space, 3 + 0xC3, 3 + 0xA9, 2])?, "abc é");
    let mut stream = TextStream::new();
    let pieces: Vec<String> = [1, 263, bc, space, 3 + 0xC3, 3 + 0xA9, a, 2]
        .iter()
        .map(|id| stream.push(&tokenizer, *id))
        .collect::<Result<_>>()?;
    assert_eq!(pieces, ["", "a", "bc", " ", "", "é", "a", ""]);
    // Half a character at the end is shown as such.
    assert_eq!(stream.push(&tokenizer, 3 + 0xF0)?, "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    let unspaced = Tokenizer::from_gguf(&sentence_piece([
        ("add_space_prefix", Value::Bool(false)),
        ("add_bos_token", Value::Bool(false)),
    ]))?;
    assert_eq!(unspaced.encode("abc")?, [266]);
    assert_eq!(unspaced.encode("cab")?, [262, 264]);
    Ok(())
}

#[test]
fn unsound_gguf_vocabularies_are_one_clear_error_each() -> Result<()> {
    let said =
        |metadata: &Metadata| Tokenizer::from_gguf(metadata).err().map(|e| e.to_string()).unwrap_or_default();
    let change = |key: &'static str, value: Value| said(&sentence_piece([(key, value)]));
    assert!(
        change("model", Value::Text("rwkv".into())).contains("expected one of gpt2, llama, t5, got 'rwkv'")
    );
    assert!(change("scores", Value::FloatList(vec![1.0])).contains("expected 268, one per token, got 1"));
    assert!(change("bos_token_id", Value::Unsigned(999)).contains("999 is out of range"));
    assert!(change("tokens", Value::Unsigned(1)).contains("expected a list of texts"));
    assert!(said(&Metadata::new()).contains("tokenizer.ggml.model: is missing"));
    assert!(said(&qwen("klingon")?).contains("'klingon' is not known; known: gpt-2"));
    let mut metadata = qwen("qwen2")?;
    metadata.insert("tokenizer.ggml.merges".into(), Value::TextList(vec!["nospace".into()]));
    assert!(said(&metadata).contains("expected two tokens with a space between"));
    metadata.insert("tokenizer.ggml.merges".into(), Value::TextList(vec!["zq qzz".into()]));
    assert!(said(&metadata).contains("tokenizer.ggml.merges"));
    Ok(())
}

#[test]
fn ids_out_of_range_have_no_piece() -> Result<()> {
    let tokenizer = Tokenizer::from_gguf(&sentence_piece([]))?;
    let said = tokenizer.piece(5000).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(said, "token id 5000 is out of range; the tokenizer has 268");
    Ok(())
}

#[test]
fn unknown_words_are_refused_and_known_words_are_listed() -> Result<()> {
    let tokenizer = Tokenizer::word_level(&["touch", "the", "red", "cube"])?;
    assert_eq!(tokenizer.encode("Touch the  red cube")?, [2, 3, 4, 5]);
    assert_eq!(Tokenizer::from_bytes(tokenizer.json())?.encode("cube")?, [5]);
    let error = tokenizer.encode("touch the purple dragon").err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("'purple', 'dragon'") && error.contains("cube, red, the, touch"), "{error}");
    assert!(Tokenizer::word_level(&["a", "a"]).is_err());
    assert!(Tokenizer::from_bytes(b"{").is_err());
    Ok(())
}
