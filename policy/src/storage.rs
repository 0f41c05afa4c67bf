//! How the matrices of a loaded network are kept: in float32, or in fewer bits where that does little harm.

use crate::lerobot::is_bookkeeping;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vela_nn::quant::{Format, Keep, Precision};
use vela_nn::{Error, Gguf, Result, Weights};

/// The weights of a quantised folder: a GGUF container of tensors under the folder's own names.
pub const FILE: &str = "quantised.gguf";
/// What `general.architecture` says there, and the version of the layout.
pub(crate) const ARCHITECTURE: &str = "vela-quantised";
pub(crate) const LAYOUT: u64 = 1;

/// How matrices are kept. Norms, biases and convolutions are float32 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// Float32 as Candle keeps it, beside a packed copy from the first use on: for comparisons and training.
    #[default]
    Plain,
    /// Float32, packed once: half the memory of [`Self::Plain`].
    #[serde(rename = "f32")]
    Float32,
    /// The upper 16 bits, multiplied in float32.
    #[serde(rename = "bf16")]
    Bf16,
    /// Eight bits and a factor per 32 numbers, against activations in the same form. Tables of words are kept in bf16.
    #[serde(rename = "int8")]
    Int8,
}

/// What stands between a network and the world of numbers: small, and every error in it is one of the action. Tables of
/// positions are read whole.
const EXACT: [&str; 7] = [
    "state_proj.",
    "action_in_proj.",
    "action_out_proj.",
    "time_mlp_",
    "action_head.",
    "_input_proj.",
    "pos_embed.",
];

impl Storage {
    /// By the names that the command line has for them: `f32`, `bf16`, `int8`.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::Float32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            other => Err(Error::invalid(format!("dtype: expected f32, bf16 or int8, got '{other}'"))),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain | Self::Float32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    fn format(self, name: &str) -> Option<Format> {
        let exact = EXACT.iter().any(|part| name.contains(part));
        match self {
            Self::Plain => None,
            Self::Float32 => Some(Format::F32),
            _ if exact => Some(Format::F32),
            Self::Int8 if !name.contains("embed_tokens.") => Some(Format::Q8_0),
            Self::Int8 | Self::Bf16 => Some(Format::Bf16),
        }
    }

    /// Whether a matrix of this name is kept in 16 bits.
    pub(crate) fn is_half(self, name: &str) -> bool {
        name.ends_with(".weight") && self.format(name) == Some(Format::Bf16)
    }

    /// What becomes of a stored tensor in a folder of fewer bits; nothing of norms, biases and what touches numbers
    /// of the world. Tables, convolutions and rows that are no whole blocks of eight bits are kept in bf16.
    pub(crate) fn of_tensor(self, name: &str, shape: &[usize]) -> Option<Format> {
        let [_, .., columns] = *shape else { return None };
        if is_bookkeeping(name) {
            return None;
        }
        let whole = shape.len() == 2 && columns.is_multiple_of(Format::Q8_0.block_len());
        match self.format(name)? {
            Format::F32 => None,
            Format::Q8_0 if !whole || name.contains("embed") => Some(Format::Bf16),
            format => Some(format),
        }
    }

    /// The weights of a folder, in fewer bits already or not, kept so by the layers that are made of them.
    ///
    /// # Errors
    /// Those of [`Self::stored`] and [`Self::of`].
    pub fn load(self, dir: &Path) -> Result<Weights> {
        self.of(self.stored(dir)?)
    }

    /// The weights of a folder under its own names, before [`Self::of`]: they may be renamed in between.
    ///
    /// # Errors
    /// A file is missing or torn; fewer bits asked of what is in fewer bits.
    pub fn stored(self, dir: &Path) -> Result<Weights> {
        if !is_quantised(dir) {
            return Weights::load_dir(dir);
        }
        let path = dir.join(FILE);
        if matches!(self, Self::Bf16 | Self::Int8) {
            let why =
                format!("its weights are in fewer bits already, they cannot be kept as {}", self.name());
            return Err(Error::parse(path.display(), why));
        }
        let file = Gguf::open(&path)?;
        let layout = file.value("vela.layout")?.as_count();
        if file.text("general.architecture")? != ARCHITECTURE || layout != Some(LAYOUT) {
            let why = format!("expected {ARCHITECTURE} of layout {LAYOUT}, got layout {layout:?}");
            return Err(Error::parse(path.display(), why));
        }
        Ok(Weights::from_gguf(&file, Precision::Fast))
    }

    /// The same weights, kept so by the layers that are made of them; what sees, in eight bits, in their reduced range
    /// where that is faster.
    ///
    /// # Errors
    /// A layer has been made of them already.
    pub fn of(self, weights: Weights) -> Result<Weights> {
        self.kept(weights, |name| name.contains("vision"))
    }

    /// As [`Self::of`] for a folder that is nothing but a vision tower.
    ///
    /// # Errors
    /// As there.
    pub fn of_tower(self, weights: Weights) -> Result<Weights> {
        self.kept(weights, |_| true)
    }

    fn kept(self, weights: Weights, sees: impl Fn(&str) -> bool + Send + Sync + 'static) -> Result<Weights> {
        if self == Self::Plain {
            return Ok(weights);
        }
        let reduced = Keep::reduced_is_faster();
        weights.kept(move |name| {
            self.format(name).map(|format| match format {
                Format::Q8_0 if reduced && sees(name) => Keep::Reduced,
                format => Keep::As(format),
            })
        })
    }
}

/// Whether a folder holds weights in fewer bits, as [`crate::quantise`] writes them.
pub fn is_quantised(dir: &Path) -> bool {
    dir.join(FILE).is_file()
}

/// The form of a quantised folder's weights, `int8` or `bf16`; nothing of other folders.
///
/// # Errors
/// A torn file.
pub fn form_of(dir: &Path) -> Result<Option<String>> {
    match is_quantised(dir) {
        true => Ok(Some(Gguf::open(&dir.join(FILE))?.text("vela.form")?.to_owned())),
        false => Ok(None),
    }
}

/// The file that tells a folder's weights from others: the weights, or the index of their files.
pub fn weights_file(dir: &Path) -> PathBuf {
    let names = [FILE, "model.safetensors", "model.safetensors.index.json"];
    let found = names.map(|name| dir.join(name)).into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| dir.join("model.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_numbers_of_the_world_stays_exact() -> Result<()> {
        for storage in [Storage::Bf16, Storage::Int8] {
            assert_eq!(storage.format("model.state_proj.weight"), Some(Format::F32));
            assert_eq!(storage.format("model.action_time_mlp_in.weight"), Some(Format::F32));
            assert_eq!(Storage::from_name(storage.name())?, storage);
        }
        let layer = "vlm_with_expert.lm_expert.layers.0.mlp.up_proj.weight";
        assert_eq!(Storage::Int8.format(layer), Some(Format::Q8_0));
        assert_eq!(Storage::Int8.format("text_model.embed_tokens.weight"), Some(Format::Bf16));
        assert_eq!(Storage::Plain.format(layer), None);
        assert!(Storage::from_name("int4").is_err_and(|e| e.to_string().contains("bf16 or int8")));
        Ok(())
    }
}
