//! OpenVLA (Kim et al. 2024, <https://arxiv.org/abs/2406.09246>): the patch tokens of a DINOv2 and a SigLIP tower side by
//! side before a Llama, which says one action as the last tokens of its vocabulary.

use crate::storage::Storage;
use crate::tokens::TailBins;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_llm::trace::config_json;
use vela_llm::{Decoder, DecoderConfig, generate};
use vela_nn::{Activation, Error, Linear, Result, Weights};
use vela_vision::{Filter, Picture, Planes, Pooling, Tap, VisionConfig, Vit, names};

/// The range of one number of an action in the data it was learned from.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionRanges {
    /// The 1 % quantile of each number.
    pub low: Vec<f64>,
    /// The 99 % quantile.
    pub high: Vec<f64>,
    /// Whether the number is scaled at all; a gripper's is not.
    pub scaled: Vec<bool>,
}

/// An OpenVLA folder, read.
#[derive(Clone, Debug)]
pub struct OpenVla {
    dino: Vit,
    siglip: Vit,
    projector: [Linear; 3],
    decoder: Decoder,
    bins: TailBins,
    ranges: BTreeMap<String, ActionRanges>,
    size: usize,
}

/// What timm calls the parts of its towers.
const TIMM: names::Table = &[
    ("blocks", "encoder.layers"),
    ("attn.qkv", "self_attn.qkv"),
    ("attn.proj", "self_attn.out_proj"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("ls1.scale_factor", "scale1"),
    ("ls2.scale_factor", "scale2"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("cls_token", "embeddings.class_embedding"),
    ("reg_token", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embedding.weight"),
    ("norm", "post_layernorm"),
];

/// Llama's token for a space of its own, which OpenVLA's prompt ends with.
const SPACE: u32 = 29_871;

/// Sizes of an OpenVLA.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// The DINOv2 tower.
    pub dino: VisionConfig,
    /// The SigLIP tower.
    pub siglip: VisionConfig,
    /// The llama.
    pub text: DecoderConfig,
    /// The action tokens.
    pub bins: TailBins,
}

impl Sizes {
    /// As a folder's `config.json` says: what it leaves out is as published, so `{}` are OpenVLA-7B's.
    ///
    /// # Errors
    /// A setting that is not supported; sizes that are missing or strange.
    pub fn from_config(config: &Value) -> Result<Self> {
        let missing = |what: &str| Error::invalid(format!("config.json: {what} is missing or strange"));
        if config.get("use_fused_vision_backbone").and_then(Value::as_bool) == Some(false) {
            return Err(Error::invalid("config.json: openvla with one vision tower is not supported"));
        }
        let size = config.pointer("/image_sizes/0").and_then(Value::as_u64).map_or(224, |x| x as usize);
        let text = DecoderConfig::from_hf(&text_config(config.get("text_config").unwrap_or(&Value::Null)))?;
        let count =
            |name: &str, default: u64| config.get(name).and_then(Value::as_u64).unwrap_or(default) as u32;
        let padding = count("pad_to_multiple_of", 64);
        let vocab = (text.vocab as u32).checked_sub(padding).ok_or_else(|| missing("vocab_size"))?;
        let bins = TailBins::new(vocab, count("n_action_bins", 256))?;
        let (dino, siglip) = towers(config.get("tiny_vision"), size)?;
        Ok(Self { dino, siglip, text, bins })
    }
}

impl OpenVla {
    /// Reads `config.json` and the weights of a folder.
    ///
    /// # Errors
    /// A file is missing or not understood; a setting that is not supported; a tensor is missing, unused or mis-shaped.
    pub fn load(dir: &Path, storage: Storage) -> Result<Self> {
        let config = config_json(dir)?;
        let sizes = Sizes::from_config(&config)?;
        let weights = storage.load(dir)?;
        let vision = weights.pp("vision_backbone");
        let dino = tower(&vision.pp("featurizer"), &sizes.dino, storage)?;
        let siglip = tower(&vision.pp("fused_featurizer"), &sizes.siglip, storage)?;
        let mut made = Self::assemble(&weights, &sizes, dino, siglip)?;
        made.ranges = ranges(config.get("norm_stats").unwrap_or(&Value::Null), "action", ["q01", "q99"])?;
        weights.finish()?;
        Ok(made)
    }

    /// Of weights that are made up, for measuring.
    pub fn made_up(weights: &Weights, sizes: &Sizes) -> Result<Self> {
        let vision = weights.pp("vision_backbone");
        let dino = Vit::new(&vision.pp("featurizer"), &sizes.dino)?;
        let siglip = Vit::new(&vision.pp("fused_featurizer"), &sizes.siglip)?;
        Self::assemble(weights, sizes, dino, siglip)
    }

    fn assemble(weights: &Weights, sizes: &Sizes, dino: Vit, siglip: Vit) -> Result<Self> {
        let (input, width) = (sizes.dino.width + sizes.siglip.width, sizes.text.width);
        let project = weights.pp("projector");
        let linear = |name: &str, from, to| Linear::new(&project.pp(name), from, to, true);
        let llama = weights.pp("language_model");
        Ok(Self {
            projector: [
                linear("fc1", input, 4 * input)?,
                linear("fc2", 4 * input, width)?,
                linear("fc3", width, width)?,
            ],
            decoder: Decoder::new(Some(&llama), &llama.pp("model"), &sizes.text)?,
            ranges: BTreeMap::new(),
            bins: sizes.bins,
            size: sizes.dino.image_size,
            dino,
            siglip,
        })
    }

    /// The llama.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The action tokens.
    pub fn bins(&self) -> TailBins {
        self.bins
    }

    /// The data sets that it knows the ranges of.
    pub fn datasets(&self) -> impl Iterator<Item = &str> {
        self.ranges.keys().map(String::as_str)
    }

    /// The ranges of a data set's actions.
    ///
    /// # Errors
    /// An unknown one; the error names those that are known.
    pub fn ranges(&self, dataset: &str) -> Result<&ActionRanges> {
        self.ranges.get(dataset).ok_or_else(|| {
            let known = self.datasets().collect::<Vec<_>>().join(", ");
            Error::invalid(format!("no action statistics of '{dataset}'; there are: {known}"))
        })
    }

    /// RGB bytes as both towers want them, `[1, 6, size, size]`: resized without regard to aspect, then ImageNet's
    /// statistics for DINOv2 and one half for SigLIP.
    pub fn pixels(&self, rgb: &[u8], width: usize, height: usize) -> Result<Tensor> {
        let picture =
            Picture::new(width, height, rgb.to_vec())?.resize(self.size, self.size, Filter::Bicubic);
        let mut both = Vec::with_capacity(6 * self.size * self.size);
        for (mean, std) in [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5; 3], [0.5; 3])] {
            let mut planes = Planes::from_rgb(&picture.rgb, self.size, self.size)?;
            planes.normalise(mean, std);
            both.extend(planes.data);
        }
        Ok(Tensor::from_vec(both, (1, 6, self.size, self.size), &Device::Cpu)?)
    }

    /// `pixels [b, 6, size, size]` to patch features `[b, patches, dino + siglip]`: of the last block but one, patches only.
    pub fn see(&self, pixels: &Tensor) -> Result<Tensor> {
        let one = |tower: &Vit, from: usize| -> Result<Tensor> {
            let config = tower.config();
            let pixels = pixels.narrow(1, from, 3)?.contiguous()?;
            let tokens = tower.after_blocks(&pixels, config.layers.saturating_sub(1), None)?;
            Ok(tokens.narrow(1, config.prefix(), config.patches())?)
        };
        Ok(Tensor::cat(&[one(&self.dino, 0)?, one(&self.siglip, 3)?], 2)?)
    }

    /// Every stage of both towers, as `dino.{stage}` and `siglip.{stage}`.
    pub fn towers_tapped(&self, pixels: &Tensor, tap: &mut Tap) -> Result<()> {
        for (name, tower, from) in [("dino", &self.dino, 0), ("siglip", &self.siglip, 3)] {
            let pixels = pixels.narrow(1, from, 3)?.contiguous()?;
            tower.forward_tapped(&pixels, &mut |stage, x| tap(&format!("{name}.{stage}"), x))?;
        }
        Ok(())
    }

    /// Patch features to the llama's width.
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.projector;
        let x = Activation::Gelu.forward(&first.forward(features)?)?;
        third.forward(&Activation::Gelu.forward(&second.forward(&x)?)?)
    }

    /// Words `ids [1, t]` with image tokens `[1, n, width]` after the first: `[1, t + n, width]`.
    pub fn embed(&self, ids: &Tensor, image: &Tensor) -> Result<Tensor> {
        let words = self.decoder.embed(ids)?;
        let count = words.dim(1)?;
        if count == 0 {
            return Err(Error::invalid("openvla: expected a prompt, got no tokens"));
        }
        let rest = words.narrow(1, 1, count - 1)?;
        Ok(Tensor::cat(&[&words.narrow(1, 0, 1)?, image, &rest], 1)?)
    }

    /// The numbers that action tokens stand for, in [-1, 1].
    pub fn values(&self, tokens: &[u32]) -> Vec<f32> {
        tokens.iter().map(|token| self.bins.value(*token)).collect()
    }

    /// One action in the units of a data set: displacement, rotation, gripper. `ids` are those of [`prompt`].
    ///
    /// # Errors
    /// An unknown data set.
    pub fn act(&self, pixels: &Tensor, ids: &[u32], dataset: &str) -> Result<Vec<f64>> {
        let ranges = self.ranges(dataset)?;
        let ids = Tensor::new(spaced(ids, self.bins.vocab), &Device::Cpu)?.unsqueeze(0)?;
        let embeds = self.embed(&ids, &self.project(&self.see(pixels)?)?)?;
        let tokens = generate::greedy(&self.decoder, &embeds, ranges.low.len(), &[])?;
        Ok(ranges.physical(&self.values(&tokens)))
    }
}

