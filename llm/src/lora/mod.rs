//! Low-rank adapters (LoRA; Hu et al., arXiv:2106.09685) as PEFT saves them, beside a decoder's matrices or merged
//! into them.
//!
//! [`Lora::load`] reads a folder; [`Decoder::with_adapter`](crate::Decoder::with_adapter) puts it beside a decoder,
//! whose own weights may be quantised; the engine takes one per request. [`Lora::merge`] adds it to float weights
//! instead. [`Lora::of`] makes one to be trained.

mod config;
mod learn;
mod merge;
mod rows;

pub use merge::merged_weights;
pub use rows::LoraRows;

use crate::DecoderConfig;
use crate::decoder::{Beside, Site};
use crate::load::{body, is_surplus};
use candle_core::{DType, Tensor};
use config::AdapterConfig;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vela_nn::rope::RopeStyle;
use vela_nn::{Error, Linear, Result, Weights, hash_of};

/// What PEFT puts before a module's name.
const ROOT: &str = "base_model.model";

/// An adapter of one decoder.
#[derive(Clone, Debug)]
pub struct Lora {
    config: DecoderConfig,
    hash: u128,
    /// By layer and by name relative to it.
    layers: Vec<BTreeMap<String, LowRank>>,
}

/// What one matrix is adapted by: `x · aᵀ · bᵀ`.
#[derive(Clone, Debug)]
struct LowRank {
    /// `[rank, input]`.
    a: Linear,
    /// `[output, rank]`, the scale in it.
    b: Linear,
}

impl LowRank {
    /// `x [.., input]` to `[.., output]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.b.forward(&self.a.forward(x)?)
    }

    /// What it adds to the weight, `[output, input]`.
    fn product(&self) -> Result<Tensor> {
        match (self.b.weight(), self.a.weight()) {
            (Some(b), Some(a)) => Ok(b.matmul(a)?),
            _ => Err(Error::invalid("an adapter's matrices are in floating point")),
        }
    }
}

impl Lora {
    /// Reads a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) for a decoder of `config`, also of
    /// one whose weights come from a GGUF file.
    ///
    /// # Errors
    /// A kind of adapter that is not supported, by name; every missing, surplus and mis-shaped tensor, in one error.
    pub fn load(dir: &Path, config: &DecoderConfig) -> Result<Self> {
        let (stated, weights, hash) = read(dir)?;
        let path = dir.join("adapter_config.json");
        let adapter = AdapterConfig::read(&stated).map_err(|reason| Error::parse(path.display(), reason))?;
        let mut layers = vec![BTreeMap::new(); config.layers];
        let scope = scope(&weights, config);
        for module in config.modules() {
            let name = join(&scope, &format!("{}.{}", module.layer, module.name));
            let part = adapter.of(&name, module.layer).map_err(|e| Error::parse(path.display(), e))?;
            let Some((rank, scale)) = part else { continue };
            let pair = weights.pp(ROOT).pp(&name);
            let a = pair.get((rank, module.input), "lora_A.weight")?;
            let b = (pair.get((module.output, rank), "lora_B.weight")? * scale)?;
            let b = if is_turned(config, &module.name) { turned(&b, config.head_dim)? } else { b };
            let low = LowRank { a: Linear::from_tensors(a, None)?, b: Linear::from_tensors(b, None)? };
            if let Some(layer) = layers.get_mut(module.layer) {
                layer.insert(module.name, low);
            }
        }
        weights.finish()?;
        if layers.iter().all(BTreeMap::is_empty) {
            let reason = "target_modules names no matrix of this model's layers";
            return Err(Error::parse(path.display(), reason));
        }
        Ok(Self { config: config.clone(), hash, layers })
    }

    /// A hash of its content: equal hash, equal adapter.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Matrices that it adapts.
    pub fn len(&self) -> usize {
        self.layers.iter().map(BTreeMap::len).sum()
    }

    /// Whether it adapts none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a decoder that it was not loaded for.
    pub(crate) fn check(&self, config: &DecoderConfig) -> Result<()> {
        if &self.config == config {
            return Ok(());
        }
        Err(Error::invalid("this adapter was loaded for a decoder of another config"))
    }

