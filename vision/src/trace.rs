//! SigLIP's stages on given inputs, to be compared with a reference run.

use crate::{Siglip, Vit};
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::{Error, Result, Weights};

/// Every stage of both towers on `in.pixel_values` and `in.input_ids`.
pub fn trace(
    dir: &Path,
    config: &Value,
    golden: &HashMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let weights = Weights::load_dir(dir)?;
    let model = Siglip::new(&weights, config)?;
    weights.finish()?;
    let input = |name: &str| {
        golden.get(name).ok_or_else(|| Error::invalid(format!("the reference run has no tensor '{name}'")))
    };
    let mut stages = BTreeMap::new();
    let mut note = |name: String, x: &Tensor| {
        stages.insert(name, x.clone());
    };
    let pixels = input("in.pixel_values")?;
    let pictures = model.embed_pictures(pixels, &mut |name, x| note(format!("out.vision.{name}"), x))?;
    let ids = input("in.input_ids")?.to_dtype(DType::U32)?;
    let texts = model.embed_texts(&ids, &mut |name, x| note(format!("out.text.{name}"), x))?;
    let logits = model.logits(&pictures, &texts)?;
    note("out.logits_per_text".into(), &logits.t()?.contiguous()?);
    note("out.logits_per_image".into(), &logits);
    note("out.image_embeds".into(), &pictures);
    note("out.text_embeds".into(), &texts);
    as_convolution(&mut stages, "out.vision.patch_embeddings", model.vision())?;
    Ok(stages)
}

/// References give patch embeddings as a convolution does: `[b, width, rows, columns]`.
pub fn as_convolution(stages: &mut BTreeMap<String, Tensor>, name: &str, tower: &Vit) -> Result<()> {
    let grid = tower.config().grid();
    if let Some(stage) = stages.get_mut(name) {
        let (b, _, width) = stage.dims3()?;
        *stage = stage.transpose(1, 2)?.contiguous()?.reshape((b, width, grid, grid))?;
    }
    Ok(())
}
