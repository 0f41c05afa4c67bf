//! HTTP: an OpenAI-compatible server for text and pictures, a page to ask on, and openpi's WebSocket for policies.
//!
//! Entry points: [`Service`] (a model behind the batching engine: an [`Ask`] in, [`Reply`]s out), [`run`] (the server
//! over a listener until it is told to end), [`openpi::openpi`] (the same for a policy and robots). What is not here: files, the environment, any printing.

pub mod ask;
pub mod fault;
pub mod http;
pub mod links;
pub mod metrics;
pub mod openai;
pub mod openpi;
pub mod reply;
pub mod service;

pub use ask::{Ask, Form, Input, Said, Source};
pub use fault::Fault;
pub use http::{Camera, Keys, ServerConfig, Shot, run};
pub use links::{LinkHost, Links};
pub use reply::{Finish, Piece, Reading, Reply};
pub use service::{Service, ServiceConfig};
pub use tokio_rustls::rustls::pki_types::CertificateDer;
