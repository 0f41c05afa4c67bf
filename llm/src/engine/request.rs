//! What is asked of the engine, and what comes back.

use super::prefix::Key;
use crate::{Choice, DecoderConfig, Lora, SamplingParams};
use candle_core::{DType, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use vela_nn::{Error, Result, hash_of};

/// A piece of a prompt.
#[derive(Clone, Debug)]
pub enum PromptItem {
    /// A token.
    Token(u32),
    /// Rows that are embeddings already: a picture's.
    Embeds {
        /// A hash of what they were made from: equal hash, equal rows.
        hash: u128,
        /// `[n, width]`, float32.
        rows: Tensor,
    },
}

/// Narrows the choice of tokens, one sequence long: a schema, a grammar.
pub trait Guide: Send {
    /// Sets the logits of tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// No token may come next.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// A token was chosen.
    fn advance(&mut self, token: u32) -> Result<()>;

    /// Whether the text is complete and nothing may follow.
    fn is_complete(&self) -> bool;
}

/// One generation.
pub struct Request {
    /// What is read.
    pub prompt: Vec<PromptItem>,
    /// The first so many positions see each other wholly (a prefix mask, as PaliGemma has it); 0 for causal attention.
    pub whole: usize,
    /// Where the prompt's positions lie in time, height and width, one for each, if the model has three axes
    /// (Qwen2-VL). They must follow from the prompt's content. Without them, positions count up.
    pub axes: Option<Vec<[u32; 3]>>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Of the draws. Equal seeds give equal tokens, whatever else runs.
    pub seed: u64,
    /// At most so many new tokens.
    pub max_tokens: usize,
    /// Tokens that end it. They are not sent.
    pub stop: Vec<u32>,
    /// Narrows the choice.
    pub guide: Option<Box<dyn Guide>>,
    /// What the decoder's matrices are adapted by for this request, in place of the decoder's own adapter.
    pub adapter: Option<Arc<Lora>>,
}

impl Request {
    /// Greedy, from tokens alone.
    pub fn new(tokens: &[u32], max_tokens: usize) -> Self {
        Self {
            prompt: tokens.iter().copied().map(PromptItem::Token).collect(),
            whole: 0,
            axes: None,
            sampling: SamplingParams::default(),
            seed: 0,
            max_tokens,
            stop: Vec::new(),
            guide: None,
            adapter: None,
        }
    }

    /// Positions of the prompt.
    pub fn positions(&self) -> usize {
        let rows = |item: &PromptItem| match item {
            PromptItem::Token(_) => 1,
            PromptItem::Embeds { rows, .. } => rows.dims().first().copied().unwrap_or(0),
        };
        self.prompt.iter().map(rows).sum()
    }

    /// Refuses what a decoder of `config` cannot read.
    pub(super) fn check(&self, config: &DecoderConfig) -> Result<()> {
        let (vocab, width) = (config.vocab, config.width);
        self.sampling.check()?;
        if let Some(adapter) = &self.adapter {
            adapter.check(config)?;
        }
        if self.positions() == 0 {
            return Err(Error::invalid("prompt: expected at least one token, got none"));
        }
        if self.max_tokens == 0 {
            return Err(Error::invalid("max_tokens: expected at least 1, got 0"));
        }
        if self.whole > self.positions() {
            let (whole, all) = (self.whole, self.positions());
            return Err(Error::invalid(format!("prefix: expected at most the {all} positions, got {whole}")));
        }
        if let Some(axes) = &self.axes
            && axes.len() != self.positions()
        {
            let (got, all) = (axes.len(), self.positions());
            return Err(Error::invalid(format!("axes: expected one for each of {all} positions, got {got}")));
        }
        for item in &self.prompt {
            match item {
                PromptItem::Token(id) if *id as usize >= vocab => {
                    return Err(Error::invalid(format!(
                        "prompt: expected token ids below {vocab}, got {id}"
                    )));
                }
                PromptItem::Token(_) => {}
                PromptItem::Embeds { rows, .. } => {
                    if !matches!(rows.dims(), [n, w] if *n > 0 && *w == width) || rows.dtype() != DType::F32 {
                        let expected = format!("[n, {width}] in float32, n at least 1");
                        return Err(Error::shape("prompt embeddings", expected, rows.dims()));
                    }
                    if !rows.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                        return Err(Error::invalid("prompt embeddings: expected finite numbers"));
                    }
                }
            }
        }
        Ok(())
    }

    /// What stands at each position, for the prefix cache. Positions that see each other wholly depend on all of them.
    pub(super) fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::with_capacity(self.positions());
        for item in &self.prompt {
            match item {
                PromptItem::Token(id) => keys.push(Key::Token(*id)),
                PromptItem::Embeds { hash, rows } => {
                    let count = rows.dims().first().copied().unwrap_or(0) as u32;
                    keys.extend((0..count).map(|row| Key::Row { hash: *hash, row }));
                }
            }
        }
        let whole = self.whole.min(keys.len());
        if whole > 0 {
            let text = format!("wholly {:?}", &keys[..whole]);
            let hash = short_hash(&text);
            for (row, key) in keys[..whole].iter_mut().enumerate() {
                *key = Key::Row { hash, row: row as u32 };
            }
        }
        // Whatever follows reads the first position: with another adapter, nothing is the same.
        if let (Some(adapter), Some(first)) = (&self.adapter, keys.first_mut()) {
            let text = format!("adapted by {:x} {first:?}", adapter.hash());
            *first = Key::Row { hash: short_hash(&text), row: 0 };
        }
        keys
    }
}

