//! Multiply-adds of the networks that people have, counted from their sizes: what speeds are held against the machine with.
//! Norms, activations and rotations are not counted.

use crate::expert::ExpertConfig;
use crate::unet::UnetConfig;
use vela_llm::DecoderConfig;
use vela_vision::VisionConfig;

/// Multiply-adds of one chunk, stage by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Pictures to features.
    pub vision: f64,
    /// Features, words and state to what the actions look at.
    pub prefix: f64,
    /// From there to actions.
    pub denoise: f64,
}

impl Cost {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.vision + self.prefix + self.denoise
    }
}

fn product(sizes: &[usize]) -> f64 {
    sizes.iter().map(|n| *n as f64).product()
}

/// One picture through the first `blocks` blocks of a tower.
pub fn tower(config: &VisionConfig, blocks: usize) -> f64 {
    let (w, patch) = (config.width, config.patch_size);
    let n = config.prefix() + config.patches();
    let block = product(&[4, n, w, w]) + product(&[2, n, n, w]) + product(&[2, n, w, config.inner_width]);
    product(&[config.patches(), config.channels, patch * patch, w]) + blocks as f64 * block
}

/// One token through the maps of a layer: attention's, then the feed-forward network's.
fn maps(config: &DecoderConfig) -> f64 {
    let (w, q, kv) = (config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim);
    product(&[w, q + 2 * kv]) + product(&[q, w]) + product(&[3, w, config.inner_width])
}

/// `n` tokens through a decoder that sees `seen` tokens on the mean; of the last layer keys and values only if it is only
/// `filled`.
pub fn decoder(config: &DecoderConfig, n: usize, seen: f64, filled: bool) -> f64 {
    let layer = n as f64 * (maps(config) + 2.0 * seen * product(&[config.heads, config.head_dim]));
    let keys = product(&[2, n, config.width, config.kv_heads * config.head_dim]);
    let whole = config.layers as f64;
    if filled { (whole - 1.0) * layer + keys } else { whole * layer }
}

/// `steps` velocities of `t` tokens over a prefix of `s`.
pub fn expert(config: &ExpertConfig, (t, s): (usize, usize), steps: usize) -> f64 {
    let layers = &config.layers;
    let (w, kv) = (layers.width, layers.kv_heads * layers.head_dim);
    let q = layers.heads * layers.head_dim;
    let (mut step, mut once) = (product(&[t, config.action_dims, 2, w]) + product(&[t, 3, w, w]), 0.0);
    for layer in 0..layers.layers {
        let joint = config.is_joint(layer);
        let keys = if joint { 0.0 } else { product(&[2, t, w, kv]) };
        step += t as f64 * maps(layers) - keys + product(&[2, t, if joint { s + t } else { s }, q]);
        once += if joint { 0.0 } else { product(&[2, s, kv, kv]) };
    }
    once + steps as f64 * step
}

/// One picture `(height, width)` through a ResNet-18 without its classifier.
pub fn resnet18((height, width): (usize, usize)) -> f64 {
    let half = |(h, w): (usize, usize)| (h.div_ceil(2), w.div_ceil(2));
    let mut size = half((height, width));
    let mut total = product(&[size.0, size.1, 3 * 49, 64]);
    size = half(size);
    for (stage, channels) in [64usize, 128, 256, 512].into_iter().enumerate() {
        let before = if stage == 0 { channels } else { channels / 2 };
        size = if stage == 0 { size } else { half(size) };
        let pixels = size.0 * size.1;
        total += product(&[pixels, 9, channels, before + 3 * channels]);
        total += if stage == 0 { 0.0 } else { product(&[pixels, before, channels]) };
    }
    total
}

/// Sizes of an ACT transformer.
#[derive(Clone, Copy, Debug)]
pub struct ActSizes {
    /// Width of a token.
    pub width: usize,
    /// Width inside the feed-forward networks.
    pub inner: usize,
    /// Layers of encoder and decoder.
    pub layers: [usize; 2],
    /// Tokens of the encoder, and actions.
    pub tokens: [usize; 2],
}

/// The encoder's, and the decoder's.
pub fn act(sizes: &ActSizes) -> [f64; 2] {
    let ActSizes { width: w, inner, layers, tokens: [n, t] } = *sizes;
    let own = |n: usize| product(&[4, n, w, w]) + product(&[2, n, n, w]);
    let fed = |n: usize| product(&[2, n, w, inner]);
    let cross = product(&[2, t + n, w, w]) + product(&[2, t, n, w]);
    [layers[0] as f64 * (own(n) + fed(n)), layers[1] as f64 * (own(t) + cross + fed(t))]
}

/// `steps` times a U-Net over `ticks` ticks.
pub fn unet(config: &UnetConfig, ticks: usize, steps: usize) -> f64 {
    let given = config.time_dims + config.conditioning;
    let block = |input: usize, output: usize, ticks: usize| {
        let film = product(&[given, output, if config.film_scale { 2 } else { 1 }]);
        let past = if input == output { 0.0 } else { product(&[ticks, input, output]) };
        product(&[ticks, config.kernel, output, input + output]) + film + past
    };
    let (widths, last) = (&config.widths, config.widths.len() - 1);
    let mut total = 0.0;
    for (i, &width) in widths.iter().enumerate() {
        let (ticks, before) = (ticks >> i, if i == 0 { config.action_dims } else { widths[i - 1] });
        total += block(before, width, ticks) + block(width, width, ticks);
        if i < last {
            total += product(&[ticks / 2, 3, width, width]);
        }
        if i > 0 {
            // The way up leaves this level at the width of the one above.
            total += block(2 * width, before, ticks) + block(before, before, ticks);
            total += product(&[ticks, 4, before, before]);
        }
    }
    total += 2.0 * block(widths[last], widths[last], ticks >> last);
    let first = widths[0];
    let out = product(&[ticks, config.kernel, first, first]) + product(&[ticks, first, config.action_dims]);
    steps as f64 * (total + out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_figures_are_met() {
        // ResNet-18 at 224 pixels: 1.81 billion multiply-adds with its classifier's half a million.
        assert!((resnet18((224, 224)) / 1e9 - 1.81).abs() < 0.01, "{}", resnet18((224, 224)));
        // ViT-B/16 at 224 pixels: 17.5 billion with the class token.
        let vit = VisionConfig {
            image_size: 224,
            patch_size: 16,
            width: 768,
            inner_width: 3072,
            layers: 12,
            heads: 12,
            class_token: true,
            ..VisionConfig::default()
        };
        assert!((tower(&vit, 12) / 1e9 - 17.5).abs() < 0.2, "{}", tower(&vit, 12));
    }
}
