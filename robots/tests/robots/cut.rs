//! A link that is cut and healed between arm and policy.

use crate::arm::eventually;
use crate::cable::{BROKEN, SILENT, WHOLE, Wire};
use crate::faults::{bench, moving, running};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vela_embodiment::{Embodiment, Error, Result};
use vela_robots::{RemotePolicy, Side, State, open_session, serve_policy};
use zenoh::Session;

fn io(error: std::io::Error) -> Error {
    Error::Link(error.to_string())
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io)?;
    Ok(listener.local_addr().map_err(io)?.port())
}

/// A session from a shipped file, at another port.
fn shipped(side: Side, port: u16, dir: &Path) -> Result<Session> {
    let name = if side == Side::Robot { "robot" } else { "policy" };
    let text = format!("{}/../configs/zenoh/{name}.json5", env!("CARGO_MANIFEST_DIR"));
    let text =
        std::fs::read_to_string(text).map_err(io)?.replace("127.0.0.1:7447", &format!("127.0.0.1:{port}"));
    let path = dir.join(format!("{name}-{port}.json5"));
    std::fs::write(&path, text).map_err(io)?;
    open_session(side, Some(&path))
}

#[test]
fn a_link_cut_and_healed_means_hold_and_then_going_on() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("vela-cut-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(io)?;
    let port = free_port()?;
    let near = shipped(Side::Robot, port, &dir)?;
    let wire = Wire::to(port).map_err(io)?;
    let far = shipped(Side::Policy, wire.port, &dir)?;
    std::fs::remove_dir_all(&dir).map_err(io)?;
    let done = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let (far, done, mut policy) = (far.clone(), done.clone(), moving(0.0005)?.0);
        move || serve_policy(&far, "vela/test", &mut policy, &done, &mut |_| {})
    });
    let remote = RemotePolicy::new(&near, "vela/test", &Embodiment::so101()?, 1.0)?;
    let run = bench(remote, 1e9)?;
    let at = || run.handle.joints().map_or(0.0, |reading| reading.positions[0]);
    assert!(eventually(|| running(&run.handle)), "{:?}", run.handle.state());
    let mut cuts = Vec::new();
    for (cut, how) in [(SILENT, "falls silent"), (BROKEN, "breaks"), (SILENT, "falls silent again")] {
        let fault = run.now();
        wire.set(cut);
        let holds = || matches!(run.handle.state(), State::Holding { .. });
        assert!(eventually(holds), "{:?}", run.handle.state());
        // Longer than a peer may be silent before the session gives it up.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(holds(), "{:?}", run.handle.state());
        let stood = at();
        let healed = run.now();
        wire.set(WHOLE);
        assert!(eventually(|| at() > stood + 0.005), "{:?}", run.handle.state());
        cuts.push((how, fault, healed));
    }
    done.store(true, Ordering::SeqCst);
    server.join().map_err(|_| Error::Policy("the server's thread died".into()))??;
    // Which of them the question under way met: no answer in time, or no policy any more.
    let watched = run.within_limits_and_told(&["the plan has ended and no new one came", "vela/test"])?;
    for (how, fault, healed) in cuts {
        watched.toll(fault, healed).tell(&format!("link {how} and is healed"));
    }
    Ok(())
}
