//! The native messages between robot, policy and simulated world: the first byte says as which one the rest is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vela_robots::wire::{answer, ask, hello, load, world};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 10 {
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
        4 => {
            let _ = load::decode(rest);
        }
        5 => {
            let _ = world::decode_reset(rest);
        }
        6 => {
            let _ = world::decode_step(rest);
        }
        7 => {
            let _ = world::decode_moment(rest);
        }
        8 => {
            let _ = world::decode_view(rest);
        }
        _ => {
            let _ = world::decode_label(rest);
        }
    }
});
