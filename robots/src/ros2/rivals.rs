//! Who else drives an arm: of two drivers of vela's one is refused before it has moved anything.
//!
//! Each first says what it commands, by its tokens, and then looks who else does. Of two that come at once the one whose
//! session's identity is higher gives way, and the other waits for that; one that was there before does not go away,
//! whatever its identity, and so whoever waits for it in vain is refused.

use super::node::DRIVER;
use crate::link::alive;
use std::time::Duration;
use vela_embodiment::{Clock, Error, MonotonicClock, Result};
use zenoh::Session;

/// So long the word of one that came at the same moment may be on its way, s.
const SETTLES_SECS: f64 = 0.2;
/// So long one that gives way may take, s.
const GIVES_WAY_SECS: f64 = 2.0;

/// Another driver and what it commands. The order is that of the sessions' identities.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rival {
    zid: String,
    node: String,
    topic: String,
}

impl Rival {
    /// Of a publisher's token, if a driver's in another session than `own` commands one of `topics`.
    fn of(token: &str, own: &str, topics: &[&str]) -> Option<Self> {
        let mut parts = token.split('/').skip(2);
        let zid = parts.next().filter(|zid| *zid != own)?;
        let node = parts.nth(5).filter(|node| node.starts_with(DRIVER))?;
        let name = parts.next()?.replace('%', "/");
        let topic = topics.iter().find(|topic| topic.trim_matches('/') == name.trim_matches('/'))?;
        Some(Self { zid: zid.to_owned(), node: node.to_owned(), topic: (*topic).to_owned() })
    }
}

/// Looks whether another driver of vela's commands one of these topics; our own tokens are declared by now.
///
/// Whatever else publishes there (a panel, a teleoperation) may never say anything: it is no reason to refuse.
///
/// # Errors
/// There is one and it stays, or the session is closed.
pub(super) fn require_alone(session: &Session, domain: u32, topics: &[&str]) -> Result<()> {
    let (own, clock) = (session.zid().to_string(), MonotonicClock::new());
    let begun = clock.now();
    let publishers = format!("@ros2_lv/{domain}/*/*/*/MP/**");
    loop {
        let tokens = alive(session, &publishers)?;
        let first = tokens.iter().filter_map(|token| Rival::of(token, &own, topics)).min();
        let waited = clock.now().secs_since(begun);
        // The word of one that gave way may linger for as long as that of one that comes may take.
        let patience_secs =
            if first.as_ref().is_some_and(|rival| rival.zid > own) { GIVES_WAY_SECS } else { SETTLES_SECS };
        match first {
            None if waited >= patience_secs => return Ok(()),
            Some(rival) if waited >= patience_secs => {
                let Rival { zid, node, topic } = rival;
                return Err(Error::Robot(format!(
                    "{topic}: expected no other driver, got the node '{node}' of session {zid}, which commands the arm"
                )));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros2::keys::{EndpointKind, Entity, STRING, Topic};

    #[test]
    fn only_another_session_s_driver_on_the_same_topic_is_a_rival() {
        let rival = |zid: &str, node: &str, topic: &str| {
            let topic = Topic::new(topic, &STRING);
            let token = Entity::node(0, zid, node).endpoint_token(3, EndpointKind::Publisher, &topic);
            Rival::of(&token, "b0", &["/arm/commands", "jaw"]).map(|rival| (rival.zid, rival.topic))
        };
        let found = |zid: &str, topic: &str| Some((zid.to_owned(), topic.to_owned()));
        assert_eq!(rival("a1", "vela_driver_so101", "/arm/commands"), found("a1", "/arm/commands"));
        assert_eq!(rival("c2", "vela_driver_other", "/jaw"), found("c2", "jaw"));
        assert_eq!(rival("b0", "vela_driver_so101", "/arm/commands"), None, "our own");
        assert_eq!(rival("a1", "teleoperation", "/arm/commands"), None);
        assert_eq!(rival("a1", "vela_driver_so101", "/arm2/commands"), None);
        assert_eq!(Rival::of("@ros2_lv/0/a1/0", "b0", &["/arm/commands"]), None);
    }
}
