//! One decoder for the families: embeddings in, hidden states out.

mod beside;
mod bias;
mod feed_forward;
mod layer;

use crate::cache::Memory;
use crate::config::{DecoderConfig, Positions};
use crate::{Attend, KeyValues, Lora, Tap};
use candle_core::{DType, Tensor};
use std::sync::Arc;
use vela_nn::rope::RopeAngles;
use vela_nn::{Embedding, Error, Heads, Init, Linear, Mask, Norm, Result, Rope, Weights};

use beside::Side;
pub use beside::{Beside, Site};
pub use bias::RelativeBias;
use layer::{Layer, linear};

/// A stack of transformer layers. Text, pictures, robot states and noisy actions all enter it as embeddings.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    rope: Option<Rope>,
    /// Of the layers with a window, if they have their own.
    local_rope: Option<Rope>,
    learned: Option<Embedding>,
    bias: Option<RelativeBias>,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Option<Linear>,
    /// What its layers' matrices are adapted by, unless a pass says otherwise.
    adapter: Option<Arc<Lora>>,
}

impl Decoder {
    /// Reads the embedding, the layers and the final norm under `body`, and, unless the embeddings are tied, the output
    /// projection under `root`, all under the names of the config's family. Without a `root` there is no output
    /// projection: a policy does not speak.
    pub fn new(root: Option<&Weights>, body: &Weights, config: &DecoderConfig) -> Result<Self> {
        config.check()?;
        let name = config.names.table().embedding;
        let embedding = Embedding::new(&body.pp(name), config.vocab, config.width)?;
        Self::with_embedding(embedding, root, body, config)
    }

    /// The same with an embedding that is read elsewhere: two stacks may share one.
    pub fn with_embedding(
        mut embedding: Embedding,
        root: Option<&Weights>,
        body: &Weights,
        config: &DecoderConfig,
    ) -> Result<Self> {
        config.check()?;
        let names = config.names.table();
        let layers = body.pp(names.layers);
        let layer = |i: usize| Layer::at(&layers.pp(i), config, i);
        let head = match root {
            None => None,
            Some(_) if config.tied => Some(embedding.projection()?),
            Some(root) => {
                let (weights, init) = (root.pp(names.head), Init::Normal(0.02));
                Some(Linear::with_init(&weights, config.width, config.vocab, config.head_bias, init)?)
            }
        };
        let rope = match config.positions {
            Positions::Rotary => Some(Rope::new(config.rope)?),
            _ => None,
        };
        let local = config.window.as_ref().and_then(|window| window.rope);
        let (mut learned, mut bias) = (None, None);
        match config.positions {
            Positions::Rotary => {}
            Positions::Learned { count, offset } => {
                learned = Some(Embedding::new(&body.pp(names.positions), count + offset, config.width)?);
            }
            Positions::Relative { buckets, max_distance, both_ways } => {
                let weights = layers.pp(0).pp(names.relative);
                bias = Some(RelativeBias::new(&weights, buckets, config.heads, max_distance, both_ways)?);
            }
        }
        Ok(Self {
            local_rope: rope.as_ref().and(local).map(Rope::new).transpose()?,
            rope,
            learned,
            bias,
            embedding,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            final_norm: Norm::new(&body.pp(names.final_norm), config.width, config.norm)?,
            head,
            adapter: None,
            config: config.clone(),
        })
    }

    /// The same decoder (its weights are shared) with an adapter beside its matrices.
    ///
    /// # Errors
    /// The adapter was made for another decoder, or this one has one already.
    pub fn with_adapter(&self, adapter: Arc<Lora>) -> Result<Self> {
        adapter.check(&self.config)?;
        match &self.adapter {
            None => Ok(Self { adapter: Some(adapter), ..self.clone() }),
            Some(_) => Err(Error::invalid("this decoder has an adapter already")),
        }
    }

    /// The adapter that it has.
    pub fn adapter(&self) -> Option<&Arc<Lora>> {
        self.adapter.as_ref()
    }

    fn usual(&self) -> Option<&dyn Beside> {
        self.adapter.as_deref().map(|adapter| adapter as &dyn Beside)
    }

