//! A checkpoint against a reference run.

use crate::trace::trace;
use candle_core::Device;
use std::path::Path;
use vela_nn::parity::{Verdict, judge};
use vela_nn::{Error, Result};

/// Runs the checkpoint in `dir` (or a GGUF file) on a reference run: a safetensors file with `in.*` and `out.*`, or a folder that
/// holds it as `golden.safetensors`.
///
/// # Errors
/// The checkpoint or the reference does not load, or is of a kind that we do not know.
pub fn verify(dir: &Path, golden: &Path) -> Result<Verdict> {
    let path = if golden.is_dir() { golden.join("golden.safetensors") } else { golden.to_path_buf() };
    let golden =
        candle_core::safetensors::load(&path, &Device::Cpu).map_err(|e| Error::parse(path.display(), e))?;
    match vela_llm::gguf::find(dir) {
        Some(file) => judge(&golden, &vela_llm::gguf::trace(&file, &golden)?),
        None => judge(&golden, &trace(dir, &golden)?),
    }
}
