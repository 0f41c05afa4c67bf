//! Preprocessing and encoders on the inputs of a reference run, stage by stage, to be compared with it.

use crate::preprocess::{Layout, Prepared, Preprocessor};
use crate::{Arithmetic, Picture, Reads, Tap, Towers, Vit};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::{Error, Result, Weights};

/// Stages by name.
pub type Stages = BTreeMap<String, Tensor>;

/// A tensor of a reference run.
pub fn input<'a>(golden: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    golden.get(name).ok_or_else(|| Error::invalid(format!("the reference run has no tensor '{name}'")))
}

/// A picture of a reference run, u8 `[height, width, 3]`.
pub fn picture(pixels: &Tensor) -> Result<Picture> {
    let (height, width, _) = pixels.dims3()?;
    Picture::new(width, height, pixels.flatten_all()?.to_vec1()?)
}

/// What the reference's processor gives for one picture, by its own names, with its own shapes.
pub fn prepared(preprocessor: &Preprocessor, picture: &Picture) -> Result<Stages> {
    let prepared = preprocessor.apply(picture)?;
    let integers = |values: &[usize]| -> Result<Tensor> {
        let values: Vec<i64> = values.iter().map(|x| *x as i64).collect();
        Ok(Tensor::from_slice(&values, values.len(), &Device::Cpu)?)
    };
    let mut stages = Stages::new();
    let mut note = |name: &str, x: Tensor| stages.insert(name.to_owned(), x);
    match (&prepared, &preprocessor.layout) {
        (Prepared::Tiles(tiles), Layout::Whole { .. }) => {
            note("pixel_values", tiles.tensor()?);
        }
        (Prepared::Tiles(tiles), Layout::GridTiles { .. }) => {
            note("num_patches", integers(&[tiles.pictures.len()])?);
            note("pixel_values", tiles.tensor()?);
        }
        (Prepared::Tiles(tiles), layout) => {
            let pixels = tiles.tensor()?.unsqueeze(0)?;
            let (_, n, _, height, width) = pixels.dims5()?;
            if let Layout::EdgeTiles { split, .. } = layout {
                note("pixel_attention_mask", Tensor::ones((1, n, height, width), DType::U8, &Device::Cpu)?);
                if *split {
                    note("rows", integers(&[tiles.rows])?);
                    note("cols", integers(&[tiles.columns])?);
                }
            } else {
                note("image_sizes", integers(&[tiles.size.1, tiles.size.0])?.unsqueeze(0)?);
            }
            note("pixel_values", pixels);
        }
        (Prepared::Patches(patches), Layout::MostPatches { most, .. }) => {
            let rows = patches.tensor()?;
            let real = rows.dim(0)?;
            let mask: Vec<u8> = (0..*most).map(|i| u8::from(i < real)).collect();
            note("pixel_values", rows.pad_with_zeros(0, 0, most.saturating_sub(real))?.unsqueeze(0)?);
            note("pixel_attention_mask", Tensor::from_vec(mask, (1, *most), &Device::Cpu)?);
            note("spatial_shapes", integers(&patches.grid[1..])?.unsqueeze(0)?);
        }
        (Prepared::Patches(patches), _) => {
            note("image_grid_thw", integers(&patches.grid)?.unsqueeze(0)?);
            note("pixel_values", patches.tensor()?);
        }
    }
    Ok(stages)
}

/// Whether a folder holds a processor alone.
pub fn is_preprocessor(dir: &Path) -> bool {
    !dir.join("config.json").exists() && dir.join("preprocessor_config.json").exists()
}

/// Every `out.<HxW>.*` of a reference run of a processor alone, from `in.<HxW>.image` of the run itself or of the
/// folder `preproc_images` beside `dir`.
pub fn preprocessing(dir: &Path, golden: &HashMap<String, Tensor>) -> Result<Stages> {
    let preprocessor = Preprocessor::load(dir)?;
    let beside = dir.join("../preproc_images/golden.safetensors");
    let pictures = if beside.is_file() {
        candle_core::safetensors::load(&beside, &Device::Cpu)?
    } else {
        HashMap::new()
    };
    let mut stages = Stages::new();
    for name in golden.keys().filter_map(|name| name.strip_prefix("out.")) {
        let (size, output) = name.split_once('.').unwrap_or((name, ""));
        let key = format!("in.{size}.image");
        let picture = picture(golden.get(&key).or(pictures.get(&key)).ok_or_else(|| {
            Error::invalid(format!("the reference run has no '{key}', and {} neither", beside.display()))
        })?)?;
        let mut preprocessor = preprocessor.clone();
        let plain = output.strip_suffix(".torchvision");
        if plain.is_some() {
            preprocessor.arithmetic = Arithmetic::Torch;
        }
        if let Some(stage) = prepared(&preprocessor, &picture)?.remove(plain.unwrap_or(output)) {
            stages.insert(format!("out.{name}"), stage);
        }
    }
    Ok(stages)
}

