//! LeRobot policy folders: features, processor steps and their statistics, read once for every kind of policy.

use crate::normalise::{Normaliser, ProcessorStep, Scaling, Statistics, processor_steps};
use crate::storage::weights_file;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use vela_llm::trace::config_json;
use vela_nn::{Error, Result, Weights};

/// Features in the order of the file, which is the order of the cameras in the network.
#[derive(Clone, Debug, Default)]
pub struct Features(pub Vec<(String, Feature)>);

/// One input or output.
#[derive(Clone, Debug, Deserialize)]
pub struct Feature {
    /// `STATE`, `VISUAL`, `ENV`, `ACTION` or `LANGUAGE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its shape without the batch; of pictures `[channels, height, width]`.
    pub shape: Vec<usize>,
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Features;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("features by name")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Features, M::Error> {
                let mut features = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    features.push(entry);
                }
                Ok(Features(features))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Features {
    /// Those of one kind, in order.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a (String, Feature)> {
        self.0.iter().filter(move |(_, feature)| feature.kind == kind)
    }

    /// Numbers in the first feature of a kind.
    pub fn width(&self, kind: &str) -> Result<usize> {
        let found = self.of_kind(kind).next().and_then(|(_, feature)| feature.shape.first().copied());
        found.ok_or_else(|| Error::invalid(format!("config.json: no feature of type {kind}")))
    }
}

/// A camera's name: that of its feature without `observation.images.`.
pub fn camera_of(feature: &str) -> &str {
    feature.strip_prefix("observation.images.").unwrap_or(feature)
}

/// One camera of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraFeature {
    /// The name of its feature.
    pub feature: String,
    /// Its own name.
    pub name: String,
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
}

/// What every kind of LeRobot policy says of itself.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub dir: PathBuf,
    /// Its `config.json`.
    pub config: Value,
    /// What it reads.
    pub inputs: Features,
    /// What it gives.
    pub outputs: Features,
    before: Vec<ProcessorStep>,
    after: Vec<ProcessorStep>,
}

/// Processor steps that change nothing that we must do: we have no batches to make and no devices to go to.
const SILENT: [&str; 3] = ["to_batch_processor", "device_processor", "rename_observations_processor"];

