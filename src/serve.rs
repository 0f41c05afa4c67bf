//! `vela serve`: a model behind any OpenAI client, and a page in the browser.

use crate::{builtin, openpi};
use anyhow::{Context, Result, bail};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use vela_embodiment::{Clock, MonotonicClock};
use vela_fusion::ChatModel;
use vela_llm::Lora;
use vela_llm::engine::{BLOCK, PagedKind};
use vela_serve::{Keys, LinkHost, Links, ServerConfig, Service, ServiceConfig};

/// Bytes of encoded pictures that are remembered.
const PICTURE_BYTES: usize = 256 << 20;
/// Most bytes of the engine's cache if nothing is said.
const CACHE_BYTES: usize = 1 << 30;
/// Seconds that a picture that stands elsewhere may take.
const FETCH_SECS: u64 = 10;

/// Which model, and how much memory it may have.
#[derive(clap::Args)]
pub struct Loading {
    /// A VLM's or a text model's Hugging Face folder, or a GGUF file; without it, the VLM inside the binary.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A LoRA adapter (a PEFT folder) that the model always has: of a VLM, of any part of it.
    #[arg(long, value_name = "DIR", requires = "model")]
    lora: Option<PathBuf>,
    /// Positions of a prompt and its answer; 0: as many as the model was made for, at most 8192.
    #[arg(long, default_value_t = 0)]
    context: usize,
    /// How keys and values are kept: f32, f16 (half the memory) or int8 (a quarter); docs/performance.md has the cost.
    #[arg(long, value_name = "KIND", default_value = "f32", value_parser = kept)]
    kv: PagedKind,
    /// So many tokens of each picture stay, those that are alike merged: less to read, at a cost in accuracy (measured in
    /// models/tabletop-vlm/README.md).
    #[arg(long, value_name = "N")]
    pub merge: Option<usize>,
    /// Threads; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// The kind of cache of this name.
pub fn kept(name: &str) -> Result<PagedKind, String> {
    match name {
        "f32" => Ok(PagedKind::F32),
        "f16" => Ok(PagedKind::F16),
        "int8" => Ok(PagedKind::Int8),
        _ => Err(format!("expected f32, f16 or int8, got '{name}'")),
    }
}

impl Loading {
    /// The VLM inside the binary, on so many threads.
    pub fn builtin(threads: usize) -> Self {
        Self { model: None, lora: None, context: 0, kv: PagedKind::F32, merge: None, threads }
    }
}

/// An adapter and the name that it is asked by: `NAME=DIR`.
#[derive(Clone)]
struct NamedAdapter {
    name: String,
    dir: PathBuf,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=').filter(|(name, dir)| !name.is_empty() && !dir.is_empty()) {
            Some((name, dir)) => Ok(Self { name: name.to_owned(), dir: dir.into() }),
            None => Err(format!("expected NAME=DIR, got '{text}'")),
        }
    }
}

/// Serve a model to OpenAI clients (/v1/chat/completions and so on) and on a page at /; Ctrl-C or SIGTERM ends it after
/// the answers that are being given.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    loading: Loading,
    /// The name that clients know the model by; else that of its folder or file.
    #[arg(long)]
    name: Option<String>,
    /// A LoRA adapter of the model's decoder (a PEFT folder) that clients ask by this name in `model`; may be given several
    /// times.
    #[arg(long, value_name = "NAME=DIR", conflicts_with = "openpi")]
    adapter: Vec<NamedAdapter>,
    /// Hosts that pictures named by http and https URLs are fetched from, by comma: example.org, example.org:8080,
    /// 192.168.0.7. Private addresses only if they are named here themselves; no redirects to other hosts.
    #[arg(long, value_name = "HOST", value_delimiter = ',', conflicts_with = "openpi")]
    allow_image_urls: Vec<LinkHost>,
    /// Names besides localhost that a server on a loopback address answers to (a proxy's), by comma.
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "openpi")]
    allow_host: Vec<String>,
    /// The address to listen at.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at, 8080 or 8000 for openpi if nothing is said; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// Serve a policy (--model DIR or builtin) over openpi's WebSocket instead, to robot code that speaks it.
    #[arg(long)]
    openpi: bool,
    /// With --openpi: what the robot is, a file as in configs/robots (the built-in SO-101 by default).
    #[arg(long, value_name = "FILE", requires = "openpi")]
    robot: Option<PathBuf>,
    /// A file with the keys that clients may come with, one a line.
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Answers written at once.
    #[arg(long, default_value_t = 16)]
    max_running: usize,
    /// Answers that may wait for those; one more is refused as busy.
    #[arg(long, default_value_t = 64)]
    max_waiting: usize,
    /// New tokens of one answer at most.
    #[arg(long, default_value_t = 4096)]
    max_tokens: usize,
    /// Memory for keys and values, MiB; 0: as much as the answers at once may need, at most 1024.
    #[arg(long, default_value_t = 0)]
    cache_mib: usize,
    /// Seconds that an answer may take.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let keys = match &args.api_key_file {
        None => Keys::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let keys = Keys::from_lines(&text);
            if keys.is_empty() {
                bail!("{}: expected at least one key, one a line", path.display());
            }
            keys
        }
    };
    if !args.host.is_loopback() && keys.is_empty() {
        eprintln!("vela: anyone who reaches {} may ask: give --api-key-file to change that", args.host);
    }
    if args.openpi {
        if args.loading.merge.is_some() {
            bail!("--merge: expected a model that answers questions, got --openpi");
        }
        let policy = args.loading.model.as_ref().map_or("builtin".into(), |model| model.to_string_lossy());
        return openpi::run(openpi::Serving {
            policy: &policy,
            robot: args.robot.as_ref(),
            // A small policy is fastest on one.
            threads: args.loading.threads.max(1),
            keys,
            host: args.host,
            port: args.port.unwrap_or(8000),
        });
    }
    let (model, mut name) = load(&args.loading)?;
    if let Some(given) = &args.name {
        name.clone_from(given);
    }
    let mut config = settings(&args.loading, &model, args.max_running);
    config.engine.max_waiting = args.max_waiting;
    config.max_tokens = args.max_tokens;
    if args.cache_mib > 0 {
        config.engine.cache_bytes = args.cache_mib << 20;
    }
    let adapters = adapters(&args.adapter, &model)?;
    let service = Service::start(model, &name, config, Arc::new(MonotonicClock::new()))?;
    let service = Arc::new(linked(service.with_adapters(adapters)?, &args.allow_image_urls)?);
    let port = args.port.unwrap_or(8080);
    let (answer_secs, names) = (args.timeout.max(1), args.allow_host.clone());
    let limits = ServerConfig { keys, answer_secs, names, ..ServerConfig::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((args.host, port)).await;
        let listener = listener.with_context(|| format!("{}:{port}", args.host))?;
        let ending = signalled()?;
        println!("{} is served at http://{}", service.name(), listener.local_addr()?);
        vela_serve::run(listener, service, limits, ending).await;
        Ok(())
    })
}

