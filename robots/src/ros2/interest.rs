//! Saying on the graph that somebody listens: some cameras compress and send nothing as long as nobody does.

use super::keys::{self, Distribution, EndpointKind, Topic};
use super::node::Declaring;
use vela_embodiment::Result;
use zenoh::Session;
use zenoh::liveliness::LivelinessToken;

/// Subscribes on the graph to topics of pictures, each by its name and its DDS type, for as long as what it returns is
/// there. What comes is for whoever listens to their keys.
///
/// # Errors
/// The session is closed.
pub(crate) fn listen_openly(
    session: &Session,
    domain: u32,
    pictures: &[(&str, &str)],
) -> Result<Vec<LivelinessToken>> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let mut declaring = Declaring::node(session, domain, Distribution::default(), "vela_doctor")?;
    for (topic, message) in pictures {
        let known = [keys::IMAGE, keys::COMPRESSED_IMAGE].into_iter().find(|known| known.dds == *message);
        if let Some(known) = known {
            declaring.endpoint(EndpointKind::Subscription, &Topic::new(topic, &known).best_effort())?;
        }
    }
    Ok(declaring.done())
}