impl Folder {
    /// Reads `config.json`, `policy_preprocessor.json` and `policy_postprocessor.json`; `known` are the processor steps
    /// that this kind of policy carries out itself.
    ///
    /// # Errors
    /// A file is missing or not understood; a processor step that would be left out; feature names that are renamed.
    pub fn read(dir: &Path, known: &[&str]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            input_features: Features,
            output_features: Features,
        }
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        // Not by way of `Value`, which forgets the order.
        let head: Head = serde_json::from_slice(&text).map_err(|e| Error::parse(path.display(), e))?;
        let steps = |name: &str| -> Result<Vec<ProcessorStep>> {
            let path = dir.join(name);
            if path.is_file() { processor_steps(&path) } else { Ok(Vec::new()) }
        };
        let (before, after) = (steps("policy_preprocessor.json")?, steps("policy_postprocessor.json")?);
        for step in before.iter().chain(&after) {
            let name = step.registry_name.as_str();
            let handled = ["normalizer_processor", "unnormalizer_processor"].contains(&name)
                || SILENT.contains(&name)
                || known.contains(&name);
            if !handled {
                return Err(Error::invalid(format!(
                    "processor step '{name}' is not known; it would be left out"
                )));
            }
            let renames = step.config.get("rename_map").and_then(Value::as_object);
            if renames.is_some_and(|map| !map.is_empty()) {
                return Err(Error::invalid(format!("{name}: renamed features are not supported")));
            }
            if step.config.get("enabled").and_then(Value::as_bool) == Some(true) {
                return Err(Error::invalid(format!("{name}: is enabled, which is not supported")));
            }
        }
        Ok(Self {
            config: config_json(dir)?,
            dir: dir.to_path_buf(),
            inputs: head.input_features,
            outputs: head.output_features,
            before,
            after,
        })
    }

    /// Of a `config.json` alone, for networks of random weights: no statistics, no files.
    pub fn from_config(config: Value) -> Result<Self> {
        let part = |name: &str| -> Result<Features> {
            let value = config.get(name).cloned().unwrap_or_default();
            serde_json::from_value(value).map_err(|e| Error::parse(format!("config: {name}"), e))
        };
        Ok(Self {
            dir: PathBuf::new(),
            inputs: part("input_features")?,
            outputs: part("output_features")?,
            before: Vec::new(),
            after: Vec::new(),
            config,
        })
    }

    /// SHA-256 of its weights.
    pub fn checkpoint(&self) -> Result<String> {
        hash_of_file(&weights_file(&self.dir))
    }

    /// A setting of a processor step.
    pub fn step_setting(&self, step: &str, setting: &str) -> Option<Value> {
        let mut steps = self.before.iter().chain(&self.after);
        steps.find(|s| s.registry_name == step)?.config.get(setting).cloned()
    }

    /// The fields of `config.json` that a kind of policy needs.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.config.clone())
            .map_err(|e| Error::parse(self.dir.join("config.json").display(), e))
    }

    /// The first settings of `refused` that is set, as an error.
    pub fn refuse(&self, kind: &str, refused: &[(bool, &str)]) -> Result<()> {
        match refused.iter().find(|(set, _)| *set) {
            Some((_, what)) => {
                Err(Error::invalid(format!("config.json: {kind} with {what} is not supported")))
            }
            None => Ok(()),
        }
    }

    /// Its cameras, in the network's order.
    pub fn cameras(&self) -> Result<Vec<CameraFeature>> {
        let one = |(name, feature): &(String, Feature)| match feature.shape[..] {
            [3, height, width] if height * width > 0 => {
                Ok(CameraFeature { feature: name.clone(), name: camera_of(name).to_owned(), height, width })
            }
            _ => Err(Error::invalid(format!(
                "config.json: {name}: expected shape [3, height, width], got {:?}",
                feature.shape
            ))),
        };
        self.inputs.of_kind("VISUAL").map(one).collect()
    }

    /// The scaling of what goes in: from the normaliser step, or, in folders from before 0.4, from `weights`.
    ///
    /// # Errors
    /// The step, its file or a statistic is missing; statistics of another width than the feature.
    pub fn scaling_in(&self, feature: &str, kind: &str, weights: &Weights) -> Result<Normaliser> {
        self.scaling(&self.before, "normalizer_processor", "normalize_inputs", feature, kind, weights)
    }

    /// The scaling of what comes out.
    pub fn scaling_out(&self, feature: &str, kind: &str, weights: &Weights) -> Result<Normaliser> {
        self.scaling(&self.after, "unnormalizer_processor", "unnormalize_outputs", feature, kind, weights)
    }

    fn scaling(
        &self,
        steps: &[ProcessorStep],
        step: &str,
        buffers: &str,
        feature: &str,
        kind: &str,
        weights: &Weights,
    ) -> Result<Normaliser> {
        let made = match steps.iter().find(|s| s.registry_name == step) {
            Some(found) => crate::normalise::step_normaliser(&self.dir, found, feature, kind)?,
            None if !steps.is_empty() => return Err(Error::invalid(format!("no processor step {step}"))),
            None => self.buffered(buffers, feature, kind, weights)?,
        };
        let all = [&self.inputs, &self.outputs];
        let shape = all.iter().find_map(|f| f.0.iter().find(|(name, _)| name == feature));
        let width = shape.and_then(|(_, feature)| feature.shape.first().copied());
        match (made.dims(), width) {
            (Some(got), Some(expected)) if got != expected => Err(Error::invalid(format!(
                "{step}: {feature}: expected statistics of {expected} numbers, got {got}"
            ))),
            _ => Ok(made),
        }
    }

    /// Statistics among the weights, as LeRobot kept them before 0.4: `{group}.buffer_{feature with _}.{statistic}`.
    fn buffered(&self, group: &str, feature: &str, kind: &str, weights: &Weights) -> Result<Normaliser> {
        let scaling = self.config.get("normalization_mapping").and_then(|map| map.get(kind)).cloned();
        let scaling = scaling.ok_or_else(|| {
            Error::invalid(format!(
                "config.json: normalization_mapping has no {kind}, and there is no processor file"
            ))
        })?;
        let scaling: Scaling =
            serde_json::from_value(scaling).map_err(|e| Error::parse("normalization_mapping", e))?;
        let buffer = weights.pp(group).pp(format!("buffer_{}", feature.replace('.', "_")));
        let mut found = std::collections::HashMap::new();
        for name in scaling.statistics().into_iter().flatten() {
            if let Some(shape) = buffer.shape_of(name) {
                let values = buffer.get(shape, name)?.flatten_all()?.to_vec1::<f32>()?;
                found.insert(format!("{feature}.{name}"), values);
            }
        }
        Statistics::from_map(found).normaliser(feature, scaling, Normaliser::EPS)
    }
}

/// SHA-256 of a file, in lower-case hex, a piece at a time: weights may be larger than memory.
pub fn hash_of_file(path: &Path) -> Result<String> {
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = std::io::Read::read(&mut file, &mut piece).map_err(failed)?;
        if count == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&piece[..count]);
    }
}

/// Whether a stored tensor is one of the statistics that LeRobot kept among the weights before 0.4, or a counter: loading
/// leaves it be.
pub fn is_bookkeeping(name: &str) -> bool {
    ["normalize_inputs.", "normalize_targets.", "unnormalize_outputs."].iter().any(|p| name.starts_with(p))
        || name.ends_with(".num_batches_tracked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_keep_the_order_of_the_file() -> std::result::Result<(), serde_json::Error> {
        let text =
            r#"{"z": {"type": "VISUAL", "shape": [3, 1, 1]}, "a": {"type": "VISUAL", "shape": [3, 1, 1]}}"#;
        let features: Features = serde_json::from_str(text)?;
        let names: Vec<&str> = features.of_kind("VISUAL").map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["z", "a"]);
        Ok(())
    }
}
