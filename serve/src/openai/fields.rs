//! A JSON object read field by field, each mistake named by where it is.

use crate::Fault;
use serde_json::{Map, Value as Json};

/// An object and its place in the request.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    at: String,
    map: &'a Map<String, Json>,
}

/// What kind of thing a value is, and the value if it is short.
pub fn got(value: &Json) -> String {
    let text = value.to_string();
    match value {
        Json::Null => "null".to_owned(),
        Json::String(_) if text.len() > 40 => format!("a text of {} bytes", text.len()),
        Json::Array(list) => format!("a list of {}", list.len()),
        Json::Object(_) => "an object".to_owned(),
        _ => text,
    }
}

/// A whole number of at least 0; JSON does not tell 3.0 from 3.
pub fn whole(value: &Json) -> Option<u64> {
    let whole = |x: f64| (x.fract() == 0.0 && (0.0..9e15).contains(&x)).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole))
}

impl<'a> Fields<'a> {
    /// An object at `at` (empty: the whole request).
    pub fn of(value: &'a Json, at: &str) -> Result<Self, Fault> {
        match value.as_object() {
            Some(map) => Ok(Self { at: at.to_owned(), map }),
            None => Err(Fault::invalid(at, format!("expected an object, got {}", got(value)))),
        }
    }

    /// The full name of a field.
    pub fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// A mistake in a field.
    pub fn wrong(&self, name: &str, expected: &str, value: &Json) -> Fault {
        Fault::invalid(&self.path(name), format!("expected {expected}, got {}", got(value)))
    }

    /// Refuses fields that are not among `known`.
    pub fn only(&self, known: &[&[&str]]) -> Result<(), Fault> {
        let known = |name: &str| known.iter().any(|list| list.contains(&name));
        match self.map.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let name: String = name.chars().take(60).collect();
                Err(Fault::invalid(&self.path(&name), "this field is not known"))
            }
        }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Json> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub fn need(&self, name: &str) -> Result<&'a Json, Fault> {
        self.get(name).ok_or_else(|| Fault::invalid(&self.path(name), "this field is missing"))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        let text = |value: &'a Json| value.as_str().ok_or_else(|| self.wrong(name, "a text", value));
        self.get(name).map(text).transpose()
    }

    /// A text that must be there.
    pub fn need_text(&self, name: &str) -> Result<&'a str, Fault> {
        let value = self.need(name)?;
        value.as_str().ok_or_else(|| self.wrong(name, "a text", value))
    }

    /// True or false; false if absent.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.get(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(name, "true or false", value)),
        }
    }

    /// A number within bounds.
    pub fn number(&self, name: &str, low: f64, high: f64) -> Result<Option<f32>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| (low..=high).contains(x));
        let number =
            number.ok_or_else(|| self.wrong(name, &format!("a number from {low} to {high}"), value))?;
        Ok(Some(number as f32))
    }

    /// A whole number within bounds.
    pub fn count(&self, name: &str, low: u64, high: u64) -> Result<Option<usize>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let whole = whole(value);
        let count = whole.filter(|x| (low..=high).contains(x));
        let expected = match high {
            u64::MAX => format!("a whole number of at least {low}"),
            _ => format!("a whole number from {low} to {high}"),
        };
        let count = count.ok_or_else(|| self.wrong(name, &expected, value))?;
        Ok(Some(usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// A list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Json]>, Fault> {
        let list = |value: &'a Json| {
            value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(name, "a list", value))
        };
        self.get(name).map(list).transpose()
    }

    /// An object.
    pub fn part(&self, name: &str) -> Result<Option<Fields<'a>>, Fault> {
        self.get(name).map(|value| Fields::of(value, &self.path(name))).transpose()
    }
}
