//! FAST (Pertsch et al. 2025, <https://arxiv.org/abs/2501.09747>): a chunk as few tokens. Each joint's course becomes its
//! cosine coefficients, they are rounded, and pairs of symbols that often stand together become one (byte-pair encoding).

use crate::head::{BodyConfig, BodyKind, Head, Layers};
use crate::tokens::draw;
use candle_core::{Device, Tensor};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use vela_nn::{Embedding, Error, Init, Linear, Mask, Result, Weights, cross_entropy};

/// A tokenizer for chunks of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fast {
    /// Actions per chunk.
    pub horizon: usize,
    /// Numbers per action.
    pub dims: usize,
    /// Coefficients are multiplied by this before they are rounded.
    pub scale: f32,
    /// The lowest rounded coefficient: symbol 0.
    pub lowest: i32,
    /// Symbols before any pair is joined.
    pub alphabet: usize,
    /// The pair that each further symbol stands for.
    pub merges: Vec<[u32; 2]>,
}

impl Fast {
    /// Learns a tokenizer of at most `vocab` symbols from normalised chunks (`horizon * dims` numbers each, row by row).
    /// FAST's own numbers are scale 10 and 1024 symbols. The same chunks give the same tokenizer.
    ///
    /// # Errors
    /// No chunks, chunks of another size, numbers that are not finite, fewer symbols than there are coefficients.
    pub fn fit(chunks: &[Vec<f32>], horizon: usize, dims: usize, scale: f32, vocab: usize) -> Result<Self> {
        let mut made = Self { horizon, dims, scale, lowest: 0, alphabet: 0, merges: Vec::new() };
        let rounded: Vec<Vec<i32>> = chunks.iter().map(|chunk| made.rounded(chunk)).collect::<Result<_>>()?;
        let all = || rounded.iter().flatten();
        let (Some(low), Some(high)) = (all().min(), all().max()) else {
            return Err(Error::invalid("FAST: expected chunks to learn from, got none"));
        };
        (made.lowest, made.alphabet) = (*low, (high - low) as usize + 1);
        if made.alphabet > vocab {
            let (needed, scale) = (made.alphabet, made.scale);
            return Err(Error::invalid(format!("FAST: {vocab} symbols, but scale {scale} needs {needed}")));
        }
        let mut texts: Vec<Vec<u32>> = rounded.iter().map(|chunk| made.symbols(chunk)).collect();
        while made.vocab() < vocab {
            let mut counts: BTreeMap<[u32; 2], usize> = BTreeMap::new();
            for pair in texts.iter().flat_map(|text| text.windows(2)) {
                *counts.entry([pair[0], pair[1]]).or_default() += 1;
            }
            // The commonest; of equals the first in order, so that nothing depends on hashing.
            let best = counts.iter().max_by_key(|(pair, count)| (**count, std::cmp::Reverse(**pair)));
            let Some((pair, _)) = best.filter(|(_, count)| **count > 1) else { break };
            let (pair, symbol) = (*pair, made.vocab() as u32);
            texts.iter_mut().for_each(|text| join(text, pair, symbol));
            made.merges.push(pair);
        }
        Ok(made)
    }

    /// Refuses a tokenizer, read from a file, that cannot work.
    pub fn check(&self) -> Result<()> {
        let known = |(i, pair): (usize, &[u32; 2])| pair.iter().all(|s| (*s as usize) < self.alphabet + i);
        let sound = self.horizon * self.dims > 0
            && self.scale.is_finite()
            && self.scale > 0.0
            && self.alphabet > 0
            && self.alphabet < 1 << 24
            && self.lowest.checked_add(self.alphabet as i32).is_some()
            && self.merges.iter().enumerate().all(known);
        if sound { Ok(()) } else { Err(Error::invalid("FAST: a tokenizer of sizes that cannot work")) }
    }

    /// Symbols, pairs included.
    pub fn vocab(&self) -> usize {
        self.alphabet + self.merges.len()
    }

