//! Hugging Face folders as GGUF files, in the way of llama.cpp's `convert_hf_to_gguf.py`.

use candle_core::{Device, Tensor};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vela_llm::trace;
use vela_nn::gguf::{Value, write};
use vela_nn::quant::{Blocks, Format};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What Hugging Face calls the parts of a layer, and llama.cpp: of Llama's family, of GPT-2 and of T5.
const PARTS: [(&str, &str); 30] = [
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
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.0.SelfAttention.q", "attn_q"),
    ("layer.0.SelfAttention.k", "attn_k"),
    ("layer.0.SelfAttention.v", "attn_v"),
    ("layer.0.SelfAttention.o", "attn_o"),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.1.EncDecAttention.q", "cross_attn_q"),
    ("layer.1.EncDecAttention.k", "cross_attn_k"),
    ("layer.1.EncDecAttention.v", "cross_attn_v"),
    ("layer.1.EncDecAttention.o", "cross_attn_o"),
    ("layer.2.layer_norm", "ffn_norm"),
];

/// What is outside the layers.
const WHOLE: [(&str, &str); 9] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("shared", "token_embd"),
    ("encoder.final_layer_norm", "enc.output_norm"),
    ("decoder.final_layer_norm", "dec.output_norm"),
];

/// Counts of a `config.json` and their keys.
const COUNTS: [(&str, &str); 24] = [
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("head_dim", "attention.value_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("n_layer", "block_count"),
    ("n_positions", "context_length"),
    ("n_embd", "embedding_length"),
    ("n_head", "attention.head_count"),
    ("num_layers", "block_count"),
    ("num_decoder_layers", "decoder_block_count"),
    ("d_model", "embedding_length"),
    ("d_ff", "feed_forward_length"),
    ("d_kv", "attention.key_length"),
    ("d_kv", "attention.value_length"),
    ("num_heads", "attention.head_count"),
    ("relative_attention_num_buckets", "attention.relative_buckets_count"),
    ("decoder_start_token_id", "decoder_start_token_id"),
];

/// Numbers likewise.
const NUMBERS: [(&str, &str); 4] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// Without the last part (`weight`, `bias`).
fn renamed(path: &str, sandwich: bool) -> Outcome<String> {
    let layers = [
        ("model.layers.", ""),
        ("transformer.h.", ""),
        ("encoder.block.", "enc."),
        ("decoder.block.", "dec."),
    ];
    let inside = layers.iter().find_map(|(start, stack)| {
        let (layer, part) = path.strip_prefix(start)?.split_once('.')?;
        Some((stack, layer, part))
    });
    let Some((stack, layer, part)) = inside else {
        let found = WHOLE.iter().find(|(theirs, _)| *theirs == path).ok_or(path)?;
        return Ok(found.1.to_owned());
    };
    // An expert by itself, as in files from before the stacks.
    if let Some((expert, which)) =
        part.strip_prefix("block_sparse_moe.experts.").and_then(|rest| rest.split_once('.'))
    {
        let names = [("w1", "ffn_gate"), ("w3", "ffn_up"), ("w2", "ffn_down")];
        let found = names.iter().find(|(theirs, _)| *theirs == which).ok_or(path)?;
        return Ok(format!("blk.{layer}.{}.{expert}", found.1));
    }
    // T5's network is the last part of a layer.
    let network = part.split_once(".DenseReluDense.").map(|(_, which)| which);
    let part = match (part, network) {
        ("post_attention_layernorm", _) if sandwich => "post_attention_norm",
        ("post_attention_layernorm", _) => "ffn_norm",
        ("layer.1.layer_norm", _) if *stack == "dec." => "cross_attn_norm",
        ("layer.1.layer_norm", _) => "ffn_norm",
        (_, Some("wi_0")) => "ffn_gate",
        (_, Some("wi" | "wi_1")) => "ffn_up",
        (_, Some("wo")) => "ffn_down",
        _ => PARTS.iter().find(|(theirs, _)| *theirs == part).ok_or(path)?.1,
    };
    Ok(format!("{stack}blk.{layer}.{part}"))
}

/// The converter's permutation of Llama's queries and keys: the halves of a head that turn together become neighbours.
fn permuted(tensor: &Tensor, heads: usize) -> Outcome<Tensor> {
    let rows = tensor.dim(0)?;
    let halves = tensor.reshape((heads, 2, rows / heads / 2, tensor.elem_count() / rows))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())?)
}

