//! What learns of a folder's tensors: some as they are, beside some a product of two narrow matrices.

use super::FinetuneConfig;
use crate::error::{Error, Result, at};
use fancy_regex::Regex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::{Init, LowRank, Tensor, Var, Weights};

/// The root of PEFT's names.
const ROOT: &str = "base_model.model";

/// The variables of a run, by what they change.
pub struct Adapters {
    full: Vec<(String, Var)>,
    low: Vec<Pair>,
    scale: f64,
}

/// `W + scale · B A` in the place of `W [out, in]`.
struct Pair {
    /// The matrix, with its `.weight`.
    name: String,
    /// `[rank, in]`
    a: (String, Var),
    /// `[out, rank]`
    b: (String, Var),
}

impl Adapters {
    /// Picks what `config` names among the tensors of a folder, as they are stored. A fresh adapter changes nothing.
    ///
    /// # Errors
    /// An expression that cannot be read or is found in no name; a tensor that two of them name; an adapter beside what is no
    /// matrix of a layer.
    pub fn new(config: &FinetuneConfig, stored: &Weights) -> Result<Self> {
        let names = stored.names();
        let mut how: BTreeMap<&String, bool> = BTreeMap::new();
        for (pattern, low) in
            config.train.iter().map(|p| (p, false)).chain(config.adapt.iter().map(|p| (p, true)))
        {
            let regex = Regex::new(pattern).map_err(|e| refuse(pattern, &e.to_string()))?;
            let mut found = 0;
            for name in names.iter().filter(|name| !low || name.ends_with(".weight")) {
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
            let shape = stored.shape_of(name).unwrap_or_default();
            if !is_low {
                full.push((name.clone(), Var::from_tensor(&stored.get(shape, name)?)?));
                continue;
            }
            let [output, input] = *shape else {
                let why = format!("expected a matrix to adapt, got the shape {shape:?}");
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
                Ok(Pair { name, a, b })
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

    /// What is trained as it is, by the folder's names. Differentiable.
    pub fn full(&self) -> HashMap<String, Tensor> {
        self.full.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    }

    /// What learns beside matrices, by the folder's names. Differentiable.
    pub fn beside(&self) -> HashMap<String, LowRank> {
        let one = |low: &Pair| {
            let [a, b] = [&low.a, &low.b].map(|(_, var)| var.as_tensor().clone());
            (low.name.clone(), LowRank { a, b, scale: self.scale })
        };
        self.low.iter().map(one).collect()
    }

    /// The changed tensors as the folder has them, out of values by the variables' names: adapters added to the stored
    /// matrices.
    ///
    /// # Errors
    /// A value that is not there.
    pub fn merged(&self, stored: &Weights, values: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let values: HashMap<&str, &Tensor> = values.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let value = |name: &str| values.get(name).copied().ok_or_else(|| refuse(name, "is not there"));
        let mut merged = Vec::new();
        for (name, _) in &self.full {
            merged.push((name.clone(), value(name)?.clone()));
        }
        for low in &self.low {
            let own = stored.get(stored.shape_of(&low.name).unwrap_or_default(), &low.name)?;
            let added = (value(&low.b.0)?.matmul(value(&low.a.0)?)? * self.scale)?;
            merged.push((low.name.clone(), (own + added)?));
        }
        Ok(merged)
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
