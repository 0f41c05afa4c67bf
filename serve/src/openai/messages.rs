//! The messages of a conversation, and the pictures in them.

use super::fields::{Fields, got};
use crate::links::Fetching;
use crate::{Fault, Said, Source};
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use serde_json::{Map, Value as Json, json};

/// Turns of one conversation.
const MOST: usize = 2048;

/// The turns of `messages`; pictures that stand elsewhere come by `fetching`.
pub fn messages(fields: &Fields, fetching: &mut Fetching) -> Result<Vec<Said>, Fault> {
    let value = fields.need("messages")?;
    let list = value.as_array().filter(|list| (1..=MOST).contains(&list.len()));
    let list =
        list.ok_or_else(|| fields.wrong("messages", &format!("a list of 1 to {MOST} messages"), value))?;
    let one = |(at, value): (usize, &Json)| message(value, &format!("messages[{at}]"), fetching);
    list.iter().enumerate().map(one).collect()
}

fn message(value: &Json, at: &str, fetching: &mut Fetching) -> Result<Said, Fault> {
    let fields = Fields::of(value, at)?;
    fields.only(&[&[
        "role",
        "content",
        "name",
        "refusal",
        "audio",
        "tool_calls",
        "tool_call_id",
        "function_call",
    ]])?;
    let role = match fields.need_text("role")? {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        _ => {
            let expected = "system, developer, user, assistant or tool";
            return Err(fields.wrong("role", expected, fields.need("role")?));
        }
    };
    for name in ["audio", "function_call", "refusal"] {
        if fields.get(name).is_some() {
            return Err(Fault::invalid(&fields.path(name), "this field is not supported"));
        }
    }
    let mut extra = Map::new();
    if let Some(name) = fields.text("name")? {
        extra.insert("name".into(), name.into());
    }
    if role == "tool" {
        extra.insert("tool_call_id".into(), fields.need_text("tool_call_id")?.into());
    }
    if let Some(calls) = fields.list("tool_calls")? {
        if role != "assistant" {
            return Err(Fault::invalid(&fields.path("tool_calls"), "only the assistant calls tools"));
        }
        let calls =
            calls.iter().enumerate().map(|(k, call)| tool_call(call, &format!("{at}.tool_calls[{k}]")));
        extra.insert("tool_calls".into(), Json::Array(calls.collect::<Result<_, _>>()?));
    }
    let parts = match fields.get("content") {
        None if extra.contains_key("tool_calls") => Vec::new(),
        None => return Err(Fault::invalid(&fields.path("content"), "this field is missing")),
        Some(Json::String(text)) => vec![Source::Text(text.clone())],
        Some(Json::Array(list)) => {
            let part =
                |(k, value): (usize, &Json)| part(value, role, &format!("{at}.content[{k}]"), fetching);
            list.iter().enumerate().map(part).collect::<Result<_, _>>()?
        }
        Some(value) => return Err(fields.wrong("content", "a text or a list of parts", value)),
    };
    Ok(Said { role: role.to_owned(), parts, extra })
}

fn part(value: &Json, role: &str, at: &str, fetching: &mut Fetching) -> Result<Source, Fault> {
    let fields = Fields::of(value, at)?;
    match fields.need_text("type")? {
        "text" => {
            fields.only(&[&["type", "text"]])?;
            Ok(Source::Text(fields.need_text("text")?.to_owned()))
        }
        "image_url" => {
            fields.only(&[&["type", "image_url"]])?;
            if role != "user" {
                return Err(Fault::invalid(
                    at,
                    format!("expected pictures from the user only, got one from {role}"),
                ));
            }
            let inner = Fields::of(fields.need("image_url")?, &fields.path("image_url"))?;
            inner.only(&[&["url", "detail"]])?;
            if let Some(detail) = inner.text("detail")?
                && !["auto", "low", "high"].contains(&detail)
            {
                return Err(inner.wrong("detail", "auto, low or high", inner.need("detail")?));
            }
            let field = inner.path("url");
            let url = inner.need_text("url")?;
            let file = match is_link(url) {
                true => fetching.fetch(url, &field)?.into(),
                false => data_url(url, &field)?.into(),
            };
            Ok(Source::Picture { file, field })
        }
        _ => Err(fields.wrong("type", "text or image_url", fields.need("type")?)),
    }
}

