//! Robot to policy: an observation that wants a chunk, whole.

use super::packed::{Bytes, Numbers, Rows};
use super::{Kind, check_name, pack, refuse, unpack};
use serde::{Deserialize, Serialize};
use vela_embodiment::{Frame, InferOptions, Observation, Result, Stamp};

/// A robot waits for an answer this long at most, s.
const LONGEST_PATIENCE_SECS: f64 = 3600.0;

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Who asks, as in its hello.
    pub robot: String,
    /// Counts the questions of one robot; the answer echoes it.
    pub sequence: u64,
    /// How long the robot waits for the answer, s: after that nobody wants it.
    pub patience_secs: f64,
    /// Oldest first. Stamps are the robot's and mean nothing to the policy: it echoes them.
    pub history: Vec<Observation>,
    /// Seed, delay and the rest of the last chunk.
    pub options: InferOptions,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    robot: String,
    sequence: u64,
    patience_secs: f64,
    history: Vec<Seen>,
    seed: u64,
    delay_ticks: u32,
    unexecuted: Rows,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    stamp: u64,
    instruction: String,
    joints: Numbers,
    frames: Vec<Picture>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Picture {
    camera: String,
    width: u32,
    height: u32,
    stamp: u64,
    rgb: Bytes,
}

impl Picture {
    pub(super) fn of(f: &Frame) -> Self {
        Self {
            camera: f.camera.clone(),
            width: f.width,
            height: f.height,
            stamp: f.stamp.0,
            rgb: Bytes(f.rgb.clone()),
        }
    }

    pub(super) fn frame(self) -> Result<Frame> {
        let expected = u64::from(self.width) * u64::from(self.height) * 3;
        if self.rgb.0.len() as u64 != expected {
            let (camera, w, h, n) = (self.camera, self.width, self.height, self.rgb.0.len());
            return Err(refuse(format!("camera '{camera}': {w}x{h} RGB is {expected} bytes, got {n}")));
        }
        let Self { camera, width, height, stamp, rgb } = self;
        Ok(Frame { camera, width, height, rgb: rgb.0, stamp: Stamp(stamp) })
    }
}

/// Bytes of a question.
///
/// # Errors
/// The unexecuted rows differ in width, or the message is too large.
pub fn encode(ask: &Ask) -> Result<Vec<u8>> {
    let seen = |o: &Observation| Seen {
        stamp: o.stamp.0,
        instruction: o.instruction.clone(),
        joints: Numbers(o.joint_positions.clone()),
        frames: o.frames.iter().map(Picture::of).collect(),
    };
    let body = Body {
        robot: ask.robot.clone(),
        sequence: ask.sequence,
        patience_secs: ask.patience_secs,
        history: ask.history.iter().map(seen).collect(),
        seed: ask.options.seed,
        delay_ticks: u32::try_from(ask.options.delay_ticks).unwrap_or(u32::MAX),
        unexecuted: Rows::pack(&ask.options.unexecuted)
            .ok_or_else(|| refuse("the unexecuted rows differ in width".into()))?,
    };
    pack(Kind::Ask, &body)
}

/// The question in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode(bytes: &[u8]) -> Result<Ask> {
    let body: Body = unpack(Kind::Ask, bytes)?;
    check_name(&body.robot)?;
    let (robot, sequence, patience_secs) = (body.robot, body.sequence, body.patience_secs);
    if !(patience_secs > 0.0 && patience_secs <= LONGEST_PATIENCE_SECS) {
        let expected = format!("more than 0 s and at most {LONGEST_PATIENCE_SECS} s");
        return Err(refuse(format!("expected a patience of {expected}, got {patience_secs} s")));
    }
    let mut history = Vec::new();
    for seen in body.history {
        history.push(Observation {
            frames: seen.frames.into_iter().map(Picture::frame).collect::<Result<_>>()?,
            joint_positions: seen.joints.0,
            instruction: seen.instruction,
            stamp: Stamp(seen.stamp),
        });
    }
    let unexecuted = body
        .unexecuted
        .unpack()
        .ok_or_else(|| refuse("the unexecuted numbers do not fill their rows".into()))?;
    let options = InferOptions { seed: body.seed, delay_ticks: body.delay_ticks as usize, unexecuted };
    Ok(Ask { robot, sequence, patience_secs, history, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_comes_back_whole() -> Result<()> {
        let ask = super::super::fuzz::sample_ask();
        assert_eq!(decode(&encode(&ask)?)?, ask);
        Ok(())
    }

    #[test]
    fn a_robot_without_a_name_or_with_no_patience_is_refused() -> Result<()> {
        let said = |change: &dyn Fn(&mut Ask)| -> Result<String> {
            let mut ask = super::super::fuzz::sample_ask();
            change(&mut ask);
            Ok(decode(&encode(&ask)?).err().map(|e| e.to_string()).unwrap_or_default())
        };
        for patience_secs in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            let text = said(&|ask| ask.patience_secs = patience_secs)?;
            assert!(text.contains("expected a patience of more than 0 s"), "{text}");
        }
        assert!(said(&|ask| ask.robot.clear())?.contains("name of 1 to 100 bytes, got 0"));
        assert!(said(&|ask| ask.robot = "x".repeat(101))?.contains("got 101"));
        Ok(())
    }

    #[test]
    fn a_frame_of_the_wrong_size_is_refused() -> Result<()> {
        let mut ask = super::super::fuzz::sample_ask();
        ask.history[0].frames[0].width = 3;
        let error = decode(&encode(&ask)?);
        assert!(error.is_err_and(|e| e.to_string().contains("3x2 RGB is 18 bytes, got 12")));
        Ok(())
    }
}