/// What OpenVLA is asked.
pub fn prompt(instruction: &str) -> String {
    format!("In: What action should the robot take to {}?\nOut:", instruction.to_lowercase())
}

/// A prompt's tokens, ending with the space that OpenVLA was trained to go on from (small test vocabularies have none).
pub(crate) fn spaced(ids: &[u32], vocab: u32) -> Vec<u32> {
    let mut ids = ids.to_vec();
    if ids.last() != Some(&SPACE) && vocab > SPACE {
        ids.push(SPACE);
    }
    ids
}

impl ActionRanges {
    /// Numbers in [-1, 1] in physical units; unscaled ones as they are.
    pub fn physical(&self, values: &[f32]) -> Vec<f64> {
        let one = |(d, x): (usize, &f32)| match self.scaled.get(d) {
            Some(true) => 0.5 * (f64::from(*x) + 1.0) * (self.high[d] - self.low[d]) + self.low[d],
            _ => f64::from(*x),
        };
        values.iter().enumerate().map(one).collect()
    }

    /// Physical numbers as the network reads them: in [-1, 1], what is outside held at the ends; unscaled ones as they are.
    pub fn normalised(&self, values: &[f64]) -> Vec<f32> {
        let one = |(d, x): (usize, &f64)| match self.scaled.get(d) {
            Some(true) => {
                (2.0 * (x - self.low[d]) / (self.high[d] - self.low[d] + 1e-8) - 1.0).clamp(-1.0, 1.0)
            }
            _ => *x,
        };
        values.iter().enumerate().map(|value| one(value) as f32).collect()
    }
}

