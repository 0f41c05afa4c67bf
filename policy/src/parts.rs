//! A VLA folder taken apart, to be put together again around other numbers: what fine-tuning needs.

use crate::folder::VlaPolicy;
use crate::normalise::{Normaliser, Statistics, processor_steps};
use crate::pi0::{self, Pi0};
use crate::storage::{Storage, is_quantised};
use crate::vla::{Form, StatePlace, Vla, VlaConfig};
use crate::{SmolVla, TimePlace};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use vela_embodiment::Embodiment;
use vela_llm::trace::config_json;
use vela_nn::{Error, Result, Weights};

/// Whose names the tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Ours,
    SmolVla,
    Pi0(Form),
}

/// A folder's tensors by name, and the policy that they make.
pub struct VlaParts {
    dir: PathBuf,
    names: Names,
    policy: VlaPolicy,
    tensors: BTreeMap<String, Tensor>,
    /// In place of the folder's own.
    statistics: Option<Statistics>,
}

impl VlaParts {
    /// Opens a folder of `vela_vla`, `smolvla`, `pi0` or `pi05` for a robot.
    ///
    /// # Errors
    /// Another kind; whatever is wrong with the folder; a robot that it was not made for.
    pub fn open(dir: &Path, robot: &Embodiment) -> Result<Self> {
        let config = config_json(dir)?;
        let kind = config.get("type").and_then(serde_json::Value::as_str).unwrap_or("absent");
        let (names, policy) = match kind {
            "vela_vla" => {
                let policy = VlaPolicy::load(dir)?;
                let own = &vela_embodiment::Policy::spec(&policy).embodiment;
                own.require_same(robot).map_err(Error::invalid)?;
                (Names::Ours, policy)
            }
            "smolvla" => (Names::SmolVla, SmolVla::load(dir, Storage::Plain)?.policy(robot)?),
            "pi0" | "pi05" => {
                let form = match kind {
                    "pi0" => Form { state: StatePlace::Suffix, time: TimePlace::Beside },
                    _ => Form { state: StatePlace::Words, time: TimePlace::Norms },
                };
                (Names::Pi0(form), Pi0::load(dir, Storage::Plain)?.policy(robot)?)
            }
            other => {
                return Err(Error::invalid(format!(
                    "{}: '{other}' cannot be taken apart; known: vela_vla, smolvla, pi0, pi05",
                    dir.display()
                )));
            }
        };
        if is_quantised(dir) {
            return Err(Error::parse(
                dir.display(),
                "its weights are in fewer bits: they cannot be taken apart",
            ));
        }
        let mut tensors = BTreeMap::new();
        for (path, _) in files(dir)?.into_iter().filter(|(path, _)| is_weights(path)) {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu)?);
        }
        Ok(Self { dir: dir.to_path_buf(), names, policy, tensors, statistics: None })
    }

    /// Scales joints and actions by `statistics` of `observation.state` and `action` from now on, in the way in which
    /// the folder does.
    ///
    /// # Errors
    /// Statistics that are missing, of another width, or of no width; a folder that keeps its own in no processor's file.
    pub fn set_statistics(&mut self, statistics: Statistics) -> Result<()> {
        let own = self.policy.config();
        let anew = |feature: &str, old: &Normaliser| statistics.normaliser(feature, old.scaling, old.eps);
        let (state, action) = (anew("observation.state", &own.state)?, anew("action", &own.action)?);
        if self.names != Names::Ours {
            // Before anything is learnt: the copy is where they will be written.
            state_files(&self.dir)?;
        }
        self.policy.set_scaling(state, action)?;
        self.statistics = Some(statistics);
        Ok(())
    }

    /// What turns hidden states of the decoder into words, `[vocab, width]`: its output projection, or, where there
    /// is none, its table of words; out of `changed` where it is among them, else out of `constants`.
    ///
    /// # Errors
    /// Neither is there.
    pub fn speech(
        &self,
        constants: &HashMap<String, Tensor>,
        changed: &[(String, Tensor)],
    ) -> Result<Tensor> {
        let ends = |end: &str| {
            let own = |name: &&String| name.ends_with(end) && !name.contains("expert.lm_head");
            constants.keys().find(|name| own(name) && !name.contains("gemma_expert")).cloned()
        };
        let name = ends("lm_head.weight").or_else(|| ends("embed_tokens.weight"));
        let name = name.ok_or_else(|| Error::invalid("the policy has no table of words to answer with"))?;
        let found = changed.iter().find(|(own, _)| *own == name).map(|(_, tensor)| tensor);
        found
            .or_else(|| constants.get(&name))
            .cloned()
            .ok_or_else(|| Error::invalid(format!("no tensor '{name}'")))
    }

    /// What it is.
    pub fn config(&self) -> &VlaConfig {
        self.policy.config()
    }

    /// The policy as the folder has it: how an observation is read.
    pub fn policy(&self) -> &VlaPolicy {
        &self.policy
    }

    /// The tensors by the folder's names, as they are stored.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The network with `changed` (float32, by the folder's names) in the place of what the folder has. What they were worked
    /// out of learns through it.
    pub fn network(&self, constants: &HashMap<String, Tensor>, changed: &[(String, Tensor)]) -> Result<Vla> {
        let mut all = constants.clone();
        all.extend(changed.iter().cloned());
        let weights = Weights::from_tensors(all);
        match self.names {
            Names::Ours => Vla::new(&weights, self.config()),
            Names::SmolVla => Vla::new(&weights.pp("model"), self.config()),
            Names::Pi0(form) => Vla::with_form(&pi0::renamed(&weights)?, self.config(), form),
        }
    }

    /// Every tensor in float32, to be [`Self::network`]'s constants.
    pub fn constants(&self) -> Result<HashMap<String, Tensor>> {
        let one = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?));
        self.tensors.iter().map(one).collect()
    }

    /// Writes the folder with `changed` in the place of its own tensors, each in the form in which it was stored; whatever
    /// else the folder holds is copied. It opens as the first one did.
    ///
    /// # Errors
    /// A tensor that the folder does not have; the folder cannot be written.
    pub fn save(&self, out: &Path, changed: &[(String, Tensor)]) -> Result<()> {
        copy_all(&self.dir, out)?;
        if let Some(statistics) = &self.statistics {
            self.save_statistics(statistics, out)?;
        }
        let mut all = self.tensors.clone();
        for (name, tensor) in changed {
            let Some(own) = all.get_mut(name) else {
                return Err(Error::invalid(format!("'{name}' is no tensor of {}", self.dir.display())));
            };
            *own = tensor.to_dtype(own.dtype())?;
        }
        // Whole or not at all.
        let (file, part) = (out.join("model.safetensors"), out.join("model.safetensors.part"));
        candle_core::safetensors::save(&all.into_iter().collect::<HashMap<_, _>>(), &part)?;
        std::fs::rename(&part, &file).map_err(|source| Error::Io { path: file, source })
    }
}

