//! What configs mean, and what is refused.

use super::*;
use serde_json::{Value, json};
use vela_nn::{RopeScaling, RopeSections};

fn base() -> Value {
    json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4,
        "num_attention_heads": 2, "vocab_size": 9, "max_position_embeddings": 100})
}

fn with(extra: Value) -> Result<DecoderConfig> {
    let mut config = base();
    if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
        config.extend(extra.clone());
    }
    DecoderConfig::from_hf(&config)
}

fn refusal(extra: Value) -> String {
    with(extra).map_or_else(|e| e.to_string(), |config| format!("accepted: {config:?}"))
}

#[test]
fn old_and_new_rope_spellings_mean_the_same() -> Result<()> {
    let old = with(json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}))?;
    let new = with(json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}}))?;
    assert_eq!(old, new);
    assert_eq!(with(json!({"rope_scaling": null}))?.rope, RopeConfig::new(4, 10_000.0));
    let scaling = |extra: Value| with(json!({"rope_scaling": extra})).map(|config| config.rope.scaling);
    let dynamic = scaling(json!({"type": "dynamic", "factor": 2.0}))?;
    assert_eq!(dynamic, RopeScaling::Dynamic { factor: 2.0, original_positions: 100 });
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25,
        "mscale": 0.707, "mscale_all_dim": 0.707});
    let RopeScaling::Yarn { attention_factor, original_positions, beta_fast, .. } = scaling(yarn)? else {
        return Err(Error::invalid("not YaRN"));
    };
    assert_eq!((attention_factor, original_positions, beta_fast), (Some(1.0), 25, 32.0));
    let sections =
        with(json!({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "head_dim": 8}))?;
    assert_eq!(sections.rope.sections, Some(RopeSections { counts: [2, 1, 1], interleaved: false }));
    Ok(())
}

#[test]
fn gemma_3_has_two_ropes_in_either_spelling() -> Result<()> {
    let gemma = json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 4, "sliding_window": 5,
        "sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let old = with(gemma)?;
    let new = with(json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 4, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}))?;
    assert_eq!(old, new);
    let window = old.window.clone().unwrap_or(Window { size: 0, full_layers: vec![], rope: None });
    assert_eq!((window.size, window.full_layers), (5, vec![1, 3]));
    assert_eq!(window.rope, Some(RopeConfig::new(4, 500.0)));
    assert_eq!((old.window_of(0), old.window_of(1)), (Some(5), None));
    Ok(())
}

#[test]
fn qwen_windows_count_only_when_switched_on() -> Result<()> {
    let qwen = |on: bool| {
        with(
            json!({"model_type": "qwen2", "sliding_window": 3, "use_sliding_window": on, "max_window_layers": 3}),
        )
    };
    assert_eq!(qwen(false)?.window, None);
    assert_eq!(qwen(true)?.window.map(|window| window.full_layers), Some(vec![0, 1, 2]));
    Ok(())
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for (extra, expected) in [
        (json!({"model_type": "teapot"}), "text model_type 'teapot' is not known; known: llama, mistral"),
        (
            json!({"model_type": "qwen3_vl_text"}),
            "'qwen3_vl_text' is not supported: its pictures enter again",
        ),
        (json!({"rope_scaling": {"type": "spiral"}}), "rope type 'spiral' is not known; known: default"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}),
            "truncate: expected true or false",
        ),
        (json!({"rope_scaling": {"type": "linear"}}), "config.json: factor is missing"),
        (json!({"hidden_act": "swoosh"}), "activation 'swoosh' is not known; known: gelu"),
        (json!({"hidden_act": 3}), "hidden_act: expected a name, got 3"),
        (json!({"hidden_size": "wide"}), "hidden_size: expected a count, got \"wide\""),
        (json!({"vocab_size": null}), "vocab_size is missing"),
        (json!({"num_key_value_heads": 0}), "kv_heads is 0"),
        (json!({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 4}), "no multiple of 2"),
        (json!({"num_hidden_layers": 1u64 << 60}), "layers, expected at most"),
        (json!({"vocab_size": 1u64 << 60}), "vocab is 1152921504606846976"),
        (json!({"vocab_size": 1 << 24, "hidden_size": 1 << 24}), "numbers"),
        (json!({"model_type": "opt"}), "ffn_dim is missing"),
        (json!({"model_type": "opt", "ffn_dim": 4, "word_embed_proj_dim": 4}), "word_embed_proj_dim"),
        (json!({"model_type": "phi", "qk_layernorm": true}), "qk_layernorm: only false is supported"),
        (
            json!({"model_type": "gemma2", "query_pre_attn_scalar": 4, "layer_types": ["odd"]}),
            "1 layer_types",
        ),
        (
            json!({"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 3,
                "moe_intermediate_size": 4}),
            "3 of 2 experts",
        ),
    ] {
        let got = refusal(extra);
        assert!(got.contains(expected), "expected '{expected}', got '{got}'");
    }
}

#[test]
fn a_config_written_before_there_were_families_still_loads() -> std::result::Result<(), serde_json::Error> {
    let text = r#"{"vocab": 43, "width": 192, "inner_width": 512, "layers": 4, "heads": 6, "kv_heads": 3,
        "head_dim": 32, "norm": {"rms_norm": {"eps": 0.00001, "one_plus": false}}, "activation": "silu",
        "rope": {"rotary_dim": 32, "theta": 10000.0, "style": "half_split", "scaling": "none"},
        "qkv_bias": false, "output_bias": false, "mlp_bias": false, "tied": true}"#;
    let config: DecoderConfig = serde_json::from_str(text)?;
    assert_eq!((config.names, config.block, config.positions), Default::default());
    // What it does not use is not written either.
    let (again, old): (Value, Value) = (serde_json::to_value(&config)?, serde_json::from_str(text)?);
    let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys(&again), keys(&old));
    Ok(())
}