    /// What it is.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `ids [b, t]` (u32) to `[b, t, width]`, scaled as the family does it; learned positions come in `forward`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let embeds = self.embedding.forward(ids)?;
        Ok(match self.config.embedding_scale {
            Some(scale) => (embeds * f64::from(scale))?,
            None => embeds,
        })
    }

    /// The rotary angles of the full layers at `positions [t]`, `[b, t]` or `[3, b, t]` (u32).
    ///
    /// # Errors
    /// The model has no rotary embedding.
    pub fn angles(&self, positions: &Tensor) -> Result<RopeAngles> {
        match &self.rope {
            Some(rope) => rope.at(positions),
            None => Err(Error::invalid("this decoder has no rotary embedding")),
        }
    }

    /// Keys and values of what an encoder read, `[b, s, memory_width]`, for every layer's cross-attention. Give it to
    /// the store that goes with a sequence. `mask` is over the `s` positions: `None`, or blocks that leave padding
    /// out.
    pub fn remember(&self, memory: &Tensor, mask: Mask) -> Result<Memory> {
        let layer = |layer: &Layer| match layer.cross() {
            Some(cross) => cross.remember(memory),
            None => Err(Error::invalid("this decoder reads no memory: it has no cross-attention")),
        };
        Ok(Memory::new(self.layers.iter().map(layer).collect::<Result<_>>()?, mask))
    }

    /// `embeds [b, t, width]` at `positions [t]`, `[b, t]` or `[3, b, t]` (u32) to the residual stream after the last
    /// layer, before the final norm. `mask` is over all cached and new positions. Differentiable in weights and
    /// input. A store of several sequences takes them side by side: `[1, tokens, width]` at `[tokens]`.
    pub fn forward(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
    ) -> Result<Tensor> {
        self.run(embeds, positions, mask, cache, &mut |_, _| {}, self.layers.len(), self.usual())
    }

    /// The same with `beside` at the layers' matrices, in place of the decoder's own adapter.
    pub fn forward_beside(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
        beside: &dyn Beside,
    ) -> Result<Tensor> {
        self.run(embeds, positions, mask, cache, &mut |_, _| {}, self.layers.len(), Some(beside))
    }

    /// As [`Decoder::forward`]; taps `embeddings` (the input of layer 0) and `hidden.{i}`.
    pub fn forward_tapped(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
        tap: &mut Tap,
    ) -> Result<Tensor> {
        self.run(embeds, positions, mask, cache, tap, self.layers.len(), self.usual())
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
        let whole = self.layers.len().saturating_sub(1);
        self.run(embeds, positions, mask, cache, &mut |_, _| {}, whole, self.usual())
    }

    /// The first `whole` layers; of the one after them only keys and values.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mask: &Mask,
        cache: &mut dyn KeyValues,
        tap: &mut Tap,
        whole: usize,
        beside: Option<&dyn Beside>,
    ) -> Result<Tensor> {
        // The buffers of one step serve the next.
        vela_nn::keep_freed();
        let full = self.rope.as_ref().map(|rope| rope.at(positions)).transpose()?;
        let local = self.local_rope.as_ref().map(|rope| rope.at(positions)).transpose()?;
        let turned = |x: Tensor, angles: Option<&RopeAngles>, heads: usize| match angles {
            Some(angles) => angles.apply_packed(&x, heads),
            None => Ok(x),
        };
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let mut x = self.place(embeds, positions)?;
        tap("embeddings", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            let (rule, side) = (self.rule(i, mask), Side::of(beside, i));
            let angles = match rule.window {
                Some(_) => local.as_ref().or(full.as_ref()),
                None => full.as_ref(),
            };
            if i == whole {
                let y = layer.attention_input(&x)?;
                let (keys, values) = (layer.keys(&y, side)?, layer.values(&y, side)?);
                cache.store(i, turned(keys, angles, kv_heads)?, values)?;
                break;
            }
            let [q, k, v] = layer.projections(&x, side)?;
            let (q, k) = (turned(q, angles, heads)?, turned(k, angles, kv_heads)?);
            let attended = cache.attend(i, &q, k, v, &rule)?;
            let recall = |q: &Tensor| cache.recall(i, q, &Attend { bias: None, ..rule });
            x = layer.add(&x, &attended, side, recall)?;
            tap(&format!("hidden.{i}"), &x);
        }
        Ok(x)
    }

    /// Embeddings with learned positions, if the model has them.
    fn place(&self, embeds: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let Positions::Learned { count, offset } = self.config.positions else { return Ok(embeds.clone()) };
        let Some(table) = &self.learned else { return Ok(embeds.clone()) };
        if positions.rank() > 2 {
            return Err(Error::shape("learned positions", "[t] or [b, t]", positions.dims()));
        }
        let ids: Vec<u32> = positions.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?;
        if let Some(beyond) = ids.iter().find(|id| **id as usize >= count) {
            return Err(Error::invalid(format!("position {beyond} is beyond the {count} learned positions")));
        }
        let ids: Vec<u32> = ids.iter().map(|id| id + offset as u32).collect();
        let ids = Tensor::from_vec(ids, positions.shape(), positions.device())?;
        Ok(embeds.broadcast_add(&table.forward(&ids)?)?)
    }

    /// How layer `i` looks at keys.
    fn rule<'a>(&'a self, i: usize, mask: &'a Mask) -> Attend<'a> {
        Attend {
            heads: Heads { query: self.config.heads, key: self.config.kv_heads },
            scale: self.config.scale(),
            soft_cap: self.config.attention_cap,
            window: self.config.window_of(i),
            bias: self.bias.as_ref(),
            mask,
        }
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
        let Some(head) = &self.head else {
            return Err(Error::invalid("this decoder has no output projection (lm_head)"));
        };
        let mut logits = head.forward(normalised)?;
        if let Some(scale) = self.config.logit_scale {
            logits = (logits * f64::from(scale))?;
        }
        if let Some(cap) = self.config.logit_cap.map(f64::from) {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        Ok(logits)
    }
}
