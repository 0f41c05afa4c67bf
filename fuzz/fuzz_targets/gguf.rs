//! GGUF files: header, tensors, tokenizer, template, model.
#![no_main]

#[allow(dead_code)]
#[path = "../../llm/tests/hostile_common/mod.rs"]
mod doors;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    doors::gguf(bytes);
});
