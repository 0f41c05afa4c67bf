//! The shared text core: tokenizer, decoder, cache, sampling and generation.
//!
//! Entry points: [`Tokenizer`], [`DecoderConfig`], [`Decoder`] (embeddings in, hidden states out), [`Cache`],
//! [`generate`].

pub mod cache;
pub mod config;
pub mod decoder;
pub mod generate;
pub mod sampling;
pub mod tokenizer;
pub mod trace;

pub use cache::{Attend, Cache, KeyValues};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use sampling::{Choice, Sampler, SamplingParams};
pub use tokenizer::Tokenizer;

/// Hears the named stages of a forward pass, for comparison with a reference.
pub type Tap<'a> = dyn FnMut(&str, &candle_core::Tensor) + 'a;
