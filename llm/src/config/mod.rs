//! A decoder as data. A family is a small table: fields of `config.json` to this ([`DecoderConfig::from_hf`]), names of
//! tensors to ours ([`Naming`]).

mod families;
mod fields;
mod modules;
mod names;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vela_nn::paged::{PagedKind, PagedShape};
use vela_nn::{Activation, Error, Heads, NormConfig, Result, RopeConfig};

pub use families::known;
pub(crate) use fields::Fields;
pub use modules::Module;
pub use names::{Names, Naming};

/// A stack of transformer layers as data: a decoder-only model, or one half of an encoder-decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Token ids.
    pub vocab: usize,
    /// Width of a hidden state.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub inner_width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every normalisation.
    pub norm: NormConfig,
    /// Of the feed-forward network.
    pub activation: Activation,
    /// How positions turn queries and keys, where [`Positions::Rotary`] says that they do.
    pub rope: RopeConfig,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the output projection of attention.
    pub output_bias: bool,
    /// Biases of the feed-forward network.
    pub mlp_bias: bool,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
    /// Bias of the output projection.
    #[serde(default, skip_serializing_if = "is_default")]
    pub head_bias: bool,
    /// What the tensors are called.
    #[serde(default, skip_serializing_if = "is_default")]
    pub names: Naming,
    /// How the model knows where a token stands.
    #[serde(default, skip_serializing_if = "is_default")]
    pub positions: Positions,
    /// How norms, mixer and feed-forward network are joined to a layer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub block: Block,
    /// What lets positions exchange.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mixer: Mixer,
    /// What works on each position.
    #[serde(default, skip_serializing_if = "is_default")]
    pub feed_forward: FeedForward,
    /// Layers that see only what is near.
    #[serde(default, skip_serializing_if = "is_default")]
    pub window: Option<Window>,
    /// Whether each head of the queries and keys is normalised, before the rotary embedding.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qk_norm: bool,
    /// Factor on `q · k`, if it is not `1 / sqrt(head_dim)`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention_scale: Option<f32>,
    /// Bound of the scores of attention, `cap · tanh(score / cap)`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention_cap: Option<f32>,
    /// Bound of the logits, likewise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logit_cap: Option<f32>,
    /// Factor on what the output projection gives.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logit_scale: Option<f32>,
    /// Factor on embedded tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding_scale: Option<f32>,
    /// Width of a memory that every layer reads by cross-attention (an encoder's output).
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory_width: Option<usize>,
}

/// How a model knows where a token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Queries and keys are turned (`rope`).
    #[default]
    Rotary,
    /// A learned vector per position is added to the embeddings.
    Learned {
        /// Positions.
        count: usize,
        /// Rows of the table before position 0 (OPT: 2).
        offset: usize,
    },
    /// A learned number per head and distance is added to the scores, the same in all layers (T5; Raffel et al., 2020).
    Relative {
        /// Distances told apart.
        buckets: usize,
        /// Distances from here on are one.
        max_distance: usize,
        /// Whether later positions have buckets of their own: an encoder's do.
        both_ways: bool,
    },
}

/// How the parts of a layer are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// `x += mix(norm(x)); x += feed(norm(x))`.
    #[default]
    Sequential,
    /// A norm after each part as well (Gemma 2): `x += norm(mix(norm(x))); x += norm(feed(norm(x)))`.
    Sandwich,
    /// Both parts read the same norm (Phi): `y = norm(x); x += mix(y) + feed(y)`.
    Parallel,
}

/// What lets positions exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// Softmax attention.
    #[default]
    Attention,
}

/// What works on each position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// `down(act(gate(x)) * up(x))`.
    #[default]
    Gated,
    /// `down(act(up(x)))`.
    Plain,
    /// A few of many gated networks, chosen token by token.
    Experts(Experts),
}

/// A mixture of experts (Shazeer et al., 2017; Jiang et al., 2024).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts in a layer.
    pub count: usize,
    /// How many work on a token.
    pub chosen: usize,
    /// Width inside an expert.
    pub inner_width: usize,
    /// Whether the weights of the chosen are scaled to a sum of one.
    pub renormalise: bool,
    /// Width inside a further expert that works on every token, behind a gate of its own.
    pub shared: Option<usize>,
    /// Layers with one gated network instead.
    pub dense_layers: Vec<usize>,
}

