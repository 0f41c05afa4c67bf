//! The one error type of training.

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error("tensor: {0}")]
    Candle(#[from] candle_core::Error),
    /// A layer or checkpoint failed.
    #[error(transparent)]
    Nn(#[from] vela_nn::Error),
    /// The robot's side failed.
    #[error(transparent)]
    Robot(#[from] vela_embodiment::Error),
    /// A file could not be understood.
    #[error("{what}: {why}")]
    Parse {
        /// The file.
        what: String,
        /// Why it was refused.
        why: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The loss stopped being a number.
    #[error("the loss is not finite at step {0}; the last checkpoint is kept")]
    Diverged(usize),
}

/// Puts a path on an I/O error.
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |source| Error::Io { path: path.display().to_string(), source }
}
