//! What the matrices of a decoder read while it reads a text.

use super::loss::{Windows, pass};
use crate::Decoder;
use crate::decoder::{Beside, Site};
use candle_core::{D, Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use vela_nn::Result;

/// Rows kept of what a matrix reads.
const KEPT: usize = 128;

/// What a matrix read.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The sum of the magnitudes of each column, `[input]`, and over how many rows.
    sums: Vec<f64>,
    count: usize,
    /// Some of the rows, `[n, input]`.
    rows: Vec<f32>,
}

impl Seen {
    /// The mean magnitude of each column; none if nothing came by.
    pub fn means(&self) -> Option<Vec<f32>> {
        let count = self.count as f64;
        (self.count > 0).then(|| self.sums.iter().map(|sum| (sum / count) as f32).collect())
    }

    /// Rows that came by, `[n, input]`.
    pub fn rows(&self) -> Result<Tensor> {
        let input = self.sums.len();
        Ok(Tensor::from_vec(self.rows.clone(), (self.rows.len() / input.max(1), input), &Device::Cpu)?)
    }

    fn hear(&mut self, x: &[f32], input: usize, stride: usize) {
        self.sums.resize(input, 0.0);
        for row in x.chunks_exact(input.max(1)) {
            self.sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v.abs()));
            if self.count.is_multiple_of(stride) && self.rows.len() < KEPT * input {
                self.rows.extend_from_slice(row);
            }
            self.count += 1;
        }
    }
}

/// By layer and name.
pub(super) type Record = BTreeMap<(usize, String), Seen>;

struct Listener<'a> {
    wanted: &'a [BTreeSet<String>],
    /// Every how many rows one is kept.
    stride: usize,
    record: Mutex<Record>,
}

impl Beside for Listener<'_> {
    fn at(&self, site: Site, x: &Tensor, y: Tensor) -> Result<Tensor> {
        if self.wanted.get(site.layer).is_some_and(|names| names.contains(site.name)) {
            let (input, values) = (x.dim(D::Minus1)?, x.flatten_all()?.to_vec1::<f32>()?);
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = record.entry((site.layer, site.name.to_owned())).or_default();
            seen.hear(&values, input, self.stride);
        }
        Ok(y)
    }
}

/// Reads the windows and notes what the matrices of these names (by layer) read.
pub(super) fn listen(
    decoder: &Decoder,
    windows: &Windows,
    wanted: &[BTreeSet<String>],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Record> {
    let stride = windows.tokens().div_ceil(KEPT).max(1);
    let listener = Listener { wanted, stride, record: Mutex::default() };
    for (done, window) in windows.all.iter().enumerate() {
        progress(done, windows.all.len());
        pass(decoder, window, Some(&listener))?;
    }
    Ok(listener.record.into_inner().unwrap_or_else(PoisonError::into_inner))
}
