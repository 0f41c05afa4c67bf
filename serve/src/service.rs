//! A model behind the batching engine: questions in, answers as they come.

use crate::ask::{Ask, Form, Input, Said, Source};
use crate::links::{Fetching, Links};
use crate::metrics::Tallies;
use crate::reply::Reading;
use crate::{Fault, Reply};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use vela_embodiment::{Clock, unix_seconds};
use vela_fusion::{ChatModel, ChatPrompt, Part, PictureAttention, PictureLimits, Turn};
use vela_llm::engine::{Engine, EngineConfig, Refusal};
use vela_llm::{Constraint, Grammars, Lora, RenderOptions};

/// How a service is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// Of the engine.
    pub engine: EngineConfig,
    /// What a picture may be.
    pub picture: PictureLimits,
    /// Pictures in one question.
    pub max_pictures: usize,
    /// Answers to one question.
    pub max_choices: usize,
    /// New tokens of one answer.
    pub max_tokens: usize,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            picture: PictureLimits { bytes: 20 << 20, pixels: 32_000_000 },
            max_pictures: 32,
            max_choices: 16,
            max_tokens: 4096,
        }
    }
}

/// A model that answers; may be shared between threads.
pub struct Service {
    model: ChatModel,
    name: String,
    adapters: Vec<(String, Arc<Lora>)>,
    links: Option<Links>,
    engine: Engine,
    config: ServiceConfig,
    grammars: OnceLock<Result<Grammars, String>>,
    clock: Arc<dyn Clock>,
    tallies: Tallies,
    asked: AtomicU64,
    /// Held while the attention of an answer is worked out.
    looking: Mutex<()>,
    started: i64,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Starts the engine over a model that goes by `name`.
    ///
    /// # Errors
    /// What the engine refuses: a model that it cannot run, more memory than can be had.
    pub fn start(
        model: ChatModel,
        name: &str,
        config: ServiceConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Fault> {
        let mut engine = config.engine.clone();
        engine.context = engine.context.min(model.context());
        let nanos = clock.clone();
        let engine = Engine::start(model.decoder().clone(), engine, Arc::new(move || nanos.now().0))
            .map_err(Fault::internal)?;
        let (grammars, tallies) = (OnceLock::new(), Tallies::default());
        let (name, asked, started) = (name.to_owned(), AtomicU64::new(0), unix_seconds());
        let (adapters, links, looking) = (Vec::new(), None, Mutex::default());
        Ok(Self {
            model,
            name,
            adapters,
            links,
            engine,
            config,
            grammars,
            clock,
            tallies,
            asked,
            looking,
            started,
        })
    }

    /// The same with adapters of the model, each asked by a name of its own.
    ///
    /// # Errors
    /// A name that is another's already.
    pub fn with_adapters(mut self, adapters: Vec<(String, Arc<Lora>)>) -> Result<Self, Fault> {
        for (name, adapter) in adapters {
            if name.is_empty() || self.names().any(|other| other == name) {
                return Err(Fault::invalid(
                    "model",
                    format!("expected a name of its own for each, got '{name}'"),
                ));
            }
            self.adapters.push((name, adapter));
        }
        Ok(self)
    }

    /// The same with pictures fetched by `links`.
    pub fn with_links(self, links: Links) -> Self {
        Self { links: Some(links), ..self }
    }

    /// What it goes by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name, then its adapters'.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.adapters.iter().map(|(name, _)| name.as_str()))
    }

    /// The adapter of this name.
    pub fn adapter(&self, name: &str) -> Option<Arc<Lora>> {
        self.adapters.iter().find(|(other, _)| other == name).map(|(_, adapter)| adapter.clone())
    }

