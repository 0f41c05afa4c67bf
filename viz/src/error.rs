//! What can go wrong when a recording is opened or closed.

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong when a recording is opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recording cannot be written.
    #[error("rerun recording {path}: {why}")]
    Recording {
        /// The file, or what stands for it.
        path: String,
        /// The cause.
        why: String,
    },
    /// The viewer cannot be started.
    #[error(
        "rerun viewer: {0} (the viewer of this version is `pip install rerun-sdk==0.36.3`; a recording can be saved \
         to a file without it)"
    )]
    Viewer(String),
    /// The robot's description cannot be drawn.
    #[error(transparent)]
    Embodiment(#[from] vela_embodiment::Error),
}
