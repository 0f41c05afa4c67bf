//! Who drives: the policy inside the binary, one from a folder, or the scripted expert.

use crate::builtin;
use anyhow::{Context, Result, bail};
use std::path::Path;
use vela_embodiment::{Embodiment, Policy};
use vela_policy::{Choices, open};

/// Who drives.
pub enum Chosen {
    /// A trained policy.
    Policy(Box<dyn Policy>),
    /// The scripted expert, which reads the simulator's state: an upper bound, not a policy.
    Expert,
}

/// `builtin`, `expert`, or a policy folder, to drive `robot`.
pub fn choose(name: &str, robot: &Embodiment) -> Result<Chosen> {
    Ok(match name {
        "expert" => Chosen::Expert,
        _ => Chosen::Policy(policy(name, robot)?),
    })
}

/// `builtin` or a policy folder of any kind that we know; the expert is refused.
pub fn policy(name: &str, robot: &Embodiment) -> Result<Box<dyn Policy>> {
    match name {
        "expert" => bail!("the scripted expert lives inside the simulator; here a policy is needed"),
        "builtin" => Ok(Box::new(builtin::policy()?)),
        dir if !Path::new(dir).is_dir() => {
            bail!("unknown policy '{dir}'; known: builtin, expert, or the path of a policy folder")
        }
        dir => open(Path::new(dir), robot, &Choices::default()).with_context(|| format!("loading {dir}")),
    }
}
