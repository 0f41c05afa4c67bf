//! Who commands the arm: the node whose trajectory plays, and nobody else until it has ended.

use std::sync::{Mutex, PoisonError};
use vela_embodiment::{Error, Result, Stamp};

/// The present commander of one arm.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Its endpoint's identity and when its trajectory ends.
    holder: Mutex<Option<([u8; 16], Stamp)>>,
}

impl Lease {
    /// Gives the arm to `who` until `end`, who may have it already; messages without an identity count as one sender.
    ///
    /// # Errors
    /// Another's trajectory still plays.
    pub(super) fn take(&self, who: [u8; 16], now: Stamp, end: Stamp) -> Result<()> {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((present, until)) = *holder
            && present != who
            && now < until
        {
            let left = until.secs_since(now);
            return Err(Error::Robot(format!("another node commands the arm for {left:.1} s more: refused")));
        }
        *holder = Some((who, end));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_commander_at_a_time() {
        let (lease, at) = (Lease::default(), Stamp::from_secs);
        assert!(lease.take([1; 16], at(0.0), at(2.0)).is_ok());
        assert!(lease.take([2; 16], at(1.0), at(3.0)).is_err_and(|e| e.to_string().contains("1.0 s more")));
        assert!(lease.take([1; 16], at(1.0), at(1.5)).is_ok());
        assert!(lease.take([2; 16], at(1.6), at(3.0)).is_ok());
    }
}
