//! What a robot sees and feels at one moment.

use crate::{Embodiment, Error, Result, Stamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One picture from one camera.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// The camera's name in the embodiment.
    pub camera: String,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// RGB bytes, `[height, width, 3]`, row by row from the top.
    pub rgb: Arc<[u8]>,
    /// When the picture was taken.
    pub stamp: Stamp,
}

/// Everything a policy may know: pictures, joints and a sentence. Never an object's true pose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// One frame per camera of the embodiment.
    pub frames: Vec<Frame>,
    /// Measured joint positions in the embodiment's order, rad (revolute) or m (prismatic).
    pub joint_positions: Vec<f64>,
    /// What the robot was asked to do.
    pub instruction: String,
    /// When the joints were read.
    pub stamp: Stamp,
}

impl Observation {
    /// The frame of a camera, if it is there.
    pub fn frame(&self, camera: &str) -> Option<&Frame> {
        self.frames.iter().find(|frame| frame.camera == camera)
    }

    /// Refuses an observation that does not fit the embodiment: joint count, finite joints, each camera
    /// present with the right size and the right number of bytes.
    pub fn check(&self, embodiment: &Embodiment) -> Result<()> {
        if self.joint_positions.len() != embodiment.joints.len() {
            return Err(Error::Shape {
                what: "observed joints".into(),
                expected: embodiment.joints.len().to_string(),
                got: self.joint_positions.len().to_string(),
            });
        }
        for (joint, position) in embodiment.joints.iter().zip(&self.joint_positions) {
            if !position.is_finite() {
                return Err(Error::NotFinite(format!("observed joint '{}'", joint.name)));
            }
        }
        for camera in &embodiment.cameras {
            let Some(frame) = self.frame(&camera.name) else {
                return Err(Error::Unknown {
                    kind: "camera (missing from the observation)",
                    name: camera.name.clone(),
                    known: self.frames.iter().map(|f| f.camera.as_str()).collect::<Vec<_>>().join(", "),
                });
            };
            let bytes = frame.width as usize * frame.height as usize * 3;
            if (frame.width, frame.height) != (camera.width, camera.height) || frame.rgb.len() != bytes {
                return Err(Error::Shape {
                    what: format!("frame of camera '{}'", camera.name),
                    expected: format!("{}x{} RGB", camera.width, camera.height),
                    got: format!("{}x{} with {} bytes", frame.width, frame.height, frame.rgb.len()),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(embodiment: &Embodiment) -> Observation {
        Observation {
            frames: embodiment
                .cameras
                .iter()
                .map(|c| Frame {
                    camera: c.name.clone(),
                    width: c.width,
                    height: c.height,
                    rgb: vec![0; (c.width * c.height * 3) as usize].into(),
                    stamp: Stamp(0),
                })
                .collect(),
            joint_positions: vec![0.0; embodiment.joints.len()],
            instruction: String::new(),
            stamp: Stamp(0),
        }
    }

    #[test]
    fn a_missing_camera_a_short_frame_and_a_nan_are_refused() -> Result<()> {
        let embodiment = Embodiment::so101()?;
        let good = seen(&embodiment);
        good.check(&embodiment)?;
        let mut missing = good.clone();
        missing.frames.pop();
        assert!(missing.check(&embodiment).is_err_and(|e| e.to_string().contains("wrist")));
        let mut short = good.clone();
        short.frames[0].rgb = vec![0; 5].into();
        assert!(short.check(&embodiment).is_err_and(|e| e.to_string().contains("5 bytes")));
        let mut nan = good.clone();
        nan.joint_positions[2] = f64::NAN;
        assert!(nan.check(&embodiment).is_err_and(|e| e.to_string().contains("elbow_flex")));
        Ok(())
    }
}