    /// The tokens of a normalised chunk, `horizon * dims` numbers row by row. Coefficients beyond those that were seen in
    /// fitting are held at the nearest of them.
    pub fn encode(&self, chunk: &[f32]) -> Result<Vec<u32>> {
        let mut text = self.symbols(&self.rounded(chunk)?);
        let ranks: HashMap<[u32; 2], usize> =
            self.merges.iter().enumerate().map(|(i, pair)| (*pair, i)).collect();
        loop {
            let best = text.windows(2).filter_map(|pair| ranks.get(&[pair[0], pair[1]])).min();
            let Some(rank) = best else { return Ok(text) };
            join(&mut text, self.merges[*rank], (self.alphabet + rank) as u32);
        }
    }

    /// The chunk of some tokens.
    ///
    /// # Errors
    /// A token that is not in the vocabulary; more or fewer coefficients than a chunk has.
    pub fn decode(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut symbols = Vec::with_capacity(self.horizon * self.dims);
        for token in tokens {
            self.spell(*token, &mut symbols)?;
        }
        let (expected, got) = (self.horizon * self.dims, symbols.len());
        if got != expected {
            return Err(Error::invalid(format!(
                "FAST: expected tokens of {expected} coefficients, got {got}"
            )));
        }
        let coefficient = |k: usize, d: usize| {
            f64::from(symbols[k * self.dims + d] as i32 + self.lowest) / f64::from(self.scale)
        };
        Ok(courses(self.horizon, self.dims, coefficient))
    }

    /// Coefficients that a token stands for.
    pub fn length(&self, token: u32) -> Result<usize> {
        let mut symbols = Vec::new();
        self.spell(token, &mut symbols)?;
        Ok(symbols.len())
    }

    /// Without recursion: a tokenizer from a file may nest its pairs as deep as it is long.
    fn spell(&self, token: u32, out: &mut Vec<u32>) -> Result<()> {
        let mut waiting = vec![token];
        while let Some(symbol) = waiting.pop() {
            match (symbol as usize).checked_sub(self.alphabet) {
                None => out.push(symbol),
                Some(i) => {
                    let [left, right] = *self.merges.get(i).ok_or_else(|| {
                        Error::invalid(format!("FAST: token {symbol} of a vocabulary of {}", self.vocab()))
                    })?;
                    waiting.extend([right, left]);
                }
            }
            if out.len() + waiting.len() > self.horizon * self.dims {
                return Err(Error::invalid("FAST: tokens of more coefficients than a chunk has"));
            }
        }
        Ok(())
    }

    fn symbols(&self, rounded: &[i32]) -> Vec<u32> {
        let most = self.alphabet as i32 - 1;
        rounded.iter().map(|c| c.saturating_sub(self.lowest).clamp(0, most) as u32).collect()
    }

    /// Rounded coefficients, lowest frequency first, all dimensions of one side by side.
    fn rounded(&self, chunk: &[f32]) -> Result<Vec<i32>> {
        if chunk.len() != self.horizon * self.dims || chunk.is_empty() {
            let (expected, got) = (self.horizon * self.dims, chunk.len());
            return Err(Error::invalid(format!("FAST: expected chunks of {expected} numbers, got {got}")));
        }
        if chunk.iter().any(|x| !x.is_finite()) {
            return Err(Error::invalid("FAST: a number of the chunk is not finite"));
        }
        let mut out = Vec::with_capacity(chunk.len());
        for k in 0..self.horizon {
            for d in 0..self.dims {
                let sum: f64 = (0..self.horizon)
                    .map(|t| f64::from(chunk[t * self.dims + d]) * cosine(self.horizon, k, t))
                    .sum();
                out.push((sum * f64::from(self.scale)).round_ties_even() as i32);
            }
        }
        Ok(out)
    }
}

/// The orthonormal cosine basis over `horizon` ticks (DCT-II; Ahmed et al. 1974).
fn cosine(horizon: usize, k: usize, t: usize) -> f64 {
    let n = horizon as f64;
    let norm = if k == 0 { (1.0 / n).sqrt() } else { (2.0 / n).sqrt() };
    norm * (std::f64::consts::PI / n * (t as f64 + 0.5) * k as f64).cos()
}

