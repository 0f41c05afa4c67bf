//! What a step reads: one picture and several questions as one row of tokens.

use super::QuestionAnswer;
use super::words::END;
use candle_core::{Device, Tensor};
use vela_fusion::{Room, Wording};
use vela_llm::Tokenizer;
use vela_nn::{Error, Mask, Result};

/// How the questions of one picture stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Side by side: all share the picture, none sees another, each is counted from the picture on.
    Beside,
    /// One after the other, as in a conversation.
    Conversation,
}

/// A question and its answer as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// The opening of the user's turn; of a question about a picture that comes with the picture.
    pub opening: Vec<u32>,
    /// The question up to where the answer begins.
    pub question: Vec<u32>,
    /// The answer with its end.
    pub answer: Vec<u32>,
}

impl Phrase {
    /// Tokens of a question and its answer, as the chat template writes them.
    pub fn new(tokenizer: &Tokenizer, asked: &QuestionAnswer) -> Result<Self> {
        let QuestionAnswer { question, answer, .. } = asked;
        Ok(Self {
            opening: tokenizer.encode_rendered("<|user|>")?,
            question: tokenizer.encode_rendered(&format!("{question}{END}<|assistant|>"))?,
            answer: tokenizer.encode_rendered(&format!("{answer}{END}"))?,
        })
    }
}

/// A row of tokens to learn from.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Token ids, `[t]`; placeholders where the picture goes.
    pub ids: Vec<u32>,
    /// Their positions, `[t]`.
    pub positions: Vec<u32>,
    /// Whom they see.
    pub mask: Mask,
    /// Rows whose next token is learnt.
    pub rows: Vec<u32>,
    /// Those next tokens.
    pub targets: Vec<u32>,
    /// How many targets each answer has, in order.
    pub lengths: Vec<usize>,
}

/// What stands before the first question about a picture of `tokens` tokens.
pub fn opening(tokenizer: &Tokenizer, kind: &str, tokens: usize) -> Result<Vec<u32>> {
    let room = Room { rows: 0, columns: 0, parts: 1, tokens, video: false };
    tokenizer.encode_rendered(&Wording::of(kind)?.expand("<|user|><image>", &[room])?)
}

impl Sequence {
    /// Questions behind a picture's opening (empty: without a picture, where each opens its own turn).
    ///
    /// # Errors
    /// No question.
    pub fn new(opening: &[u32], phrases: &[Phrase], form: Form) -> Result<Self> {
        if phrases.is_empty() {
            return Err(Error::invalid("a sequence needs a question"));
        }
        let mut ids = opening.to_vec();
        let mut positions: Vec<u32> = (0..opening.len() as u32).collect();
        let mut branches = vec![0u32; opening.len()];
        let (mut rows, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (k, phrase) in phrases.iter().enumerate() {
            let turn: &[u32] = match (form, opening.is_empty(), k) {
                (_, true, _) => &phrase.opening,
                (Form::Conversation, false, 1..) => &phrase.opening,
                _ => &[],
            };
            let (branch, first) = match form {
                Form::Beside => (k as u32 + 1, opening.len()),
                Form::Conversation => (0, ids.len()),
            };
            let parts = [turn, &phrase.question, &phrase.answer];
            let count: usize = parts.iter().map(|part| part.len()).sum();
            parts.iter().for_each(|part| ids.extend_from_slice(part));
            positions.extend(first as u32..(first + count) as u32);
            branches.extend(std::iter::repeat_n(branch, count));
            // The token before each of the answer's.
            let last = ids.len() as u32 - 1;
            rows.extend(last - phrase.answer.len() as u32..last);
            targets.extend_from_slice(&phrase.answer);
            lengths.push(phrase.answer.len());
        }
        let mask = match form {
            Form::Conversation => Mask::Causal,
            Form::Beside => {
                let t = ids.len();
                let sees = |i: usize, j: usize| j <= i && (branches[j] == 0 || branches[j] == branches[i]);
                let all: Vec<u8> = (0..t * t).map(|at| u8::from(sees(at / t, at % t))).collect();
                Mask::Dense(Tensor::from_vec(all, (1, t, t), &Device::Cpu)?)
            }
        };
        Ok(Self { ids, positions, mask, rows, targets, lengths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_side_by_side_see_the_picture_and_not_each_other() -> Result<()> {
        let phrase = |q: u32| Phrase { opening: vec![1], question: vec![q], answer: vec![q + 1, 0] };
        let two = [phrase(10), phrase(20)];
        let beside = Sequence::new(&[8, 9], &two, Form::Beside)?;
        assert_eq!(beside.ids, [8, 9, 10, 11, 0, 20, 21, 0]);
        assert_eq!(beside.positions, [0, 1, 2, 3, 4, 2, 3, 4]);
        assert_eq!((&beside.rows[..], &beside.targets[..]), (&[2, 3, 5, 6][..], &[11, 0, 21, 0][..]));
        let cells = beside.mask.dense(1, 8, 8)?;
        let row = |i: usize| cells[i * 8..(i + 1) * 8].iter().map(u8::to_string).collect::<String>();
        assert_eq!((row(1), row(4), row(6)), ("11000000".into(), "11111000".into(), "11000110".into()));
        let after = Sequence::new(&[8, 9], &two, Form::Conversation)?;
        assert_eq!(after.ids, [8, 9, 10, 11, 0, 1, 20, 21, 0]);
        assert_eq!(after.positions, (0..9).collect::<Vec<u32>>());
        let alone = Sequence::new(&[], &two, Form::Beside)?;
        assert_eq!(alone.ids, [1, 10, 11, 0, 1, 20, 21, 0]);
        assert!(Sequence::new(&[8], &[], Form::Beside).is_err());
        Ok(())
    }
}
