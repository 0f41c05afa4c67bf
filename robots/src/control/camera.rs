//! The camera thread: waits for frames, pairs them with the joints of their moment, offers observations.

use super::report::ControlEvent;
use super::shared::{EventSink, Shared};
use std::sync::Arc;
use vela_embodiment::{Embodiment, Error, Frame, FrameSource, Observation, Result, Stamp};

pub(super) fn run<C: FrameSource>(
    mut cameras: C,
    embodiment: &Embodiment,
    shared: &Shared,
    sink: &EventSink,
) -> C {
    while !shared.stopping() {
        match cameras.frames().and_then(|frames| pair(frames, embodiment, shared)) {
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
