//! What a policy commands: one action per control tick, in a declared space, gathered in chunks.

use crate::{Error, Result, Stamp};
use serde::{Deserialize, Serialize};

/// What the numbers of an action mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionSpace {
    /// Absolute joint targets in the embodiment's order, rad or m.
    JointPositions,
    /// Joint targets relative to the measured joints at the observation, rad or m.
    JointDeltas,
    /// Gripper frame displacement in the base frame, m, and rotation vector, rad, then the gripper joint.
    EndEffectorDeltas,
}

/// One action: absolute joint targets in the embodiment's order, rad or m.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// One target per joint.
    pub joint_targets: Vec<f64>,
}

/// A plan of equally spaced actions that answers one observation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionChunk {
    /// What the numbers mean.
    pub space: ActionSpace,
    /// `[horizon][dims]`. Action `k` is for the tick at `observation_stamp + (k + 1) * period_secs`.
    pub actions: Vec<Vec<f64>>,
    /// Seconds between two actions.
    pub period_secs: f64,
    /// Stamp of the observation that this chunk answers, echoed.
    pub observation_stamp: Stamp,
    /// The seed that made the chunk: same seed, same observation, same bytes.
    pub seed: u64,
    /// Hash of the checkpoint that made it.
    pub checkpoint: String,
}

impl ActionChunk {
    /// Number of actions.
    pub fn horizon(&self) -> usize {
        self.actions.len()
    }

    /// Refuses a chunk that is empty, ragged, not finite or not `dims` wide.
    pub fn check(&self, dims: usize) -> Result<()> {
        if self.actions.is_empty() {
            return Err(Error::Shape {
                what: "action chunk".into(),
                expected: "at least one action".into(),
                got: "none".into(),
            });
        }
        if !(self.period_secs.is_finite() && self.period_secs > 0.0) {
            return Err(Error::NotFinite("action chunk's period (or not positive)".into()));
        }
        for (k, action) in self.actions.iter().enumerate() {
            if action.len() != dims {
                return Err(Error::Shape {
                    what: format!("action {k} of the chunk"),
                    expected: format!("{dims} numbers"),
                    got: action.len().to_string(),
                });
            }
            if action.iter().any(|x| !x.is_finite()) {
                return Err(Error::NotFinite(format!("action {k} of the chunk")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_empty_and_nan_chunks_are_refused() {
        let chunk = |actions: Vec<Vec<f64>>| ActionChunk {
            space: ActionSpace::JointPositions,
            actions,
            period_secs: 0.1,
            observation_stamp: Stamp(0),
            seed: 0,
            checkpoint: String::new(),
        };
        assert!(chunk(vec![vec![0.0; 2]]).check(2).is_ok());
        assert!(chunk(vec![]).check(2).is_err());
        assert!(chunk(vec![vec![0.0; 2], vec![0.0]]).check(2).is_err());
        assert!(chunk(vec![vec![0.0, f64::NAN]]).check(2).is_err());
    }
}
