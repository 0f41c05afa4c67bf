//! Mixtures of experts in GGUF files: Mixtral's, which come under the name of Llama.
//!
//! The names are those of llama.cpp's `gguf-py/gguf/constants.py`: a router `ffn_gate_inp` and three stacks of matrices,
//! `ffn_gate_exps`, `ffn_up_exps` and `ffn_down_exps`. Files from before the stacks have a matrix `ffn_gate.E` per expert
//! (`gguf-py/gguf/tensor_mapping.py` of that time); stacks are taken apart into these, so that both are read alike.

use super::Reader;
use crate::config::{DecoderConfig, FeedForward, Names};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use vela_nn::quant::Blocks;
use vela_nn::{Error, Gguf, Result};

/// Gate, up and down, in the order of [`Names::expert`].
const PARTS: [&str; 3] = ["ffn_gate", "ffn_up", "ffn_down"];

/// Whether a tensor belongs to a mixture.
fn is_of_mixture(name: &str) -> bool {
    let Some((_, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    part.starts_with("ffn_gate_inp.")
        || PARTS.iter().any(|theirs| part.starts_with(&format!("{theirs}_exps.")))
}

/// How many experts a file has; `None` if its layers have one network.
///
/// # Errors
/// Experts in an architecture that we do not read them of, or in a file that says that it has none.
pub(super) fn count(reader: &Reader) -> Result<Option<u64>> {
    let (architecture, key) = (reader.architecture, "expert_count");
    let count = reader.count(key)?;
    match count.filter(|count| *count > 0) {
        None => match reader.file.tensors().keys().find(|name| is_of_mixture(name)) {
            None => Ok(None),
            Some(name) => {
                let said = count.map_or("is missing".to_owned(), |count| format!("is {count}"));
                Err(Error::invalid(format!(
                    "GGUF: {architecture}.{key} {said}, but the file has {name}, which is of a mixture of experts"
                )))
            }
        },
        Some(count) if architecture != "llama" => Err(Error::invalid(format!(
            "GGUF: {architecture}.{key}: expected none (of this family, mixtures of experts are read from safetensors only), got {count}"
        ))),
        Some(count) => Ok(Some(count)),
    }
}

/// Mixtral's words for its mixture, as in its `config.json`.
///
/// # Errors
/// Something missing, or what Mixtral does not do.
pub(super) fn words(reader: &Reader, count: u64, words: &mut Map<String, Json>) -> Result<()> {
    // The weights of the chosen are those of a softmax (1), scaled to a sum of one and by nothing else.
    let usual: [(&str, &[f64]); 3] = [
        ("expert_gating_func", &[0.0, 1.0]),
        ("expert_weights_scale", &[0.0, 1.0]),
        ("expert_shared_count", &[0.0]),
    ];
    for (key, allowed) in usual {
        if let Some(value) = reader.number(key)?.filter(|value| !allowed.contains(value)) {
            return Err(Error::invalid(format!(
                "GGUF: {}.{key}: expected one of {allowed:?} as Mixtral has it, got {value}",
                reader.architecture
            )));
        }
    }
    let key = "expert_used_count";
    words.insert("num_local_experts".into(), json!(count));
    words.insert("num_experts_per_tok".into(), json!(reader.need(key, reader.count(key)?)?));
    Ok(())
}

/// A file's tensors with every stack of experts as one matrix per expert, on the same bytes.
///
/// # Errors
/// A layer without a router; a router or a stack of another shape; an expert that is there twice.
pub(super) fn unstacked(file: &Gguf, config: &DecoderConfig) -> Result<BTreeMap<String, Blocks>> {
    let FeedForward::Experts(experts) = &config.feed_forward else { return Ok(file.tensors().clone()) };
    let (count, width, inner) = (experts.count, config.width, experts.inner_width);
    let fits = |name: &str, got: &[usize], want: &[usize]| match got == want {
        true => Ok(()),
        false => Err(Error::shape(format!("GGUF: {name} of {count} experts"), format!("{want:?}"), got)),
    };
    for layer in 0..config.layers {
        let name = format!("blk.{layer}.ffn_gate_inp.weight");
        match file.tensors().get(&name) {
            Some(router) => fits(&name, router.shape(), &[count, width])?,
            None => return Err(Error::invalid(format!("GGUF: {count} experts, but there is no {name}"))),
        }
    }
    let mut tensors = BTreeMap::new();
    for (name, blocks) in file.tensors() {
        let Some((layer, which)) = stack(name) else {
            put(&mut tensors, name.clone(), blocks.clone())?;
            continue;
        };
        let rows = if which == 2 { [width, inner] } else { [inner, width] };
        fits(name, blocks.shape(), &[count, rows[0], rows[1]])?;
        for expert in 0..count {
            let name = format!("blk.{layer}.{}.{expert}.weight", PARTS[which]);
            put(&mut tensors, name, blocks.matrix(expert)?)?;
        }
    }
    Ok(tensors)
}

fn put(tensors: &mut BTreeMap<String, Blocks>, name: String, blocks: Blocks) -> Result<()> {
    match tensors.insert(name.clone(), blocks) {
        None => Ok(()),
        Some(_) => Err(Error::invalid(format!("GGUF: {name} is there twice, by itself and in a stack"))),
    }
}

/// Layer and kind of a stack: `blk.3.ffn_up_exps.weight` is (3, 1).
fn stack(name: &str) -> Option<(&str, usize)> {
    let (layer, part) = name.strip_prefix("blk.")?.strip_suffix("_exps.weight")?.split_once('.')?;
    Some((layer, PARTS.iter().position(|theirs| *theirs == part)?))
}

/// Our name, within a layer, of an expert's matrix: `ffn_up.7` is the expert 7's second.
pub(super) fn renamed(part: &str, names: &Names) -> Option<String> {
    let (theirs, expert) = part.split_once('.')?;
    let which = PARTS.iter().position(|part| *part == theirs)?;
    Some(format!("{}.{expert}.{}", names.experts, names.expert[which]))
}
