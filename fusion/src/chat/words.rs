//! A conversation as chat templates want it: a turn's content is a text, or a list of texts and pictures.

use super::Seen;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;
use vela_llm::{ChatTemplate, RenderOptions};

/// A piece of a turn.
#[derive(Clone, Debug)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture.
    Picture(Arc<Seen>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said and shown, in order.
    pub parts: Vec<Part>,
    /// What else templates may read, such as `tool_calls`.
    pub extra: Map<String, Json>,
}

impl Turn {
    /// Words alone.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.to_owned(), parts: vec![Part::Text(text.into())], extra: Map::new() }
    }

    /// Its pictures.
    pub fn pictures(&self) -> impl Iterator<Item = &Arc<Seen>> {
        self.parts.iter().filter_map(|part| match part {
            Part::Picture(seen) => Some(seen),
            Part::Text(_) => None,
        })
    }

    /// Its words.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Picture(_) => None,
        })
    }
}

/// What a template takes a turn's content for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One text.
    Text,
    /// A list of `{"type": "image"}` and `{"type": "text", "text": …}`.
    List,
}

impl Form {
    /// What a template understands, tried out; and whether it has a place for tools.
    pub fn of(template: Option<&ChatTemplate>, sees: bool) -> (Self, bool) {
        let Some(template) = template else { return (Self::Text, false) };
        let probe = "probe 7401";
        let turns = [Turn::text("user", probe)];
        let render = |form: Self, tools: Option<Json>| -> Option<String> {
            let messages: Vec<Json> = turns.iter().map(|turn| form.message(turn, "")).collect();
            let extra = Map::new();
            let options = RenderOptions { add_generation_prompt: true, tools, now: Some(0), extra };
            template.render(&messages, &options).ok()
        };
        // A list that is printed as it stands shows its own words.
        let takes = |form: Self| {
            render(form, None).is_some_and(|text| {
                text.contains(probe) && !text.contains("'type'") && !text.contains("\"type\"")
            })
        };
        let form = match (sees, takes(Self::List), takes(Self::Text)) {
            (true, true, _) | (false, true, false) => Self::List,
            _ => Self::Text,
        };
        let tool = json!([{"type": "function", "function": {"name": "probe_tool", "description": "a tool",
            "parameters": {"type": "object", "properties": {}}}}]);
        let named = render(form, Some(tool)).is_some_and(|text| text.contains("probe_tool"));
        (form, named)
    }

    /// A turn as the template reads it; `picture` stands for a picture in a text.
    pub fn message(self, turn: &Turn, picture: &str) -> Json {
        let content = match self {
            Self::List => turn
                .parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => json!({"type": "text", "text": text}),
                    Part::Picture(_) => json!({"type": "image"}),
                })
                .collect(),
            Self::Text => {
                let words = turn.parts.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Picture(_) => format!("{picture}\n"),
                });
                Json::String(words.collect())
            }
        };
        let mut message = turn.extra.clone();
        message.insert("role".into(), turn.role.clone().into());
        message.insert("content".into(), content);
        Json::Object(message)
    }
}
