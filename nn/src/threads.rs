//! How many threads the kernels use. Explicit: set once for the process, or for the duration of a call on this thread.

use crate::kernels;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

static PROCESS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// Sets the thread count of the process (0: as many as the machine has). Call it first thing in `main`: it also takes
/// Candle's own pool out of the way, through the environment.
pub fn set(count: usize) {
    crate::kernels::candle_pool::keep_out();
    PROCESS.store(count, Ordering::Relaxed);
}

/// The thread count that kernels started from this thread use.
pub fn current() -> usize {
    let here = HERE.get();
    if here != 0 {
        return here;
    }
    match PROCESS.load(Ordering::Relaxed) {
        0 => {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            PROCESS.store(count, Ordering::Relaxed);
            count
        }
        count => count,
    }
}

/// Runs `f` with kernels on `count` threads (at least 1), for calls from this thread only.
pub fn with_threads<T>(count: usize, f: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            HERE.set(self.0);
        }
    }
    let _restore = Restore(HERE.replace(count.max(1)));
    f()
}

/// Runs `task(0..count)`, spread over [`current`] threads; inside a task that is one. Tasks must not depend on one another.
pub(crate) fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    let threads = current().min(count);
    if threads <= 1 {
        (0..count).for_each(task);
        return;
    }
    with_threads(1, || kernels::pool::run(threads, count, &task));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_at_any_thread_count() {
        for threads in [1, 2, 5] {
            let counts: Vec<AtomicUsize> = (0..17).map(|_| AtomicUsize::new(0)).collect();
            with_threads(threads, || {
                for_each(17, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn callers_side_by_side_and_nested_loops_finish() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        with_threads(3, || {
                            let add = |_| _ = total.fetch_add(1, Ordering::Relaxed);
                            for_each(5, |_| for_each(2, add));
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 500 * 10);
    }
}
