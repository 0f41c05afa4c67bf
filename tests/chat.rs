//! `vela chat` and `vela inspect` over the built binary, on a tiny model that babbles letters.

use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\
                        {{ m.content + eos_token }}{% endfor %}";

/// The reference model of `tests/golden/llama` with a letter for each of its 128 tokens.
fn model(template: &str) -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(case("llama").join(file), dir.path().join(file))?;
    }
    // Printable ASCII stands for itself, Ġ for a space; what is left is never wanted for anything.
    let mut letters: Vec<String> = ["<pad>", "<s>", "</s>"].map(str::to_owned).to_vec();
    letters.extend((33..127u8).map(|byte| char::from(byte).to_string()));
    letters.extend((0..31u32).filter_map(|at| char::from_u32(0x120 + at)).map(String::from));
    assert_eq!(letters.len(), 128);
    let vocab: Map<String, Value> =
        letters.iter().enumerate().map(|(id, letter)| (letter.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": letters[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)], "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({"eos_token": "</s>", "bos_token": {"content": "<s>"}, "chat_template": template});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string())?;
    Ok(dir)
}

/// The reference encoder-decoder of `tests/golden/t5` with a word for each of its 128 tokens; texts end with `</s>`.
fn reader() -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(case("t5").join(file), dir.path().join(file))?;
    }
    let word =
        |id: usize| ["<pad>", "</s>", "<unk>"].get(id).map_or(format!("w{id}"), |name| name.to_string());
    let vocab: Map<String, Value> = (0..128).map(|id| (word(id), json!(id))).collect();
    let end = json!({"id": "</s>", "ids": [1], "tokens": ["</s>"]});
    let single =
        json!([{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": {"</s>": end}},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    Ok(dir)
}

fn vela(args: &[&str], input: &str) -> Result<Output, Box<dyn std::error::Error>> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that fails early does not read.
        stdin.write_all(input.as_bytes()).ok();
    }
    Ok(child.wait_with_output()?)
}

