//! A person at the terminal: what is typed, Ctrl-C, and where an arm moves, Enter is the emergency stop and `go` releases
//! it.

use anyhow::Result;
use std::io::{BufRead, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use tokio::signal::unix::{SignalKind, signal};
use vela_embodiment::EmergencyStop;

/// Lines that a person types, read on a thread of its own that ends with the program; the other end goes when nobody can
/// type any more.
pub fn lines() -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Set by Ctrl-C or SIGTERM, which from then on end nothing by themselves: a second one does not cut short what the first
/// began to save.
pub fn interruption() -> Result<Arc<AtomicBool>> {
    signalled(|_| {})
}

/// The same where an arm moves: whoever looks at it brakes the arm and says how it went. A second one ends the program at
/// once, with a shell's status of that signal.
pub fn ending() -> Result<Arc<AtomicBool>> {
    signalled(|status| std::process::exit(status))
}

/// Sets a flag at the first signal; `again` is told the status of every other.
fn signalled(again: fn(i32)) -> Result<Arc<AtomicBool>> {
    let pressed = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(inside);
    std::thread::Builder::new().name("vela-signals".into()).spawn({
        let pressed = pressed.clone();
        move || {
            runtime.block_on(async {
                loop {
                    let status = tokio::select! {
                        _ = interrupt.recv() => 130,
                        _ = terminate.recv() => 143,
                    };
                    if pressed.swap(true, Ordering::AcqRel) {
                        again(status);
                    }
                }
            })
        }
    })?;
    Ok(pressed)
}

/// Watches the terminal, if there is one, on a thread of its own that ends with the program.
pub fn watch(stop: &EmergencyStop) {
    if !std::io::stdin().is_terminal() {
        return;
    }
    eprintln!("Enter stops the arm at once; 'go' and Enter lets it move again");
    let stop = stop.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            obey(&stop, line.trim());
        }
    });
}

/// Whatever is typed that is not the one word that releases is a stop: a hand that slips must not set an arm free.
fn obey(stop: &EmergencyStop, line: &str) {
    if line == "go" {
        stop.release();
        eprintln!("released: the arm may move");
    } else {
        stop.press("pressed at the terminal");
        eprintln!("EMERGENCY STOP: the arm brakes and holds; 'go' and Enter releases it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_one_word_stops() {
        let stop = EmergencyStop::default();
        for line in ["", " ", "help", "gO"] {
            obey(&stop, line);
            assert!(stop.pressed(), "'{line}'");
            obey(&stop, "go");
            assert!(!stop.pressed());
        }
    }
}
