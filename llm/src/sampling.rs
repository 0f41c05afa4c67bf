//! From logits to the next token: penalties, temperature, truncation, and one seeded draw per token.
//!
//! One [`Sampler`] belongs to one sequence. Its draws depend on the seed and on how many tokens it has drawn, on
//! nothing else: not on threads, not on the other sequences of a batch.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use vela_nn::{Error, Result, random};

/// How the next token is chosen. The default is greedy.
///
/// The order is that of vLLM and of Hugging Face: penalties on the logits, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the largest (greedy).
    pub temperature: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens until their mass reaches this (Holtzman et al., arXiv:1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the best (Nguyen et al., arXiv:2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token seen, prompt included (Keskar et al.,
    /// arXiv:1909.05858); 1 does nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token once for each time that it was generated.
    pub frequency_penalty: f32,
    /// Taken from the logit of every token that was generated at all.
    pub presence_penalty: f32,
    /// `Some(n)`: report the log-probability of the chosen token and of the `n` most probable ones, of the model's own
    /// distribution (before penalties, temperature and truncation).
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Refuses values outside their range, naming the first.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(format!("{name}: expected {low} to {high}, got {value}")))
            }
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)
    }

    /// Whether the largest logit wins.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its log-probability (natural), if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities, best first, if asked for.
    pub top: Vec<(u32, f32)>,
}

/// The sampling state of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    prompt: Option<usize>,
}

impl Sampler {
    /// A sampler under a seed.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(params: &SamplingParams, seed: u64) -> Result<Self> {
        Self::for_purpose(params, seed, "sampling")
    }

    /// The same with a random stream of its own, apart from the others of the seed.
    pub fn for_purpose(params: &SamplingParams, seed: u64, purpose: &str) -> Result<Self> {
        params.check()?;
        Ok(Self { params: params.clone(), rng: random::stream(seed, purpose), prompt: None })
    }

    /// What it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses the next token. `logits [vocab]` are changed by the penalties; minus infinity forbids a token.
    /// `history` is everything before it, prompt first; what it holds at the first call is the prompt.
    ///
    /// # Errors
    /// A NaN or plus infinity among the logits, or every token forbidden.
    pub fn next(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Choice> {
        let report = self.params.logprobs.map(|count| Report::new(logits, count)).transpose()?;
        let token = if self.params.is_greedy() {
            self.penalise(logits, history);
            best(logits)?
        } else {
            let candidates = self.distribution(logits, history)?;
            self.draw(&candidates)
        };
        Ok(Report::choose(report, token))
    }

    /// Takes or refuses a guess that was drawn from `weights` (ids with probabilities), and chooses another token in the
    /// latter case, so that what comes out is distributed as [`Sampler::next`]'s (Leviathan et al., arXiv:2211.17192,
    /// section 2.3). Says whether the guess was taken.
    ///
    /// # Errors
    /// As [`Sampler::next`].
    pub fn verify(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        guess: u32,
        weights: &[(u32, f32)],
    ) -> Result<(Choice, bool)> {
        let report = self.params.logprobs.map(|count| Report::new(logits, count)).transpose()?;
        let mut wanted = self.distribution(logits, history)?;
        let weight =
            |all: &[(u32, f32)], token| all.iter().find(|(id, _)| *id == token).map_or(0.0, |(_, p)| *p);
        let (p, q) = (weight(&wanted, guess), weight(weights, guess));
        let accepted = p > 0.0 && self.uniform() * f64::from(q) < f64::from(p);
        let token = if accepted {
            guess
        } else {
            // What the guess had too much of is taken from the rest.
            let drafted: HashMap<u32, f32> = weights.iter().copied().collect();
            let whole = wanted.clone();
            for (id, p) in &mut wanted {
                *p = (*p - drafted.get(id).copied().unwrap_or(0.0)).max(0.0);
            }
            let left: f32 = wanted.iter().map(|(_, p)| p).sum();
            self.draw(if left > 0.0 { &wanted } else { &whole })
        };
        Ok((Report::choose(report, token), accepted))
    }

    /// The distribution that [`Sampler::next`] draws from: ids with probabilities that sum to 1; all others have none.
    /// Changes `logits` by the penalties.
    pub fn distribution(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Vec<(u32, f32)>> {
        self.penalise(logits, history);
        if self.params.is_greedy() {
            return Ok(vec![(best(logits)?, 1.0)]);
        }
        truncated(logits, &self.params)
    }

    /// One of `candidates` by their weights; moves the random stream on by one number.
    pub fn draw(&mut self, candidates: &[(u32, f32)]) -> u32 {
        let total: f64 = candidates.iter().map(|(_, p)| f64::from(*p)).sum();
        let mut left = self.uniform() * total;
        for (id, p) in candidates {
            left -= f64::from(*p);
            if left < 0.0 && *p > 0.0 {
                return *id;
            }
        }
        // Rounding may leave a little: the last that can be drawn.
        candidates.iter().rev().find(|(_, p)| *p > 0.0).or(candidates.last()).map_or(0, |(id, _)| *id)
    }

    /// The next number of the random stream, in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.rng.random()
    }

    fn penalise(&mut self, logits: &mut [f32], history: &[u32]) {
        let prompt = *self.prompt.get_or_insert(history.len());
        if !self.params.penalises() {
            return;
        }
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for (at, id) in history.iter().enumerate() {
            *counts.entry(*id).or_default() += usize::from(at >= prompt);
        }
        for (id, made) in counts {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            let penalty = self.params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            if made > 0 {
                *logit -= self.params.presence_penalty + made as f32 * self.params.frequency_penalty;
            }
        }
    }
}

