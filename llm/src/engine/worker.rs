//! The engine's thread: takes requests, plans a step, runs it, hands out tokens.

use super::live::{Input, Live};
use super::request::Finish;
use super::schedule::{Limits, Plan, Scheduler, Sequence, Work};
use super::{Clock, EngineConfig, Message, Shared};
use crate::lora::LoraRows;
use crate::paged::PagedBatch;
use crate::{Decoder, engine::Key};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use vela_nn::paged::{PagedStore, Span};
use vela_nn::{Error, Mask, Result};

pub(super) struct Worker {
    decoder: Arc<Decoder>,
    store: PagedStore,
    scheduler: Scheduler,
    live: BTreeMap<u64, Live>,
    next_id: u64,
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    clock: Clock,
    closing: bool,
}

impl Worker {
    pub fn new(
        decoder: Arc<Decoder>,
        store: PagedStore,
        config: &EngineConfig,
        messages: Receiver<Message>,
        shared: Arc<Shared>,
        clock: Clock,
    ) -> Self {
        let limits = Limits {
            blocks: store.blocks(),
            max_running: config.max_running,
            step_tokens: config.step_tokens,
            remember: config.prefix_cache,
        };
        let (scheduler, live) = (Scheduler::new(limits), BTreeMap::new());
        Self { decoder, store, scheduler, live, next_id: 0, messages, shared, clock, closing: false }
    }

    /// Runs until it is closed and nothing is left to do.
    pub fn run(mut self) {
        loop {
            self.listen();
            if self.live.is_empty() {
                if self.closing {
                    return self.report();
                }
                continue;
            }
            self.drop_abandoned();
            let started = (self.clock)();
            self.step();
            let spent = (self.clock)().saturating_sub(started);
            self.shared.metrics(|m| m.busy_secs += spent as f64 * 1e-9);
            self.report();
        }
    }

    /// Takes what has come; waits for something if there is nothing to do.
    fn listen(&mut self) {
        if self.live.is_empty() && !self.closing {
            match self.messages.recv() {
                Ok(message) => self.take(message),
                Err(_) => self.closing = true,
            }
        }
        loop {
            match self.messages.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closing = true;
                    return;
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit { live, keys, whole } => {
                self.scheduler.push(Sequence::new(self.next_id, keys, whole));
                self.live.insert(self.next_id, *live);
                self.next_id += 1;
            }
            Message::Drain => self.closing = true,
            Message::Stop => {
                self.closing = true;
                let all: Vec<u64> = self.live.keys().copied().collect();
                all.into_iter().for_each(|id| self.end(id, Finish::Closed));
            }
        }
    }

    fn drop_abandoned(&mut self) {
        let gone: Vec<u64> =
            self.live.iter().filter(|(_, live)| live.is_abandoned()).map(|(id, _)| *id).collect();
        for id in gone {
            self.end(id, Finish::Closed);
        }
    }

