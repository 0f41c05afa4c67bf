//! The native messages between robot and policy: the first byte says as which one the rest is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vela_robots::wire::{answer, ask, hello, load};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => {
            if let Ok(said) = ask::decode(rest) {
                ask::encode(&said).expect("a question that was read can be written");
            }
        }
        1 => {
            if let Ok(said) = answer::decode(rest) {
                answer::encode(&said).expect("an answer that was read can be written");
            }
        }
        2 => {
            let _ = hello::decode_hello(rest);
        }
        3 => {
            let _ = hello::decode_welcome(rest).and_then(hello::Welcome::into_spec);
        }
        _ => {
            let _ = load::decode(rest);
        }
    }
});
