//! Pixels to patch tokens: exact preprocessing and the ViT family.
//!
//! Entry points: [`Picture`] (pixels, from files), [`Preprocessor`] (what the encoder reads, by
//! `preprocessor_config.json`), [`Vit`] (the tower), [`Siglip`] (both towers, compared).

pub mod config;
pub mod decode;
pub mod encoder;
pub mod interpolate;
mod jpeg;
pub mod merge;
pub mod names;
pub mod native;
pub mod planes;
pub mod preprocess;
mod preprocess_config;
pub mod resize;
pub mod resnet;
pub mod tiling;
pub mod towers;
pub mod trace;
pub mod video;
pub mod vit;

pub use config::{Pooling, Positions, Reads, VisionConfig};
pub use decode::Limits;
pub use encoder::{Encoder, EncoderConfig};
pub use interpolate::Interpolation;
pub use merge::{Merged, merge_alike};
pub use native::{Grid, NativeConfig, NativeVit};
pub use planes::{PadSide, Planes, Scale};
pub use preprocess::{Fit, Layout, Patches, Prepared, Preprocessor, Tiles};
pub use resize::{Arithmetic, Filter, Picture};
pub use resnet::{ResNet, ResNetNames, ResNetNorm};
pub use towers::Towers;
pub use video::FrameRate;
pub use vit::Vit;

/// Hears the named stages of a forward pass, for comparison with a reference.
pub type Tap<'a> = dyn FnMut(&str, &candle_core::Tensor) + 'a;