/// Waits for Ctrl-C or SIGTERM; made inside a runtime.
pub fn signalled() -> Result<impl Future<Output = ()> + Send> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("vela: finishing what is being answered");
    })
}

/// The adapters, read for the model.
fn adapters(named: &[NamedAdapter], model: &ChatModel) -> Result<Vec<(String, Arc<Lora>)>> {
    let read = |NamedAdapter { name, dir }: &NamedAdapter| {
        let lora = Lora::load(dir, model.decoder().config()).with_context(|| dir.display().to_string())?;
        Ok((name.clone(), Arc::new(lora)))
    };
    named.iter().map(read).collect()
}

/// The service with leave to fetch pictures from these hosts, if any.
fn linked(service: Service, hosts: &[LinkHost]) -> Result<Service> {
    if hosts.is_empty() {
        return Ok(service);
    }
    let roots = rustls_native_certs::load_native_certs();
    if roots.certs.is_empty() {
        eprintln!("vela: no certificates were found on this machine: pictures come by http only");
    }
    let most = usize::try_from(service.config().picture.bytes)?;
    Ok(service.with_links(Links::new(hosts.to_vec(), roots.certs, most, FETCH_SECS)?))
}

/// A model behind the engine, for so many answers at once.
pub fn service(loading: &Loading, at_once: usize, clock: Arc<dyn Clock>) -> Result<Service> {
    let (model, name) = load(loading)?;
    let config = settings(loading, &model, at_once);
    Ok(Service::start(model, &name, config, clock)?)
}

/// The model, and what it goes by.
fn load(loading: &Loading) -> Result<(ChatModel, String)> {
    // Of the encoder; the engine's thread is told by its own setting.
    vela_nn::threads::set(loading.threads);
    let Some(path) = &loading.model else {
        return Ok((builtin::default_vlm(PICTURE_BYTES)?.keeping(loading.merge)?, "vela".to_owned()));
    };
    let model = ChatModel::load_adapted(path, loading.lora.as_deref(), PICTURE_BYTES)
        .and_then(|model| model.keeping(loading.merge))
        .with_context(|| path.display().to_string())?;
    let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok((model, name.unwrap_or_else(|| "model".to_owned())))
}

/// As much cache as `at_once` answers of full length need, within bounds.
fn settings(loading: &Loading, model: &ChatModel, at_once: usize) -> ServiceConfig {
    let mut config = ServiceConfig::default();
    let engine = &mut config.engine;
    engine.context = if loading.context == 0 { engine.context } else { loading.context }.min(model.context());
    engine.kind = loading.kv;
    let position = model.decoder().config().cache_shape(loading.kv).block_bytes().div_ceil(BLOCK);
    engine.max_running = at_once.max(1);
    let wanted = position.saturating_mul(engine.context).saturating_mul(engine.max_running + 1);
    engine.cache_bytes = wanted.clamp(1 << 20, CACHE_BYTES.max(position.saturating_mul(engine.context)));
    engine.threads = loading.threads;
    config
}
