//! Decoding strategies on the tiny reference model: sessions, drafts, beams, best-of, and what they refuse.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;
use vela_llm::beam::{self, BeamOptions};
use vela_llm::generate::{self, Finish, Options, Session};
use vela_llm::sampling::log_softmax;
use vela_llm::speculative::{Draft, Guess, LookupDraft, ModelDraft};
use vela_llm::{Choice, Decoder, SamplingParams, gguf};
use vela_nn::quant::Precision;
use vela_nn::{Error, Gguf, Result, threads};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn model(name: &str) -> Result<Arc<Decoder>> {
    Ok(Arc::new(vela_llm::load(&case(name))?))
}

/// One with weights in few bits, multiplied as integers.
fn in_few_bits() -> Result<Arc<Decoder>> {
    let file = Gguf::open(&case("gguf_llama").join("model.gguf"))?;
    Ok(Arc::new(gguf::decoder(&file, Precision::Fast)?))
}

/// The reference's prompt and its greedy continuation.
fn golden() -> Result<(Vec<u32>, Vec<u32>)> {
    let golden = candle_core::safetensors::load(case("llama").join("golden.safetensors"), &Device::Cpu)?;
    let ids = |name: &str| -> Result<Vec<u32>> {
        let tensor: &Tensor = golden.get(name).ok_or_else(|| Error::invalid(name))?;
        Ok(tensor.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?)
    };
    Ok((ids("in.input_ids")?, ids("out.generated")?))
}

fn options(max_tokens: usize, temperature: f32, seed: u64) -> Options {
    let sampling = SamplingParams { temperature, logprobs: Some(2), ..Default::default() };
    Options { max_tokens, sampling, seed, ..Default::default() }
}

fn tokens(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    draft: Option<&mut dyn Draft>,
) -> Result<(Vec<Choice>, generate::Steps)> {
    let mut made = Vec::new();
    let steps = generate::run(session, prompt, options, draft, None, &mut |choice| {
        made.push(choice.clone());
        Ok(true)
    })?;
    Ok((made, steps))
}

fn plain(choices: &[Choice]) -> Vec<u32> {
    choices.iter().map(|choice| choice.token).collect()
}

#[test]
fn a_session_writes_the_reference_tokens_and_reads_only_what_is_new() -> Result<()> {
    let (prompt, expected) = golden()?;
    let mut session = Session::new(model("llama")?, 128)?;
    let (made, steps) = tokens(&mut session, &prompt, &options(expected.len(), 0.0, 0), None)?;
    assert_eq!(plain(&made), expected);
    assert_eq!((steps.finish, steps.cached, steps.passes), (Finish::Length, 0, expected.len()));
    // The same again: all of the prompt but its last token is there already.
    let (again, steps) = tokens(&mut session, &prompt, &options(expected.len(), 0.0, 0), None)?;
    assert_eq!((plain(&again), steps.cached), (expected.clone(), prompt.len() - 1));
    // A conversation that goes on reads from where it had come to.
    let longer = [prompt.as_slice(), &expected, &[5, 6]].concat();
    let (made, steps) = tokens(&mut session, &longer, &options(4, 0.0, 0), None)?;
    assert_eq!(steps.cached, prompt.len() + expected.len() - 1);
    let mut fresh = Session::new(model("llama")?, 128)?;
    assert_eq!(plain(&made), plain(&tokens(&mut fresh, &longer, &options(4, 0.0, 0), None)?.0));
    // Greedy log-probabilities are those of the likeliest.
    assert!(made.iter().all(|choice| choice.logprob == choice.top.first().map(|(_, p)| *p)));
    Ok(())
}

#[test]
fn a_seed_gives_the_same_tokens_at_any_thread_count() -> Result<()> {
    let (prompt, _) = golden()?;
    for (what, decoder) in [("float32", model("llama")?), ("few bits", in_few_bits()?)] {
        let run = |count, seed| -> Result<Vec<Choice>> {
            threads::with_threads(count, || {
                let mut session = Session::new(Arc::clone(&decoder), 128)?;
                Ok(tokens(&mut session, &prompt, &options(24, 1.0, seed), None)?.0)
            })
        };
        let one = run(1, 3)?;
        // Not only the tokens: their probabilities too, to the last digit.
        assert_eq!(one, run(2, 3)?, "{what}");
        assert_eq!(one, run(5, 3)?, "{what}");
        assert_ne!(plain(&one), plain(&run(1, 4)?), "{what}");
    }
    Ok(())
}

