//! The software emergency stop: pressed by anyone, latched, released only in so many words.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A button that many may hold: clones share one latch. The gate that listens to it brakes the arm within its limits
/// and holds it, under torque, until [`EmergencyStop::release`]; what was planned before then is never carried out.
#[derive(Clone, Debug, Default)]
pub struct EmergencyStop {
    latch: Arc<Latch>,
}

#[derive(Debug, Default)]
struct Latch {
    pressed: AtomicBool,
    presses: AtomicU64,
    reason: Mutex<String>,
}

impl EmergencyStop {
    /// Stops the arm; the first reason stays.
    pub fn press(&self, reason: &str) {
        let mut said = self.latch.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.latch.pressed.load(Ordering::Acquire) {
            reason.clone_into(&mut said);
        }
        self.latch.presses.fetch_add(1, Ordering::AcqRel);
        self.latch.pressed.store(true, Ordering::Release);
    }

    /// Lets the arm move again.
    pub fn release(&self) {
        self.latch.pressed.store(false, Ordering::Release);
    }

    /// Whether it is pressed.
    pub fn pressed(&self) -> bool {
        self.latch.pressed.load(Ordering::Acquire)
    }

    /// How often it was pressed: what was planned at a lower count is over.
    pub fn presses(&self) -> u64 {
        self.latch.presses.load(Ordering::Acquire)
    }

    /// Why it was pressed last; never waits.
    pub fn reason(&self) -> String {
        self.latch.reason.try_lock().map_or_else(|_| "emergency stop".into(), |reason| reason.clone())
    }
}
