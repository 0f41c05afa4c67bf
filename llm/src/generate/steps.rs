//! The loop of generation, with or without a draft that runs ahead.
//!
//! Each step reads what is not read yet together with what the draft guesses, then takes the guesses one by one as far as
//! they hold. Without a draft that is plain decoding.

use super::Session;
use crate::constrain::Constraint;
use crate::speculative::Draft;
use crate::{Choice, Sampler, SamplingParams};
use serde::Serialize;
use vela_nn::{Error, Result};

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// At most so many new tokens; the context may end it earlier.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Of the draws.
    pub seed: u64,
    /// Tokens that end it; they are not given out.
    pub stop_tokens: Vec<u32>,
    /// Texts that end it; they are not given out ([`super::write`] only).
    pub stop_strings: Vec<String>,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model was done: a stop token, a stop text, or a constraint that nothing can follow.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The caller wanted no more.
    Caller,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, tokens that were in the session already.
    pub cached: usize,
    /// Forward passes, that of the prompt included.
    pub passes: usize,
    /// Tokens that the draft guessed.
    pub drafted: usize,
    /// Of these, tokens that were taken.
    pub accepted: usize,
}

/// Generates after `prompt`, from what `session` has read of it. `say` hears each new token and may end the run by
/// answering false.
///
/// # Errors
/// A prompt that is empty, has ids out of range or fills the context; a constraint that nothing satisfies.
pub fn run(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    draft: Option<&mut dyn Draft>,
    constraint: Option<&mut Constraint>,
    say: &mut dyn FnMut(&Choice) -> Result<bool>,
) -> Result<Steps> {
    let mut sampler = Sampler::new(&options.sampling, options.seed)?;
    check(prompt, session, options)?;
    let from = session.begin(prompt)?;
    let cached = session.rejoin(&from);
    let mut steps =
        Steps { finish: Finish::Length, prompt: prompt.len(), cached, passes: 0, drafted: 0, accepted: 0 };
    let end = (from.len() + options.max_tokens).min(session.context());
    let mut walk = Walk { history: from, sampler: &mut sampler, constraint, options, say };
    let mut draft = draft;
    while walk.history.len() < end {
        // The last token is never read, so the guesses may fill what is left but one.
        let room = end - walk.history.len() - 1;
        let guesses = match &mut draft {
            Some(draft) if room > 0 => draft.guess(&walk.history, room)?,
            _ => Vec::new(),
        };
        let known = walk.history.len();
        let mut reading = walk.history.get(session.ids().len()..).unwrap_or_default().to_vec();
        reading.extend(guesses.iter().map(|guess| guess.token));
        let rows = session.read(&reading, guesses.len() + 1)?;
        steps.passes += 1;
        steps.drafted += guesses.len();
        let mut done = None;
        for (at, mut logits) in rows.into_iter().enumerate() {
            let guess = guesses.get(at);
            let (accepted, finish) = walk.step(&mut logits, guess)?;
            steps.accepted += usize::from(accepted);
            done = finish;
            if !accepted || done.is_some() {
                break;
            }
        }
        // What was guessed wrong is forgotten; the newest token has not been read unless it was guessed right.
        session.rewind(known.max(walk.history.len().saturating_sub(1)));
        if let Some(finish) = done {
            steps.finish = finish;
            break;
        }
    }
    Ok(steps)
}

fn check(prompt: &[u32], session: &Session, options: &Options) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::invalid("prompt: expected at least one token, got none"));
    }
    if prompt.len() >= session.context() {
        let (length, context) = (prompt.len(), session.context());
        return Err(Error::invalid(format!(
            "prompt: its {length} tokens leave no room to answer in a context of {context}"
        )));
    }
    if options.max_tokens == 0 {
        return Err(Error::invalid("max_tokens: expected at least 1, got 0"));
    }
    Ok(())
}

/// The state that each token moves on.
struct Walk<'a> {
    history: Vec<u32>,
    sampler: &'a mut Sampler,
    constraint: Option<&'a mut Constraint>,
    options: &'a Options,
    say: &'a mut dyn FnMut(&Choice) -> Result<bool>,
}

impl Walk<'_> {
    /// Chooses a token; says whether the guess was taken and whether this ends it.
    fn step(
        &mut self,
        logits: &mut [f32],
        guess: Option<&crate::speculative::Guess>,
    ) -> Result<(bool, Option<Finish>)> {
        if let Some(constraint) = &mut self.constraint {
            constraint.restrict(logits)?;
        }
        let (choice, accepted) = match guess {
            Some(guess) => self.sampler.verify(logits, &self.history, guess.token, &guess.weights)?,
            None => (self.sampler.next(logits, &self.history)?, false),
        };
        if self.options.stop_tokens.contains(&choice.token) {
            return Ok((accepted, Some(Finish::Stop)));
        }
        self.history.push(choice.token);
        if !(self.say)(&choice)? {
            return Ok((accepted, Some(Finish::Caller)));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.advance(choice.token)?;
            if constraint.is_complete() {
                return Ok((accepted, Some(Finish::Stop)));
            }
        }
        Ok((accepted, None))
    }
}
