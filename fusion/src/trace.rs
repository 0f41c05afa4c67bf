//! A VLM's stages on given inputs, to be compared with a reference run.

use crate::{Text, Tower, Visual, Vlm};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use vela_llm::Cache;
use vela_llm::trace::input;
use vela_nn::{Error, Mask, Result};
use vela_vision::Grid;
use vela_vision::trace::{Stages, as_convolution, noting};
use vela_vision::vit::filled_patches;

/// The `model_type`s that [`trace`] knows.
pub const KNOWN: [&str; 10] = [
    "blip-2",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "paligemma",
    "qwen2_vl",
    "qwen2_5_vl",
    "smolvlm",
];

/// Every stage of a VLM's folder on the runs that there are: the plain one, and those under `video.`, `text.` and `suffix.`.
/// Of the `out.*` only the lengths of generated texts are read.
pub fn trace(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<Stages> {
    let vlm = Vlm::load(dir)?;
    let mut stages = Stages::new();
    for run in ["", "video.", "text.", "suffix."] {
        if golden.contains_key(&format!("in.{run}input_ids")) {
            Run { vlm: &vlm, golden, name: run }.stages(&mut stages)?;
        }
    }
    Ok(stages)
}

struct Run<'a> {
    vlm: &'a Vlm,
    golden: &'a HashMap<String, Tensor>,
    name: &'a str,
}

