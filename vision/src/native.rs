//! Towers that read pictures and videos at their own size: Qwen2-VL (Wang et al. 2024, <https://arxiv.org/abs/2409.12191>)
//! and Qwen2.5-VL (Bai et al. 2025, <https://arxiv.org/abs/2502.13923>). Positions turn queries and keys along two axes; the
//! later tower sees windows in all but a few blocks.

use crate::config::{activation, count, number};
use crate::encoder::{Path, Sight};
use crate::{Encoder, EncoderConfig, Tap};
use candle_core::{Device, Tensor};
use serde_json::Value;
use vela_nn::rope::RopeAngles;
use vela_nn::{Error, Init, Linear, NormConfig, Result, RopeStyle, Weights};

/// Steps of time, rows and columns of patches.
pub type Grid = [usize; 3];

/// A tower as data.
#[derive(Clone, Debug, PartialEq)]
pub struct NativeConfig {
    /// Edge of a patch, pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub frames: usize,
    /// Colour planes.
    pub channels: usize,
    /// `merge * merge` patches become one token after the tower; they come next to each other.
    pub merge: usize,
    /// The blocks.
    pub encoder: EncoderConfig,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Edge of a window in merged patches, and the blocks that see each frame whole.
    pub windows: Option<(usize, Vec<usize>)>,
}

/// A tower.
#[derive(Clone, Debug)]
pub struct NativeVit {
    config: NativeConfig,
    patch: Linear,
    encoder: Encoder,
}

impl NativeConfig {
    /// Reads the `vision_config` of a Hugging Face `config.json` of Qwen2-VL or Qwen2.5-VL.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        let later = match kind {
            "qwen2_vl" | "qwen2_vl_vision" => false,
            "qwen2_5_vl" | "qwen2_5_vl_vision" => true,
            other => {
                let known = "qwen2_vl, qwen2_5_vl";
                return Err(Error::invalid(format!(
                    "vision model_type '{other}' is not known; known: {known}"
                )));
            }
        };
        let width =
            if later { count(config, "hidden_size", 1280)? } else { count(config, "embed_dim", 1280)? };
        let (patch_size, merge) = (count(config, "patch_size", 14)?, count(config, "spatial_merge_size", 2)?);
        let windows = if later {
            let full = config.get("fullatt_block_indexes").and_then(Value::as_array);
            let full = full.map_or_else(
                || vec![7, 15, 23, 31],
                |list| list.iter().filter_map(Value::as_u64).map(|x| x as usize).collect(),
            );
            Some((count(config, "window_size", 112)? / merge.max(1) / patch_size.max(1), full))
        } else {
            None
        };
        let made = Self {
            patch_size,
            frames: count(config, "temporal_patch_size", 2)?,
            channels: count(config, "in_channels", count(config, "in_chans", 3)?)?,
            merge,
            encoder: EncoderConfig {
                width,
                inner_width: if later {
                    count(config, "intermediate_size", 3420)?
                } else {
                    (number(config, "mlp_ratio", 4.0)? * width as f64) as usize
                },
                layers: count(config, "depth", 32)?,
                heads: count(config, "num_heads", 16)?,
                norm: if later {
                    NormConfig::RmsNorm { eps: 1e-6, one_plus: false }
                } else {
                    NormConfig::LayerNorm { eps: 1e-6, bias: true }
                },
                activation: activation(config, if later { "silu" } else { "quick_gelu" })?,
                gated: later,
                layer_scale: false,
            },
            theta: number(config, "rope_theta", 10_000.0)?,
            windows,
        };
        made.check()?;
        Ok(made)
    }

    fn check(&self) -> Result<()> {
        let EncoderConfig { width, heads, .. } = self.encoder;
        let window = self.windows.as_ref().map_or(1, |(size, _)| *size);
        let sizes = [self.patch_size, self.frames, self.channels, self.merge, width, heads, window];
        if sizes.contains(&0) || !width.is_multiple_of(heads * 4) {
            return Err(Error::invalid(format!(
                "vision config: expected positive sizes and heads whose width is a multiple of 4: {self:?}"
            )));
        }
        Ok(())
    }

    /// Numbers in one patch.
    pub fn patch_values(&self) -> usize {
        self.channels * self.frames * self.patch_size * self.patch_size
    }
}

impl NativeVit {
    /// Reads `patch_embedding.weight [width, channels, frames, patch, patch]` and `encoder.layers.*`; [`crate::names`] brings
    /// the checkpoint's names to these.
    pub fn new(weights: &Weights, config: &NativeConfig) -> Result<Self> {
        config.check()?;
        let (width, p) = (config.encoder.width, config.patch_size);
        let kernel = weights.pp("patch_embedding").get_init(
            vec![width, config.channels, config.frames, p, p],
            "weight",
            Init::XavierUniform,
        )?;
        Ok(Self {
            patch: Linear::from_tensors(kernel.reshape((width, config.patch_values()))?, None)?,
            encoder: Encoder::new(&weights.pp("encoder"), config.encoder)?,
            config: config.clone(),
        })
    }