/// The chunk, `horizon * dims` numbers row by row, of the coefficients of frequency `k` and dimension `d`.
pub(crate) fn courses(horizon: usize, dims: usize, coefficient: impl Fn(usize, usize) -> f64) -> Vec<f32> {
    let mut chunk = vec![0.0; horizon * dims];
    for d in 0..dims {
        let course: Vec<f64> = (0..horizon).map(|k| coefficient(k, d)).collect();
        for t in 0..horizon {
            let sum: f64 = course.iter().enumerate().map(|(k, c)| c * cosine(horizon, k, t)).sum();
            chunk[t * dims + d] = sum as f32;
        }
    }
    chunk
}

/// Every `pair` of `text`, from the left, becomes `symbol`.
fn join(text: &mut Vec<u32>, pair: [u32; 2], symbol: u32) {
    let (mut read, mut write) = (0, 0);
    while read < text.len() {
        let both = text[read] == pair[0] && text.get(read + 1) == Some(&pair[1]);
        text[write] = if both { symbol } else { text[read] };
        read += if both { 2 } else { 1 };
        write += 1;
    }
    text.truncate(write);
}

/// A head that says a chunk's FAST tokens one after another.
#[derive(Clone, Debug)]
pub struct FastHead {
    codec: Arc<Fast>,
    lengths: Arc<Vec<usize>>,
    embedding: Embedding,
    places: Tensor,
    layers: Layers,
    output: Linear,
    temperature: f64,
}

impl FastHead {
    /// Reads `embedding`, `places`, its layers and `output`. Temperature 0 takes the likeliest token.
    pub fn new(weights: &Weights, body: &BodyConfig, codec: Fast, temperature: f64) -> Result<Self> {
        codec.check()?;
        if body.kind != BodyKind::Transformer {
            return Err(Error::invalid("FAST head: expected a transformer body"));
        }
        let (vocab, width) = (codec.vocab(), body.width);
        let lengths = (0..vocab as u32).map(|token| codec.length(token)).collect::<Result<_>>()?;
        Ok(Self {
            // One more than there are tokens: the start.
            embedding: Embedding::new(&weights.pp("embedding"), vocab + 1, width)?,
            places: weights.get_init((codec.horizon * codec.dims, width), "places", Init::Normal(0.02))?,
            layers: Layers::new(weights, body)?,
            output: Linear::new(&weights.pp("output"), width, vocab, true)?,
            codec: Arc::new(codec),
            lengths: Arc::new(lengths),
            temperature,
        })
    }

    /// Logits `[b, t, vocab]` of what follows each of `ids [b, t]`.
    fn logits(&self, ids: &Tensor, memory: &Tensor) -> Result<Tensor> {
        let places = self.places.narrow(0, 0, ids.dim(1)?)?;
        let x = self.embedding.forward(ids)?.broadcast_add(&places)?;
        self.output.forward(&self.layers.forward(&x, memory, &Mask::Causal)?)
    }
}

