//! Constrained decoding: only tokens that keep the text inside a JSON Schema or a regular expression, by `llguidance`.

use crate::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use vela_nn::{Error, Result};

/// What constraints over one vocabulary share; made once per model.
pub struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A constraint on one sequence and how far it has come.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("complete", &self.matcher.is_stopped()).finish()
    }
}

/// The first line of what went wrong: the rest is the library's own state.
fn said(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Grammars {
    /// Over a model's `vocab` ids (logits may be more than the tokenizer has), ended by any of `stop`.
    ///
    /// # Errors
    /// No stop token; a tokenizer that cannot be read token by token.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, stop: &[u32]) -> Result<Self> {
        let Some(end) = stop.iter().find(|id| (**id as usize) < vocab) else {
            return Err(Error::invalid("constraint: the model names no token that ends an answer"));
        };
        if !tokenizer.has_pieces() {
            return Err(Error::invalid("constraint: this kind of tokenizer cannot be read token by token"));
        }
        let word = |id: u32| match tokenizer.token(id) {
            None => Vec::new(),
            // How the library marks what stands for no text.
            Some(name) if tokenizer.is_special(id) => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
            }
            Some(_) => tokenizer.piece(id).unwrap_or_default(),
        };
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
        let ends: Vec<u32> = stop.iter().copied().filter(|id| (*id as usize) < vocab).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, *end), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|e| Error::parse("constraint", said(&e)))?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// Texts that are JSON and satisfy `schema`, with one space after each comma and colon (unless the schema says
    /// otherwise by `x-guidance`).
    ///
    /// # Errors
    /// A schema that is invalid, uses what is not supported, or that nothing satisfies.
    pub fn json_schema(&self, schema: &Json) -> Result<Constraint> {
        let mut schema = schema.clone();
        let Some(object) = schema.as_object_mut() else {
            return Err(Error::invalid(format!("JSON schema: expected an object, got {}", kind(&schema))));
        };
        object.entry("x-guidance").or_insert_with(
            || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
        );
        self.constraint("JSON schema", TopLevelGrammar::from_json_schema(schema))
    }

    /// Texts that match `expression` as a whole (Rust's syntax, without look-around and back references).
    ///
    /// # Errors
    /// No such expression, or one that nothing matches.
    pub fn regex(&self, expression: &str) -> Result<Constraint> {
        self.constraint("regular expression", TopLevelGrammar::from_regex(expression))
    }

    fn constraint(&self, what: &str, grammar: TopLevelGrammar) -> Result<Constraint> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(Error::parse(what, said(&error)));
        }
        matcher.compute_mask_or_eos().map_err(|e| Error::parse(what, said(&e)))?;
        Ok(Constraint { matcher })
    }
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

impl Constraint {
    /// Sets the logits of tokens that may not come next to minus infinity. Stop tokens stay where the text may end.
    ///
    /// # Errors
    /// No token may come next.
    pub fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| Error::parse("constraint", said(&e)))?;
        let words = mask.as_slice();
        let mut any = false;
        for (id, logit) in logits.iter_mut().enumerate() {
            let allowed = words.get(id / 32).is_some_and(|word| (word >> (id % 32)) & 1 == 1);
            any |= allowed;
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any { Ok(()) } else { Err(Error::invalid("constraint: no token may come next")) }
    }

    /// A token was chosen.
    ///
    /// # Errors
    /// One that was not allowed.
    pub fn advance(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|e| Error::parse("constraint", said(&e)))
    }

    /// Whether the text is complete and nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }
}

impl crate::engine::Guide for Constraint {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        Constraint::restrict(self, logits)
    }

    fn advance(&mut self, token: u32) -> Result<()> {
        Constraint::advance(self, token)
    }

    fn is_complete(&self) -> bool {
        Constraint::is_complete(self)
    }
}
