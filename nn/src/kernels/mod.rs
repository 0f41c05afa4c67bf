//! The fused operations and what they stand on. The only place with `unsafe` code.

pub mod adam;
pub mod mapped;