/// Some clients leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn is_link(url: &str) -> bool {
    let begins =
        |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    begins("http://") || begins("https://")
}

/// The bytes of a `data:image/…;base64,` URL.
fn data_url(url: &str, field: &str) -> Result<Vec<u8>, Fault> {
    let start: String = url.chars().take(24).collect();
    let expected = || {
        Fault::invalid(
            field,
            format!("expected data:image/…;base64,… with a JPEG, PNG or WebP file, got '{start}'"),
        )
    };
    let (head, data) = url.split_once(',').ok_or_else(expected)?;
    let head = head.to_ascii_lowercase();
    let kind =
        head.strip_prefix("data:").and_then(|head| head.strip_suffix(";base64")).ok_or_else(expected)?;
    if !kind.is_empty() && !kind.starts_with("image/") {
        return Err(expected());
    }
    let decoded = match data.contains(['\n', '\r', ' ']) {
        true => LENIENT.decode(data.replace(['\n', '\r', ' '], "")),
        false => LENIENT.decode(data),
    };
    decoded
        .or_else(|error| {
            general_purpose::URL_SAFE_NO_PAD.decode(data.trim_end_matches('=')).map_err(|_| error)
        })
        .map_err(|e| Fault::invalid(field, format!("expected base64 after the comma: {e}")))
}

/// A call as chat templates read it: the arguments are an object there, a text in OpenAI's form.
fn tool_call(value: &Json, at: &str) -> Result<Json, Fault> {
    let fields = Fields::of(value, at)?;
    fields.only(&[&["id", "type", "function", "index"]])?;
    let function = Fields::of(fields.need("function")?, &fields.path("function"))?;
    let (name, text) = (function.need_text("name")?, function.need_text("arguments")?);
    let arguments: Json = match text.trim() {
        "" => json!({}),
        text => serde_json::from_str(text)
            .map_err(|e| Fault::invalid(&function.path("arguments"), format!("expected JSON: {e}")))?,
    };
    if !arguments.is_object() {
        let message = format!("expected a JSON object, got {}", got(&arguments));
        return Err(Fault::invalid(&function.path("arguments"), message));
    }
    let id = fields.text("id")?.unwrap_or_default();
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Json) -> Result<Vec<Said>, Fault> {
        messages(&Fields::of(&json!({ "messages": value }), "")?, &mut Fetching::default())
    }

    fn complaint(value: Json) -> String {
        read(value).err().map(|fault| fault.to_string()).unwrap_or_default()
    }

    #[test]
    fn pictures_come_as_data_urls_and_nothing_is_fetched() -> Result<(), Fault> {
        let user = |url: &str| {
            json!([{"role": "user", "content": [
            {"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]}])
        };
        for url in ["data:image/png;base64,aGk=", "data:image/png;base64,aGk", "DATA:image/png;base64,aG\nk="]
        {
            let said = read(user(url))?;
            assert!(matches!(&said[0].parts[1], Source::Picture { file, field }
                if **file == *b"hi" && field == "messages[0].content[1].image_url.url"));
        }
        for (url, why) in [
            ("https://example.org/a.png", "fetches nothing"),
            ("data:text/plain;base64,aGk=", "expected data:image/"),
            ("data:image/png,hi", "expected data:image/"),
            ("file:///etc/passwd", "expected data:image/"),
            ("data:image/png;base64,%%%", "expected base64"),
        ] {
            assert!(complaint(user(url)).contains(why), "{url}: {}", complaint(user(url)));
        }
        Ok(())
    }

    #[test]
    fn a_mistake_is_named_by_its_place() {
        for (value, why) in [
            (json!([]), "messages: expected a list of 1 to"),
            (json!("hi"), "messages: expected a list"),
            (json!([1]), "messages[0]: expected an object, got 1"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role: expected system, developer"),
            (json!([{"role": "user"}]), "messages[0].content: this field is missing"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content: expected a text or a list"),
            (json!([{"role": "user", "content": "x", "odd": 1}]), "messages[0].odd: this field is not known"),
            (
                json!([{"role": "user", "content": [{"type": "sound"}]}]),
                "messages[0].content[0].type: expected text or",
            ),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id: this field is missing"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]),
                "messages[0].tool_calls[0].function.arguments: expected JSON",
            ),
        ] {
            assert!(complaint(value.clone()).contains(why), "{value}: {}", complaint(value.clone()));
        }
    }
}