/// One of timm's towers. Its class token has no position of its own: ours has one of zeros. Queries, keys and values are one
/// matrix there and three here.
fn tower(stored: &Weights, config: &VisionConfig, storage: Storage) -> Result<Vit> {
    let mut tensors = HashMap::new();
    let prefix = format!("{}.", stored.prefix());
    for name in stored.names() {
        let Some(name) = name.strip_prefix(&prefix) else { continue };
        let mut tensor = stored.get(stored.shape_of(name).unwrap_or_default(), name)?;
        if name == "pos_embed" && config.class_token {
            let (_, _, width) = tensor.dims3()?;
            let zeros = Tensor::zeros((1, 1, width), DType::F32, &Device::Cpu)?;
            tensor = Tensor::cat(&[&zeros, &tensor], 1)?;
        }
        let name = names::rename(name, TIMM);
        match name.split_once(".qkv.") {
            Some((before, after)) if tensor.dim(0)?.is_multiple_of(3) => {
                for (part, tensor) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(tensor.chunk(3, 0)?) {
                    tensors.insert(format!("{before}.{part}.{after}"), tensor.contiguous()?);
                }
            }
            _ => _ = tensors.insert(name, tensor),
        }
    }
    let weights = storage.of(Weights::from_tensors(tensors))?;
    let tower = Vit::new(&weights, config)?;
    // Pooling and the final norm come after what is read.
    weights.finish_allowing(|name| name.starts_with("attn_pool.") || name.starts_with("post_layernorm."))?;
    Ok(tower)
}

