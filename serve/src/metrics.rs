//! What is counted, in Prometheus' text form.

use crate::Service;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use vela_llm::engine::Histogram;
use vela_llm::engine::metrics::BOUNDS_SECS;

/// What the service counts beside the engine.
#[derive(Debug, Default)]
pub struct Tallies {
    inner: Mutex<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    first_token: Histogram,
    whole: Histogram,
    pictures: Histogram,
    /// By path and status.
    responses: BTreeMap<(&'static str, u16), u64>,
}

impl Tallies {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A first token came, so many nanoseconds after the question.
    pub fn first_token(&self, nanos: u64) {
        self.with(|inner| inner.first_token.record_nanos(nanos));
    }

    /// An answer ended.
    pub fn answered(&self, nanos: u64) {
        self.with(|inner| inner.whole.record_nanos(nanos));
    }

    /// A picture was encoded.
    pub fn picture(&self, nanos: u64) {
        self.with(|inner| inner.pictures.record_nanos(nanos));
    }

    /// A response began.
    pub fn response(&self, path: &'static str, status: u16) {
        self.with(|inner| *inner.responses.entry((path, status)).or_default() += 1);
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "# HELP vela_{name} {help}\n# TYPE vela_{name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "vela_{name} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, of: &Histogram) {
        self.head(name, "histogram", help);
        let mut below = 0;
        for (bound, count) in BOUNDS_SECS.iter().zip(of.buckets) {
            below += count;
            let _ = writeln!(self.0, "vela_{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(self.0, "vela_{name}_bucket{{le=\"+Inf\"}} {}", of.count);
        let _ = writeln!(self.0, "vela_{name}_sum {}\nvela_{name}_count {}", of.sum_secs, of.count);
        let quantiles = format!("{name}_quantile");
        self.head(&quantiles, "gauge", &format!("Quantiles since the start: {help}"));
        for q in [0.5, 0.95, 0.99] {
            let _ = writeln!(self.0, "vela_{quantiles}{{quantile=\"{q}\"}} {}", of.quantile_secs(q));
        }
    }
}

/// All metrics of a service.
pub fn page(service: &Service) -> String {
    let engine = service.engine().metrics();
    let pictures = service.model().picture_stats();
    let own = service.tallies().with(|inner| inner.clone());
    let mut page = Page(String::new());
    page.histogram(
        "time_to_first_token_seconds",
        "From a question, pictures included, to its first token.",
        &own.first_token,
    );
    page.histogram("time_per_token_seconds", "Between the tokens of an answer.", &engine.per_token);
    page.histogram("answer_seconds", "From a question to the end of an answer.", &own.whole);
    page.histogram("prefill_seconds", "From the engine's queue to the first token.", &engine.first_token);
    page.histogram(
        "picture_seconds",
        "Unpacking and encoding a picture, waiting for others included.",
        &own.pictures,
    );
    let counters = [
        ("requests_total", "Generations that the engine took.", engine.requests),
        ("requests_refused_total", "Generations refused because the queue was full.", engine.refused),
        ("requests_finished_total", "Generations that came to their end.", engine.finished),
        ("requests_cancelled_total", "Generations that nobody waited for any more.", engine.cancelled),
        ("requests_failed_total", "Generations that went wrong.", engine.failed),
        ("prompt_tokens_total", "Positions of prompts.", engine.prompt_tokens),
        ("prompt_tokens_cached_total", "Of those, found in the prefix cache.", engine.cached_tokens),
        ("generated_tokens_total", "Tokens generated.", engine.generated_tokens),
        ("engine_steps_total", "Forward passes.", engine.steps),
        ("engine_rows_total", "Positions that went through the decoder.", engine.forward_tokens),
        ("preemptions_total", "Generations that stepped back for want of memory.", engine.preemptions),
        ("prefix_evictions_total", "Blocks that the prefix cache gave up.", engine.evictions),
        ("pictures_encoded_total", "Pictures that went through the encoder.", pictures.encoded),
        ("picture_cache_hits_total", "Pictures that were encoded before.", pictures.hits),
    ];
    for (name, help, value) in counters {
        page.one(name, "counter", help, value as f64);
    }
    let gauges = [
        ("requests_running", "Generations that run.", engine.running as f64),
        ("requests_waiting", "Generations that wait.", engine.waiting as f64),
        ("cache_blocks", "Blocks of the paged cache.", engine.blocks as f64),
        ("cache_blocks_free", "Of those, blocks that nobody holds.", engine.free_blocks as f64),
        (
            "cache_blocks_evictable",
            "Of those, blocks that only the prefix cache holds.",
            engine.evictable_blocks as f64,
        ),
        ("cache_block_bytes", "Bytes of a block.", engine.block_bytes as f64),
        (
            "cache_positions_wasted",
            "Positions of blocks in use that hold nothing.",
            engine.wasted_tokens as f64,
        ),
        ("picture_cache_entries", "Encoded pictures that are remembered.", pictures.kept as f64),
        ("picture_cache_bytes", "Bytes of those.", pictures.kept_bytes as f64),
        ("tokens_per_second", "Tokens generated per second of work.", engine.tokens_per_second()),
        ("engine_busy_seconds", "Time that the engine spent working.", engine.busy_secs),
    ];
    for (name, help, value) in gauges {
        page.one(name, "gauge", help, value);
    }
    page.head("http_responses_total", "counter", "Responses by path and status.");
    for ((path, status), count) in own.responses {
        let _ = writeln!(page.0, "vela_http_responses_total{{path=\"{path}\",status=\"{status}\"}} {count}");
    }
    page.0
}
