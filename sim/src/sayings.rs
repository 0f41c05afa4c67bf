//! Questions without a picture: what colours and shapes words name, and what a model that sees nothing should say.

use crate::language::noun;
use crate::questions::{Kind, Phrasing, any_question, article};
use crate::scene::{Colour, ObjectKind};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// What is answered to a question about a picture that is not there.
pub const NO_PICTURE: &str = "i see no picture";

/// One question without a picture and its answer, both in lower case.
pub fn say(rng: &mut ChaCha8Rng) -> (String, String) {
    let pair = pair(rng);
    let other = self::pair(rng);
    let (colour, kind) = pair;
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    match rng.random_range(0..9) {
        0 => (format!("what colour is {}?", article(&noun(pair))), colour.word().into()),
        1 => (format!("what shape is {}?", article(&noun(pair))), kind.word().into()),
        2 => {
            let of = if rng.random_bool(0.5) { kind } else { other.1 };
            (format!("is {} {}?", article(&noun(pair)), article(of.word())), yes(of == kind))
        }
        3 => {
            let of = if rng.random_bool(0.5) { colour } else { other.0 };
            (format!("is {} {}?", article(&noun(pair)), of.word()), yes(of == colour))
        }
        4 => {
            let said = format!("{} and {}", article(&noun(pair)), article(&noun(other)));
            (format!("say {said}."), said)
        }
        5 => {
            let more = [pair, other, self::pair(rng)];
            let count = rng.random_range(1..=more.len());
            let named: Vec<String> = more[..count].iter().map(|pair| article(&noun(*pair))).collect();
            (format!("how many things are {}?", named.join(" and ")), count.to_string())
        }
        6 => match rng.random_range(0..4) {
            0 => ("what is the opposite of left?".into(), "right".into()),
            1 => ("what is the opposite of right?".into(), "left".into()),
            2 => ("hello".into(), "hello. show me a picture of the table".into()),
            _ => ("who are you?".into(), "a small model that looks at pictures of a table".into()),
        },
        _ => {
            let kind = Kind::ALL.choose(rng).copied().unwrap_or(Kind::Describe);
            (any_question(kind, Phrasing::Trained, rng), NO_PICTURE.into())
        }
    }
}

/// The words of these questions and answers that [`crate::questions::vocabulary`] does not hold.
pub const WORDS: &[&str] = &[
    "say", "opposite", "hello", "show", "me", "who", "you", "small", "model", "that", "looks", "at",
    "pictures", "i",
];

fn pair(rng: &mut ChaCha8Rng) -> (Colour, ObjectKind) {
    let kinds = [ObjectKind::Cube, ObjectKind::Cylinder, ObjectKind::Ball, ObjectKind::Bowl];
    (Colour::ALL[rng.random_range(0..Colour::ALL.len())], kinds[rng.random_range(0..kinds.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_embodiment::stream;

    #[test]
    fn every_word_is_known_and_the_plain_ones_are_true() {
        let mut known = crate::questions::vocabulary();
        known.extend(WORDS.iter().map(|word| (*word).to_owned()));
        for seed in 0..500 {
            let (question, answer) = say(&mut stream(seed, "sayings"));
            for word in format!("{question} {answer}").split(|c: char| !c.is_alphabetic()) {
                assert!(word.is_empty() || known.iter().any(|k| k == word), "{word} of {question}");
            }
            if let Some(rest) = question.strip_prefix("what colour is a") {
                assert!(answer == NO_PICTURE || rest.contains(&answer), "{question} {answer}");
            }
        }
    }
}
