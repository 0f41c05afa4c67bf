//! A tiny VLM that babbles letters, a server around it, and a client that sends bytes.

#![allow(dead_code, reason = "each test file uses its part")]

use base64::Engine as _;
use serde_json::{Map, Value as Json, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vela_embodiment::MonotonicClock;
use vela_fusion::ChatModel;
use vela_serve::{ServerConfig, Service, ServiceConfig, run};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub const TEMPLATE: &str = "<s>{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}{% for m in messages %}\
    {{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}\
    {% endfor %}</s>{% endfor %}assistant: ";

/// The reference model of `tests/golden/llava` with room for more positions and a letter for each of its 160 tokens.
pub fn model_dir() -> Outcome<tempfile::TempDir> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llava");
    let dir = tempfile::tempdir()?;
    for file in ["model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(from.join(file), dir.path().join(file))?;
    }
    let mut config: Json = serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    config["text_config"]["max_position_embeddings"] = 16_384.into();
    std::fs::write(dir.path().join("config.json"), config.to_string())?;
    let named = [(0, "<pad>"), (1, "<s>"), (2, "</s>"), (155, "<image>")];
    let name = |id: u32| match named.iter().find(|(of, _)| *of == id) {
        Some((_, name)) => (*name).to_owned(),
        // Printable ASCII stands for itself, Ġ for a space; what is left is never wanted for anything.
        None if id < 97 => char::from(30 + id as u8).to_string(),
        None => char::from_u32(0x120 + id - 97).map(String::from).unwrap_or_default(),
    };
    let vocab: Map<String, Json> = (0..160).map(|id| (name(id), json!(id))).collect();
    let special = |(id, name): &(u32, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": named.iter().map(special).collect::<Vec<_>>(), "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({"eos_token": "</s>", "bos_token": "<s>", "chat_template": TEMPLATE});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string())?;
    Ok(dir)
}

pub fn small() -> ServiceConfig {
    let mut config = ServiceConfig::default();
    (config.engine.cache_bytes, config.engine.context) = (40 << 20, 16_384);
    config.picture.pixels = 1_000_000;
    config
}

/// A server on a free port.
pub struct Served {
    pub at: SocketAddr,
    pub service: Arc<Service>,
    pub ending: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

pub async fn serve(config: ServiceConfig, limits: ServerConfig) -> Outcome<Served> {
    serve_with(config, limits, Ok).await
}

/// The same with a service that was changed before it is served.
pub async fn serve_with(
    config: ServiceConfig,
    limits: ServerConfig,
    change: impl FnOnce(Service) -> Outcome<Service>,
) -> Outcome<Served> {
    let dir = model_dir()?;
    let model = ChatModel::load(dir.path(), 1 << 20).map_err(|e| e.to_string())?;
    let service = Service::start(model, "babbler", config, Arc::new(MonotonicClock::new()))?;
    let service = Arc::new(change(service)?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    let (ending, ended) = oneshot::channel();
    let task = tokio::spawn(run(listener, service.clone(), limits, async {
        let _ = ended.await;
    }));
    Ok(Served { at, service, ending: Some(ending), task, _dir: dir })
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    pub fn json(&self) -> Outcome<Json> {
        Ok(serde_json::from_slice(&self.body).map_err(|e| format!("{e}: {self:?}"))?)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Events up to the last, which must be `[DONE]`.
    pub fn events(&self) -> Outcome<Vec<Json>> {
        let text = self.text();
        let mut events: Vec<&str> =
            text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        Ok(events.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// The message of an error.
    pub fn error(&self) -> Outcome<String> {
        let error = self.json()?["error"].clone();
        assert!(
            ["message", "type", "param", "code"].iter().all(|field| error.get(field).is_some()),
            "{error}"
        );
        Ok(format!(
            "{}: {}",
            error["param"].as_str().unwrap_or("-"),
            error["message"].as_str().unwrap_or("?")
        ))
    }

    pub fn parse(bytes: &[u8]) -> Outcome<Self> {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or("no end of the head")?;
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
        let mut body = bytes[at + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            let (mut rest, mut whole) = (body.as_slice(), Vec::new());
            while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16)?;
                let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
                whole.extend_from_slice(chunk);
                rest = rest.get(end + 4 + size..).unwrap_or_default();
            }
            body = whole;
        }
        Ok(Self { status, head, body })
    }
}

/// Sends bytes as they are and reads until the server closes.
pub async fn raw(at: SocketAddr, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut stream = TcpStream::connect(at).await?;
    // A server that has answered already may not read the rest.
    let _ = stream.write_all(bytes).await;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await?;
    Ok(got)
}

pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub async fn send(at: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Outcome<Got> {
    Got::parse(&raw(at, &request(method, path, headers, body)).await?)
}

pub const JSON: &str = "content-type: application/json\r\n";

pub async fn post(at: SocketAddr, path: &str, body: &Json) -> Outcome<Got> {
    send(at, "POST", path, JSON, body.to_string().as_bytes()).await
}

pub async fn chat(at: SocketAddr, body: &Json) -> Outcome<Got> {
    post(at, "/v1/chat/completions", body).await
}

pub async fn get(at: SocketAddr, path: &str) -> Outcome<Got> {
    send(at, "GET", path, "", b"").await
}

/// A counter or gauge.
pub async fn metric(at: SocketAddr, name: &str) -> Outcome<f64> {
    let page = get(at, "/metrics").await?.text();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("vela_{name} ")));
    Ok(line.ok_or(format!("no metric {name}"))?.parse()?)
}

pub fn data_url(kind: &str, file: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(file))
}

/// A file of one colour and a gradient.
pub fn picture(width: u32, height: u32, shade: u8, format: image::ImageFormat) -> Outcome<Vec<u8>> {
    let made =
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb([shade, (x * 3) as u8, (y * 5) as u8]));
    let mut file = std::io::Cursor::new(Vec::new());
    made.write_to(&mut file, format)?;
    Ok(file.into_inner())
}

pub fn png(shade: u8) -> Outcome<String> {
    Ok(data_url("png", &picture(40, 30, shade, image::ImageFormat::Png)?))
}

/// A user's message about pictures.
pub fn about(urls: &[&str], question: &str) -> Json {
    let picture = |url: &&str| json!({"type": "image_url", "image_url": {"url": url}});
    let mut parts: Vec<Json> = urls.iter().map(picture).collect();
    parts.push(json!({"type": "text", "text": question}));
    json!({"role": "user", "content": parts})
}

/// A greedy question in words.
pub fn words(question: &str, max_tokens: usize) -> Json {
    json!({"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": max_tokens})
}

/// The question of [`words`] whose answer has exactly so many tokens.
pub fn long(tokens: usize) -> Json {
    let mut asked = words("go on", tokens + 5);
    asked["response_format"] = json!({"type": "regex", "regex": format!("[ab]{{{tokens}}}")});
    asked
}

/// Waits for something to become true.
pub async fn until<F: Future<Output = Outcome<bool>>>(mut holds: impl FnMut() -> F) -> Outcome {
    for _ in 0..500 {
        if holds().await? {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Err("it never came to hold".into())
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}
