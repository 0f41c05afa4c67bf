//! What a checkpoint holds: tensors as they lie in its files, read when a layer asks for them.

use crate::kernels::{mapped::MappedFile, quantise};
use crate::quant::{Blocks, Format, Keep, Precision};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tensor as it is stored: bytes of some file, converted to float32 only when a layer asks for it.
#[derive(Clone)]
pub(crate) enum Stored {
    Ready(Tensor),
    Raw { file: Arc<FileBytes>, dtype: Dtype, shape: Vec<usize>, start: usize, end: usize },
    Blocks(Blocks),
}

pub(crate) enum FileBytes {
    Mapped(Arc<MappedFile>),
    Owned(Vec<u8>),
}

impl FileBytes {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file.bytes(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Stored {
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Ready(tensor) => tensor.dims(),
            Self::Raw { shape, .. } => shape,
            Self::Blocks(blocks) => blocks.shape(),
        }
    }

    /// As blocks, if it is to be kept as it is stored: what is quantised always, numbers in floating point to be packed.
    pub(crate) fn blocks(&self, precision: Precision) -> Option<Blocks> {
        match self {
            Self::Blocks(blocks) if precision == Precision::Fast || blocks.format() != Format::F32 => {
                Some(blocks.clone())
            }
            Self::Raw { file, dtype, shape, start, end } if precision == Precision::Fast => {
                let format = match dtype {
                    Dtype::F32 => Format::F32,
                    Dtype::F16 => Format::F16,
                    Dtype::BF16 => Format::Bf16,
                    _ => return None,
                };
                match &**file {
                    FileBytes::Mapped(file) => {
                        Some(Blocks::mapped(format, shape.clone(), file.clone(), *start..*end))
                    }
                    FileBytes::Owned(bytes) => {
                        Blocks::new(format, shape, bytes.get(*start..*end)?.to_vec()).ok()
                    }
                }
            }
            _ => None,
        }
    }

    /// A matrix in another format.
    pub(crate) fn kept(&self, name: &str, keep: Keep, shape: [usize; 2]) -> Result<Blocks> {
        match self.blocks(Precision::Fast) {
            Some(blocks) if blocks.format() == keep.format() => Ok(blocks),
            Some(blocks) => {
                let row = |i: usize, out: &mut [f32]| blocks.format().dequantise(blocks.row(i, 1), out);
                let made = quantise::made(keep, shape, row);
                blocks.forget();
                made
            }
            None => {
                let rows = self.tensor(name)?.to_vec2::<f32>()?;
                quantise::made(keep, shape, |i, out| out.copy_from_slice(&rows[i]))
            }
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        let (file, dtype, shape, range) = match self {
            Self::Ready(tensor) => return Ok(tensor.to_dtype(candle_core::DType::F32)?.contiguous()?),
            Self::Blocks(blocks) => return blocks.tensor(),
            Self::Raw { file, dtype, shape, start, end } => (file, dtype, shape, *start..*end),
        };
        let bytes = file
            .bytes()
            .get(range.clone())
            .ok_or_else(|| Error::parse(name, "its bytes lie outside the file"))?;
        let pairs = || bytes.as_chunks::<2>().0.iter().copied();
        let values: Vec<f32> = match dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(Error::parse(name, format!("expected F32, F16 or BF16, got {other:?}"))),
        };
        if let FileBytes::Mapped(file) = &**file {
            file.forget(range);
        }
        Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?)
    }
}

pub(crate) fn read_files(paths: &[PathBuf]) -> Result<HashMap<String, Stored>> {
    let mut stored = HashMap::new();
    for path in paths {
        let file = MappedFile::open(path).map_err(|e| Error::io(path, e))?;
        index_file(&path.display().to_string(), Arc::new(FileBytes::Mapped(Arc::new(file))), &mut stored)?;
    }
    Ok(stored)
}

pub(crate) fn index_file(
    what: &str,
    file: Arc<FileBytes>,
    stored: &mut HashMap<String, Stored>,
) -> Result<()> {
    let bytes = file.bytes();
    let views = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::parse(what, format!("not a safetensors file: {e:?}")))?;
    let base = bytes.as_ptr() as usize;
    let mut found = Vec::new();
    for (name, view) in views.iter() {
        let start = view.data().as_ptr() as usize - base;
        let end = start + view.data().len();
        found.push((name.to_string(), view.dtype(), view.shape().to_vec(), start, end));
    }
    for (name, dtype, shape, start, end) in found {
        let raw = Stored::Raw { file: file.clone(), dtype, shape, start, end };
        if stored.insert(name.clone(), raw).is_some() {
            return Err(Error::parse(what, format!("the tensor {name} is in two files")));
        }
    }
    Ok(())
}

pub(crate) fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        let reason =
            "expected model.safetensors or model.safetensors.index.json in this folder, found neither";
        return Err(Error::parse(dir.display(), reason));
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(&index).map_err(|e| Error::io(&index, e))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::parse(index.display(), e))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    // A shard is a plain file name: an index must not reach outside its folder.
    if let Some(bad) = shards.iter().find(|name| Path::new(name).components().count() != 1) {
        return Err(Error::parse(index.display(), format!("shard {bad:?} is not a plain file name")));
    }
    Ok(shards.into_iter().map(|name| dir.join(name)).collect())
}
