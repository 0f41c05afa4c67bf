//! The link between control loop and policy: two zenoh sessions, queries with whole messages, a liveliness token.
//!
//! Every policy has a place of its own under the arm's base key (`vela/so101`): `BASE/policy/ID/hello` and
//! `BASE/policy/ID/chunk` answer queries with the messages of [`crate::wire`], and the token `BASE/policy/ID/alive` is
//! there for as long as the policy is; ID is its session's. `BASE/policy/ID/load` says how busy it is. The robot asks
//! the least busy one, one question at a time, so that two policies never answer the same question, and stays with it
//! for as long as it answers. A policy that serves several robots has such a place under each of their base keys, or
//! one under a key with wildcards (`vela/*`).
//!
//! A robot says who it is, by the token `BASE/robot/NAME/alive`, and whom it asks, by `BASE/robot/NAME/asks/ID`.
//! `BASE/stop` presses the arm's emergency stop.

mod busy;
mod guests;
mod line;
mod remote;
mod serve;
mod session;
mod stop;

pub use remote::RemotePolicy;
pub use serve::{ServeEvent, ServeReport, Served, serve_policy, serve_robots};
pub use session::{Side, loopback_pair, loopback_pair_with, open_session};
pub use stop::{StopListener, listen_for_stop, press_stop, release_stop};

use vela_embodiment::{Error, Result};
use zenoh::{Session, Wait};

/// The keys of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys {
    hello: String,
    chunk: String,
    load: String,
    alive: String,
}

impl Keys {
    /// Of the policy with this ID, or with `*` of all.
    fn new(base: &str, id: &str) -> Self {
        let key = |name: &str| format!("{base}/policy/{id}/{name}");
        Self { hello: key("hello"), chunk: key("chunk"), load: key("load"), alive: key("alive") }
    }
}

/// The base key of a policy's or a robot's key or token.
pub(crate) fn base_of(key: &str) -> Option<&str> {
    let (place, _) = key.rsplit_once("/policy/").or_else(|| key.rsplit_once("/robot/"))?;
    Some(place)
}

/// The liveliness tokens that match a key expression now.
pub(crate) fn alive(session: &Session, key: &str) -> Result<Vec<String>> {
    let replies = session.liveliness().get(key).wait().map_err(|e| failed(key, e))?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| reply.result().ok().map(|sample| sample.key_expr().to_string()))
        .collect())
}

/// The bytes of an answer, or what the other end says is wrong.
pub(crate) fn answered(reply: &zenoh::query::Reply) -> std::result::Result<Vec<u8>, String> {
    match reply.result() {
        Ok(sample) => Ok(sample.payload().to_bytes().into_owned()),
        Err(error) => Err(String::from_utf8_lossy(&error.payload().to_bytes()).into_owned()),
    }
}

/// What failed and why. zenoh's errors name the line of its source too (` at FILE.rs:LINE.`), which helps nobody here.
pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    let error = error.to_string();
    let words = error.split(" at /").enumerate().map(|(i, part)| {
        let rest =
            part.split_once(".rs:").map(|(_, rest)| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        match rest {
            Some(rest) if i > 0 => rest.strip_prefix('.').unwrap_or(rest).to_owned(),
            _ if i > 0 => format!(" at /{part}"),
            _ => part.to_owned(),
        }
    });
    Error::Link(format!("{what}: {}", words.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_name_zenoh_s_source() {
        let said = |error: &str| failed("x", error).to_string();
        let taken = "Can not listen [port: in use at /a/tcp.rs:61.] at /b/unicast.rs:338.";
        assert!(said(taken).ends_with("x: Can not listen [port: in use]"), "{}", said(taken));
        assert!(said("no file at /etc/vela.pem").ends_with("x: no file at /etc/vela.pem"));
    }
}