/// The index of the largest logit; the first of equals.
///
/// # Errors
/// A NaN or plus infinity; nothing above minus infinity.
pub fn best(logits: &[f32]) -> Result<u32> {
    let mut found = (0, f32::NEG_INFINITY);
    let mut sound = true;
    for (i, &x) in logits.iter().enumerate() {
        sound &= x < f32::INFINITY;
        if x > found.1 {
            found = (i, x);
        }
    }
    if !sound {
        return Err(Error::invalid("logits: expected finite numbers, got a NaN or an infinity"));
    }
    if found.1 == f32::NEG_INFINITY {
        return Err(Error::invalid("logits: expected at least one possible token, got none"));
    }
    Ok(found.0 as u32)
}

/// Log-softmax of `logits [vocab]`: minus infinity stays.
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>> {
    let normaliser = log_sum_exp(logits)?;
    Ok(logits.iter().map(|x| x - normaliser).collect())
}

/// The `count` largest of `values` with their indices, largest first, the lower index first among equals.
pub fn largest(values: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = values.iter().enumerate().map(|(i, x)| (i as u32, *x)).collect();
    keep_largest(&mut all, count);
    all
}

fn keep_largest(all: &mut Vec<(u32, f32)>, count: usize) {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        if count > 0 {
            all.select_nth_unstable_by(count - 1, order);
        }
        all.truncate(count);
    }
    all.sort_unstable_by(order);
}

fn log_sum_exp(logits: &[f32]) -> Result<f32> {
    let top = logits[best(logits)? as usize];
    let sum: f64 = logits.iter().map(|x| f64::from((x - top).exp())).sum();
    Ok((f64::from(top) + sum.ln()) as f32)
}

/// Temperature, then top-k, top-p and min-p.
fn truncated(logits: &[f32], params: &SamplingParams) -> Result<Vec<(u32, f32)>> {
    let top = logits[best(logits)? as usize];
    let weight = |x: f32| ((x - top) / params.temperature).exp();
    // Weights are relative to the best token's, which is 1: min-p needs no sum.
    let mut kept: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, x)| **x > f32::NEG_INFINITY)
        .map(|(i, x)| (i as u32, weight(*x)))
        .collect();
    if params.top_k > 0 {
        keep_largest(&mut kept, params.top_k);
    }
    if params.top_p < 1.0 {
        keep_mass(&mut kept, params.top_p);
    }
    if params.min_p > 0.0 {
        kept.retain(|(_, w)| *w >= params.min_p);
    }
    let total: f64 = kept.iter().map(|(_, w)| f64::from(*w)).sum();
    for (_, w) in &mut kept {
        *w = (f64::from(*w) / total) as f32;
    }
    Ok(kept)
}

/// Keeps the largest until their share of the whole reaches `mass`, at least one. Only as many are sorted as needed.
fn keep_mass(kept: &mut Vec<(u32, f32)>, mass: f32) {
    let total: f64 = kept.iter().map(|(_, w)| f64::from(*w)).sum();
    let wanted = total * f64::from(mass);
    let mut count = 64;
    loop {
        let mut head = kept.clone();
        keep_largest(&mut head, count);
        let mut sum = 0.0;
        for (i, (_, w)) in head.iter().enumerate() {
            sum += f64::from(*w);
            if sum >= wanted {
                head.truncate(i + 1);
                *kept = head;
                return;
            }
        }
        if count >= kept.len() {
            *kept = head;
            return;
        }
        count *= 8;
    }
}

/// Log-probabilities to report, taken before anything changes the logits.
struct Report {
    all: Vec<f32>,
    top: Vec<(u32, f32)>,
}

impl Report {
    fn new(logits: &[f32], count: usize) -> Result<Self> {
        let all = log_softmax(logits)?;
        Ok(Self { top: if count > 0 { largest(&all, count) } else { Vec::new() }, all })
    }

    fn choose(report: Option<Self>, token: u32) -> Choice {
        match report {
            Some(Self { all, top }) => Choice { token, logprob: all.get(token as usize).copied(), top },
            None => Choice { token, logprob: None, top: Vec::new() },
        }
    }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