#[test]
fn stop_tokens_and_the_caller_end_it_and_the_context_bounds_it() -> Result<()> {
    let (prompt, expected) = golden()?;
    let mut session = Session::new(model("llama")?, 128)?;
    let stop = *expected.get(4).ok_or_else(|| Error::invalid("short"))?;
    let until = expected.iter().position(|id| *id == stop).unwrap_or(0);
    let with_stop = Options { stop_tokens: vec![stop], ..options(50, 0.0, 0) };
    let (made, steps) = tokens(&mut session, &prompt, &with_stop, None)?;
    assert_eq!((plain(&made).as_slice(), steps.finish), (&expected[..until], Finish::Stop));
    let mut count = 0;
    let steps = generate::run(&mut session, &prompt, &options(50, 0.0, 0), None, None, &mut |_| {
        count += 1;
        Ok(count < 3)
    })?;
    assert_eq!((count, steps.finish), (3, Finish::Caller));
    let mut small = Session::new(model("llama")?, prompt.len() + 3)?;
    let (made, steps) = tokens(&mut small, &prompt, &options(50, 0.0, 0), None)?;
    assert_eq!((plain(&made).as_slice(), steps.finish), (&expected[..3], Finish::Length));
    Ok(())
}

#[test]
fn prompts_that_cannot_be_read_are_one_clear_error_each() -> Result<()> {
    let mut session = Session::new(model("llama")?, 8)?;
    let mut said = |prompt: &[u32], options: &Options| {
        tokens(&mut session, prompt, options, None).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let fine = options(4, 0.0, 0);
    assert_eq!(said(&[], &fine), "prompt: expected at least one token, got none");
    assert_eq!(said(&[1; 9], &fine), "prompt: its 9 tokens leave no room to answer in a context of 8");
    assert!(said(&[1, 9999], &fine).starts_with("token id 9999 is out of range; the model has"));
    assert_eq!(said(&[1], &options(0, 0.0, 0)), "max_tokens: expected at least 1, got 0");
    assert!(said(&[1], &options(4, -1.0, 0)).starts_with("temperature: expected 0 to 100, got -1"));
    assert!(Session::new(model("llama")?, 0).is_err());
    Ok(())
}

/// Guesses the true greedy continuation, but every third token wrong.
struct Half(Vec<u32>);

impl Draft for Half {
    fn guess(&mut self, history: &[u32], count: usize) -> Result<Vec<Guess>> {
        let rest = self.0.get(history.len()..).unwrap_or_default();
        let wrong = |(at, id): (usize, &u32)| match (history.len() + at).is_multiple_of(3) {
            true => (id + 1) % 50,
            false => *id,
        };
        let guess = |token| Guess { token, weights: vec![(token, 1.0)] };
        Ok(rest.iter().enumerate().map(wrong).map(guess).take(count.min(4)).collect())
    }
}

#[test]
fn speculative_greedy_writes_the_same_tokens_in_fewer_passes() -> Result<()> {
    let (prompt, expected) = golden()?;
    let decoder = model("llama")?;
    let fine = options(expected.len(), 0.0, 0);
    let same = |draft: &mut dyn Draft| -> Result<generate::Steps> {
        let mut session = Session::new(Arc::clone(&decoder), 128)?;
        let (made, steps) = tokens(&mut session, &prompt, &fine, Some(draft))?;
        assert_eq!(plain(&made), expected);
        assert!(steps.accepted <= steps.drafted);
        Ok(steps)
    };
    let itself = Session::new(Arc::clone(&decoder), 128)?;
    let vocab = itself.vocab();
    let steps = same(&mut ModelDraft::new(itself, vocab, &fine.sampling, 1, 3)?)?;
    assert_eq!(steps.accepted, steps.drafted);
    assert!(steps.passes <= expected.len().div_ceil(4) + 1, "{steps:?}");
    let other = Session::new(model("llama_linear")?, 128)?;
    if other.vocab() == vocab {
        same(&mut ModelDraft::new(other, vocab, &fine.sampling, 1, 3)?)?;
    }
    let steps = same(&mut Half([prompt.as_slice(), &expected].concat()))?;
    assert!(
        steps.accepted > 0 && steps.accepted < steps.drafted && steps.passes < expected.len(),
        "{steps:?}"
    );
    same(&mut LookupDraft { most: 4, longest: 2, shortest: 1 })?;
    let misfit = ModelDraft::new(Session::new(decoder, 8)?, 7, &fine.sampling, 0, 3).err();
    assert!(misfit.is_some_and(|e| e.to_string().contains("expected the same vocabulary")));
    Ok(())
}

/// A draft with a distribution of its own, far from the model's.
struct Skewed {
    sampler: vela_llm::Sampler,
}

impl Draft for Skewed {
    fn guess(&mut self, history: &[u32], count: usize) -> Result<Vec<Guess>> {
        let mut out = Vec::new();
        for _ in 0..count.min(2) {
            let mut logits: Vec<f32> =
                (0..12).map(|id| ((id * 7 + history.len()) % 5) as f32 * 0.5).collect();
            let weights = self.sampler.distribution(&mut logits, history)?;
            out.push(Guess { token: self.sampler.draw(&weights), weights });
        }
        Ok(out)
    }
}

#[test]
fn speculative_sampling_leaves_the_distribution_as_it_is() -> Result<()> {
    let decoder = model("llama")?;
    let prompt = [3u32, 1, 4];
    let sampling = SamplingParams { temperature: 0.7, top_k: 6, ..Default::default() };
    // Exact probabilities of pairs of tokens: of the first, times of the second given the first.
    let mut session = Session::new(Arc::clone(&decoder), 32)?;
    let mut probe = vela_llm::Sampler::new(&sampling, 0)?;
    let mut after = |ids: &[u32]| -> Result<Vec<(u32, f32)>> {
        session.rewind(0);
        let mut logits = session.read(ids, 1)?.pop().unwrap_or_default();
        probe.distribution(&mut logits, ids)
    };
    let mut exact = std::collections::BTreeMap::new();
    for (a, p) in after(&prompt)? {
        for (b, q) in after(&[prompt.as_slice(), &[a]].concat())? {
            exact.insert((a, b), f64::from(p) * f64::from(q));
        }
    }
    let mut ranked: Vec<(u32, f32)> = after(&prompt)?;
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let likely = [ranked[0].0, ranked[1].0];
    let draws = 4000;
    for lookup in [false, true] {
        let mut counts = std::collections::BTreeMap::new();
        let mut session = Session::new(Arc::clone(&decoder), 32)?;
        let (mut drafted, mut accepted) = (0, 0);
        for seed in 0..draws {
            let params = SamplingParams { temperature: 1.0, ..Default::default() };
            let mut skewed = Skewed { sampler: vela_llm::Sampler::for_purpose(&params, seed, "draft")? };
            let mut certain = Certain(likely);
            let draft: &mut dyn Draft = if lookup { &mut certain } else { &mut skewed };
            let options = Options { max_tokens: 3, sampling: sampling.clone(), seed, ..Default::default() };
            let (made, steps) = tokens(&mut session, &prompt, &options, Some(draft))?;
            let made = plain(&made);
            *counts.entry((made[0], made[1])).or_insert(0.0) += 1.0;
            drafted += steps.drafted;
            accepted += steps.accepted;
        }
        assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted}");
        assert!(counts.keys().all(|pair| exact.contains_key(pair)));
        // Pearson's statistic over the 36 pairs; rare ones are taken together.
        let (mut statistic, mut rare, mut rare_mean, mut cells) = (0.0, 0.0, 0.0, 0);
        for (pair, p) in &exact {
            let (count, mean) = (counts.get(pair).copied().unwrap_or(0.0), p * draws as f64);
            if mean < 8.0 {
                rare += count;
                rare_mean += mean;
            } else {
                statistic += (count - mean) * (count - mean) / mean;
                cells += 1;
            }
        }
        if rare_mean > 0.0 {
            statistic += (rare - rare_mean) * (rare - rare_mean) / rare_mean;
        }
        // The mean is the number of cells, the variance twice that: five deviations.
        let bound = f64::from(cells) + 5.0 * (2.0 * f64::from(cells)).sqrt();
        assert!(statistic < bound, "lookup {lookup}: {statistic} over {cells} cells, bound {bound}");
    }
    Ok(())
}

