//! One robot at the WebSocket: its observations in, chunks of actions out.

use super::{Shared, contract, value};
use crate::Fault;
use futures_util::{SinkExt, StreamExt};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use vela_embodiment::{ActionChunk, Clock, InferOptions, Observation, Stamp};

/// A question for the policy.
pub(super) struct Job {
    /// Whose it is: another connection's is another.
    pub(super) robot: u64,
    pub(super) history: Vec<Observation>,
    pub(super) options: InferOptions,
    /// The chunk or why there is none, and the seconds of thought.
    pub(super) reply: oneshot::Sender<(vela_embodiment::Result<ActionChunk>, f64)>,
}

/// How a talk ends.
enum End {
    /// The robot has gone.
    Gone,
    /// The server ends.
    Closing,
    /// It sent what cannot be answered.
    Refused(Fault),
}

/// Talks with one robot until it goes, sends what does not fit, or the server ends.
pub(super) async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    shared: &Shared,
    mut closing: watch::Receiver<bool>,
) {
    let bytes = shared.config.message_bytes;
    let mut config = WebSocketConfig::default();
    (config.max_message_size, config.max_frame_size) = (Some(bytes), Some(bytes));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let end = tokio::select! {
        end = answers(&mut socket, shared) => end,
        _ = closing.wait_for(|closing| *closing) => End::Closing,
    };
    let (words, code, reason) = match end {
        End::Gone => return,
        End::Closing => (None, CloseCode::Away, "the server ends"),
        // openpi's own words for it: its client shows the text.
        End::Refused(fault) => {
            (Some(fault.to_string()), CloseCode::Error, "the reason is in the message before")
        }
    };
    let goodbye = async {
        if let Some(words) = words {
            socket.send(Message::text(words)).await?;
        }
        socket.close(Some(CloseFrame { code, reason: reason.into() })).await?;
        // To close on what is still being sent would take the answer back.
        let mut rest = [0; 4096];
        while socket.get_mut().read(&mut rest).await? > 0 {}
        Ok::<_, tungstenite::Error>(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
}

async fn answers<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, shared: &Shared) -> End {
    if socket.send(Message::binary(contract::metadata(&shared.spec))).await.is_err() {
        return End::Gone;
    }
    let robot = shared.robots.fetch_add(1, Ordering::Relaxed);
    let mut history = VecDeque::new();
    let (mut number, mut previous_ms, mut early) = (0, None, None);
    loop {
        let next = match early.take() {
            Some(message) => Some(message),
            None => socket.next().await,
        };
        let bytes = match next {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Text(text))) => {
                let got = text.len();
                let why =
                    format!("expected a binary message of MessagePack, got a text message of {got} bytes");
                return End::Refused(Fault::refused(400, "bad_message", why));
            }
            // Pings are answered by the socket itself.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(_))) | None => return End::Gone,
            Some(Err(error)) => return broken(&error, shared.config.message_bytes),
        };
        let start = shared.clock.now();
        let mut answer = match ask(&bytes, shared, &mut history, (robot, number), start).await {
            Ok(answer) => answer,
            Err(fault) => return End::Refused(fault),
        };
        drop(bytes);
        // While the policy thinks the client's pings are answered; a question that comes early waits.
        let thought = loop {
            tokio::select! {
                thought = &mut answer => break thought,
                message = socket.next(), if early.is_none() => match message {
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    None | Some(Ok(Message::Close(_))) => return End::Gone,
                    message => early = message,
                },
            }
        };
        let (chunk, secs) = match thought {
            Ok((Ok(chunk), secs)) => (chunk, secs),
            Ok((Err(error), _)) => return End::Refused(Fault::internal(error)),
            Err(_) => return End::Refused(Fault::internal("the policy has ended")),
        };
        let answer = contract::answer(&chunk, secs * 1e3, previous_ms);
        if socket.send(Message::binary(answer)).await.is_err() {
            return End::Gone;
        }
        number += 1;
        previous_ms = Some(shared.clock.now().secs_since(start) * 1e3);
    }
}

/// What is said to a robot whose message broke the protocol.
fn broken(error: &tungstenite::Error, most: usize) -> End {
    match error {
        tungstenite::Error::Capacity(_) => {
            let why = format!("expected messages of at most {most} bytes, got more");
            End::Refused(Fault::refused(413, "too_large", why))
        }
        tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_) => {
            End::Refused(Fault::refused(400, "bad_frame", format!("no WebSocket frame: {error}")))
        }
        _ => End::Gone,
    }
}

type Thought = oneshot::Receiver<(vela_embodiment::Result<ActionChunk>, f64)>;

/// Reads an observation and hands the question to the policy.
async fn ask(
    bytes: &[u8],
    shared: &Shared,
    history: &mut VecDeque<Observation>,
    (robot, number): (u64, u64),
    stamp: Stamp,
) -> Result<Thought, Fault> {
    let wanted = shared.spec.history.max(1);
    let seen = contract::observation(&value::read(bytes)?, &shared.spec, stamp)?;
    // The oldest stands for those that are not there yet.
    while history.len() + 1 < wanted {
        history.push_back(seen.clone());
    }
    history.push_back(seen);
    while history.len() > wanted {
        history.pop_front();
    }
    let (reply, answer) = oneshot::channel();
    let options = InferOptions { seed: shared.config.seed.wrapping_add(number), ..InferOptions::default() };
    let job = Job { robot, history: history.iter().cloned().collect(), options, reply };
    shared.jobs.send(job).await.map_err(|_| Fault::internal("the policy has ended"))?;
    Ok(answer)
}
