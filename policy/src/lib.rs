//! Hidden states to action chunks: heads with loss and sampling side by side, normalisation, and VLAs.
//!
//! Entry points: [`Vla`] (the network), [`VlaPolicy`] (the network as a policy, from a folder or from bytes),
//! [`smolvla`] (LeRobot's folders), [`FlowConfig`] (the head), [`verify`](verify::verify) (against a reference run).

pub mod expert;
pub mod flow;
pub mod folder;
pub mod normalise;
pub mod rtc;
pub mod smolvla;
pub mod trace;
pub mod verify;
pub mod vla;

pub use expert::{Expert, ExpertConfig, Prefix};
pub use flow::FlowConfig;
pub use folder::{Guide, Reading, VlaPolicy};
pub use normalise::{Normaliser, Scaling, Statistics};
pub use smolvla::SmolVla;
pub use verify::verify;
pub use vla::{Vla, VlaConfig, VlaInputs};
