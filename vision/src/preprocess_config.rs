//! `preprocessor_config.json`, in its old and its new spelling, as a pipeline.

use crate::Filter;
use crate::planes::Scale;
use crate::preprocess::{Fit, Layout, Preprocessor};
use crate::resize::Arithmetic;
use crate::tiling::Size;
use serde_json::Value;
use std::path::Path;
use vela_nn::{Error, Result};

/// No side that a configuration asks for is longer, pixels.
const LONGEST: usize = 1 << 14;

const KNOWN: &str = "Bit, Blip, CLIP, DINOv2's Bit, GotOcr2, Idefics3, LlavaNext, LlavaOnevision, Qwen2VL, Siglip, \
                     Siglip2, SmolVLM, ViT";

impl Preprocessor {
    /// Reads a folder's `preprocessor_config.json`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("preprocessor_config.json");
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        Self::from_json(&text)
    }

    /// Reads the text of a `preprocessor_config.json`. The processor's name decides the layout; names that end in
    /// `Fast` are torchvision's and round as torch does.
    ///
    /// # Errors
    /// An unknown `image_processor_type`, fields that are missing or of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self> {
        let parsed: Value =
            serde_json::from_str(text).map_err(|e| Error::parse("preprocessor_config.json", e))?;
        let config = Fields(&parsed);
        let name = parsed.get("image_processor_type").or(parsed.get("feature_extractor_type"));
        let name =
            name.and_then(Value::as_str).ok_or_else(|| wrong("image_processor_type", "a name", None))?;
        let (family, arithmetic) = match name.strip_suffix("Fast") {
            Some(rest) => (rest, Arithmetic::Torch),
            None => (name.strip_suffix("Pil").unwrap_or(name), Arithmetic::Pillow),
        };
        let family = family.strip_suffix("ImageProcessor").or(family.strip_suffix("FeatureExtractor"));
        let layout = match family.unwrap_or(name) {
            // A number alone is a square here, and the shorter side below.
            "ViT" | "Siglip" | "Blip" | "DeiT" => config.whole(true)?,
            "CLIP" | "Bit" => config.whole(false)?,
            "Idefics3" | "SmolVLM" => Layout::EdgeTiles {
                canvas: config.edge("size", "longest_edge")?,
                tile: config.edge("max_image_size", "longest_edge")?,
                split: config.flag("do_image_splitting", true)?,
            },
            "GotOcr2" => Layout::GridTiles {
                tile: config.size("size")?,
                tiles: (config.count("min_patches", Some(1))?, config.count("max_patches", Some(12))?),
                split: config.flag("crop_to_patches", false)?,
            },
            "LlavaNext" => {
                let edge = config.edge("size", "shortest_edge").or_else(|_| config.edge("size", "height"))?;
                config.canvases(edge, config.edge("crop_size", "height")?)?
            }
            "LlavaOnevision" => {
                let edge = config.edge("size", "height")?;
                config.canvases(edge, edge)?
            }
            "Siglip2" => Layout::MostPatches {
                patch: config.count("patch_size", Some(16))?,
                most: config.count("max_num_patches", Some(256))?,
            },
            "Qwen2VL" | "Qwen2_5_VL" => {
                let either = |old: &str, new: &str, default: usize| match config.value(old) {
                    Some(_) => config.count(old, None),
                    None => config.inner("size", new, Some(default)),
                };
                Layout::BudgetPatches {
                    patch: config.count("patch_size", Some(14))?,
                    merge: config.count("merge_size", Some(2))?,
                    frames: config.count("temporal_patch_size", Some(2))?,
                    pixels: (
                        either("min_pixels", "shortest_edge", 56 * 56)?,
                        either("max_pixels", "longest_edge", 28 * 28 * 1280)?,
                    ),
                }
            }
            _ => {
                return Err(wrong("image_processor_type", &format!("one of {KNOWN}"), Some(name.into())));
            }
        };
        let mut filter =
            Filter::try_from(config.count("resample", Some(3))? as u64).map_err(Error::invalid)?;
        // torchvision has no Lanczos on tensors; the reference takes bicubic in its place.
        if (filter, arithmetic) == (Filter::Lanczos, Arithmetic::Torch) {
            filter = Filter::Bicubic;
        }
        let colours = |field: &str, default: f32| -> Result<[f32; 3]> {
            if config.flag("do_normalize", true)? { config.three(field) } else { Ok([default; 3]) }
        };
        let factor = config.number("rescale_factor", 1.0 / 255.0)?;
        let scale = Scale {
            factor: if config.flag("do_rescale", true)? { factor } else { 1.0 },
            mean: colours("image_mean", 0.0)?,
            std: colours("image_std", 1.0)?,
        };
        if scale.std.iter().any(|std| !std.is_normal()) {
            return Err(wrong("image_std", "numbers other than 0", config.value("image_std").cloned()));
        }
        let made = Self { layout, filter, arithmetic, scale };
        made.check()?;
        Ok(made)
    }

    /// Refuses sizes that cannot work.
    fn check(&self) -> Result<()> {
        let sides = match &self.layout {
            Layout::Whole { fit, crop } => {
                let mut sides = match fit {
                    Fit::Keep => vec![],
                    Fit::Stretch((width, height)) => vec![*width, *height],
                    Fit::ShortestEdge(edge) => vec![*edge],
                };
                sides.extend(crop.iter().flat_map(|(width, height)| [*width, *height]));
                sides
            }
            Layout::EdgeTiles { canvas, tile, .. } => vec![*canvas, *tile],
            Layout::GridTiles { tile, tiles, .. } => vec![tile.0, tile.1, tiles.0, tiles.1],
            Layout::CanvasTiles { base, tile, canvases } => {
                let whole = |side: usize| if side.is_multiple_of(*tile) { side } else { 0 };
                let mut sides: Vec<usize> = canvases.iter().flat_map(|c| [whole(c.0), whole(c.1)]).collect();
                sides.extend([base.0, base.1, *tile]);
                sides
            }
            Layout::MostPatches { patch, most } => vec![*patch, *most],
            Layout::BudgetPatches { patch, merge, frames, pixels } => {
                if pixels.0 > pixels.1 || pixels.1 > LONGEST * LONGEST {
                    return Err(Error::invalid(format!(
                        "preprocessor_config.json: expected 0 <= least pixels <= most, got {pixels:?}"
                    )));
                }
                vec![*patch, *merge, *frames]
            }
        };
        if sides.iter().any(|side| !(1..=LONGEST).contains(side)) {
            return Err(Error::invalid(format!(
                "preprocessor_config.json: expected sizes from 1 to {LONGEST}, canvases in whole tiles; got {:?}",
                self.layout
            )));
        }
        Ok(())
    }
}

