//! The tensors of one layer in float32: factors put in, matrices rounded; and the tensors outside the layers.

use super::awq::{Matrix, scale, search};
use super::calibrate::Seen;
use super::fold::{Group, Source};
use super::round::{BLOCK, Bits, blocks};
use super::{Made, names_of};
use crate::config::DecoderConfig;
use std::collections::{BTreeMap, BTreeSet};
use vela_nn::quant::{Blocks, Format};
use vela_nn::{Error, NormConfig, Result, Weights};

/// A tensor in float32.
struct Dense {
    values: Vec<f32>,
    shape: Vec<usize>,
}

/// One layer.
pub(super) struct Layer {
    /// Its name in the whole checkpoint.
    scope: String,
    /// By name relative to the layer. Matrices are `[output, input]`, whatever the file has.
    tensors: BTreeMap<String, Dense>,
    /// Matrices that are quantised.
    matrices: BTreeSet<String>,
    one_plus: bool,
}

/// What became of a group.
pub(super) struct Folded {
    pub power: f32,
    pub errors: [f64; 2],
    /// Whether the factors stay beside the matrix.
    pub kept: bool,
}

impl Layer {
    /// Reads layer `index`.
    pub fn read(weights: &Weights, config: &DecoderConfig, index: usize) -> Result<Self> {
        let names = config.names.table();
        let scope = format!("{}.{}.{index}", names.body, names.layers);
        let modules = config.modules_of(index);
        let mut tensors = BTreeMap::new();
        for (full, stored) in names_of(weights, config) {
            let Some(name) = full.strip_prefix(&format!("{scope}.")) else { continue };
            let tensor = weights.get(weights.shape_of(&stored).unwrap_or_default(), &stored)?;
            let is_matrix =
                name.strip_suffix(".weight").is_some_and(|m| modules.iter().any(|of| of.name == m));
            let tensor = if names.transposed && is_matrix { tensor.t()?.contiguous()? } else { tensor };
            let shape = tensor.dims().to_vec();
            tensors.insert(name.to_owned(), Dense { values: tensor.flatten_all()?.to_vec1()?, shape });
        }
        let exact = [names.router, names.shared_gate];
        let fits = |input: usize| input.is_multiple_of(BLOCK);
        let matrices = modules.into_iter().filter(|m| fits(m.input) && !exact.contains(&m.name.as_str()));
        Ok(Self {
            scope,
            tensors,
            matrices: matrices.map(|m| m.name).collect(),
            one_plus: matches!(config.norm, NormConfig::RmsNorm { one_plus: true, .. }),
        })
    }

    fn tensor(&mut self, name: &str) -> Result<&mut Dense> {
        let full = format!("{}.{name}", self.scope);
        self.tensors.get_mut(name).ok_or_else(|| Error::invalid(format!("{full} is missing")))
    }

    /// Finds factors for a group from what it read and puts them in: the readers' columns are multiplied, what makes
    /// the numbers is divided.
    pub fn fold(&mut self, group: &Group, seen: &Seen, (bits, size): (Bits, usize)) -> Result<Folded> {
        let nothing = Folded { power: 0.0, errors: [0.0; 2], kept: false };
        let Some(means) = seen.means() else { return Ok(nothing) };
        let mut matrices = Vec::new();
        for name in group.readers.iter().filter(|name| self.matrices.contains(*name)) {
            if let Some(dense) = self.tensors.get(&format!("{name}.weight")) {
                matrices.push(Matrix { values: dense.values.clone(), input: means.len() });
            }
        }
        // Beside a matrix that stays in float32 no factors can be kept.
        if matrices.is_empty() || matrices.iter().any(|m| !m.values.len().is_multiple_of(means.len())) {
            return Ok(nothing);
        }
        let tied = if let Source::Rows(_, rows) = &group.source { Some(rows.as_slice()) } else { None };
        let all: Vec<&Matrix> = matrices.iter().collect();
        let found = search(&all, (bits, size), &means, &seen.rows()?, tied)?;
        if found.power > 0.0 {
            for name in group.readers.iter().chain(&group.exact) {
                scale(&mut self.tensor(&format!("{name}.weight"))?.values, &found.factors);
            }
            self.divide(&group.source, &found.factors, &group.readers)?;
        }
        let kept = group.source == Source::Kept;
        Ok(Folded { power: found.power, errors: found.errors, kept })
    }

