//! Answers in OpenAI's form.

use super::Kind;
use super::tools::Call;
use crate::Service;
use serde_json::{Map, Value as Json, json};
use vela_embodiment::unix_seconds;
use vela_fusion::PictureAttention;
use vela_llm::engine::Usage;
use vela_llm::{Choice, Tokenizer};

/// What all parts of an answer share.
#[derive(Clone, Debug)]
pub struct Writer {
    kind: Kind,
    id: String,
    created: i64,
    model: String,
    /// Whether chunks have a field for the usage.
    usage: bool,
}

/// One whole answer.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its text.
    pub text: String,
    /// Calls of tools.
    pub calls: Vec<Call>,
    /// Its tokens, if their log-probabilities were asked for.
    pub tokens: Option<Vec<Choice>>,
    /// Why it ended.
    pub finish: &'static str,
    /// What it looked at, if that was asked for.
    pub attention: Option<Vec<PictureAttention>>,
}

impl Writer {
    /// A writer of one answer.
    pub fn new(kind: Kind, service: &Service, model: &str, usage: bool) -> Self {
        let id = service.fresh_id(match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        });
        Self { kind, id, created: unix_seconds(), model: model.to_owned(), usage }
    }

    fn frame(&self, chunk: bool, choices: Vec<Json>) -> Json {
        let object = match (self.kind, chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// A whole answer.
    pub fn whole(&self, told: &[Told], usage: &Total, tokenizer: &Tokenizer) -> Json {
        let choice = |(index, told): (usize, &Told)| {
            let tokens = told.tokens.as_deref();
            match self.kind {
                Kind::Chat => {
                    let content = match told.text.is_empty() && !told.calls.is_empty() {
                        true => Json::Null,
                        false => told.text.clone().into(),
                    };
                    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                    if !told.calls.is_empty() {
                        message["tool_calls"] = self.calls(index, &told.calls, false);
                    }
                    let mut made = json!({"index": index, "message": message, "finish_reason": told.finish,
                        "logprobs": tokens.map(|tokens| chat_logprobs(tokens, tokenizer))});
                    if let Some(attention) = &told.attention {
                        made["vela"] = ours(attention);
                    }
                    made
                }
                Kind::Completion => json!({"index": index, "text": told.text, "finish_reason": told.finish,
                    "logprobs": tokens.map(|tokens| text_logprobs(tokens, tokenizer, &mut 0))}),
            }
        };
        let mut whole = self.frame(false, told.iter().enumerate().map(choice).collect());
        whole["usage"] = usage.json();
        whole
    }

    /// The first chunk of a choice, if it has one of its own.
    pub fn opening(&self, index: usize) -> Option<Json> {
        (self.kind == Kind::Chat)
            .then(|| self.delta(index, json!({"role": "assistant", "content": ""}), None, None))
    }

    /// More text of a choice.
    pub fn text(&self, index: usize, text: &str, logprobs: Option<Json>) -> Json {
        match self.kind {
            Kind::Chat => self.delta(index, json!({ "content": text }), logprobs, None),
            Kind::Completion => self.chunk(json!({"index": index, "text": text, "finish_reason": null,
                "logprobs": logprobs})),
        }
    }

    /// The calls of a choice.
    pub fn called(&self, index: usize, calls: &[Call]) -> Json {
        self.delta(index, json!({ "tool_calls": self.calls(index, calls, true) }), None, None)
    }

    /// What a choice looked at.
    pub fn attention(&self, index: usize, attention: &[PictureAttention]) -> Json {
        self.chunk(json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": null,
            "vela": ours(attention)}))
    }

    /// The last chunk of a choice.
    pub fn end(&self, index: usize, finish: &str) -> Json {
        match self.kind {
            Kind::Chat => self.delta(index, json!({}), None, Some(finish)),
            Kind::Completion => {
                self.chunk(json!({"index": index, "text": "", "finish_reason": finish, "logprobs": null}))
            }
        }
    }

    /// The chunk with the usage, after all others.
    pub fn usage(&self, usage: &Total) -> Json {
        let mut chunk = self.frame(true, Vec::new());
        chunk["usage"] = usage.json();
        chunk
    }

    /// The log-probabilities of one token.
    pub fn logprobs(&self, choice: &Choice, tokenizer: &Tokenizer, offset: &mut usize) -> Option<Json> {
        choice.logprob?;
        let tokens = std::slice::from_ref(choice);
        Some(match self.kind {
            Kind::Chat => chat_logprobs(tokens, tokenizer),
            Kind::Completion => text_logprobs(tokens, tokenizer, offset),
        })
    }

    fn delta(&self, index: usize, delta: Json, logprobs: Option<Json>, finish: Option<&str>) -> Json {
        self.chunk(json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}))
    }

    fn chunk(&self, choice: Json) -> Json {
        let mut chunk = self.frame(true, vec![choice]);
        if self.usage {
            chunk["usage"] = Json::Null;
        }
        chunk
    }

    fn calls(&self, index: usize, calls: &[Call], numbered: bool) -> Json {
        let one = |(k, call): (usize, &Call)| {
            let mut made = json!({"id": format!("call-{}-{index}-{k}", self.id), "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}});
            if numbered {
                made["index"] = k.into();
            }
            made
        };
        calls.iter().enumerate().map(one).collect()
    }
}

/// The field of ours: a map for each picture.
fn ours(attention: &[PictureAttention]) -> Json {
    let map = |map: &PictureAttention| {
        let area = &map.area;
        // Shares of one: six digits say all.
        let rounded = |x: f32| (f64::from(x) * 1e6).round() / 1e6;
        let weights: Vec<f64> = map.weights.iter().copied().map(rounded).collect();
        let area = [area.left, area.top, area.right, area.bottom].map(rounded);
        json!({"share": rounded(map.share), "rows": map.grid[0], "columns": map.grid[1], "weights": weights,
            "area": area})
    };
    json!({ "attention": attention.iter().map(map).collect::<Vec<_>>() })
}

/// The tokens of a whole response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    prompt: usize,
    cached: usize,
    generated: usize,
}

