//! The engine gives each request what it would get alone: paged, batched, cut in chunks, from the prefix cache, put back
//! and read again, whatever comes and goes meanwhile.

mod engine_common;

use engine_common::{Ask, Outcome, Said, alone, clock, golden, random_asks, tiny};
use rand::Rng;
use std::path::Path;
use std::sync::mpsc;
use vela_llm::engine::{
    BLOCK, Engine, EngineConfig, Event, Finish, Guide, PagedKind, PromptItem, Refusal, Request,
};
use vela_llm::gguf;
use vela_nn::quant::Precision;
use vela_nn::{Error, Gguf, Tensor, random::stream};

/// A cache of so many blocks of the tiny decoder.
fn config(decoder: &vela_llm::Decoder, blocks: usize) -> EngineConfig {
    let of = decoder.config();
    let block = of.layers * of.kv_heads * of.head_dim * BLOCK * 2 * 4;
    EngineConfig { cache_bytes: blocks * block, threads: 1, ..EngineConfig::default() }
}

/// Decoder-only families with a reference run of their own.
const FAMILIES: [&str; 16] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "llama_linear",
    "llama_llama3",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
];

#[test]
fn every_family_says_what_its_reference_said() -> Outcome {
    for family in FAMILIES {
        let (decoder, prompts) = golden(family)?;
        for (step_tokens, blocks) in [(256, 64), (16, 64), (16, 6)] {
            let config = EngineConfig { step_tokens, ..config(&decoder, blocks) };
            let engine = Engine::start(decoder.clone(), config, clock())?;
            let ask = |(prompt, said): &Said| engine.submit(Request::new(prompt, said.len()));
            let many: Vec<_> = prompts.iter().cycle().take(5).map(ask).collect::<Result<_, _>>()?;
            for (answer, (_, said)) in many.into_iter().zip(prompts.iter().cycle()) {
                let done = answer.wait();
                assert_eq!((done.tokens(), done.finish), (said.clone(), Finish::Length), "{family}");
            }
        }
    }
    Ok(())
}

#[test]
fn any_interleaving_gives_what_each_gives_alone() -> Outcome {
    for seed in 0..12 {
        let mut rng = stream(seed, "engine");
        let decoder = tiny(seed)?;
        let blocks = rng.random_range(10..40);
        let config = EngineConfig {
            max_running: rng.random_range(1..7),
            max_waiting: 1000,
            step_tokens: rng.random_range(16..80),
            prefix_cache: rng.random_bool(0.8),
            ..config(&decoder, blocks)
        };
        let engine = Engine::start(decoder.clone(), config, clock())?;
        let asks = random_asks(&mut rng, &decoder, 30, blocks * BLOCK)?;
        let mut open = Vec::new();
        let mut dropped = 0;
        for ask in &asks {
            open.push((ask, engine.submit(ask.request())?));
            if rng.random_bool(0.3) {
                // Cancelled, perhaps after a few tokens.
                let at = rng.random_range(0..open.len());
                let (_, mut answer) = open.swap_remove(at);
                for _ in 0..rng.random_range(0..4) {
                    answer.next_blocking();
                }
                dropped += 1;
            } else if rng.random_bool(0.3) {
                let (ask, answer) = open.swap_remove(0);
                assert_eq!(answer.wait().tokens(), alone(&decoder, ask)?, "seed {seed}");
            }
        }
        for (ask, answer) in open {
            let done = answer.wait();
            assert_eq!(done.tokens(), alone(&decoder, ask)?, "seed {seed}");
            assert_eq!(done.finish, Finish::Length);
        }
        engine.drain();
        let m = engine.metrics();
        assert_eq!((m.running, m.waiting, m.wasted_tokens), (0, 0, 0));
        assert_eq!(m.free_blocks + m.evictable_blocks, blocks, "seed {seed}: a block is lost");
        assert_eq!(m.finished + m.cancelled, asks.len() as u64);
        assert!(m.failed == 0 && m.cancelled <= dropped);
    }
    Ok(())
}

