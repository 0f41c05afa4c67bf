//! A policy folder with its weights in fewer bits: every group of them is tried alone, those that move the actions
//! most for what they would save stay as they are, and what comes out is measured before it is kept.
//!
//! What is written is a folder with the same files but [`FILE`] in place of the safetensors, as for text models
//! (`docs/decisions/0010-quantised-folders.md`). Norms, biases and what stands between the network and numbers of the
//! world stay as they are stored, whatever is measured.

use crate::parts::{copy_all, files, is_weights};
use crate::quantised::ActionError;
use crate::storage::{ARCHITECTURE, FILE, LAYOUT, Storage, is_quantised};
use candle_core::{DType, Device, Tensor, safetensors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use vela_llm::quantise::Partial;
use vela_nn::gguf::{self, Value};
use vela_nn::quant::{Blocks, Format};
use vela_nn::{Error, Result};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// [`Storage::Int8`] or [`Storage::Bf16`].
    pub form: Storage,
    /// By how much of their spread the actions may move (root mean square).
    pub max_error: f64,
    /// Share of the matrices' numbers that may stay as they are, 0 to 1.
    pub most_kept: f64,
}

/// Matrices that are kept alike: a part of a stack of layers, or what stands outside of stacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The beginning of the names that they share, with the layers' numbers.
    pub name: String,
    /// Numbers in them.
    pub numbers: usize,
    /// How far the actions move if nothing but these is in fewer bits, of their spread (root mean square).
    pub alone: f64,
    /// Whether they stay as they are stored.
    pub kept: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `int8` or `bf16`.
    pub form: &'static str,
    /// Bytes of the weights before and after.
    pub bytes: [u64; 2],
    /// The groups, the most harmful for its size first.
    pub groups: Vec<Group>,
    /// How far the actions move with every group in fewer bits.
    pub plain: ActionError,
    /// How far those of the folder that was written do.
    pub error: ActionError,
}

/// Actions of the policy in a folder on observations that stay the same from call to call, of any shape.
pub type Act<'a> = dyn FnMut(&Path) -> Result<Tensor> + 'a;

/// Hears what is being done, how much of it is done, and of how much.
pub type Progress<'a> = dyn FnMut(&str, usize, usize) + 'a;

/// Parts that a stack of layers is cut into: first and last layers are rarely as sensitive as those between.
const PARTS: usize = 4;

