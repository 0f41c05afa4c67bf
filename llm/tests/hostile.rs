//! Thousands of broken files through every door, always the same ones: errors are fine, panics are not.

mod hostile_common;

use hostile_common as doors;
use hostile_common::valid;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use vela_llm::DecoderConfig;
use vela_nn::random::stream;

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Numbers that readers trip over, as JSON and as eight bytes.
const NUMBERS: [i64; 12] = [0, 1, -1, 2, 31, 33, 255, 65_536, 1 << 31, 1 << 32, i64::MAX, i64::MIN];

fn number(rng: &mut ChaCha8Rng) -> i64 {
    NUMBERS[rng.random_range(0..NUMBERS.len())]
}

/// The bytes with up to four things done to them, most of them within the first `head`.
fn broken(rng: &mut ChaCha8Rng, bytes: &[u8], head: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..rng.random_range(1..5) {
        if out.len() < 16 {
            return out;
        }
        let at = rng.random_range(0..head.min(out.len() - 8));
        match rng.random_range(0..8) {
            0 => out[at] ^= 1 << rng.random_range(0..8),
            1 => out[at] = rng.random(),
            2 => out[at..at + 8].copy_from_slice(&number(rng).to_le_bytes()),
            3 => out[at..at + 4].copy_from_slice(&number(rng).to_le_bytes()[..4]),
            4 => out.truncate(rng.random_range(0..out.len())),
            5 => drop(out.drain(at..(at + rng.random_range(1..32)).min(out.len()))),
            6 => {
                let from = rng.random_range(0..head.min(out.len()));
                let part = out[from..(from + rng.random_range(1..64)).min(out.len())].to_vec();
                out.splice(at..at, part);
            }
            _ => {
                // A decimal number becomes another one.
                if let Some(digit) = (at..out.len()).find(|i| out[*i].is_ascii_digit()) {
                    let end = (digit..out.len()).find(|i| !out[*i].is_ascii_digit()).unwrap_or(out.len());
                    out.splice(digit..end, number(rng).to_string().into_bytes());
                }
            }
        }
    }
    out
}

/// So many broken copies through a door, after the sound one. Says how many were accepted all the same.
fn storm(name: &str, count: usize, bytes: &[u8], head: usize, door: impl Fn(&[u8]) -> bool) -> usize {
    assert!(door(bytes), "{name}: the sound file is refused");
    let mut accepted = 0;
    for case in 0..count {
        let mut rng = stream(case as u64, name);
        let bytes = broken(&mut rng, bytes, head);
        let outcome = catch_unwind(AssertUnwindSafe(|| door(&bytes)));
        assert!(outcome.is_ok(), "{name}: case {case} panicked: {:?}", String::from_utf8_lossy(&bytes));
        accepted += usize::from(outcome.unwrap_or(false));
    }
    accepted
}

#[test]
fn gguf_files() -> Outcome {
    for kind in ["gpt2", "llama", "mixtral", "t5"] {
        let bytes = valid::gguf(kind)?;
        // Of T5 also what is behind its table of characters.
        let head = if kind == "t5" { bytes.len() } else { 2300.min(bytes.len()) };
        assert!(storm(kind, 1500, &bytes, head, doors::gguf) < 1500);
    }
    Ok(())
}

#[test]
fn safetensors_files() -> Outcome {
    let config = DecoderConfig::from_hf(&valid::config())?;
    storm("safetensors", 1000, &valid::weights()?, 1100, |bytes| doors::safetensors(&config, bytes));
    Ok(())
}

#[test]
fn configs() -> Outcome {
    let (config, weights) = (valid::config().to_string(), valid::weights()?);
    storm("config", 1500, config.as_bytes(), config.len(), |bytes| doors::config(bytes, &weights));
    Ok(())
}

#[test]
fn templates() -> Outcome {
    let text = valid::template().as_bytes();
    storm("template", 1500, text, text.len(), doors::template);
    Ok(())
}

#[test]
fn tokenizers() -> Outcome {
    let text = valid::tokenizer().to_string();
    storm("tokenizer", 1000, text.as_bytes(), text.len(), doors::tokenizer);
    Ok(())
}

#[test]
fn adapters() -> Outcome {
    let config = DecoderConfig::from_hf(&valid::config())?;
    let (stated, tensors) = valid::adapter()?;
    let text = stated.to_string();
    storm("adapter config", 700, text.as_bytes(), text.len(), |bytes| {
        doors::adapter(&config, bytes, &tensors)
    });
    storm("adapter tensors", 700, &tensors, 300, |bytes| doors::adapter(&config, text.as_bytes(), bytes));
    Ok(())
}

#[test]
fn a_config_that_asks_for_far_more_than_there_is_costs_no_memory() -> Outcome {
    // 64 GiB of zeros stood in for a missing table before all that was missing was reported.
    let mut config = valid::config();
    config["vocab_size"] = (1u64 << 24).into();
    config["hidden_size"] = (1u64 << 10).into();
    assert!(!doors::config(config.to_string().as_bytes(), &valid::weights()?));
    Ok(())
}

#[test]
fn a_tokenizer_cut_off_inside_its_decoder_is_an_error() {
    // The library unwraps what it reads there.
    let text = valid::tokenizer().to_string();
    let end = text.find("\"decoder\"").map_or(0, |at| at + 40);
    assert!(!doors::tokenizer(&text.as_bytes()[..end]));
    assert!(!doors::tokenizer(text.replace("\"decoder\":{", "\"decoder\":{\"x\":[}").as_bytes()));
}
