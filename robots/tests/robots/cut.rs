//! A link that is cut and healed between arm and policy: a wire in the middle that can be pulled out, or go silent.

use crate::arm::eventually;
use crate::faults::{bench, moving, running};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};
use vela_embodiment::{Embodiment, Error, Result};
use vela_robots::{RemotePolicy, Side, State, open_session, serve_policy};
use zenoh::Session;

/// Everything passes.
const WHOLE: u8 = 0;
/// Connections stay and nothing passes, as with a pulled cable.
const SILENT: u8 = 1;
/// Connections break and none can be made, as with a switch that was turned off.
const BROKEN: u8 = 2;

/// A wire to a port of this machine.
struct Wire {
    port: u16,
    state: Arc<AtomicU8>,
}

fn io(error: std::io::Error) -> Error {
    Error::Link(error.to_string())
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io)?;
    Ok(listener.local_addr().map_err(io)?.port())
}

/// One direction of one connection, until it breaks.
fn pump(mut from: TcpStream, mut to: TcpStream, state: &AtomicU8) {
    let mut bytes = vec![0; 1 << 16];
    let _ = from.set_read_timeout(Some(Duration::from_millis(5)));
    loop {
        match state.load(Ordering::SeqCst) {
            BROKEN => break,
            SILENT => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            _ => {}
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) if to.write_all(&bytes[..read]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Wire {
    fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io)?;
        let port = listener.local_addr().map_err(io)?.port();
        let state = Arc::new(AtomicU8::new(WHOLE));
        std::thread::spawn({
            let state = state.clone();
            move || {
                for near in listener.incoming().flatten() {
                    if state.load(Ordering::SeqCst) != WHOLE {
                        continue;
                    }
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                    let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else {
                        continue;
                    };
                    let (one, other) = (state.clone(), state.clone());
                    std::thread::spawn(move || pump(near, far, &one));
                    std::thread::spawn(move || pump(far_again, near_again, &other));
                }
            }
        });
        Ok(Self { port, state })
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }
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
    let wire = Wire::to(port)?;
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
    for cut in [SILENT, BROKEN, SILENT] {
        wire.set(cut);
        let begun = Instant::now();
        let holds = || matches!(run.handle.state(), State::Holding { .. });
        assert!(eventually(holds), "{:?}", run.handle.state());
        let held = begun.elapsed();
        // Longer than a peer may be silent before the session gives it up.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(holds(), "{:?}", run.handle.state());
        let stood = at();
        wire.set(WHOLE);
        let healed = Instant::now();
        assert!(eventually(|| at() > stood + 0.005), "{:?}", run.handle.state());
        eprintln!("cut {cut}: held after {held:.2?}, went on {:.2?} after it was healed", healed.elapsed());
    }
    done.store(true, Ordering::SeqCst);
    server.join().map_err(|_| Error::Policy("the server's thread died".into()))??;
    run.within_limits()?;
    Ok(())
}
