//! Who runs in the next step: a pure structure over blocks, the prefix tree and sequences; no tensor, no clock.
//!
//! A step mixes one token of every sequence that generates with chunks of prompts. Sequences enter in order of arrival
//! when their prompt fits. When a generating sequence needs a block and none can be had, the youngest sequence steps
//! back: its blocks are let go (the tree may still know them) and it reads its positions again later. The oldest is
//! never put back by another, so everything ends.

use super::pool::BlockPool;
use super::prefix::{BLOCK, Key, Node, PrefixTree, ROOT};
use std::collections::VecDeque;

/// What a step may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the cache.
    pub blocks: usize,
    /// Sequences that run at once.
    pub max_running: usize,
    /// Positions in one forward pass, prompts and generated tokens together.
    pub step_tokens: usize,
    /// Whether prefixes are remembered.
    pub remember: bool,
}

/// One sequence: what stands at its positions, and how much of it the cache holds.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Its name.
    pub id: u64,
    /// Prompt and generated tokens.
    pub keys: Vec<Key>,
    /// The first so many positions see each other wholly and are read in one go (a prefix mask).
    pub whole: usize,
    /// Positions whose keys and values are in the cache.
    pub ready: usize,
    /// Its blocks, in order.
    pub blocks: Vec<u32>,
    /// Positions of the prompt found in the prefix tree when it first entered.
    pub cached: Option<usize>,
    /// Where the tree holds its first `remembered` blocks.
    node: Node,
    remembered: usize,
}

impl Sequence {
    /// A sequence that has not been read yet.
    pub fn new(id: u64, keys: Vec<Key>, whole: usize) -> Self {
        let (blocks, whole) = (Vec::new(), whole.min(keys.len()));
        Self { id, keys, whole, ready: 0, blocks, cached: None, node: ROOT, remembered: 0 }
    }

    /// Positions still to be read; one for a sequence that generates.
    pub fn pending(&self) -> usize {
        self.keys.len() - self.ready
    }

    /// Blocks that it still needs to hold all its positions and one more.
    fn wanted(&self) -> usize {
        (self.keys.len() + 1).div_ceil(BLOCK).saturating_sub(self.blocks.len())
    }
}

/// Part of a step: positions `start .. start + rows` of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Which sequence.
    pub id: u64,
    /// First position.
    pub start: usize,
    /// Positions.
    pub rows: usize,
    /// Whether its last position is the sequence's last: a token is chosen.
    pub last: bool,
}

/// Rows of a block that are copied before anything is written: the block was shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// From this block.
    pub from: u32,
    /// To this one.
    pub to: u32,
    /// Its first rows.
    pub rows: usize,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done first, in order.
    pub copies: Vec<BlockCopy>,
    /// Sequences side by side.
    pub work: Vec<Work>,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prompt positions that were found in the cache, by first entry and while reading.
    pub hit_tokens: u64,
    /// Prompt positions looked up.
    pub looked_up_tokens: u64,
    /// Sequences put back for want of blocks.
    pub preemptions: u64,
    /// Blocks copied because they were shared.
    pub copies: u64,
}

/// The scheduler.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    /// The blocks.
    pub pool: BlockPool,
    /// What is remembered.
    pub tree: PrefixTree,
    /// In order of entry: the oldest first.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    counts: Counts,
}

