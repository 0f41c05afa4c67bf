//! `vela robot --leader`: another servo arm, moved by a person's hand, that the robot follows.

use anyhow::{Result, anyhow, bail};
use std::path::Path;
use std::thread::JoinHandle;
use vela_embodiment::{Embodiment, Error};
use vela_robots::feetech::{Calibration, HandGuided, LeaderArm, TeleoperationEvent, teleoperate};
use vela_robots::{ArmFile, ControlHandle};

/// The thread that reads the leader.
pub struct Leading(JoinHandle<vela_embodiment::Result<()>>);

/// Starts to lead the arm of `handle`; `path` is the leader's own arm file.
pub fn start(
    path: &Path,
    follower: &Embodiment,
    handle: &ControlHandle,
    guided: HandGuided,
) -> Result<Leading> {
    let (file, leader) = ArmFile::load(path)?;
    let (Some(servos), Some(calibration)) = (file.servos, file.calibration) else {
        bail!("{}: a leader has servos on USB, and it names none", path.display());
    };
    if leader.joint_names() != follower.joint_names() {
        let (theirs, ours) = (leader.joint_names(), follower.joint_names());
        return Err(Error::Mismatch(vec![format!("leader's joints {theirs:?} against {ours:?}")]).into());
    }
    let calibration = Calibration::load(&calibration)?;
    let (follower, handle) = (follower.clone(), handle.clone());
    let thread = std::thread::Builder::new().name("vela-leader".into()).spawn(move || {
        let open = || LeaderArm::open(&leader, calibration.clone(), &servos);
        let tell = &mut |event| match event {
            TeleoperationEvent::Approaching => eprintln!("coming slowly to where the leader is"),
            TeleoperationEvent::Following => eprintln!("following the leader"),
            TeleoperationEvent::Lost(why) => eprintln!("lost, the arm holds: {why}"),
        };
        let done = teleoperate(open, &follower, &handle, &guided, tell);
        if let Err(error) = &done {
            handle.stop(&format!("the leader: {error}"));
        }
        done
    })?;
    Ok(Leading(thread))
}

impl Leading {
    /// What became of it, once the robot's loop has ended.
    pub fn finish(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow!("the leader's thread died"))??;
        Ok(())
    }
}
