//! `vela robot --leader`: another servo arm, moved by a person's hand, that the robot follows.

use anyhow::{Result, anyhow, bail};
use std::path::Path;
use std::thread::JoinHandle;
use vela_embodiment::{Embodiment, Error};
use vela_robots::feetech::{
    Calibration, HandGuided, LeaderArm, ServoConfig, TeleoperationEvent, teleoperate,
};
use vela_robots::{ArmFile, ControlHandle};

/// A leader's files, read before any arm moves.
pub struct Leader {
    body: Embodiment,
    servos: ServoConfig,
    calibration: Calibration,
}

/// The thread that reads the leader.
pub struct Leading(JoinHandle<vela_embodiment::Result<()>>);

impl Leader {
    /// Reads a leader's own arm file and its calibration.
    pub fn read(path: &Path, follower: &Embodiment) -> Result<Self> {
        let (file, body) = ArmFile::load(path)?;
        let (Some(servos), Some(calibration)) = (file.servos, file.calibration) else {
            bail!("{}: a leader has servos on USB, and it names none", path.display());
        };
        if body.joint_names() != follower.joint_names() {
            let (theirs, ours) = (body.joint_names(), follower.joint_names());
            return Err(Error::Mismatch(vec![format!("leader's joints {theirs:?} against {ours:?}")]).into());
        }
        Ok(Self { body, servos, calibration: Calibration::load(&calibration)? })
    }

    /// Starts to lead the arm of `handle`.
    pub fn start(self, follower: &Embodiment, handle: &ControlHandle, guided: HandGuided) -> Result<Leading> {
        let (follower, handle) = (follower.clone(), handle.clone());
        let thread = std::thread::Builder::new().name("vela-leader".into()).spawn(move || {
            let Self { body, servos, calibration } = self;
            let open = || LeaderArm::open(&body, calibration.clone(), &servos);
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
}

impl Leading {
    /// What became of it, once the robot's loop has ended.
    pub fn finish(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow!("the leader's thread died"))??;
        Ok(())
    }
}