impl Total {
    /// Adds an answer; the prompt that answers share counts once, with the first of them.
    pub fn add(&mut self, usage: &Usage, first: bool) {
        self.generated += usage.generated_tokens;
        if first {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
    }

    /// OpenAI's form.
    pub fn json(&self) -> Json {
        json!({"prompt_tokens": self.prompt, "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated, "prompt_tokens_details": {"cached_tokens": self.cached}})
    }
}

/// A token's text and bytes; those that stand for no text by their name.
fn spelt(id: u32, tokenizer: &Tokenizer) -> (String, Option<Vec<u8>>) {
    match tokenizer.piece(id) {
        Ok(bytes) if !tokenizer.is_special(id) => (String::from_utf8_lossy(&bytes).into_owned(), Some(bytes)),
        _ => (tokenizer.token(id).unwrap_or_default(), None),
    }
}

/// JSON has no minus infinity.
fn finite(logprob: f32) -> f64 {
    f64::from(logprob.max(-9999.0))
}

fn chat_logprobs(tokens: &[Choice], tokenizer: &Tokenizer) -> Json {
    let one = |id: u32, logprob: f32| {
        let (token, bytes) = spelt(id, tokenizer);
        json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
    };
    let content = tokens.iter().map(|choice| {
        let mut made = one(choice.token, choice.logprob.unwrap_or_default());
        made["top_logprobs"] = choice.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
        made
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn text_logprobs(tokens: &[Choice], tokenizer: &Tokenizer, offset: &mut usize) -> Json {
    let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for choice in tokens {
        let (text, _) = spelt(choice.token, tokenizer);
        offsets.push(*offset);
        *offset += text.chars().count();
        texts.push(text);
        logprobs.push(finite(choice.logprob.unwrap_or_default()));
        let top = choice.top.iter().map(|(id, logprob)| (spelt(*id, tokenizer).0, finite(*logprob).into()));
        tops.push(top.collect::<Map<String, Json>>());
    }
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}
