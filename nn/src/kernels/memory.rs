//! Keeps freed memory in the process, or gives it back.
//!
//! A training step, a picture's way through a tower and a prompt's through a decoder free and ask again for the same
//! megabytes; by default glibc gives large blocks back to the system each time, and every page is faulted in and zeroed
//! again: about 5 % of a step, a tenth of SigLIP-B/16 at 512 pixels, up to a quarter of a prompt.

/// Tells glibc's allocator to keep what is freed, in one arena. Elsewhere it does nothing.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const TRIM_THRESHOLD: c_int = -1;
        const TOP_PAD: c_int = -2;
        const MMAP_THRESHOLD: c_int = -3;
        const ARENA_MAX: c_int = -8;
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            for (parameter, value) in
                [(TRIM_THRESHOLD, c_int::MAX), (TOP_PAD, 64 << 20), (MMAP_THRESHOLD, 1 << 30), (ARENA_MAX, 1)]
            {
                // SAFETY: mallopt takes the allocator's own lock and only sets a number; an unknown parameter is refused.
                unsafe { mallopt(parameter, value) };
            }
        });
    }
}

/// Gives back what glibc's allocator holds free: after a model is read, whose names and lists are needed no more. Elsewhere
/// it does nothing.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(keep: usize) -> std::ffi::c_int;
        }
        // SAFETY: malloc_trim takes the allocator's own lock and only gives back pages that hold no live block.
        unsafe { malloc_trim(0) };
    }
}
