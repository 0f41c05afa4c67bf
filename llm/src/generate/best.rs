//! Several answers to one prompt: the likeliest, or the one that most agree on.

use super::{Options, Session, Written, write};
use crate::Tokenizer;
use crate::constrain::Constraint;
use vela_nn::{Error, Result};

/// `count` answers under seeds `seed, seed + 1, ...`, the one with the best mean log-probability first; those that say
/// nothing come last. The prompt is read once.
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
    rank(&mut answers);
    Ok(answers)
}

/// The likeliest first, of equals the earlier. An answer without tokens has no mean to be judged by.
fn rank(answers: &mut [Written]) {
    answers.sort_by(|a, b| {
        let silent = a.tokens.is_empty().cmp(&b.tokens.is_empty());
        silent.then(b.mean_logprob().total_cmp(&a.mean_logprob()))
    });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Choice;
    use crate::generate::{Finish, Steps};

    fn answer(text: &str, logprobs: &[f32]) -> Written {
        let token = |logprob: &f32| Choice { token: 0, logprob: Some(*logprob), top: Vec::new() };
        let steps = Steps { finish: Finish::Stop, prompt: 1, cached: 0, passes: 1, drafted: 0, accepted: 0 };
        Written { text: text.into(), tokens: logprobs.iter().map(token).collect(), steps }
    }

    fn texts(answers: &[Written]) -> Vec<&str> {
        answers.iter().map(|answer| answer.text.as_str()).collect()
    }

    #[test]
    fn the_likeliest_comes_first_whatever_its_length() {
        let mut answers = [
            answer("", &[]),
            answer("unlikely", &[-2.0]),
            answer("long", &[-0.5, -1.5, -1.0]),
            answer("impossible", &[f32::NEG_INFINITY]),
            answer("likely", &[-0.5, -0.25]),
            answer("as long", &[-1.0]),
        ];
        rank(&mut answers);
        assert_eq!(texts(&answers), ["likely", "long", "as long", "unlikely", "impossible", ""]);
    }

    #[test]
    fn most_votes_win_and_the_first_of_a_tie() {
        let said: Vec<Written> =
            ["so 4", "it is 5", "perhaps 5", "2 and 2: 4", "6"].map(|text| answer(text, &[-1.0])).into();
        let last = |text: &str| text.split(' ').next_back().unwrap_or_default().to_owned();
        let winner =
            |answers: &[Written]| vote(answers, last).map(|(winner, votes)| (winner.text.clone(), votes));
        assert_eq!(winner(&said), Some(("so 4".into(), 2)), "a tie");
        assert_eq!(winner(&said[1..]), Some(("it is 5".into(), 2)), "the first who says it speaks for all");
        assert_eq!(winner(&said[3..]), Some(("2 and 2: 4".into(), 1)), "nobody agrees");
        assert_eq!(winner(&[]), None);
        // Whole texts are all different.
        assert_eq!(vote(&said, str::to_owned).map(|(_, votes)| votes), Some(1));
    }
}
