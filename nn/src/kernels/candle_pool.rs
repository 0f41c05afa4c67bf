//! Keeps Candle's own thread pool out of the way.
//!
//! Candle 0.11 runs element-wise operations over 65,536 elements on a pool of its own that spins while it waits and serves
//! one caller at a time. With one shard of a batch per core, the shards queue for it and burn half of both cores.

use std::sync::Once;

/// Makes Candle's pool with no workers of its own, unless `CANDLE_NUM_THREADS` says otherwise. The first call counts.
pub fn keep_out() {
    static ONCE: Once = Once::new();
    const NAME: &str = "CANDLE_NUM_THREADS";
    ONCE.call_once(|| {
        if std::env::var_os(NAME).is_some() {
            return;
        }
        // SAFETY: Rust code reads and writes the environment under one lock. Foreign code that reads it without that lock
        // could race with this; it happens once, at the first use of this crate, before it starts threads of its own, and
        // `threads::set` at the top of `main` puts it before everything else.
        unsafe { std::env::set_var(NAME, "1") };
        let _ = candle_core::utils::barrier_pool();
        // SAFETY: as above.
        unsafe { std::env::remove_var(NAME) };
    });
}
