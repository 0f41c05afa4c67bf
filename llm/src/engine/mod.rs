//! Many requests at once through one decoder: paged cache, prefix cache, continuous batching (Yu et al., Orca, OSDI 2022).
//!
//! [`Engine::start`] starts a thread that owns the cache. [`Engine::submit`] gives an [`Answer`], a stream of events;
//! dropping it cancels. Each step of the thread is one forward pass over a token of every sequence that generates and
//! chunks of prompts. A request's tokens do not depend on what else runs. What is not here: text (tokens only), HTTP,
//! any clock (the caller brings one).

mod live;
pub mod metrics;
pub mod pool;
pub mod prefix;
pub mod request;
pub mod schedule;
#[cfg(test)]
mod schedule_tests;
mod worker;

pub use metrics::{Histogram, Metrics};
pub use prefix::{BLOCK, Key};
pub use request::{Answer, Completion, Event, Finish, Guide, PromptItem, Refusal, Request, Usage};
pub use vela_nn::paged::PagedKind;

use crate::Decoder;
use crate::config::{DecoderConfig, Positions};
use live::Live;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use vela_nn::paged::PagedStore;
use vela_nn::{Error, Result, RopeScaling, threads};

/// Nanoseconds on a clock that never goes back.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How an engine is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Memory of the cache, in bytes.
    pub cache_bytes: usize,
    /// How keys and values are kept.
    pub kind: PagedKind,
    /// Requests that run at once.
    pub max_running: usize,
    /// Requests that wait beyond those; one more is refused as busy.
    pub max_waiting: usize,
    /// Positions in one forward pass. While some generate, prompts get a quarter: what they may delay the others by.
    pub step_tokens: usize,
    /// Positions that the model was made for, prompt and generated tokens together. Held to what the model can place.
    pub context: usize,
    /// Whether prefixes are remembered and shared.
    pub prefix_cache: bool,
    /// Threads of the kernels; 0 for the process's own setting.
    pub threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 1 << 30,
            kind: PagedKind::F32,
            max_running: 16,
            max_waiting: 64,
            step_tokens: 256,
            context: 8192,
            prefix_cache: true,
            threads: 0,
        }
    }
}

enum Message {
    /// A request, and what stands at its positions.
    Submit { live: Box<Live>, keys: Vec<Key>, whole: usize },
    /// Finish what there is, then end.
    Drain,
    /// End now.
    Stop,
}

/// What the handle and the thread both see.
struct Shared {
    metrics: Mutex<Metrics>,
    /// Requests running or waiting.
    in_flight: AtomicUsize,
}