/// Writes the policy folder `dir` with its matrices in fewer bits into the new folder `out`. Nothing is left behind
/// when something goes wrong.
///
/// # Errors
/// A folder that is no policy in safetensors; actions that move by more than is allowed; `out` exists.
pub fn quantise(
    dir: &Path,
    out: &Path,
    settings: &Settings,
    act: &mut Act,
    progress: &mut Progress,
) -> Result<Report> {
    let Settings { form, max_error, most_kept } = settings;
    if !matches!(form, Storage::Int8 | Storage::Bf16) {
        return Err(Error::invalid(format!("dtype: expected bf16 or int8, got '{}'", form.name())));
    }
    if !(max_error.is_finite() && *max_error > 0.0 && (0.0..=1.0).contains(most_kept)) {
        return Err(Error::invalid(format!(
            "expected an error above 0 and a share from 0 to 1, got {max_error} and {most_kept}"
        )));
    }
    if out.exists() {
        return Err(Error::parse(out.display(), "expected a folder that does not exist yet"));
    }
    let above = out.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let (Ok(above), Ok(own)) = (above.canonicalize(), dir.canonicalize())
        && above.starts_with(own)
    {
        return Err(Error::parse(out.display(), "expected a folder outside of the policy's own"));
    }
    if is_quantised(dir) {
        return Err(Error::parse(dir.display(), "its weights are in fewer bits already"));
    }
    let tensors = tensors(dir)?;
    let mut groups = groups(&tensors, *form);
    let exact = act(dir)?;
    let partial = Partial::new(out)?;
    copy_all(dir, partial.path())?;
    let file = partial.path().join(FILE);
    // What is measured is what will be loaded: every trial is a folder.
    let mut error_of = |formats: &BTreeMap<String, Format>| -> Result<ActionError> {
        write(&file, &tensors, formats, *form)?;
        ActionError::between(&exact, &act(partial.path())?)
    };
    let count = groups.len();
    for (k, (group, formats)) in groups.iter_mut().enumerate() {
        progress("trying", k, count);
        group.alone = error_of(formats)?.rms;
    }
    let harm = |group: &Group| group.alone.powi(2) / group.numbers.max(1) as f64;
    groups.sort_by(|(a, _), (b, _)| harm(b).total_cmp(&harm(a)));
    progress("choosing", 0, 1);
    let plain = error_of(&together(&groups))?;
    let all: usize = groups.iter().map(|(group, _)| group.numbers).sum();
    let mut room = (most_kept * all as f64) as usize;
    // What the groups do alone adds up in squares, roughly; half of what is allowed leaves room for that.
    let mut left: f64 = groups.iter().map(|(group, _)| group.alone.powi(2)).sum();
    if plain.rms > *max_error {
        for (group, _) in &mut groups {
            if left > 0.5 * max_error.powi(2) && group.numbers <= room {
                group.kept = true;
                room -= group.numbers;
                left -= group.alone.powi(2);
            }
        }
    }
    progress("measuring", 0, 1);
    let error = error_of(&together(&groups))?;
    error.require(*max_error).map_err(|why| Error::invalid(format!("{why}: nothing was written")))?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
    let was = files(dir)?.iter().filter(|(path, _)| is_weights(path)).map(|(path, _)| size(path)).sum();
    let report = Report {
        form: form.name(),
        bytes: [was, size(&file)],
        groups: groups.into_iter().map(|(group, _)| group).collect(),
        plain,
        error,
    };
    let path = partial.path().join("quantised.json");
    let text = serde_json::to_string_pretty(&report).map_err(|e| Error::parse("the report", e))?;
    std::fs::write(&path, text).map_err(|source| Error::Io { path, source })?;
    std::fs::rename(partial.path(), out).map_err(|source| Error::Io { path: out.to_path_buf(), source })?;
    Ok(report)
}

/// A group, and what its tensors become.
type Member = (Group, BTreeMap<String, Format>);

/// The matrices that `form` changes, in groups.
fn groups(tensors: &BTreeMap<String, Tensor>, form: Storage) -> Vec<Member> {
    // Layers of each stack, by what stands before their number.
    let mut stacks: BTreeMap<String, usize> = BTreeMap::new();
    for (stack, number) in tensors.keys().filter_map(|name| numbered(name)) {
        let most = stacks.entry(stack).or_default();
        *most = (*most).max(number + 1);
    }
    let mut groups: BTreeMap<String, Member> = BTreeMap::new();
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
        let Some(format) = form.of_tensor(name, tensor.dims()) else { continue };
        let key = match numbered(name) {
            Some((stack, number)) => {
                let layers = stacks.get(&stack).copied().unwrap_or(1);
                let part = number * PARTS / layers.max(1);
                let ends = [part, part + 1].map(|part| (part * layers).div_ceil(PARTS));
                match ends[1] - ends[0] {
                    1 => format!("{stack}.{number}"),
                    _ => format!("{stack}.{}-{}", ends[0], ends[1] - 1),
                }
            }
            None => name.strip_suffix(".weight").unwrap_or(name).to_owned(),
        };
        let fresh = || {
            let group = Group { name: key.clone(), numbers: 0, alone: 0.0, kept: false };
            (group, BTreeMap::new())
        };
        let (group, formats) = groups.entry(key.clone()).or_insert_with(fresh);
        group.numbers += tensor.elem_count();
        formats.insert(name.clone(), format);
    }
    groups.into_values().collect()
}

/// What stands before the first number in a name, and the number.
fn numbered(name: &str) -> Option<(String, usize)> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|part| part.parse::<usize>().is_ok())?;
    Some((parts[..at].join("."), parts[at].parse().ok()?))
}

/// What the tensors become of all groups that do not stay.
fn together(groups: &[Member]) -> BTreeMap<String, Format> {
    groups.iter().filter(|(group, _)| !group.kept).flat_map(|(_, formats)| formats.clone()).collect()
}

