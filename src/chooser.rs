//! Who drives: the policy inside the binary, one from a folder, or the scripted expert.

use crate::builtin;
use anyhow::{Context, Result, bail};
use std::path::Path;
use vela_embodiment::Policy;
use vela_policy::VlaPolicy;

/// Who drives.
pub enum Chosen {
    /// A trained policy.
    Policy(Box<dyn Policy>),
    /// The scripted expert, which reads the simulator's state: an upper bound, not a policy.
    Expert,
}

/// `builtin`, `expert`, or a policy folder.
pub fn choose(name: &str) -> Result<Chosen> {
    Ok(match name {
        "expert" => Chosen::Expert,
        _ => Chosen::Policy(policy(name)?),
    })
}

/// `builtin` or a policy folder; the expert is refused.
pub fn policy(name: &str) -> Result<Box<dyn Policy>> {
    match name {
        "expert" => bail!("the scripted expert lives inside the simulator; here a policy is needed"),
        "builtin" => Ok(Box::new(builtin::policy()?)),
        dir if !Path::new(dir).is_dir() => {
            bail!("unknown policy '{dir}'; known: builtin, expert, or the path of a policy folder")
        }
        dir => Ok(Box::new(VlaPolicy::load(Path::new(dir)).with_context(|| format!("loading {dir}"))?)),
    }
}
