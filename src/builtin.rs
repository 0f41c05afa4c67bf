//! The models that are inside the binary.

use anyhow::{Context, Result};
use std::sync::Arc;
use vela_fusion::{ChatModel, Vlm, VlmConfig, names};
use vela_llm::{ChatTemplate, TextModel, Tokenizer};
use vela_nn::Weights;
use vela_policy::VlaPolicy;
use vela_vision::Preprocessor;

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

/// The VLM that answers where no other is named; encoded pictures are remembered up to `picture_bytes`.
pub fn default_vlm(picture_bytes: usize) -> Result<ChatModel> {
    let (vlm, preprocessor, text) = vlm().context("the VLM inside the binary")?;
    Ok(ChatModel::of_vlm(vlm, preprocessor, text, picture_bytes)?)
}

/// The tabletop VLM, what makes pictures ready for it, and its text side.
pub fn vlm() -> Result<(Vlm, Preprocessor, TextModel)> {
    let file: serde_json::Value = serde_json::from_str(include_str!("../models/tabletop-vlm/config.json"))?;
    let config = VlmConfig::from_hf(&file)?;
    let weights = Weights::from_bytes(include_bytes!("../models/tabletop-vlm/model.safetensors"))?;
    let weights = names::renamed(&weights, &config.vision_kind)?;
    let vlm = Vlm::new(&weights, &config)?;
    weights.finish()?;
    let preprocessor = include_str!("../models/tabletop-vlm/preprocessor_config.json");
    let template = include_str!("../models/tabletop-vlm/chat_template.jinja");
    let count = |pointer: &str| file.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let text = TextModel {
        decoder: Arc::new(vlm.decoder()?.clone()),
        reader: None,
        tokenizer: Tokenizer::from_bytes(include_bytes!("../models/tabletop-vlm/tokenizer.json"))?,
        template: Some(ChatTemplate::new(template, Default::default())?),
        stop: vec![count("/eos_token_id") as u32],
        context: count("/text_config/max_position_embeddings") as usize,
    };
    Ok((vlm, Preprocessor::from_json(preprocessor)?, text))
}