    /// What it is.
    pub fn config(&self) -> &NativeConfig {
        &self.config
    }

    /// Patches `[n, values]` of pictures and videos of these grids, one after the other, each in blocks of `merge * merge`,
    /// to tokens `[n, width]` in the same order. Taps `patch_embeddings`, and in the order of the windows `embeddings`,
    /// `hidden.{i}`, `last_hidden_state`.
    pub fn forward(&self, patches: &Tensor, grids: &[Grid], tap: &mut Tap) -> Result<Tensor> {
        let (n, values) = patches.dims2()?;
        let (merge, width) = (self.config.merge, self.config.encoder.width);
        let whole = |grid: &Grid| grid[1].is_multiple_of(merge) && grid[2].is_multiple_of(merge);
        let count: usize = grids.iter().map(|grid| grid.iter().product::<usize>()).sum();
        if n == 0 || n != count || values != self.config.patch_values() || !grids.iter().all(whole) {
            let expected = format!(
                "[{count}, {}], grids {grids:?} with sides in multiples of {merge}",
                self.config.patch_values()
            );
            return Err(Error::shape("patches", expected, patches.dims()));
        }
        let x = self.patch.forward(patches)?;
        tap("patch_embeddings", &x);

        let unit = merge * merge;
        let (order, windows) = self.windows(grids);
        let rows = |groups: &[usize]| -> Result<Tensor> {
            let rows: Vec<u32> =
                groups.iter().flat_map(|g| (0..unit).map(move |k| (g * unit + k) as u32)).collect();
            Ok(Tensor::from_vec(rows, n, &Device::Cpu)?)
        };
        let places: Vec<(usize, usize)> = grids.iter().flat_map(|grid| places(*grid, merge)).collect();
        let angles = self.angles(order.iter().flat_map(|g| &places[g * unit..(g + 1) * unit]))?;
        let frames: Vec<usize> = grids.iter().flat_map(|[t, h, w]| vec![h * w; *t]).collect();
        let windows: Vec<usize> = windows.iter().map(|groups| groups * unit).collect();
        let sight = |block: usize| match &self.config.windows {
            Some((_, full)) if !full.contains(&block) => Sight::Runs(&windows),
            _ => Sight::Runs(&frames),
        };
        let x = x.index_select(&rows(&order)?, 0)?.reshape((1, n, width))?;
        tap("embeddings", &x.squeeze(0)?);
        let path = Path { sight: &sight, angles: Some(&angles), blocks: self.config.encoder.layers };
        let x = self.encoder.forward_along(&x, &path, &mut |name, x| {
            if let Ok(x) = x.squeeze(0) {
                tap(name, &x);
            }
        })?;
        let x = x.squeeze(0)?;
        tap("last_hidden_state", &x);
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, group)| back[*group] = at);
        Ok(x.index_select(&rows(&back)?, 0)?)
    }

    /// The order in which merged patches go through the blocks, and how many of them each window has.
    pub fn windows(&self, grids: &[Grid]) -> (Vec<usize>, Vec<usize>) {
        let (mut order, mut sizes, mut start) = (Vec::new(), Vec::new(), 0);
        for [t, h, w] in grids {
            let (rows, columns) = (h / self.config.merge, w / self.config.merge);
            let size = self.config.windows.as_ref().map_or(rows.max(columns).max(1), |(size, _)| *size);
            for frame in 0..*t {
                for top in (0..rows).step_by(size) {
                    for left in (0..columns).step_by(size) {
                        let before = order.len();
                        for row in top..(top + size).min(rows) {
                            let first = start + (frame * rows + row) * columns;
                            order.extend(first + left..first + (left + size).min(columns));
                        }
                        sizes.push(order.len() - before);
                    }
                }
            }
            start += t * rows * columns;
        }
        (order, sizes)
    }

    fn angles<'a>(&self, places: impl Iterator<Item = &'a (usize, usize)>) -> Result<RopeAngles> {
        let quarter = self.config.encoder.width / self.config.encoder.heads / 4;
        let frequency = |i: usize| self.config.theta.powf(-(i as f64) / quarter as f64);
        let turns: Vec<f64> = places
            .flat_map(|&(row, column)| [row, column])
            .flat_map(|place| (0..quarter).map(move |i| place as f64 * frequency(i)))
            .collect();
        let table = |of: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = turns.iter().map(|turn| of(*turn) as f32).collect();
            Ok(Tensor::from_vec(values, (turns.len() / (2 * quarter), 2 * quarter), &Device::Cpu)?)
        };
        RopeAngles::from_tables(&table(f64::cos)?, &table(f64::sin)?, RopeStyle::HalfSplit)
    }
}

/// Row and column of each patch, in blocks of `merge * merge`.
fn places([t, h, w]: Grid, merge: usize) -> Vec<(usize, usize)> {
    let columns = w / merge;
    let frame = (0..h * w).map(|at| {
        let (block, inner) = (at / (merge * merge), at % (merge * merge));
        (block / columns * merge + inner / merge, block % columns * merge + inner % merge)
    });
    let frame: Vec<(usize, usize)> = frame.collect();
    frame.repeat(t)
}