    /// A checkpoint's constants with this adapter added, in float32. They must be in floating point.
    ///
    /// # Errors
    /// A matrix that the adapter is for is absent or has another shape; tensors that are no numbers in floating point.
    pub fn merge(&self, weights: &Weights) -> Result<Weights> {
        let names = self.config.names.table();
        let body = body(weights, &names);
        let mut tensors = HashMap::new();
        for name in weights.names().into_iter().filter(|name| !is_surplus(&self.config, &names, name)) {
            let shape = weights.shape_of(&name).unwrap_or_default();
            tensors.insert(name.clone(), weights.get(shape, &name)?);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, low) in layer {
                let name = join(body.prefix(), &format!("{}.{i}.{name}.weight", names.layers));
                let added = if names.transposed { low.product()?.t()? } else { low.product()? };
                match tensors.get_mut(&name) {
                    Some(weight) if weight.dims() == added.dims() => *weight = (&*weight + added)?,
                    Some(weight) => {
                        return Err(Error::shape(name, format!("{:?}", added.dims()), weight.dims()));
                    }
                    None => return Err(Error::parse(name, "the adapter is for it, the checkpoint has none")),
                }
            }
        }
        Ok(Weights::from_tensors(tensors))
    }
}

/// The decoder of a model folder with an adapter's folder merged into its weights, in float32.
///
/// # Errors
/// What the readers of the two refuse.
pub fn merged(model: &Path, adapter: &Path) -> Result<crate::Decoder> {
    let config = DecoderConfig::from_hf(&crate::trace::config_json(model)?)?;
    let lora = Lora::load(adapter, &config)?;
    crate::load::from_weights(&lora.merge(&Weights::load_dir(model)?)?.packed()?, &config)
}

/// The statement and the tensors of a PEFT folder, and a hash of both.
fn read(dir: &Path) -> Result<(Vec<u8>, Weights, u128)> {
    let (path, tensors) = (dir.join("adapter_config.json"), dir.join("adapter_model.safetensors"));
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source });
    let stated = read(&path)?;
    let hash = hash_of((hash_of(&stated) + &hash_of(&read(&tensors)?)).as_bytes());
    let hash = u128::from_str_radix(hash.get(..32).unwrap_or_default(), 16).unwrap_or_default();
    Ok((stated, Weights::load(&[tensors])?, hash))
}

impl Beside for Lora {
    fn at(&self, site: Site, x: &Tensor, y: Tensor) -> Result<Tensor> {
        match self.layers.get(site.layer).and_then(|layer| layer.get(site.name)) {
            Some(low) => Ok((y + low.forward(x)?)?),
            None => Ok(y),
        }
    }
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// Where the layers are: adapters of the bare model drop the outermost level of its name, those of a model that sees have
/// the decoder as a part of it.
fn scope(weights: &Weights, config: &DecoderConfig) -> String {
    let names = config.names.table();
    let inner = names.body.split_once('.').map_or("", |(_, inner)| inner);
    let [whole, bare] = [names.body, inner].map(|body| join(body, names.layers));
    let all = weights.names();
    let has = |scope: &str| all.iter().any(|name| name.starts_with(&format!("{ROOT}.{scope}.")));
    if has(&whole) || has(&bare) {
        return if has(&whole) { whole } else { bare };
    }
    let part = all.iter().find_map(|name| {
        let (before, _) =
            name.strip_prefix(ROOT)?.strip_prefix('.')?.split_once(&format!(".{}.", names.layers))?;
        before.split('.').any(|level| ["text_model", "language_model"].contains(&level)).then_some(before)
    });
    part.map_or(whole, |before| join(before, names.layers))
}

/// Whether a matrix has its rows in another order than the folder that the adapter was trained on: the converter to
/// GGUF lets neighbours turn together where Hugging Face turns halves of a head.
fn is_turned(config: &DecoderConfig, name: &str) -> bool {
    let names = config.names.table();
    config.rope.style == RopeStyle::Interleaved && (name == names.q || name == names.k)
}

/// Rows `[heads, 2, d / 2]` to `[heads, d / 2, 2]`.
fn turned(b: &Tensor, head_dim: usize) -> Result<Tensor> {
    let (output, rank) = b.dims2()?;
    let rows = b.to_dtype(DType::F32)?.reshape((output / head_dim, 2, head_dim / 2, rank))?;
    Ok(rows.transpose(1, 2)?.contiguous()?.reshape((output, rank))?)
}
