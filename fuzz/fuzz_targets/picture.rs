//! Picture files as `vela serve` gets them from anyone: JPEG, PNG and WebP, with a bound on their pixels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vela_vision::{Limits, Picture};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { pixels: 1 << 16, ..Limits::default() };
    if let Ok(picture) = Picture::decode(bytes, &limits) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
    }
});
