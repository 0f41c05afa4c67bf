//! The fields that both endpoints have: how tokens are chosen, and how the answer comes.

use super::fields::Fields;
use crate::{Fault, Service};
use serde_json::Value as Json;
use std::sync::Arc;
use vela_llm::{Lora, SamplingParams};

/// Fields that both endpoints know.
pub const COMMON: [&str; 17] = [
    "model",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "n",
    "max_tokens",
    "logit_bias",
    "user",
    "metadata",
];

/// Texts that may end an answer, and how long each may be.
const STOPS: (usize, usize) = (16, 256);

/// How tokens are chosen; OpenAI's defaults.
pub fn sampling(fields: &Fields) -> Result<SamplingParams, Fault> {
    if let Some(bias) = fields.part("logit_bias")? {
        bias.only(&[]).map_err(|_| Fault::invalid("logit_bias", "biases on tokens are not supported"))?;
    }
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
        top_k: fields.count("top_k", 0, 1 << 20)?.unwrap_or(0),
        top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logprobs: None,
    })
}

/// The seed, any whole number.
pub fn seed(fields: &Fields) -> Result<Option<u64>, Fault> {
    let Some(value) = fields.get("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    let seed = seed
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64 as u64));
    seed.map(Some).ok_or_else(|| fields.wrong("seed", "a whole number", value))
}

/// Texts that end an answer: one, or a list.
pub fn stop(fields: &Fields) -> Result<Vec<String>, Fault> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let (most, longest) = STOPS;
    let list = match value {
        Json::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let text = |value: &Json| value.as_str().filter(|text| text.len() <= longest).map(str::to_owned);
    let texts: Option<Vec<String>> = list.iter().map(text).collect();
    texts.filter(|texts| texts.len() <= most).ok_or_else(|| {
        let expected = format!("a text, or a list of at most {most}, of at most {longest} bytes each");
        fields.wrong("stop", &expected, value)
    })
}

/// Whether the answer comes in chunks, and whether these end with the usage.
pub fn stream(fields: &Fields) -> Result<(bool, bool), Fault> {
    let stream = fields.flag("stream")?;
    let Some(options) = fields.part("stream_options")? else { return Ok((stream, false)) };
    options.only(&[&["include_usage", "include_obfuscation"]])?;
    if !stream {
        return Err(Fault::invalid("stream_options", "only with \"stream\": true"));
    }
    Ok((stream, options.flag("include_usage")?))
}

/// Which of the served models is asked, and its adapter if it has one; the plain model if nothing is said.
pub fn model(fields: &Fields, service: &Service) -> Result<(String, Option<Arc<Lora>>), Fault> {
    match fields.text("model")? {
        None => Ok((service.name().to_owned(), None)),
        Some(name) if service.names().any(|known| known == name) => {
            Ok((name.to_owned(), service.adapter(name)))
        }
        Some(name) => {
            let fault = unknown_model(name, service);
            Err(Fault { param: Some("model".into()), ..fault })
        }
    }
}

/// A model that is not served.
pub fn unknown_model(name: &str, service: &Service) -> Fault {
    let here = service.names().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let name: String = name.chars().take(80).collect();
    Fault::refused(404, "model_not_found", format!("the model '{name}' is not here; this server has {here}"))
}
