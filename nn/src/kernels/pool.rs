//! Candle's own thread pool, switched off.

/// Candle runs element-wise operations on a global pool whose callers spin until it is done; one caller at a time, so
/// that our shards wait for each other (measured: more than half of a training step). The pool takes its size from
/// the environment when it is first used. Sets that size to one, unless the environment already has a wish.
///
/// Returns whether it could be done: not when other threads run already, since they may read the environment.
pub fn quiet_candle() -> bool {
    if std::env::var_os("CANDLE_NUM_THREADS").is_some() {
        return true;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        // SAFETY: this is the only thread of the process, so nobody reads the environment at the same time.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    alone
}
