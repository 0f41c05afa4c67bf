//! Where a policy differs from what was recorded: action error by joint and by step ahead.

use vela_embodiment::{Error, Result};

/// Absolute differences between predicted and recorded joint targets, gathered over any number of chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionError {
    joints: Vec<String>,
    /// `[steps][joints]` sums of absolute differences, rad or m.
    sums: Vec<Vec<f64>>,
    /// `[steps][joints]` largest absolute differences, rad or m.
    worst: Vec<Vec<f64>>,
    /// `[steps]` predictions that had a recorded counterpart.
    counts: Vec<u64>,
}

impl ActionError {
    /// Nothing compared yet.
    pub fn new(joints: &[&str]) -> Self {
        Self {
            joints: joints.iter().map(|joint| (*joint).to_owned()).collect(),
            sums: Vec::new(),
            worst: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Compares one chunk of absolute joint targets (`[steps][joints]`, rad or m, `period_secs` apart) that answers
    /// the observation of frame `frame` with the actions recorded at `fps` frames per second. Step `k` is compared
    /// with what was sent `k * period_secs` after that frame, interpolated between two frames; steps beyond the
    /// episode's end are left out.
    ///
    /// # Errors
    /// A row of either has the wrong width, `frame` is outside the episode, or the period is not positive.
    pub fn add(
        &mut self,
        recorded: &[Vec<f64>],
        fps: f64,
        frame: usize,
        predicted: &[Vec<f64>],
        period_secs: f64,
    ) -> Result<()> {
        let wide = self.joints.len();
        for (what, rows) in [("recorded action", recorded), ("predicted action", predicted)] {
            if let Some(row) = rows.iter().find(|row| row.len() != wide) {
                return Err(Error::Shape {
                    what: what.into(),
                    expected: format!("{wide} joint targets"),
                    got: row.len().to_string(),
                });
            }
        }
        if frame >= recorded.len() {
            return Err(Error::Shape {
                what: "frame of a recorded episode".into(),
                expected: format!("less than {}", recorded.len()),
                got: frame.to_string(),
            });
        }
        if !(period_secs > 0.0 && period_secs.is_finite() && fps > 0.0 && fps.is_finite()) {
            return Err(Error::NotFinite("period of a predicted chunk (or not positive)".into()));
        }
        for (step, targets) in predicted.iter().enumerate() {
            let place = frame as f64 + step as f64 * period_secs * fps;
            let (before, share) = (place.floor() as usize, place.fract());
            // Rates that differ only by rounding must not lose the last frame.
            let (before, share) = if share > 1.0 - 1e-6 { (before + 1, 0.0) } else { (before, share) };
            let after = if share < 1e-6 { before } else { before + 1 };
            if after >= recorded.len() {
                break;
            }
            if self.counts.len() == step {
                self.sums.push(vec![0.0; wide]);
                self.worst.push(vec![0.0; wide]);
                self.counts.push(0);
            }
            self.counts[step] += 1;
            for joint in 0..wide {
                let sent =
                    recorded[before][joint] + share * (recorded[after][joint] - recorded[before][joint]);
                let error = (targets[joint] - sent).abs();
                self.sums[step][joint] += error;
                self.worst[step][joint] = self.worst[step][joint].max(error);
            }
        }
        Ok(())
    }

    /// Joint names, in the order of every row.
    pub fn joints(&self) -> &[String] {
        &self.joints
    }

    /// Steps ahead that have been compared.
    pub fn horizon(&self) -> usize {
        self.counts.len()
    }

    /// Mean absolute error `[steps][joints]`, rad or m.
    pub fn by_step_and_joint(&self) -> Vec<Vec<f64>> {
        let mean = |(sums, count): (&Vec<f64>, &u64)| sums.iter().map(|sum| sum / *count as f64).collect();
        self.sums.iter().zip(&self.counts).map(mean).collect()
    }

    /// Largest absolute error `[steps][joints]`, rad or m.
    pub fn worst(&self) -> &[Vec<f64>] {
        &self.worst
    }

    /// Mean absolute error per joint over all steps, rad or m; empty when nothing was compared.
    pub fn by_joint(&self) -> Vec<f64> {
        let count: u64 = self.counts.iter().sum();
        if count == 0 {
            return Vec::new();
        }
        let sum = |joint: usize| self.sums.iter().map(|row| row[joint]).sum::<f64>();
        (0..self.joints.len()).map(|joint| sum(joint) / count as f64).collect()
    }

    /// Mean absolute error per step over all joints.
    pub fn by_step(&self) -> Vec<f64> {
        let wide = self.joints.len().max(1) as f64;
        self.by_step_and_joint().iter().map(|row| row.iter().sum::<f64>() / wide).collect()
    }

    /// Mean absolute error over everything; `None` when nothing was compared.
    pub fn mean(&self) -> Option<f64> {
        let by_joint = self.by_joint();
        (!by_joint.is_empty()).then(|| by_joint.iter().sum::<f64>() / by_joint.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joint a rises by 0.1 per frame, joint b by 0.2.
    fn ramp(frames: usize) -> Vec<Vec<f64>> {
        (0..frames).map(|k| vec![0.1 * k as f64, 0.2 * k as f64]).collect()
    }

    #[test]
    fn a_perfect_chunk_has_no_error_and_stops_at_the_episodes_end() -> Result<()> {
        let mut error = ActionError::new(&["a", "b"]);
        error.add(&ramp(10), 30.0, 7, &ramp(12)[7..12], 1.0 / 30.0)?;
        assert_eq!(error.horizon(), 3);
        assert!(error.mean().is_some_and(|mean| mean < 1e-9));
        Ok(())
    }

    #[test]
    fn errors_are_told_apart_by_joint_and_step() -> Result<()> {
        let mut error = ActionError::new(&["a", "b"]);
        let off: Vec<Vec<f64>> =
            (0..4).map(|k| vec![0.1 * k as f64 + 0.01 * k as f64, 0.2 * k as f64 - 0.5]).collect();
        error.add(&ramp(10), 30.0, 0, &off, 1.0 / 30.0)?;
        error.add(&ramp(10), 30.0, 0, &ramp(4), 1.0 / 30.0)?;
        let table = error.by_step_and_joint();
        assert!((table[2][0] - 0.01).abs() < 1e-9 && (table[2][1] - 0.25).abs() < 1e-9, "{table:?}");
        assert!((error.worst()[3][0] - 0.03).abs() < 1e-9);
        assert!((error.by_joint()[1] - 0.25).abs() < 1e-9 && (error.by_step()[0] - 0.125).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn another_period_is_interpolated_and_wrong_widths_are_refused() -> Result<()> {
        let mut error = ActionError::new(&["a", "b"]);
        error.add(&ramp(10), 30.0, 1, &[vec![0.1, 0.2], vec![0.15, 0.3], vec![0.2, 0.4]], 1.0 / 60.0)?;
        assert!(error.mean().is_some_and(|mean| mean < 1e-9));
        assert!(error.add(&ramp(10), 30.0, 0, &[vec![0.0]], 0.1).is_err());
        assert!(error.add(&ramp(2), 30.0, 2, &ramp(1), 0.1).is_err());
        Ok(())
    }
}
