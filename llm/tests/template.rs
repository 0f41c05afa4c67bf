//! Chat templates against reference runs, and what broken ones say.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vela_llm::{ChatTemplate, Message, RenderOptions};
use vela_nn::gguf::{Value as Entry, write};
use vela_nn::{Error, Gguf, Result};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A folder's template and special tokens as a GGUF file has them, read back from one.
fn out_of_a_file(folder: &ChatTemplate) -> Result<ChatTemplate> {
    let named =
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
    let source = Entry::Text(folder.source().to_owned());
    let mut metadata = BTreeMap::from([("tokenizer.chat_template".to_owned(), source)]);
    let mut tokens = vec!["an ordinary token".to_owned()];
    for (name, key) in named {
        if let Some(token) = folder.special(name) {
            metadata.insert(format!("tokenizer.ggml.{key}_token_id"), Entry::Unsigned(tokens.len() as u64));
            tokens.push(token.to_owned());
        }
    }
    metadata.insert("tokenizer.ggml.tokens".to_owned(), Entry::TextList(tokens));
    let dir = tempfile::tempdir().map_err(|e| Error::Io { path: std::env::temp_dir(), source: e })?;
    let path = dir.path().join("model.gguf");
    write(&path, &metadata, &BTreeMap::new())?;
    let template = ChatTemplate::from_gguf(Gguf::open(&path)?.metadata())?;
    template.ok_or_else(|| Error::invalid("no template"))
}

#[test]
fn golden_conversations_are_written_to_the_letter() -> Result<()> {
    for name in ["tokenizer_smollm2", "tokenizer_qwen25"] {
        let text =
            std::fs::read_to_string(case(name).join("golden.json")).map_err(|e| Error::parse(name, e))?;
        let golden: Value = serde_json::from_str(&text).map_err(|e| Error::parse(name, e))?;
        let template = ChatTemplate::from_dir(&case(name))?.ok_or_else(|| Error::invalid("no template"))?;
        let file = out_of_a_file(&template)?;
        assert_eq!(file.specials(), template.specials(), "{name}");
        let chats = golden["chat"].as_array().cloned().unwrap_or_default();
        assert_eq!(chats.len(), 12);
        for chat in chats {
            let options = RenderOptions {
                add_generation_prompt: chat["add_generation_prompt"] == true,
                ..Default::default()
            };
            let messages = chat["messages"].as_array().cloned().unwrap_or_default();
            assert_eq!(template.render(&messages, &options)?, chat["text"], "{name}");
            assert_eq!(file.render(&messages, &options)?, chat["text"], "{name}, out of a GGUF file");
        }
    }
    // Both name no special token: one that does gets the file's own.
    let specials =
        BTreeMap::from([("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.into(), v.into())));
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    let file = out_of_a_file(&ChatTemplate::new(source, specials)?)?;
    let said = file.render(&[Message::new("user", "Hi")], &RenderOptions::default())?;
    assert_eq!(said, "<s>Hi</s>");
    assert!(ChatTemplate::from_gguf(&BTreeMap::new())?.is_none());
    Ok(())
}

fn render(source: &str, options: &RenderOptions) -> Result<String> {
    let specials = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(source, specials)?.render(&[Message::new("user", " Hi <&> ")], options)
}

fn said(source: &str) -> String {
    render(source, &RenderOptions::default()).err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn what_templates_in_the_wild_use_works() -> Result<()> {
    let plain = RenderOptions::default();
    let cases = [
        ("{{ bos_token }}{{ messages[0].content | trim }}", "<s>Hi <&>"),
        ("{{ messages[0]['content'].strip() + '!' }}", "Hi <&>!"),
        ("{% for m in messages %}{% if loop.first %}{{ m.role | upper }}{% endif %}{% endfor %}", "USER"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}\
          {% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ tools is defined }}|{{ tools is none }}|{{ add_generation_prompt }}", "True|True|False"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(messages | length) }}", "[1]"),
        ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
        ("{% generation %}{{ 'x' }}{%- endgeneration %}", "x"),
        ("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}", "role;content;"),
        ("   {% if true %}\nline\n   {% endif %}\n", "line\n"),
        ("{{ messages[0].content.split('<')[-1] }}", "&> "),
        ("{{ 'a\\nb' | indent(2) }}", "a\n  b"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source, &plain)?, expected, "{source}");
    }
    Ok(())
}

#[test]
fn to_json_writes_as_python_does() -> Result<()> {
    let tools =
        json!([{"name": "mové", "parameters": {"x": 1, "deep": [1.5, null, true]}, "said": "<a & 'b'>"}]);
    let options = RenderOptions { tools: Some(tools), ..Default::default() };
    assert_eq!(
        render("{{ tools[0] | tojson }}", &options)?,
        r#"{"name": "mové", "parameters": {"x": 1, "deep": [1.5, null, true]}, "said": "<a & 'b'>"}"#
    );
    assert_eq!(
        render("{{ tools[0].parameters.deep | tojson(indent=2) }}", &options)?,
        "[\n  1.5,\n  null,\n  true\n]"
    );
    Ok(())
}

#[test]
fn the_date_is_the_callers() -> Result<()> {
    let options = RenderOptions { now: Some(951_782_400), ..Default::default() };
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &options)?, "29 Feb 2000");
    assert!(
        said("{{ strftime_now('%d') }}").contains("the template asks for today's date, and none was given")
    );
    Ok(())
}

#[test]
fn a_broken_template_is_one_clear_error() {
    assert!(said("{% if %}").starts_with("chat template: syntax error"), "{}", said("{% if %}"));
    assert!(said("{% for m in messages %}").contains("chat template:"));
    assert_eq!(said("{{ raise_exception('roles must alternate') }}"), "chat template: roles must alternate");
    assert!(said("{{ messages[0].content.nothing.more }}").contains("undefined"));
    assert!(said("{{ messages | frobnicate }}").contains("frobnicate"));
    // One that would never end is stopped.
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}\
                   {% endfor %}{% endfor %}";
    assert!(said(endless).contains("chat template:"), "{}", said(endless));
    assert!(!said("{% if %}").contains('\n'));
}
