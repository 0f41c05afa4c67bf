//! The Q-Former of BLIP-2 (Li et al. 2023, <https://arxiv.org/abs/2301.12597>): learned queries that see each other and, in
//! every few layers, the picture. Norms come after what they norm, as in BERT.

use candle_core::Tensor;
use serde_json::Value;
use vela_nn::{
    Activation, Error, Heads, Init, Linear, Mask, Mlp, MlpConfig, Norm, NormConfig, Result, Weights,
    attention_packed,
};
use vela_vision::Tap;

/// A Q-Former as data.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormerConfig {
    /// Queries: the tokens that come out.
    pub queries: usize,
    /// Width of a query.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub inner_width: usize,
    /// Width of the picture's tokens.
    pub seen_width: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Every so many layers, from the first on, the picture is seen.
    pub cross_every: usize,
    /// Every normalisation.
    pub norm: NormConfig,
    /// Of the feed-forward network.
    pub activation: Activation,
}

impl QFormerConfig {
    /// Reads the `qformer_config` of a Hugging Face `config.json`.
    pub fn from_hf(config: &Value, queries: usize) -> Result<Self> {
        let count = |field: &str, default: usize| match config.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_u64().map(|x| x as usize).ok_or_else(|| {
                Error::invalid(format!("config.json: qformer_config.{field}: expected a count, got {value}"))
            }),
        };
        let eps = config.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12) as f32;
        let made = Self {
            queries,
            width: count("hidden_size", 768)?,
            inner_width: count("intermediate_size", 3072)?,
            seen_width: count("encoder_hidden_size", 1408)?,
            layers: count("num_hidden_layers", 12)?,
            heads: count("num_attention_heads", 12)?,
            cross_every: count("cross_attention_frequency", 2)?,
            norm: NormConfig::LayerNorm { eps, bias: true },
            activation: Activation::from_name(
                config.get("hidden_act").and_then(Value::as_str).unwrap_or("gelu"),
            )?,
        };
        let sizes = [queries, made.width, made.inner_width, made.seen_width, made.heads, made.cross_every];
        if sizes.contains(&0) || !made.width.is_multiple_of(made.heads) {
            return Err(Error::invalid(format!("qformer_config: sizes that cannot work: {made:?}")));
        }
        Ok(made)
    }
}

/// A Q-Former.
#[derive(Clone, Debug)]
pub struct QFormer {
    config: QFormerConfig,
    queries: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    itself: Attention,
    picture: Option<Attention>,
    mlp: Mlp,
    mlp_norm: Norm,
}

#[derive(Clone, Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm: Norm,
}

impl QFormer {
    /// Reads `query_tokens` and `qformer.*` under `weights`.
    pub fn new(weights: &Weights, config: &QFormerConfig) -> Result<Self> {
        let QFormerConfig { width, inner_width, norm, activation, .. } = *config;
        let attention = |weights: &Weights, seen: usize| -> Result<Attention> {
            let projections = weights.pp("attention");
            let output = weights.pp("output");
            Ok(Attention {
                q: Linear::new(&projections.pp("query"), width, width, true)?,
                k: Linear::new(&projections.pp("key"), seen, width, true)?,
                v: Linear::new(&projections.pp("value"), seen, width, true)?,
                out: Linear::new(&output.pp("dense"), width, width, true)?,
                norm: Norm::new(&output.pp("LayerNorm"), width, norm)?,
            })
        };
        let body = weights.pp("qformer");
        let layer = |i: usize| {
            let weights = body.pp("encoder").pp("layer").pp(i);
            let mlp = MlpConfig {
                input: width,
                hidden: inner_width,
                output: width,
                activation,
                gated: false,
                bias: true,
            };
            let crosses = i.is_multiple_of(config.cross_every);
            Ok(Layer {
                itself: attention(&weights.pp("attention"), width)?,
                picture: crosses
                    .then(|| attention(&weights.pp("crossattention"), config.seen_width))
                    .transpose()?,
                mlp: Mlp::with_names(&weights, mlp, ["", "intermediate_query.dense", "output_query.dense"])?,
                mlp_norm: Norm::new(&weights.pp("output_query").pp("LayerNorm"), width, norm)?,
            })
        };
        Ok(Self {
            queries: weights.get_init((1, config.queries, width), "query_tokens", Init::Normal(0.02))?,
            norm: Norm::new(&body.pp("layernorm"), width, norm)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// The picture's tokens `[b, n, seen_width]` to `[b, queries, width]`; taps `hidden.{i}`.
    pub fn forward(&self, seen: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let (b, _, _) = seen.dims3()?;
        let (_, n, width) = self.queries.dims3()?;
        let mut x = self.norm.forward(&self.queries)?.broadcast_as((b, n, width))?.contiguous()?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = self.attend(&layer.itself, &x, &x)?;
            if let Some(picture) = &layer.picture {
                x = self.attend(picture, &x, seen)?;
            }
            x = layer.mlp_norm.forward(&(&x + layer.mlp.forward(&x)?)?)?;
            tap(&format!("hidden.{i}"), &x);
        }
        Ok(x)
    }

    fn attend(&self, attention: &Attention, x: &Tensor, seen: &Tensor) -> Result<Tensor> {
        let heads = Heads { query: self.config.heads, key: self.config.heads };
        let scale = ((self.config.width / self.config.heads) as f32).sqrt().recip();
        let (k, v) = (attention.k.forward(seen)?, attention.v.forward(seen)?);
        let found = attention_packed(&attention.q.forward(x)?, &k, &v, heads, &Mask::None, scale)?;
        attention.norm.forward(&(x + attention.out.forward(&found)?)?)
    }
}
