//! `vela inspect` and `vela chat` on GGUF files of the families that are unlike Llama: a mixture of experts, learned positions,
//! an encoder-decoder. What they answer is what their Hugging Face folder answers.

#[path = "../llm/tests/gguf_common/mod.rs"]
mod gguf_common;

use candle_core::{Device, Tensor};
use gguf_common::{Made, Outcome, converted};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use vela_llm::{EncoderDecoder, Tokenizer, generate};
use vela_nn::Mask;
use vela_nn::gguf::Value;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn vela(args: &[&str]) -> Outcome<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_vela")).args(args).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The same with a vocabulary of 128 tokens.
fn with_tokens(mut made: Made, kind: &str, tokens: Vec<String>, special: &[(usize, u64)]) -> Made {
    assert_eq!(tokens.len(), 128);
    let mut kinds = vec![1; 128];
    special.iter().for_each(|(id, kind)| kinds[*id] = *kind);
    let own = [
        ("model", Value::Text(kind.into())),
        ("pre", Value::Text("gpt-2".into())),
        ("tokens", Value::TextList(tokens)),
        ("token_type", Value::UnsignedList(kinds)),
        ("merges", Value::TextList(Vec::new())),
    ];
    made.metadata.extend(own.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    made
}

/// A letter for each token: printable ASCII stands for itself, Ġ for a space.
fn letters() -> Vec<String> {
    let mut letters: Vec<String> = ["<pad>", "<s>", "</s>"].map(str::to_owned).to_vec();
    letters.extend((33..127u8).map(|byte| char::from(byte).to_string()));
    letters.extend((0..31u32).filter_map(|at| char::from_u32(0x120 + at)).map(String::from));
    letters
}

/// What the command line says to a prompt, and of the file.
fn asked(made: &Made, prompt: &str) -> Outcome<(Json, String)> {
    let (_dir, file) = made.written()?;
    let file = file.display().to_string();
    let said =
        vela(&["chat", "--model", &file, "--raw", "--prompt", prompt, "--max-tokens", "16", "--json"])?;
    Ok((serde_json::from_str(&said)?, vela(&["inspect", &file])?))
}

#[test]
fn decoders_continue_a_text_as_their_folder_does() -> Outcome<()> {
    for (name, architecture) in [("mixtral", "llama"), ("gpt2", "gpt2")] {
        let made = converted(&case(name), architecture)?.stacked()?;
        let mut made = with_tokens(made, "gpt2", letters(), &[(0, 3), (1, 3), (2, 3)]);
        made.metadata.insert("tokenizer.ggml.eos_token_id".into(), Value::Unsigned(2));
        let tokenizer = Tokenizer::from_gguf(&made.metadata)?;
        let decoder = vela_llm::load(&case(name))?;
        let ids = tokenizer.encode("say it")?;
        let embeds = decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        let want = tokenizer.decode(&generate::greedy(&decoder, &embeds, 16, &[2])?)?;
        let (said, of) = asked(&made, "say it")?;
        assert_eq!((&said["text"], &said["prompt_tokens"]), (&json!(want), &json!(6)), "{name}");
        let parts = ["GGUF version 3", "compared", "2 layers, width 48", "128 token ids", "ends at </s>"];
        assert!(parts.iter().all(|part| of.contains(part)) && !of.contains("will not load"), "{name}: {of}");
    }
    Ok(())
}

#[test]
fn an_encoder_decoder_answers_as_its_folder_does() -> Outcome<()> {
    // A file cannot say which distances share a bucket; all published ones have 128.
    let dir = tempfile::tempdir()?;
    let mut config: Json = serde_json::from_slice(&std::fs::read(case("t5").join("config.json"))?)?;
    config["relative_attention_max_distance"] = json!(128);
    std::fs::write(dir.path().join("config.json"), config.to_string())?;
    std::fs::copy(case("t5").join("model.safetensors"), dir.path().join("model.safetensors"))?;
    let folder = EncoderDecoder::load(dir.path())?;

    // A word for each token.
    let special = ["<pad>", "</s>", "<unk>"];
    let token = |id: usize| special.get(id).map_or(format!("▁w{id}"), |name| (*name).to_owned());
    let made = with_tokens(
        converted(dir.path(), "t5")?,
        "t5",
        (0..128).map(token).collect(),
        &[(0, 3), (1, 3), (2, 2)],
    );
    let mut made = made;
    for (key, id) in [("eos_token_id", 1), ("unknown_token_id", 2)] {
        made.metadata.insert(format!("tokenizer.ggml.{key}"), Value::Unsigned(id));
    }
    let ids: Vec<u32> = (0..20).map(|i| 3 + i * 37 % 125).chain([1]).collect();
    let words = |ids: &[u32]| {
        ids.iter().filter(|id| **id > 2).map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
    };
    let embeds = folder.encoder().embed(&Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
    let want = folder.greedy(&folder.encode(&embeds, &Mask::None, &mut |_, _| {})?, 16, &[1])?;
    let (said, of) = asked(&made, &words(&ids))?;
    assert_eq!((&said["text"], &said["prompt_tokens"]), (&json!(words(&want)), &json!(21)));
    let parts = ["encoder and decoder, t5, GGUF version 3", "compared", "2 layers, width 40", "ends at </s>"];
    assert!(parts.iter().all(|part| of.contains(part)) && !of.contains("will not load"), "{of}");
    Ok(())
}
