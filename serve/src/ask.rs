//! What is asked of a model, apart from how it came.

use serde_json::{Map, Value as Json};
use std::sync::Arc;
use vela_llm::{Lora, SamplingParams};

/// A piece of a turn.
#[derive(Clone, Debug)]
pub enum Source {
    /// Words.
    Text(String),
    /// A JPEG, PNG or WebP file, and the field that it stands in.
    Picture {
        /// The file's bytes.
        file: Arc<[u8]>,
        /// For error messages.
        field: String,
    },
}

/// One turn of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Words and pictures in order.
    pub parts: Vec<Source>,
    /// What else chat templates may read.
    pub extra: Map<String, Json>,
}

/// What the model reads.
#[derive(Clone, Debug)]
pub enum Input {
    /// A conversation.
    Chat {
        /// Its turns.
        turns: Vec<Said>,
        /// Tools that the model may call, in OpenAI's form.
        tools: Option<Json>,
    },
    /// A text to go on from.
    Text(String),
    /// The same as token ids.
    Tokens(Vec<u32>),
}

/// What the answer must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Form {
    /// Anything.
    #[default]
    Free,
    /// A JSON value that satisfies this schema.
    Schema(Json),
    /// A text that matches this regular expression.
    Regex(String),
}

/// One question.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What the model reads.
    pub input: Input,
    /// What its answer begins with; not given out again.
    pub opening: String,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Of the draws; without it, each question has its own.
    pub seed: Option<u64>,
    /// At most so many new tokens.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// What the answer must be.
    pub form: Form,
    /// How many answers.
    pub count: usize,
    /// What the model is adapted by.
    pub adapter: Option<Arc<Lora>>,
    /// Whether it will be asked what the answers looked at.
    pub attention: bool,
}

impl Ask {
    /// One greedy answer.
    pub fn new(input: Input) -> Self {
        Self {
            input,
            opening: String::new(),
            sampling: SamplingParams::default(),
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
            form: Form::Free,
            count: 1,
            adapter: None,
            attention: false,
        }
    }

    /// A question about pictures.
    pub fn about(pictures: impl IntoIterator<Item = (String, Vec<u8>)>, question: &str) -> Self {
        let picture = |(field, file): (String, Vec<u8>)| Source::Picture { file: file.into(), field };
        let mut parts: Vec<Source> = pictures.into_iter().map(picture).collect();
        parts.push(Source::Text(question.to_owned()));
        let turns = vec![Said { role: "user".to_owned(), parts, extra: Map::new() }];
        Self::new(Input::Chat { turns, tools: None })
    }
}