/// Attention to what is near.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Positions seen, the query's own included.
    pub size: usize,
    /// Layers that see everything nevertheless.
    pub full_layers: Vec<usize>,
    /// How positions turn queries and keys in the layers with a window, if otherwise than in the full ones.
    pub rope: Option<RopeConfig>,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for DecoderConfig {
    /// A Llama without sizes: fill them in with `..Default::default()`.
    fn default() -> Self {
        Self {
            vocab: 0,
            width: 0,
            inner_width: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            norm: NormConfig::RmsNorm { eps: 1e-6, one_plus: false },
            activation: Activation::Silu,
            rope: RopeConfig::new(0, 10_000.0),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            tied: false,
            head_bias: false,
            names: Naming::default(),
            positions: Positions::default(),
            block: Block::default(),
            mixer: Mixer::default(),
            feed_forward: FeedForward::default(),
            window: None,
            qk_norm: false,
            attention_scale: None,
            attention_cap: None,
            logit_cap: None,
            logit_scale: None,
            embedding_scale: None,
            memory_width: None,
        }
    }
}

/// No single matrix of a text model has more numbers than this; a config that asks for more is broken or hostile.
const LARGEST: usize = 1 << 34;

impl DecoderConfig {
    /// Factor on `q · k`.
    pub fn scale(&self) -> f32 {
        self.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }

    /// What a cache of its keys and values holds.
    pub fn cache_shape(&self, kind: PagedKind) -> PagedShape {
        let heads = Heads { query: self.heads, key: self.kv_heads };
        PagedShape { layers: self.layers, heads, head_dim: self.head_dim, kind }
    }

    /// Positions that a layer sees, if not all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.as_ref().filter(|window| !window.full_layers.contains(&layer)).map(|window| window.size)
    }

    /// Reads a Hugging Face `config.json` (or its `text_config`) of a decoder-only model.
    ///
    /// # Errors
    /// An unknown `model_type`, a missing size, a field of the wrong kind, something that we cannot do.
    pub fn from_hf(config: &serde_json::Value) -> Result<Self> {
        let made = families::read(config)?;
        made.check()?;
        Ok(made)
    }

    /// Refuses the writing half of an encoder-decoder, where nothing reads for it.
    pub fn reads_alone(&self) -> Result<()> {
        match self.memory_width {
            None => Ok(()),
            Some(_) => Err(Error::invalid(
                "expected a model of one stack, got an encoder-decoder (T5): `vela chat` runs those",
            )),
        }
    }

    /// Refuses sizes that cannot work.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason: String| Err(Error::invalid(format!("decoder config: {reason}")));
        let sizes = [
            ("vocab", self.vocab),
            ("width", self.width),
            ("inner_width", self.inner_width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=1 << 24).contains(size)) {
            return wrong(format!("{name} is {size}, expected 1 to {}", 1 << 24));
        }
        if self.layers > 1 << 12 {
            return wrong(format!("{} layers, expected at most {}", self.layers, 1 << 12));
        }
        let matrices =
            [("vocab", self.vocab), ("inner_width", self.inner_width), ("heads", self.heads * self.head_dim)];
        if let Some((name, rows)) =
            matrices.into_iter().find(|(_, rows)| rows.saturating_mul(self.width) > LARGEST)
        {
            return wrong(format!(
                "{name} ({rows}) by width ({}) is more than {LARGEST} numbers",
                self.width
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} heads are no multiple of {} kv heads", self.heads, self.kv_heads));
        }
        let ropes = [Some(self.rope), self.window.as_ref().and_then(|window| window.rope)];
        let widest = ropes.into_iter().flatten().map(|rope| rope.rotary_dim).max().unwrap_or(0);
        if self.positions == Positions::Rotary && widest > self.head_dim {
            return wrong(format!("rotary width {widest} is over head width {}", self.head_dim));
        }
        match self.positions {
            Positions::Learned { count, offset } if count == 0 || count.saturating_add(offset) > 1 << 24 => {
                return wrong(format!("{count} learned positions after {offset}"));
            }
            Positions::Relative { buckets, max_distance, both_ways } => {
                // Half of them (of each way) are single distances, the rest grow.
                let exact = buckets / if both_ways { 4 } else { 2 };
                if exact == 0 || buckets > 1 << 16 || max_distance <= exact {
                    return wrong(format!("{buckets} buckets of distances up to {max_distance}"));
                }
            }
            _ => {}
        }
        if self.block == Block::Parallel && self.memory_width.is_some() {
            return wrong("a parallel block has no cross-attention".into());
        }
        if let Some(window) = &self.window
            && window.size == 0
        {
            return wrong("a window of no positions".into());
        }
        if let FeedForward::Experts(experts) = &self.feed_forward {
            let Experts { count, chosen, inner_width, shared, .. } = *experts;
            let fits = (1..=1 << 12).contains(&count) && (1..=count).contains(&chosen);
            let widths = [inner_width, shared.unwrap_or(1)];
            if !fits || widths.iter().any(|width| !(1..=1 << 24).contains(width)) {
                return wrong(format!(
                    "{chosen} of {count} experts chosen, inner width {inner_width}: expected 1 to {} experts, no more of them \
                     chosen, and widths of 1 to {}",
                    1 << 12,
                    1 << 24
                ));
            }
        }
        Ok(())
    }
}
