//! openpi's WebSocket: existing robot code that speaks it connects unchanged.
//!
//! The server's first message says what the policy is ([`contract::metadata`]); then every observation of the client is
//! answered by a chunk of actions. What does not fit is answered by one sentence as a text message and the connection is
//! closed (1011), as openpi does; the server goes on. `GET /healthz` answers `OK`.

pub mod contract;
mod talk;
pub mod value;

use crate::Keys;
use crate::http::{Body, Patient};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use talk::Job;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use vela_embodiment::{Clock, Error, MonotonicClock, Policy, PolicySpec};

/// What the server allows.
#[derive(Clone, Debug)]
pub struct OpenpiConfig {
    /// Who may ask; without keys, everyone.
    pub keys: Keys,
    /// Robots at once.
    pub robots: usize,
    /// One message, bytes.
    pub message_bytes: usize,
    /// For the head of the first request, and for a client that takes nothing of an answer, s.
    pub patience_secs: u64,
    /// Seed of the sampling noise; the same questions in the same order get the same answers.
    pub seed: u64,
}

impl Default for OpenpiConfig {
    fn default() -> Self {
        Self { keys: Keys::default(), robots: 16, message_bytes: 64 << 20, patience_secs: 15, seed: 0 }
    }
}

/// What the server tells of a robot's question.
#[derive(Clone, Debug, PartialEq)]
pub enum OpenpiEvent {
    /// A chunk went out after so many seconds of thought.
    Answered(f64),
    /// It could not be answered; the robot knows why.
    Refused(String),
}

/// The door; it holds no policy.
pub struct OpenpiServer {
    shared: Arc<Shared>,
}

struct Shared {
    config: OpenpiConfig,
    spec: PolicySpec,
    jobs: mpsc::Sender<Job>,
    clock: MonotonicClock,
    /// Robots that have come so far.
    robots: AtomicU64,
}

/// The policy, which thinks on the thread that runs it.
pub struct Thinker {
    policy: Box<dyn Policy>,
    jobs: mpsc::Receiver<Job>,
    clock: MonotonicClock,
}

/// A server for this policy and what has to run beside it.
pub fn openpi(policy: Box<dyn Policy>, config: OpenpiConfig) -> (OpenpiServer, Thinker) {
    let (sender, jobs) = mpsc::channel(config.robots.max(1));
    let (spec, clock) = (policy.spec().clone(), MonotonicClock::new());
    let shared =
        Shared { config, spec, jobs: sender, clock: MonotonicClock::new(), robots: AtomicU64::new(0) };
    (OpenpiServer { shared: Arc::new(shared) }, Thinker { policy, jobs, clock })
}

impl Thinker {
    /// Answers, one question at a time, until the server has ended.
    pub fn run(mut self, listener: &mut dyn FnMut(OpenpiEvent)) {
        while let Some(job) = self.jobs.blocking_recv() {
            let start = self.clock.now();
            self.policy.turn_to(&job.robot.to_string());
            let spec = self.policy.spec();
            let looked = job.history.iter().try_for_each(|seen| seen.check(&spec.embodiment));
            let chunk = looked.and_then(|()| self.policy.infer(&job.history, &job.options));
            let chunk = chunk.and_then(|chunk| match chunk.actions.first().map(Vec::len) {
                Some(dims) => chunk.check(dims).map(|()| chunk),
                None => Err(Error::Policy("it gave no actions".into())),
            });
            let secs = self.clock.now().secs_since(start);
            let event = match &chunk {
                Ok(_) => OpenpiEvent::Answered(secs),
                Err(error) => OpenpiEvent::Refused(error.to_string()),
            };
            // A robot that has gone needs no answer.
            let _ = job.reply.send((chunk, secs));
            listener(event);
        }
    }
}

impl OpenpiServer {
    /// Serves until `ending` is ready.
    pub async fn run(self, listener: TcpListener, ending: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(self.shared.config.robots.max(1)));
        let (close, closing) = watch::channel(false);
        let mut robots = JoinSet::new();
        tokio::pin!(ending);
        loop {
            let accepted = tokio::select! {
                () = &mut ending => break,
                accepted = listener.accept() => accepted,
                Some(_) = robots.join_next(), if !robots.is_empty() => continue,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: some will be free soon.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (shared, places, closing) = (self.shared.clone(), places.clone(), closing.clone());
            robots.spawn(connection(stream, shared, places, closing));
        }
        drop(listener);
        let _ = close.send(true);
        let patience = Duration::from_secs(self.shared.config.patience_secs);
        let ended = async { while robots.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, ended).await;
        robots.shutdown().await;
    }
}

/// One connection: a question about health, or a robot.
async fn connection(
    stream: TcpStream,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let patience = Duration::from_secs(shared.config.patience_secs);
    let io = TokioIo::new(Patient::new(stream, patience));
    // The talk goes on where the request ended; this task waits for both.
    let (sender, mut upgrades) = mpsc::channel(1);
    let handle = service_fn(|mut request: Request<Incoming>| {
        let answer = answer(&request, &shared, &places);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let _ = sender.try_send(hyper::upgrade::on(&mut request));
        }
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(64 << 10)
        .serve_connection(io, handle)
        .with_upgrades();
    if served.await.is_err() {
        return;
    }
    let Ok(upgrade) = upgrades.try_recv() else { return };
    let (Ok(upgraded), Ok(_place)) = (upgrade.await, places.try_acquire_owned()) else { return };
    talk::talk(TokioIo::new(upgraded), &shared, closing).await;
}

fn answer(request: &Request<Incoming>, shared: &Shared, places: &Semaphore) -> Response<Body> {
    let say = |status: StatusCode, words: String| {
        let mut response = Response::new(Body::Whole(words.into()));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    let refuse = |status, why: &str| say(status, format!("{why}\n"));
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "expected GET");
    }
    if request.uri().path() == "/healthz" {
        return say(StatusCode::OK, "OK\n".into());
    }
    let headers = request.headers();
    let has = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let (Some(key), true, true, true) = (
        key,
        has(header::CONNECTION, "upgrade"),
        has(header::UPGRADE, "websocket"),
        has(header::SEC_WEBSOCKET_VERSION, "13"),
    ) else {
        return refuse(StatusCode::UPGRADE_REQUIRED, "expected a WebSocket of version 13, or GET /healthz");
    };
    // Robots are no browsers: a page that somebody looks at must not move an arm.
    if headers.contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "expected a robot, got a browser (the header Origin)");
    }
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if !shared.config.keys.admit(authorization) {
        let why = "expected a valid API key in the header 'Authorization: Api-Key KEY'";
        return refuse(StatusCode::UNAUTHORIZED, why);
    }
    if places.available_permits() == 0 {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "as many robots as are served at once are here");
    }
    let mut response = say(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
