//! The shared text core: tokenizer, decoder, cache, sampling and generation.
//!
//! Entry points: [`Tokenizer`], [`DecoderConfig`], [`Decoder`] (embeddings in, hidden states out), [`Cache`],
//! [`generate`].

pub mod beam;
pub mod cache;
pub mod config;
pub mod constrain;
pub mod decoder;
pub mod encoder_decoder;
pub mod engine;
pub mod generate;
pub mod gguf;
pub mod load;
pub mod lora;
pub mod model;
pub mod paged;
pub mod quantise;
pub mod sampling;
pub mod speculative;
pub mod template;
mod template_date;
pub mod tokenizer;
pub mod trace;

pub use cache::{Attend, Cache, KeyValues, Memory};
pub use config::DecoderConfig;
pub use constrain::{Constraint, Grammars};
pub use decoder::Decoder;
pub use encoder_decoder::{EncoderDecoder, EncoderDecoderConfig};
pub use load::load;
pub use lora::Lora;
pub use model::TextModel;
pub use sampling::{Choice, Sampler, SamplingParams};
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::Tokenizer;

/// Hears the named stages of a forward pass, for comparison with a reference.
pub type Tap<'a> = dyn FnMut(&str, &candle_core::Tensor) + 'a;
