//! An adapter that is to be trained, and how it is written down as PEFT reads it.

use super::{Lora, LowRank, ROOT, is_turned, join};
use crate::DecoderConfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use vela_nn::{DType, Error, Init, Linear, Result, Tensor, Weights};

impl Lora {
    /// An adapter of `rank` at the layers' matrices called `targets` (`q_proj`, `self_attn.q_proj`), whose tensors are
    /// `weights`': variables if that is fresh. The scale is 1, and a fresh one changes nothing yet.
    ///
    /// # Errors
    /// A rank of 0; a target that the decoder does not have; rows in another order than in a Hugging Face folder.
    pub fn of(weights: &Weights, config: &DecoderConfig, rank: usize, targets: &[String]) -> Result<Self> {
        if rank == 0 {
            return Err(Error::invalid("adapter: expected a rank of at least 1, got 0"));
        }
        let names = config.names.table();
        let mut layers = vec![BTreeMap::new(); config.layers];
        let is = |name: &str, target: &str| name == target || name.ends_with(&format!(".{target}"));
        let all = config.modules();
        if let Some(unknown) =
            targets.iter().find(|target| !all.iter().any(|module| is(&module.name, target)))
        {
            return Err(Error::invalid(format!("adapter: the decoder has no matrix called {unknown}")));
        }
        for module in all {
            if !targets.iter().any(|target| is(&module.name, target)) {
                continue;
            }
            if is_turned(config, &module.name) {
                let why = "the decoder's rows are in GGUF's order: train on a Hugging Face folder";
                return Err(Error::invalid(format!("adapter: {}: {why}", module.name)));
            }
            let scope = join(&join(names.body, names.layers), &format!("{}.{}", module.layer, module.name));
            let pair = weights.pp(ROOT).pp(scope);
            let spread = Init::Uniform((module.input.max(1) as f32).sqrt().recip());
            let a = pair.get_init((rank, module.input), "lora_A.weight", spread)?;
            let b = pair.get_init((module.output, rank), "lora_B.weight", Init::Zeros)?;
            let low = LowRank { a: Linear::from_tensors(a, None)?, b: Linear::from_tensors(b, None)? };
            if let Some(layer) = layers.get_mut(module.layer) {
                layer.insert(module.name, low);
            }
        }
        Ok(Self { config: config.clone(), hash: 0, layers })
    }

    /// Writes a folder that [`Lora::load`] and PEFT read: an adapter of `rank` made by [`Lora::of`] with the variables
    /// `tensors`, in 16 bits.
    pub fn save(
        dir: &Path,
        rank: usize,
        targets: &[String],
        base: &str,
        tensors: &[(String, Tensor)],
    ) -> Result<()> {
        let stated = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
            "lora_alpha": rank, "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true
        });
        let path = dir.join("adapter_config.json");
        std::fs::write(&path, format!("{stated:#}\n")).map_err(|source| Error::Io { path, source })?;
        let halves: Vec<(String, Tensor)> = tensors
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F16)?)))
            .collect::<Result<_>>()?;
        vela_nn::save(&dir.join("adapter_model.safetensors"), &halves)
    }
}