/// Every stage of an encoder folder: of CLIP, SigLIP and SigLIP 2 both towers on `in.pixel_values` and `in.input_ids`, of ViT
/// and DINOv2 the one on `in.pixel_values` and, if there is one, `in.interp.pixel_values`.
pub fn trace(dir: &Path, config: &Value, golden: &HashMap<String, Tensor>) -> Result<Stages> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
    if ["clip", "siglip", "siglip2"].contains(&kind) {
        return towers(dir, config, golden);
    }
    let tower = Vit::whole(&Weights::load_dir(dir)?, config)?;
    let mut stages = Stages::new();
    for run in ["", "interp."] {
        if let Some(pixels) = golden.get(&format!("in.{run}pixel_values")) {
            let mut note = noting(&mut stages, format!("out.{run}"));
            let tokens = tower.forward_tapped(pixels, &mut note)?;
            note("pooled", &tower.pool(&tokens)?);
            drop(note);
            as_convolution(&mut stages, &format!("out.{run}patch_embeddings"), &tower, pixels)?;
        }
    }
    Ok(stages)
}

/// A tap that writes stages down under a prefix.
pub fn noting(stages: &mut Stages, prefix: String) -> Box<Tap<'_>> {
    Box::new(move |name, x| {
        stages.insert(format!("{prefix}{name}"), x.clone());
    })
}

fn towers(dir: &Path, config: &Value, golden: &HashMap<String, Tensor>) -> Result<Stages> {
    let model = Towers::new(&Weights::load_dir(dir)?, config)?;
    let mut stages = Stages::new();
    let pixels = input(golden, "in.pixel_values")?;
    let mut note = noting(&mut stages, "out.vision.".into());
    let pictures = match model.vision().config().reads {
        Reads::Pictures => model.embed_pictures(pixels, &mut note)?,
        Reads::Patches => {
            let shapes = input(golden, "in.spatial_shapes")?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
            let grids = shapes.iter().map(|row| match row[..] {
                [rows, columns] => Ok((rows as usize, columns as usize)),
                _ => Err(Error::invalid(format!("in.spatial_shapes: expected pairs, got {row:?}"))),
            });
            model.embed_patches(pixels, &grids.collect::<Result<Vec<_>>>()?, &mut note)?
        }
    };
    drop(note);
    let ids = input(golden, "in.input_ids")?.to_dtype(DType::U32)?;
    let texts = model.embed_texts(&ids, &mut noting(&mut stages, "out.text.".into()))?;
    let logits = model.logits(&pictures, &texts)?;
    for (name, stage) in [
        ("out.logits_per_text", &logits.t()?.contiguous()?),
        ("out.logits_per_image", &logits),
        ("out.image_embeds", &pictures),
        ("out.text_embeds", &texts),
    ] {
        stages.insert(name.into(), stage.clone());
    }
    as_convolution(&mut stages, "out.vision.patch_embeddings", model.vision(), pixels)?;
    Ok(stages)
}

/// References give patch embeddings of pictures `[b, 3, h, w]` as a convolution does: `[b, width, rows, columns]`.
pub fn as_convolution(stages: &mut Stages, name: &str, tower: &Vit, pixels: &Tensor) -> Result<()> {
    let (Some(stage), [_, _, height, width]) = (stages.get_mut(name), pixels.dims()) else { return Ok(()) };
    let (b, _, channels) = stage.dims3()?;
    let p = tower.config().patch_size;
    *stage = stage.transpose(1, 2)?.contiguous()?.reshape((b, channels, height / p, width / p))?;
    Ok(())
}
