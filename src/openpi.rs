//! `vela serve --openpi`: a policy behind openpi's WebSocket, for robot code that speaks it already.

use crate::chooser;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use vela_embodiment::Embodiment;
use vela_nn::threads;
use vela_robots::Absolute;
use vela_serve::Keys;
use vela_serve::openpi::{OpenpiConfig, OpenpiEvent, openpi};

/// What `vela serve` was told, as far as it matters here.
pub struct Serving<'a> {
    /// `builtin` or a policy folder.
    pub policy: &'a str,
    /// What the robot is; the built-in SO-101 where no file is named.
    pub robot: Option<&'a PathBuf>,
    /// Threads of the policy.
    pub threads: usize,
    /// Who may ask.
    pub keys: Keys,
    /// The address to listen at.
    pub host: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(serving: Serving) -> Result<()> {
    let robot = match serving.robot {
        Some(file) => Embodiment::load(file)?,
        None => Embodiment::so101()?,
    };
    // Such robots send joints and get joints: what the policy says in deltas is resolved here.
    let policy = Absolute::new(chooser::policy(serving.policy, &robot)?, &robot)?;
    let config = OpenpiConfig { keys: serving.keys, ..OpenpiConfig::default() };
    let (server, thinker) = openpi(Box::new(policy), config);
    let thinking = std::thread::spawn(move || {
        threads::with_threads(serving.threads, || {
            thinker.run(&mut |event| {
                if let OpenpiEvent::Refused(why) = event {
                    eprintln!("refused: {why}");
                }
            });
        });
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((serving.host, serving.port)).await;
        let listener = listener.with_context(|| format!("{}:{}", serving.host, serving.port))?;
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let name = Path::new(serving.policy).file_name().unwrap_or_default().to_string_lossy();
        println!("{name} is served to openpi clients at ws://{}", listener.local_addr()?);
        let ending = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        server.run(listener, ending).await;
        anyhow::Ok(())
    })?;
    thinking.join().map_err(|_| anyhow::anyhow!("the policy's thread died"))
}