/// Always the same two tokens, for certain: what a look-up guesses.
struct Certain([u32; 2]);

impl Draft for Certain {
    fn guess(&mut self, _: &[u32], count: usize) -> Result<Vec<Guess>> {
        Ok(self.0.iter().map(|id| Guess { token: *id, weights: vec![(*id, 1.0)] }).take(count).collect())
    }
}

#[test]
fn look_up_copies_what_followed_the_last_time() -> Result<()> {
    let mut draft = LookupDraft { most: 3, longest: 2, shortest: 1 };
    let tokens = |guesses: Vec<Guess>| guesses.iter().map(|guess| guess.token).collect::<Vec<_>>();
    assert_eq!(tokens(draft.guess(&[1, 2, 3, 4, 5, 1, 2], 9)?), [3, 4, 5]);
    assert_eq!(tokens(draft.guess(&[7, 8, 9, 8], 9)?), [9, 8]);
    assert_eq!(tokens(draft.guess(&[1, 2, 3, 4, 5, 1, 2], 1)?), [3]);
    assert!(draft.guess(&[1, 2, 3], 9)?.is_empty() && draft.guess(&[], 9)?.is_empty());
    Ok(())
}

fn score_of(decoder: &Arc<Decoder>, prompt: &[u32], made: &[u32]) -> Result<f32> {
    let mut session = Session::new(Arc::clone(decoder), 64)?;
    let all = [prompt, made].concat();
    let rows = session.read(&all[..all.len() - 1], made.len())?;
    let one = |(row, id): (&Vec<f32>, &u32)| Ok(log_softmax(row)?[*id as usize]);
    rows.iter().zip(made).map(one).sum()
}

