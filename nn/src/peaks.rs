//! The roofline of this machine, measured: what the kernels' speeds are to be held against.

use crate::kernels::peaks;
use serde::Serialize;

/// What one core can do at most, per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Bytes read from memory.
    pub bytes: f64,
    /// Float32 multiply-adds.
    pub float_macs: f64,
    /// Eight-bit multiply-adds.
    pub integer_macs: f64,
}

/// Measures for about half a second, on this thread.
pub fn measure() -> Peaks {
    let [float_macs, integer_macs] = peaks::macs();
    Peaks { bytes: peaks::bandwidth(), float_macs, integer_macs }
}