impl VlaParts {
    /// Puts other statistics into a folder that was copied.
    fn save_statistics(&self, statistics: &Statistics, out: &Path) -> Result<()> {
        if self.names == Names::Ours {
            let path = out.join("config.json");
            let text =
                serde_json::to_vec_pretty(self.config()).map_err(|e| Error::parse(path.display(), e))?;
            return std::fs::write(&path, text).map_err(|source| Error::Io { path, source });
        }
        state_files(out)?.iter().try_for_each(|path| statistics.put_into(path))
    }
}

/// Where the processors of a LeRobot folder keep their numbers.
fn state_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in ["policy_preprocessor.json", "policy_postprocessor.json"] {
        for file in processor_steps(&dir.join(name))?.into_iter().filter_map(|step| step.state_file) {
            if Path::new(&file).components().count() != 1 {
                return Err(Error::invalid(format!("{name}: state_file '{file}' is not a plain file name")));
            }
            found.push(dir.join(file));
        }
    }
    Ok(found)
}

/// `model.safetensors` or its shards.
pub(crate) fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// What a folder holds, and whether it is a folder itself, sorted.
pub(crate) fn files(dir: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let entries: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(dir).map_err(io)?.map(|entry| Ok(entry?.path())).collect();
    let mut files: Vec<_> =
        entries.map_err(io)?.into_iter().map(|path| (path.clone(), path.is_dir())).collect();
    files.sort();
    Ok(files)
}

/// Copies a folder, but for its weights.
pub(crate) fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for (path, folder) in files(from)? {
        let Some(name) = path.file_name() else { continue };
        if folder {
            copy_all(&path, &to.join(name))?;
        } else if !is_weights(&path) && !name.to_string_lossy().ends_with(".safetensors.index.json") {
            std::fs::copy(&path, to.join(name)).map_err(io(&path))?;
        }
    }
    Ok(())
}