/// What a config says of rotary positions: of each kind of layer, and of those that see everything.
fn rope(config: &Json) -> (&Json, &Json) {
    let rope = config.get("rope_parameters").unwrap_or(&config["rope_scaling"]);
    (rope, rope.get("full_attention").unwrap_or(rope))
}

/// Llama 3's scaling, of which the converter writes nothing but the divisors of the frequencies.
fn divisors(config: &Json) -> Option<Vec<f32>> {
    let (_, rope) = rope(config);
    let number = |field: &str| rope[field].as_f64();
    if rope["rope_type"] != "llama3" {
        return None;
    }
    let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
    let original = number("original_max_position_embeddings")?;
    let base = number("rope_theta").or(config["rope_theta"].as_f64())?;
    let width = config["head_dim"].as_u64()?;
    let divisor = |i: u64| {
        let wavelength = std::f64::consts::TAU * base.powf(i as f64 / width as f64);
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Some((0..width).step_by(2).map(divisor).collect())
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
    if architecture == "gpt2" {
        put("feed_forward_length", config["n_embd"].as_u64().map(|n| Value::Unsigned(4 * n)));
    }
    if architecture == "t5" {
        put("attention.layer_norm_rms_epsilon", config["layer_norm_epsilon"].as_f64().map(Value::Float));
    }
    // Older configs have the base at the top.
    let (rope, everywhere) = rope(config);
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

/// What is in a file.
pub struct Made {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Blocks>,
}

/// A folder's model, each expert by itself.
pub fn converted(dir: &Path, architecture: &str) -> Outcome<Made> {
    let config = trace::config_json(dir)?;
    let heads = |field: &str| config[field].as_u64().unwrap_or_default() as usize;
    let (heads, kv_heads) = (heads("num_attention_heads"), heads("num_key_value_heads"));
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
        if architecture == "gpt2" && path.contains(".c_") && kind == "weight" {
            tensor = tensor.t()?.contiguous()?;
        }
        tensors.insert(format!("{}.{kind}", renamed(path, sandwich)?), blocks(&tensor)?);
    }
    if let Some(divisors) = divisors(&config) {
        tensors.insert("rope_freqs.weight".to_owned(), blocks(&Tensor::new(divisors, &Device::Cpu)?)?);
    }
    Ok(Made { metadata: metadata(&config, architecture), tensors })
}

/// A tensor as float32.
pub fn blocks(tensor: &Tensor) -> Outcome<Blocks> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Ok(Blocks::new(Format::F32, tensor.dims(), bytes)?)
}

impl Made {
    /// The same with the experts of a layer in three stacks.
    pub fn stacked(mut self) -> Outcome<Self> {
        let mut stacks: BTreeMap<String, Vec<Blocks>> = BTreeMap::new();
        let mut rest = BTreeMap::new();
        // There are fewer than ten experts: names are in their order.
        for (name, blocks) in self.tensors {
            match name.split('.').collect::<Vec<_>>()[..] {
                ["blk", layer, part, _, "weight"] => {
                    stacks.entry(format!("blk.{layer}.{part}_exps.weight")).or_default().push(blocks);
                }
                _ => drop(rest.insert(name, blocks)),
            }
        }
        for (name, all) in stacks {
            let first = all.first().ok_or("an empty stack")?;
            let shape = [&[all.len()], first.shape()].concat();
            let bytes = all.iter().flat_map(|blocks| blocks.bytes()).copied().collect();
            rest.insert(name, Blocks::new(first.format(), &shape, bytes)?);
        }
        self.tensors = rest;
        Ok(self)
    }

    /// A file of it, in a folder that goes with the first.
    pub fn written(&self) -> Outcome<(tempfile::TempDir, PathBuf)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("model.gguf");
        write(&path, &self.metadata, &self.tensors)?;
        Ok((dir, path))
    }
}
