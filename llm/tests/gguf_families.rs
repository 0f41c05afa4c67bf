//! GGUF files of every family against the reference runs in `tests/golden`. Each file is written here from the family's
//! Hugging Face weights, in the way of llama.cpp's `convert_hf_to_gguf.py`, and must give what the reference gave.

use candle_core::{Device, Tensor};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use vela_llm::{gguf, trace};
use vela_nn::gguf::{Value, write};
use vela_nn::parity::judge;
use vela_nn::quant::{Blocks, Format};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What Hugging Face calls the parts of a layer, and llama.cpp.
const PARTS: [(&str, &str); 12] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Counts of a `config.json` and their keys.
const COUNTS: [(&str, &str); 9] = [
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("head_dim", "attention.value_length"),
    ("sliding_window", "attention.sliding_window"),
];

/// Numbers likewise.
const NUMBERS: [(&str, &str); 3] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// Without the last part (`weight`, `bias`).
fn renamed(path: &str, sandwich: bool) -> Outcome<String> {
    let Some((layer, part)) = path.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        let whole =
            [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
        let found = whole.iter().find(|(theirs, _)| *theirs == path).ok_or(path)?;
        return Ok(found.1.to_owned());
    };
    let part = match part {
        "post_attention_layernorm" if sandwich => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => PARTS.iter().find(|(theirs, _)| *theirs == part).ok_or(path)?.1,
    };
    Ok(format!("blk.{layer}.{part}"))
}

/// The converter's permutation of Llama's queries and keys: the halves of a head that turn together become neighbours.
fn permuted(tensor: &Tensor, heads: usize) -> Outcome<Tensor> {
    let rows = tensor.dim(0)?;
    let halves = tensor.reshape((heads, 2, rows / heads / 2, tensor.elem_count() / rows))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())?)
}

fn metadata(config: &Json, architecture: &str) -> BTreeMap<String, Value> {
    let mut metadata =
        BTreeMap::from([("general.architecture".to_owned(), Value::Text(architecture.into()))]);
    let mut put = |key: &str, value: Option<Value>| {
        metadata.extend(value.map(|value| (format!("{architecture}.{key}"), value)));
    };
    for (field, key) in COUNTS {
        put(key, config[field].as_u64().map(Value::Unsigned));
    }
    for (field, key) in NUMBERS {
        put(key, config[field].as_f64().map(Value::Float));
    }
    // Older configs have the base at the top.
    let rope = config.get("rope_parameters").unwrap_or(&config["rope_scaling"]);
    let everywhere = rope.get("full_attention").unwrap_or(rope);
    let base = everywhere["rope_theta"].as_f64().or(config["rope_theta"].as_f64());
    put("rope.freq_base", base.map(Value::Float));
    put("rope.freq_base_swa", rope["sliding_attention"]["rope_theta"].as_f64().map(Value::Float));
    if everywhere["rope_type"] == "linear" {
        put("rope.scaling.type", Some(Value::Text("linear".into())));
        put("rope.scaling.factor", everywhere["factor"].as_f64().map(Value::Float));
    }
    // What readers know of the real models, these small ones have otherwise: Gemma 3's every sixth layer, and the scale.
    if let ("gemma3", Some(kinds)) = (architecture, config["layer_types"].as_array()) {
        let windowed = kinds.iter().map(|kind| kind == "sliding_attention").collect();
        put("attention.sliding_window_pattern", Some(Value::BoolList(windowed)));
    }
    if config["query_pre_attn_scalar"] != config["head_dim"] {
        put("attention.scale", config["query_pre_attn_scalar"].as_f64().map(|n| Value::Float(n.powf(-0.5))));
    }
    metadata
}

/// A folder's model as a GGUF file.
fn convert(dir: &Path, architecture: &str, file: &Path) -> Outcome<()> {
    let config = trace::config_json(dir)?;
    let heads = |field: &str| config[field].as_u64().map(|n| n as usize).ok_or(field.to_owned());
    let (heads, kv_heads) = (heads("num_attention_heads")?, heads("num_key_value_heads")?);
    let (gemma, sandwich) = (architecture.starts_with("gemma"), matches!(architecture, "gemma2" | "gemma3"));
    let mut tensors = BTreeMap::new();
    for (name, mut tensor) in candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)? {
        let (path, kind) = name.rsplit_once('.').ok_or(name.as_str())?;
        if gemma && path.ends_with("norm") {
            tensor = (tensor + 1.0)?;
        }
        if architecture == "llama" && path.ends_with("q_proj") {
            tensor = permuted(&tensor, heads)?;
        }
        if architecture == "llama" && path.ends_with("k_proj") {
            tensor = permuted(&tensor, kv_heads)?;
        }
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let blocks = Blocks::new(Format::F32, tensor.dims(), bytes)?;
        tensors.insert(format!("{}.{kind}", renamed(path, sandwich)?), blocks);
    }
    Ok(write(file, &metadata(&config, architecture), &tensors)?)
}

/// All `out.*`: float stages within the bound, generated tokens equal.
fn agrees(name: &str, architecture: &str, stages: usize) -> Outcome<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let made = tempfile::tempdir()?;
    let file = made.path().join("model.gguf");
    convert(&dir, architecture, &file)?;
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let verdict = judge(&golden, &gguf::trace(&file, &golden)?)?;
    assert!(verdict.pass && verdict.present == stages, "{name}: {verdict:#?}");
    Ok(())
}

macro_rules! families {
    ($($name:ident: $architecture:literal $stages:literal)*) => {
        $(#[test]
        fn $name() -> Outcome<()> {
            agrees(stringify!($name), $architecture, $stages)
        })*
    };
}

families! {
    gemma: "gemma" 6
    gemma2: "gemma2" 8
    gemma3_text: "gemma3" 8
    llama: "llama" 6
    llama_linear: "llama" 6
    mistral: "llama" 6
    qwen2: "qwen2" 6
    qwen3: "qwen3" 6
}