fn short_hash(text: &str) -> u128 {
    u128::from_str_radix(&hash_of(text.as_bytes())[..32], 16).unwrap_or_default()
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// As many as may wait do already.
    #[error("busy: {in_flight} requests are running or waiting already")]
    Busy {
        /// Requests running or waiting.
        in_flight: usize,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    Closed,
    /// The request cannot be answered by this model.
    #[error("{0}")]
    Invalid(#[from] Error),
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// This stop token was chosen.
    Stop(u32),
    /// The guide says that the text is complete.
    Complete,
    /// As many tokens as were asked for, or as the context or the cache hold.
    Length,
    /// The engine was closed.
    Closed,
    /// It went wrong; why.
    Failed(String),
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Positions of the prompt.
    pub prompt_tokens: usize,
    /// Of those, found in the prefix cache.
    pub cached_tokens: usize,
    /// Chosen, a stop token included.
    pub generated_tokens: usize,
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was chosen.
    Token(Choice),
    /// The end; nothing comes after.
    End(Finish, Usage),
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Answer {
    pub(super) events: UnboundedReceiver<Event>,
    pub(super) cached: Arc<AtomicUsize>,
}

/// All of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// What was chosen, in order.
    pub choices: Vec<Choice>,
    /// Why it ended.
    pub finish: Finish,
    /// How much it was.
    pub usage: Usage,
}

impl Completion {
    /// The token ids.
    pub fn tokens(&self) -> Vec<u32> {
        self.choices.iter().map(|choice| choice.token).collect()
    }
}

impl Answer {
    /// Positions of the prompt that were found in the prefix cache; known from the first token on.
    pub fn cached_tokens(&self) -> usize {
        self.cached.load(Ordering::Acquire)
    }

    /// The next event; none after the end.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event, waiting on this thread (not inside an async task).
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// The next event if there is one already; an error says that none will come.
    pub fn try_next(&mut self) -> std::result::Result<Option<Event>, Finish> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Finish::Closed),
        }
    }

    /// Waits for the end on this thread.
    pub fn wait(mut self) -> Completion {
        let mut choices = Vec::new();
        loop {
            match self.next_blocking() {
                Some(Event::Token(choice)) => choices.push(choice),
                Some(Event::End(finish, usage)) => return Completion { choices, finish, usage },
                None => return Completion { choices, finish: Finish::Closed, usage: Usage::default() },
            }
        }
    }
}
