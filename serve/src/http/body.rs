//! Bodies: what a client sends, read within limits; what it gets, whole or as events.

use super::App;
use crate::Fault;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// Piece by piece; dropping it tells whoever sends.
    Events(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Events(events) => {
                events.poll_recv(context).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// A body that was read, and its share of the memory for bodies.
#[derive(Debug)]
pub struct Received {
    /// The bytes.
    pub bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

async fn next(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// Reads a whole body.
pub async fn receive(mut body: Incoming, app: &App) -> Result<Received, Fault> {
    let (most, secs) = (app.config.body_bytes, app.config.body_secs);
    let too_large = || Fault::refused(413, "too_large", format!("expected at most {most} bytes, got more"));
    if body.size_hint().lower() > most as u64 {
        discard(body, most).await;
        return Err(too_large());
    }
    let reading = async {
        let (mut bytes, mut share): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
        while let Some(frame) = next(&mut body).await {
            let frame =
                frame.map_err(|e| Fault::refused(400, "bad_body", format!("the body broke off: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
            let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let wanted = (bytes.len() >> 10) + 1;
            if wanted > held {
                let more = app.bodies.clone().try_acquire_many_owned((wanted - held) as u32);
                let more = more.map_err(|_| Fault::unavailable("too many large requests at once"))?;
                match &mut share {
                    Some(share) => share.merge(more),
                    None => share = Some(more),
                }
            }
        }
        Ok(Received { bytes, _share: share })
    };
    let read = tokio::time::timeout(Duration::from_secs(secs), reading).await;
    match read {
        Ok(Err(fault)) if fault.status != 400 => {
            discard(body, most).await;
            Err(fault)
        }
        Ok(read) => read,
        Err(_) => {
            let message = format!("the body did not arrive within {secs} seconds");
            Err(Fault::refused(408, "timeout", message))
        }
    }
}

/// Reads on for a moment and forgets it: a client that is still sending would not see the answer otherwise.
pub async fn discard(mut body: Incoming, most: usize) {
    let reading = async {
        let mut left = most.saturating_mul(4);
        while let Some(Ok(frame)) = next(&mut body).await {
            let Ok(data) = frame.into_data() else { continue };
            left = left.saturating_sub(data.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
}