/// Lets every token pass, the first not before it is told to: the engine stays at work for as long as the test wants.
struct Held(mpsc::Receiver<()>);

impl Guide for Held {
    fn restrict(&mut self, _: &mut [f32]) -> vela_nn::Result<()> {
        // An error is the sender's end: go on.
        let _ = self.0.recv();
        Ok(())
    }

    fn advance(&mut self, _: u32) -> vela_nn::Result<()> {
        Ok(())
    }

    fn is_complete(&self) -> bool {
        false
    }
}

#[test]
fn a_small_cache_puts_back_and_reads_again() -> Outcome {
    let decoder = tiny(3)?;
    let engine =
        Engine::start(decoder.clone(), EngineConfig { step_tokens: 32, ..config(&decoder, 8) }, clock())?;
    let asks: Vec<Ask> =
        (0..6).map(|k| Ask::of_tokens((0..20).map(|i| (i * (k + 3)) % 50).collect(), 60)).collect();
    let (release, held) = mpsc::channel();
    let mut guide: Option<Box<dyn Guide>> = Some(Box::new(Held(held)));
    let mut submit = |ask: &Ask| engine.submit(Request { guide: guide.take(), ..ask.request() });
    let open: Vec<_> = asks.iter().map(&mut submit).collect::<Result<_, _>>()?;
    drop(release);
    for (ask, answer) in asks.iter().zip(open) {
        assert_eq!(answer.wait().tokens(), alone(&decoder, ask)?);
    }
    engine.drain();
    assert!(engine.metrics().preemptions > 0);
    Ok(())
}

#[test]
fn a_known_prefix_is_not_read_again_and_changes_nothing() -> Outcome {
    let decoder = tiny(4)?;
    let engine = Engine::start(decoder.clone(), config(&decoder, 64), clock())?;
    let first = Ask::of_tokens((0..70).map(|i| i % 41).collect(), 9);
    let done = engine.submit(first.request())?.wait();
    assert_eq!((done.usage.cached_tokens, done.usage.prompt_tokens), (0, 70));
    // The next turn of the talk: prompt, answer, and something new.
    let mut turn: Vec<u32> = (0..70).map(|i| i % 41).chain(done.tokens()).collect();
    turn.extend([3, 1, 4]);
    let second = Ask::of_tokens(turn, 9);
    let again = engine.submit(second.request())?.wait();
    assert_eq!(again.tokens(), alone(&decoder, &second)?);
    assert_eq!(again.usage.cached_tokens, 78, "all but the last token that was never read, and the new ones");
    assert_eq!(engine.submit(first.request())?.wait().tokens(), done.tokens());
    Ok(())
}

/// A request whose prompt is one row of embeddings.
fn embeds(row: &[f32], width: usize) -> vela_nn::Result<Request> {
    let rows = Tensor::from_slice(row, (1, width), &vela_nn::Device::Cpu)?;
    Ok(Request { prompt: vec![PromptItem::Embeds { hash: 1, rows }], ..Request::new(&[], 1) })
}

