//! A program that a test has begun.

use std::process::Child;

/// Killed when the test is over, also when it fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
