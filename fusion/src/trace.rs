//! A VLM's stages on given inputs, to be compared with a reference run.

use crate::Vlm;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_llm::trace::{input, stages_of};
use vela_nn::{Error, Result};
use vela_vision::trace::as_convolution;

/// Every stage of an Idefics3 or SmolVLM folder on `in.pixel_values` and `in.input_ids`, and on the pictureless
/// `in.text.input_ids` if there is one. Of the `out.*` only the lengths of generated texts are read.
pub fn trace(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let vlm = Vlm::load(dir)?;
    let mut stages = BTreeMap::new();
    if let Some(mask) = golden.get("in.pixel_attention_mask")
        && mask.to_dtype(DType::U32)?.flatten_all()?.min(0)?.to_scalar::<u32>()? == 0
    {
        return Err(Error::invalid("pictures that fill only part of their canvas are not supported"));
    }
    let pixels = input(golden, "in.pixel_values")?.flatten(0, 1)?;
    let hidden = vlm.vision().forward_tapped(&pixels, &mut |name, x| {
        let name = match name {
            "last_hidden_state" => "out.vision_hidden".to_owned(),
            other => format!("out.vision.{other}"),
        };
        stages.insert(name, x.clone());
    })?;
    as_convolution(&mut stages, "out.vision.patch_embeddings", vlm.vision(), &pixels)?;
    let features = vlm.projector().forward(&hidden)?;
    let ids = input(golden, "in.input_ids")?.to_dtype(DType::U32)?;
    stages_of(vlm.decoder(), &vlm.embed(&ids, Some(&features))?, "out.", golden, &mut stages)?;
    stages.insert("out.image_features".into(), features);
    if let Some(ids) = golden.get("in.text.input_ids") {
        let embeds = vlm.embed(&ids.to_dtype(DType::U32)?, None)?;
        stages_of(vlm.decoder(), &embeds, "out.text.", golden, &mut stages)?;
    }
    Ok(stages)
}