#[test]
fn beams_find_the_best_and_one_beam_is_greedy() -> Result<()> {
    let (prompt, expected) = golden()?;
    let decoder = model("llama")?;
    let vocab = decoder.config().vocab;
    let base = BeamOptions { beams: 1, max_tokens: 6, length_penalty: 0.0, stop_tokens: Vec::new() };
    assert_eq!(beam::search(&decoder, &prompt, &base)?[0].tokens, expected[..6]);
    // With as many beams as tokens, two steps see every pair: the best of them all.
    let wide = beam::search(&decoder, &prompt, &BeamOptions { beams: vocab, max_tokens: 2, ..base.clone() })?;
    let mut best = (f32::NEG_INFINITY, vec![]);
    let mut session = Session::new(Arc::clone(&decoder), 64)?;
    let first = log_softmax(&session.read(&prompt, 1)?[0])?;
    for (a, p) in first.iter().enumerate() {
        session.rewind(prompt.len());
        let second = log_softmax(&session.read(&[a as u32], 1)?[0])?;
        for (b, q) in second.iter().enumerate() {
            if p + q > best.0 {
                best = (p + q, vec![a as u32, b as u32]);
            }
        }
    }
    assert_eq!(wide[0].tokens, best.1);
    assert!((wide[0].logprob - best.0).abs() < 1e-4);
    assert!(wide.windows(2).all(|pair| pair[0].score >= pair[1].score));
    // Log-probabilities are the model's, and more beams are never worse.
    let four = beam::search(&decoder, &prompt, &BeamOptions { beams: 4, ..base.clone() })?;
    assert_eq!(four.len(), 4);
    for found in &four {
        assert!((found.logprob - score_of(&decoder, &prompt, &found.tokens)?).abs() < 1e-3);
    }
    assert!(four[0].logprob >= score_of(&decoder, &prompt, &expected[..6])? - 1e-4);
    Ok(())
}

#[test]
fn the_length_penalty_favours_longer_texts() -> Result<()> {
    let (prompt, expected) = golden()?;
    let decoder = model("llama")?;
    let found = |length_penalty| {
        let options = BeamOptions { beams: 3, max_tokens: 8, length_penalty, stop_tokens: vec![expected[0]] };
        beam::search(&decoder, &prompt, &options)
    };
    // The likeliest first token ends it: without a penalty that one token wins, with a strong one the longest text does.
    assert!(found(0.0)?[0].tokens.is_empty());
    assert_eq!(found(8.0)?[0].tokens.len(), 8);
    let wrong = BeamOptions { beams: 0, max_tokens: 8, length_penalty: 0.0, stop_tokens: vec![] };
    assert!(beam::search(&decoder, &prompt, &wrong).is_err());
    assert!(beam::search(&decoder, &[9999], &BeamOptions { beams: 1, ..wrong }).is_err());
    Ok(())
}
