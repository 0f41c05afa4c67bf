//! One decoder for the families: embeddings in, hidden states out.

use crate::{Attend, DecoderConfig, KeyValues, Tap};
use candle_core::Tensor;
use vela_nn::rope::RopeAngles;
use vela_nn::{Embedding, Error, Heads, Init, Linear, Mask, Mlp, MlpConfig, Norm, Result, Rope, Weights};

/// A decoder-only transformer. Text, pictures, robot states and noisy actions all enter it as embeddings.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    rope: Rope,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Option<Linear>,
}

/// One layer; its parts are open, because an action expert runs beside it.
#[derive(Clone, Debug)]
pub struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: Norm,
    mlp: Mlp,
}

impl Layer {
    /// Reads `input_layernorm`, `self_attn.{q,k,v,o}_proj`, `post_attention_layernorm` and `mlp.*` for hidden
    /// states of `width`; keys and values are projected from `key_width` numbers (the width itself, or, where
    /// they come from another model's cache, `kv_heads * head_dim`).
    pub fn new(weights: &Weights, config: &DecoderConfig, key_width: usize) -> Result<Self> {
        let (width, attention) = (config.width, weights.pp("self_attn"));
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let mlp = MlpConfig {
            input: width,
            hidden: config.inner_width,
            output: width,
            activation: config.activation,
            gated: true,
            bias: config.mlp_bias,
        };
        Ok(Self {
            norm1: Norm::new(&weights.pp("input_layernorm"), width, config.norm)?,
            q: Linear::new(&attention.pp("q_proj"), width, queries, config.qkv_bias)?,
            k: Linear::new(&attention.pp("k_proj"), key_width, keys, config.qkv_bias)?,
            v: Linear::new(&attention.pp("v_proj"), key_width, keys, config.qkv_bias)?,
            o: Linear::new(&attention.pp("o_proj"), queries, width, config.output_bias)?,
            norm2: Norm::new(&weights.pp("post_attention_layernorm"), width, config.norm)?,
            mlp: Mlp::new(&weights.pp("mlp"), mlp)?,
        })
    }

    /// The normalised input of attention, `[b, t, width]`.
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.norm1.forward(x)
    }

    /// Queries `[b, t, heads * head_dim]`, before the rotary embedding.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.q.forward(x)
    }

    /// Keys `[b, t, kv_heads * head_dim]`, before the rotary embedding.
    pub fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.k.forward(x)
    }

    /// Values `[b, t, kv_heads * head_dim]`.
    pub fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.v.forward(x)
    }

    /// The residual stream `x [b, t, width]` after what attention found (`[b, t, heads * head_dim]`) and the
    /// feed-forward network have been added.
    pub fn add(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let x = (x + self.o.forward(attended)?)?;
        Ok((&x + self.mlp.forward(&self.norm2.forward(&x)?)?)?)
    }
}

impl Decoder {
    /// Reads `embed_tokens`, `layers.{i}` and `norm` under `body`, and, unless the embeddings are tied, `lm_head`
    /// under `root`. Without a `root` there is no output projection: a policy does not speak.
    pub fn new(root: Option<&Weights>, body: &Weights, config: &DecoderConfig) -> Result<Self> {
        config.check()?;
        let embedding = Embedding::new(&body.pp("embed_tokens"), config.vocab, config.width)?;
        let layer = |i: usize| Layer::new(&body.pp("layers").pp(i), config, config.width);
        let head = match root {
            None => None,
            Some(_) if config.tied => Some(Linear::from_tensors(embedding.table().clone(), None)?),
            Some(root) => {
                let (weights, init) = (root.pp("lm_head"), Init::Normal(0.02));
                Some(Linear::with_init(&weights, config.width, config.vocab, false, init)?)
            }
        };
        Ok(Self {
            rope: Rope::new(config.rope)?,
            embedding,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            final_norm: Norm::new(&body.pp("norm"), config.width, config.norm)?,
            head,
            config: config.clone(),
        })
    }

    /// What it is.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `ids [b, t]` (u32) to `[b, t, width]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embedding.forward(ids)
    }

    /// The rotary angles at `positions [t]` or `[b, t]` (u32).
    pub fn angles(&self, positions: &Tensor) -> Result<RopeAngles> {
        self.rope.at(positions)
    }

    /// `embeds [b, t, width]` at `positions [t]` or `[b, t]` to the residual stream after the last layer, before
    /// the final norm. `mask` is over all cached and new positions. Differentiable in weights and input. A store of several
    /// sequences takes them side by side: `[1, tokens, width]` at `[tokens]`.
    pub fn forward(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
    ) -> Result<Tensor> {
        self.forward_tapped(embeds, positions, mask, cache, &mut |_, _| {})
    }

    /// The same; taps `hidden.{i}`.
    pub fn forward_tapped(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
        tap: &mut Tap,
    ) -> Result<Tensor> {
        let angles = self.angles(positions)?;
        let mut x = embeds.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let (keys, values, y) = self.read(layer, &x, &angles)?;
            let q = angles.apply_packed(&layer.queries(&y)?, self.config.heads)?;
            let attended = cache.attend(i, &q, keys, values, &self.rule(mask))?;
            x = layer.add(&x, &attended)?;
            tap(&format!("hidden.{i}"), &x);
        }
        Ok(x)
    }

    /// Fills the cache only: the last layer gives its keys and values and nothing else is worked out of it. Returns
    /// the residual stream that the last layer read, `[b, t, width]`.
    pub fn fill(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
    ) -> Result<Tensor> {
        let angles = self.angles(positions)?;
        let mut x = embeds.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let (keys, values, y) = self.read(layer, &x, &angles)?;
            if i + 1 < self.layers.len() {
                let q = angles.apply_packed(&layer.queries(&y)?, self.config.heads)?;
                let attended = cache.attend(i, &q, keys, values, &self.rule(mask))?;
                x = layer.add(&x, &attended)?;
            } else {
                cache.store(i, keys, values)?;
            }
        }
        Ok(x)
    }

    /// A layer's new keys, turned, its new values, and the normalised input.
    fn read(&self, layer: &Layer, x: &Tensor, angles: &RopeAngles) -> Result<(Tensor, Tensor, Tensor)> {
        let y = layer.attention_input(x)?;
        let keys = angles.apply_packed(&layer.keys(&y)?, self.config.kv_heads)?;
        Ok((keys, layer.values(&y)?, y))
    }

    fn rule<'a>(&self, mask: &'a Mask) -> Attend<'a> {
        let heads = Heads { query: self.config.heads, key: self.config.kv_heads };
        Attend { heads, scale: self.config.scale(), soft_cap: None, window: None, mask }
    }

    /// The final norm, `[b, t, width]` to the same shape.
    pub fn normalise(&self, hidden: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(hidden)
    }

    /// Normalised hidden states `[b, t, width]` to logits `[b, t, vocab]`.
    ///
    /// # Errors
    /// The checkpoint has no output projection.
    pub fn logits(&self, normalised: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(normalised),
            None => Err(Error::invalid("this decoder has no output projection (lm_head)")),
        }
    }
}