#[test]
fn a_full_queue_is_busy_and_what_cannot_be_answered_is_refused() -> Outcome {
    let decoder = tiny(5)?;
    let config = EngineConfig { max_running: 1, max_waiting: 2, ..config(&decoder, 8) };
    let engine = Engine::start(decoder.clone(), config, clock())?;
    let (release, held) = mpsc::channel();
    let first = Request { guide: Some(Box::new(Held(held))), ..Request::new(&[1, 2, 3], 100) };
    let mut open = vec![engine.submit(first)?];
    for _ in 0..2 {
        open.push(engine.submit(Request::new(&[1, 2, 3], 100))?);
    }
    let refused = engine.submit(Request::new(&[1], 1));
    assert!(matches!(refused, Err(Refusal::Busy { in_flight: 3 })), "{refused:?}");
    drop(release);
    for answer in open {
        assert_eq!(answer.wait().usage.generated_tokens, 100);
    }
    let long: Vec<u32> = vec![1; 8 * BLOCK];
    for (request, says) in [
        (Request::new(&long, 1), "at most 127 tokens"),
        (Request::new(&[], 1), "at least one token"),
        (Request::new(&[1], 0), "max_tokens"),
        (Request::new(&[9999], 1), "below"),
        (Request { whole: 5, ..Request::new(&[1], 1) }, "at most the 1 positions"),
        (Request { axes: Some(vec![[0; 3]; 2]), ..Request::new(&[1], 1) }, "one for each of 1"),
        (Request { axes: Some(vec![[0; 3]]), ..Request::new(&[1], 1) }, "one axis"),
        (embeds(&[f32::NAN; 24], 24)?, "finite"),
        (embeds(&[0.0; 8], 8)?, "[n, 24]"),
    ] {
        let refused = engine.submit(request).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains(says), "{refused}");
    }
    // As long as the cache, to the last place.
    let done = engine.submit(Request::new(&long[..100], 1000))?.wait();
    assert_eq!((done.finish, done.usage.generated_tokens), (Finish::Length, 28));
    Ok(())
}

#[test]
fn many_threads_may_ask_at_once() -> Outcome {
    let decoder = tiny(9)?;
    let config = EngineConfig { max_running: 3, max_waiting: 100, ..config(&decoder, 24) };
    let engine = Engine::start(decoder.clone(), config, clock())?;
    let asks: Vec<Ask> = (0..4).map(|k| Ask::of_tokens((k..k + 30).collect(), 20)).collect();
    let wanted = asks.iter().map(|ask| alone(&decoder, ask)).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        for (ask, wanted) in asks.iter().zip(&wanted) {
            let engine = &engine;
            scope.spawn(move || {
                for _ in 0..10 {
                    let answer = engine.submit(ask.request()).map(|answer| answer.wait().tokens());
                    assert_eq!(answer.ok().as_ref(), Some(wanted));
                }
            });
        }
    });
    engine.drain();
    assert_eq!(engine.metrics().finished, 40);
    Ok(())
}

#[test]
fn drains_and_stops() -> Outcome {
    let decoder = tiny(6)?;
    let engine = Engine::start(decoder.clone(), config(&decoder, 32), clock())?;
    let open: Vec<_> = (0..4).map(|_| engine.submit(Request::new(&[1, 2], 20))).collect::<Result<_, _>>()?;
    engine.drain();
    assert!(matches!(engine.submit(Request::new(&[1], 1)), Err(Refusal::Closed)));
    for answer in open {
        assert_eq!(answer.wait().finish, Finish::Length);
    }
    let engine = Engine::start(decoder.clone(), config(&decoder, 3200), clock())?;
    // Seconds of work: it cannot be done before the engine goes.
    let mut answer = engine.submit(Request::new(&[1, 2], 50_000))?;
    assert!(matches!(answer.next_blocking(), Some(Event::Token(_))));
    drop(engine);
    assert_eq!(answer.wait().finish, Finish::Closed);
    Ok(())
}

/// Only even tokens, five of them.
struct Even(usize);

impl Guide for Even {
    fn restrict(&mut self, logits: &mut [f32]) -> vela_nn::Result<()> {
        if self.0 == 4 {
            return Err(Error::invalid("nothing may follow four"));
        }
        logits.iter_mut().skip(1).step_by(2).for_each(|x| *x = f32::NEG_INFINITY);
        Ok(())
    }

    fn advance(&mut self, _: u32) -> vela_nn::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.0 == 3
    }
}

