//! A ROS 2 service from its client's side: on zenoh a query that carries the request.

use super::calendar::Calendar;
use super::keys::{Attachment, EndpointKind, Topic};
use super::messages;
use super::node::Declaring;
use crate::link::failed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{Error, Result, Stamp};
use zenoh::qos::{CongestionControl, Priority};
use zenoh::query::{ConsolidationMode, QueryTarget, Reply};
use zenoh::{Session, Wait};

/// One client of one service.
pub(super) struct ServiceClient {
    session: Session,
    name: String,
    key: String,
    gid: [u8; 16],
    sequence: AtomicI64,
    calendar: Calendar,
}

impl ServiceClient {
    /// Declares the client; the service need not be there yet.
    pub(super) fn open(declaring: &mut Declaring, service: &Topic, calendar: Calendar) -> Result<Self> {
        let gid = declaring.endpoint(EndpointKind::Client, service)?;
        Ok(Self {
            session: declaring.session().clone(),
            name: service.name.clone(),
            key: service.clone().in_distribution(declaring.distribution()).key(declaring.domain()),
            gid,
            sequence: AtomicI64::new(0),
            calendar,
        })
    }

    /// Its identity.
    pub(super) fn gid(&self) -> [u8; 16] {
        self.gid
    }

    /// Sends `request` and never waits: `answered` is called once, from another thread or from this one, with the
    /// response or with why there is none.
    pub(super) fn call<A: DeserializeOwned + 'static>(
        &self,
        request: &impl Serialize,
        stamp: Stamp,
        patience: Duration,
        answered: impl FnOnce(Result<A>) + Send + 'static,
    ) {
        let payload = match messages::encode(request) {
            Ok(payload) => payload,
            Err(error) => return answered(Err(error)),
        };
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let attachment = Attachment { sequence, stamp: self.calendar.date(stamp), gid: self.gid };
        let waiting =
            Waiting { name: self.name.clone(), answered: Mutex::new(Some(answered)), _response: PhantomData };
        let sent = self
            .session
            .get(self.key.as_str())
            .payload(payload)
            .attachment(attachment.encode().as_slice())
            .target(QueryTarget::AllComplete)
            .consolidation(ConsolidationMode::None)
            // The answer goes the same way: beside pictures it would be dropped, and a goal must not be. In a queue of
            // their own a few requests a second find room at once.
            .congestion_control(CongestionControl::Block)
            .priority(Priority::InteractiveHigh)
            .express(true)
            .timeout(patience)
            .callback(move |reply: Reply| {
                waiting.hear(match reply.result() {
                    Ok(sample) => messages::decode::<A>(&sample.payload().to_bytes()),
                    Err(error) => {
                        Err(failed(&waiting.name, String::from_utf8_lossy(&error.payload().to_bytes())))
                    }
                });
            });
        // A query that could not be sent ends unanswered, and `waiting` says so.
        let _ = sent.wait();
    }
}

/// Whoever waits for a response. Zenoh forgets it when the query has ended: then there is none.
struct Waiting<A, F: FnOnce(Result<A>)> {
    name: String,
    answered: Mutex<Option<F>>,
    _response: PhantomData<fn() -> A>,
}

impl<A, F: FnOnce(Result<A>)> Waiting<A, F> {
    fn hear(&self, response: Result<A>) {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answered) = answered {
            answered(response);
        }
    }
}

impl<A, F: FnOnce(Result<A>)> Drop for Waiting<A, F> {
    fn drop(&mut self) {
        self.hear(Err(Error::Link(format!("the service '{}' did not answer", self.name))));
    }
}
