//! `adapter_config.json` over sound tensors.
#![no_main]

#[allow(dead_code)]
#[path = "../../llm/tests/hostile_common/mod.rs"]
mod doors;

use libfuzzer_sys::fuzz_target;
use vela_llm::DecoderConfig;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = DecoderConfig::from_hf(&doors::valid::config()) else { return };
    let Ok((_, tensors)) = doors::valid::adapter() else { return };
    doors::adapter(&config, bytes, &tensors);
});
