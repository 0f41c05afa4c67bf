//! The models that are inside the binary.

use anyhow::{Context, Result, bail};
use vela_fusion::ChatModel;
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

/// The VLM that answers where no other is named.
pub fn default_vlm(_picture_bytes: usize) -> Result<ChatModel> {
    bail!("no VLM is inside this binary: give --model, a folder or a GGUF file")
}
