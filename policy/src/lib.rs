//! Hidden states to action chunks: heads with loss and sampling side by side, normalisation, and VLAs.

pub mod expert;
pub mod flow;
pub mod folder;
pub mod normalise;
pub mod rtc;
pub mod vla;

pub use expert::{Expert, ExpertConfig, Prefix};
pub use flow::FlowConfig;
pub use folder::VlaPolicy;
pub use normalise::{Normaliser, Scaling, Statistics};
pub use vla::{Vla, VlaConfig, VlaInputs};
