//! The emergency stop on zenoh: any operator can press it, and whoever means to can release it.

use super::failed;
use std::time::Duration;
use vela_embodiment::{EmergencyStop, Error, Result};
use zenoh::pubsub::Subscriber;
use zenoh::qos::Priority;
use zenoh::sample::Sample;
use zenoh::{Session, Wait};

/// What releases it: another key and this word, so that no stray message does.
const RELEASE: &[u8] = b"release";
/// So much of a reason is kept, bytes.
const LONGEST_REASON: usize = 200;

/// Listens for as long as it is there.
pub struct StopListener {
    _press: Subscriber<()>,
    _release: Subscriber<()>,
}

/// Makes messages at `BASE/stop` (whatever they hold: a text is the reason) press `stop`, and the word `release` at
/// `BASE/stop/release` release it.
///
/// # Errors
/// The session is closed or the key is no key.
pub fn listen_for_stop(session: &Session, base: &str, stop: &EmergencyStop) -> Result<StopListener> {
    let (press, release) = keys(base);
    let pressed = session.declare_subscriber(press.as_str()).callback({
        let stop = stop.clone();
        move |sample: Sample| {
            let bytes = sample.payload().to_bytes();
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_REASON)]).trim().to_owned();
            stop.press(if text.is_empty() { "pressed on zenoh" } else { &text });
        }
    });
    let released = session.declare_subscriber(release.as_str()).callback({
        let stop = stop.clone();
        move |sample: Sample| {
            if *sample.payload().to_bytes() == *RELEASE {
                stop.release();
            }
        }
    });
    Ok(StopListener {
        _press: pressed.wait().map_err(|e| failed(&press, e))?,
        _release: released.wait().map_err(|e| failed(&release, e))?,
    })
}

/// Presses the emergency stop of the arm with this base key.
///
/// # Errors
/// No arm listens within two seconds, or the session is closed.
pub fn press_stop(session: &Session, base: &str, reason: &str) -> Result<()> {
    send(session, &keys(base).0, reason.as_bytes())
}

/// Releases it.
///
/// # Errors
/// As [`press_stop`].
pub fn release_stop(session: &Session, base: &str) -> Result<()> {
    send(session, &keys(base).1, RELEASE)
}

fn keys(base: &str) -> (String, String) {
    (format!("{base}/stop"), format!("{base}/stop/release"))
}

/// An order that nobody hears is an error: whoever presses a stop must know that it did nothing.
fn send(session: &Session, key: &str, bytes: &[u8]) -> Result<()> {
    let publisher = session.declare_publisher(key.to_owned()).express(true).priority(Priority::RealTime);
    let publisher = publisher.wait().map_err(|e| failed(key, e))?;
    // A session that has just opened learns of the arm in a moment.
    for _ in 0..200 {
        if publisher.matching_status().wait().is_ok_and(|status| status.matching()) {
            return publisher.put(bytes).wait().map_err(|e| failed(key, e));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Error::Link(format!("no arm listens at {key}")))
}
