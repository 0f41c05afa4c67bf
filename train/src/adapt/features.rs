//! What a frozen encoder sees of many pictures, worked out once and kept on disk in 16 bits.

use super::{Parts, PictureSet};
use crate::error::{Error, Result, at};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::path::Path;
use vela_nn::threads;

/// By picture, what the projector reads.
#[derive(Clone, Debug)]
pub struct Features {
    /// `[pictures, patches, width]` in 16 bits.
    all: Tensor,
}

impl Features {
    /// Those of the file at `path` if it has them, else worked out (`seen` hears of each picture) and written there.
    ///
    /// # Errors
    /// A picture that cannot be read; a file of other pictures.
    pub fn of(parts: &Parts, set: &PictureSet, path: &Path, seen: &(dyn Fn() + Sync)) -> Result<Self> {
        let count = set.pictures.len();
        if path.exists() {
            let all = candle_core::safetensors::load(path, &Device::Cpu)?.remove("features");
            return match all {
                Some(all) if all.rank() == 3 && all.dim(0)? == count => Ok(Self { all }),
                _ => Err(Error::Parse {
                    what: path.display().to_string(),
                    why: format!(
                        "expected the features of {count} pictures; delete it to have them made anew"
                    ),
                }),
            };
        }
        let one = |picture: &super::PictureQuestions| -> Result<Tensor> {
            let features = threads::with_threads(1, || parts.look(&picture.path))?;
            seen();
            Ok(features.to_dtype(DType::F16)?)
        };
        let work = || set.pictures.par_iter().map(one).collect::<Result<Vec<_>>>();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads::current()).build();
        let each = match pool {
            Ok(pool) => pool.install(work)?,
            Err(e) => return Err(Error::Parse { what: "threads".into(), why: e.to_string() }),
        };
        let all = Tensor::stack(&each, 0)?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
        }
        vela_nn::save(path, &[("features".to_owned(), all.clone())])?;
        Ok(Self { all })
    }

    /// How many pictures.
    pub fn count(&self) -> usize {
        self.all.dims().first().copied().unwrap_or(0)
    }

    /// Of one picture, `[1, patches, width]` in 32 bits.
    pub fn get(&self, picture: usize) -> Result<Tensor> {
        Ok(self.all.narrow(0, picture, 1)?.to_dtype(DType::F32)?.contiguous()?)
    }
}
