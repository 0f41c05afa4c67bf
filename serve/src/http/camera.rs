//! A camera that the page shows live: what it sees now, as a picture file.

use super::Body;
use crate::Fault;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, body::Bytes};
use std::sync::Arc;

/// What a camera sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// A PNG file.
    pub png: Bytes,
    /// What is going on, in words.
    pub caption: String,
}

type Take = dyn Fn() -> Result<Shot, String> + Send + Sync;

/// A camera: asked whenever somebody looks, on a thread that may work.
#[derive(Clone)]
pub struct Camera(Arc<Take>);

impl std::fmt::Debug for Camera {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Camera")
    }
}

impl Camera {
    /// A camera whose pictures `take` takes; why there is none now otherwise.
    pub fn new(take: impl Fn() -> Result<Shot, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// What it sees now.
    pub(super) async fn look(&self) -> Result<Response<Body>, Fault> {
        let take = self.0.clone();
        let shot = tokio::task::spawn_blocking(move || take()).await;
        let shot = shot.map_err(|_| Fault::internal("the camera panicked"))?.map_err(Fault::unavailable)?;
        let mut response = super::route::whole(hyper::StatusCode::OK, "image/png", shot.png);
        if let Ok(caption) = HeaderValue::from_bytes(shot.caption.as_bytes()) {
            response.headers_mut().insert(HeaderName::from_static("x-caption"), caption);
        }
        Ok(response)
    }
}