fn ask(dir: &Path, more: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let dir = dir.display().to_string();
    let args =
        [&["chat", "--model", &dir, "--prompt", "say it", "--max-tokens", "20", "--json"], more].concat();
    let output = vela(&args, "")?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn complaint(args: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let output = vela(args, "")?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {words}");
    assert!(words.starts_with("vela: ") && words.trim_end().lines().count() == 1, "{words}");
    Ok(words)
}

#[test]
fn an_answer_repeats_under_its_seed_however_it_is_made() -> Outcome {
    let dir = model(TEMPLATE)?;
    let plain = ask(dir.path(), &["--threads", "1"])?;
    assert_eq!(plain["prompt_tokens"], 7);
    assert!(plain["tokens"].as_u64().is_some_and(|n| n > 0) && plain["text"].is_string(), "{plain}");
    for same in [["--threads", "2"], ["--lookup", "4"], ["--beams", "1"], ["--best-of", "2"]] {
        assert_eq!(ask(dir.path(), &same)?["text"], plain["text"], "{same:?}");
    }
    let draft = ask(dir.path(), &["--draft", &dir.path().display().to_string()])?;
    assert_eq!((&draft["text"], draft["draft"]["acceptance_rate"].as_f64()), (&plain["text"], Some(1.0)));
    let warm = |seed| ask(dir.path(), &["--temperature", "1", "--seed", seed, "--logprobs", "2"]);
    let (one, again, other) = (warm("1")?, warm("1")?, warm("2")?);
    assert_eq!((&one["text"], &one["logprobs"]), (&again["text"], &again["logprobs"]));
    assert_ne!(one["text"], other["text"]);
    assert_eq!(one["logprobs"][0]["top"].as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn an_answer_may_be_held_to_a_form() -> Outcome {
    let dir = model(TEMPLATE)?;
    let text =
        ask(dir.path(), &["--regex", "[a-c]{3}-[0-9]"])?["text"].as_str().unwrap_or_default().to_owned();
    let (letters, digit) = text.split_once('-').ok_or("no dash")?;
    assert!(letters.len() == 3 && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{text}");
    assert!(digit.len() == 1 && digit.bytes().all(|b| b.is_ascii_digit()), "{text}");
    let schema = dir.path().join("schema.json");
    std::fs::write(
        &schema,
        r#"{"type": "object", "required": ["n"], "additionalProperties": false,
        "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}}}"#,
    )?;
    let schema = schema.display().to_string();
    let made = ask(dir.path(), &["--json-schema", &schema, "--temperature", "1"])?;
    let made: Value = serde_json::from_str(made["text"].as_str().unwrap_or_default())?;
    assert!(made["n"].as_u64().is_some_and(|n| (1..=99).contains(&n)), "{made}");
    Ok(())
}

#[test]
fn a_conversation_keeps_what_was_said() -> Outcome {
    let dir = model(TEMPLATE)?;
    let path = dir.path().display().to_string();
    let args = ["chat", "--model", &path, "--max-tokens", "6", "--json", "--system", "be brief"];
    let output = vela(&args, "one\ntwo\n/reset\none\n")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout)?;
    let turns: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(turns.len(), 3);
    // The second turn reads the first one's answer from the cache; after /reset the first one comes again.
    assert!(turns[1]["cached_tokens"].as_u64() >= turns[0]["prompt_tokens"].as_u64());
    assert_eq!(turns[2]["text"], turns[0]["text"]);
    Ok(())
}

#[test]
fn bad_input_is_one_sentence_each() -> Outcome {
    let dir = model(TEMPLATE)?;
    let path = dir.path().display().to_string();
    let chat = |more: &[&str]| complaint(&[&["chat", "--model", &path, "--prompt", "x"], more].concat());
    let long = "x".repeat(300);
    let over = complaint(&["chat", "--model", &path, "--prompt", &long])?;
    assert!(over.contains("301 tokens leave no room to answer in a context of 256"), "{over}");
    assert!(chat(&["--regex", "("])?.contains("regular expression: "));
    assert!(chat(&["--top-p", "3"])?.contains("top_p: expected 0 to 1, got 3"));
    assert!(chat(&["--context", "9999"])?.contains("made for 256 positions"));
    assert!(chat(&["--json-schema", "/nowhere.json"])?.contains("/nowhere.json"));
    let schema = dir.path().join("schema.json");
    std::fs::write(&schema, r#"{"type": "teapot"}"#)?;
    assert!(chat(&["--json-schema", &schema.display().to_string()])?.contains("JSON schema: "));
    assert!(chat(&["--draft", "/nowhere"])?.contains("/nowhere: expected a GGUF file or a model folder"));
    assert!(complaint(&["inspect", "/nowhere"])?.contains("expected a GGUF file or a model folder"));
    // A search has no draws to steer: what would be ignored is refused.
    let penalties = "repetition-penalty frequency-penalty presence-penalty";
    for other in "stop temperature top-k top-p min-p seed logprobs".split(' ').chain(penalties.split(' ')) {
        let other = format!("--{other}");
        let output = vela(&["chat", "--model", &path, "--prompt", "x", "--beams", "2", &other, "1"], "")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && words.contains("cannot be used with"), "{other}: {words}");
    }
    for (template, said) in [
        ("{% if %}", "chat template: syntax error"),
        ("{{ raise_exception('only robots') }}", "chat template: only robots"),
    ] {
        let broken = model(template)?;
        let path = broken.path().display().to_string();
        let words = complaint(&["chat", "--model", &path, "--prompt", "x"])?;
        assert!(words.contains(said), "{words}");
    }
    Ok(())
}

#[test]
fn inspect_says_what_it_is() -> Outcome {
    let dir = model(TEMPLATE)?;
    let output = vela(&["inspect", &dir.path().display().to_string(), "--json"], "")?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&said["family"], &said["kind"]), (&json!("llama"), &json!("text model")));
    assert_eq!((&said["sizes"]["layers"], &said["tokens"]["count"]), (&json!(2), &json!(128)));
    assert_eq!(said["tokens"]["stop"], json!(["</s>"]));
    assert!(said["parity"].as_str().is_some_and(|words| words.starts_with("compared")));
    assert_eq!(said["stored"]["F32"], said["parameters"]);
    let file = case("gguf_llama").join("model.gguf").display().to_string();
    let words = String::from_utf8(vela(&["inspect", &file], "")?.stdout)?;
    assert!(
        words.contains("GGUF version 3") && words.contains("Q4_K") && words.contains("2 layers"),
        "{words}"
    );
    // Its vocabulary has no merges: that is said, and the rest all the same.
    assert!(words.contains("it will not load: tokenizer.ggml.merges: is missing"), "{words}");
    Ok(())
}

#[test]
fn benches_measure_what_they_name() -> Outcome {
    let dir = model(TEMPLATE)?;
    let model = dir.path().display().to_string();
    let bench = |args: &[&str]| -> Result<Value, Box<dyn std::error::Error>> {
        let output = vela(&[&["bench"], args, &["--threads", "1", "--json"]].concat(), "")?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    for batch in ["1", "3"] {
        let sizes = ["--prompt-tokens", "8", "--decode-tokens", "4", "--batch", batch];
        let told = bench(&[&["llm", "--model", &model], &sizes[..]].concat())?;
        for speed in ["prefill_tok_s", "ttft_ms", "rss_mb"] {
            assert!(told[speed].as_f64().is_some_and(|v| v > 0.0), "{speed}: {told}");
        }
        // Several that are this short may all be done before the last begins.
        let wrote = &told["decode_tok_s"];
        assert!(wrote.as_f64().map_or(batch != "1", |v| v > 0.0), "{told}");
        assert_eq!(told["batch"].to_string(), batch);
    }
    let told = bench(&["vlm", "--pictures", "3"])?;
    for time in ["vision_ms", "prefill_ms", "ttft_ms", "second_question_ttft_ms"] {
        assert!(told[time].as_f64().is_some_and(|v| v > 0.0), "{time}: {told}");
    }
    assert_eq!(told["image_tokens"], 36);
    let blind = complaint(&["bench", "vlm", "--model", &model])?;
    assert!(blind.contains("expected a model that sees"), "{blind}");
    Ok(())
}

#[test]
fn an_encoder_decoder_answers_as_its_reference() -> Outcome {
    let dir = reader()?;
    let path = dir.path().display().to_string();
    let golden =
        candle_core::safetensors::load(case("t5").join("golden.safetensors"), &candle_core::Device::Cpu)?;
    let words = |name: &str| -> Result<Vec<String>, Box<dyn std::error::Error>> {
        Ok(golden[name].flatten_all()?.to_vec1::<i64>()?.iter().map(|id| format!("w{id}")).collect())
    };
    let (prompt, answer) = (words("in.input_ids")?, words("out.generated")?.join(" "));
    // The tokenizer says the last one itself.
    let prompt = prompt[..prompt.len() - 1].join(" ");
    let ask = |prompt: &str, more: &[&str]| -> Result<Value, Box<dyn std::error::Error>> {
        let args = ["chat", "--model", &path, "--prompt", prompt, "--max-tokens", "16", "--json"];
        let output = vela(&[&args, more].concat(), "")?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let said = ask(&prompt, &[])?;
    assert_eq!((&said["text"], &said["prompt_tokens"]), (&json!(answer), &json!(26)));
    for same in [&["--raw"][..], &["--beams", "1"], &["--lookup", "3"], &["--best-of", "2"]] {
        assert_eq!(ask(&prompt, same)?["text"], json!(answer), "{same:?}");
    }
    // What it reads makes the answer; each line of a conversation is read by itself.
    assert_ne!(ask("w5 w6 w7", &[])?["text"], json!(answer));
    let talk =
        vela(&["chat", "--model", &path, "--max-tokens", "16", "--json"], &format!("w5 w6 w7\n{prompt}\n"))?;
    let last = String::from_utf8_lossy(&talk.stdout).lines().last().unwrap_or_default().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&last)?["text"], json!(answer));

    let chat = |more: &[&str]| complaint(&[&["chat", "--model", &path, "--prompt", "w5"], more].concat());
    assert!(chat(&["--system", "be brief"])?.contains("expected neither --system nor --lora"));
    assert!(chat(&["--draft", &path])?.contains("got an encoder-decoder"));
    assert!(complaint(&["serve", "--port", "0", "--model", &path])?.contains("got an encoder-decoder"));
    assert!(complaint(&["bench", "llm", "--model", &path])?.contains("got an encoder-decoder"));
    Ok(())
}
