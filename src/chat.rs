//! `vela chat`: a conversation with a text model, or one answer.

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::{Clock, MonotonicClock, unix_seconds};
use vela_llm::generate::{self, Finish, Options, Session, Written};
use vela_llm::speculative::{Draft, LookupDraft, ModelDraft};
use vela_llm::{Constraint, Grammars, Lora, Message, SamplingParams, TextModel, beam, model};
use vela_nn::threads;

/// Talk with a text model; answers stream to stdout, what they cost goes to stderr. Without --prompt it is a conversation.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or a GGUF file. An encoder-decoder (T5) takes each line by itself, as it is.
    #[arg(long)]
    model: PathBuf,
    /// A folder with a LoRA adapter of the model, as PEFT saves it.
    #[arg(long)]
    lora: Option<PathBuf>,
    /// Ask this and end.
    #[arg(long)]
    prompt: Option<String>,
    /// The system message.
    #[arg(long)]
    system: Option<String>,
    /// Go on from the prompt as it is, without the model's chat template.
    #[arg(long, requires = "prompt", conflicts_with = "system")]
    raw: bool,
    /// At most so many new tokens per answer.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Positions of prompt and answers together; 0: as many as the model was made for, at most 8192.
    #[arg(long, default_value_t = 0)]
    context: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Choose among so many of the likeliest tokens; 0 among all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Choose among tokens at least this fraction as likely as the likeliest.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Above 1: less of what was there already, prompt included.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Above 0: less of a token the more often it was generated.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Above 0: less of every token that was generated.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Of the draws; equal seeds give equal answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End the answer before this text; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// The answer is JSON that satisfies the schema in this file.
    #[arg(long, conflicts_with = "regex")]
    json_schema: Option<PathBuf>,
    /// The answer matches this regular expression.
    #[arg(long)]
    regex: Option<String>,
    /// A smaller model over the same tokens that guesses ahead.
    #[arg(long, conflicts_with = "lookup")]
    draft: Option<PathBuf>,
    /// Guess ahead, so many tokens at a time, that the text repeats itself.
    #[arg(long)]
    lookup: Option<usize>,
    /// Tokens that --draft guesses at a time.
    #[arg(long, default_value_t = 4)]
    draft_tokens: usize,
    /// Search with so many beams (no sampling, no stop strings, no streaming).
    #[arg(long, requires = "prompt", conflicts_with_all = ["draft", "lookup", "json_schema", "regex", "best_of", "stop",
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed",
        "logprobs"])]
    beams: Option<usize>,
    /// With --beams: above 0 favours longer answers.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    length_penalty: f32,
    /// Of so many answers give the likeliest.
    #[arg(long, requires = "prompt", conflicts_with_all = ["draft", "lookup"])]
    best_of: Option<usize>,
    /// With --best-of: give the answer whose last line most of them agree on instead.
    #[arg(long, requires = "best_of")]
    vote: bool,
    /// With --json: log-probabilities of the tokens and of so many alternatives.
    #[arg(long)]
    logprobs: Option<usize>,
    /// Print JSON, one line per answer.
    #[arg(long)]
    json: bool,
    /// Threads; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let count = if args.threads == 0 { threads::current() } else { args.threads };
    threads::with_threads(count, || talk(args))
}

fn talk(args: &Args) -> Result<()> {
    let mut chat = Chat::new(args)?;
    let Some(prompt) = &args.prompt else { return converse(&mut chat) };
    if args.raw {
        return chat.go_on(prompt);
    }
    chat.say(prompt)
}

/// Lines from stdin, each answered in turn; an error ends the turn, not the conversation.
fn converse(chat: &mut Chat) -> Result<()> {
    let person = std::io::stdin().is_terminal();
    if person {
        eprintln!("Ask away; an empty line or Ctrl-D ends, /reset begins anew.");
    }
    loop {
        if person {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(());
        }
        if line.trim() == "/reset" {
            chat.reset();
        } else if let Err(error) = chat.say(line.trim_end()) {
            if !person {
                return Err(error);
            }
            eprintln!("vela: {error:#}");
        }
    }
}

struct Chat<'a> {
    args: &'a Args,
    model: TextModel,
    session: Session,
    constraint: Option<Constraint>,
    draft: Option<Box<dyn Draft>>,
    options: Options,
    messages: Vec<Message>,
    clock: MonotonicClock,
}

