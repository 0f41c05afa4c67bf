//! Chat templates: the Jinja text that a model was trained with, rendered over a conversation as Hugging Face does it.

use crate::template_date::strftime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use vela_nn::{Error, Result, gguf};

/// Steps that a template may take; a hostile one must end.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat template";

/// One turn of a conversation, in plain text. Templates take anything that serialises like it, with more fields too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// What a template is rendered with besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as a JSON list.
    pub tools: Option<Json>,
    /// Seconds since 1970, for templates that name today's date; without it these are refused.
    pub now: Option<i64>,
    /// Further variables, such as `enable_thinking`.
    pub extra: serde_json::Map<String, Json>,
}

/// A compiled chat template with the special tokens that it may name (`bos_token` and so on).
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    specials: BTreeMap<String, String>,
}

fn refused(error: &minijinja::Error) -> Error {
    // `raise_exception` speaks for itself.
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(said)) => Error::parse(NAME, said),
        _ => Error::invalid(format!("{NAME}: {error}")),
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// It is no Jinja template.
    pub fn new(source: &str, specials: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| refused(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_filter("from_json", |text: String| -> std::result::Result<Value, minijinja::Error> {
            let value: Json = serde_json::from_str(&text)
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("from_json: {e}")))?;
            Ok(value_of(value))
        });
        environment.add_function("raise_exception", |said: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, said))
        });
        environment.add_template_owned(NAME, plain_blocks(source)).map_err(|e| refused(&e))?;
        Ok(Self { environment, source: source.to_owned(), specials })
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, `chat_template.json`, or `chat_template` in
    /// `tokenizer_config.json`; `None` if it has none.
    ///
    /// # Errors
    /// A file that cannot be read, or a broken template.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let read = |name: &str| -> Result<Option<String>> {
            let path = dir.join(name);
            match path.is_file() {
                false => Ok(None),
                true => std::fs::read_to_string(&path).map(Some).map_err(|source| Error::Io { path, source }),
            }
        };
        let json = |name: &str| -> Result<Option<Json>> {
            let text = read(name)?;
            text.map(|t| serde_json::from_str(&t).map_err(|e| Error::parse(dir.join(name).display(), e)))
                .transpose()
        };
        let config = json("tokenizer_config.json")?.unwrap_or_default();
        let source = match (read("chat_template.jinja")?, json("chat_template.json")?) {
            (Some(source), _) => Some(source),
            (None, Some(file)) => named(&file["chat_template"]),
            (None, None) => named(&config["chat_template"]),
        };
        let Some(source) = source else { return Ok(None) };
        let mut specials = tokens_of(&config);
        for (name, token) in tokens_of(&json("special_tokens_map.json")?.unwrap_or_default()) {
            specials.entry(name).or_insert(token);
        }
        Self::new(&source, specials).map(Some)
    }

    /// The template inside a GGUF file, if it has one.
    ///
    /// # Errors
    /// A broken template.
    pub fn from_gguf(metadata: &BTreeMap<String, gguf::Value>) -> Result<Option<Self>> {
        let Some(source) = metadata.get("tokenizer.chat_template").and_then(gguf::Value::as_text) else {
            return Ok(None);
        };
        let tokens =
            metadata.get("tokenizer.ggml.tokens").and_then(gguf::Value::as_texts).unwrap_or_default();
        let named =
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
        let special = |(name, key): (&str, &str)| {
            let id = metadata.get(&format!("tokenizer.ggml.{key}_token_id"))?.as_count()?;
            Some((name.to_owned(), tokens.get(id as usize)?.clone()))
        };
        Self::new(source, named.into_iter().filter_map(special).collect()).map(Some)
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Special tokens by the names that the template may use.
    pub fn specials(&self) -> &BTreeMap<String, String> {
        &self.specials
    }

    /// The special token of a name, such as `eos_token`.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.specials.get(name).map(String::as_str)
    }

    /// The text of a conversation, special tokens spelt out.
    ///
    /// # Errors
    /// What the template refuses (roles out of order, for example), or what it does wrong.
    pub fn render<M: Serialize>(&self, messages: &[M], options: &RenderOptions) -> Result<String> {
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, token) in &self.specials {
            context.insert(name.clone(), Value::from(token.clone()));
        }
        for (name, value) in &options.extra {
            context.insert(name.clone(), value_of(value));
        }
        context.insert("messages".into(), value_of(messages));
        context.insert("add_generation_prompt".into(), Value::from(options.add_generation_prompt));
        // Both are always defined there.
        context.insert("tools".into(), value_of(&options.tools));
        context.insert("documents".into(), Value::from(()));
        let now = options.now;
        let date = move |format: String| {
            let seconds = now.ok_or("the template asks for today's date, and none was given".to_owned());
            seconds
                .and_then(|seconds| strftime(&format, seconds))
                .map_err(|why| minijinja::Error::new(ErrorKind::InvalidOperation, why))
        };
        context.insert("strftime_now".into(), Value::from_function(date));
        let template = self.environment.get_template(NAME).map_err(|e| refused(&e))?;
        template.render(Value::from(context)).map_err(|e| refused(&e))
    }
}

fn value_of<T: Serialize>(value: T) -> Value {
    Value::from(Serde(value))
}

/// A template, or the one called `default` of a list of named ones.
fn named(value: &Json) -> Option<String> {
    if let Some(source) = value.as_str() {
        return Some(source.to_owned());
    }
    let default = value.as_array()?.iter().find(|entry| entry["name"] == "default")?;
    default["template"].as_str().map(str::to_owned)
}

/// The `*_token` fields, each a text or an object with `content`.
fn tokens_of(config: &Json) -> BTreeMap<String, String> {
    let fields = config.as_object().into_iter().flatten();
    let token = |(name, value): (&String, &Json)| {
        let text = value.as_str().or(value["content"].as_str())?;
        name.ends_with("_token").then(|| (name.clone(), text.to_owned()))
    };
    fields.filter_map(token).collect()
}

/// `{% generation %}` marks what a trainer learns from; for rendering it is a block like `{% if true %}`.
fn plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at);
        let Some(end) = block.find("%}") else { break };
        let (block, after) = block.split_at(end);
        out.push_str(before);
        match block.trim_start_matches(['{', '%', '-', '+']).trim_end_matches('-').trim() {
            "generation" => out.push_str(&block.replace("generation", "if true")),
            "endgeneration" => out.push_str(&block.replace("endgeneration", "endif")),
            _ => out.push_str(block),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False)`, as Hugging Face's `tojson`: `indent` as there.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted as they are the defaults; anything else about them has not been seen.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let _: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))
                .map_err(failed)?;
        }
        None => {
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Python))
                .map_err(failed)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// A space after every comma and colon.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