    fn divide(&mut self, source: &Source, factors: &[f32], readers: &[String]) -> Result<()> {
        match source {
            Source::Norm(name) => {
                let plus = if self.one_plus { 1.0 } else { 0.0 };
                let weight = &mut self.tensor(&format!("{name}.weight"))?.values;
                weight.iter_mut().zip(factors).for_each(|(w, f)| *w = (*w + plus) / f - plus);
                if let Some(bias) = self.tensors.get_mut(&format!("{name}.bias")) {
                    bias.values.iter_mut().zip(factors).for_each(|(b, f)| *b /= f);
                }
            }
            Source::Rows(name, rows) => {
                let by_row: BTreeMap<usize, f32> =
                    rows.iter().copied().zip(factors.iter().copied()).collect();
                let weight = self.tensor(&format!("{name}.weight"))?;
                let columns = weight.shape.last().copied().unwrap_or(1);
                for (row, factor) in &by_row {
                    let row = weight.values.get_mut(row * columns..(row + 1) * columns).unwrap_or_default();
                    row.iter_mut().for_each(|w| *w /= factor);
                }
                if let Some(bias) = self.tensors.get_mut(&format!("{name}.bias")) {
                    for (row, factor) in &by_row {
                        bias.values.get_mut(*row).into_iter().for_each(|b| *b /= factor);
                    }
                }
            }
            Source::Kept => {
                let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
                for name in readers {
                    let beside = Dense { shape: vec![inverse.len()], values: inverse.clone() };
                    self.tensors.insert(format!("{name}.input_scale"), beside);
                }
            }
        }
        Ok(())
    }

    /// Rounds the matrices and hands everything over.
    pub fn write(self, bits: Bits, group: usize, made: &mut Made) -> Result<()> {
        for (name, dense) in self.tensors {
            let full = format!("{}.{name}", self.scope);
            let matrix = name.strip_suffix(".weight").is_some_and(|module| self.matrices.contains(module));
            let stored = match (matrix, dense.shape.as_slice()) {
                (true, [output, input]) => {
                    made.matrices += 1;
                    made.numbers += output * input;
                    blocks(bits, group, &dense.values, [*output, *input])
                        .map_err(|e| Error::parse(&full, e))?
                }
                _ => exactly(&dense)?,
            };
            made.tensors.insert(full, stored);
        }
        Ok(())
    }
}

/// In float32.
fn exactly(dense: &Dense) -> Result<Blocks> {
    let bytes = dense.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Blocks::new(Format::F32, &dense.shape, bytes)
}

/// What is outside the layers: embedding and output projection in eight bits, all else in float32.
pub(super) fn outside(weights: &Weights, config: &DecoderConfig, made: &mut Made) -> Result<()> {
    let names = config.names.table();
    let layers = format!("{}.{}.", names.body, names.layers);
    let tables = [format!("{}.{}.weight", names.body, names.embedding), format!("{}.weight", names.head)];
    for (full, stored) in names_of(weights, config) {
        if full.starts_with(&layers) {
            continue;
        }
        let tensor = weights.get(weights.shape_of(&stored).unwrap_or_default(), &stored)?;
        let shape = tensor.dims().to_vec();
        let dense = Dense { values: tensor.flatten_all()?.to_vec1()?, shape };
        let stored = match dense.shape.as_slice() {
            [rows, columns] if tables.contains(&full) && columns.is_multiple_of(BLOCK) => {
                blocks(Bits::Eight, BLOCK, &dense.values, [*rows, *columns])
                    .map_err(|e| Error::parse(&full, e))?
            }
            _ => exactly(&dense)?,
        };
        made.tensors.insert(full, stored);
    }
    Ok(())
}
