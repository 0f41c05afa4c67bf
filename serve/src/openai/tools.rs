//! Tools that the model may call: how they are told to it, and how its calls are read.

use super::fields::Fields;
use crate::{Fault, Service};
use serde_json::{Map, Value as Json, json};

/// How a family writes a call, as its chat template shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStyle {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>` (Qwen, SmolLM, Hermes).
    Tagged,
    /// The whole answer is `{"name": …, "parameters": …}` (Llama 3).
    Bare,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The tools of a request.
#[derive(Clone, Debug)]
pub struct Tools {
    /// In OpenAI's form, for the template.
    pub list: Json,
    /// How calls are written.
    pub style: ToolStyle,
    /// Whether the answer must be a call.
    pub required: bool,
    /// Whether several calls may come at once.
    pub parallel: bool,
    /// Each tool's name and the schema of its arguments; the one that must be called, if one must.
    functions: Vec<(String, Json)>,
}

/// A call that the model makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its arguments, as JSON.
    pub arguments: String,
}

impl Tools {
    /// The tools of a request; none if there are none or none may be called.
    pub fn read(fields: &Fields, service: &Service) -> Result<Option<Self>, Fault> {
        let parallel = fields.get("parallel_tool_calls").is_none() || fields.flag("parallel_tool_calls")?;
        let Some(list) = fields.list("tools")?.filter(|list| !list.is_empty()) else {
            return match fields.get("tool_choice") {
                None => Ok(None),
                Some(choice) if choice == "none" || choice == "auto" => Ok(None),
                Some(choice) => {
                    Err(fields.wrong("tool_choice", "none or auto, as there are no tools", choice))
                }
            };
        };
        if list.len() > 128 {
            return Err(fields.wrong("tools", "at most 128 tools", fields.need("tools")?));
        }
        let mut functions = Vec::new();
        for (k, value) in list.iter().enumerate() {
            functions.push(function(value, &format!("tools[{k}]"))?);
        }
        if !service.model().takes_tools() {
            return Err(Fault::invalid("tools", "this model's chat template has no place for tools"));
        }
        let mut required = false;
        if let Some(choice) = fields.get("tool_choice") {
            match choice {
                Json::String(word) if word == "auto" => {}
                Json::String(word) if word == "none" => return Ok(None),
                Json::String(word) if word == "required" => required = true,
                Json::Object(_) => {
                    let choice = Fields::of(choice, "tool_choice")?;
                    choice.only(&[&["type", "function"]])?;
                    let name =
                        Fields::of(choice.need("function")?, "tool_choice.function")?.need_text("name")?;
                    functions.retain(|(known, _)| known == name);
                    required = true;
                    if functions.is_empty() {
                        let message = format!("expected the name of one of the tools, got '{name}'");
                        return Err(Fault::invalid("tool_choice.function.name", message));
                    }
                }
                _ => return Err(fields.wrong("tool_choice", "none, auto, required or a function", choice)),
            }
        }
        let source = service.model().template().map(|template| template.source()).unwrap_or_default();
        let style = if source.contains(OPEN) { ToolStyle::Tagged } else { ToolStyle::Bare };
        Ok(Some(Self { list: Json::Array(list.to_vec()), style, required, parallel, functions }))
    }

    /// Tools that may be called or not; for tests.
    #[cfg(test)]
    pub(crate) fn free(style: ToolStyle) -> Self {
        Self { list: json!([]), style, required: false, parallel: true, functions: Vec::new() }
    }

