//! From a prompt's tokens to the text of an answer, as it comes.

use super::{Finish, Options, Session, Steps, StopStrings, run};
use crate::constrain::Constraint;
use crate::speculative::Draft;
use crate::tokenizer::TextStream;
use crate::{Choice, Tokenizer};
use vela_nn::Result;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// What it says: up to the stop string, if one came.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<Choice>,
    /// How it came about.
    pub steps: Steps,
}

impl Written {
    /// The mean log-probability of its tokens; 0 if none was reported.
    pub fn mean_logprob(&self) -> f32 {
        let known: Vec<f32> = self.tokens.iter().filter_map(|choice| choice.logprob).collect();
        if known.is_empty() { 0.0 } else { known.iter().sum::<f32>() / known.len() as f32 }
    }
}

/// Generates after `prompt` as [`run`] does and hands `show` the text as soon as it is certain.
///
/// # Errors
/// As [`run`]; a tokenizer that cannot be read token by token.
pub fn write(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &Options,
    draft: Option<&mut dyn Draft>,
    constraint: Option<&mut Constraint>,
    show: &mut dyn FnMut(&str),
) -> Result<Written> {
    let mut stream = TextStream::new();
    let mut watch = StopStrings::new(&options.stop_strings);
    let (mut text, mut tokens, mut stopped) = (String::new(), Vec::new(), false);
    let mut give = |piece: &str| {
        if !piece.is_empty() {
            show(piece);
            text.push_str(piece);
        }
    };
    let mut steps = run(session, prompt, options, draft, constraint, &mut |choice| {
        tokens.push(choice.clone());
        let (piece, end) = watch.push(&stream.push(tokenizer, choice.token)?);
        give(&piece);
        stopped = end;
        Ok(!end)
    })?;
    if stopped {
        steps.finish = Finish::Stop;
    } else {
        let (piece, end) = watch.push(&stream.finish());
        give(&piece);
        if !end {
            give(&watch.finish());
        }
    }
    Ok(Written { text, tokens, steps })
}
