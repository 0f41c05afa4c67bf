//! One layer of an action expert. Its norms may be tuned by a condition (AdaRMS, pi0.5,
//! <https://arxiv.org/abs/2504.16054>; after DiT, <https://arxiv.org/abs/2212.09748>): a factor, a summand, and a gate on
//! what the part that follows adds.

use candle_core::Tensor;
use vela_llm::DecoderConfig;
use vela_nn::{Init, Linear, Mlp, MlpConfig, Norm, Result, Weights};

/// A norm, tuned or not.
#[derive(Clone, Debug)]
pub struct Tuned {
    norm: Norm,
    tuner: Option<Linear>,
}

impl Tuned {
    /// Reads `weight`, or, if it is tuned by conditions of its own width, `dense`.
    pub fn new(weights: &Weights, config: &DecoderConfig, tuned: bool) -> Result<Self> {
        let width = config.width;
        if !tuned {
            return Ok(Self { norm: Norm::new(weights, width, config.norm)?, tuner: None });
        }
        // Zeros at first: the norm as it is, and a gate that is shut.
        let tuner = Linear::with_init(&weights.pp("dense"), width, 3 * width, true, Init::Zeros)?;
        Ok(Self { norm: Norm::plain(config.norm), tuner: Some(tuner) })
    }

    /// `x [n, t, width]` normalised, under `condition [n, width]` if it is tuned, and the gate `[n, 1, width]`.
    pub fn forward(&self, x: &Tensor, condition: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let normal = self.norm.forward(x)?;
        let (Some(tuner), Some(condition)) = (&self.tuner, condition) else { return Ok((normal, None)) };
        let width = x.dim(2)?;
        let all = tuner.forward(condition)?.unsqueeze(1)?;
        let part = |i: usize| all.narrow(2, i * width, width);
        let y = normal.broadcast_mul(&(part(0)? + 1.0)?)?.broadcast_add(&part(1)?)?;
        Ok((y, Some(part(2)?)))
    }
}

/// `x` and what a part found, through its gate.
fn gated(x: &Tensor, found: Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
    Ok(match gate {
        Some(gate) => (x + found.broadcast_mul(gate)?)?,
        None => (x + found)?,
    })
}

/// One layer.
#[derive(Clone, Debug)]
pub struct ExpertLayer {
    norm1: Tuned,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: Tuned,
    mlp: Mlp,
}

impl ExpertLayer {
    /// Reads `input_layernorm`, `self_attn.{q,k,v,o}_proj`, `post_attention_layernorm` and `mlp.*`. Keys and values are
    /// projected from `key_width` numbers: the width itself, or, where they come from the prefix's cache,
    /// `kv_heads * head_dim`.
    pub fn new(weights: &Weights, config: &DecoderConfig, key_width: usize, tuned: bool) -> Result<Self> {
        let (width, attention) = (config.width, weights.pp("self_attn"));
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mlp = MlpConfig {
            input: width,
            hidden: config.inner_width,
            output: width,
            activation: config.activation,
            gated: true,
            bias: config.mlp_bias,
        };
        Ok(Self {
            norm1: Tuned::new(&weights.pp("input_layernorm"), config, tuned)?,
            q: Linear::new(&attention.pp("q_proj"), width, queries, config.qkv_bias)?,
            k: Linear::new(&attention.pp("k_proj"), key_width, keys, config.qkv_bias)?,
            v: Linear::new(&attention.pp("v_proj"), key_width, keys, config.qkv_bias)?,
            o: Linear::new(&attention.pp("o_proj"), queries, width, config.output_bias)?,
            norm2: Tuned::new(&weights.pp("post_attention_layernorm"), config, tuned)?,
            mlp: Mlp::new(&weights.pp("mlp"), mlp)?,
        })
    }

    /// The normalised input of attention, `[n, t, width]`, and the gate on what it finds.
    pub fn attention_input(
        &self,
        x: &Tensor,
        condition: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        self.norm1.forward(x, condition)
    }

    /// Queries, before the rotary embedding.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.q.forward(x)
    }

    /// Keys, before the rotary embedding.
    pub fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.k.forward(x)
    }

    /// Values.
    pub fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.v.forward(x)
    }

    /// The residual stream `x [n, t, width]` after what attention found (`[n, t, heads * head_dim]`) and the feed-forward
    /// network have been added.
    pub fn add(
        &self,
        x: &Tensor,
        attended: &Tensor,
        gate: Option<&Tensor>,
        condition: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = gated(x, self.o.forward(attended)?, gate)?;
        let (y, gate) = self.norm2.forward(&x, condition)?;
        gated(&x, self.mlp.forward(&y)?, gate.as_ref())
    }
}