    /// One step. What goes wrong ends the requests that it touches, nothing else.
    fn step(&mut self) {
        let plan = self.scheduler.plan();
        if plan.work.is_empty() {
            // Cannot be for requests that were checked; never spin on it.
            if let Some(id) = self.live.keys().next().copied() {
                self.end(id, Finish::Failed("the cache is too small for this request".to_owned()));
            }
            return;
        }
        self.count_entries(&plan);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.forward(&plan)))
            .unwrap_or_else(|cause| Err(Error::invalid(format!("the model panicked: {}", words(&*cause)))));
        let logits = match outcome {
            Ok(logits) => logits,
            Err(error) => {
                for work in &plan.work {
                    self.scheduler.discard(work.id);
                    self.end(work.id, Finish::Failed(error.to_string()));
                }
                return;
            }
        };
        self.scheduler.complete(&plan);
        let chosen = plan.work.iter().filter(|work| work.last);
        for (work, mut logits) in chosen.zip(logits) {
            self.choose(work.id, &mut logits);
        }
        let rows: usize = plan.work.iter().map(|work| work.rows).sum();
        self.shared.metrics(|m| {
            m.steps += 1;
            m.forward_tokens += rows as u64;
        });
    }

    fn choose(&mut self, id: u64, logits: &mut [f32]) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| live.choose(logits)))
            .unwrap_or_else(|cause| Err(Error::invalid(format!("choosing panicked: {}", words(&*cause)))));
        let now = (self.clock)();
        let since = now.saturating_sub(live.last.unwrap_or(live.arrived));
        let first = live.last.replace(now).is_none();
        self.shared.metrics(|m| {
            m.generated_tokens += 1;
            if first { &mut m.first_token } else { &mut m.per_token }.record_nanos(since);
        });
        match outcome {
            Ok((token, None)) => {
                if let Some(sequence) = self.scheduler.get_mut(id) {
                    sequence.keys.push(Key::Token(token));
                }
            }
            Ok((_, Some(finish))) => self.end(id, finish),
            Err(error) => self.end(id, Finish::Failed(error.to_string())),
        }
    }

    /// Prompts that are read for the first time: how much of them was known.
    fn count_entries(&mut self, plan: &Plan) {
        for work in &plan.work {
            let Some(live) = self.live.get_mut(&work.id) else { continue };
            let Some(sequence) = self.scheduler.get_mut(work.id) else { continue };
            if live.usage.generated_tokens == 0 {
                let known = sequence.cached.unwrap_or(0).min(live.usage.prompt_tokens);
                let more = known.saturating_sub(live.usage.cached_tokens);
                live.found(more);
                self.shared.metrics(|m| m.cached_tokens += more as u64);
            }
        }
    }

    fn end(&mut self, id: u64, finish: Finish) {
        self.scheduler.remove(id);
        let Some(live) = self.live.remove(&id) else { return };
        let spent = (self.clock)().saturating_sub(live.arrived);
        let abandoned = live.is_abandoned();
        self.shared.metrics(|m| match finish {
            Finish::Failed(_) => m.failed += 1,
            Finish::Closed => m.cancelled += 1,
            _ if abandoned => m.cancelled += 1,
            _ => {
                m.finished += 1;
                m.whole.record_nanos(spent);
            }
        });
        self.shared.leave();
        live.end(finish);
    }

    /// One ragged forward pass; the logits of the last position of each work that wants them.
    fn forward(&mut self, plan: &Plan) -> Result<Vec<Vec<f32>>> {
        for copy in &plan.copies {
            self.store.copy(copy.from, copy.to, copy.rows)?;
        }
        let embeds = self.embeds(&plan.work)?;
        let positions = self.positions(&plan.work)?;
        let running: BTreeMap<u64, &Sequence> = self.scheduler.running().iter().map(|s| (s.id, s)).collect();
        let mut spans = Vec::with_capacity(plan.work.len());
        for work in &plan.work {
            let sequence =
                running.get(&work.id).ok_or_else(|| Error::invalid("a sequence is not running"))?;
            let (blocks, whole) = (sequence.blocks.as_slice(), sequence.whole);
            spans.push(Span { blocks, start: work.start, rows: work.rows, whole });
        }
        let mut batch = PagedBatch::new(&mut self.store, &spans);
        let hidden = match self.live.values().any(|live| live.adapter.is_some()) {
            true => {
                let mut rows = LoraRows::new();
                for work in &plan.work {
                    let own = self.live.get(&work.id).and_then(|live| live.adapter.as_ref());
                    rows.push(work.rows, own.or(self.decoder.adapter()).map(Arc::as_ref));
                }
                self.decoder.forward_beside(&embeds, &positions, &Mask::Causal, &mut batch, &rows)?
            }
            false => self.decoder.forward(&embeds, &positions, &Mask::Causal, &mut batch)?,
        };
        let mut ends = Vec::new();
        let mut row = 0;
        for work in &plan.work {
            row += work.rows as u32;
            if work.last {
                ends.push(row - 1);
            }
        }
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let hidden = hidden.index_select(&Tensor::new(ends, &Device::Cpu)?, 1)?;
        let logits = self.decoder.logits(&self.decoder.normalise(&hidden)?)?;
        Ok(logits.squeeze(0)?.to_vec2::<f32>()?)
    }

    /// The positions of a step, `[tokens]`, or `[3, 1, tokens]` if any of them have axes.
    fn positions(&self, work: &[Work]) -> Result<Tensor> {
        let (mut places, mut axes) = (Vec::new(), false);
        for work in work {
            let live = self.live.get(&work.id).ok_or_else(|| Error::invalid("a request is gone"))?;
            places.extend((work.start..work.start + work.rows).map(|at| live.place(at)));
            axes |= live.has_axes();
        }
        let axis = |k: usize| places.iter().map(|place| place[k]).collect::<Vec<u32>>();
        if axes {
            return Ok(Tensor::new(vec![vec![axis(0)], vec![axis(1)], vec![axis(2)]], &Device::Cpu)?);
        }
        Ok(Tensor::new(axis(0), &Device::Cpu)?)
    }

    /// The inputs of a step, `[1, tokens, width]`: stretches of tokens looked up, stretches of rows taken.
    fn embeds(&self, work: &[Work]) -> Result<Tensor> {
        let (mut parts, mut tokens) = (Vec::new(), Vec::new());
        let look_up = |tokens: &mut Vec<u32>, parts: &mut Vec<Tensor>| -> Result<()> {
            if !tokens.is_empty() {
                let ids = Tensor::new(std::mem::take(tokens), &Device::Cpu)?.unsqueeze(0)?;
                parts.push(self.decoder.embed(&ids)?);
            }
            Ok(())
        };
        for work in work {
            let live = self.live.get(&work.id).ok_or_else(|| Error::invalid("a request is gone"))?;
            let inputs = &live.inputs[work.start..work.start + work.rows];
            let mut at = 0;
            while at < inputs.len() {
                match inputs[at] {
                    Input::Token(id) => {
                        tokens.push(id);
                        at += 1;
                    }
                    Input::Row(span, first) => {
                        look_up(&mut tokens, &mut parts)?;
                        let same = |input: &&Input| matches!(input, Input::Row(other, _) if *other == span);
                        let count = inputs[at..].iter().take_while(same).count();
                        parts.push(live.embeds[span].narrow(0, first, count)?.unsqueeze(0)?);
                        at += count;
                    }
                }
            }
        }
        look_up(&mut tokens, &mut parts)?;
        match parts.as_slice() {
            [one] => Ok(one.contiguous()?),
            _ => Ok(Tensor::cat(&parts, 1)?),
        }
    }

    /// What can be seen from outside.
    fn report(&self) {
        let (pool, counts) = (&self.scheduler.pool, self.scheduler.counts());
        self.shared.metrics(|m| {
            m.waiting = self.scheduler.waiting();
            m.running = self.scheduler.running().len();
            m.free_blocks = pool.free();
            m.evictable_blocks = pool.evictable();
            m.wasted_tokens = self.scheduler.wasted_tokens();
            m.preemptions = counts.preemptions;
            m.evictions = self.scheduler.tree.evicted();
        });
    }
}

/// What a panic said.
fn words(cause: &(dyn std::any::Any + Send)) -> &str {
    cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given")
}