/// Both towers: of the published sizes, or of those of a test checkpoint.
fn towers(tiny: Option<&Value>, size: usize) -> Result<(VisionConfig, VisionConfig)> {
    // timm's SigLIP has the exact GELU, unlike Hugging Face's.
    let base = VisionConfig {
        image_size: size,
        activation: Activation::Gelu,
        patch_size: 14,
        final_norm: false,
        pooling: Pooling::None,
        ..VisionConfig::default()
    };
    let number = |name: &str, default: f64| -> f64 {
        tiny.and_then(|tiny| tiny.get(name)).and_then(Value::as_f64).unwrap_or(default)
    };
    let count = |name: &str, default: usize| number(name, default as f64) as usize;
    let dino = VisionConfig {
        width: count("d1", 1024),
        inner_width: 4 * count("d1", 1024),
        layers: count("depth1", 24),
        heads: count("heads1", 16),
        class_token: true,
        registers: 4,
        layer_scale: true,
        patch_size: count("patch_size", 14),
        ..base.clone()
    };
    let width = count("d2", 1152);
    let siglip = VisionConfig {
        width,
        inner_width: (width as f64 * number("r2", 3.7362)) as usize,
        layers: count("depth2", 27),
        heads: count("h2", 16),
        patch_size: count("patch_size", 14),
        ..base
    };
    Ok((dino, siglip))
}

/// A `text_config` that says little: what it leaves out is Llama-2-7B's.
fn text_config(stored: &Value) -> Value {
    let mut config = json!({"model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": false});
    if let (Some(config), Some(stored)) = (config.as_object_mut(), stored.as_object()) {
        config.extend(stored.clone());
    }
    config
}

/// The ranges of a part of each data set (`action`, `proprio`) by two of its statistics.
pub(crate) fn ranges(
    stats: &Value,
    part: &str,
    [lowest, highest]: [&str; 2],
) -> Result<BTreeMap<String, ActionRanges>> {
    let mut made = BTreeMap::new();
    for (name, set) in stats.as_object().into_iter().flatten() {
        let list = |field: &str| set.pointer(&format!("/{part}/{field}")).and_then(Value::as_array);
        let numbers = |field: &str| -> Option<Vec<f64>> { list(field)?.iter().map(Value::as_f64).collect() };
        let bad = |what: &str| Error::invalid(format!("norm_stats of '{name}': {what}"));
        let (Some(low), Some(high)) = (numbers(lowest), numbers(highest)) else {
            return Err(bad(&format!("expected numbers {part}/{lowest} and {part}/{highest}")));
        };
        let scaled = match list("mask") {
            Some(mask) => mask.iter().map(|m| m.as_bool()).collect::<Option<Vec<bool>>>(),
            None => Some(vec![true; low.len()]),
        };
        let scaled = scaled.ok_or_else(|| bad("a mask that is not of true and false"))?;
        if low.len() != high.len() || low.len() != scaled.len() || low.is_empty() {
            return Err(bad(&format!("{lowest}, {highest} and mask of different lengths")));
        }
        if let Some(d) =
            (0..low.len()).find(|d| scaled[*d] && (high[*d] <= low[*d] || !(high[*d] - low[*d]).is_finite()))
        {
            return Err(bad(&format!("dimension {d} has no width ({} to {})", low[d], high[d])));
        }
        made.insert(name.clone(), ActionRanges { low, high, scaled });
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_openvla_s_and_masked_numbers_stay_as_they_are() {
        assert_eq!(prompt("Pick Up"), "In: What action should the robot take to pick up?\nOut:");
        assert_eq!(spaced(&[1, 7], 32_000), [1, 7, 29_871]);
        assert_eq!((spaced(&[1, 29_871], 32_000), spaced(&[1, 7], 160)), (vec![1, 29_871], vec![1, 7]));
        let ranges = ActionRanges { low: vec![-2.0, 5.0], high: vec![4.0, 9.0], scaled: vec![true, false] };
        assert_eq!(ranges.physical(&[0.0, 0.25]), [1.0, 0.25]);
    }

    #[test]
    fn ranges_without_width_are_refused() {
        let stats = json!({"x": {"action": {"q01": [0.0, 1.0], "q99": [0.0, 1.0], "mask": [false, true]}}});
        assert!(
            ranges(&stats, "action", ["q01", "q99"])
                .is_err_and(|e| e.to_string().contains("dimension 1 has no width"))
        );
        let uneven = json!({"x": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}});
        assert!(ranges(&uneven, "action", ["q01", "q99"]).is_err());
    }
}
