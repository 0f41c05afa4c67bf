//! `tokenizer.json`.
#![no_main]

#[allow(dead_code)]
#[path = "../../llm/tests/hostile_common/mod.rs"]
mod doors;

use libfuzzer_sys::fuzz_target;
use std::sync::Once;

/// The tokenizer library panics on some parts of the wrong kind, and [`doors::tokenizer`] makes errors of that; the fuzzer's own
/// hook would end the process before. A panic that nobody catches still ends it.
static CAUGHT_PANICS_PASS: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    CAUGHT_PANICS_PASS.call_once(|| drop(std::panic::take_hook()));
    doors::tokenizer(bytes);
});
