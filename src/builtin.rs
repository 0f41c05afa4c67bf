//! The policy that is inside the binary.

use anyhow::{Context, Result};
use vela_policy::VlaPolicy;

/// The tabletop policy.
pub fn policy() -> Result<VlaPolicy> {
    VlaPolicy::from_bytes(
        include_bytes!("../models/tabletop/config.json"),
        include_bytes!("../models/tabletop/tokenizer.json"),
        include_bytes!("../models/tabletop/embodiment.json"),
        include_bytes!("../models/tabletop/model.safetensors"),
    )
    .context("the policy inside the binary")
}
