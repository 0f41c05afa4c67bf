//! Where parameters come from: a checkpoint, bytes in the binary, or a seeded initialisation. One prefix-scoped source.

use crate::error::{Misshaped, WeightsReport};
use crate::init::Init;
use crate::kernels::{quant_pack, quantise};
use crate::linear::LowRank;
use crate::quant::{Blocks, Format, Keep, Precision};
use crate::stored::{FileBytes, Stored, files_of, index_file, read_files};
use crate::{Error, Gguf, Result};
use candle_core::{Device, Shape, Tensor, Var};
use safetensors::{Dtype, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A matrix as a layer keeps it.
pub(crate) enum Matrix {
    /// Float32 numbers.
    Dense(Tensor),
    /// As the file stores them, and how they are to be multiplied.
    Blocks(Blocks, Precision),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Constants from a checkpoint.
    Frozen,
    /// Variables from a checkpoint.
    Trainable,
    /// Variables initialised under a seed.
    Fresh(u64),
    /// Constants made up under a seed.
    Noise(u64),
}

/// How a matrix of this full name is to be kept, if not as it is stored.
type Kept = Arc<dyn Fn(&str) -> Option<Keep> + Send + Sync>;

/// Made-up weights are rows of this many numbers, from a place of their own on.
const NOISE: usize = 65_537;

#[derive(Default)]
struct State {
    made: HashMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
    misshaped: BTreeMap<String, Misshaped>,
}

struct Source {
    mode: Mode,
    precision: Precision,
    kept: Option<Kept>,
    stored: HashMap<String, Stored>,
    /// What learns beside stored matrices.
    beside: HashMap<String, LowRank>,
    noise: Vec<f32>,
    state: Mutex<State>,
}

impl Source {
    /// Made-up numbers of the tensor `name`, those from `start` on.
    fn fill(&self, name: &str, spread: f32, start: usize, out: &mut [f32]) {
        let place = name.bytes().fold(0usize, |hash, byte| (hash * 31 + usize::from(byte)) % NOISE);
        let (mut at, mut rest) = ((place + start) % NOISE, out);
        while !rest.is_empty() {
            let run = &self.noise[at..NOISE.min(at + rest.len())];
            let (now, later) = rest.split_at_mut(run.len());
            now.iter_mut().zip(run).for_each(|(to, v)| *to = v * spread);
            (at, rest) = (0, later);
        }
    }

    // A panic while the lock was held cannot leave the maps half-written in a way that matters here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source of parameters, scoped to a prefix. Cheap to clone. A layer asks for its tensors by shape and name; what is
/// missing or mis-shaped is written down and answered with zeros, so that [`Weights::finish`] can report everything at once.
#[derive(Clone)]
pub struct Weights {
    source: Arc<Source>,
    prefix: String,
}

impl Weights {
    fn new(mode: Mode, stored: HashMap<String, Stored>) -> Self {
        Self::source(mode, Precision::Exact, stored)
    }

    fn source(mode: Mode, precision: Precision, stored: HashMap<String, Stored>) -> Self {
        // Every model begins with its weights.
        crate::kernels::candle_pool::keep_out();
        let noise = match mode {
            Mode::Noise(seed) => Init::Normal(1.0).values(seed, "made-up weights", &Shape::from(NOISE)),
            _ => Vec::new(),
        };
        let (beside, state) = (HashMap::new(), Mutex::default());
        let source = Source { mode, precision, kept: None, stored, beside, noise, state };
        Self { source: Arc::new(source), prefix: String::new() }
    }

    /// Constants from a GGUF file, under its own names ([`Weights::renamed`] gives them others). Quantised matrices stay
    /// quantised inside their layers, which multiply them as `precision` says.
    pub fn from_gguf(file: &Gguf, precision: Precision) -> Self {
        Self::from_blocks(file.tensors().clone(), precision)
    }

    /// The same of stored tensors by name.
    pub fn from_blocks(tensors: BTreeMap<String, Blocks>, precision: Precision) -> Self {
        let stored = tensors.into_iter().map(|(name, blocks)| (name, Stored::Blocks(blocks)));
        Self::source(Mode::Frozen, precision, stored.collect())
    }

    /// Constants from safetensors files (F32, F16 or BF16, all read as float32), memory-mapped.
    pub fn load(paths: &[PathBuf]) -> Result<Self> {
        Ok(Self::new(Mode::Frozen, read_files(paths)?))
    }

    /// Constants from a model folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn load_dir(dir: &Path) -> Result<Self> {
        Self::load(&files_of(dir)?)
    }

    /// Constants from a safetensors file held in memory, such as a checkpoint inside the binary.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut stored = HashMap::new();
        index_file("checkpoint", Arc::new(FileBytes::Owned(bytes.to_vec())), &mut stored)?;
        Ok(Self::new(Mode::Frozen, stored))
    }

    /// Constants from tensors by name.
    pub fn from_tensors(tensors: HashMap<String, Tensor>) -> Self {
        Self::new(Mode::Frozen, tensors.into_iter().map(|(name, t)| (name, Stored::Ready(t))).collect())
    }

    /// New trainable variables. Each takes its initial values from its own stream: they depend on seed and name only.
    pub fn fresh(seed: u64) -> Self {
        Self::new(Mode::Fresh(seed), HashMap::new())
    }

    /// Constants made up as layers ask for them, spread as fresh ones are: for measuring speed without a checkpoint. They
    /// repeat every 65,537 numbers, which makes billions of them in seconds.
    pub fn noise(seed: u64) -> Self {
        Self::new(Mode::Noise(seed), HashMap::new())
    }

    /// Trainable variables from a checkpoint: a safetensors file or a model folder.
    pub fn load_trainable(path: &Path) -> Result<Self> {
        let files = if path.is_dir() { files_of(path)? } else { vec![path.to_path_buf()] };
        Ok(Self::new(Mode::Trainable, read_files(&files)?))
    }

    /// The same checkpoint with every stored name passed through `rename` (an empty string drops the tensor).
    /// Call it before any layer has asked for a tensor.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Result<Self> {
        let (mut stored, mut beside) = (HashMap::new(), HashMap::new());
        for (name, tensor) in &self.source.stored {
            let new = rename(name);
            if new.is_empty() {
                continue;
            }
            if let Some(low) = self.source.beside.get(name) {
                beside.insert(new.clone(), low.clone());
            }
            if stored.insert(new.clone(), tensor.clone()).is_some() {
                return Err(Error::parse(name, format!("two tensors would be called {new}")));
            }
        }
        Ok(self.with_stored(stored, beside))
    }

    /// The same checkpoint with other tensors in the place of some, by full name. Call it before any layer has asked for a
    /// tensor.
    ///
    /// # Errors
    /// A name that the checkpoint does not have.
    pub fn replaced(&self, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let mut stored = self.source.stored.clone();
        for (name, tensor) in tensors {
            match stored.get_mut(&name) {
                Some(old) => *old = Stored::Ready(tensor),
                None => return Err(Error::parse(name, "is to be replaced, and the checkpoint has none")),
            }
        }
        Ok(self.with_stored(stored, self.source.beside.clone()))
    }

    /// The same checkpoint with something that learns beside some of its matrices, by full name: the linear layers made of
    /// them add it. Call it before any layer has asked for a tensor.
    ///
    /// # Errors
    /// A name that the checkpoint does not have.
    pub fn adapted(&self, beside: HashMap<String, LowRank>) -> Result<Self> {
        match beside.keys().find(|name| !self.source.stored.contains_key(*name)) {
            Some(name) => Err(Error::parse(name, "is to be adapted, and the checkpoint has none")),
            None => Ok(self.with_stored(self.source.stored.clone(), beside)),
        }
    }

    /// The same constants in memory, so that no file is read again by those who ask often: matrices that `half` names (by
    /// full name) in bfloat16, widened at each use, everything else in float32.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn held(&self, half: impl Fn(&str) -> bool) -> Result<Self> {
        let one = |(name, stored): (&String, &Stored)| {
            let held = match *stored.shape() {
                [rows, columns] if half(name) => {
                    Stored::Blocks(stored.kept(name, Keep::As(Format::Bf16), [rows, columns])?)
                }
                _ => Stored::Ready(stored.tensor(name)?),
            };
            Ok((name.clone(), held))
        };
        let stored = self.source.stored.iter().map(one).collect::<Result<_>>()?;
        Ok(self.with_stored(stored, self.source.beside.clone()))
    }

    fn with_stored(&self, stored: HashMap<String, Stored>, beside: HashMap<String, LowRank>) -> Self {
        let mut made = Self::source(self.source.mode, self.source.precision, stored);
        if let Some(source) = Arc::get_mut(&mut made.source) {
            source.kept.clone_from(&self.source.kept);
            source.beside = beside;
        }
        Self { prefix: self.prefix.clone(), ..made }
    }

    /// The same source, one level down: names are looked up under `name.`; numbers are levels too.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { source: self.source.clone(), prefix: self.full(&name.to_string()) }
    }

    /// The prefix of this scope, without the last dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn full(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}.{name}", self.prefix),
        }
    }

    /// The tensor `name` of this scope, `shape`; a fresh one starts as `Normal(0.02)`.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.get_init(shape, name, Init::Normal(0.02))
    }

    /// The tensor `name` of this scope, `shape`; a fresh one starts as `init` says. Asking twice gives the same tensor
    /// (tied weights). A missing or mis-shaped tensor is noted for [`Weights::finish`] and zeros come back.
    pub fn get_init(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        let shape = shape.into();
        let name = self.full(name);
        let mut state = self.source.state();
        if let Some(made) = state.made.get(&name) {
            if made.shape() == &shape {
                return Ok(made.clone());
            }
            let misshaped =
                Misshaped { name: name.clone(), expected: shape.dims().to_vec(), got: made.dims().to_vec() };
            state.misshaped.insert(name, misshaped);
            return absent(&shape);
        }
        let tensor = if let Mode::Fresh(seed) = self.source.mode {
            Tensor::from_vec(init.values(seed, &name, &shape), shape, &Device::Cpu)?
        } else if let Mode::Noise(seed) = self.source.mode {
            let mut values = vec![0.0; shape.elem_count()];
            match init.spread(shape.dims()) {
                Some(spread) => self.source.fill(&name, spread, 0, &mut values),
                None => values = init.values(seed, &name, &shape),
            }
            Tensor::from_vec(values, shape, &Device::Cpu)?
        } else {
            state.used.insert(name.clone());
            match self.source.stored.get(&name) {
                Some(stored) if stored.shape() == shape.dims() => stored.tensor(&name)?,
                Some(stored) => {
                    let (expected, got) = (shape.dims().to_vec(), stored.shape().to_vec());
                    state.misshaped.insert(name.clone(), Misshaped { name, expected, got });
                    return absent(&shape);
                }
                None => {
                    state.missing.insert(name);
                    return absent(&shape);
                }
            }
        };
        let tensor = if matches!(self.source.mode, Mode::Frozen | Mode::Noise(_)) {
            tensor
        } else {
            let var = Var::from_tensor(&tensor)?;
            state.vars.insert(name.clone(), var.clone());
            var.as_tensor().clone()
        };
        state.made.insert(name, tensor.clone());
        Ok(tensor)
    }

    /// The same constants, multiplied as `precision` says by the layers that are made of them: [`Precision::Fast`] keeps 16-bit
    /// weights in 16 bits and packs them, but has no gradient. Call it before any layer has asked for a tensor.
    ///
    /// # Errors
    /// Variables, or a layer that has asked.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        if self.source.mode != Mode::Frozen {
            return Err(Error::invalid("only constant weights have a precision; these are variables"));
        }
        match Arc::try_unwrap(self.source) {
            Ok(source) if source.state.lock().is_ok_and(|state| state.used.is_empty()) => {
                Ok(Self { source: Arc::new(Source { precision, ..source }), prefix: self.prefix })
            }
            _ => Err(Error::invalid("the precision of weights comes before the layers made of them")),
        }
    }

    /// The same constants, with the matrices that `keep` names (by full name) kept as `F32`, `F16`, `BF16` or `Q8_0`
    /// by the layers that are made of them, packed and without a gradient. Call it before any layer has asked for a tensor.
    ///
    /// # Errors
    /// Variables, or a layer that has asked.
    pub fn kept<K: Into<Keep>>(
        self,
        keep: impl Fn(&str) -> Option<K> + Send + Sync + 'static,
    ) -> Result<Self> {
        if matches!(self.source.mode, Mode::Fresh(_) | Mode::Trainable) {
            return Err(Error::invalid(
                "only constant weights are kept in another format; these are variables",
            ));
        }
        match Arc::try_unwrap(self.source) {
            Ok(source) if source.state.lock().is_ok_and(|state| state.used.is_empty()) => {
                let kept: Kept = Arc::new(move |name| keep(name).map(Into::into));
                Ok(Self { source: Arc::new(Source { kept: Some(kept), ..source }), ..self })
            }
            _ => Err(Error::invalid("the format of weights comes before the layers made of them")),
        }
    }

    /// The same constants for a model that is only asked: matrices that are packed at their first use anyway are packed as they
    /// are read, and not kept as they came. They have no gradient. Call it before any layer has asked for a tensor.
    ///
    /// # Errors
    /// As [`Weights::kept`].
    pub fn packed(self) -> Result<Self> {
        let small =
            |stored: &Stored| matches!(*stored.shape(), [a, b] if (1..=quant_pack::MOST).contains(&(a * b)));
        let stored = self.source.stored.iter().filter(|(_, stored)| small(stored));
        let names: BTreeSet<String> = stored.map(|(name, _)| name.clone()).collect();
        self.kept(move |name| names.contains(name).then_some(Format::F32))
    }

    /// As [`Weights::get_init`] for `[rows, columns]`, left as it is stored where that is quantised or to be packed.
    pub(crate) fn matrix(&self, shape: (usize, usize), name: &str, init: Init) -> Result<Matrix> {
        let full = self.full(name);
        let precision = self.source.precision;
        let both = [shape.0, shape.1];
        if let Some(keep) = self.source.kept.as_ref().and_then(|kept| kept(&full)) {
            let made = match (self.source.mode, self.source.stored.get(&full)) {
                (Mode::Noise(_), _) => match init.spread(&both) {
                    Some(spread) => {
                        let row =
                            |i: usize, out: &mut [f32]| self.source.fill(&full, spread, i * shape.1, out);
                        Some(quantise::made(keep, both, row)?)
                    }
                    None => None,
                },
                (Mode::Frozen, Some(stored)) if stored.shape() == both => {
                    Some(stored.kept(&full, keep, both)?)
                }
                _ => None,
            };
            if let Some(blocks) = made {
                self.source.state().used.insert(full);
                return Ok(Matrix::Blocks(blocks, Precision::Fast));
            }
        }
        let blocks = match self.source.stored.get(&full) {
            Some(stored) if stored.shape() == [shape.0, shape.1] => stored.blocks(precision),
            _ => None,
        };
        match blocks {
            Some(blocks) => {
                self.source.state().used.insert(full);
                Ok(Matrix::Blocks(blocks, precision))
            }
            None => self.get_init(shape, name, init).map(Matrix::Dense),
        }
    }

    /// What learns beside the matrix `name` of this scope.
    pub(crate) fn beside(&self, name: &str) -> Option<LowRank> {
        self.source.beside.get(&self.full(name)).cloned()
    }

    /// The tensor `name` if the checkpoint has it; a fresh source makes it.
    pub fn optional(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Option<Tensor>> {
        if self.contains(name) || self.is_fresh() {
            self.get_init(shape, name, init).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Whether the checkpoint has `name` in this scope; a fresh source has only what was already made.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full(name);
        self.source.stored.contains_key(&name) || self.source.state().made.contains_key(&name)
    }

    /// The stored shape of `name` in this scope.
    pub fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        self.source.stored.get(&self.full(name)).map(|stored| stored.shape().to_vec())
    }

    /// Whether this source makes new parameters instead of reading a checkpoint.
    pub fn is_fresh(&self) -> bool {
        matches!(self.source.mode, Mode::Fresh(_) | Mode::Noise(_))
    }

    /// The full names of all stored tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.source.stored.keys().cloned().collect();
        names.sort();
        names
    }

    /// Succeeds if checkpoint and model agree exactly; else one error names every missing, unused and mis-shaped tensor.
    pub fn finish(&self) -> Result<()> {
        self.finish_allowing(|_| false)
    }

    /// As [`Weights::finish`], but unused tensors whose full name `allow` accepts are no error.
    pub fn finish_allowing(&self, allow: impl Fn(&str) -> bool) -> Result<()> {
        let state = self.source.state();
        let report = WeightsReport {
            missing: state.missing.iter().cloned().collect(),
            unused: self
                .names()
                .into_iter()
                .filter(|name| !state.used.contains(name) && !allow(name))
                .collect(),
            misshaped: state.misshaped.values().cloned().collect(),
        };
        if report.is_clean() { Ok(()) } else { Err(Error::Weights(report)) }
    }

    /// The variables made so far, by full name, sorted. Empty for constants.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.source.state().vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }
}

/// Zeros of any shape at the cost of one: a config may ask for far more than there is, and is refused in the end.
fn absent(shape: &Shape) -> Result<Tensor> {
    Ok(Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
}

/// Writes a safetensors file whole or not at all (a temporary file beside it, then a rename): F16 tensors as they are,
/// all others as F32. Names are sorted, so the same tensors give the same bytes.
pub fn save(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let mut data: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes) = if tensor.dtype() == candle_core::DType::F16 {
            let values = flat.to_vec1::<half::f16>()?;
            (Dtype::F16, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        } else {
            let values = flat.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        data.insert(name, (dtype, tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(data.len());
    for (name, (dtype, shape, bytes)) in &data {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| Error::parse(name, e))?;
        views.push((name.to_string(), view));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::parse(path.display(), e))?;
    write_atomically(path, &bytes)
}

/// Writes a file whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, bytes).map_err(|e| Error::io(&temporary, e))?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}

/// The SHA-256 of some bytes, in lower-case hex.
pub fn hash_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
