//! Speculative decoding: a cheap draft runs ahead, the model checks several tokens in one pass, and what comes out is
//! distributed exactly as without (Leviathan et al., arXiv:2211.17192).

use crate::generate::Session;
use crate::{Sampler, SamplingParams};
use vela_nn::{Error, Result};

/// A guessed token and the distribution that it was drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: u32,
    /// Ids with probabilities that sum to 1; all others have none.
    pub weights: Vec<(u32, f32)>,
}

/// Something that guesses how a sequence goes on.
pub trait Draft {
    /// At most `count` guesses after `history`, each given the ones before it; none is a good answer too.
    fn guess(&mut self, history: &[u32], count: usize) -> Result<Vec<Guess>>;
}

/// Guesses by a smaller model over the same tokens.
pub struct ModelDraft {
    session: Session,
    sampler: Sampler,
    most: usize,
}

impl ModelDraft {
    /// A draft of at most `most` tokens at a time. `session` is the draft model's; `vocab` is the number of ids of the
    /// model that checks. Draws come from `seed`, apart from those of the check.
    ///
    /// # Errors
    /// Another number of ids: then the tokens cannot be the same.
    pub fn new(
        session: Session,
        vocab: usize,
        params: &SamplingParams,
        seed: u64,
        most: usize,
    ) -> Result<Self> {
        if session.vocab() != vocab {
            let own = session.vocab();
            return Err(Error::invalid(format!(
                "the draft model has {own} token ids, the model {vocab}: expected the same vocabulary"
            )));
        }
        let params = SamplingParams { logprobs: None, ..params.clone() };
        // A stream apart: the check must not see the numbers that the guesses were drawn with.
        Ok(Self { session, sampler: Sampler::for_purpose(&params, seed, "draft")?, most })
    }
}

impl Draft for ModelDraft {
    fn guess(&mut self, history: &[u32], count: usize) -> Result<Vec<Guess>> {
        let room = self.session.context().saturating_sub(history.len());
        let count = count.min(self.most).min(room);
        let mut guesses: Vec<Guess> = Vec::with_capacity(count);
        if count == 0 {
            return Ok(guesses);
        }
        let mut all = history.to_vec();
        self.session.rejoin(&all);
        while guesses.len() < count {
            let unread = all.get(self.session.ids().len()..).unwrap_or_default().to_vec();
            let Some(mut logits) = self.session.read(&unread, 1)?.pop() else { break };
            let weights = self.sampler.distribution(&mut logits, &all)?;
            let token = self.sampler.draw(&weights);
            all.push(token);
            guesses.push(Guess { token, weights });
        }
        Ok(guesses)
    }
}

/// Guesses that the text repeats itself: looks for the last few tokens earlier on and copies what followed (Saxena,
/// "Prompt Lookup Decoding", github.com/apoorvumang/prompt-lookup-decoding).
#[derive(Clone, Copy, Debug)]
pub struct LookupDraft {
    /// Copies at most so many tokens at a time.
    pub most: usize,
    /// Looks for the last so many tokens, then for fewer.
    pub longest: usize,
    /// Not for fewer than this.
    pub shortest: usize,
}

impl LookupDraft {
    /// Copies at most `most` tokens after a repetition of three or two.
    pub fn new(most: usize) -> Self {
        Self { most, longest: 3, shortest: 2 }
    }
}

impl Draft for LookupDraft {
    fn guess(&mut self, history: &[u32], count: usize) -> Result<Vec<Guess>> {
        let certain = |token: &u32| Guess { token: *token, weights: vec![(*token, 1.0)] };
        for length in (self.shortest.max(1)..=self.longest).rev() {
            let Some(earlier) = history.len().checked_sub(length) else { continue };
            let (before, tail) = history.split_at(earlier);
            // The newest earlier occurrence; what follows it may run into the tail.
            let found = (0..before.len()).rev().find(|at| history.get(*at..at + length) == Some(tail));
            if let Some(at) = found {
                let next = history.get(at + length..).unwrap_or_default();
                return Ok(next.iter().take(count.min(self.most)).map(certain).collect());
            }
        }
        Ok(Vec::new())
    }
}
