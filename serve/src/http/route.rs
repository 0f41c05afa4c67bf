//! Which request goes where.

use super::body::{self, Body};
use super::{App, answer, hosts};
use crate::openai::{self, Wanted};
use crate::{Fault, Reply, Service, metrics};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::Duration;

const PAGE: &str = include_str!("../../page/index.html");
const OPENAPI: &str = include_str!("../../openapi.json");
const JSON: &str = "application/json";

/// The page brings all it needs, and talks to nobody but this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Page,
    Health,
    OpenApi,
    Metrics,
    Models,
    Model,
    Chat,
    Completions,
    Camera,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Page,
            "/healthz" => Self::Health,
            "/openapi.json" => Self::OpenApi,
            "/metrics" => Self::Metrics,
            "/v1/models" => Self::Models,
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/camera" => Self::Camera,
            path if path.strip_prefix("/v1/models/").is_some_and(|name| !name.is_empty()) => Self::Model,
            _ => return None,
        })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::Health => "/healthz",
            Self::OpenApi => "/openapi.json",
            Self::Metrics => "/metrics",
            Self::Models => "/v1/models",
            Self::Model => "/v1/models/{model}",
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Camera => "/camera",
        }
    }

    fn is_asked(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Page | Self::Health | Self::OpenApi)
    }
}

/// Answers one request.
pub async fn handle(request: Request<Incoming>, app: Arc<App>) -> Response<Body> {
    let place = Place::of(request.uri().path());
    let (head, body) = request.into_parts();
    let mut body = Some(body);
    let known = if app.local { hosts::check(&head, &app.config.names) } else { Ok(()) };
    let made = match (known, place) {
        (Err(fault), _) => Err(fault),
        (Ok(()), Some(place)) => serve(&head, &mut body, place, &app).await,
        (Ok(()), None) => Err(Fault::refused(404, "not_found", "there is nothing at this path")),
    };
    // Whoever is refused before the body was read is still sending it.
    if let Some(body) = body.filter(|body| !body.is_end_stream()) {
        body::discard(body, app.config.body_bytes).await;
    }
    let response = made.unwrap_or_else(|fault| refusal(&fault, place));
    let label = place.map_or("other", Place::label);
    app.service.tallies().response(label, response.status().as_u16());
    response
}

async fn serve(
    head: &Parts,
    body: &mut Option<Incoming>,
    place: Place,
    app: &Arc<App>,
) -> Result<Response<Body>, Fault> {
    let method = &head.method;
    let fits = match place.is_asked() {
        true => method == Method::POST,
        false => method == Method::GET || method == Method::HEAD,
    };
    if !fits {
        let expected = if place.is_asked() { "POST" } else { "GET" };
        return Err(Fault::refused(405, "method_not_allowed", format!("expected {expected}, got {method}")));
    }
    let authorization = head.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if !place.is_open() && !app.config.keys.admit(authorization) {
        return Err(Fault::unauthorised());
    }
    let service = &app.service;
    match place {
        Place::Page => {
            let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", PAGE);
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            Ok(response)
        }
        Place::Health => {
            let state = json!({"status": "ok", "camera": app.config.camera.is_some()});
            Ok(whole(StatusCode::OK, JSON, state.to_string()))
        }
        Place::Camera => match &app.config.camera {
            Some(camera) => camera.look().await,
            None => Err(Fault::refused(
                404,
                "no_camera",
                "this server has no camera: `vela demo --serve` has one",
            )),
        },
        Place::OpenApi => Ok(whole(StatusCode::OK, JSON, OPENAPI)),
        Place::Metrics => {
            Ok(whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::page(service)))
        }
        Place::Models => {
            let all: Vec<Json> = service.names().map(|name| model(service, name)).collect();
            let list = json!({"object": "list", "data": all});
            Ok(whole(StatusCode::OK, JSON, list.to_string()))
        }
        Place::Model => match head.uri.path().strip_prefix("/v1/models/") {
            Some(name) if service.names().any(|known| known == name) => {
                Ok(whole(StatusCode::OK, JSON, model(service, name).to_string()))
            }
            name => Err(openai::sampling::unknown_model(name.unwrap_or_default(), service)),
        },
        Place::Chat | Place::Completions => ask(head, body, place, app).await,
    }
}

