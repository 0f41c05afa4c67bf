//! The server: connections, limits, and its end.

mod answer;
mod body;
mod camera;
mod hosts;
mod keys;
mod patient;
mod route;

pub(crate) use body::Body;
pub use camera::{Camera, Shot};
pub use keys::Keys;
pub(crate) use patient::Patient;

use crate::Service;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// What a server allows. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may ask; without keys, everyone.
    pub keys: Keys,
    /// One request's body.
    pub body_bytes: usize,
    /// All bodies that are being read or worked on.
    pub bodies_bytes: usize,
    /// For the head of a request, from when the connection is open or the last answer was given.
    pub head_secs: u64,
    /// For a request's body.
    pub body_secs: u64,
    /// For an answer.
    pub answer_secs: u64,
    /// That a client may take none of an answer.
    pub stall_secs: u64,
    /// For those that are being answered when the server ends.
    pub drain_secs: u64,
    /// Connections at once.
    pub connections: usize,
    /// Other names than this machine's that a server which listens to this machine alone answers to: a proxy's.
    pub names: Vec<String>,
    /// What the page shows live.
    pub camera: Option<Camera>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            keys: Keys::default(),
            body_bytes: 32 << 20,
            bodies_bytes: 256 << 20,
            head_secs: 15,
            body_secs: 30,
            answer_secs: 600,
            stall_secs: 30,
            drain_secs: 30,
            connections: 512,
            names: Vec::new(),
            camera: None,
        }
    }
}

/// What the handlers share.
struct App {
    service: Arc<Service>,
    config: ServerConfig,
    /// Whether only this machine can reach it.
    local: bool,
    /// Questions that are being worked on.
    slots: Arc<Semaphore>,
    /// KiB of bodies.
    bodies: Arc<Semaphore>,
}

/// Serves until `ending` is ready; then takes no more connections, finishes the answers that it is giving, for at most
/// [`ServerConfig::drain_secs`], and ends the engine.
pub async fn run(
    listener: TcpListener,
    service: Arc<Service>,
    config: ServerConfig,
    ending: impl Future<Output = ()>,
) {
    let engine = &service.config().engine;
    let app = Arc::new(App {
        slots: Arc::new(Semaphore::new(engine.max_running.max(1) + engine.max_waiting)),
        bodies: Arc::new(Semaphore::new((config.bodies_bytes >> 10).clamp(1, Semaphore::MAX_PERMITS))),
        service: service.clone(),
        local: listener.local_addr().is_ok_and(|at| at.ip().is_loopback()),
        config,
    });
    let places = Arc::new(Semaphore::new(app.config.connections));
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(ending);
    loop {
        let accepted = tokio::select! {
            () = &mut ending => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: some will be free soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (app, closing) = (app.clone(), closing.clone());
                connections.spawn(async move {
                    connection(stream, app, closing).await;
                    drop(place);
                });
            }
            Err(_) => {
                tokio::spawn(turn_away(stream));
            }
        }
    }
    drop(listener);
    let _ = close.send(true);
    let patience = Duration::from_secs(app.config.drain_secs);
    let drained =
        tokio::time::timeout(patience, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
    let end = move || if drained.is_ok() { service.engine().drain() } else { service.engine().stop() };
    // Only a panic of the engine's own thread could fail here, and it has ended then.
    let _ = tokio::task::spawn_blocking(end).await;
}

/// One connection, one request after the other.
async fn connection(stream: TcpStream, app: Arc<App>, mut closing: watch::Receiver<bool>) {
    // Without it a chunk of an answer waits for the one before to be acknowledged.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, Duration::from_secs(app.config.stall_secs)));
    let head = Duration::from_secs(app.config.head_secs);
    let handle = service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(route::handle(request, app).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(64 << 10)
        .serve_connection(io, handle);
    tokio::pin!(served);
    tokio::select! {
        // A client that breaks off is no concern of ours.
        _ = served.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

/// One connection too many.
async fn turn_away(mut stream: TcpStream) {
    let body = crate::Fault::unavailable("too many connections").json().to_string();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1";
    let answer = format!("{head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let telling = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // To close on what is still being sent would take the answer back.
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
}
