//! From the `config.json` of each family to a decoder.

use super::{Block, DecoderConfig, Experts, FeedForward, Fields, Naming, Positions, Window};
use serde_json::Value;
use vela_nn::{Activation, Error, NormConfig, Result};

type Family = (&'static str, fn(&Fields) -> Result<DecoderConfig>);

/// By `model_type`.
const FAMILIES: &[Family] = &[
    ("llama", llama),
    ("mistral", mistral),
    ("mixtral", mixtral),
    ("qwen2", qwen2),
    ("qwen2_moe", qwen2_moe),
    ("qwen2_vl_text", qwen2),
    ("qwen2_5_vl_text", qwen2),
    ("qwen3", qwen3),
    ("qwen3_moe", qwen3_moe),
    ("gemma", gemma),
    ("gemma2", gemma2),
    ("gemma3_text", gemma3),
    ("phi", phi),
    ("phi3", phi3),
    ("gpt2", gpt2),
    ("opt", opt),
];

/// The values of `model_type` that [`DecoderConfig::from_hf`] knows.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Reads a `config.json`, unchecked.
pub(super) fn read(config: &Value) -> Result<DecoderConfig> {
    let kind = Fields(config).text("model_type")?.unwrap_or("absent");
    match FAMILIES.iter().find(|(name, _)| *name == kind) {
        Some((_, read)) => read(&Fields(config)),
        None if kind.starts_with("qwen3_vl") => Err(Error::invalid(format!(
            "text model_type '{kind}' is not supported: its pictures enter again behind the first layers (DeepStack), \
             which the decoder has no door for"
        ))),
        None => {
            let known = known().collect::<Vec<_>>().join(", ");
            Err(Error::invalid(format!("text model_type '{kind}' is not known; known: {known}")))
        }
    }
}

/// What Llama and most others after it write, with their defaults.
fn common(f: &Fields) -> Result<DecoderConfig> {
    let heads = f.count("num_attention_heads")?;
    let width = f.count("hidden_size")?;
    let head_dim = f.optional_count("head_dim")?.unwrap_or(width / heads.max(1));
    Ok(DecoderConfig {
        vocab: f.count("vocab_size")?,
        width,
        inner_width: f.count("intermediate_size")?,
        layers: f.count("num_hidden_layers")?,
        heads,
        kv_heads: f.optional_count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        norm: NormConfig::RmsNorm {
            eps: f.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            one_plus: false,
        },
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        rope: f.rope(head_dim, "full_attention", 10_000.0)?,
        tied: f.flag("tie_word_embeddings", false)?,
        ..DecoderConfig::default()
    })
}

/// A window in all layers, if there is one.
fn window_everywhere(f: &Fields) -> Result<Option<Window>> {
    let size = f.optional_count("sliding_window")?;
    Ok(size.map(|size| Window { size, full_layers: Vec::new(), rope: None }))
}

/// A window in the layers of `layer_types`, or where `full` does not hold.
fn window_in_layers(f: &Fields, layers: usize, full: impl Fn(usize) -> bool) -> Result<Option<Window>> {
    let full_layers = f.full_layers(layers, full)?;
    if full_layers.len() == layers {
        return Ok(None);
    }
    Ok(Some(Window { size: f.count("sliding_window")?, full_layers, rope: None }))
}

fn llama(f: &Fields) -> Result<DecoderConfig> {
    let bias = f.flag("attention_bias", false)?;
    let mlp_bias = f.flag("mlp_bias", false)?;
    Ok(DecoderConfig { qkv_bias: bias, output_bias: bias, mlp_bias, ..common(f)? })
}

fn mistral(f: &Fields) -> Result<DecoderConfig> {
    Ok(DecoderConfig { window: window_everywhere(f)?, ..common(f)? })
}

fn mixtral(f: &Fields) -> Result<DecoderConfig> {
    let experts = Experts {
        count: f.count("num_local_experts")?,
        chosen: f.count("num_experts_per_tok")?,
        inner_width: f.count("intermediate_size")?,
        renormalise: true,
        shared: None,
        dense_layers: Vec::new(),
    };
    Ok(DecoderConfig {
        names: Naming::Mixtral,
        feed_forward: FeedForward::Experts(experts),
        window: window_everywhere(f)?,
        ..common(f)?
    })
}

/// Qwen's window: only if switched on, and from `max_window_layers` on.
fn qwen_window(f: &Fields, layers: usize) -> Result<Option<Window>> {
    if !f.flag("use_sliding_window", false)? {
        return Ok(None);
    }
    let first = f.optional_count("max_window_layers")?.unwrap_or(layers);
    window_in_layers(f, layers, |layer| layer < first)
}

fn qwen2(f: &Fields) -> Result<DecoderConfig> {
    let base = common(f)?;
    Ok(DecoderConfig { qkv_bias: true, window: qwen_window(f, base.layers)?, ..base })
}

fn qwen3(f: &Fields) -> Result<DecoderConfig> {
    let bias = f.flag("attention_bias", false)?;
    Ok(DecoderConfig { qkv_bias: bias, output_bias: bias, qk_norm: true, ..qwen2(f)? })
}

/// Qwen's experts, in every `decoder_sparse_step`th layer.
fn qwen_experts(f: &Fields, layers: usize, shared: bool) -> Result<FeedForward> {
    let step = f.optional_count("decoder_sparse_step")?.unwrap_or(1).max(1);
    let only = f.list("mlp_only_layers", |n| n.as_u64().map(|n| n as usize))?.unwrap_or_default();
    let dense = |layer: &usize| only.contains(layer) || !(layer + 1).is_multiple_of(step);
    let count = match f.optional_count("num_experts")? {
        Some(count) => count,
        None => f.count("num_local_experts")?,
    };
    Ok(FeedForward::Experts(Experts {
        count,
        chosen: f.count("num_experts_per_tok")?,
        inner_width: f.count("moe_intermediate_size")?,
        renormalise: f.flag("norm_topk_prob", false)?,
        shared: if shared { Some(f.count("shared_expert_intermediate_size")?) } else { None },
        dense_layers: (0..layers.min(1 << 12)).filter(dense).collect(),
    }))
}

fn qwen2_moe(f: &Fields) -> Result<DecoderConfig> {
    let base = qwen2(f)?;
    let qkv_bias = f.flag("qkv_bias", true)?;
    Ok(DecoderConfig { qkv_bias, feed_forward: qwen_experts(f, base.layers, true)?, ..base })
}

fn qwen3_moe(f: &Fields) -> Result<DecoderConfig> {
    let base = qwen3(f)?;
    Ok(DecoderConfig { feed_forward: qwen_experts(f, base.layers, false)?, ..base })
}

fn gemma(f: &Fields) -> Result<DecoderConfig> {
    f.only("use_bidirectional_attention", false)?;
    let base = common(f)?;
    let bias = f.flag("attention_bias", false)?;
    // The first checkpoints wrote 'gelu' and meant the tanh form; later ones say so in `hidden_activation`.
    let activation = match f.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let NormConfig::RmsNorm { eps, .. } = base.norm else { return Ok(base) };
    Ok(DecoderConfig {
        norm: NormConfig::RmsNorm { eps, one_plus: true },
        activation,
        qkv_bias: bias,
        output_bias: bias,
        tied: f.flag("tie_word_embeddings", true)?,
        embedding_scale: Some((base.width as f32).sqrt()),
        ..base
    })
}

fn gemma2(f: &Fields) -> Result<DecoderConfig> {
    let base = gemma(f)?;
    let optional = |field: &str| f.optional_number(field).map(|x| x.map(|x| x as f32));
    Ok(DecoderConfig {
        names: Naming::Gemma2,
        block: Block::Sandwich,
        // Every other layer, from the second on, sees everything.
        window: window_in_layers(f, base.layers, |layer| layer % 2 == 1)?,
        attention_scale: Some(1.0 / (f.number("query_pre_attn_scalar")? as f32).sqrt()),
        attention_cap: optional("attn_logit_softcapping")?,
        logit_cap: optional("final_logit_softcapping")?,
        ..base
    })
}

fn gemma3(f: &Fields) -> Result<DecoderConfig> {
    let base = gemma2(f)?;
    let pattern = match f.optional_count("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => f.optional_count("_sliding_window_pattern")?.unwrap_or(6),
    };
    let mut window = window_in_layers(f, base.layers, |layer| (layer + 1).is_multiple_of(pattern.max(1)))?;
    // Old spelling: a base of its own, never scaled; new spelling: parameters for each kind of layer.
    let nested = f.get("rope_parameters").and_then(|p| p.get("sliding_attention")).is_some();
    let local = match nested {
        true => f.rope(base.head_dim, "sliding_attention", 10_000.0)?,
        false => vela_nn::RopeConfig::new(
            base.head_dim,
            f.optional_number("rope_local_base_freq")?.unwrap_or(10_000.0) as f32,
        ),
    };
    if let Some(window) = &mut window {
        window.rope = Some(local);
    }
    let rope = f.rope(base.head_dim, "full_attention", 1_000_000.0)?;
    Ok(DecoderConfig { qk_norm: true, window, rope, ..base })
}

fn phi(f: &Fields) -> Result<DecoderConfig> {
    f.only("qk_layernorm", false)?;
    let base = common(f)?;
    let mut rope = base.rope;
    if f.get("partial_rotary_factor").is_none() && f.get("rope_parameters").is_none() {
        rope.rotary_dim = base.head_dim / 2;
    }
    Ok(DecoderConfig {
        names: Naming::Phi,
        block: Block::Parallel,
        feed_forward: FeedForward::Plain,
        norm: NormConfig::LayerNorm {
            eps: f.optional_number("layer_norm_eps")?.unwrap_or(1e-5) as f32,
            bias: true,
        },
        activation: f.activation(&["hidden_act"], Activation::GeluTanh)?,
        rope,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        head_bias: true,
        ..base
    })
}

fn phi3(f: &Fields) -> Result<DecoderConfig> {
    Ok(DecoderConfig { names: Naming::Phi3, window: window_everywhere(f)?, ..common(f)? })
}

fn gpt2(f: &Fields) -> Result<DecoderConfig> {
    f.only("scale_attn_weights", true)?;
    f.only("scale_attn_by_inverse_layer_idx", false)?;
    f.only("add_cross_attention", false)?;
    let (width, heads) = (f.count("n_embd")?, f.count("n_head")?);
    Ok(DecoderConfig {
        vocab: f.count("vocab_size")?,
        width,
        inner_width: f.optional_count("n_inner")?.unwrap_or(width.saturating_mul(4)),
        layers: f.count("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: width / heads.max(1),
        norm: NormConfig::LayerNorm {
            eps: f.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
            bias: true,
        },
        activation: f.activation(&["activation_function"], Activation::GeluTanh)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        tied: f.flag("tie_word_embeddings", true)?,
        names: Naming::Gpt2,
        positions: Positions::Learned { count: f.count("n_positions")?, offset: 0 },
        feed_forward: FeedForward::Plain,
        ..DecoderConfig::default()
    })
}

fn opt(f: &Fields) -> Result<DecoderConfig> {
    f.only("do_layer_norm_before", true)?;
    f.only("layer_norm_elementwise_affine", true)?;
    f.only("_remove_final_layer_norm", false)?;
    let (width, heads) = (f.count("hidden_size")?, f.count("num_attention_heads")?);
    if let Some(other) = f.optional_count("word_embed_proj_dim")?
        && other != width
    {
        return Err(Error::invalid(format!(
            "config.json: word_embed_proj_dim: only the width of the model ({width}) is supported, got {other}"
        )));
    }
    let bias = f.flag("enable_bias", true)?;
    Ok(DecoderConfig {
        vocab: f.count("vocab_size")?,
        width,
        inner_width: f.count("ffn_dim")?,
        layers: f.count("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: width / heads.max(1),
        norm: NormConfig::LayerNorm { eps: 1e-5, bias: true },
        activation: f.activation(&["activation_function"], Activation::Relu)?,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        tied: f.flag("tie_word_embeddings", true)?,
        names: Naming::Opt,
        // The first two rows are left over from where the code came from.
        positions: Positions::Learned { count: f.count("max_position_embeddings")?, offset: 2 },
        feed_forward: FeedForward::Plain,
        ..DecoderConfig::default()
    })
}