impl Run<'_> {
    fn get(&self, name: &str) -> Option<&Tensor> {
        self.golden.get(&format!("in.{}{name}", self.name))
    }

    fn integers(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let values = self.get(name).map(|x| x.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>());
        Ok(values.transpose()?)
    }

    fn grid(&self, name: &str) -> Result<Grid> {
        match self.integers(name)?.as_deref() {
            Some([t, h, w]) => Ok([*t as usize, *h as usize, *w as usize]),
            other => Err(Error::invalid(format!("in.{name}: expected three numbers, got {other:?}"))),
        }
    }

    fn visual(&self) -> Result<Option<Visual>> {
        let native = matches!(self.vlm.tower(), Tower::Native(_));
        if let Some(pixels) = self.get("pixel_values_videos") {
            if native {
                let seconds = match self.get("second_per_grid_ts") {
                    Some(x) => f64::from(x.flatten_all()?.to_dtype(DType::F32)?.get(0)?.to_scalar::<f32>()?),
                    None => 1.0,
                };
                let grid = self.grid("video_grid_thw")?;
                return Ok(Some(Visual::Patches { patches: pixels.clone(), grid, seconds: Some(seconds) }));
            }
            return Ok(Some(Visual::Frames(pixels.flatten(0, 1)?)));
        }
        let Some(pixels) = self.get("pixel_values") else { return Ok(None) };
        let Tower::Fixed(tower) = self.vlm.tower() else {
            let grid = self.grid("image_grid_thw")?;
            return Ok(Some(Visual::Patches { patches: pixels.clone(), grid, seconds: None }));
        };
        let pixels = if pixels.rank() == 5 { pixels.flatten(0, 1)? } else { pixels.clone() };
        let size = match (self.integers("image_sizes")?.as_deref(), self.get("image").map(Tensor::dims)) {
            (Some([height, width]), _) => (*width as usize, *height as usize),
            (_, Some([height, width, _])) => (*width, *height),
            _ => (pixels.dim(3)?, pixels.dim(2)?),
        };
        let mask =
            self.get("pixel_attention_mask").map(|mask| filled_patches(&mask.flatten(0, 1)?, tower.config()));
        Ok(Some(Visual::Parts { pixels, size, filled: mask.transpose()? }))
    }

    fn stages(&self, stages: &mut Stages) -> Result<()> {
        let (vlm, prefix) = (self.vlm, format!("out.{}", self.name));
        let mut seen = Vec::new();
        if let Some(visual) = self.visual()? {
            seen.push(vlm.encode_tapped(&visual, &mut noting(stages, prefix.clone()))?);
            self.more_of_the_tower(&visual, stages)?;
            let kind = if self.name == "video." { "video_features" } else { "image_features" };
            stages.insert(format!("{prefix}{kind}_packed"), seen[0].tokens.clone());
        }
        let ids: Vec<u32> = input(self.golden, &format!("in.{}input_ids", self.name))?
            .to_dtype(DType::U32)?
            .flatten_all()?
            .to_vec1()?;
        let mut prompt = vlm.prompt(&ids, &seen)?;
        if let Some(types) = self.integers("token_type_ids")? {
            // The reference calls what was read 0 and what is written 1.
            prompt.sight = vlm.sight(&types.iter().map(|kind| *kind == 0).collect::<Vec<_>>())?;
        }
        let positions = match prompt.positions.rank() {
            1 => prompt.positions.unsqueeze(0)?,
            _ => prompt.positions.clone(),
        };
        stages.insert(format!("{prefix}position_ids"), positions.to_dtype(DType::I64)?);
        if let Some(reference) = self.golden.get(&format!("{prefix}generated")) {
            let made = vlm.answer(&prompt, reference.elem_count(), &[])?;
            let made = Tensor::new(made.as_slice(), &Device::Cpu)?.unsqueeze(0)?.to_dtype(DType::I64)?;
            stages.insert(format!("{prefix}generated"), made);
        }
        let (decoder, hidden) = match vlm.text() {
            Text::Decoder(decoder) => {
                let mut note = noting(stages, prefix.clone());
                (&**decoder, vlm.read(&prompt, &mut Cache::new(), &mut note)?)
            }
            Text::EncoderDecoder(both) => {
                let encoded = both.encode(
                    &prompt.embeds,
                    &Mask::None,
                    &mut noting(stages, format!("{prefix}encoder.")),
                )?;
                let ids = input(self.golden, "in.decoder_input_ids")?.to_dtype(DType::U32)?;
                let positions = Tensor::arange(0, ids.dim(1)? as u32, &Device::Cpu)?;
                let (embeds, mut cache) = (both.decoder().embed(&ids)?, both.cache(&encoded, Mask::None)?);
                stages.insert(format!("{prefix}encoder_last_hidden_state"), encoded);
                let mut note = noting(stages, format!("{prefix}decoder."));
                let decoder = both.decoder();
                (decoder, decoder.forward_tapped(&embeds, &positions, &Mask::Causal, &mut cache, &mut note)?)
            }
        };
        let normalised = decoder.normalise(&hidden)?;
        stages.insert(format!("{prefix}logits"), decoder.logits(&normalised)?);
        stages.insert(format!("{prefix}final_norm"), normalised);
        Ok(())
    }

    /// What the reference also writes down and the model does not need: blocks after the last that is used, features in the
    /// order of the windows, patch embeddings as a convolution gives them.
    fn more_of_the_tower(&self, visual: &Visual, stages: &mut Stages) -> Result<()> {
        let prefix = format!("out.{}", self.name);
        let patches = format!("{prefix}vision.patch_embeddings");
        match (self.vlm.tower(), visual) {
            (Tower::Fixed(tower), Visual::Parts { pixels, .. } | Visual::Frames(pixels)) => {
                if self.vlm.config().features.blocks.is_some() {
                    tower.forward_tapped(pixels, &mut noting(stages, format!("{prefix}vision.")))?;
                }
                if self.vlm.projector().config().shuffle > 1 && self.vlm.config().features.drop_class {
                    let hidden = stages.get(&format!("{prefix}vision_hidden")).cloned();
                    if let Some(hidden) = hidden {
                        // InternVL's shuffle is counted to the tower.
                        stages
                            .insert(format!("{prefix}vision_hidden"), self.vlm.projector().merged(&hidden)?);
                    }
                }
                as_convolution(stages, &patches, tower, pixels)
            }
            (Tower::Native(tower), Visual::Patches { grid, .. }) => {
                let last = stages.get(&format!("{prefix}vision.last_hidden_state")).cloned();
                let features = stages.get(&format!("{prefix}image_features")).cloned();
                let (Some(last), Some(features)) = (last, features) else { return Ok(()) };
                let order = tower.windows(&[*grid]).0.into_iter().map(|x| x as u32).collect::<Vec<_>>();
                let order = Tensor::new(order, &Device::Cpu)?;
                stages.insert(format!("{prefix}vision_hidden"), last);
                stages.insert(format!("{prefix}image_features_ordered"), features.clone());
                stages.insert(format!("{prefix}image_features"), features.index_select(&order, 0)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
