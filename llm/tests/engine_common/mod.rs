//! Tiny decoders, random requests, and what each gives alone.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vela_llm::engine::{BLOCK, Clock, PagedKind, PromptItem, Request};
use vela_llm::paged::PagedBatch;
use vela_llm::{Cache, Decoder, DecoderConfig, Sampler, SamplingParams, trace};
use vela_nn::paged::{PagedShape, PagedStore, Span};
use vela_nn::{Device, Heads, Mask, Result, Tensor, Weights, random};

pub type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// A clock that ticks a microsecond at each look.
pub fn clock() -> Clock {
    let ticks = AtomicU64::new(0);
    Arc::new(move || 1000 * ticks.fetch_add(1, Ordering::Relaxed))
}

fn of_config(seed: u64, speaks: bool) -> Result<Arc<Decoder>> {
    // Every fourth has positions on three axes.
    let rope = if seed % 4 == 3 { json!({"type": "mrope", "mrope_section": [2, 1, 1]}) } else { json!(null) };
    let config = DecoderConfig::from_hf(&json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1 << (seed % 3), "head_dim": 6 + 2 * (seed % 2),
        "tie_word_embeddings": seed.is_multiple_of(2), "rope_scaling": rope
    }))?;
    let make = |weights: &Weights| Decoder::new(speaks.then_some(weights), &weights.pp("model"), &config);
    let fresh = Weights::fresh(seed);
    make(&fresh)?;
    // Constants, and larger than training starts with: the tokens then differ.
    let constant =
        |(name, var): &(String, vela_nn::Var)| Ok((name.clone(), (var.as_tensor().detach() * 3.0)?));
    let tensors: HashMap<String, Tensor> = fresh.trainable().iter().map(constant).collect::<Result<_>>()?;
    Ok(Arc::new(make(&Weights::from_tensors(tensors))?))
}

/// A small decoder with random constant weights.
pub fn tiny(seed: u64) -> Result<Arc<Decoder>> {
    of_config(seed, true)
}

/// The same without an output projection.
pub fn mute(seed: u64) -> Result<Arc<Decoder>> {
    of_config(seed, false)
}

/// A prompt, and what a reference went on with.
pub type Said = (Vec<u32>, Vec<u32>);

/// A golden model, and its prompts with what its reference generated.
pub fn golden(case: &str) -> Result<(Arc<Decoder>, Vec<Said>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(case);
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let ids = |name: &str| -> Result<Vec<Vec<u32>>> {
        Ok(trace::input(&golden, name)?.to_dtype(vela_nn::DType::U32)?.to_vec2()?)
    };
    let prompts = ids("in.input_ids")?.into_iter().zip(ids("out.generated")?).collect();
    Ok((Arc::new(vela_llm::load(&dir)?), prompts))
}

/// A request that can be asked again.
#[derive(Clone, Debug)]
pub struct Ask {
    prompt: Vec<PromptItem>,
    whole: usize,
    axes: Option<Vec<[u32; 3]>>,
    sampling: SamplingParams,
    seed: u64,
    count: usize,
}

impl Ask {
    /// Greedy, tokens only.
    pub fn of_tokens(tokens: Vec<u32>, count: usize) -> Self {
        let prompt = tokens.into_iter().map(PromptItem::Token).collect();
        Self { prompt, whole: 0, axes: None, sampling: SamplingParams::default(), seed: 0, count }
    }

    pub fn request(&self) -> Request {
        Request {
            prompt: self.prompt.clone(),
            whole: self.whole,
            axes: self.axes.clone(),
            sampling: self.sampling.clone(),
            seed: self.seed,
            ..Request::new(&[], self.count)
        }
    }
}

/// Requests with common beginnings, pictures, prefixes that see themselves, greedy and not.
pub fn random_asks(
    rng: &mut ChaCha8Rng,
    decoder: &Decoder,
    count: usize,
    capacity: usize,
) -> Result<Vec<Ask>> {
    let width = decoder.config().width;
    let pictures: Vec<Tensor> =
        (0..3).map(|k| random::normal(k, "picture", (7 + 3 * k as usize, width))).collect::<Result<_>>()?;
    let ask = |_| {
        let length = rng.random_range(1..capacity / 3);
        let kind = rng.random_range(0..3);
        let shared = rng.random_range(0..length + 1);
        let mut prompt: Vec<PromptItem> = (0..length as u32)
            .map(|i| PromptItem::Token(if (i as usize) < shared { i % 37 } else { rng.random_range(0..61) }))
            .collect();
        if rng.random_bool(0.4) {
            let rows = pictures[kind].clone();
            let at = rng.random_range(0..prompt.len().min(4));
            prompt.insert(at, PromptItem::Embeds { hash: kind as u128, rows });
        }
        let sampling = SamplingParams {
            temperature: if rng.random_bool(0.5) { 1.3 } else { 0.0 },
            repetition_penalty: if rng.random_bool(0.3) { 1.2 } else { 1.0 },
            ..SamplingParams::default()
        };
        let whole = if rng.random_bool(0.2) { prompt.len() / 2 } else { 0 };
        let (seed, count) = (rng.random_range(0..3), rng.random_range(1..=capacity / 4));
        let mut ask = Ask { prompt, whole, axes: None, sampling, seed, count };
        if decoder.config().rope.sections.is_some() {
            let rows = ask.request().positions() as u32;
            ask.axes = Some((0..rows).map(|i| [i / 2, i % 5 + i / 3, i / 4]).collect());
        }
        ask
    };
    Ok((0..count).map(ask).collect())
}

