//! A request that is being answered: its inputs, its sampler, and where its tokens go.

use super::request::{Event, Finish, Guide, PromptItem, Request, Usage};
use crate::{Choice, Lora, Sampler};
use candle_core::Tensor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::UnboundedSender;
use vela_nn::Result;

/// What is read at a position.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// A token.
    Token(u32),
    /// A row of one of the request's embeddings.
    Row(usize, usize),
}

/// A request between its arrival and its end.
pub struct Live {
    /// Per position, generated ones included.
    pub inputs: Vec<Input>,
    /// The embeddings of the prompt, `[n, width]` each.
    pub embeds: Vec<Tensor>,
    /// When it came, in nanoseconds.
    pub arrived: u64,
    /// When the last token was chosen.
    pub last: Option<u64>,
    /// So far.
    pub usage: Usage,
    /// Of these, what the handle on the answer sees of the prefix cache.
    pub cached: Arc<AtomicUsize>,
    /// What it is read through.
    pub adapter: Option<Arc<Lora>>,
    axes: Option<Vec<[u32; 3]>>,
    history: Vec<u32>,
    sampler: Sampler,
    guide: Option<Box<dyn Guide>>,
    limit: usize,
    stop: Vec<u32>,
    sender: UnboundedSender<Event>,
}

impl Live {
    /// A request that was checked; it generates at most `limit` tokens.
    pub fn new(request: Request, limit: usize, arrived: u64, sender: UnboundedSender<Event>) -> Result<Self> {
        let (mut inputs, mut embeds) = (Vec::new(), Vec::new());
        for item in request.prompt {
            match item {
                PromptItem::Token(id) => inputs.push(Input::Token(id)),
                PromptItem::Embeds { rows, .. } => {
                    inputs.extend((0..rows.dim(0)?).map(|row| Input::Row(embeds.len(), row)));
                    embeds.push(rows);
                }
            }
        }
        let token = |input: &Input| match input {
            Input::Token(id) => Some(*id),
            Input::Row(..) => None,
        };
        Ok(Self {
            history: inputs.iter().filter_map(token).collect(),
            usage: Usage { prompt_tokens: inputs.len(), ..Usage::default() },
            cached: Arc::default(),
            sampler: Sampler::new(&request.sampling, request.seed)?,
            guide: request.guide,
            adapter: request.adapter,
            axes: request.axes,
            limit: request.max_tokens.min(limit),
            stop: request.stop,
            last: None,
            inputs,
            embeds,
            arrived,
            sender,
        })
    }

    /// Whether its positions have three axes that differ.
    pub fn has_axes(&self) -> bool {
        self.axes.is_some()
    }

    /// Where a position lies on each axis. What is generated goes on from the furthest of the prompt.
    pub fn place(&self, at: usize) -> [u32; 3] {
        let Some(axes) = &self.axes else { return [at as u32; 3] };
        axes.get(at).copied().unwrap_or_else(|| {
            let furthest = axes.iter().flatten().max().copied().unwrap_or(0);
            [furthest.saturating_add((at + 1 - axes.len()) as u32); 3]
        })
    }

    /// So many more positions of the prompt were found in the prefix cache.
    pub fn found(&mut self, more: usize) {
        self.usage.cached_tokens += more;
        self.cached.store(self.usage.cached_tokens, Ordering::Release);
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Chooses the next token from its logits and sends it. Gives it, and why the generation ends if it does.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<(u32, Option<Finish>)> {
        if let Some(guide) = &mut self.guide {
            guide.restrict(logits)?;
        }
        let choice = self.sampler.next(logits, &self.history)?;
        let token = choice.token;
        self.usage.generated_tokens += 1;
        if self.stop.contains(&token) {
            return Ok((token, Some(Finish::Stop(token))));
        }
        self.history.push(token);
        self.inputs.push(Input::Token(token));
        self.send(choice);
        if let Some(guide) = &mut self.guide {
            guide.advance(token)?;
            if guide.is_complete() {
                return Ok((token, Some(Finish::Complete)));
            }
        }
        let full = self.usage.generated_tokens >= self.limit;
        Ok((token, full.then_some(Finish::Length)))
    }

    fn send(&self, choice: Choice) {
        // Nobody listening is noticed before the next step.
        let _ = self.sender.send(Event::Token(choice));
    }

    /// Says why it ended.
    pub fn end(self, finish: Finish) {
        let _ = self.sender.send(Event::End(finish, self.usage));
    }
}
