//! Between vela and an environment in another process (an external simulator): which episode to set up, what to do for
//! some ticks, how things stand then, what the cameras show, what its own expert would do.

use super::ask::Picture;
use super::packed::{Numbers, Rows};
use super::{Kind, pack, refuse, unpack};
use serde::{Deserialize, Serialize};
use vela_embodiment::{Episode, Frame, Result};

/// How an environment stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Control ticks since the reset.
    pub tick: u64,
    /// What the robot is asked to do.
    pub instruction: String,
    /// Measured joint positions in the embodiment's order, rad or m.
    pub joints: Vec<f64>,
    /// The targets that the last tick really had, rad or m; the measured joints after a reset.
    pub applied: Vec<f64>,
    /// The task is done (or was: it latches).
    pub success: bool,
    /// The task is done, or the environment ended the episode.
    pub finished: bool,
    /// Simulated seconds since the reset.
    pub seconds: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MomentBody {
    tick: u64,
    instruction: String,
    joints: Numbers,
    applied: Numbers,
    success: bool,
    finished: bool,
    seconds: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepBody {
    tick: u64,
    actions: Rows,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetBody {
    task: String,
    seed: u64,
    randomise: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewBody {
    tick: u64,
    frames: Vec<Picture>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelBody {
    tick: u64,
    targets: Numbers,
}

/// Bytes that set up an episode.
///
/// # Errors
/// Never, in practice: it is small.
pub fn encode_reset(episode: &Episode) -> Result<Vec<u8>> {
    let Episode { task, seed, randomise } = episode.clone();
    pack(Kind::Reset, &ResetBody { task, seed, randomise })
}

/// The episode in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode_reset(bytes: &[u8]) -> Result<Episode> {
    let ResetBody { task, seed, randomise } = unpack(Kind::Reset, bytes)?;
    Ok(Episode { task, seed, randomise })
}

/// Bytes of absolute joint targets, `[ticks][joints]`, rad or m, to be carried out from control tick `tick` on.
///
/// # Errors
/// The rows differ in width, or the message is too large.
pub fn encode_step(tick: u64, actions: &[Vec<f64>]) -> Result<Vec<u8>> {
    let actions = Rows::pack(actions).ok_or_else(|| refuse("the actions differ in width".into()))?;
    pack(Kind::Step, &StepBody { tick, actions })
}

/// The tick and the targets in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode_step(bytes: &[u8]) -> Result<(u64, Vec<Vec<f64>>)> {
    let body: StepBody = unpack(Kind::Step, bytes)?;
    let actions = body.actions.unpack();
    Ok((body.tick, actions.ok_or_else(|| refuse("the numbers do not fill the actions".into()))?))
}

/// Bytes of a moment.
///
/// # Errors
/// The message is too large.
pub fn encode_moment(moment: &Moment) -> Result<Vec<u8>> {
    let Moment { tick, instruction, joints, applied, success, finished, seconds } = moment.clone();
    let (joints, applied) = (Numbers(joints), Numbers(applied));
    pack(Kind::Moment, &MomentBody { tick, instruction, joints, applied, success, finished, seconds })
}

/// The moment in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode_moment(bytes: &[u8]) -> Result<Moment> {
    let MomentBody { tick, instruction, joints, applied, success, finished, seconds } =
        unpack(Kind::Moment, bytes)?;
    Ok(Moment { tick, instruction, joints: joints.0, applied: applied.0, success, finished, seconds })
}

/// Bytes of what the cameras show after `tick` control ticks.
///
/// # Errors
/// The message is too large.
pub fn encode_view(tick: u64, frames: &[Frame]) -> Result<Vec<u8>> {
    pack(Kind::View, &ViewBody { tick, frames: frames.iter().map(Picture::of).collect() })
}

/// The tick and the frames in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode_view(bytes: &[u8]) -> Result<(u64, Vec<Frame>)> {
    let body: ViewBody = unpack(Kind::View, bytes)?;
    let frames = body.frames.into_iter().map(Picture::frame).collect::<Result<_>>()?;
    Ok((body.tick, frames))
}

/// Bytes of the joint targets, rad or m, that an expert would choose after `tick` control ticks.
///
/// # Errors
/// The message is too large.
pub fn encode_label(tick: u64, targets: &[f64]) -> Result<Vec<u8>> {
    pack(Kind::Label, &LabelBody { tick, targets: Numbers(targets.to_vec()) })
}

/// The tick and the targets in these bytes.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode_label(bytes: &[u8]) -> Result<(u64, Vec<f64>)> {
    let body: LabelBody = unpack(Kind::Label, bytes)?;
    Ok((body.tick, body.targets.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_embodiment::Stamp;

    #[test]
    fn everything_comes_back_whole_and_nothing_torn() -> Result<()> {
        let episode = Episode { task: "pick".into(), seed: u64::MAX, randomise: true };
        assert_eq!(decode_reset(&encode_reset(&episode)?)?, episode);
        let actions = vec![vec![0.5, -1.0], vec![f64::MIN_POSITIVE, 2.0]];
        assert_eq!(decode_step(&encode_step(7, &actions)?)?, (7, actions));
        let moment = Moment {
            tick: 3,
            instruction: "pick the cube".into(),
            joints: vec![0.25, 1.0],
            applied: vec![0.5, 1.0],
            success: true,
            finished: false,
            seconds: 0.3,
        };
        let bytes = encode_moment(&moment)?;
        assert_eq!(decode_moment(&bytes)?, moment);
        assert!((0..bytes.len()).all(|end| decode_moment(&bytes[..end]).is_err()));
        let rgb: Vec<u8> = (0..12).collect();
        let frame = Frame { camera: "front".into(), width: 2, height: 2, rgb: rgb.into(), stamp: Stamp(9) };
        let bytes = encode_view(3, std::slice::from_ref(&frame))?;
        assert_eq!(decode_view(&bytes)?, (3, vec![frame]));
        assert!((0..bytes.len()).all(|end| decode_view(&bytes[..end]).is_err()));
        assert_eq!(decode_label(&encode_label(3, &[0.5])?)?, (3, vec![0.5]));
        assert!(decode_label(&bytes).is_err_and(|e| e.to_string().contains("expected label, got view")));
        Ok(())
    }
}
