//! Who drives: the policy inside the binary, one from a folder, or the scripted expert.

use crate::builtin;
use anyhow::{Context, Result, bail};
use std::path::Path;
use vela_embodiment::{Embodiment, Policy};
use vela_policy::{Choices, HeadPolicy, Rtc, open};

/// Where the heads of the comparison are.
pub const HEADS_DIR: &str = "models/heads";

/// How the chunks of a policy follow each other.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Following {
    /// Real-time chunking: a new chunk goes on where the rest of the last one leads, for as long as it takes to
    /// arrive, which is measured. For policies that denoise by a flow. Without the flag, as the policy's folder says.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "on")]
    pub rtc: Option<Switch>,
}

/// On or off.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Whatever the folder says.
    On,
    /// Whatever the folder says.
    Off,
}

impl Following {
    fn rtc(self) -> Rtc {
        match self.rtc {
            None => Rtc::AsStated,
            Some(Switch::On) => Rtc::On,
            Some(Switch::Off) => Rtc::Off,
        }
    }
}

/// Who drives.
pub enum Chosen {
    /// A trained policy.
    Policy(Box<dyn Policy>),
    /// The scripted expert, which reads the simulator's state: an upper bound, not a policy.
    Expert,
}

/// `builtin`, `expert`, or a policy folder, to drive `robot`.
pub fn choose(name: &str, robot: &Embodiment, following: Following) -> Result<Chosen> {
    Ok(match name {
        "expert" if following.rtc() == Rtc::On => {
            bail!("real-time chunking: the scripted expert has no chunks")
        }
        "expert" => Chosen::Expert,
        _ => Chosen::Policy(following_policy(name, robot, following)?),
    })
}

/// `builtin` or a policy folder of any kind that we know; the expert is refused.
pub fn policy(name: &str, robot: &Embodiment) -> Result<Box<dyn Policy>> {
    following_policy(name, robot, Following::default())
}

/// The same, its chunks following each other as is said.
pub fn following_policy(name: &str, robot: &Embodiment, following: Following) -> Result<Box<dyn Policy>> {
    let rtc = following.rtc();
    match name {
        "expert" => bail!("the scripted expert lives inside the simulator; here a policy is needed"),
        "builtin" => {
            let mut policy = builtin::policy()?;
            policy.set_guide(rtc.guide(policy.guide()));
            Ok(Box::new(policy))
        }
        dir if !Path::new(dir).is_dir() => {
            bail!("unknown policy '{dir}'; known: builtin, expert, or the path of a policy folder")
        }
        dir => open(Path::new(dir), robot, &Choices { rtc, ..Choices::default() })
            .with_context(|| format!("loading {dir}")),
    }
}

/// A head of the comparison on the trunk inside the binary: its name, or the path of its files without their endings.
pub fn head(name: &str) -> Result<HeadPolicy> {
    let path = Path::new(name);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(HEADS_DIR));
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    HeadPolicy::load(builtin::policy()?, dir, &file).with_context(|| {
        format!("the head '{file}' in {}; `vela eval heads --train` makes them", dir.display())
    })
}
