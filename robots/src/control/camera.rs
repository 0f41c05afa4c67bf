//! The camera thread: waits for frames, pairs them with the joints of their moment, offers observations.

use super::report::ControlEvent;
use super::shared::{EventSink, Shared};
use std::collections::BTreeMap;
use std::sync::Arc;
use vela_embodiment::{Embodiment, Error, Frame, FrameSource, Observation, Result, Stamp};

pub(super) fn run<C: FrameSource>(
    mut cameras: C,
    embodiment: &Embodiment,
    shared: &Shared,
    sink: &EventSink,
) -> C {
    let mut eyes = Eyes::default();
    while !shared.stopping() {
        let looked = cameras.frames().and_then(|frames| pair(frames, embodiment, shared));
        let looked = looked.and_then(|seen| {
            seen.as_ref().map_or(Ok(()), |(observation, _)| eyes.trust(observation)).map(|()| seen)
        });
        match looked {
            Ok(Some((observation, oldest))) => {
                let observation = Arc::new(observation);
                shared.observed(observation.clone(), oldest);
                sink.send(ControlEvent::Observed(observation));
            }
            // The loop has not read any joints yet.
            Ok(None) => pause(shared),
            Err(error) => {
                shared.camera_failed(error.to_string());
                pause(shared);
            }
        }
    }
    cameras
}

fn pause(shared: &Shared) {
    shared.clock.sleep_until(shared.clock.now().plus_secs(0.01));
}

/// No camera that works gives a picture whose brightest byte is below this.
const BLACK: u8 = 8;
/// An arm that moved by this much looks different, rad or m.
const MOVED: f64 = 0.1;

/// Remembers each camera's last picture and where the joints were when it was new.
#[derive(Default)]
struct Eyes {
    seen: BTreeMap<String, (Arc<[u8]>, Vec<f64>)>,
}

impl Eyes {
    /// Refuses black pictures, and a picture that stays the same, byte for byte, while the arm moves: such a camera
    /// has died with its driver alive.
    fn trust(&mut self, observation: &Observation) -> Result<()> {
        for frame in &observation.frames {
            if frame.rgb.iter().all(|byte| *byte < BLACK) {
                return Err(Error::Robot(format!("camera '{}' is black", frame.camera)));
            }
            let joints = &observation.joint_positions;
            match self.seen.get(&frame.camera) {
                Some((last, then)) if *last == frame.rgb => {
                    if then.iter().zip(joints).any(|(a, b)| (a - b).abs() > MOVED) {
                        let why = format!(
                            "camera '{}' is frozen: the arm moved, its picture did not",
                            frame.camera
                        );
                        return Err(Error::Robot(why));
                    }
                }
                _ => {
                    self.seen.insert(frame.camera.clone(), (frame.rgb.clone(), joints.clone()));
                }
            }
        }
        Ok(())
    }
}

/// One observation and the stamp of its oldest frame: a frozen camera beside a live one is seen too.
fn pair(
    frames: Vec<Frame>,
    embodiment: &Embodiment,
    shared: &Shared,
) -> Result<Option<(Observation, Stamp)>> {
    let Some(oldest) = frames.iter().map(|frame| frame.stamp).min() else {
        return Err(Error::Robot("the camera gave no frames".into()));
    };
    let Some(reading) = shared.reading_at(oldest) else { return Ok(None) };
    let observation = Observation {
        frames,
        joint_positions: reading.positions,
        instruction: shared.instruction(),
        stamp: reading.stamp,
    };
    observation.check(embodiment)?;
    Ok(Some((observation, oldest)))
}
