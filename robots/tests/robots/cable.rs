//! A wire in the middle of a link, that can be pulled out or go silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Everything passes.
pub const WHOLE: u8 = 0;
/// Connections stay and nothing passes, as with a pulled cable.
pub const SILENT: u8 = 1;
/// Connections break and none can be made, as with a switch that was turned off.
pub const BROKEN: u8 = 2;

/// A wire to a port of this machine.
pub struct Wire {
    pub port: u16,
    state: Arc<AtomicU8>,
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
    pub fn to(target: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
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

    pub fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }
}
