//! Projectors, where image tokens go, and the assembled VLM.
//!
//! Entry points: [`Vlm`] (a folder; pictures and prompts in, answers out), [`Projector`] (patch tokens to language width),
//! [`Wording`] and [`splice`] (where they go), [`positions`] (where they are), [`ChatModel`] (a model to talk with).

pub mod chat;
pub mod config;
pub mod names;
pub mod pack;
pub mod positions;
pub mod projector;
pub mod qformer;
pub mod sight;
pub mod splice;
pub mod trace;
pub mod vlm;
pub mod wording;

pub use chat::{Area, ChatModel, ChatPrompt, Part, PictureAttention, PictureStats, Places, Seen, Turn};
pub use config::{Counting, Features, Reading, TowerConfig, VlmConfig};
pub use pack::Packing;
pub use projector::{Projection, Projector, ProjectorConfig};
pub use qformer::{QFormer, QFormerConfig};
pub use sight::Sight;
pub use splice::splice;
pub use vela_vision::Limits as PictureLimits;
pub use vlm::{Encoded, Prompt, Text, Tower, Visual, Vlm};
pub use wording::{Room, Style, Wording};
