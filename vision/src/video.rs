//! Which frames of a video are looked at.

use vela_nn::{Error, Result};

/// Frames by the second, within bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameRate {
    /// Frames looked at in a second.
    pub per_second: f64,
    /// Fewest and most in all.
    pub bounds: (usize, usize),
    /// Their number is a multiple of this (the frames in one patch).
    pub multiple: usize,
}

impl Default for FrameRate {
    /// Qwen2-VL's: two a second, 4 to 768, in pairs.
    fn default() -> Self {
        Self { per_second: 2.0, bounds: (4, 768), multiple: 2 }
    }
}

impl FrameRate {
    /// The numbers of the frames looked at, of a video of `total` frames at `rate` per second: evenly from the first to the
    /// last. Their number is rounded down to a multiple; a video shorter than the fewest is looked at whole.
    ///
    /// # Errors
    /// No frame, a rate or a multiple that is not positive.
    pub fn frames(&self, total: usize, rate: f64) -> Result<Vec<usize>> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if total == 0 || !positive(rate) || !positive(self.per_second) || self.multiple == 0 {
            return Err(Error::invalid(format!(
                "video: expected frames and positive rates, got {total} frames at {rate} per second, {self:?}"
            )));
        }
        let (least, most) = self.bounds;
        let whole = |count: usize| (count / self.multiple * self.multiple).max(self.multiple);
        let wanted = (total as f64 / rate * self.per_second) as usize;
        let count = whole(wanted.min(most).max(least)).min(whole(total)).min(total);
        Ok(evenly(total, count))
    }

    /// Seconds from one of the frames that were chosen to the next.
    pub fn spacing(&self, total: usize, rate: f64) -> Result<f64> {
        Ok(total as f64 / rate / self.frames(total, rate)?.len() as f64)
    }
}

/// `count` of `total` frames, evenly from the first to the last.
pub fn evenly(total: usize, count: usize) -> Vec<usize> {
    match count.min(total) {
        0 => Vec::new(),
        1 => vec![0],
        count => {
            let step = (total - 1) as f64 / (count - 1) as f64;
            (0..count).map(|i| (i as f64 * step).round_ties_even() as usize).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_chosen_by_the_second_within_bounds() -> Result<()> {
        let two = FrameRate::default();
        // Ten seconds at 30: twenty frames from first to last.
        let frames = two.frames(300, 30.0)?;
        assert_eq!((frames.len(), frames[0], frames[19]), (20, 0, 299));
        assert!((two.spacing(300, 30.0)? - 0.5).abs() < 1e-9);
        assert_eq!(two.frames(10, 30.0)?.len(), 4, "at least four");
        assert_eq!(two.frames(3, 30.0)?, [0, 2], "never more than there are, in pairs");
        assert_eq!(two.frames(1, 30.0)?, [0]);
        let few = FrameRate { bounds: (1, 8), multiple: 1, per_second: 1.0 };
        assert_eq!(few.frames(3600, 10.0)?.len(), 8);
        assert_eq!(evenly(7, 3), [0, 3, 6]);
        assert!(
            two.frames(0, 30.0).is_err() && two.frames(9, 0.0).is_err() && two.frames(9, f64::NAN).is_err()
        );
        Ok(())
    }
}
