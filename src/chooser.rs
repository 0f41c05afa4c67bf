//! Who drives: the policy inside the binary, one from a folder, or the scripted expert.

use crate::builtin;
use anyhow::{Context, Result, bail};
use std::path::Path;
use vela_embodiment::{Embodiment, Policy};
use vela_policy::{Choices, HeadPolicy, open};

/// Where the heads of the comparison are.
pub const HEADS_DIR: &str = "models/heads";

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

/// A head of the comparison on the trunk inside the binary: its name, or the path of its files without their endings.
pub fn head(name: &str) -> Result<HeadPolicy> {
    let path = Path::new(name);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(HEADS_DIR));
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    HeadPolicy::load(builtin::policy()?, dir, &file).with_context(|| {
        format!("the head '{file}' in {}; `vela eval heads --train` makes them", dir.display())
    })
}
