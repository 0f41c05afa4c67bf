//! OpenAI's form of questions and answers: requests read field by field, answers written whole or in chunks.

pub mod chat;
pub mod completions;
pub mod fields;
pub mod messages;
pub mod sampling;
pub mod tools;
pub mod write;

pub use tools::{ToolStyle, Tools};

use crate::Ask;

/// Which of the two endpoints a question came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// A request as it was read.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its form.
    pub kind: Kind,
    /// The questions: one, or one for each prompt of `/v1/completions`.
    pub asks: Vec<Ask>,
    /// Whether the answer comes in chunks.
    pub stream: bool,
    /// Whether chunks end with the usage.
    pub include_usage: bool,
    /// Tools that the model may call.
    pub tools: Option<Tools>,
    /// What the model was asked by.
    pub model: String,
}