fn model(service: &Service, name: &str) -> Json {
    let modalities: &[&str] = if service.model().sees() { &["text", "image"] } else { &["text"] };
    // Of an adapter, the model that it adapts.
    let parent = service.adapter(name).map(|_| service.name());
    json!({"id": name, "object": "model", "created": service.started(), "owned_by": "vela", "parent": parent,
        "context_length": service.engine().longest(), "input_modalities": modalities,
        "tools": service.model().takes_tools()})
}

async fn ask(
    head: &Parts,
    body: &mut Option<Incoming>,
    place: Place,
    app: &Arc<App>,
) -> Result<Response<Body>, Fault> {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(JSON) {
        let kind: String = kind.chars().take(60).collect();
        let message = format!("expected the content type {JSON}, got '{kind}'");
        return Err(Fault::refused(415, "unsupported_media_type", message));
    }
    let slot = app.slots.clone().try_acquire_owned();
    let slot = slot.map_err(|_| Fault::busy("as many questions as may wait do already"))?;
    let received =
        body::receive(body.take().ok_or_else(|| Fault::internal("the body is gone"))?, app).await?;
    let service = app.service.clone();
    let secs = app.config.answer_secs;
    // The slot is taken for as long as somebody works, even if nobody waits any more.
    let work = tokio::task::spawn_blocking(move || (begin(&received.bytes, place, &service), slot));
    let begun = tokio::time::timeout(Duration::from_secs(secs), work).await;
    let begun = begun.map_err(|_| Fault::too_slow(secs))?;
    let (begun, slot) = begun.map_err(|_| Fault::internal("reading the question panicked"))?;
    let (wanted, replies) = begun?;
    let slot = Arc::new(slot);
    if wanted.stream {
        let events = answer::stream(app.service.clone(), wanted, replies, secs, slot);
        let mut response = Response::new(Body::Events(events));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return Ok(response);
    }
    let answered = answer::whole(&app.service, &wanted, replies, &slot);
    let answered = tokio::time::timeout(Duration::from_secs(secs), answered).await;
    let answered = answered.map_err(|_| Fault::too_slow(secs))??;
    Ok(whole(StatusCode::OK, JSON, answered.to_string()))
}

/// Everything before the first token, on a thread that may work.
fn begin(bytes: &[u8], place: Place, service: &Service) -> Result<(Wanted, Vec<Reply>), Fault> {
    let json: Json = serde_json::from_slice(bytes)
        .map_err(|e| Fault::refused(400, "invalid_json", format!("the body is no JSON: {e}")))?;
    let mut fetching = service.fetching();
    let mut wanted = match place {
        Place::Completions => openai::completions::read(&json, service)?,
        _ => openai::chat::read(&json, service, &mut fetching)?,
    };
    drop(json);
    let mut replies = Vec::new();
    // The questions, and the pictures in them, are not needed any more.
    for ask in std::mem::take(&mut wanted.asks) {
        replies.extend(service.begin(&ask)?);
    }
    Ok((wanted, replies))
}

pub(super) fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refusal(fault: &Fault, place: Option<Place>) -> Response<Body> {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = whole(status, JSON, fault.json().to_string());
    let headers = response.headers_mut();
    if let Some(secs) = fault.retry_secs {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    match fault.status {
        401 => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        405 => {
            let asked = place.is_some_and(Place::is_asked);
            let allowed = HeaderValue::from_static(if asked { "POST" } else { "GET, HEAD" });
            headers.insert(header::ALLOW, allowed);
        }
        // What is left of the body is not worth waiting for.
        408 | 413 => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}
