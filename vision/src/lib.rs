//! Pixels to patch tokens: exact preprocessing and the ViT family.
//!
//! Entry points: [`Planes`] and [`Picture`] (pixels), [`TilingConfig`] (large pictures), [`Vit`] (the tower),
//! [`Siglip`] (both towers, compared).

pub mod config;
pub mod encoder;
pub mod planes;
pub mod resize;
pub mod siglip;
pub mod tiling;
pub mod trace;
pub mod vit;

pub use config::{Pooling, VisionConfig};
pub use encoder::{Encoder, EncoderConfig};
pub use planes::{PadSide, Planes};
pub use resize::{Filter, Picture};
pub use siglip::Siglip;
pub use tiling::{LongestEdge, Tiles, TilingConfig};
pub use vit::Vit;

/// Hears the named stages of a forward pass, for comparison with a reference.
pub type Tap<'a> = dyn FnMut(&str, &candle_core::Tensor) + 'a;