/// The tensors of a folder's safetensors, by name.
fn tensors(dir: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for (path, _) in files(dir)?.into_iter().filter(|(path, _)| is_weights(path)) {
        all.extend(safetensors::load(path, &Device::Cpu)?);
    }
    match all.is_empty() {
        true => Err(Error::parse(dir.display(), "expected a policy folder with safetensors")),
        false => Ok(all),
    }
}

/// Every tensor that is in floating point, in its format or as it is stored.
fn write(
    file: &Path,
    tensors: &BTreeMap<String, Tensor>,
    formats: &BTreeMap<String, Format>,
    form: Storage,
) -> Result<()> {
    let mut all = BTreeMap::new();
    for (name, tensor) in tensors.iter().filter(|(_, t)| t.dtype().is_float() && t.rank() > 0) {
        let own = match tensor.dtype() {
            DType::F16 => Format::F16,
            DType::BF16 => Format::Bf16,
            _ => Format::F32,
        };
        all.insert(name.clone(), blocks(tensor, formats.get(name).copied().unwrap_or(own))?);
    }
    let metadata = BTreeMap::from([
        ("general.architecture".to_owned(), Value::Text(ARCHITECTURE.to_owned())),
        ("vela.layout".to_owned(), Value::Unsigned(LAYOUT)),
        ("vela.form".to_owned(), Value::Text(form.name().to_owned())),
    ]);
    gguf::write(file, &metadata, &all)
}

/// A tensor's numbers as `format` has them; eight bits as the levels of 32 numbers between -127 and 127 of their largest.
fn blocks(tensor: &Tensor, format: Format) -> Result<Blocks> {
    let flat = tensor.flatten_all()?;
    let halves = |dtype: DType| -> Result<Vec<u8>> {
        let halves = flat.to_dtype(dtype)?;
        Ok(match dtype {
            DType::BF16 => halves.to_vec1::<half::bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => halves.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
    };
    let numbers = || -> Result<Vec<f32>> { Ok(flat.to_dtype(DType::F32)?.to_vec1::<f32>()?) };
    let bytes = match format {
        Format::F16 => halves(DType::F16)?,
        Format::Bf16 => halves(DType::BF16)?,
        Format::Q8_0 => {
            let (numbers, mut bytes) = (numbers()?, Vec::new());
            for block in numbers.as_chunks::<32>().0 {
                let largest = block.iter().fold(0f32, |most, x| most.max(x.abs()));
                let factor = half::f16::from_f32(largest / 127.0);
                let inverse = if factor.to_f32() > 0.0 { 1.0 / factor.to_f32() } else { 0.0 };
                bytes.extend(factor.to_le_bytes());
                let level = |x: &f32| ((x * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
                bytes.extend(block.iter().map(level));
            }
            bytes
        }
        _ => numbers()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Blocks::new(format, tensor.dims(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_cut_in_parts_and_what_touches_the_world_is_in_no_group() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let mut tensors = BTreeMap::new();
        for layer in 0..8 {
            tensors.insert(format!("m.layers.{layer}.mlp.up_proj.weight"), zeros(&[4, 32])?);
            tensors.insert(format!("m.layers.{layer}.norm.weight"), zeros(&[32])?);
        }
        tensors.insert("m.embed_tokens.weight".into(), zeros(&[9, 32])?);
        tensors.insert("action_out_proj.weight".into(), zeros(&[6, 32])?);
        let found = groups(&tensors, Storage::Int8);
        let names: Vec<&str> = found.iter().map(|(group, _)| group.name.as_str()).collect();
        let parts = ["m.layers.0-1", "m.layers.2-3", "m.layers.4-5", "m.layers.6-7"];
        assert_eq!(names, [&["m.embed_tokens"], &parts[..]].concat());
        assert_eq!(found[0].1["m.embed_tokens.weight"], Format::Bf16);
        assert_eq!((found[1].0.numbers, found[1].1.len()), (256, 2));
        assert!(found[1].1.values().all(|format| *format == Format::Q8_0));
        Ok(())
    }

    #[test]
    fn short_stacks_have_a_group_for_each_layer() {
        let parts = |layers: usize| -> Vec<usize> { (0..layers).map(|n| n * PARTS / layers).collect() };
        assert_eq!((parts(3), parts(4), parts(6)), (vec![0, 1, 2], vec![0, 1, 2, 3], vec![0, 0, 1, 2, 2, 3]));
    }
}
