//! The one error type of the machines: each variant says what was expected and what came.

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong around a robot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or text could not be understood.
    #[error("{what}: {why}")]
    Parse {
        /// The file or text.
        what: String,
        /// Why it was refused.
        why: String,
    },
    /// A vector or picture has the wrong size.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// What was measured.
        what: String,
        /// The size that was expected.
        expected: String,
        /// The size that came.
        got: String,
    },
    /// Robot, policy or dataset do not describe the same embodiment; one line per difference.
    #[error("embodiments differ: {}", .0.join("; "))]
    Mismatch(Vec<String>),
    /// A number that must be finite is not.
    #[error("{0} is not finite")]
    NotFinite(String),
    /// A name that nobody knows.
    #[error("unknown {kind} '{name}'; known: {known}")]
    Unknown {
        /// What kind of thing was named.
        kind: &'static str,
        /// The name that came.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A policy could not answer.
    #[error("policy: {0}")]
    Policy(String),
    /// A robot or simulator could not act.
    #[error("robot: {0}")]
    Robot(String),
    /// A link to another process failed.
    #[error("link: {0}")]
    Link(String),
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}
