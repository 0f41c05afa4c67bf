//! An answer as text, as it comes: whole characters, without the texts that end it.

use crate::{Fault, Service};
use std::sync::Arc;
use vela_embodiment::Stamp;
use vela_fusion::ChatPrompt;
use vela_llm::engine::{Answer, Event, Finish as Ended, Usage};
use vela_llm::generate::StopStrings;
use vela_llm::tokenizer::TextStream;
use vela_llm::{Choice, Lora};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model was done, or a text that ends it came.
    Stop,
    /// As long as it may be.
    Length,
}

impl Finish {
    /// OpenAI's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A token was chosen.
    Token {
        /// The text that it completes; may be empty.
        text: String,
        /// The token.
        choice: Choice,
    },
    /// The end.
    End {
        /// What was held back.
        text: String,
        /// Why.
        finish: Finish,
        /// How much it was.
        usage: Usage,
    },
}

/// A question and its answer as the decoder read them: what the attention of the answer is worked out of.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The question.
    pub prompt: Arc<ChatPrompt>,
    /// The answer, so far.
    pub answer: Vec<u32>,
    /// What the model is adapted by.
    pub adapter: Option<Arc<Lora>>,
}

/// One answer. Dropping it cancels it.
#[derive(Debug)]
pub struct Reply {
    answer: Option<Answer>,
    /// Which of the answers to the same question.
    pub index: usize,
    stream: TextStream,
    watch: StopStrings,
    usage: Usage,
    arrived: Stamp,
    stopped: bool,
    reading: Option<Reading>,
}

impl Reply {
    pub(crate) fn new(answer: Answer, index: usize, prompt: usize, stop: &[String], arrived: Stamp) -> Self {
        let usage = Usage { prompt_tokens: prompt, ..Usage::default() };
        let (stream, watch) = (TextStream::new(), StopStrings::new(stop));
        Self { answer: Some(answer), index, stream, watch, usage, arrived, stopped: false, reading: None }
    }

    /// Keeps what is needed to say what the answer looked at.
    pub(crate) fn keeping(self, reading: Option<Reading>) -> Self {
        Self { reading, ..self }
    }

    /// The question and the answer so far, if its attention was asked for; once.
    pub fn take_reading(&mut self) -> Option<Reading> {
        self.reading.take()
    }

    /// The next piece; nothing after the end or a fault.
    pub async fn next(&mut self, service: &Service) -> Option<Result<Piece, Fault>> {
        if let Some(end) = self.stopped() {
            return Some(Ok(end));
        }
        let event = self.answer.as_mut()?.next().await;
        Some(self.take(service, event))
    }

    /// The same, waiting on this thread (not inside an async task).
    pub fn next_blocking(&mut self, service: &Service) -> Option<Result<Piece, Fault>> {
        if let Some(end) = self.stopped() {
            return Some(Ok(end));
        }
        let event = self.answer.as_mut()?.next_blocking();
        Some(self.take(service, event))
    }

    /// The end after a text that ends the answer.
    fn stopped(&mut self) -> Option<Piece> {
        let stopped = std::mem::take(&mut self.stopped);
        stopped.then(|| Piece::End { text: String::new(), finish: Finish::Stop, usage: self.usage })
    }

    fn take(&mut self, service: &Service, event: Option<Event>) -> Result<Piece, Fault> {
        let piece = match event {
            Some(Event::Token(choice)) => return self.token(service, choice),
            Some(Event::End(finish, usage)) => self.end(finish, usage),
            None => Err(Fault::unavailable("the engine has ended")),
        };
        self.answer = None;
        let spent = service.clock().now().0.saturating_sub(self.arrived.0);
        service.tallies().answered(spent);
        piece
    }

    fn token(&mut self, service: &Service, choice: Choice) -> Result<Piece, Fault> {
        self.usage.generated_tokens += 1;
        if let Some(answer) = &self.answer {
            self.usage.cached_tokens = answer.cached_tokens();
        }
        if let Some(reading) = &mut self.reading {
            reading.answer.push(choice.token);
        }
        if self.usage.generated_tokens == 1 && self.index == 0 {
            service.tallies().first_token(service.clock().now().0.saturating_sub(self.arrived.0));
        }
        let text = self.stream.push(service.model().tokenizer(), choice.token).map_err(Fault::internal)?;
        let (text, stopped) = self.watch.push(&text);
        if stopped {
            // Nothing more is wanted.
            (self.answer, self.stopped) = (None, true);
            service.tallies().answered(service.clock().now().0.saturating_sub(self.arrived.0));
        }
        Ok(Piece::Token { text, choice })
    }

    fn end(&mut self, finish: Ended, usage: Usage) -> Result<Piece, Fault> {
        let (mut text, stopped) = self.watch.push(&self.stream.finish());
        if !stopped {
            text += &self.watch.finish();
        }
        let finish = match finish {
            Ended::Stop(_) | Ended::Complete => Finish::Stop,
            Ended::Length if stopped => Finish::Stop,
            Ended::Length => Finish::Length,
            Ended::Closed => return Err(Fault::unavailable("the server is shutting down")),
            Ended::Failed(why) => return Err(Fault::internal(why)),
        };
        self.usage = usage;
        Ok(Piece::End { text, finish, usage })
    }
}