impl Head for FastHead {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, _: &mut dyn RngCore) -> Result<Tensor> {
        let (b, _, _) = actions.dims3()?;
        let encode = |row: usize| self.codec.encode(&actions.get(row)?.flatten_all()?.to_vec1::<f32>()?);
        let texts: Vec<Vec<u32>> = (0..b).map(encode).collect::<Result<_>>()?;
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let (start, ignored) = (self.codec.vocab() as u32, u32::MAX);
        let (mut ids, mut targets) = (Vec::with_capacity(b * longest), Vec::with_capacity(b * longest));
        for text in &texts {
            let spare = longest - text.len();
            ids.push(start);
            ids.extend(&text[..text.len() - 1]);
            ids.extend(std::iter::repeat_n(start, spare));
            targets.extend(text);
            targets.extend(std::iter::repeat_n(ignored, spare));
        }
        let ids = Tensor::from_vec(ids, (b, longest), &Device::Cpu)?;
        let logits = self.logits(&ids, &self.layers.remember(conditioning)?)?;
        let logits = logits.reshape((b * longest, self.codec.vocab()))?;
        cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?, Some(ignored))
    }

    /// Tokens that would overfill the chunk are not said, so that every answer is a whole chunk.
    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        let (b, size) = (conditioning.dim(0)?, self.codec.horizon * self.codec.dims);
        let mut values = Vec::with_capacity(b * size);
        for row in 0..b {
            let memory = self.layers.remember(&conditioning.narrow(0, row, 1)?.contiguous()?)?;
            let mut so_far = self.layers.begin(&memory)?;
            let (mut ids, mut left) = (vec![self.codec.vocab() as u32], size);
            while left > 0 {
                let last = Tensor::new(&ids[ids.len() - 1..], &Device::Cpu)?.unsqueeze(0)?;
                let place = self.places.narrow(0, ids.len() - 1, 1)?;
                let x = self.embedding.forward(&last)?.broadcast_add(&place)?;
                let said = self.layers.next(&x, &mut so_far)?;
                let mut logits = self.output.forward(&said)?.flatten_all()?.to_vec1::<f32>()?;
                for (logit, length) in logits.iter_mut().zip(self.lengths.iter()) {
                    if *length > left {
                        *logit = f32::NEG_INFINITY;
                    }
                }
                let token = draw(&logits, self.temperature, rng);
                left -= self.lengths[token].min(left);
                ids.push(token as u32);
            }
            values.extend(self.codec.decode(&ids[1..])?);
        }
        Ok(Tensor::from_vec(values, (b, self.codec.horizon, self.codec.dims), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use vela_embodiment::stream;

    /// Smooth courses, as arms make them.
    fn chunks(count: usize, horizon: usize, dims: usize) -> Vec<Vec<f32>> {
        let mut rng = stream(5, "chunks");
        let mut one = || {
            let course: Vec<(f32, f32, f32)> = (0..dims)
                .map(|_| (rng.random(), rng.random::<f32>() * 4.0, rng.random::<f32>() * 2.0 - 1.0))
                .collect();
            let at = |t: usize, (a, w, c): &(f32, f32, f32)| {
                (a * (w * t as f32 / horizon as f32).sin() + 0.3 * c).clamp(-1.0, 1.0)
            };
            (0..horizon).flat_map(|t| course.iter().map(move |c| at(t, c)).collect::<Vec<_>>()).collect()
        };
        (0..count).map(|_| one()).collect()
    }

    #[test]
    fn chunks_come_back_within_what_rounding_allows_and_in_few_tokens() -> Result<()> {
        for (horizon, dims, scale) in [(16, 3, 10.0), (50, 6, 10.0), (7, 1, 40.0), (1, 4, 100.0)] {
            let all = chunks(60, horizon, dims);
            let fast = Fast::fit(&all, horizon, dims, scale, 1024)?;
            fast.check()?;
            assert_eq!(fast, Fast::fit(&all, horizon, dims, scale, 1024)?);
            let mut total = 0;
            for chunk in &all {
                let tokens = fast.encode(chunk)?;
                total += tokens.len();
                // An orthonormal basis: the whole error of a course is at most that of its coefficients.
                let bound = 0.5 / scale * (horizon as f32).sqrt() + 1e-5;
                for (a, b) in fast.decode(&tokens)?.iter().zip(chunk) {
                    assert!((a - b).abs() <= bound, "{a} {b} {bound}");
                }
                // What was decoded is coded the same.
                assert_eq!(fast.encode(&fast.decode(&tokens)?)?, tokens);
            }
            assert!(horizon < 16 || total * 3 < all.len() * horizon * dims, "{total} tokens");
            let text = serde_json::to_string(&fast).map_err(Error::invalid)?;
            assert_eq!(serde_json::from_str::<Fast>(&text).map_err(Error::invalid)?, fast);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_chunk_is_refused() -> Result<()> {
        let all = chunks(20, 8, 2);
        let fast = Fast::fit(&all, 8, 2, 10.0, 200)?;
        assert!(fast.decode(&[]).is_err() && fast.decode(&[u32::MAX]).is_err());
        assert!(fast.decode(&[0; 17]).is_err() && fast.encode(&[0.0; 3]).is_err());
        assert!(fast.encode(&[f32::NAN; 16]).is_err() && Fast::fit(&[], 8, 2, 10.0, 200).is_err());
        assert!(Fast::fit(&all, 8, 2, 10.0, 3).is_err_and(|e| e.to_string().contains("needs")));
        // Far outside what was fitted: held at the nearest, and still a chunk.
        assert_eq!(fast.decode(&fast.encode(&[50.0; 16])?)?.len(), 16);
        let loops = Fast { merges: vec![[0, fast.alphabet as u32]], ..fast };
        assert!(loops.check().is_err());
        Ok(())
    }
}