#[test]
fn a_guide_narrows_stop_tokens_end_and_a_failure_touches_only_its_request() -> Outcome {
    let decoder = tiny(7)?;
    let engine = Engine::start(decoder.clone(), config(&decoder, 32), clock())?;
    let guided = |from: usize| Request { guide: Some(Box::new(Even(from))), ..Request::new(&[5, 6, 7], 9) };
    let (good, bad, plain) =
        (engine.submit(guided(0))?, engine.submit(guided(3))?, engine.submit(Request::new(&[5, 6, 7], 9))?);
    let done = good.wait();
    assert_eq!((done.choices.len(), done.finish.clone()), (3, Finish::Complete));
    assert!(done.tokens().iter().all(|token| token % 2 == 0));
    let failed = bad.wait();
    assert_eq!(failed.finish, Finish::Failed("nothing may follow four".into()), "{:?}", failed.choices);
    let tokens = plain.wait().tokens();
    assert_eq!(tokens, alone(&decoder, &Ask::of_tokens(vec![5, 6, 7], 9))?);
    let stop = Request { stop: vec![tokens[4]], ..Request::new(&[5, 6, 7], 9) };
    let stopped = engine.submit(stop)?.wait();
    let first = tokens.iter().position(|token| *token == tokens[4]).unwrap_or(0);
    assert_eq!(
        (stopped.finish.clone(), stopped.tokens()),
        (Finish::Stop(tokens[4]), tokens[..first].to_vec())
    );
    Ok(())
}

#[test]
fn a_model_that_fails_fails_its_requests_and_the_engine_goes_on() -> Outcome {
    let mute = engine_common::mute(8)?;
    let engine = Engine::start(mute.clone(), config(&mute, 32), clock())?;
    for _ in 0..3 {
        let finish = engine.submit(Request::new(&[1, 2, 3], 4))?.wait().finish;
        assert!(matches!(&finish, Finish::Failed(why) if why.contains("lm_head")), "{finish:?}");
    }
    engine.drain();
    let m = engine.metrics();
    assert_eq!((m.failed, m.free_blocks + m.evictable_blocks), (3, m.blocks));
    Ok(())
}

#[test]
fn int8_keys_and_values_cost_little() -> Outcome {
    let (decoder, prompts) = golden("llama")?;
    let (prompt, expected) = prompts.into_iter().next().unwrap_or_default();
    let plain = engine_common::logits(&decoder, &[&prompt], PagedKind::F32, 7)?.concat();
    let spread = plain.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (kind, bound) in [(PagedKind::F16, 2e-3), (PagedKind::Int8, 2e-2)] {
        let got = engine_common::logits(&decoder, &[&prompt], kind, 7)?.concat();
        let worst = plain.iter().zip(&got).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / spread;
        eprintln!("{kind:?}: worst logit error {worst:.2e} of the spread");
        assert!(worst < bound, "{kind:?}: {worst}");
    }
    let config = EngineConfig { kind: PagedKind::Int8, ..config(&decoder, 32) };
    let engine = Engine::start(decoder, config, clock())?;
    let done = engine.submit(Request::new(&prompt, expected.len()))?.wait();
    assert_eq!(done.usage.generated_tokens, expected.len());
    Ok(())
}

#[test]
fn in_few_bits_neighbours_change_nothing_and_cuts_the_last_digits() -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf_llama/model.gguf");
    let decoder = gguf::decoder(&Gguf::open(&path)?, Precision::Fast)?;
    let prompt = |length: u32, step: u32| (0..length).map(|i| (i * step + 3) % 120).collect::<Vec<u32>>();
    let prompts = [prompt(39, 7), prompt(20, 11), prompt(53, 5), prompt(1, 1), prompt(33, 13)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut cuts = Vec::new();
    for chunk in [64, 16, 5, 1] {
        let together = engine_common::logits(&decoder, &prompts, PagedKind::F32, chunk)?;
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone = engine_common::logits(&decoder, &[prompt], PagedKind::F32, chunk)?.concat();
            assert!(alone == *together, "{} positions in chunks of {chunk}", prompt.len());
        }
        cuts.push(together.concat());
    }
    let spread = cuts[0].iter().fold(0f32, |most, x| most.max(x.abs()));
    for (cut, chunk) in cuts[1..].iter().zip([16, 5, 1]) {
        let worst = cuts[0].iter().zip(cut).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / spread;
        eprintln!("chunks of {chunk}: worst logit difference {worst:.2e} of the greatest");
        assert!(worst < 4e-2, "chunks of {chunk}: {worst}");
    }
    Ok(())
}