impl<'a> Chat<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let mut model = model::load(&args.model)?;
        if model.reader.is_some() && (args.lora.is_some() || args.system.is_some()) {
            bail!(
                "an encoder-decoder reads one text and has no adapters: expected neither --system nor --lora"
            );
        }
        if let Some(dir) = &args.lora {
            let lora = Lora::load(dir, model.decoder.config())?;
            model.decoder = Arc::new(model.decoder.with_adapter(Arc::new(lora))?);
        }
        let context = if args.context == 0 { model.context.min(8192) } else { args.context };
        if context > model.context {
            bail!("--context: the model was made for {} positions, got {context}", model.context);
        }
        let sampling = SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            frequency_penalty: args.frequency_penalty,
            presence_penalty: args.presence_penalty,
            logprobs: args.logprobs,
        };
        sampling.check()?;
        let options = Options {
            max_tokens: args.max_tokens,
            sampling,
            seed: args.seed,
            stop_tokens: model.stop.clone(),
            stop_strings: args.stop.clone(),
        };
        let mut chat = Self {
            constraint: constraint(args, &model)?,
            draft: draft(args, &model, &options, context)?,
            session: model.session(context)?,
            args,
            model,
            options,
            messages: Vec::new(),
            clock: MonotonicClock::new(),
        };
        chat.reset();
        Ok(chat)
    }

    fn reset(&mut self) {
        self.messages = self.args.system.iter().map(|text| Message::new("system", text)).collect();
    }

    /// Goes on from a text as it is.
    fn go_on(&mut self, text: &str) -> Result<()> {
        let ids = self.model.tokenizer.encode(text)?;
        self.answer(&ids).map(|_| ())
    }

    /// One turn of the conversation; a failed one is forgotten.
    fn say(&mut self, text: &str) -> Result<()> {
        if self.model.reader.is_some() {
            return self.go_on(text);
        }
        self.messages.push(Message::new("user", text));
        let answered = self.model.prompt(&self.messages, Some(unix_seconds())).map_err(Into::into);
        match answered.and_then(|ids| self.answer(&ids)) {
            Ok(answer) => {
                self.messages.push(Message::new("assistant", answer));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn answer(&mut self, prompt: &[u32]) -> Result<String> {
        if let Some(beams) = self.args.beams {
            return self.search(prompt, beams);
        }
        let start = self.clock.now();
        let mut first = None;
        let written = match self.args.best_of {
            Some(count) => self.several(prompt, count)?,
            None => {
                let (clock, stream) = (&self.clock, !self.args.json);
                let mut show = |text: &str| {
                    first.get_or_insert_with(|| clock.now());
                    if stream {
                        print!("{text}");
                        // A reader that went away is noticed when the answer ends.
                        std::io::stdout().flush().ok();
                    }
                };
                let mut constraint = self.constraint.clone();
                let draft = self.draft.as_mut().map(|draft| draft.as_mut() as &mut dyn Draft);
                let (session, tokenizer) = (&mut self.session, &self.model.tokenizer);
                generate::write(
                    session,
                    tokenizer,
                    prompt,
                    &self.options,
                    draft,
                    constraint.as_mut(),
                    &mut show,
                )?
            }
        };
        let end = self.clock.now();
        let made = written.tokens.len();
        // The first token belongs to the prompt's time; what did not stream is timed as a whole.
        let (first, timed, since) = match first {
            Some(first) => (first, made.saturating_sub(1), first),
            None => (end, made, start),
        };
        let rate = timed as f64 / end.secs_since(since).max(1e-9);
        let to_first = first.secs_since(start);
        if self.args.json {
            println!("{}", self.as_json(&written, to_first, rate));
        } else {
            println!();
            let steps = written.steps;
            let cached = if steps.cached > 0 { format!(" ({} cached)", steps.cached) } else { String::new() };
            let guessed = match steps.drafted {
                0 => String::new(),
                drafted => format!("; {} of {drafted} guesses taken", steps.accepted),
            };
            let cut = if steps.finish == Finish::Length { "; cut off" } else { "" };
            eprintln!(
                "[{} prompt tokens{cached}, first token after {to_first:.2} s; {made} tokens, {rate:.1} per second{guessed}{cut}]",
                steps.prompt
            );
        }
        Ok(written.text)
    }

    fn several(&mut self, prompt: &[u32], count: usize) -> Result<Written> {
        let (session, tokenizer) = (&mut self.session, &self.model.tokenizer);
        let answers =
            generate::best_of(session, tokenizer, prompt, count, &self.options, self.constraint.as_ref())?;
        let chosen = match self.args.vote {
            true => generate::vote(&answers, last_line).map(|(answer, votes)| {
                eprintln!("[{votes} of {count} agree]");
                answer
            }),
            false => answers.first(),
        };
        let chosen = chosen.cloned().context("no answer came")?;
        if !self.args.json {
            print!("{}", chosen.text);
        }
        Ok(chosen)
    }

    fn search(&mut self, prompt: &[u32], beams: usize) -> Result<String> {
        if prompt.len() + self.args.max_tokens > self.session.context() {
            let (prompt, most, context) = (prompt.len(), self.args.max_tokens, self.session.context());
            bail!("{prompt} prompt tokens and {most} new ones are over the context of {context}");
        }
        let options = beam::BeamOptions {
            beams,
            max_tokens: self.args.max_tokens,
            length_penalty: self.args.length_penalty,
            stop_tokens: self.model.stop.clone(),
        };
        let found = match &self.model.reader {
            None => beam::search(&self.model.decoder, prompt, &options)?,
            Some(reader) => {
                beam::search_from(reader.decoder(), reader.read(prompt)?, &[reader.start()], &options)?
            }
        };
        let decode = |hypothesis: &beam::Hypothesis| self.model.tokenizer.decode(&hypothesis.tokens);
        let texts = found.iter().map(decode).collect::<vela_nn::Result<Vec<_>>>()?;
        let best = texts.first().cloned().unwrap_or_default();
        if self.args.json {
            let all = found.iter().zip(&texts);
            let all: Vec<Json> =
                all.map(|(h, text)| json!({"text": text, "logprob": h.logprob, "score": h.score})).collect();
            println!("{}", json!({"text": best, "hypotheses": all}));
        } else {
            println!("{best}");
        }
        Ok(best)
    }

    fn as_json(&self, written: &Written, to_first: f64, rate: f64) -> Json {
        let steps = written.steps;
        let mut out = json!({
            "text": written.text, "finish": steps.finish, "prompt_tokens": steps.prompt,
            "cached_tokens": steps.cached, "tokens": written.tokens.len(), "time_to_first_s": to_first,
            "tokens_per_s": rate, "passes": steps.passes,
        });
        if self.draft.is_some() {
            let rate = steps.accepted as f64 / (steps.drafted as f64).max(1.0);
            out["draft"] =
                json!({"guessed": steps.drafted, "taken": steps.accepted, "acceptance_rate": rate});
        }
        if self.args.logprobs.is_some() {
            let spelt = |id: u32| self.model.tokenizer.token(id).unwrap_or_default();
            let one = |(id, logprob): &(u32, f32)| json!({"token": spelt(*id), "id": id, "logprob": logprob});
            let token = |choice: &vela_llm::Choice| {
                let mut token = one(&(choice.token, choice.logprob.unwrap_or_default()));
                token["top"] = choice.top.iter().map(one).collect();
                token
            };
            out["logprobs"] = written.tokens.iter().map(token).collect();
        }
        out
    }
}

/// Where an answer that was reasoned out stands.
fn last_line(text: &str) -> String {
    text.trim().lines().next_back().unwrap_or_default().trim().to_lowercase()
}

fn constraint(args: &Args, model: &TextModel) -> Result<Option<Constraint>> {
    if args.json_schema.is_none() && args.regex.is_none() {
        return Ok(None);
    }
    let grammars = Grammars::new(&model.tokenizer, model.decoder.config().vocab, &model.stop)?;
    if let Some(expression) = &args.regex {
        return Ok(Some(grammars.regex(expression)?));
    }
    let Some(path) = &args.json_schema else { return Ok(None) };
    let schema: Json = serde_json::from_str(&read(path)?).with_context(|| path.display().to_string())?;
    let made = grammars.json_schema(&schema).with_context(|| path.display().to_string())?;
    Ok(Some(made))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn draft(
    args: &Args,
    model: &TextModel,
    options: &Options,
    context: usize,
) -> Result<Option<Box<dyn Draft>>> {
    if let Some(most) = args.lookup {
        return Ok(Some(Box::new(LookupDraft::new(most))));
    }
    let Some(path) = &args.draft else { return Ok(None) };
    let small = model::load(path)?;
    if !small.tokenizer.same_tokens(&model.tokenizer) {
        bail!("--draft: expected a model with the same tokens, got another vocabulary");
    }
    let session = Session::new(small.decoder, context)?;
    let vocab = model.decoder.config().vocab;
    let made = ModelDraft::new(session, vocab, &options.sampling, options.seed, args.draft_tokens)?;
    Ok(Some(Box::new(made)))
}
