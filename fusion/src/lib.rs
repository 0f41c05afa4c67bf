//! Projectors, where image tokens go, and the assembled VLM.
//!
//! Entry points: [`Projector`] (patch tokens to language width), [`splice`] (where they go), [`Vlm`].

pub mod projector;
pub mod splice;
pub mod trace;
pub mod vlm;

pub use projector::{Projection, Projector, ProjectorConfig};
pub use splice::splice;
pub use vlm::{Vlm, VlmConfig};