    /// The pictures that one question may fetch.
    pub fn fetching(&self) -> Fetching<'_> {
        Fetching::new(self.links.as_ref(), self.config.max_pictures)
    }

    /// The model.
    pub fn model(&self) -> &ChatModel {
        &self.model
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How it was set up.
    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// What it counts.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// The time that it goes by.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Seconds since 1970 at which it started.
    pub fn started(&self) -> i64 {
        self.started
    }

    /// A name that no other answer of this service has.
    pub fn fresh_id(&self, kind: &str) -> String {
        format!("{kind}-{:x}-{:x}", self.started, self.asked.fetch_add(1, Ordering::Relaxed))
    }

    /// Reads the pictures and hands the question to the engine; one reply for each answer that was asked for. Dropping
    /// a reply cancels it. Works on this thread: not inside an async task.
    ///
    /// # Errors
    /// The client's mistakes (400), too many at once (429), shutting down (503).
    pub fn begin(&self, ask: &Ask) -> Result<Vec<Reply>, Fault> {
        let arrived = self.clock.now();
        if !(1..=self.config.max_choices).contains(&ask.count) {
            let (most, got) = (self.config.max_choices, ask.count);
            return Err(Fault::invalid("n", format!("expected 1 to {most}, got {got}")));
        }
        let constraint = self.constraint(&ask.form)?;
        let prompt = self.prompt(ask)?;
        if ask.attention && prompt.pictures.iter().any(|seen| seen.places.is_none()) {
            let message = "this model's image tokens have no places in the picture";
            return Err(Fault::invalid("vela.attention", message));
        }
        let adapter = ask.adapter.clone();
        let kept = ask.attention.then(|| {
            let prompt = Arc::new(prompt.clone());
            Reading { prompt, answer: Vec::new(), adapter: adapter.clone() }
        });
        let seed = ask.seed.unwrap_or_else(|| self.asked.fetch_add(1, Ordering::Relaxed));
        let most = ask.max_tokens.unwrap_or(self.config.max_tokens).min(self.config.max_tokens);
        let mut replies = Vec::with_capacity(ask.count);
        for index in 0..ask.count {
            let mut request = prompt.clone().request(most, self.model.stop());
            request.sampling = ask.sampling.clone();
            request.seed = seed.wrapping_add(index as u64);
            request.adapter = adapter.clone();
            request.guide = constraint.clone().map(|constraint| Box::new(constraint) as Box<_>);
            let positions = request.positions();
            let answer = self.engine.submit(request).map_err(refused)?;
            let reply = Reply::new(answer, index, positions, &ask.stop, arrived);
            replies.push(reply.keeping(kept.clone()));
        }
        Ok(replies)
    }

    /// What an answer looked at in each picture of its question. Works on this thread, one answer at a time: not inside
    /// an async task.
    ///
    /// # Errors
    /// Ours, if any.
    pub fn attention(&self, reading: &Reading) -> Result<Vec<PictureAttention>, Fault> {
        let _turn = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let adapter = reading.adapter.as_deref();
        self.model.attention(&reading.prompt, &reading.answer, adapter).map_err(Fault::internal)
    }

    fn prompt(&self, ask: &Ask) -> Result<ChatPrompt, Fault> {
        let mut prompt = match &ask.input {
            Input::Tokens(ids) => ChatPrompt::of_tokens(ids),
            Input::Text(text) => {
                self.check_length(text.len(), "prompt")?;
                let ids = self.model.tokenizer().encode(text).map_err(|e| Fault::invalid("prompt", e))?;
                ChatPrompt::of_tokens(&ids)
            }
            Input::Chat { turns, tools } => self.conversation(turns, tools.clone())?,
        };
        if !ask.opening.is_empty() {
            let more = self.model.tokenizer().encode_rendered(&ask.opening).map_err(Fault::internal)?;
            prompt.items.extend(ChatPrompt::of_tokens(&more).items);
            if let Some(axes) = &mut prompt.axes {
                let next = axes.iter().flatten().max().map_or(0, |most| most + 1);
                axes.extend((0..more.len() as u32).map(|at| [next + at; 3]));
            }
        }
        Ok(prompt)
    }

    fn conversation(&self, turns: &[Said], tools: Option<serde_json::Value>) -> Result<ChatPrompt, Fault> {
        let is_picture = |part: &&Source| matches!(part, Source::Picture { .. });
        let pictures = turns.iter().flat_map(|turn| &turn.parts).filter(is_picture).count();
        if pictures > self.config.max_pictures {
            let most = self.config.max_pictures;
            return Err(Fault::invalid(
                "messages",
                format!("expected at most {most} pictures, got {pictures}"),
            ));
        }
        let length = |part: &Source| match part {
            Source::Text(text) => text.len(),
            Source::Picture { .. } => 0,
        };
        self.check_length(turns.iter().flat_map(|turn| &turn.parts).map(length).sum(), "messages")?;
        let mut said = Vec::with_capacity(turns.len());
        for turn in turns {
            let mut parts = Vec::with_capacity(turn.parts.len());
            for part in &turn.parts {
                parts.push(match part {
                    Source::Text(text) => Part::Text(text.clone()),
                    Source::Picture { file, field } => Part::Picture(self.look(file, field)?),
                });
            }
            said.push(Turn { role: turn.role.clone(), parts, extra: turn.extra.clone() });
        }
        let now = Some(unix_seconds());
        let options = RenderOptions { add_generation_prompt: true, tools, now, ..RenderOptions::default() };
        self.model.prompt(&said, &options).map_err(|e| Fault::invalid("messages", e))
    }

    fn look(&self, file: &[u8], field: &str) -> Result<Arc<vela_fusion::Seen>, Fault> {
        let start = self.clock.now();
        let before = self.model.picture_stats().encoded;
        let seen = self.model.look(file, &self.config.picture).map_err(|e| Fault::invalid(field, e))?;
        if self.model.picture_stats().encoded > before {
            self.tallies.picture(self.clock.now().0.saturating_sub(start.0));
        }
        Ok(seen)
    }

    /// So many bytes of text cannot fit, whatever their tokens: said before these are counted.
    fn check_length(&self, bytes: usize, field: &str) -> Result<(), Fault> {
        let longest = self.engine.longest();
        if bytes <= longest.saturating_mul(64) {
            return Ok(());
        }
        let message = format!("{bytes} bytes of text do not fit into a context of {longest} tokens");
        Err(Fault { code: Some("context_length_exceeded"), ..Fault::invalid(field, message) })
    }

    fn constraint(&self, form: &Form) -> Result<Option<Constraint>, Fault> {
        let grammars = || {
            let vocab = self.model.decoder().config().vocab;
            let make =
                || Grammars::new(self.model.tokenizer(), vocab, self.model.stop()).map_err(|e| e.to_string());
            self.grammars.get_or_init(make).as_ref().map_err(|e| Fault::invalid("response_format", e))
        };
        let made = match form {
            Form::Free => return Ok(None),
            Form::Schema(schema) => grammars()?.json_schema(schema),
            Form::Regex(expression) => grammars()?.regex(expression),
        };
        made.map(Some).map_err(|e| Fault::invalid("response_format", e))
    }
}

fn refused(refusal: Refusal) -> Fault {
    match refusal {
        Refusal::Busy { .. } => Fault::busy(refusal),
        Refusal::Closed => Fault::unavailable(refusal),
        Refusal::Invalid(error) => {
            let message = error.to_string();
            let long = message.starts_with("prompt: expected at most");
            Fault { code: long.then_some("context_length_exceeded"), ..Fault::invalid("", message) }
        }
    }
}
