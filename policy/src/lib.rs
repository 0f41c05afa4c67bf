//! Hidden states to action chunks: heads with loss and sampling side by side, normalisation, and VLAs.
//!
//! Entry points: [`open()`] (any policy folder for a robot), [`describe()`] (what a folder is), [`Vla`] and [`VlaPolicy`] (our own
//! network), [`Act`], [`DiffusionPolicy`], [`SmolVla`], [`Pi0`], [`Pi0Fast`], [`OpenVla`],
//! [`OpenVlaOft`] (other people's), [`Head`] and those who are one,
//! [`verify`](verify::verify) (against a reference run).

pub mod act;
mod answer;
pub mod arch;
pub mod cost;
pub mod describe;
pub mod diffusion;
pub mod diffusion_policy;
pub mod ensemble;
pub mod expert;
pub mod expert_layer;
pub mod fast;
pub mod flow;
pub mod folder;
pub mod head;
pub mod head_config;
pub mod head_policy;
pub mod lerobot;
pub mod moment;
pub mod normalise;
pub mod open;
pub mod openvla;
pub mod openvla_oft;
pub mod parts;
pub mod pi0;
pub mod pi0_fast;
pub mod pickle;
pub mod quantise;
pub mod quantised;
pub mod regression;
pub mod rt2;
pub mod rtc;
pub mod smolvla;
pub mod stages;
pub mod storage;
pub mod tokens;
pub mod torch_file;
pub mod trace;
pub mod turns;
pub mod two_ways;
pub mod unet;
pub mod verify;
pub mod vla;

pub use act::Act;
pub use describe::{Summary, describe};
pub use diffusion::{DiffusionConfig, DiffusionHead};
pub use diffusion_policy::DiffusionPolicy;
pub use ensemble::TemporalEnsemble;
pub use expert::{Expert, ExpertConfig, Prefix, TimePlace};
pub use fast::{Fast, FastHead};
pub use flow::{FlowConfig, FlowHead};
pub use folder::{Reading, VlaPolicy};
pub use head::{Body, BodyConfig, BodyKind, Head};
pub use head_config::{HeadConfig, HeadKind};
pub use head_policy::{HeadCard, HeadPolicy, Trained};
pub use lerobot::Folder;
pub use moment::{FolderPolicy, Moment, Network};
pub use normalise::{Normaliser, Scaling, Statistics};
pub use open::{Choices, open};
pub use openvla::OpenVla;
pub use openvla_oft::OpenVlaOft;
pub use parts::VlaParts;
pub use pi0::Pi0;
pub use pi0_fast::Pi0Fast;
pub use regression::RegressionHead;
pub use rt2::Rt2Head;
pub use rtc::{Guide, Rtc};
pub use smolvla::SmolVla;
pub use storage::Storage;
pub use tokens::{Bins, DimensionBins, TailBins, TokenHead};
pub use turns::TurnHead;
pub use unet::{Unet, UnetConfig};
pub use verify::verify;
pub use vla::{Form, StatePlace, Told, Vla, VlaConfig, VlaInputs};
