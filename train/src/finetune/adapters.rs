//! What learns of a folder's tensors: some as they are, beside some a product of two narrow matrices.

use super::FinetuneConfig;
use crate::error::{Error, Result, at};
use fancy_regex::Regex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::{DType, Init, Tensor, Var, Weights};

/// The root of PEFT's names.
const ROOT: &str = "base_model.model";

/// The variables of a run, by what they change.
pub struct Adapters {
    full: Vec<(String, Var)>,
    low: Vec<LowRank>,
    scale: f64,
}

/// `W + scale · B A` in the place of `W [out, in]`.
struct LowRank {
    /// The matrix, with its `.weight`.
    name: String,
    /// `[rank, in]`
    a: (String, Var),
    /// `[out, rank]`
    b: (String, Var),
}

impl Adapters {
    /// Picks what `config` names among `tensors`. A fresh adapter changes nothing.
    ///
    /// # Errors
    /// An expression that cannot be read or is found in no name; a tensor that two of them name; an adapter beside what is no
    /// matrix of a layer.
    pub fn new(config: &FinetuneConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let mut how: BTreeMap<&String, bool> = BTreeMap::new();
        for (pattern, low) in
            config.train.iter().map(|p| (p, false)).chain(config.adapt.iter().map(|p| (p, true)))
        {
            let regex = Regex::new(pattern).map_err(|e| refuse(pattern, &e.to_string()))?;
            let mut found = 0;
            for name in tensors.keys().filter(|name| !low || name.ends_with(".weight")) {
                if !regex.is_match(name).map_err(|e| refuse(pattern, &e.to_string()))? {
                    continue;
                }
                found += 1;
                if how.insert(name, low).is_some_and(|other| other != low) {
                    return Err(refuse(name, "named by train and by adapt"));
                }
            }
            if found == 0 {
                return Err(refuse(pattern, "found in the name of no tensor"));
            }
        }
        let fresh = Weights::fresh(config.seed);
        let (mut full, mut low) = (Vec::new(), Vec::new());
        for (name, is_low) in how {
            let tensor = &tensors[name];
            if !is_low {
                full.push((name.clone(), Var::from_tensor(&tensor.to_dtype(DType::F32)?)?));
                continue;
            }
            let [output, input] = *tensor.dims() else {
                let why = format!("expected a matrix to adapt, got the shape {:?}", tensor.dims());
                return Err(refuse(name, &why));
            };
            if name.contains("embed") {
                return Err(refuse(
                    name,
                    "a table is looked up, not multiplied: it can be trained, not adapted",
                ));
            }
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let pair = fresh.pp(ROOT).pp(module);
            let spread = Init::Uniform((input.max(1) as f32).sqrt().recip());
            pair.get_init((config.rank, input), "lora_A.weight", spread)?;
            pair.get_init((output, config.rank), "lora_B.weight", Init::Zeros)?;
            low.push((name.clone(), format!("{ROOT}.{module}")));
        }
        let made: HashMap<String, Var> = fresh.trainable().into_iter().collect();
        let var = |name: String| -> Result<(String, Var)> {
            let var = made.get(&name).cloned().ok_or_else(|| refuse(&name, "was not made"))?;
            Ok((name, var))
        };
        let low = low
            .into_iter()
            .map(|(name, root)| {
                let (a, b) = (var(format!("{root}.lora_A.weight"))?, var(format!("{root}.lora_B.weight"))?);
                Ok(LowRank { name, a, b })
            })
            .collect::<Result<_>>()?;
        Ok(Self { full, low, scale: config.alpha / config.rank as f64 })
    }

    /// The variables.
    pub fn vars(&self) -> Vec<(String, Var)> {
        let pairs = self.low.iter().flat_map(|low| [low.a.clone(), low.b.clone()]);
        self.full.iter().cloned().chain(pairs).collect()
    }

    /// The names of what they change.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let full = self.full.iter().map(|(name, _)| name.as_str());
        full.chain(self.low.iter().map(|low| low.name.as_str()))
    }

    /// The changed tensors, worked out of the values that `value` gives for each variable. Differentiable in them.
    pub fn changed(
        &self,
        constants: &HashMap<String, Tensor>,
        value: impl Fn(&str, &Var) -> Result<Tensor>,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut changed = Vec::new();
        for (name, var) in &self.full {
            changed.push((name.clone(), value(name, var)?));
        }
        for low in &self.low {
            let (a, b) = (value(&low.a.0, &low.a.1)?, value(&low.b.0, &low.b.1)?);
            let own = constants.get(&low.name).ok_or_else(|| refuse(&low.name, "is not there"))?;
            changed.push((low.name.clone(), (own + (b.matmul(&a)? * self.scale)?)?));
        }
        Ok(changed)
    }

    /// Writes the adapters as PEFT does, from `values` by the variables' names. Nothing is written if there are none.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, dir: &Path, config: &FinetuneConfig, values: &[(String, Tensor)]) -> Result<()> {
        if self.low.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let modules: Vec<&str> =
            self.low.iter().map(|low| low.name.strip_suffix(".weight").unwrap_or(&low.name)).collect();
        let stated = json!({"peft_type": "LORA", "task_type": null, "base_model_name_or_path": null, "r": config.rank,
            "lora_alpha": config.alpha, "target_modules": modules, "lora_dropout": 0.0, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true});
        let path = dir.join("adapter_config.json");
        std::fs::write(&path, format!("{stated:#}\n")).map_err(at(&path))?;
        let pairs: Vec<_> = values.iter().filter(|(name, _)| name.starts_with(ROOT)).cloned().collect();
        Ok(vela_nn::save(&dir.join("adapter_model.safetensors"), &pairs)?)
    }
}

fn refuse(what: &str, why: &str) -> Error {
    Error::Parse { what: format!("fine-tuning: '{what}'"), why: why.to_owned() }
}
