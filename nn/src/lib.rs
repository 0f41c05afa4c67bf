//! Layers, attention, weights, kernels and random streams: the ground under the models.
//!
//! Everything is float32 on the CPU; `Tensor` is Candle's. Entry points: [`Weights`] (where parameters come from),
//! [`Linear`], [`Norm`], [`Embedding`], [`Activation`], [`Rope`], [`attention`], [`Mlp`] (the layers), [`AdamW`] and
//! [`shard_gradients`] (training). Hot operations are fused custom operations in `kernels`; the same operations composed of
//! Candle's own are in [`oracle`], and tests hold the one to the other.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod embedding;
pub mod error;
pub mod gguf;
pub mod group_norm;
pub mod init;
pub(crate) mod kernels;
pub mod linear;
pub mod loss;
pub mod mlp;
pub mod norm;
pub mod optim;
pub mod oracle;
pub mod paged;
pub mod parallel;
pub mod parity;
pub mod peaks;
pub mod quant;
pub mod random;
pub mod rope;
mod stored;
pub mod threads;
pub mod weights;

pub use activation::Activation;
pub use attention::{Heads, Mask, attention, attention_packed, merge_heads, split_heads};
pub use candle_core::{D, DType, Device, IndexOp, Tensor, Var};
pub use conv::{Conv, max_pool};
pub use embedding::Embedding;
pub use error::{Error, Result};
pub use gguf::Gguf;
pub use group_norm::{GroupNorm, fixed_batch_norm, mish};
pub use init::Init;
pub use kernels::memory::{give_back, keep_freed};
pub use linear::{Linear, LowRank, linear};
pub use loss::cross_entropy;
pub use mlp::{FusedMlp, Mlp, MlpConfig};
pub use norm::{Norm, NormConfig};
pub use optim::{AdamW, AdamWConfig};
pub use parallel::{Gradients, gradients, shard_gradients, shard_gradients_with};
pub use rope::{Rope, RopeConfig, RopeScaling, RopeSections, RopeStyle};
pub use weights::{Weights, hash_of, save};
