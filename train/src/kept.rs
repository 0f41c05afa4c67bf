//! Moments on disk, as a frozen trunk made them: a file of tensors, one row per moment, that names its trunk.

use crate::error::{Error, Result, at};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use vela_policy::{Normaliser, Scaling};

/// Writes named tensors `[moments, ..]` of the trunk of this hash: one safetensors file, whole or not at all.
pub(crate) fn save(path: &Path, trunk: &str, parts: &[(&str, &Tensor)]) -> Result<()> {
    let hash = Tensor::from_slice(trunk.as_bytes(), trunk.len(), &Device::Cpu)?;
    let mut tensors: HashMap<&str, Tensor> =
        parts.iter().map(|(name, tensor)| (*name, (*tensor).clone())).collect();
    tensors.insert("trunk", hash);
    let partial = path.with_extension("partial");
    candle_core::safetensors::save(&tensors, &partial)?;
    std::fs::rename(&partial, path).map_err(at(path))
}

/// Reads the tensors of these names that [`save`] wrote.
///
/// # Errors
/// A torn file; moments of another trunk than that of this hash; parts of different numbers of moments.
pub(crate) fn load<const N: usize>(path: &Path, trunk: &str, names: [&str; N]) -> Result<[Tensor; N]> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
    let get = |name: &str| tensors.get(name).ok_or_else(|| refuse(format!("tensor '{name}' is missing")));
    if get("trunk")?.to_vec1::<u8>()? != trunk.as_bytes() {
        return Err(refuse("its prefixes are of another trunk".into()));
    }
    let found: Vec<Tensor> = names.iter().map(|name| get(name).cloned()).collect::<Result<_>>()?;
    let moments = |tensor: &Tensor| tensor.dims().first().copied();
    if found.windows(2).any(|pair| moments(&pair[0]) != moments(&pair[1])) {
        return Err(refuse(format!("expected as many moments of each of {}", names.join(", "))));
    }
    found.try_into().map_err(|_| refuse("expected its tensors".into()))
}

/// The first `horizon` of `actions [moments, ticks, joints]`, scaled so that the range from the 1 % to the 99 % quantile of
/// each joint becomes [-1, 1], and that scaling.
///
/// # Errors
/// A longer horizon than there is; a joint that never moves.
pub(crate) fn scaled(actions: &Tensor, horizon: usize) -> Result<(Tensor, Normaliser)> {
    let (moments, _, joints) = actions.dims3()?;
    let actions = actions.narrow(1, 0, horizon)?.contiguous()?;
    let rows = actions.reshape((moments * horizon, joints))?.to_vec2::<f32>()?;
    let (mut low, mut high) = (Vec::with_capacity(joints), Vec::with_capacity(joints));
    for joint in 0..joints {
        let mut values: Vec<f32> = rows.iter().map(|row| row[joint]).collect();
        values.sort_by(f32::total_cmp);
        let at = |q: f64| values[(q * (values.len() - 1) as f64).round() as usize];
        low.push(at(0.01));
        high.push(at(0.99));
    }
    let scaling = Normaliser::new(Scaling::Quantiles, low, high, Normaliser::EPS)?;
    scaling.check_widths("actions")?;
    let scaled: Vec<Vec<f32>> =
        rows.iter().map(|row| scaling.normalise(row)).collect::<vela_nn::Result<_>>()?;
    Ok((Tensor::new(scaled, &Device::Cpu)?.reshape((moments, horizon, joints))?, scaling))
}
