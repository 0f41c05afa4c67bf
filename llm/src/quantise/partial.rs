//! A folder that appears whole or not at all.

use std::path::{Path, PathBuf};
use vela_nn::{Error, Result};

/// A folder that is being filled, gone at the end unless it was renamed.
pub struct Partial(PathBuf);

impl Partial {
    /// An empty one beside `out`, which it is to become.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(out: &Path) -> Result<Self> {
        let mut name = out.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let path = PathBuf::from(name);
        std::fs::create_dir_all(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It may have been renamed; what cannot be removed is only in the way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
