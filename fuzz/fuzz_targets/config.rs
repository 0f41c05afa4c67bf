//! `config.json` over sound weights.
#![no_main]

#[allow(dead_code)]
#[path = "../../llm/tests/hostile_common/mod.rs"]
mod doors;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(weights) = doors::valid::weights() else { return };
    doors::config(bytes, &weights);
});
