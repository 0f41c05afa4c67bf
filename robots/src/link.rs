//! The link between control loop and policy: two zenoh sessions, queries with whole messages, a liveliness token.
//!
//! Under a base key (`vela/so101`): `BASE/policy/hello` and `BASE/policy/chunk` answer queries with the messages of
//! [`crate::wire`], and `BASE/policy/alive/ID` is there for as long as the policy is. The robot asks, the policy
//! answers; one question is in flight at a time.

mod remote;
mod serve;
mod session;

pub use remote::RemotePolicy;
pub use serve::{ServeEvent, ServeReport, serve_policy};
pub use session::{Side, loopback_pair, open_session};

use vela_embodiment::Error;

/// The keys of one arm's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys {
    hello: String,
    chunk: String,
    alive: String,
}

impl Keys {
    fn new(base: &str) -> Self {
        let key = |name: &str| format!("{base}/policy/{name}");
        Self { hello: key("hello"), chunk: key("chunk"), alive: key("alive") }
    }
}

pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Link(format!("{what}: {error}"))
}
