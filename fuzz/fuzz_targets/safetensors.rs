//! Safetensors files under a sound config.
#![no_main]

#[allow(dead_code)]
#[path = "../../llm/tests/hostile_common/mod.rs"]
mod doors;

use libfuzzer_sys::fuzz_target;
use vela_llm::DecoderConfig;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = DecoderConfig::from_hf(&doors::valid::config()) else { return };
    doors::safetensors(&config, bytes);
});
