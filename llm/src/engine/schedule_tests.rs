//! The scheduler against a pretended model: memory holds, instead of keys and values, a hash of the prefix that they
//! would depend on, and the next token is a function of that hash.

#![allow(clippy::panic)]

use super::pool::BlockPool;
use super::prefix::{BLOCK, Key};
use super::schedule::{Limits, Plan, Scheduler, Sequence};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use vela_nn::random::stream;

/// FNV-1a over the keys.
fn hash(keys: &[Key]) -> u64 {
    keys.iter().fold(0xcbf2_9ce4_8422_2325, |hash, key| {
        let word = match key {
            Key::Token(id) => u64::from(*id),
            Key::Row { hash, row } => (*hash as u64) << 32 | u64::from(*row) | 1 << 63,
        };
        (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn next_token(keys: &[Key]) -> Key {
    Key::Token((hash(keys) >> 17) as u32 % 3)
}

/// What the sequence would generate alone.
fn alone(prompt: &[Key], count: usize) -> Vec<Key> {
    let mut keys = prompt.to_vec();
    for _ in 0..count {
        keys.push(next_token(&keys));
    }
    keys.split_off(prompt.len())
}

struct Pretended {
    scheduler: Scheduler,
    memory: HashMap<(u32, usize), u64>,
    wanted: HashMap<u64, (usize, Vec<Key>)>,
    step_tokens: usize,
    done: usize,
}

impl Pretended {
    fn new(limits: Limits) -> Self {
        let (memory, wanted) = (HashMap::new(), HashMap::new());
        Self { scheduler: Scheduler::new(limits), memory, wanted, step_tokens: limits.step_tokens, done: 0 }
    }

    fn push(&mut self, id: u64, prompt: Vec<Key>, count: usize, whole: usize) {
        self.wanted.insert(id, (prompt.len(), alone(&prompt, count)));
        self.scheduler.push(Sequence::new(id, prompt, whole));
    }

    /// Plans, reads and writes memory as a model would, checks what it read. False if there was nothing to do.
    fn step(&mut self) -> bool {
        let plan = self.scheduler.plan();
        self.check_plan(&plan);
        for copy in &plan.copies {
            for row in 0..copy.rows {
                let content = self.memory.get(&(copy.from, row)).copied();
                self.memory.insert((copy.to, row), content.unwrap_or_default());
            }
        }
        let mut chosen = Vec::new();
        for work in &plan.work {
            let sequence = self.scheduler.get_mut(work.id).map(|s| s.clone());
            let Some(sequence) = sequence else { panic!("work for a sequence that does not run") };
            assert_eq!(sequence.ready, work.start);
            for at in work.start..work.start + work.rows {
                let block = sequence.blocks[at / BLOCK];
                assert_eq!(self.scheduler.pool.holders(block), 1, "written while shared");
                self.memory.insert((block, at % BLOCK), hash(&sequence.keys[..=at]));
            }
            for at in 0..work.start + work.rows {
                let read = self.memory.get(&(sequence.blocks[at / BLOCK], at % BLOCK));
                assert_eq!(read, Some(&hash(&sequence.keys[..=at])), "position {at} of {}", work.id);
            }
            assert!(work.start >= sequence.whole || work.start + work.rows >= sequence.whole, "a cut prefix");
            if work.last {
                chosen.push((work.id, next_token(&sequence.keys)));
            }
        }
        self.scheduler.complete(&plan);
        for (id, token) in chosen {
            let Some((prompt, wanted)) = self.wanted.get(&id) else { panic!("a stranger ran") };
            let Some(sequence) = self.scheduler.get_mut(id) else { panic!("it does not run") };
            sequence.keys.push(token);
            let made = &sequence.keys[*prompt..];
            assert_eq!(made, &wanted[..made.len()], "as alone");
            if made.len() == wanted.len() {
                self.scheduler.remove(id);
                self.wanted.remove(&id);
                self.done += 1;
            }
        }
        self.check();
        !plan.work.is_empty()
    }

    fn check_plan(&self, plan: &Plan) {
        let rows: usize = plan.work.iter().map(|w| w.rows).sum();
        let uncut = plan.work.iter().any(|w| self.whole(w.id) > 0);
        assert!(uncut || rows <= self.step_tokens, "{rows} rows in one step");
        for (k, work) in plan.work.iter().enumerate() {
            assert!(work.rows > 0 && plan.work[..k].iter().all(|w| w.id != work.id));
        }
    }

    fn whole(&self, id: u64) -> usize {
        self.scheduler.running().iter().find(|s| s.id == id).map_or(0, |s| s.whole)
    }

    /// Every holder is known, and no block is lost.
    fn check(&self) {
        let pool: &BlockPool = &self.scheduler.pool;
        let mut holders: HashMap<u32, u32> = HashMap::new();
        for sequence in self.scheduler.running() {
            sequence.blocks.iter().for_each(|block| *holders.entry(*block).or_default() += 1);
        }
        self.scheduler.tree.check(pool);
        let counted = (0..pool.total() as u32).filter(|b| pool.holders(*b) == 0).count();
        assert_eq!(counted, pool.free());
        let held: u32 = (0..pool.total() as u32).map(|b| pool.holders(b)).sum();
        assert_eq!(held as usize, holders.values().sum::<u32>() as usize + self.scheduler.tree.len());
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while self.scheduler.waiting() + self.scheduler.running().len() > 0 {
            assert!(self.step(), "nothing moves");
            steps += 1;
            assert!(steps < 100_000, "it does not end");
        }
        assert_eq!(self.scheduler.pool.evictable(), self.scheduler.tree.len());
        let Scheduler { pool, tree, .. } = &mut self.scheduler;
        tree.clear(pool);
        assert_eq!(pool.free(), pool.total(), "a block is lost");
    }
}

/// A prompt that starts like others do.
fn prompt(rng: &mut ChaCha8Rng, longest: usize) -> Vec<Key> {
    let length = rng.random_range(1..=longest);
    let kind = rng.random_range(0..3u32);
    let turn = rng.random_range(0..length + 1);
    let key = |i: usize| match (kind, i) {
        (0, 3..20) => Key::Row { hash: 7, row: i as u32 },
        _ => Key::Token(i as u32),
    };
    (0..length).map(|i| if i < turn { key(i) } else { Key::Token(1000 + kind) }).collect()
}

#[test]
fn any_arrivals_and_cancels_give_what_each_gives_alone() {
    let mut met = [0; 4];
    for seed in 0..25 {
        let mut rng = stream(seed, "scheduler");
        let limits = Limits {
            blocks: rng.random_range(8..40),
            max_running: rng.random_range(1..9),
            step_tokens: rng.random_range(16..100),
            remember: rng.random_bool(0.8),
        };
        let mut run = Pretended::new(limits);
        let capacity = run.scheduler.capacity();
        let (mut id, mut cancelled) = (0, 0);
        for _ in 0..400 {
            if rng.random_bool(0.25) {
                let prompt = prompt(&mut rng, capacity / 2);
                let count = rng.random_range(1..=capacity / 4);
                let whole = if rng.random_bool(0.1) { prompt.len() / 2 } else { 0 };
                // Keys of a prefix that sees itself wholly depend on all of it.
                let salt = u128::from(hash(&prompt[..whole]));
                let salted = |(i, key): (usize, &Key)| {
                    if i < whole { Key::Row { hash: salt, row: i as u32 } } else { *key }
                };
                run.push(id, prompt.iter().enumerate().map(salted).collect(), count, whole);
                id += 1;
            }
            if rng.random_bool(0.03) && id > 0 {
                let victim = rng.random_range(0..id);
                cancelled += usize::from(run.scheduler.remove(victim).is_some());
            }
            if rng.random_bool(0.01) && id > 0 {
                let victim = rng.random_range(0..id);
                let before = run.scheduler.waiting() + run.scheduler.running().len();
                run.scheduler.discard(victim);
                cancelled += before - run.scheduler.waiting() - run.scheduler.running().len();
            }
            run.step();
        }
        run.finish();
        assert_eq!(run.done + cancelled, id as usize, "seed {seed}: every request ends");
        let counts = run.scheduler.counts();
        let seen = [counts.hit_tokens, counts.preemptions, counts.copies, run.scheduler.tree.evicted()];
        met.iter_mut().zip(seen).for_each(|(met, seen)| *met += seen);
    }
    assert!(met.iter().all(|met| *met > 100), "hits, preemptions, copies, evictions: {met:?}");
}

#[test]
fn a_sequence_may_fill_the_whole_cache() {
    for shared in [0, 1, BLOCK - 1, BLOCK, BLOCK + 5, 3 * BLOCK - 1] {
        let limits = Limits { blocks: 4, max_running: 4, step_tokens: 64, remember: true };
        let mut run = Pretended::new(limits);
        let keys: Vec<Key> = (0..4 * BLOCK as u32).map(Key::Token).collect();
        run.push(0, keys[..shared.max(1)].to_vec(), 1, 0);
        while run.scheduler.waiting() + run.scheduler.running().len() > 0 {
            assert!(run.step());
        }
        run.push(1, keys[..3 * BLOCK].to_vec(), BLOCK, 0);
        run.push(2, keys[..3 * BLOCK].to_vec(), BLOCK, 0);
        run.push(3, keys[..2].to_vec(), 3 * BLOCK, 0);
        run.finish();
        assert_eq!(run.done, 4);
    }
}

#[test]
fn a_prompt_that_many_send_is_read_once() {
    let limits = Limits { blocks: 64, max_running: 8, step_tokens: 64, remember: true };
    let mut run = Pretended::new(limits);
    let keys: Vec<Key> = (0..200).map(Key::Token).collect();
    for id in 0..6 {
        run.push(id, keys.clone(), 4, 0);
    }
    let mut rows = 0;
    while run.scheduler.waiting() + run.scheduler.running().len() > 0 {
        let before: usize = run.scheduler.running().iter().map(|s| s.ready).sum();
        assert!(run.step());
        rows += run.scheduler.running().iter().map(|s| s.ready).sum::<usize>().saturating_sub(before);
    }
    assert!(run.scheduler.counts().hit_tokens > 600, "{:?}, {rows} rows", run.scheduler.counts());
    run.finish();
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let limits = Limits { blocks: 200, max_running: 4, step_tokens: 64, remember: true };
    let mut run = Pretended::new(limits);
    run.push(0, (0..2000).map(Key::Token).collect(), 1, 0);
    run.push(1, (5000..5020).map(Key::Token).collect(), 1, 0);
    for _ in 0..3 {
        run.step();
    }
    assert_eq!(run.done, 1, "the short one is answered within three steps");
    run.finish();
}

#[test]
fn what_blocks_have_room_for_is_reported_as_waste() {
    for (positions, waste) in [(1, BLOCK - 1), (BLOCK, 0), (BLOCK + 1, BLOCK - 1)] {
        let limits = Limits { blocks: 4, max_running: 1, step_tokens: 64, remember: true };
        let mut run = Pretended::new(limits);
        run.push(0, (0..positions as u32).map(Key::Token).collect(), 2, 0);
        assert_eq!(run.scheduler.wasted_tokens(), 0, "nothing runs yet");
        run.step();
        assert_eq!(run.scheduler.wasted_tokens(), waste, "{positions} positions");
        run.finish();
        assert_eq!(run.scheduler.wasted_tokens(), 0, "nothing runs any more");
    }
}
