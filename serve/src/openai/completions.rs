//! `/v1/completions`: texts that the model goes on from.

use super::fields::{Fields, whole};
use super::{Kind, Wanted, sampling};
use crate::{Ask, Fault, Input, Service};
use serde_json::Value as Json;

const KNOWN: [&str; 5] = ["prompt", "logprobs", "echo", "best_of", "suffix"];

/// Reads a request.
pub fn read(body: &Json, service: &Service) -> Result<Wanted, Fault> {
    let fields = Fields::of(body, "")?;
    fields.only(&[&sampling::COMMON, &KNOWN])?;
    let (name, adapter) = sampling::model(&fields, service)?;
    let (stream, include_usage) = sampling::stream(&fields)?;
    if fields.flag("echo")? {
        return Err(Fault::invalid("echo", "giving the prompt back is not supported"));
    }
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Fault::invalid("suffix", "filling a gap is not supported"));
    }
    let count = fields.count("n", 1, service.config().max_choices as u64)?.unwrap_or(1);
    if let Some(best_of) = fields.count("best_of", 1, u64::MAX)?
        && best_of != count
    {
        return Err(Fault::invalid("best_of", "choosing among more answers than are given is not supported"));
    }
    let inputs = prompts(&fields)?;
    let most = service.config().max_choices;
    if inputs.len() * count > most {
        let got = inputs.len() * count;
        return Err(Fault::invalid(
            "prompt",
            format!("expected at most {most} answers (prompts times n), got {got}"),
        ));
    }
    let mut model = Ask::new(Input::Tokens(Vec::new()));
    model.sampling = sampling::sampling(&fields)?;
    model.sampling.logprobs = fields.count("logprobs", 0, 20)?;
    model.seed = sampling::seed(&fields)?;
    model.stop = sampling::stop(&fields)?;
    model.max_tokens = Some(fields.count("max_tokens", 1, u64::MAX)?.unwrap_or(16));
    model.count = count;
    model.adapter = adapter;
    let asks = inputs.into_iter().map(|input| Ask { input, ..model.clone() }).collect();
    Ok(Wanted { kind: Kind::Completion, asks, stream, include_usage, tools: None, model: name })
}

/// A text, token ids, or a list of either.
fn prompts(fields: &Fields) -> Result<Vec<Input>, Fault> {
    let value = fields.need("prompt")?;
    let wrong = || fields.wrong("prompt", "a text, token ids, or a list of either", value);
    let id = |value: &Json| whole(value).and_then(|id| u32::try_from(id).ok());
    let ids = |list: &[Json]| list.iter().map(id).collect::<Option<Vec<u32>>>().filter(|ids| !ids.is_empty());
    let one = |value: &Json| match value {
        Json::String(text) => Some(Input::Text(text.clone())),
        Json::Array(list) => ids(list).map(Input::Tokens),
        _ => None,
    };
    match value {
        Json::String(_) => one(value).map(|input| vec![input]).ok_or_else(wrong),
        Json::Array(list) => match ids(list) {
            Some(ids) => Ok(vec![Input::Tokens(ids)]),
            None => {
                let all: Option<Vec<Input>> = list.iter().map(one).collect();
                all.filter(|all| !all.is_empty()).ok_or_else(wrong)
            }
        },
        _ => Err(wrong()),
    }
}
