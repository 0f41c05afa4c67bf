//! What can go wrong in a layer, a checkpoint or a training step.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible call in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the layers, the weights or the optimiser. Each says what was expected and what came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the tensor library.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint does not fit the model: everything that is wrong with it, at once.
    #[error("the checkpoint does not fit the model: {0}")]
    Weights(WeightsReport),
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected}, got {got:?}")]
    Shape {
        /// The operation or argument.
        what: String,
        /// The shape that it takes, in words or letters.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A file or value could not be understood.
    #[error("{what}: {reason}")]
    Parse {
        /// The file or value.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A configuration or argument that cannot work.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// A parse error about `what`.
    pub fn parse(what: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Parse { what: what.to_string(), reason: reason.to_string() }
    }

    /// A shape error about `what`.
    pub fn shape(what: impl fmt::Display, expected: impl fmt::Display, got: &[usize]) -> Self {
        Self::Shape { what: what.to_string(), expected: expected.to_string(), got: got.to_vec() }
    }

    /// An invalid configuration or argument.
    pub fn invalid(reason: impl fmt::Display) -> Self {
        Self::Invalid(reason.to_string())
    }
}

/// A tensor whose shape in the checkpoint is not the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshaped {
    /// Full name.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<usize>,
    /// The checkpoint's shape.
    pub got: Vec<usize>,
}

/// Every difference between a checkpoint and the model that was built from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightsReport {
    /// Asked for by the model, absent from the checkpoint.
    pub missing: Vec<String>,
    /// In the checkpoint, never asked for.
    pub unused: Vec<String>,
    /// In both, with different shapes.
    pub misshaped: Vec<Misshaped>,
}

impl WeightsReport {
    /// Whether checkpoint and model agree.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.misshaped.is_empty()
    }
}

impl fmt::Display for WeightsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} missing, {} unused, {} mis-shaped",
            self.missing.len(),
            self.unused.len(),
            self.misshaped.len()
        )?;
        for name in &self.missing {
            write!(f, "\n  missing     {name}")?;
        }
        for name in &self.unused {
            write!(f, "\n  unused      {name}")?;
        }
        for m in &self.misshaped {
            write!(f, "\n  mis-shaped  {}: expected {:?}, got {:?}", m.name, m.expected, m.got)?;
        }
        Ok(())
    }
}