impl Shared {
    fn metrics<T>(&self, with: impl FnOnce(&mut Metrics) -> T) -> T {
        with(&mut self.metrics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether one more may come in.
    fn enter(&self, most: usize) -> std::result::Result<(), usize> {
        let more = |n: usize| (n < most).then_some(n + 1);
        self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map(|_| ())
    }

    fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A handle on the engine; may be shared between threads. Dropping it ends the engine at once; [`Engine::drain`] lets it
/// finish.
pub struct Engine {
    messages: Mutex<Sender<Message>>,
    closed: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
    config: EngineConfig,
    clock: Clock,
    model: DecoderConfig,
    /// Positions that a sequence may have.
    longest: usize,
}

impl Engine {
    /// Reserves the cache and starts the thread. `decoder` must have an output projection.
    ///
    /// # Errors
    /// A cache budget that holds no block, or is more than can be had; a decoder that reads what an encoder has read; the
    /// system refuses a thread.
    pub fn start(decoder: Arc<Decoder>, config: EngineConfig, clock: Clock) -> Result<Self> {
        let of = decoder.config();
        of.reads_alone()?;
        let shape = of.cache_shape(config.kind);
        let model = of.clone();
        let context = context(of, config.context)?;
        let blocks = config.cache_bytes / shape.block_bytes().max(1);
        if blocks == 0 || context < 2 {
            let (least, got) = (shape.block_bytes(), config.cache_bytes);
            return Err(Error::invalid(format!(
                "engine: expected at least {least} bytes of cache (a block of {BLOCK} positions) and a context of 2, got \
                 {got} and {context}"
            )));
        }
        let store = PagedStore::new(shape, blocks)?;
        let metrics =
            Metrics { blocks, free_blocks: blocks, block_bytes: shape.block_bytes(), ..Metrics::default() };
        let shared = Arc::new(Shared { metrics: Mutex::new(metrics), in_flight: AtomicUsize::new(0) });
        let (sender, receiver) = channel();
        let worker = worker::Worker::new(decoder, store, &config, receiver, shared.clone(), clock.clone());
        let count = config.threads;
        let run = move || {
            if count == 0 { worker.run() } else { threads::with_threads(count, || worker.run()) }
        };
        let thread = std::thread::Builder::new()
            .name("vela-engine".to_owned())
            .spawn(run)
            .map_err(|e| Error::invalid(format!("engine: no thread: {e}")))?;
        Ok(Self {
            messages: Mutex::new(sender),
            closed: AtomicBool::new(false),
            thread: Mutex::new(Some(thread)),
            shared,
            clock,
            model,
            longest: context.min(blocks * BLOCK),
            config,
        })
    }

    /// How it was set up.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Positions that a request may have, prompt and generated tokens together: the context, or what the cache holds.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Hands a request over. Its answer ends with `Length` where the context or the cache ends.
    ///
    /// # Errors
    /// Busy, closed, or a request that this model cannot answer.
    pub fn submit(&self, request: Request) -> std::result::Result<Answer, Refusal> {
        request.check(&self.model)?;
        if request.axes.is_some() && self.model.rope.sections.is_none() {
            return Err(Error::invalid("axes: this model's positions have one axis").into());
        }
        let prompt = request.positions();
        if prompt >= self.longest {
            let most = self.longest - 1;
            return Err(
                Error::invalid(format!("prompt: expected at most {most} tokens, got {prompt}")).into()
            );
        }
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        let (keys, whole) = (request.keys(), request.whole);
        // The last token is never read: it needs no place.
        let live = Live::new(request, self.longest - prompt, (self.clock)(), sender)?;
        let cached = live.cached.clone();
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        let most = self.config.max_running.max(1) + self.config.max_waiting;
        if let Err(in_flight) = self.shared.enter(most) {
            self.shared.metrics(|m| m.refused += 1);
            return Err(Refusal::Busy { in_flight });
        }
        if messages.send(Message::Submit { live: Box::new(live), keys, whole }).is_err() {
            self.shared.leave();
            return Err(Refusal::Closed);
        }
        self.shared.metrics(|m| {
            m.requests += 1;
            m.prompt_tokens += prompt as u64;
        });
        Ok(Answer { events, cached })
    }

    /// The state after the last step.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics(|m| m.clone())
    }

    /// Takes no more requests, waits on this thread until those that run or wait are answered, and ends the engine's.
    pub fn drain(&self) {
        self.close(Message::Drain);
    }

    /// Takes no more requests, ends those that run or wait, and ends the thread; cuts a drain short.
    pub fn stop(&self) {
        self.close(Message::Stop);
    }

    fn close(&self, message: Message) {
        {
            let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            self.closed.store(true, Ordering::Release);
            // An error says that the thread has ended already.
            let _ = messages.send(message);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// The longest sequence of which every part reads the same whatever comes after: a rotary embedding that stretches with
/// the length would have to be worked out again for all that is cached.
fn context(of: &DecoderConfig, wanted: usize) -> Result<usize> {
    if of.memory_width.is_some() {
        return Err(Error::invalid(
            "engine: expected a decoder-only model, got one that reads an encoder's memory",
        ));
    }
    match (of.positions, of.rope.scaling) {
        (Positions::Rotary, RopeScaling::Dynamic { original_positions, .. }) => {
            Ok(wanted.min(original_positions))
        }
        (Positions::Rotary, _) => Ok(wanted),
        (Positions::Learned { count, .. }, _) => Ok(wanted.min(count)),
        (Positions::Relative { .. }, _) => {
            Err(Error::invalid("engine: positions as a bias on the scores are not supported"))
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
