//! T5 in GGUF files: two stacks, under `enc.` and `dec.` (the names of llama.cpp's `gguf-py/gguf/constants.py`).
//!
//! The file does not say all of it. What llama.cpp takes for granted (`src/models/t5.cpp`, `src/llama-graph.cpp`) is so of
//! every published T5: distances of 128 and more share a bucket, a network with a gate has GELU inside and one without has
//! ReLU.

use super::Reader;
use crate::config::Names;
use crate::{EncoderDecoder, EncoderDecoderConfig};
use serde_json::json;
use vela_nn::quant::Precision;
use vela_nn::{Error, Gguf, Result, Weights};

/// The architecture's name.
pub(super) const ARCHITECTURE: &str = "t5";

/// Distances from here on share a bucket.
const MAX_DISTANCE: usize = 128;

/// Whether a file holds an encoder-decoder: [`reader`] reads it, [`super::decoder`] all others.
pub fn is_encoder_decoder(file: &Gguf) -> bool {
    file.text("general.architecture").is_ok_and(|name| name == ARCHITECTURE)
}

/// The encoder-decoder of an open file, its weights multiplied as `precision` says.
///
/// # Errors
/// Another architecture, missing metadata, missing, surplus or mis-shaped tensors.
pub fn reader(file: &Gguf, precision: Precision) -> Result<EncoderDecoder> {
    let config = reader_config(file)?;
    let weights = reader_weights(file, &config, precision)?;
    let model = EncoderDecoder::new(&weights, &config)?;
    weights.finish()?;
    Ok(model)
}

/// The encoder-decoder that a file describes.
///
/// # Errors
/// Another architecture, something missing or of the wrong kind, something that we cannot do.
pub fn reader_config(file: &Gguf) -> Result<EncoderDecoderConfig> {
    let architecture = file.text("general.architecture")?;
    if architecture != ARCHITECTURE {
        return Err(Error::invalid(format!(
            "GGUF architecture: expected an encoder-decoder ({ARCHITECTURE}), got '{architecture}'"
        )));
    }
    let reader = Reader { file, architecture };
    let count = |key: &str| reader.need(key, reader.count(key)?);
    let eps = "attention.layer_norm_rms_epsilon";
    let (vocab, heads, head_dim) = (reader.vocab()?, count("attention.head_count")?, reader.head_dim()?);
    if let Some(other) = reader.count("attention.head_count_kv")?.filter(|other| *other != heads) {
        return Err(Error::invalid(format!(
            "GGUF: {ARCHITECTURE}.attention.head_count_kv: expected {heads}, as many as heads, got {other}"
        )));
    }
    let gated = file.tensors().contains_key("enc.blk.0.ffn_gate.weight");
    let mut words = json!({
        "model_type": "t5",
        "vocab_size": vocab,
        "d_model": count("embedding_length")?,
        "d_ff": count("feed_forward_length")?,
        "d_kv": head_dim,
        "num_heads": heads,
        "num_layers": count("block_count")?,
        "layer_norm_epsilon": reader.need(eps, reader.number(eps)?)?,
        "relative_attention_num_buckets": count("attention.relative_buckets_count")?,
        "relative_attention_max_distance": MAX_DISTANCE,
        "feed_forward_proj": if gated { "gated-gelu" } else { "relu" },
        "tie_word_embeddings": !file.tensors().contains_key("output.weight"),
        "decoder_start_token_id": count("decoder_start_token_id")?,
    });
    if let Some(layers) = reader.count("decoder_block_count")? {
        words["num_decoder_layers"] = json!(layers);
    }
    let start = words["decoder_start_token_id"].as_u64().unwrap_or_default();
    if start >= vocab as u64 {
        return Err(Error::invalid(format!(
            "GGUF: {ARCHITECTURE}.decoder_start_token_id: expected a token id below {vocab}, got {start}"
        )));
    }
    EncoderDecoderConfig::from_hf(&words)
}

/// The tensors of a file under the names of T5.
///
/// # Errors
/// Two tensors of one name.
pub fn reader_weights(file: &Gguf, config: &EncoderDecoderConfig, precision: Precision) -> Result<Weights> {
    let stacks = [("enc", &config.encoder), ("dec", &config.decoder)].map(|(theirs, config)| {
        let gated = config.feed_forward != crate::config::FeedForward::Plain;
        (theirs, config.names.table(), gated)
    });
    let head = stacks[1].1.head;
    let rename = |name: &str| {
        let Some((path, kind)) = name.rsplit_once('.') else { return name.to_owned() };
        // Some checkpoints have it; neither Hugging Face's T5 nor llama.cpp reads it.
        if path == "dec.blk.0.cross_attn_rel_b" {
            return String::new();
        }
        let inside = path.split_once('.').and_then(|(theirs, rest)| {
            let (_, names, gated) = stacks.iter().find(|(stack, ..)| *stack == theirs)?;
            inside(rest, names, *gated)
        });
        match (path, inside) {
            ("token_embd", _) => format!("shared.{kind}"),
            ("output", _) => format!("{head}.{kind}"),
            (_, Some(ours)) => format!("{ours}.{kind}"),
            // What we do not know keeps its name, and is reported as surplus.
            _ => name.to_owned(),
        }
    };
    Weights::from_gguf(file, precision).renamed(rename)
}

/// The name of a part of a stack.
fn inside(rest: &str, names: &Names, gated: bool) -> Option<String> {
    if rest == "output_norm" {
        return Some(format!("{}.{}", names.body, names.final_norm));
    }
    let (layer, part) = rest.strip_prefix("blk.")?.split_once('.')?;
    let [cross_q, cross_k, cross_v, cross_o] = names.cross;
    let ours = match part {
        "attn_norm" => names.norm1,
        "attn_q" => names.q,
        "attn_k" => names.k,
        "attn_v" => names.v,
        "attn_o" => names.o,
        "attn_rel_b" => names.relative,
        "cross_attn_norm" => names.cross_norm,
        "cross_attn_q" => cross_q,
        "cross_attn_k" => cross_k,
        "cross_attn_v" => cross_v,
        "cross_attn_o" => cross_o,
        "ffn_norm" => names.norm2,
        "ffn_gate" => names.gate,
        "ffn_up" if gated => names.up,
        "ffn_up" => names.plain_up(),
        "ffn_down" => names.down,
        _ => "",
    };
    (!ours.is_empty()).then(|| format!("{}.{}.{layer}.{ours}", names.body, names.layers))
}
