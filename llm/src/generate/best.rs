//! Several answers to one prompt: the likeliest, or the one that most agree on.

use super::{Options, Session, Written, write};
use crate::Tokenizer;
use crate::constrain::Constraint;
use vela_nn::{Error, Result};

/// `count` answers under seeds `seed, seed + 1, ...`, the one with the best mean log-probability first. The prompt is
/// read once.
///
/// # Errors
/// As [`write`]; a count of none.
pub fn best_of(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    count: usize,
    options: &Options,
    constraint: Option<&Constraint>,
) -> Result<Vec<Written>> {
    if count == 0 {
        return Err(Error::invalid("best of: expected at least one answer, got 0"));
    }
    let mut options = options.clone();
    options.sampling.logprobs.get_or_insert(0);
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut fresh = constraint.cloned();
        answers.push(write(session, tokenizer, prompt, &options, None, fresh.as_mut(), &mut |_| {})?);
        options.seed = options.seed.wrapping_add(1);
    }
    // Stable: of equals the earlier seed's.
    answers.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
    Ok(answers)
}

/// Self-consistency (Wang et al., arXiv:2203.11171): the answer whose `key` is the commonest, with how many agree; the
/// first among equals.
pub fn vote(answers: &[Written], key: impl Fn(&str) -> String) -> Option<(&Written, usize)> {
    let keys: Vec<String> = answers.iter().map(|answer| key(&answer.text)).collect();
    let count = |wanted: &String| keys.iter().filter(|key| *key == wanted).count();
    let mut winner: Option<(&Written, usize)> = None;
    for (answer, key) in answers.iter().zip(&keys) {
        let votes = count(key);
        if winner.is_none_or(|(_, most)| votes > most) {
            winner = Some((answer, votes));
        }
    }
    winner
}