fn wrong(field: &str, expected: &str, got: Option<Value>) -> Error {
    let got = got.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
    Error::invalid(format!("preprocessor_config.json: {field}: expected {expected}, got {got}"))
}

struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn value(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        self.value(field).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| wrong(field, "true or false", Some(value.clone())))
        })
    }

    fn number(&self, field: &str, default: f64) -> Result<f64> {
        self.value(field).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| wrong(field, "a number", Some(value.clone())))
        })
    }

    fn count(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match (self.value(field), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(wrong(field, "a count", None)),
            (Some(value), _) => as_count(value).ok_or_else(|| wrong(field, "a count", Some(value.clone()))),
        }
    }

    fn inner(&self, field: &str, part: &str, default: Option<usize>) -> Result<usize> {
        let value = self.value(field).and_then(|value| value.get(part)).filter(|value| !value.is_null());
        match (value, default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value
                .and_then(as_count)
                .ok_or_else(|| wrong(&format!("{field}.{part}"), "a count", self.value(field).cloned())),
        }
    }

    /// `{part: n}`, or `n` alone.
    fn edge(&self, field: &str, part: &str) -> Result<usize> {
        match self.value(field) {
            Some(value) if value.is_u64() => self.count(field, None),
            _ => self.inner(field, part, None),
        }
    }

    /// `{height, width}`, or the side of a square alone.
    fn size(&self, field: &str) -> Result<Size> {
        Ok((self.edge(field, "width")?, self.edge(field, "height")?))
    }

    fn three(&self, field: &str) -> Result<[f32; 3]> {
        let list = self.value(field).and_then(Value::as_array);
        let numbers: Option<Vec<f32>> =
            list.map(|list| list.iter().map_while(Value::as_f64).map(|x| x as f32).collect());
        numbers
            .and_then(|numbers| <[f32; 3]>::try_from(numbers).ok())
            .ok_or_else(|| wrong(field, "three numbers", self.value(field).cloned()))
    }

    fn whole(&self, square: bool) -> Result<Layout> {
        let shortest = self.value("size").is_some_and(|size| {
            size.get("shortest_edge").is_some_and(Value::is_u64) || (!square && size.is_u64())
        });
        let fit = match (self.flag("do_resize", true)?, shortest) {
            (false, _) => Fit::Keep,
            (true, true) => Fit::ShortestEdge(self.edge("size", "shortest_edge")?),
            (true, false) => Fit::Stretch(self.size("size")?),
        };
        let crop = self.flag("do_center_crop", false)?.then(|| self.size("crop_size")).transpose()?;
        Ok(Layout::Whole { fit, crop })
    }

    fn canvases(&self, edge: usize, tile: usize) -> Result<Layout> {
        if edge != tile {
            return Err(wrong("crop_size", &format!("the edge of size, {edge}"), Some(tile.into())));
        }
        let field = "image_grid_pinpoints";
        let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => Some((as_count(width)?, as_count(height)?)),
            _ => None,
        };
        let list = self.value(field).and_then(Value::as_array);
        let canvases = list.and_then(|list| list.iter().map(pair).collect::<Option<Vec<Size>>>());
        let canvases = canvases.filter(|canvases| !canvases.is_empty());
        let canvases =
            canvases.ok_or_else(|| wrong(field, "pairs of height and width", self.value(field).cloned()))?;
        Ok(Layout::CanvasTiles { base: (edge, edge), tile, canvases })
    }
}

fn as_count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|x| usize::try_from(x).ok())
}
