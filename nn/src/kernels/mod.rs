//! The fused operations and what they stand on. The only place with `unsafe` code.
//!
//! `node` joins a fused operation to Candle's graph; `data` reads tensors as slices; `simd` picks the instruction set;
//! `matmul` multiplies; `quant` multiplies packed weights and `quantise` makes them; `attention_lanes` has the products of
//! `attention`, made in the same way; `pool` is the worker threads; the rest are the operations, each with forward and
//! backward.

pub mod activation;
pub mod adam;
pub mod attention;
mod attention_lanes;
pub mod candle_pool;
pub mod conv;
pub mod data;
pub mod embedding;
pub mod group_norm;
pub mod heads;
pub mod linear;
pub mod loss;
pub mod mapped;
pub mod matmul;
pub mod memory;
pub mod mlp;
pub mod node;
pub mod norm;
pub mod paged;
mod paged_tile;
pub mod pages;
pub mod peaks;
pub mod pool;
pub mod quant;
mod quant_float;
mod quant_input;
pub mod quant_pack;
pub mod quant_simd;
#[cfg(test)]
mod quant_tests;
mod quant_tile;
#[cfg(target_arch = "x86_64")]
mod quant_x86;
pub mod quantise;
pub mod rope;
pub mod simd;
