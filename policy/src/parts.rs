//! A VLA folder taken apart, to be put together again around other numbers: what fine-tuning needs.

use crate::folder::VlaPolicy;
use crate::normalise::{Normaliser, Statistics, processor_steps};
use crate::pi0::{self, Pi0};
use crate::storage::{Storage, is_quantised};
use crate::vla::{Form, StatePlace, Vla, VlaConfig};
use crate::{SmolVla, TimePlace};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use vela_embodiment::Embodiment;
use vela_llm::trace::config_json;
use vela_nn::{Error, Linear, LowRank, Result, Weights};

/// Whose names the tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Ours,
    SmolVla,
    Pi0(Form),
}

/// A folder's numbers, and the policy that they make.
pub struct VlaParts {
    dir: PathBuf,
    names: Names,
    policy: VlaPolicy,
    /// Under the folder's names.
    constants: Weights,
    /// In place of the folder's own.
    statistics: Option<Statistics>,
}

impl VlaParts {
    /// Opens a folder of `vela_vla`, `smolvla`, `pi0` or `pi05` for a robot. Its numbers are held once: in float32, or for
    /// [`Storage::Bf16`] the matrices in bfloat16, but for those that touch numbers of the world.
    ///
    /// # Errors
    /// Another kind; another storage; whatever is wrong with the folder; a robot that it was not made for.
    pub fn open(dir: &Path, robot: &Embodiment, storage: Storage) -> Result<Self> {
        if !matches!(storage, Storage::Plain | Storage::Float32 | Storage::Bf16) {
            let name = storage.name();
            return Err(Error::invalid(format!("what learns is held in f32 or bf16, not in {name}")));
        }
        if is_quantised(dir) {
            return Err(Error::parse(
                dir.display(),
                "its weights are in fewer bits: they cannot be taken apart",
            ));
        }
        let config = config_json(dir)?;
        let kind = config.get("type").and_then(serde_json::Value::as_str).unwrap_or("absent");
        let names = match kind {
            "vela_vla" => Names::Ours,
            "smolvla" => Names::SmolVla,
            "pi0" => Names::Pi0(Form { state: StatePlace::Suffix, time: TimePlace::Beside }),
            "pi05" => Names::Pi0(Form { state: StatePlace::Words, time: TimePlace::Norms }),
            other => {
                return Err(Error::invalid(format!(
                    "{}: '{other}' cannot be taken apart; known: vela_vla, smolvla, pi0, pi05",
                    dir.display()
                )));
            }
        };
        let constants = Weights::load_dir(dir)?.held(|name| storage.is_half(name))?;
        // Layers of their own, on the same numbers.
        let stored = constants.replaced(HashMap::new())?;
        let policy = match names {
            Names::Ours => {
                let policy = VlaPolicy::load_with(dir, || Ok(stored))?;
                let own = &vela_embodiment::Policy::spec(&policy).embodiment;
                own.require_same(robot).map_err(Error::invalid)?;
                policy
            }
            Names::SmolVla => SmolVla::load_with(dir, stored)?.policy(robot)?,
            Names::Pi0(_) => Pi0::load_with(dir, stored)?.policy(robot)?,
        };
        Ok(Self { dir: dir.to_path_buf(), names, policy, constants, statistics: None })
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
    /// is none, its table of words; of [`Self::with`]'s weights.
    ///
    /// # Errors
    /// Neither is there.
    pub fn speech(&self, weights: &Weights) -> Result<Linear> {
        let names = weights.names();
        let ends = |end: &str| {
            let own = |name: &&String| name.ends_with(end) && !name.contains("expert.lm_head");
            names.iter().find(|name| own(name) && !name.contains("gemma_expert"))
        };
        let name = ends("lm_head.weight").or_else(|| ends("embed_tokens.weight"));
        let found = name.and_then(|name| Some((name.strip_suffix(".weight")?, weights.shape_of(name)?)));
        match found {
            Some((module, shape)) if shape.len() == 2 => {
                Linear::new(&weights.pp(module), shape[1], shape[0], false)
            }
            _ => Err(Error::invalid("the policy has no table of words to answer with")),
        }
    }

    /// What it is.
    pub fn config(&self) -> &VlaConfig {
        self.policy.config()
    }

    /// The policy as the folder has it: how an observation is read.
    pub fn policy(&self) -> &VlaPolicy {
        &self.policy
    }

    /// The folder's weights as they are stored, under its names.
    ///
    /// # Errors
    /// They are not there any more.
    pub fn stored(&self) -> Result<Weights> {
        Weights::load_dir(&self.dir)
    }

    /// The numbers under the folder's names, with `changed` (float32) in the place of some and what learns beside others: to be
    /// given to [`Self::network`] and [`Self::speech`], which then learn through them.
    ///
    /// # Errors
    /// A name that the folder does not have.
    pub fn with(
        &self,
        changed: HashMap<String, Tensor>,
        beside: HashMap<String, LowRank>,
    ) -> Result<Weights> {
        self.constants.replaced(changed)?.adapted(beside)
    }

    /// The network of [`Self::with`]'s weights.
    ///
    /// # Errors
    /// They are another folder's.
    pub fn network(&self, weights: &Weights) -> Result<Vla> {
        match self.names {
            Names::Ours => Vla::new(weights, self.config()),
            Names::SmolVla => Vla::new(&weights.pp("model"), self.config()),
            Names::Pi0(form) => Vla::with_form(&pi0::renamed(weights)?, self.config(), form),
        }
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
        let mut all = HashMap::new();
        for (path, _) in files(&self.dir)?.into_iter().filter(|(path, _)| is_weights(path)) {
            all.extend(candle_core::safetensors::load(path, &Device::Cpu)?);
        }
        for (name, tensor) in changed {
            let Some(own) = all.get_mut(name) else {
                return Err(Error::invalid(format!("'{name}' is no tensor of {}", self.dir.display())));
            };
            *own = tensor.to_dtype(own.dtype())?;
        }
        // Whole or not at all.
        let (file, part) = (out.join("model.safetensors"), out.join("model.safetensors.part"));
        candle_core::safetensors::save(&all, &part)?;
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