    /// What an answer that must be a call begins with.
    pub fn opening(&self) -> &'static str {
        match self.style {
            ToolStyle::Tagged if self.required => "<tool_call>\n",
            _ => "",
        }
    }

    /// The schema of an answer that must be a call.
    pub fn schema(&self) -> Option<Json> {
        let key = match self.style {
            ToolStyle::Tagged => "arguments",
            ToolStyle::Bare => "parameters",
        };
        let one = |(name, schema): &(String, Json)| {
            json!({"type": "object", "properties": {"name": {"const": name}, key: schema},
                "required": ["name", key], "additionalProperties": false})
        };
        let all: Vec<Json> = self.functions.iter().map(one).collect();
        match (self.required, all.as_slice()) {
            (false, _) => None,
            (true, [one]) => Some(one.clone()),
            (true, _) => Some(json!({ "anyOf": all })),
        }
    }

    /// What marks the beginning of a call in a text that is written out as it comes; none if nothing may be written out
    /// before the end.
    pub fn mark(&self) -> Option<&'static str> {
        (self.style == ToolStyle::Tagged && !self.required).then_some(OPEN)
    }

    /// The text before the calls, and the calls. What is no call stays text.
    pub fn calls(&self, text: &str) -> (String, Vec<Call>) {
        let whole = || (text.to_owned(), Vec::new());
        if self.required || self.style == ToolStyle::Bare {
            let inner = text.trim().trim_end_matches(CLOSE);
            return match serde_json::from_str::<Json>(inner).ok().and_then(|value| several(&value)) {
                Some(calls) => (String::new(), self.at_most(calls)),
                None => whole(),
            };
        }
        let Some(at) = text.find(OPEN) else { return whole() };
        let mut calls = Vec::new();
        for piece in text[at..].split(OPEN).skip(1) {
            let inner = piece.split(CLOSE).next().unwrap_or_default();
            match serde_json::from_str::<Json>(inner.trim()).ok().and_then(|value| several(&value)) {
                Some(more) => calls.extend(more),
                None => return whole(),
            }
        }
        (text[..at].trim_end().to_owned(), self.at_most(calls))
    }

    fn at_most(&self, mut calls: Vec<Call>) -> Vec<Call> {
        if !self.parallel {
            calls.truncate(1);
        }
        calls
    }
}

/// One call, or a list of them.
fn several(value: &Json) -> Option<Vec<Call>> {
    match value {
        Json::Array(list) if !list.is_empty() => list.iter().map(call).collect(),
        one => Some(vec![call(one)?]),
    }
}

fn call(value: &Json) -> Option<Call> {
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
    let arguments = match arguments {
        Json::String(text) => text.clone(),
        Json::Object(_) => arguments.to_string(),
        _ => return None,
    };
    Some(Call { name: value.get("name")?.as_str()?.to_owned(), arguments })
}

/// A tool's name and the schema of its arguments.
fn function(value: &Json, at: &str) -> Result<(String, Json), Fault> {
    let fields = Fields::of(value, at)?;
    fields.only(&[&["type", "function"]])?;
    if fields.need_text("type")? != "function" {
        return Err(fields.wrong("type", "function", fields.need("type")?));
    }
    let inner = Fields::of(fields.need("function")?, &fields.path("function"))?;
    inner.only(&[&["name", "description", "parameters", "strict"]])?;
    let name = inner.need_text("name")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if name.is_empty() || name.len() > 128 || !name.chars().all(plain) {
        return Err(inner.wrong("name", "1 to 128 letters, digits, _, - or .", inner.need("name")?));
    }
    inner.text("description")?;
    inner.flag("strict")?;
    let empty = || json!({"type": "object", "properties": Map::new(), "additionalProperties": false});
    let schema = match inner.get("parameters") {
        None => empty(),
        Some(Json::Object(map)) if map.is_empty() => empty(),
        Some(value @ Json::Object(_)) => value.clone(),
        Some(value) => return Err(inner.wrong("parameters", "a JSON schema", value)),
    };
    Ok((name.to_owned(), schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(style: ToolStyle, required: bool) -> Tools {
        let functions = vec![("look".to_owned(), json!({"type": "object"}))];
        Tools { list: json!([]), style, required, parallel: true, functions }
    }

    #[test]
    fn calls_are_told_from_text() {
        let tagged = tools(ToolStyle::Tagged, false);
        let call = |arguments: &str| Call { name: "look".into(), arguments: arguments.into() };
        let text = "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>\n\
                    <tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call>";
        assert_eq!(tagged.calls(text), ("I look.".into(), vec![call("{\"at\":1}"), call("{}")]));
        let once = Tools { parallel: false, ..tagged.clone() };
        assert_eq!(once.calls(text).1.len(), 1);
        for text in ["no call", "<tool_call>{\"name\": \"lo", "<tool_call>{}</tool_call>"] {
            assert_eq!(tagged.calls(text), (text.into(), vec![]));
        }
        let bare = tools(ToolStyle::Bare, false);
        assert_eq!(bare.calls("{\"name\": \"look\", \"parameters\": {}}"), (String::new(), vec![call("{}")]));
        assert_eq!(bare.calls("{\"name\": 5}"), ("{\"name\": 5}".into(), vec![]));
        let must = tools(ToolStyle::Tagged, true);
        assert_eq!(must.calls("{\"name\": \"look\", \"arguments\": {}}").1, [call("{}")]);
        assert_eq!(
            must.schema().map(|schema| schema["properties"]["name"]["const"].clone()),
            Some("look".into())
        );
        assert_eq!((tagged.schema(), tagged.mark(), must.mark()), (None, Some("<tool_call>"), None));
    }
}