/// What a request gives by the plain cache: one pass over the prompt, then token by token.
pub fn alone(decoder: &Decoder, ask: &Ask) -> Result<Vec<u32>> {
    let mut history = Vec::new();
    let mut parts = Vec::new();
    for item in &ask.prompt {
        parts.push(match item {
            PromptItem::Token(id) => {
                history.push(*id);
                decoder.embed(&Tensor::new(&[[*id]], &Device::Cpu)?)?
            }
            PromptItem::Embeds { rows, .. } => rows.unsqueeze(0)?,
        });
    }
    let mut embeds = Tensor::cat(&parts, 1)?;
    let mut sampler = Sampler::new(&ask.sampling, ask.seed)?;
    let (mut cache, mut made) = (Cache::new(), Vec::new());
    while made.len() < ask.count {
        let (start, length) = (cache.len(), embeds.dim(1)?);
        let all = start + length;
        let block = |i: usize| if i < ask.whole { 0 } else { i as u32 + 1 };
        let mask = Mask::blocks((start..all).map(block).collect(), (0..all).map(block).collect(), Vec::new());
        let positions = match &ask.axes {
            None => Tensor::arange(start as u32, all as u32, &Device::Cpu)?,
            Some(axes) => {
                let next = axes.iter().flatten().max().map_or(0, |last| last + 1);
                let place = |at: usize| axes.get(at).copied().unwrap_or([next + (at - axes.len()) as u32; 3]);
                let axis = |k: usize| vec![(start..all).map(|at| place(at)[k]).collect::<Vec<u32>>()];
                Tensor::new(vec![axis(0), axis(1), axis(2)], &Device::Cpu)?
            }
        };
        let hidden = decoder.forward(&embeds, &positions, &mask, &mut cache)?;
        let last = decoder.normalise(&hidden.narrow(1, length - 1, 1)?.contiguous()?)?;
        let mut logits = decoder.logits(&last)?.flatten_all()?.to_vec1::<f32>()?;
        let token = sampler.next(&mut logits, &history)?.token;
        made.push(token);
        history.push(token);
        embeds = decoder.embed(&Tensor::new(&[[token]], &Device::Cpu)?)?;
    }
    Ok(made)
}

/// The logits of every position of some prompts that go through a paged store side by side, in chunks.
pub fn logits(decoder: &Decoder, prompts: &[&[u32]], kind: PagedKind, chunk: usize) -> Result<Vec<Vec<f32>>> {
    let of = decoder.config();
    let heads = Heads { query: of.heads, key: of.kv_heads };
    let shape = PagedShape { layers: of.layers, heads, head_dim: of.head_dim, kind };
    let mut blocks: Vec<Vec<u32>> = Vec::new();
    let mut count = 0;
    for prompt in prompts {
        let own = count..count + prompt.len().div_ceil(BLOCK) as u32;
        count = own.end;
        blocks.push(own.rev().collect());
    }
    let mut store = PagedStore::new(shape, count as usize)?;
    let mut logits = vec![Vec::new(); prompts.len()];
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or_default();
    for start in (0..longest).step_by(chunk) {
        let (mut spans, mut ids, mut positions, mut whose) = (vec![], vec![], vec![], vec![]);
        for (k, (prompt, blocks)) in prompts.iter().zip(&blocks).enumerate() {
            let part = prompt.get(start..prompt.len().min(start + chunk)).unwrap_or_default();
            if !part.is_empty() {
                spans.push(Span { blocks, start, rows: part.len(), whole: 0 });
                ids.extend_from_slice(part);
                positions.extend(start as u32..(start + part.len()) as u32);
                whose.resize(whose.len() + part.len(), k);
            }
        }
        let embeds = decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        let positions = Tensor::new(positions, &Device::Cpu)?;
        let mut batch = PagedBatch::new(&mut store, &spans);
        let hidden = decoder.forward(&embeds, &positions, &Mask::Causal, &mut batch)?;
        let rows = decoder.logits(&decoder.normalise(&hidden)?)?.squeeze(0)?.to_vec2::<f32>()?;
        whose.into_iter().zip(rows).for_each(|(k, row)| logits[k].extend(row));
    }
    Ok(logits)
}
