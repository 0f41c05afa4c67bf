//! `/v1/chat/completions`: what is asked.

use super::fields::Fields;
use super::{Kind, Tools, Wanted, messages, sampling};
use crate::links::Fetching;
use crate::{Ask, Fault, Form, Input, Service};
use serde_json::{Value as Json, json};

/// Fields of this endpoint; those that change nothing for one model on one machine are read over.
const KNOWN: [&str; 15] = [
    "messages",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "modalities",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "vela",
];

/// Reads a request; pictures that stand elsewhere come by `fetching`.
pub fn read(body: &Json, service: &Service, fetching: &mut Fetching) -> Result<Wanted, Fault> {
    let fields = Fields::of(body, "")?;
    fields.only(&[&sampling::COMMON, &KNOWN])?;
    let (model, adapter) = sampling::model(&fields, service)?;
    let (stream, include_usage) = sampling::stream(&fields)?;
    if let Some(list) = fields.list("modalities")?
        && list != [json!("text")]
    {
        return Err(fields.wrong("modalities", "[\"text\"]", fields.need("modalities")?));
    }
    let tools = Tools::read(&fields, service)?;
    let attention = attention(&fields, service)?;
    let turns = messages::messages(&fields, fetching)?;
    let mut ask = Ask::new(Input::Chat { turns, tools: tools.as_ref().map(|tools| tools.list.clone()) });
    ask.sampling = sampling::sampling(&fields)?;
    ask.seed = sampling::seed(&fields)?;
    ask.stop = sampling::stop(&fields)?;
    ask.count = fields.count("n", 1, service.config().max_choices as u64)?.unwrap_or(1);
    let newer = fields.count("max_completion_tokens", 1, u64::MAX)?;
    ask.max_tokens = newer.or(fields.count("max_tokens", 1, u64::MAX)?);
    let top = fields.count("top_logprobs", 0, 20)?;
    match (fields.flag("logprobs")?, top) {
        (true, top) => ask.sampling.logprobs = Some(top.unwrap_or(0)),
        (false, Some(_)) => return Err(Fault::invalid("top_logprobs", "only with \"logprobs\": true")),
        (false, None) => {}
    }
    (ask.adapter, ask.attention) = (adapter, attention);
    ask.form = form(&fields)?;
    if let Some(tools) = &tools
        && let Some(schema) = tools.schema()
    {
        if ask.form != Form::Free {
            return Err(Fault::invalid(
                "response_format",
                "an answer that must be a tool call has its own form",
            ));
        }
        ask.opening = tools.opening().to_owned();
        ask.form = Form::Schema(schema);
    }
    Ok(Wanted { kind: Kind::Chat, asks: vec![ask], stream, include_usage, tools, model })
}

/// Whether the answer's attention is asked for: a field of ours, `"vela": {"attention": true}`.
fn attention(fields: &Fields, service: &Service) -> Result<bool, Fault> {
    let Some(ours) = fields.part("vela")? else { return Ok(false) };
    ours.only(&[&["attention"]])?;
    match ours.flag("attention")? {
        true if !service.model().sees() => Err(Fault::invalid(
            "vela.attention",
            "this model reads text only: there is no picture to attend to",
        )),
        wanted => Ok(wanted),
    }
}

fn form(fields: &Fields) -> Result<Form, Fault> {
    let Some(format) = fields.part("response_format")? else { return Ok(Form::Free) };
    match format.need_text("type")? {
        "text" => format.only(&[&["type"]]).map(|()| Form::Free),
        "json_object" => format.only(&[&["type"]]).map(|()| Form::Schema(json!({"type": "object"}))),
        "json_schema" => {
            format.only(&[&["type", "json_schema"]])?;
            let inner = Fields::of(format.need("json_schema")?, "response_format.json_schema")?;
            inner.only(&[&["name", "description", "schema", "strict"]])?;
            inner.text("name")?;
            inner.text("description")?;
            inner.flag("strict")?;
            match inner.get("schema") {
                None => Ok(Form::Schema(json!({"type": "object"}))),
                Some(schema @ Json::Object(_)) => Ok(Form::Schema(schema.clone())),
                Some(other) => Err(inner.wrong("schema", "a JSON schema", other)),
            }
        }
        "regex" => {
            format.only(&[&["type", "regex"]])?;
            Ok(Form::Regex(format.need_text("regex")?.to_owned()))
        }
        _ => Err(format.wrong("type", "text, json_object, json_schema or regex", format.need("type")?)),
    }
}
