//! An adapter of any part of a model, merged into the checkpoint before the model is made of it.

use super::config::AdapterConfig;
use super::{ROOT, read};
use std::collections::HashMap;
use std::path::Path;
use vela_nn::{Error, Result, Weights};

/// A checkpoint's constants with the PEFT adapter in `dir` added to its matrices, in float32; the others stay as they are stored.
/// `one` gives names that different versions of a library have for the same tensor one form.
///
/// # Errors
/// A kind of adapter that is not supported, by name; a module that the checkpoint does not have or that is no matrix; a
/// tensor that belongs to none.
pub fn merged_weights(dir: &Path, weights: &Weights, one: impl Fn(&str) -> String) -> Result<Weights> {
    let (stated, tensors, _) = read(dir)?;
    let path = dir.join("adapter_config.json");
    let refuse = |reason: String| Error::parse(path.display(), reason);
    let adapter = AdapterConfig::read(&stated).map_err(refuse)?;
    let stored: HashMap<String, String> =
        weights.names().into_iter().map(|name| (one(&name), name)).collect();
    let mut merged = HashMap::new();
    for name in tensors.names() {
        let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
        let Some(inner) = module.strip_prefix(ROOT).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let layer = inner.split('.').find_map(|level| level.parse().ok()).unwrap_or(0);
        let Some((rank, scale)) = adapter.of(inner, layer).map_err(refuse)? else {
            return Err(refuse(format!("target_modules does not name {inner}, for which there are tensors")));
        };
        let Some(name) = stored.get(&one(&format!("{inner}.weight"))) else {
            return Err(refuse(format!("{inner}: the checkpoint has no such module")));
        };
        let shape = weights.shape_of(name).unwrap_or_default();
        let [output, input] = shape[..] else {
            return Err(Error::shape(name, "a matrix", &shape));
        };
        let pair = tensors.pp(module);
        let (a, b) = (pair.get((rank, input), "lora_A.weight")?, pair.get((output, rank), "lora_B.weight")?);
        merged.insert(name.clone(), (weights.get((output, input), name)? + (b.matmul(&a)? * scale)?)?);
    }
    tensors.finish()?;
    if merged.is_empty() {
        return Err(refuse("the adapter has no matrix".into()));
    }
    weights.replaced(merged)
}