impl Scheduler {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            max_running: limits.max_running.max(1),
            step_tokens: limits.step_tokens.max(limits.max_running).max(BLOCK),
            ..limits
        };
        Self {
            pool: BlockPool::new(limits.blocks),
            tree: PrefixTree::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            counts: Counts::default(),
            limits,
        }
    }

    /// Positions that one sequence can have at most, generated ones included.
    pub fn capacity(&self) -> usize {
        self.pool.total() * BLOCK
    }

    /// Sequences that run.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Positions that blocks of running sequences have room for and do not use.
    pub fn wasted_tokens(&self) -> usize {
        self.running.iter().map(|s| s.blocks.len() * BLOCK - s.ready.min(s.blocks.len() * BLOCK)).sum()
    }

    /// Adds a sequence to the end of the queue. Its positions must stay within [`Scheduler::capacity`].
    pub fn push(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// The sequence of that name that runs.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|s| s.id == id)
    }

    /// Takes a sequence out, wherever it is; what it had read is remembered.
    pub fn remove(&mut self, id: u64) -> Option<Sequence> {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut sequence = self.running.remove(at);
            self.let_go(&mut sequence, true);
            return Some(sequence);
        }
        let at = self.waiting.iter().position(|s| s.id == id)?;
        self.waiting.remove(at)
    }

    /// Takes a sequence out whose last step failed: nothing of that step is remembered.
    pub fn discard(&mut self, id: u64) {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut sequence = self.running.remove(at);
            self.let_go(&mut sequence, false);
        } else {
            self.waiting.retain(|s| s.id != id);
        }
    }

    /// The next step. Empty if nothing runs or waits.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut again = true;
        loop {
            let mut budget = self.limits.step_tokens;
            self.plan_generation(&mut plan, &mut budget);
            // While others generate, prompts may delay them by a quarter of a step only.
            if !plan.work.is_empty() {
                budget = budget.min((self.limits.step_tokens / 4).max(BLOCK));
            }
            self.admit(budget);
            self.plan_prompts(&mut plan, budget);
            match self.running.len() {
                n if n == 0 || !plan.work.is_empty() => return plan,
                // It let go of a shared block that it had no room to copy: now there is room.
                1 if !std::mem::take(&mut again) => return plan,
                1 => {}
                // Prompts that keep each other from going on: the youngest steps back.
                _ => self.step_back(),
            }
        }
    }

    /// Notes that a plan was carried out: its positions are in the cache, whole blocks are remembered.
    pub fn complete(&mut self, plan: &Plan) {
        for work in &plan.work {
            let Some(at) = self.running.iter().position(|s| s.id == work.id) else { continue };
            let before = self.running[at].ready;
            self.running[at].ready = work.start + work.rows;
            for k in before / BLOCK..self.running[at].ready / BLOCK {
                self.remember_block(at, k);
            }
        }
    }

    fn remember_block(&mut self, at: usize, k: usize) {
        let sequence = &mut self.running[at];
        if !self.limits.remember || sequence.remembered != k {
            return;
        }
        let (keys, block) = (&sequence.keys[k * BLOCK..(k + 1) * BLOCK], sequence.blocks[k]);
        if let Some((node, kept)) = self.tree.insert(sequence.node, keys, block, &mut self.pool) {
            (sequence.node, sequence.remembered) = (node, k + 1);
            // Two read the same at the same time: one copy is enough.
            if kept != block {
                self.pool.hold(kept);
                self.pool.release(block);
                sequence.blocks[k] = kept;
            }
        }
    }

    fn plan_generation(&mut self, plan: &mut Plan, budget: &mut usize) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].pending() != 1 || *budget == 0 {
                at += 1;
                continue;
            }
            if self.grow(at, 1, &mut plan.copies) == 1 {
                let sequence = &self.running[at];
                plan.work.push(Work { id: sequence.id, start: sequence.ready, rows: 1, last: true });
                *budget -= 1;
                at += 1;
            } else {
                // The youngest has no work in this plan yet: it comes after, or is this one.
                self.step_back();
            }
        }
    }

    /// Lets waiting sequences in while the first of them fits.
    fn admit(&mut self, mut budget: usize) {
        while budget > 0 && self.running.len() < self.limits.max_running {
            let Some(first) = self.waiting.front() else { return };
            // The last position is always read again: its logits are wanted.
            let found = self.tree.find(&first.keys[..first.keys.len().saturating_sub(1)], &mut self.pool);
            let whole = found.positions / BLOCK;
            let need = (first.keys.len() + 1).div_ceil(BLOCK) - whole;
            let promised: usize = self.running.iter().map(|s| s.wanted() + 1).sum();
            let at_hand = self.pool.free() + self.pool.evictable();
            if !self.running.is_empty() && need + promised > at_hand {
                found.blocks.iter().for_each(|block| self.pool.release(*block));
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if sequence.cached.is_none() {
                sequence.cached = Some(found.positions);
                self.counts.looked_up_tokens += sequence.keys.len() as u64;
                self.counts.hit_tokens += found.positions as u64;
            }
            (sequence.ready, sequence.blocks) = (found.positions, found.blocks);
            (sequence.node, sequence.remembered) = (found.node, whole);
            budget = budget.saturating_sub(sequence.pending());
            self.running.push(sequence);
        }
    }

    /// Shares what is left of the step among the prompts: an equal part each, the rest to the oldest.
    fn plan_prompts(&mut self, plan: &mut Plan, mut budget: usize) {
        let planned = |plan: &Plan, id: u64| plan.work.iter().any(|w| w.id == id);
        let reading: Vec<usize> =
            (0..self.running.len()).filter(|at| !planned(plan, self.running[*at].id)).collect();
        if reading.is_empty() || budget == 0 {
            return;
        }
        let share = (budget / reading.len()).max(BLOCK);
        for &at in &reading {
            self.adopt(at);
        }
        let mut rows: Vec<usize> = Vec::with_capacity(reading.len());
        for &at in &reading {
            let given = self.running[at].pending().min(share).min(budget);
            budget -= given;
            rows.push(given);
        }
        for (&at, rows) in reading.iter().zip(&mut rows) {
            let more = (self.running[at].pending() - *rows).min(budget);
            budget -= more;
            *rows += more;
        }
        for (&at, &rows) in reading.iter().zip(&rows) {
            self.plan_chunk(at, rows, plan);
        }
    }

    fn plan_chunk(&mut self, at: usize, rows: usize, plan: &mut Plan) {
        let sequence = &self.running[at];
        let (start, pending) = (sequence.ready, sequence.pending());
        // A prefix that sees itself wholly cannot be cut; other chunks end with a block, so that it can be shared.
        let whole = sequence.whole.saturating_sub(start);
        let even = ((start + rows) / BLOCK * BLOCK).saturating_sub(start);
        let rows = if rows < pending && even > 0 { even } else { rows };
        let rows = rows.max(if rows > 0 { whole } else { 0 });
        if rows == 0 {
            return;
        }
        let got = self.grow(at, rows, &mut plan.copies);
        if got == 0 || got < whole {
            return;
        }
        plan.work.push(Work { id: self.running[at].id, start, rows: got, last: got == pending });
    }

    /// Takes over whole blocks that another sequence has read since.
    fn adopt(&mut self, at: usize) {
        let sequence = &mut self.running[at];
        if !self.limits.remember {
            return;
        }
        while sequence.ready == sequence.remembered * BLOCK
            && sequence.blocks.len() == sequence.remembered
            && sequence.pending() > BLOCK
        {
            let Some((node, block)) =
                self.tree.follow(sequence.node, &sequence.keys[sequence.ready..], &mut self.pool)
            else {
                return;
            };
            sequence.blocks.push(block);
            (sequence.node, sequence.remembered) = (node, sequence.remembered + 1);
            sequence.ready += BLOCK;
            self.counts.hit_tokens += BLOCK as u64;
            if let Some(cached) = &mut sequence.cached {
                *cached += BLOCK;
            }
        }
    }

    /// Makes room for up to `rows` more positions that only this sequence holds; how many it got.
    fn grow(&mut self, at: usize, rows: usize, copies: &mut Vec<BlockCopy>) -> usize {
        let filled = self.running[at].ready % BLOCK;
        let last = self.running[at].ready / BLOCK;
        if filled > 0 {
            let shared = self.running[at].blocks[last];
            if self.pool.holders(shared) > 1 {
                let Some(block) = self.take() else {
                    // No room for a copy: these rows are read again.
                    self.running[at].blocks.truncate(last);
                    self.running[at].ready = last * BLOCK;
                    self.pool.release(shared);
                    return 0;
                };
                copies.push(BlockCopy { from: shared, to: block, rows: filled });
                self.pool.release(shared);
                self.running[at].blocks[last] = block;
                self.counts.copies += 1;
            }
        }
        loop {
            let room = self.running[at].blocks.len() * BLOCK - self.running[at].ready;
            if room >= rows {
                return rows;
            }
            match self.take() {
                Some(block) => self.running[at].blocks.push(block),
                None => return room,
            }
        }
    }

    fn take(&mut self) -> Option<u32> {
        self.pool.take().or_else(|| {
            self.tree.evict(&mut self.pool);
            self.pool.take()
        })
    }

    /// The youngest running sequence goes back to the head of the queue.
    fn step_back(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.let_go(&mut sequence, true);
            self.counts.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }

    /// Lets go of a sequence's blocks; what it has read may be remembered, the last and partial block too.
    fn let_go(&mut self, sequence: &mut Sequence, remember: bool) {
        let (whole, filled) = (sequence.ready / BLOCK, sequence.ready % BLOCK);
        if remember && self.limits.remember && filled > 0 && sequence.remembered == whole {
            let keys = &sequence.keys[whole * BLOCK..sequence.ready];
            self.tree.insert(sequence.node, keys, sequence.blocks[whole], &mut self.pool);
        }
        for block in sequence.blocks.drain(..) {
            self.pool.release(block);
        }
        (sequence.ready, sequence.node, sequence.remembered) = (0, ROOT, 0);
    }
}
