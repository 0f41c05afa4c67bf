//! `vela act`: the policy's side of the link; answers robots over zenoh.

use crate::chooser;
use crate::demo::BASE_KEY;
use crate::stats::quantile;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vela_embodiment::Embodiment;
use vela_nn::threads;
use vela_robots::{ServeEvent, Side, open_session, serve_robots};

/// Serve a policy to one robot or several over zenoh until interrupted.
#[derive(clap::Args)]
pub struct Args {
    /// The policy: builtin, or a policy folder.
    #[arg(long, default_value = "builtin")]
    policy: String,
    #[command(flatten)]
    following: chooser::Following,
    /// A zenoh config file (JSON5) instead of the built-in one, which connects to loopback.
    #[arg(long)]
    zenoh: Option<PathBuf>,
    /// What the robot is: a file as in configs/robots (the built-in SO-101 by default).
    #[arg(long)]
    robot: Option<PathBuf>,
    /// The robot's base key. Say it again for every other robot, or with wildcards for all that match: `--key 'vela/*'`.
    /// The robots take turns, and no two keys may match the same one.
    #[arg(long, default_value = BASE_KEY)]
    key: Vec<String>,
    /// Threads of the policy; a small one is fastest on one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// End after this many seconds; 0 serves until interrupted.
    #[arg(long, default_value_t = 0.0)]
    for_secs: f64,
    /// Print how it went as JSON at the end.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let robot = match &args.robot {
        Some(file) => Embodiment::load(file)?,
        None => Embodiment::so101()?,
    };
    let mut policy = chooser::following_policy(&args.policy, &robot, args.following)?;
    let session = open_session(Side::Policy, args.zenoh.as_deref())?;
    let shutdown = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn({
        let (shutdown, seconds) = (Arc::clone(&shutdown), args.for_secs);
        async move {
            let timer = async {
                match seconds > 0.0 {
                    true => tokio::time::sleep(std::time::Duration::from_secs_f64(seconds)).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                () = timer => {}
            }
            shutdown.store(true, Ordering::Release);
        }
    });
    eprintln!("serving '{}' on '{}'; Ctrl-C ends it", args.policy, args.key.join("', '"));
    let keys: Vec<&str> = args.key.iter().map(String::as_str).collect();
    let mut tell = |event| {
        if let ServeEvent::Refused(why) = event {
            eprintln!("refused: {why}");
        }
    };
    let report = threads::with_threads(args.threads, || {
        serve_robots(&session, &keys, policy.as_mut(), &shutdown, &mut tell)
    })?;
    if args.json {
        let ms = |q: f64| quantile(&report.infer_secs, q) * 1e3;
        let robots: BTreeMap<&String, Value> = report
            .robots
            .iter()
            .map(|(key, served)| {
                let counts = json!({"answered": served.answered, "refused": served.refused,
                    "stale": served.stale, "superseded": served.superseded});
                (key, counts)
            })
            .collect();
        let answer = json!({"answered": report.answered, "refused": report.refused, "robots": robots,
            "infer_p50_ms": ms(0.5), "infer_p99_ms": ms(0.99)});
        println!("{answer}");
    } else {
        eprintln!("{} chunks sent, {} questions refused", report.answered, report.refused);
        for (key, served) in &report.robots {
            let (stale, superseded) = (served.stale, served.superseded);
            eprintln!(
                "{key}: {} chunks sent, {} questions refused, {stale} of them stale and {superseded} superseded",
                served.answered, served.refused
            );
        }
    }
    Ok(())
}
